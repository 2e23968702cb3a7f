"""Intervals hold the truth as often as they say, verdicts follow them, and Holm's correction is his."""

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from tess2lite.evaluation import intervals
from tess2lite.evaluation.intervals import compare, holm, mean_interval
from tess2lite.validation import InputError

REPETITIONS = 150


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 799)


def coverage(draw, truth=0.0):
    """Share of intervals that hold the truth. draw: (generator) → arguments of `mean_interval`."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(REPETITIONS):
        found = mean_interval(**draw(generator))
        held += found.low <= truth <= found.high
    return held / REPETITIONS


@pytest.mark.parametrize("share", [0.4, 0.97])
def test_intervals_of_shares_hold_the_truth(few_resamples, share):
    def draw(generator):
        return {"scores": generator.binomial(1, share, 60), "bounds": (0, 1)}

    assert coverage(draw, share) >= 0.91


def test_answers_to_one_question_are_not_independent(few_resamples):
    """Ten questions, each asked seven times: 70 independent answers would have an interval of a third the width."""

    def draw(generator):
        answers = generator.normal(size=(10, 1)) + 0.2 * generator.normal(size=(10, 7))
        return {"scores": answers.ravel(), "questions": np.repeat(np.arange(10), 7)}

    def naive(generator):
        return {"scores": draw(generator)["scores"]}

    assert 0.90 <= coverage(draw) <= 0.99
    assert coverage(naive) < 0.7


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("same_questions", [False, True])
def test_training_seeds_add_their_spread(few_resamples, spread, same_questions):
    """spread: of the seeds, in standard errors of one seed's mean."""

    def draw(generator):
        seeds, count = 3, 40
        questions = generator.normal(size=(1 if same_questions else seeds, count))
        gains = questions + generator.normal(size=(seeds, count)) + spread / 40**0.5 * generator.normal(size=(seeds, 1))
        labels = np.tile(np.arange(count), seeds) if same_questions else np.arange(seeds * count)
        return {"scores": gains.ravel(), "questions": labels, "seeds": np.repeat(np.arange(seeds), count)}

    assert coverage(draw) >= 0.90


def test_one_number_per_seed_has_students_interval():
    found = mean_interval([1.0, 2.0, 3.0], seeds=[0, 1, 2])
    assert student.cdf(4.303, 2) == pytest.approx(0.975, abs=1e-4)
    assert found.mean == 2 and found.half_width == pytest.approx(4.303 / 3**0.5, rel=0.1)


def test_many_plain_scores_have_the_normal_interval():
    scores = np.random.default_rng(3).normal(2, 1, 400)
    found = mean_interval(scores)
    assert found.half_width == pytest.approx(1.96 * scores.std() / 20, rel=0.05)
    assert found == mean_interval(scores)


@pytest.mark.parametrize("scores", [[0.0] * 30, [1.0] * 30])
def test_no_interval_has_zero_width(scores):
    """Of 30 equal answers the truth may still be a tenth away: 0.9^30 is 0.04."""
    assert 0.05 < mean_interval(scores, bounds=(0, 1)).half_width * 2 < 0.15
    found = compare([0.0] * 30, bounds=(-1, 1))
    assert found.gain.half_width > 0.05 and found.verdict == "too small to tell"


def test_three_equal_gains_of_one_answer_decide_nothing():
    gains = ([1.0] + [0.0] * 24) * 3
    found = compare(gains, range(75), np.repeat([0, 1, 2], 25), bounds=(-1, 1))
    assert found.verdict == "too small to tell" and found.p_value > 0.05


# Three seeds that each answered one question in 25 better: their means differ by rounding.
EQUAL = [0.52 - 0.48, 0.6 - 0.56, 0.36 - 0.32]


@pytest.mark.parametrize(
    "given",
    [
        {"scores": [5.0]},
        {"scores": [5.0], "seeds": [0]},
        {"scores": [2.0, 2.0]},
        {"scores": EQUAL, "seeds": [0, 1, 2]},
        {"scores": EQUAL},
    ],
)
def test_numbers_without_spread_decide_nothing(given):
    found = compare(given["scores"], seeds=given.get("seeds"))
    assert found.gain.half_width == float("inf") and found.verdict == "too small to tell"
    assert found.p_value == 1 and found.smallest_effect == float("inf")


def test_verdict_needs_its_interval_beyond_the_margin():
    generator = np.random.default_rng(0)
    gains = generator.normal(-0.02, 0.1, 300)
    assert compare(gains).verdict == "does not hold"
    assert compare(gains, margin=0.05).verdict == "holds"
    assert compare(gains, margin=0.02).verdict == "too small to tell"
    assert compare(-gains).verdict == "holds"


def test_p_value_agrees_with_the_interval():
    generator = np.random.default_rng(5)
    for mean in np.linspace(-0.3, 0.3, 13):
        found = compare(generator.normal(mean, 1, 100))
        if abs(found.p_value - 0.05) > 0.01:
            assert (found.p_value < 0.05) == (found.verdict != "too small to tell")
        by_table = 2 * norm.sf(abs(found.gain.mean) / (found.gain.half_width / 1.96))
        assert found.p_value == pytest.approx(by_table, abs=0.03)


def test_smallest_effect_is_seen_four_times_in_five(few_resamples):
    generator = np.random.default_rng(2)
    effect = compare(generator.normal(0, 1, 100)).smallest_effect
    verdicts = [compare(generator.normal(effect, 1, 100)).verdict for _ in range(REPETITIONS)]
    assert 0.68 <= verdicts.count("holds") / REPETITIONS <= 0.92


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_empty_and_uneven_lists():
    with pytest.raises(InputError, match="no scores; give at least one"):
        mean_interval([])
    with pytest.raises(InputError, match="2 scores and 1 questions; give one for each"):
        mean_interval([1.0, 2.0], questions=["a"])
