"""How sure a score or a difference is: every interval, verdict and correction of this project.

Scores are resampled by question, since answers to the same prompt are not independent. Where several seeds trained
several models, their spread is added by Student's t. Bounded scores get one imaginary question at either bound, so
that equal scores have an interval of some width (Agresti and Coull 1998).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..validation import InputError

RESAMPLES = 9_999
BATCH = 500  # resamples drawn together: memory is (BATCH, questions)
CONFIDENCE = 0.95
POWER = 0.8  # of the smallest effect that could have been seen

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
UNDECIDED = "too small to tell"


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


class Comparison(NamedTuple):
    """What may be said of a claimed gain.

    Attributes:
        gain: Mean gain and its interval.
        verdict: "holds", "does not hold" or "too small to tell".
        p_value: Two-sided, of the gain against minus the margin.
        smallest_effect: Gain that such an experiment would find in four of five repetitions.
    """

    gain: Interval
    verdict: str
    p_value: float
    smallest_effect: float


def mean_interval(
    scores: Sequence[float],
    questions: Sequence[Hashable] | None = None,
    seeds: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Returns the mean of scores and its 95 % interval; the same scores give the same interval.

    Args:
        scores: One number per answer, N of them.
        questions: The question of each score, which is resampled as a whole. By default every score is a question of
            its own, or, where there are `seeds`, the only one of its seed.
        seeds: The training seed of each score, where models were trained with several. None for seeds that only
            sample: those are answers like others.
        bounds: Smallest and largest possible score. None for numbers without bounds, such as losses.

    Returns:
        The mean and a percentile bootstrap interval by question, widened for few questions (Hesterberg 2015), to which
        the variance between training seeds is added. Infinite where one number says nothing about its spread.

    Raises:
        InputError: If there are no scores, or the lists differ in length.
    """
    means = _resampled_means(scores, questions, seeds, bounds)
    return _interval(float(np.mean(scores)), means)


def compare(
    gains: Sequence[float],
    questions: Sequence[Hashable] | None = None,
    seeds: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    margin: float = 0.0,
) -> Comparison:
    """Judges a claimed gain: differences between two models' scores on the same question with the same seed.

    Args:
        gains: Paired differences, positive where the claim is right.
        questions: As in `mean_interval`.
        seeds: As in `mean_interval`.
        bounds: As in `mean_interval`; (−1, 1) for differences of shares.
        margin: For a claim of "no less": the loss that would not matter. The claim holds when the whole interval lies
            above −margin.

    Returns:
        Gain, verdict, p-value and smallest visible effect.

    Raises:
        InputError: As in `mean_interval`.
    """
    means = _resampled_means(gains, questions, seeds, bounds)
    gain = _interval(float(np.mean(gains)), means)
    if means is None:
        return Comparison(gain, UNDECIDED, 1.0, math.inf)
    verdict = UNDECIDED
    if gain.low > -margin:
        verdict = HOLDS
    if gain.high < -margin:
        verdict = DOES_NOT_HOLD
    below = (1 + np.sum(means <= -margin)) / (1 + len(means))
    above = (1 + np.sum(means >= -margin)) / (1 + len(means))
    p_value = min(1.0, 2 * float(min(below, above)))
    quantile = stats.norm.ppf((1 + CONFIDENCE) / 2)
    smallest_effect = gain.half_width * float(1 + stats.norm.ppf(POWER) / quantile)
    return Comparison(gain, verdict, p_value, smallest_effect)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for testing all of them together (Holm 1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(order)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(order) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def _interval(mean: float, means: np.ndarray | None) -> Interval:
    if means is None:
        return Interval(mean, -math.inf, math.inf)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, min(mean, float(low)), max(mean, float(high)))


def _resampled_means(scores, questions, seeds, bounds) -> np.ndarray | None:
    """Means that other questions and other training seeds could have given, (RESAMPLES,); None if none can be told."""
    values = np.asarray(scores, dtype=float)
    if not len(values):
        raise InputError("There are no scores; give at least one.")
    for name, labels in (("questions", questions), ("seeds", seeds)):
        if labels is not None and len(labels) != len(values):
            raise InputError(f"There are {len(values)} scores and {len(labels)} {name}; give one for each score.")
    if questions is None and seeds is None:
        questions = range(len(values))
    means: np.ndarray | None = np.full(RESAMPLES, values.mean())
    if questions is not None:
        means = _means_by_question(values, _numbered(questions), bounds)
    if seeds is not None and means is not None:
        effect = _seed_effect(values, questions, _numbered(seeds))
        means = None if effect is None else means + effect
    if bounds is not None and means is not None:
        means = means.clip(*bounds)
    return means


def _numbered(labels) -> np.ndarray:
    """Labels as whole numbers from 0."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels])


def _are_equal(means: np.ndarray) -> bool:
    """Whether numbers differ by rounding alone, so that they say nothing about their spread."""
    return bool(np.ptp(means) <= 1e-9 * np.abs(means).max())


def _means_by_question(values: np.ndarray, questions: np.ndarray, bounds) -> np.ndarray | None:
    sums = np.bincount(questions, values)
    counts = np.bincount(questions).astype(float)
    if bounds is not None:
        sums = np.append(sums, np.multiply(bounds, counts.mean()))
        counts = np.append(counts, [counts.mean()] * 2)
    elif _are_equal(sums / counts):
        return None
    result = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=BATCH,
        rng=np.random.default_rng(0),
    )
    means = result.bootstrap_distribution
    n = len(sums)
    tail = (1 + CONFIDENCE) / 2
    wider = math.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1) / stats.norm.ppf(tail)
    return means.mean() + (means - means.mean()) * wider


def _seed_effect(values: np.ndarray, questions, seeds: np.ndarray) -> np.ndarray | None:
    """Deviations of the mean that come from the training seeds alone."""
    number = seeds.max() + 1
    if number < 2:
        return None
    seed_means = np.array([values[seeds == seed].mean() for seed in range(number)])
    variance = seed_means.var(ddof=1)
    if questions is not None:
        variance = max(0.0, variance - _noise_of_seed_means(values, _numbered(questions), seeds))
    elif _are_equal(seed_means):
        return None
    draws = np.random.default_rng(1).standard_t(number - 1, RESAMPLES)
    return draws * math.sqrt(variance / number)


def _noise_of_seed_means(values: np.ndarray, questions: np.ndarray, seeds: np.ndarray) -> float:
    """How much seed means would differ without any effect of the seed: a variance, from what questions leave."""
    counts = np.bincount(questions)
    question_means = np.bincount(questions, values) / counts
    noise = []
    for seed in range(seeds.max() + 1):
        own = seeds == seed
        count = own.sum()
        if count < 2:
            return 0.0
        times = counts[questions[own]]
        apart = values[own] - values[own].mean()
        within = values[own] - question_means[questions[own]]
        # A question that other seeds were asked, too, is its own control.
        squares = np.where(times > 1, within**2 * times / np.maximum(times - 1, 1), apart**2 * count / (count - 1))
        noise.append(squares.mean() / count)
    return float(np.mean(noise))
