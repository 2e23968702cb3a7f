"""Tokens ↔ noisy simplex ↔ embeddings: the mathematics alone, on (R, V) chunks that the caller keeps small.

Everything happens in place where it can. `textbook.py` says the same in the paper's own words; tests hold both equal.
"""

import torch

from .layers.rows import aligned

SIMPLEX_VALUE = 5.0  # k of the paper: a token is +k at its id and −k elsewhere


def noisy_simplex_(noise: torch.Tensor, tokens: torch.Tensor | None, alpha_bar: torch.Tensor) -> torch.Tensor:
    """ε → √(1−ᾱ)·k·ε + 2k√ᾱ·onehot(w), in place.

    Up to a constant per row, which softmax does not see, this is √ᾱ·S^w + √(1−ᾱ)·k·ε: no ±k tensor, no one-hot.

    Args:
        noise: (R, V), standard normal; overwritten.
        tokens: (R,) ids, None for no signal at all.
        alpha_bar: (R, 1) or ().

    Returns:
        `noise`.
    """
    noise_scale = torch.sqrt(1 - alpha_bar) * SIMPLEX_VALUE
    noise.mul_(noise_scale)
    if tokens is not None:
        signal = 2 * SIMPLEX_VALUE * torch.sqrt(alpha_bar)
        signal = signal.to(noise.dtype).expand(len(tokens), 1)
        noise.scatter_add_(1, tokens[:, None], signal)
    return noise


def self_condition_(noisy: torch.Tensor, self_cond: torch.Tensor | float) -> torch.Tensor:
    """softmax(noisy) + self_cond, in place: twice their mean, (R, V); self_cond holds probabilities."""
    torch.softmax(noisy, 1, out=noisy)
    return noisy.add_(self_cond)


def soft_embedding(probabilities: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """p·E, (R, V)·(V, H) → (R, H), in E's precision."""
    return aligned(probabilities, embedding.dtype) @ embedding
