"""Times that a user lists."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..validation import InputError, check_int


def listed_times(steps: int | None, spacing: Iterable[float]) -> torch.Tensor:
    """Times that a user lists, checked.

    Args:
        steps: How many; None for as many as are listed.
        spacing: Falling times t/T in [0, 1).

    Returns:
        (steps,) float64.
    """
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
