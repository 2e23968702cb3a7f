"""The formulas of notebook 01, against counting."""

import math

import pytest
import torch

from tess2lite import textbook
from tess2lite.schedule import alpha_bar
from tess2lite.viz import theory


def noisy(level, vocabulary, k, draws=20_000):
    torch.manual_seed(0)
    simplex = textbook.token_simplex(torch.zeros(draws, dtype=torch.long), vocabulary, k)
    return textbook.add_noise(simplex, torch.randn(draws, vocabulary), torch.tensor(level), k)


@pytest.mark.parametrize("vocabulary", [2, 50])
@pytest.mark.parametrize("level", [0.05, 0.3, 0.7])
def test_recovery_is_predicted_and_does_not_depend_on_k(vocabulary, level):
    predicted = theory.recovery_probability(level, vocabulary)
    for k in (1.0, 5.0):
        counted = (noisy(level, vocabulary, k).argmax(-1) == 0).float().mean().item()
        assert counted == pytest.approx(predicted, abs=0.012)


@pytest.mark.parametrize("k", [1.0, 5.0, 10.0])
@pytest.mark.parametrize("level", [0.05, 0.3, 0.7, 0.95])
def test_mass_on_the_token_is_predicted(k, level):
    counted = noisy(level, 50, k).softmax(-1)[:, 0].mean().item()
    assert theory.expected_mass(level, 50, k) == pytest.approx(counted, abs=0.012)


def test_the_limits_by_hand():
    assert theory.recovery_probability(1.0, 100) == 1
    assert theory.recovery_probability(0.0, 100) == pytest.approx(1 / 100, rel=1e-3)
    assert theory.expected_mass(0.0, 100, 5.0) == pytest.approx(1 / 100, rel=1e-3)
    assert theory.expected_mass(1.0, 100, 2.0) == pytest.approx(1 / (1 + 99 * math.exp(-4)), rel=1e-3)


@pytest.mark.parametrize("function", [theory.recovery_probability, theory.expected_mass])
@pytest.mark.parametrize(
    ("level", "vocabulary", "sentence"),
    [
        (1.6, 100, "alpha_bar is 1.6; give a number from 0 to 1."),
        (-0.1, 100, "alpha_bar is -0.1; give a number from 0 to 1."),
        (0.5, 0, "vocabulary is 0; give 2 tokens or more."),
    ],
)
def test_impossible_levels_and_vocabularies_get_a_sentence(function, level, vocabulary, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(level, vocabulary)


@pytest.mark.parametrize("vocabulary", [100, 1_024, 32_000])
@pytest.mark.parametrize("time", [0.3, 0.4, 0.5, 0.7])
def test_the_loss_of_one_position_alone_is_what_bayes_counts(vocabulary, time):
    level = float(alpha_bar(5000)[int(time * 5000)])
    d = 2 * math.sqrt(level / (1 - level))
    entries = torch.randn(400, vocabulary, generator=torch.Generator().manual_seed(3))
    entries[:, 0] += d
    losses = -(d * entries).log_softmax(1)[:, 0]
    error = float(losses.std()) / len(losses) ** 0.5
    assert theory.loss_alone(level, vocabulary) == pytest.approx(float(losses.mean()), abs=3 * error + 0.35)
    assert theory.loss_alone(level, vocabulary) > float(losses.mean()) - 3 * error  # an upper bound


def test_above_the_decision_time_most_is_unknown_and_below_it_hardly_anything():
    curve = alpha_bar(5000)
    for candidates in (1_024, 32_000):
        time = theory.decision_time(candidates)
        above, below = (theory.loss_alone(float(curve[int(t * 5000)]), candidates) for t in (time + 0.2, time - 0.12))
        assert above > 0.7 * math.log(candidates)
        assert below < 0.05 * math.log(candidates)
    level = float(curve[int(theory.decision_time(1_024) * 5000)])
    assert level / (1 - level) == pytest.approx(math.log(1_024) / 2, rel=0.01)


@pytest.mark.parametrize(("vocabulary", "k"), [(100, 2.5), (1_024, 5.0), (32_000, 10.0)])
def test_the_mass_is_one_half_where_predicted(vocabulary, k):
    curve = alpha_bar(5000)
    time = theory.mass_time(vocabulary, k)
    before, after = (
        theory.expected_mass(float(curve[int(t * 5000)]), vocabulary, k) for t in (time - 0.03, time + 0.03)
    )
    assert before > 0.5 > after


def test_a_small_k_never_holds_half_of_the_mass():
    assert theory.mass_time(32_000, 5.0) is None
    assert theory.expected_mass(1.0, 32_000, 5.0) < 0.5
