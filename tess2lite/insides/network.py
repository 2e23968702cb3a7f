"""Inside the network, with forward hooks alone: what each layer holds, where heads look, what is lost without them.

Inputs are (B, L, H), of a denoiser's step or of its autoregressive parent (`inputs.py`). Layers and heads are counted
from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .. import validation
from ..validation import InputError
from .inputs import PASS, predict, to_logits


def layers_of(lm: PreTrainedModel) -> nn.ModuleList:
    """The backbone's layers. Raises InputError for a decoder that is not built like Llama and Mistral."""
    layers = getattr(lm.base_model, "layers", None)
    if layers is None or not hasattr(layers[0], "self_attn") or not hasattr(lm.base_model, "norm"):
        raise InputError(f"The model is a {lm.config.model_type}; give one with the modules of a Llama or Mistral.")
    return layers


@torch.no_grad()
def residuals(lm: PreTrainedModel, inputs: torch.Tensor) -> torch.Tensor:
    """The residual stream: what goes into the first layer and what comes out of each one.

    Returns:
        (layers + 1, B, L, H).
    """
    states = [inputs]

    def keep(_, args, output):
        states.append(_hidden(output))

    with _all_removed(layer.register_forward_hook(keep) for layer in layers_of(lm)):
        lm.base_model(inputs_embeds=inputs, use_cache=False)
    return torch.stack(states)


@torch.no_grad()
def logit_lens(lm: PreTrainedModel, inputs: torch.Tensor, position: int) -> torch.Tensor:
    """What each layer would say of a position if it were the last: its residual through the final norm and the head.

    Returns:
        (layers + 1, B, V) logits; the last are the model's own.
    """
    position = validation.check_int("position", position, 1, inputs.shape[1] - 1)
    return to_logits(lm, lm.base_model.norm(residuals(lm, inputs)[:, :, position - 1]))


@torch.no_grad()
def attention(lm: PreTrainedModel, inputs: torch.Tensor) -> torch.Tensor:
    """Where each head looks: attention weights, in a pass with transformers' eager attention, which keeps them.

    Returns:
        (layers, B, heads, L, L), the row of a querying position summing to 1.
    """
    usual = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    try:
        output = lm.base_model(inputs_embeds=inputs, use_cache=False, output_attentions=True)
    finally:
        lm.set_attn_implementation(usual)
    return torch.stack(output.attentions)


@contextmanager
def without_heads(lm: PreTrainedModel, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    """While it is open, these heads write nothing: their slice of what `o_proj` reads is zero.

    Args:
        lm: a denoiser or an autoregressive model.
        heads: (layer, head) pairs.
    """
    layers: list[Any] = list(layers_of(lm))
    width = layers[0].self_attn.head_dim
    count = lm.config.num_attention_heads
    handles = []
    for layer, head in heads:
        validation.check_int("layer", layer, 0, len(layers) - 1)
        validation.check_int("head", head, 0, count - 1)

        def silence(_, args, head=head):
            mixed = args[0].clone()
            mixed[..., head * width : (head + 1) * width] = 0
            return (mixed, *args[1:])

        handles.append(layers[layer].self_attn.o_proj.register_forward_pre_hook(silence))
    with _all_removed(handles):
        yield


@contextmanager
def patched(lm: PreTrainedModel, patches: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """While it is open, residuals after a layer are replaced.

    Args:
        lm: a denoiser or an autoregressive model.
        patches: layer → (mask, values), mask (B, L) bool, True where to replace, and values (B, L, H); both broadcast.
    """
    handles = []
    for layer, (mask, values) in patches.items():
        validation.check_int("layer", layer, 0, len(layers_of(lm)) - 1)

        def replace(_, args, output, mask=mask, values=values):
            hidden = torch.where(mask[..., None], values, _hidden(output))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles.append(layers_of(lm)[layer].register_forward_hook(replace))
    with _all_removed(handles):
        yield


@torch.no_grad()
def patch_each(lm: PreTrainedModel, source: torch.Tensor, target: torch.Tensor, position: int) -> torch.Tensor:
    """Activation patching: one residual at a time of run A, put into run B at the same step.

    Args:
        lm: a denoiser or an autoregressive model.
        source: (L, H), what run A reads.
        target: (L, H), what run B reads.
        position: whose prediction is asked for.

    Returns:
        (layers, L, V) logits of run B, the residual after layer i at position j being run A's.
    """
    if source.shape != target.shape:
        raise InputError(f"source is {tuple(source.shape)}, target {tuple(target.shape)}; give runs of one length.")
    values = residuals(lm, source[None])[1:, 0]  # (layers, L, H)
    length = len(target)
    size = max(1, PASS // target.numel())
    logits = []
    for layer, value in enumerate(values):
        rows = []
        for mask in torch.eye(length, dtype=torch.bool, device=target.device).split(size):
            with patched(lm, {layer: (mask, value)}):
                rows.append(predict(lm, target.expand(len(mask), -1, -1), position))
        logits.append(torch.cat(rows))
    return torch.stack(logits)


def _hidden(output) -> torch.Tensor:
    """A layer's output: transformers versions differ in whether it comes alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _all_removed(handles: Iterable) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
