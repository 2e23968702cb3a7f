"""ᾱ(t), how much of the token is left in the noisy simplex at time t, and which times a run of n steps visits.

Models are trained and sampled with the paper's improved-cosine schedule; the others are here to compare it with.
Times are t/T, from 0 (clean) to 1 (pure noise). A table of n entries holds ᾱ(i/n) for i = 0 … n−1.
"""

import math
from collections.abc import Iterable, Mapping

import torch

from .times.informative import informative_times
from .times.listed import listed_times
from .validation import InputError, check_int

TRAINING_TIMESTEPS = 5000  # T of the paper


def improved_cosine(u: torch.Tensor) -> torch.Tensor:
    """cos²((u + 1e-4)/(1 + 1e-4)·π/2), u in [0, 1]."""
    angle = (u + 1e-4) / (1 + 1e-4) * math.pi / 2
    return torch.cos(angle) ** 2


def linear(u: torch.Tensor) -> torch.Tensor:
    """1 − u: ᾱ falls evenly."""
    return 1 - u


def square_root(u: torch.Tensor) -> torch.Tensor:
    """1 − √(u + 1e-4): loses signal early, as in Diffusion-LM."""
    noise = torch.sqrt(u + 1e-4)
    return (1 - noise).clamp(min=0)


SCHEDULES = {
    "improved_cosine": improved_cosine,
    "linear": linear,
    "square_root": square_root,
}


def alpha_bar_at(times: torch.Tensor, schedule: str = "improved_cosine") -> torch.Tensor:
    """ᾱ at any times t/T in [0, 1], scaled so that ᾱ(0) = 1; in float64, shaped like `times`."""
    if schedule not in SCHEDULES:
        raise InputError(f"schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    curve = SCHEDULES[schedule]
    start = torch.zeros(1, dtype=torch.float64, device=times.device)
    return curve(times.double()) / curve(start)


def alpha_bar(timesteps: int = TRAINING_TIMESTEPS, schedule: str = "improved_cosine") -> torch.Tensor:
    """ᾱ for t = 0 … timesteps−1: float64, (timesteps,), falling from 1 towards 0."""
    check_int("timesteps", timesteps, 1)
    times = torch.arange(timesteps, dtype=torch.float64) / timesteps
    return alpha_bar_at(times, schedule)


def sampling_times(
    steps: int | None = None,
    spacing: str | Iterable[float] = "uniform",
    loss_curve: Mapping[str, list[float]] | None = None,
) -> torch.Tensor:
    """The times that a run visits, from noise to text.

    Args:
        steps: How many; None for 100, or for as many as `spacing` lists.
        spacing: "uniform" as in the paper; "informative", see `informative_times`; or the falling times t/T.
        loss_curve: Of the model, for "informative" (`loss.measure_loss_curve`).

    Returns:
        (steps,) float64, falling, in [0, 1).
    """
    if not isinstance(spacing, str):
        return listed_times(steps, spacing)
    steps = 100 if steps is None else check_int("steps", steps, 1)
    if spacing == "uniform":
        rising = torch.arange(steps, dtype=torch.float64) / steps
        return rising.flip(0)
    if spacing != "informative":
        raise InputError(f"timestep_spacing is {spacing!r}; choose uniform or informative, or list times t/T.")
    if loss_curve is None:
        raise InputError(
            "timestep_spacing is 'informative', but this model has no loss curve; choose 'uniform', or set "
            "lm.config.loss_curve = training.timesteps.measure_loss_curve(lm, input_ids, span_mask)."
        )
    return informative_times(loss_curve, steps, end=1 - 1 / TRAINING_TIMESTEPS)
