"""Rows as long as the vocabulary, laid out for tensor cores: each begins at a multiple of 64 elements.

With [PAD] Mistral's V is 32,001, which is odd, and a product with rows of odd length runs without tensor cores at their
full speed. Only the room between rows is padded: shapes, weights and checkpoints have V.
"""

from __future__ import annotations

import torch
from torch import nn

# Elements; a CPU does not care.
ALIGNMENT = {"cpu": 1}
GPU_ALIGNMENT = 64


def empty_rows(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised (rows, width) whose rows begin at aligned places."""
    unit = ALIGNMENT.get(device.type, GPU_ALIGNMENT)
    padded = -(-width // unit) * unit
    return torch.empty(rows, padded, dtype=dtype, device=device)[:, :width]


def aligned(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values (R, V) in a precision, with aligned rows where that precision is a half one."""
    if dtype.itemsize > 2 or values.dim() != 2:
        return values.to(dtype)
    rows = empty_rows(*values.shape, dtype, values.device)
    return rows.copy_(values)


class _Product(torch.autograd.Function):
    """hidden · Wᵀ with aligned rows, and an aligned gradient."""

    @staticmethod
    def forward(context, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(hidden, weight)
        out = empty_rows(len(hidden), len(weight), weight.dtype, weight.device)
        return torch.mm(hidden, weight.T, out=out)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        hidden, weight = context.saved_tensors
        gradient = aligned(gradient, weight.dtype)
        of_hidden = gradient @ weight if context.needs_input_grad[0] else None
        of_weight = gradient.T @ hidden if context.needs_input_grad[1] else None
        return of_hidden, of_weight


def product(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """hidden · Wᵀ, (R, H) and (V, H) → (R, V), with aligned rows in half precision."""
    is_half = hidden.dtype.itemsize == 2
    if is_half and len(weight) % ALIGNMENT.get(hidden.device.type, GPU_ALIGNMENT):
        return _Product.apply(hidden, weight)
    return hidden @ weight.T


class OutputHead(nn.Linear):
    """A linear layer to the vocabulary: `nn.Linear` with aligned rows in half precision."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, (R, H) → (R, V)."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        if dtype.itemsize > 2 or hidden.dim() != 2 or self.bias is not None:
            return super().forward(hidden)
        with torch.autocast(kind, enabled=False):
            return product(hidden.to(dtype), self.weight.to(dtype))


def align_head(model: nn.Module) -> None:
    """Makes a model's output head, if it is a plain linear layer, one with aligned rows, in place."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = OutputHead
