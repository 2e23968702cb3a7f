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

    With a LoRA on E it is p·E + (p·Aᵀ)·Bᵀ·scale: E + ΔE, of (V, H), is never made.

    Args:
        layer: The model's embedding layer, whatever PEFT has put around it.
        vocabulary: V.
    """

    def __init__(self, layer: nn.Module, vocabulary: int):
        parts = _factors(layer)
        if parts is None:  # a family's scale, or a copy that PEFT trains
            device = next(layer.parameters()).device
            parts = (layer(torch.arange(vocabulary, device=device)), [])
        self.matrix = parts[0].detach()  # (V, H)
        self.low_rank = [LowRank(a.detach(), b.detach(), scale) for a, b, scale in parts[1]]

    def __call__(self, probabilities: torch.Tensor) -> torch.Tensor:
        """p·E of probabilities (R, V), in E's precision."""
        soft = aligned(probabilities, self.matrix.dtype) @ self.matrix
        for a, b, scale in self.low_rank:
            change = aligned(probabilities, a.dtype) @ a.T
            soft += (change @ b.T).mul_(scale)
        return soft

    def mean(self) -> torch.Tensor:
        """The mean row of E, (H,): p·E of the uniform distribution."""
        mean = self.matrix.mean(0)
        for a, b, scale in self.low_rank:
            mean += (b @ a.mean(1)).mul_(scale)
        return mean


def _factors(layer: nn.Module) -> tuple[torch.Tensor, list[LowRank]] | None:
    """(E, its LoRAs) of a plain embedding, alone or within PEFT's plain LoRA; None of any other."""
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
