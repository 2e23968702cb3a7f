"""How sure a number is that was measured with several seeds, and what may be said of a difference."""

import math
import statistics

from scipy.stats import t as student


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95 % interval over seeds; infinite from a single one."""
    mean, n = statistics.mean(values), len(values)
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return mean, half


def verdict(gains: list[float]) -> str:
    """Of a claimed gain, measured once a seed: whether its 95 % interval lies above zero, below it, or on it."""
    mean, half = interval(gains)
    return "holds" if mean > half else "does not hold" if mean < -half else "too small to tell"
