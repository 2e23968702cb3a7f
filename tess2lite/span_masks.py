"""Which positions are denoised: span masks, True where the model must write.

UL2's mixture: a third span infilling at 15 %, a third span infilling at 50 %, a third prefix completion.
The first position is never masked: its token is what position 1 is read from.
"""

from itertools import pairwise
from typing import Any

import torch

from .validation import InputError


def _choose(generator: torch.Generator, options: tuple) -> Any:
    index = torch.randint(len(options), (), generator=generator)
    return options[int(index)]


def _lengths(total: int, parts: int, generator: torch.Generator) -> list[int]:
    """`total` cut into `parts` lengths of at least 1, every cut equally likely."""
    places = torch.randperm(total - 1, generator=generator) + 1
    cuts = sorted(places[: parts - 1].tolist())
    return [end - start for start, end in pairwise([0, *cuts, total])]


def _needs(length: int, least: int) -> None:
    if length < least:
        raise InputError(f"length is {length}; a mask needs at least {least} positions.")


def span_infilling(length: int, ratio: float, mean_span: int, generator: torch.Generator) -> torch.Tensor:
    """Spans of about `mean_span` that cover `ratio` of a text, the way T5 draws them.

    The counts follow from the arguments, only the places are random: int(length·ratio) positions are
    masked, in (that // mean_span) spans with at least one token of context before each.

    Returns a bool tensor (length,).
    """
    _needs(length, 2)
    if not 0 < ratio < 1 or mean_span < 1:
        raise InputError(f"ratio is {ratio} and mean_span {mean_span}; give 0 < ratio < 1 and mean_span ≥ 1.")
    masked = max(1, int(length * ratio))
    masked = min(masked, length - 1)
    spans = max(1, masked // mean_span)
    spans = min(spans, length - masked)
    context_lengths = _lengths(length - masked, spans, generator)
    span_lengths = _lengths(masked, spans, generator)
    mask = torch.zeros(length, dtype=torch.bool)
    end = 0
    for context, span in zip(context_lengths, span_lengths, strict=True):
        start = end + context
        end = start + span
        mask[start:end] = True
    return mask


def prefix(length: int, generator: torch.Generator) -> torch.Tensor:
    """Everything after a prefix, whose length after BOS is uniform from 1 to (almost) half of the text.

    Returns a bool tensor (length,); its first True is at 2 … ⌈length/2⌉ − 1.
    """
    _needs(length, 3)
    latest = max(3, (length + 1) // 2)
    first = torch.randint(2, latest, (), generator=generator)
    return after(length, int(first))


def after(length: int, first: int) -> torch.Tensor:
    """Everything from position `first` on: a prompt's continuation, or the response of a chat."""
    return torch.arange(length) >= first


def ul2(length: int, generator: torch.Generator) -> torch.Tensor:
    """One mask of UL2's mixture, each objective a third of the time. Returns a bool tensor (length,)."""
    objective = _choose(generator, ("short", "long", "prefix"))
    if objective == "prefix":
        return prefix(length, generator)
    ratio, mean_spans = (0.15, (3, 8)) if objective == "short" else (0.5, (3, 8, 48))
    mean_span = _choose(generator, mean_spans)
    return span_infilling(length, ratio, mean_span, generator)
