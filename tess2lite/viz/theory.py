"""What noise does to a token, without drawing any: integrals over the normal distribution (notebook 01)."""

import math

import torch

from ..textbook import K


def _normal(points: int = 4001, reach: float = 9.0):
    """A grid over the standard normal: values z and weights that sum to 1, both (points,) float64."""
    z = torch.linspace(-reach, reach, points, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    return z, weight / weight.sum()


def _check(alpha_bar: float, vocabulary: int) -> None:
    if not 0 <= alpha_bar <= 1 or vocabulary < 2:
        raise ValueError(f"alpha_bar is {alpha_bar} and vocabulary {vocabulary}; give 0 to 1, and 2 tokens or more.")


def recovery_probability(alpha_bar: float, vocabulary: int) -> float:
    """P(the argmax of a noisy simplex is still its token) = ∫ φ(z)·Φ(z + 2√(ᾱ/(1−ᾱ)))^{V−1} dz.

    The token's own noise z must stay above all V−1 others after its head start. k cancels: noise scales with it.
    """
    _check(alpha_bar, vocabulary)
    if alpha_bar == 1:
        return 1.0
    z, weight = _normal()
    log_below = torch.special.log_ndtr(z + 2 * math.sqrt(alpha_bar / (1 - alpha_bar)))
    return float((weight * torch.exp((vocabulary - 1) * log_below)).sum())


def expected_mass(alpha_bar: float, vocabulary: int, k: float = K) -> float:
    """E of the softmax mass on the token itself, exactly.

    The mass is A/(A+S), A = exp(2k√ᾱ + σz) and S a sum of V−1 independent exp(σz), σ = k√(1−ᾱ). As
    1/(A+S) = ∫ e^{−u(A+S)} du, it is ∫ E[A·e^{−uA}]·(E[e^{−uX}])^{V−1} du; here u = e^y.
    """
    _check(alpha_bar, vocabulary)
    z, weight = _normal(801)
    sigma, head_start = k * math.sqrt(1 - alpha_bar), 2 * k * math.sqrt(alpha_bar)
    log_x = sigma * z  # log of one exp(σz)
    y = torch.linspace(-head_start - 10 * sigma - 40, 10 * sigma + 10, 3001, dtype=torch.float64)[:, None]
    log_a = log_x + head_start
    own = (weight * torch.exp(log_a + y - torch.exp(log_a + y))).sum(1)  # u·E[A e^{−uA}], (Y,)
    others = (weight * torch.exp(-torch.exp(log_x + y))).sum(1)
    return float(torch.trapezoid(own * others.clamp(min=1e-300) ** (vocabulary - 1), y[:, 0]))
