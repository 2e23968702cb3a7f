"""ᾱ(t), how much of the token is left in the noisy simplex at time t, and which times a run of n steps visits.

Models are trained and sampled with the paper's improved-cosine schedule; the others are here to compare it with.
Times are t/T, from 0 (clean) to 1 (pure noise). A table of n entries holds ᾱ(i/n) for i = 0 … n−1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from .validation import InputError, check_int

TRAINING_TIMESTEPS = 5000  # T of the paper
UNIFORM_SHARE = 0.1  # of informative timesteps: no stretch of time is left out altogether


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
        spacing: "uniform" as in the paper; "informative", see `informative_timesteps`; or the falling times t/T.
        loss_curve: Of the model, for "informative" (`loss.measure_loss_curve`).

    Returns:
        (steps,) float64, falling, in [0, 1).
    """
    if not isinstance(spacing, str):
        return _listed_times(steps, spacing)
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
    return informative_timesteps(loss_curve, steps)


def _listed_times(steps: int | None, spacing: Iterable[float]) -> torch.Tensor:
    try:
        times = [float(time) for time in spacing]
    except (TypeError, ValueError):
        raise InputError(f"timestep_spacing is {spacing!r}; list falling times t/T, such as [0.9, 0.5, 0.1].") from None
    earlier = [1.0, *times[:-1]]
    falls = all(0 <= time < before for time, before in zip(times, earlier, strict=True))
    if not times or not falls:
        raise InputError("timestep_spacing does not fall from step to step within [0, 1); list times like [0.9, 0.5].")
    if steps is not None and check_int("steps", steps, 1) != len(times):
        raise InputError(f"steps is {steps}, but timestep_spacing lists {len(times)} times; leave steps out.")
    return torch.tensor(times, dtype=torch.float64)


def informative_timesteps(curve: Mapping[str, list[float]], steps: int) -> torch.Tensor:
    """Times whose density is proportional to how much the loss changes, apart from an even tenth.

    Above the window nothing can be known yet, below it nothing is left to decide.

    Args:
        curve: `t`, rising times t/T, and `loss`, the denoiser's loss at each.
        steps: How many times.

    Returns:
        (steps,) float64, falling from 1 − 1/T to 0.
    """
    times = [0.0, *curve["t"], 1 - 1 / TRAINING_TIMESTEPS]
    losses = [curve["loss"][0], *curve["loss"], curve["loss"][-1]]
    times = torch.tensor(times, dtype=torch.float64)
    losses = torch.tensor(losses, dtype=torch.float64)
    if len(times) < 4 or len(times) != len(losses) or not (times.diff() >= 0).all():
        raise InputError("The loss curve needs two or more rising times t and as many losses; measure it again.")
    change = losses.cummax(0).values.diff()  # the loss rises with t; what falls is noise of the measurement
    total = change.sum()
    if not (torch.isfinite(change).all() and total > 0):
        raise InputError("The loss curve does not rise with t; measure it on texts that the model was trained for.")
    informative = (1 - UNIFORM_SHARE) * change / total
    uniform = UNIFORM_SHARE * times.diff() / times[-1]
    density = informative + uniform
    steps_below = [0.0, *density.cumsum(0).tolist()]  # ratio of the steps that lie below each time
    ratios = torch.linspace(1, 0, steps, dtype=torch.float64)
    return torch.from_numpy(np.interp(ratios, steps_below, times))
