"""ᾱ(t): how much of the token is left in the noisy simplex at time t.

The paper's improved-cosine schedule is what models are trained and sampled with; the others are here to
be compared with it. A schedule over n timesteps is ᾱ(i/n)/ᾱ(0) for i = 0 … n−1: index 0 is (almost)
clean, index n−1 almost pure noise. Sampling in n steps walks such a table of n entries from its end.
"""

from __future__ import annotations

import math

import torch

TRAINING_TIMESTEPS = 5000  # T of the paper


def improved_cosine(u: torch.Tensor) -> torch.Tensor:
    """cos²((u + 1e-4)/(1 + 1e-4)·π/2), u in [0, 1]."""
    return torch.cos((u + 1e-4) / (1 + 1e-4) * math.pi / 2) ** 2


def linear(u: torch.Tensor) -> torch.Tensor:
    """1 − u: ᾱ falls evenly."""
    return 1 - u


def square_root(u: torch.Tensor) -> torch.Tensor:
    """1 − √(u + 1e-4): loses signal early, as in Diffusion-LM."""
    return (1 - torch.sqrt(u + 1e-4)).clamp(min=0)


SCHEDULES = {"improved_cosine": improved_cosine, "linear": linear, "square_root": square_root}


def alpha_bar(timesteps: int = TRAINING_TIMESTEPS, schedule: str = "improved_cosine") -> torch.Tensor:
    """ᾱ for t = 0 … timesteps−1.

    Returns a float64 tensor of shape (timesteps,), falling from 1 towards 0.
    """
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise ValueError(f"timesteps is {timesteps!r}; give a whole number of 1 or more.")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    curve = SCHEDULES[schedule](torch.arange(timesteps, dtype=torch.float64) / timesteps)
    return curve / curve[0]
