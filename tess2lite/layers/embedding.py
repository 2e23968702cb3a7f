"""E as a factor: p·E of probabilities, with a LoRA beside E that is never added to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .rows import aligned


class LowRank(NamedTuple):
    """ΔE = scale · Aᵀ·Bᵀ.

    Attributes:
        a: (r, V).
        b: (H, r).
        scale: LoRA's.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


class SoftEmbedding:
    """The embedding layer of probabilities: p·E, of shape (R, H), without gradient for E.

    With a LoRA on E it is p·E + (p·Aᵀ)·Bᵀ·scale: E + ΔE, of (V, H), is never made. Under autocast the factors are cast
    once, not for each product.

    Args:
        layer: The model's embedding layer, whatever PEFT has put around it.
        vocabulary: V.

    Attributes:
        dtype: Of the layer's output.
        uniform: The mean row of E, (H,): p·E of the uniform distribution.
    """

    @torch.no_grad()
    def __init__(self, layer: nn.Module, vocabulary: int):
        parts = _factors(layer)
        if parts is None:  # a family's scale
            device = next(layer.parameters()).device
            parts = (layer(torch.arange(vocabulary, device=device)), [])
        matrix, low_rank = parts
        self.dtype = matrix.dtype
        self.uniform = matrix.mean(0)
        for a, b, scale in low_rank:
            self.uniform += (b @ a.mean(1)).mul_(scale)
        kind = matrix.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else matrix.dtype
        self.matrix = matrix.to(dtype)  # (V, H)
        self.low_rank = [LowRank(a.to(dtype), b.to(dtype), scale) for a, b, scale in low_rank]

    @torch.no_grad()
    def __call__(self, probabilities: torch.Tensor) -> torch.Tensor:
        """p·E of probabilities (R, V)."""
        p = aligned(probabilities, self.matrix.dtype)
        soft = p @ self.matrix
        for a, b, scale in self.low_rank:
            soft += (p @ a.T @ b.T).mul_(scale)
        return soft


def _factors(layer: nn.Module) -> tuple[torch.Tensor, list[LowRank]] | None:
    """(E, its LoRAs) of a plain embedding, alone or within PEFT's plain LoRA; None of any other."""
    if hasattr(layer, "modules_to_save"):  # a copy that PEFT trains
        copies = layer.modules_to_save
        layer = layer.original_module if layer.disable_adapters else copies[layer.active_adapters[0]]
    if type(layer) is nn.Embedding:
        return layer.weight, []
    base = getattr(layer, "base_layer", None)
    if type(base) is not nn.Embedding or not hasattr(layer, "lora_embedding_A"):
        return None
    if layer.merged or layer.disable_adapters:
        return base.weight, []
    names = [name for name in layer.active_adapters if name in layer.lora_embedding_A]
    if any(name in layer.lora_variant for name in names):  # such as DoRA
        return None
    parts = [LowRank(layer.lora_embedding_A[n], layer.lora_embedding_B[n], layer.scaling[n]) for n in names]
    return base.weight, parts


def embedding_matrix(layer: nn.Module, vocabulary: int) -> torch.Tensor:
    """E, (V, H), as the embedding layer computes it: a family's scale and what PEFT put around it are included."""
    if type(layer) is nn.Embedding:
        return layer.weight
    device = next(layer.parameters()).device
    return layer(torch.arange(vocabulary, device=device))
