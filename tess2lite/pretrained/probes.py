"""Two probes at load: the denoiser starts as the AR model it was, and every position sees every other."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import torch
from torch import nn

from ..model import FAMILIES, SimplexDenoiser, check_finite, original_class, probe_ids
from ..validation import InputError


@contextmanager
def causal(lm: SimplexDenoiser):
    """Within it the denoiser reads from left to right, as the decoder it was."""
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
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return getattr(module, "original_module", module)


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
