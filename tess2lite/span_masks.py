"""Which positions are denoised: span masks, True where the model must write.

UL2's mixture: a third span infilling at 15 %, a third span infilling at 50 %, a third prefix completion.
The first position is never masked: its token is what position 1 is read from.
"""

from __future__ import annotations

import torch

from .validation import InputError


def _choose(generator: torch.Generator, options):
    return options[int(torch.randint(len(options), (), generator=generator))]


def _lengths(total: int, parts: int, generator: torch.Generator) -> list[int]:
    """`total` cut into `parts` lengths of at least 1, every cut equally likely."""
    cuts = (torch.randperm(total - 1, generator=generator)[: parts - 1] + 1).sort().values.tolist()
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


def _needs(length: int, least: int) -> None:
    if length < least:
        raise InputError(f"length is {length}; a mask needs at least {least} positions.")


def span_infilling(length: int, ratio: float, mean_span: int, generator: torch.Generator) -> torch.Tensor:
    """Spans of about `mean_span` that cover `ratio` of a text, the way T5 draws them.

    The counts follow from the arguments, only the places are random: int(length·ratio) positions are
    masked, in (that // mean_span) spans with at least one known token before each.

    Returns a bool tensor (length,).
    """
    _needs(length, 2)
    if not 0 < ratio < 1 or mean_span < 1:
        raise InputError(f"ratio is {ratio} and mean_span {mean_span}; give 0 < ratio < 1 and mean_span ≥ 1.")
    masked = min(max(1, int(length * ratio)), length - 1)
    spans = min(max(1, masked // mean_span), length - masked)
    known_lengths = _lengths(length - masked, spans, generator)
    mask = torch.zeros(length, dtype=torch.bool)
    position = 0
    for known, span in zip(known_lengths, _lengths(masked, spans, generator), strict=True):
        mask[position + known : position + known + span] = True
        position += known + span
    return mask


def prefix(length: int, generator: torch.Generator) -> torch.Tensor:
    """Everything after a prefix, whose length after BOS is uniform from 1 to (almost) half of the text.

    Returns a bool tensor (length,); its first True is at 2 … ⌈length/2⌉ − 1.
    """
    _needs(length, 3)
    first = int(torch.randint(2, max(3, (length + 1) // 2), (), generator=generator))
    return after(length, first)


def after(length: int, first: int) -> torch.Tensor:
    """Everything from position `first` on: a prompt's continuation, or the response of a chat."""
    return torch.arange(length) >= first


def ul2(length: int, generator: torch.Generator) -> torch.Tensor:
    """One mask of UL2's mixture, each objective a third of the time. Returns a bool tensor (length,)."""
    objective = _choose(generator, ("short", "long", "prefix"))
    if objective == "prefix":
        return prefix(length, generator)
    if objective == "short":
        return span_infilling(length, 0.15, _choose(generator, (3, 8)), generator)
    return span_infilling(length, 0.5, _choose(generator, (3, 8, 48)), generator)
