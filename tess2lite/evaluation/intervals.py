"""How sure a score is: an interval over prompts."""

from __future__ import annotations

import numpy as np


def bootstrap(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high) of scores of prompts, at 95 %, by resampling them 2,000 times, the same way every time."""
    if not len(values):
        raise ValueError("There are no scores; give at least one.")
    scores = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(scores), size=(2_000, len(scores)))
    low, high = np.quantile(scores[drawn].mean(1), [0.025, 0.975])
    return float(scores.mean()), float(low), float(high)
