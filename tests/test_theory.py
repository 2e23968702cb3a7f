"""The two formulas of notebook 01, against counting."""

import math

import pytest
import torch

from tess2lite import textbook
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
@pytest.mark.parametrize(("level", "vocabulary"), [(1.6, 100), (-0.1, 100), (0.5, 0)])
def test_what_is_no_level_and_no_vocabulary_gets_a_sentence(function, level, vocabulary):
    with pytest.raises(ValueError, match=f"alpha_bar is {level} and vocabulary {vocabulary}; give"):
        function(level, vocabulary)
