"""What noise does to a token, without drawing any: integrals over the normal distribution (notebook 01)."""

import math

import torch

from ..textbook import K


def _normal(points: int = 4001, reach: float = 9.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A grid over the standard normal: values z and weights that sum to 1, both (points,) float64."""
    z = torch.linspace(-reach, reach, points, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    return z, weight / weight.sum()


def _check(alpha_bar: float, vocabulary: int) -> None:
    if not 0 <= alpha_bar <= 1:
        raise ValueError(f"alpha_bar is {alpha_bar}; give a number from 0 to 1.")
    if vocabulary < 2:
        raise ValueError(f"vocabulary is {vocabulary}; give 2 tokens or more.")


def _head_start(alpha_bar: float) -> float:
    """d = 2√(ᾱ/(1−ᾱ)): how far a token's own entry is ahead, in units of the noise k√(1−ᾱ)."""
    return 2 * math.sqrt(alpha_bar / (1 - alpha_bar))


def recovery_probability(alpha_bar: float, vocabulary: int) -> float:
    """P(the argmax of a noisy simplex is still its token) = ∫ φ(z)·Φ(z + 2√(ᾱ/(1−ᾱ)))^{V−1} dz.

    The token's own noise z must stay above all V−1 others after its head start. k cancels: noise scales with it.
    """
    _check(alpha_bar, vocabulary)
    if alpha_bar == 1:
        return 1.0
    z, weight = _normal()
    log_below = torch.special.log_ndtr(z + _head_start(alpha_bar))
    all_below = torch.exp((vocabulary - 1) * log_below)
    return float((weight * all_below).sum())


def expected_mass(alpha_bar: float, vocabulary: int, k: float = K) -> float:
    """E of the softmax mass on the token itself, exactly.

    The mass is A/(A+S), A = exp(2k√ᾱ + σz) and S a sum of V−1 independent exp(σz), σ = k√(1−ᾱ). As
    1/(A+S) = ∫ e^{−u(A+S)} du, it is ∫ E[A·e^{−uA}]·(E[e^{−uX}])^{V−1} du; here u = e^y.
    """
    _check(alpha_bar, vocabulary)
    z, weight = _normal(801)
    sigma = k * math.sqrt(1 - alpha_bar)
    head_start = 2 * k * math.sqrt(alpha_bar)
    first = -head_start - 10 * sigma - 40
    last = 10 * sigma + 10
    y = torch.linspace(first, last, 3001, dtype=torch.float64)[:, None]  # (Y, 1)
    log_x = sigma * z  # log of one exp(σz)
    log_a = log_x + head_start
    log_ua = log_a + y
    log_ux = log_x + y
    own = (weight * torch.exp(log_ua - torch.exp(log_ua))).sum(1)  # u·E[A e^{−uA}], (Y,)
    other = (weight * torch.exp(-torch.exp(log_ux))).sum(1)  # E[e^{−uX}], (Y,)
    others = other.clamp(min=1e-300) ** (vocabulary - 1)
    return float(torch.trapezoid(own * others, y[:, 0]))


def loss_alone(alpha_bar: float, candidates: float) -> float:
    """Cross-entropy of the best reader of one position, in nats, when `candidates` tokens are equally likely.

    With d = 2√(ᾱ/(1−ᾱ)) and x the entries over k√(1−ᾱ), Bayes weighs each entry exp(d·x). The token's own is
    d + z, and the others sum to (P−1)·exp(d²/2) in the mean, which leaves E[log(1 + exp(log(P−1) − d²/2 − d·z))]:
    an upper bound by Jensen's inequality, and close. As in `recovery_probability`, k cancels.

    Args:
        alpha_bar: How much is left of the token, 0 to 1.
        candidates: P, the size of the vocabulary; or the perplexity that the other words leave.

    Returns:
        Nats.

    Raises:
        ValueError: `alpha_bar` is outside 0 to 1, or there is one candidate.
    """
    _check(alpha_bar, math.ceil(candidates))
    if alpha_bar == 1:
        return 0.0
    z, weight = _normal()
    d = _head_start(alpha_bar)
    rivals = math.log(candidates - 1) - d * d / 2 - d * z
    losses = torch.nn.functional.softplus(rivals)
    return float((weight * losses).sum())


def decision_time(candidates: float) -> float:
    """The time t/T at which one position begins to tell its token from equally likely others: d²/2 = log P.

    That is ᾱ/(1−ᾱ) = log(P)/2, with the cosine schedule t/T = (2/π)·arctan √(2/log P). k is not in it.

    Args:
        candidates: P, above 1.

    Returns:
        t/T, in (0, 1).

    Raises:
        ValueError: There are fewer candidates.
    """
    if candidates <= 1:
        raise ValueError(f"candidates is {candidates}; give more than 1.")
    root = math.sqrt(2 / math.log(candidates))
    return 2 / math.pi * math.atan(root)


def mass_time(vocabulary: int, k: float = K) -> float | None:
    """The time t/T at which a token's softmax mass falls through one half; None where it never holds that much.

    The token's logit leads by 2k√ᾱ. The others' noise, of size σ = k√(1−ᾱ), has a log-sum-exp of log V + σ²/2 while
    many of them share it, and of σ√(2 log V), their largest, where σ > √(2 log V) (Derrida's random energy model).

    Args:
        vocabulary: V, 2 or more.
        k: The simplex value, above 0.

    Returns:
        t/T with the cosine schedule; None for never.
    """
    log_v = math.log(vocabulary)
    angles = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    lead = 2 * k * torch.cos(angles)
    sigma = k * torch.sin(angles)
    frozen = math.sqrt(2 * log_v)
    others = torch.where(sigma < frozen, log_v + sigma**2 / 2, sigma * frozen)
    is_ahead = lead > others
    if not is_ahead[0]:
        return None
    last = is_ahead.long().cumprod(0).sum() - 1
    return float(angles[last] / (math.pi / 2))
