"""How sure a number is: intervals over seeds and over prompts, and what may be said of a difference."""

from __future__ import annotations

import math
import statistics

import numpy as np
from scipy.stats import t as student

RESAMPLES = 2_000


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of Student's interval over seeds; infinite from a single one."""
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return mean, math.inf
    return mean, float(student.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def bootstrap(values: list[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of scores of prompts, by resampling them, the same way every time."""
    scores = np.asarray(values, dtype=float)
    if not len(scores):
        raise ValueError("There are no scores; give at least one.")
    drawn = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))
    low, high = np.quantile(scores[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(scores.mean()), float(low), float(high)


def verdict(gains: list[float]) -> str:
    """Of a claimed gain, measured once a seed: whether its 95 % interval lies above zero, below it, or on it."""
    mean, half = interval(gains)
    return "holds" if mean > half else "does not hold" if mean < -half else "too small to tell"
