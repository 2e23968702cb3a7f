"""Two probes at load: the denoiser starts as the AR model it was, and every position sees every other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..layers.decoders import FAMILIES, original_class
from ..model import SimplexDenoiser
from ..validation import InputError

PROBE = 8  # tokens


@contextmanager
def causal(lm: SimplexDenoiser) -> Iterator[None]:
    """Within it the denoiser is causal, as the decoder it was."""
    lm.config.is_causal = True
    try:
        yield
    finally:
        lm.config.is_causal = False


def share_modules(model: nn.Module, source: nn.Module) -> None:
    """Give a model, made on the meta device, the very modules of another that hold parameters or buffers."""
    for place, module in [*model.named_modules()]:
        if module._parameters or module._buffers:
            parent, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(parent), leaf, without_adapters(source.get_submodule(place)))


def without_adapters(module: nn.Module) -> nn.Module:
    """The base's own module inside PEFT's wrappers."""
    inner: Any = module
    while hasattr(inner, "base_layer"):
        inner = inner.base_layer
    return getattr(inner, "original_module", inner)


@torch.no_grad()
def check_parity(lm: SimplexDenoiser) -> None:
    """Compare the denoiser, its causal mask switched on, with the original class on the same weights.

    Raises:
        InputError: Logits differ: the family computes something that this package does not know.
    """
    config = copy.deepcopy(lm.config)
    del config.is_causal
    with torch.device("meta"):
        original = original_class(config)(config).eval()
    share_modules(original, lm)
    ids = probe_ids(lm)
    expected = original(input_ids=ids, use_cache=False).logits[0].double()  # (PROBE, V)
    with causal(lm):
        hidden = lm.hidden_states(lm.get_input_embeddings()(ids), None)
    logits = lm.head(hidden[0]).double()
    check_finite(logits)
    tolerance = 0.02 if lm.compute_dtype.itemsize < 4 else 1e-4
    error = float((logits - expected).norm() / expected.norm().clamp(min=1e-30))
    if not error <= tolerance:
        raise InputError(
            f"A {config.model_type} has a step of its own between embeddings and logits: as a denoiser its logits are "
            f"off by {error:.0%}, so that it would start from another model. The decoders accepted are {FAMILIES}."
        )


def probe_ids(lm: SimplexDenoiser) -> torch.Tensor:
    """Different token ids from all over the vocabulary, (1, PROBE)."""
    size = len(lm.get_input_embeddings().weight)
    return torch.linspace(0, size - 1, PROBE, device=lm.device).long()[None]


@torch.no_grad()
def check_bidirectional(lm: SimplexDenoiser) -> None:
    """Change the last token and see that every earlier position notices, with and without filler.

    Raises:
        RuntimeError: The attention is causal after all.
    """
    ids = probe_ids(lm)
    other = ids.clone()
    other[0, -1] = ids[0, 1]
    filler = torch.ones_like(ids)
    filler[0, 0] = 0
    embed = lm.get_input_embeddings()
    for attention_mask in (None, filler):
        before = lm.hidden_states(embed(ids), attention_mask)[0, 1:-1]
        after = lm.hidden_states(embed(other), attention_mask)[0, 1:-1]
        check_finite(before)
        check_finite(after)
        if not (before != after).any(-1).all():
            raise RuntimeError(
                "The model's attention is still causal: a later token does not reach earlier positions. A "
                f"{lm.config.model_type} with attn_implementation {lm.config._attn_implementation!r} cannot denoise; "
                f"use 'sdpa' or 'eager', or one of the decoders {FAMILIES}."
            )


def check_finite(numbers: torch.Tensor) -> None:
    if not torch.isfinite(numbers).all():
        raise InputError("The model's weights give no finite numbers, but NaN or infinity; the checkpoint is broken.")
