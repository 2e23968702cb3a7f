"""What users give, checked: one clear sentence for each mistake, before anything is computed."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable

import torch


def whole(name: str, value, least: int, most: float = math.inf) -> int:
    """A whole number from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        accepted = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; give a whole number {accepted}.")
    return number


def check_numbers(top_p, temperature) -> None:
    """Settings of the projection to tokens."""
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p is {top_p!r}; give a number above 0 and at most 1, or None for argmax.")
    if not (_is_number(temperature) and temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature!r}; give a number above 0 (top_p=None for argmax).")
    if top_p is None and temperature != 1:
        raise ValueError(
            f"temperature is {temperature!r}, but top_p=None takes the likeliest token at any; leave it out."
        )


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def one_each(seed, sequences: int) -> list[int]:
    """A seed for each sequence, from one for all or one each."""
    try:
        seeds = [operator.index(seed)] * sequences
    except TypeError:
        seeds = list(seed) if isinstance(seed, Iterable) and not isinstance(seed, str) else []
    if len(seeds) != sequences or not all(isinstance(s, numbers.Integral) for s in seeds):
        raise ValueError(f"seed is {seed!r}; give one whole number, or one for each of the {sequences} sequences.")
    return [int(s) for s in seeds]


def callables(hooks) -> list:
    """Hooks as a list."""
    hooks = list(hooks) if isinstance(hooks, Iterable) else [hooks]
    if not all(callable(hook) for hook in hooks):
        raise TypeError("hooks holds something that cannot be called; give functions that take a step.")
    return hooks


def check_ids(ids: torch.Tensor, vocabulary: int) -> None:
    """Token ids that the model has."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"Token ids are {ids.dtype}; give whole numbers.")
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(f"There are token ids outside this model's vocabulary of {vocabulary}; check the tokenizer.")


def check_simplex(lm) -> None:
    """This model's states are noisy simplexes, not half-hidden texts."""
    if getattr(lm.config, "diffusion", "simplex") != "simplex":
        raise ValueError("This model is one of masked diffusion; use tess2lite.masked.denoise, or generate.")


def check_batch(lm, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The batch on the model's device, or one sentence on what is wrong with it."""
    missing = [name for name in ("input_ids", "span_mask") if name not in batch]
    if missing:
        raise ValueError(f"The batch has no '{missing[0]}'; give input_ids and span_mask, both (B, L).")
    for name in ("input_ids", "span_mask"):
        if not torch.is_tensor(batch[name]) or batch[name].dim() != 2 or not batch[name].numel():
            raise ValueError(f"{name} is no (B, L) tensor with something in it; give one row a text.")
    ids = batch["input_ids"].to(lm.device)
    mask = batch["span_mask"].to(lm.device)
    attention = batch.get("attention_mask")
    attention = torch.ones_like(ids) if attention is None else attention.to(lm.device).long()
    for name, tensor in (("span_mask", mask), ("attention_mask", attention)):
        if tensor.shape != ids.shape or ids.dim() != 2:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and input_ids {tuple(ids.shape)}; both are (B, L)."
            )
    if mask.dtype != torch.bool:
        raise TypeError(f"span_mask is {mask.dtype}; give a bool tensor, True where the model writes.")
    context = lm.config.max_position_embeddings
    if attention.sum(1).max() > context:
        raise ValueError(
            f"The text is {int(attention.sum(1).max())} tokens long; this model's context is {context}; shorten it."
        )
    if not mask.any(1).all():
        raise ValueError("span_mask has a row with nothing to denoise; every row needs a True.")
    if (mask & (attention == 0)).any():
        raise ValueError("span_mask marks filler (attention_mask 0); only real tokens can be denoised.")
    if (mask[:, 1:] & (attention[:, :-1] == 0) & (attention.cumsum(1)[:, 1:] > 1)).any():
        raise ValueError(
            "attention_mask has filler inside a text, just before a masked token; filler stands at its ends."
        )
    if (mask & (attention.cumsum(1) == 1)).any():
        raise ValueError("span_mask marks a row's first token, which nothing stands before; begin rows with BOS.")
    check_ids(ids.masked_fill(mask | (attention == 0), 0), lm.config.vocab_size)
    ids = ids.long().masked_fill(mask, 0)  # never read; ids of another vocabulary may stand there
    return ids, mask, None if attention.all() else attention
