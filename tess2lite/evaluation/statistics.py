"""How sure a number is: intervals over seeds and over prompts, and what may be said of a difference."""

from __future__ import annotations

import math
import statistics

import numpy as np
from scipy.stats import t as student


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95 % interval over seeds; infinite from a single one."""
    mean, n = statistics.mean(values), len(values)
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return mean, half


def bootstrap(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high) of scores of prompts, at 95 %, by resampling them 2,000 times, the same way every time."""
    if not len(values):
        raise ValueError("There are no scores; give at least one.")
    scores = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(scores), size=(2_000, len(scores)))
    low, high = np.quantile(scores[drawn].mean(1), [0.025, 0.975])
    return float(scores.mean()), float(low), float(high)


def verdict(gains: list[float]) -> str:
    """Of a claimed gain, measured once a seed: whether its 95 % interval lies above zero, below it, or on it."""
    mean, half = interval(gains)
    return "holds" if mean > half else "does not hold" if mean < -half else "too small to tell"
