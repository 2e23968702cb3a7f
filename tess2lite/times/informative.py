"""Times where the loss changes: sampling steps are spent where tokens are decided."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..validation import InputError

UNIFORM_RATIO = 0.1  # of the steps: no stretch of time is left out altogether


def informative_times(curve: Mapping[str, list[float]], steps: int, end: float) -> torch.Tensor:
    """Times whose density is proportional to how much the loss changes, apart from an even tenth.

    Above a window nothing can be known yet, below it nothing is left to decide.

    Args:
        curve: `t`, rising times t/T, and `loss`, the denoiser's loss at each.
        steps: How many times.
        end: The latest time, 1 − 1/T.

    Returns:
        (steps,) float64, falling from `end` to 0.
    """
    measured = curve["loss"]
    measured = [measured[0], *measured, measured[-1]]
    losses = torch.tensor(measured, dtype=torch.float64)
    times = torch.tensor([0.0, *curve["t"], end], dtype=torch.float64)
    intervals = times.diff()
    rises = bool((intervals >= 0).all())
    if len(times) < 4 or len(times) != len(losses) or not rises:
        raise InputError("The loss curve needs two or more rising times t and as many losses; measure it again.")
    change = losses.cummax(0).values.diff()  # the loss rises with t; what falls is noise of the measurement
    total = change.sum()
    if not (torch.isfinite(change).all() and total > 0):
        raise InputError("The loss curve does not rise with t; measure it on texts that the model was trained for.")
    informative = (1 - UNIFORM_RATIO) * change / total
    uniform = UNIFORM_RATIO * intervals / times[-1]
    density = informative + uniform
    steps_below = [0.0, *density.cumsum(0).tolist()]  # ratio of the steps that lie below each time
    ratios = torch.linspace(1, 0, steps, dtype=torch.float64)
    return torch.from_numpy(np.interp(ratios, steps_below, times))
