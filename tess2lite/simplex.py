"""Tokens ↔ noisy simplex ↔ embeddings: the mathematics alone, on (R, V) chunks that the caller keeps small.

Everything happens in place where it can. `textbook.py` says the same in the paper's own words; tests hold both equal.
"""

from __future__ import annotations

import torch

from .layers.rows import aligned

SIMPLEX_VALUE = 5.0  # k of the paper: a token is +k at its id and −k elsewhere


def noisy_simplex_(noise: torch.Tensor, tokens: torch.Tensor | None, alpha_bar: torch.Tensor) -> torch.Tensor:
    """ε → √(1−ᾱ)·k·ε + 2k√ᾱ·onehot(w), in place.

    The same as √ᾱ·S^w + √(1−ᾱ)·k·ε up to a constant of each row, which softmax does not see (identity 1
    of the design: no ±k tensor, no one-hot).

    noise: (R, V), standard normal. tokens: (R,) ids, None for no signal at all. alpha_bar: (R, 1) or ().
    """
    noise.mul_(torch.sqrt(1 - alpha_bar) * SIMPLEX_VALUE)
    if tokens is not None:
        signal = (2 * SIMPLEX_VALUE * torch.sqrt(alpha_bar)).to(noise.dtype)
        noise.scatter_add_(1, tokens[:, None], signal.expand(len(tokens), 1))
    return noise


def self_condition(noisy: torch.Tensor, belief: torch.Tensor | float) -> torch.Tensor:
    """softmax(noisy) + belief, in place, twice their mean: (R, V), belief already probabilities."""
    return torch.softmax(noisy, 1, out=noisy).add_(belief)


def soft_embedding(probabilities: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """p·E, (R, V)·(V, H) → (R, H), in E's precision."""
    return aligned(probabilities, embedding.dtype) @ embedding
