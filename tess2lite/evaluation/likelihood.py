"""How likely a text is: a lower bound on its log-likelihood under a chain of S denoising steps.

Step i predicts p_i, draws w' ~ p_i and makes the next noisy simplex x = √(1−ᾱ)·k·ε + 2k√ᾱ·onehot(w') of it; the last
step draws the text w. Importance sampling estimates the probability of w without bias: w' is drawn from a proposal r
instead, and the run is weighted by

    Π_{i<S−1} [Σ_v p_i(v)·N(x; v) / Σ_v r_i(v)·N(x; v)] · p_{S−1}(w),  N(x; v) ∝ exp(c·x[v]),  c = 2√ᾱ/((1−ᾱ)·k),

a product over positions, with ᾱ of the step that follows. The last hop has no noise (ᾱ = 1): its factor is p(w')/r(w').
By Jensen's inequality the logarithm of a mean of such weights is, in expectation, at most log p(w); it approaches it as
samples are added (Burda et al. 2016).

The proposal puts λ on the true token and shares the rest as p does. λ is the posterior of the true token as pilot runs
see it: some draw the true token in every hop, some draw any other. A model that copies what it reads gets λ ≈ 1, one
that ignores it λ = p(w).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .. import validation
from ..chunks import generator_for
from ..sampling import Step, denoise
from ..simplex import SIMPLEX_VALUE, noisy_simplex_
from ..validation import InputError

if TYPE_CHECKING:
    from ..model import SimplexDenoiser

PILOTS = 2  # runs of each kind
CERTAIN = 30.0  # log odds
SEED_BITS = 64  # seeds of further samples lie above those of users


class _WeightedRun:
    """Draws from the proposal and adds up the logarithms of the weights.

    Attributes:
        log_weights: Of each sequence, (B,) float64.
        log_p_final: Log-probability of the true tokens in the last step, (N,).
    """

    def __init__(self, truth: torch.Tensor, seeds: list[int], advantage: torch.Tensor, noise: _Noise):
        self.truth = truth
        self.seeds = seeds
        self.advantage = advantage  # (N,) log p(w | true tokens read) − log p(w | drawn tokens read)
        self.noise = noise
        self.log_weights = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)
        self.log_p_final = torch.zeros_like(advantage)

    def __call__(self, step: Step) -> None:
        level = torch.tensor(step.next_alpha_bar, dtype=torch.float64)
        sequences = step.span_mask.nonzero()[:, 0]  # (N,)
        truth = self.truth[step.span_mask]
        drawn = truth.clone()
        noise: Any = self.noise.of_step(step.index) if not step.is_last else None
        for rows, logits in step.logit_blocks():
            sequence = int(sequences[rows.start])  # a block lies in one
            log_p = logits.double().log_softmax(1)
            if step.is_last:
                log_weights = _at(log_p, truth[rows])
                self.log_p_final[rows] = log_weights
            else:
                offset = rows.start - int((sequences < sequence).sum())
                purpose = f"proposal {offset}"
                generator = generator_for(self.seeds[sequence], step.index, purpose, logits.device)
                log_r = _proposal(log_p, truth[rows], self.advantage[rows])
                drawn[rows] = torch.multinomial(log_r.exp(), 1, generator=generator)[:, 0]
                log_weights = _log_ratio(log_p, log_r, drawn[rows], level, noise[rows])
            self.log_weights[sequence] += log_weights.sum()
        tokens = self.truth.clone()
        tokens[step.span_mask] = drawn
        step.tokens = tokens


class _Noise:
    """Standard normal noise of all steps, a function of (seed, step), in the form that `denoise` accepts."""

    def __init__(self, mask: torch.Tensor, vocabulary: int, seeds: list[int]):
        self.mask = mask
        self.vocabulary = vocabulary
        self.seeds = seeds

    def of_step(self, step: int) -> torch.Tensor:
        """Returns the noise of the masked positions, (N, V)."""
        counts = self.mask.sum(1).tolist()
        parts = []
        for seed, count in zip(self.seeds, counts, strict=True):
            device = self.mask.device
            generator = generator_for(seed, step, "likelihood", device)
            noise = torch.randn(count, self.vocabulary, generator=generator, device=device)
            parts.append(noise)
        return torch.cat(parts)

    def __call__(self, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.zeros(shape, device=self.mask.device)
        noise[self.mask] = self.of_step(step)
        return noise


def _at(log_p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(R, V) at the tokens of the rows, (R,)."""
    return log_p.gather(1, tokens[:, None])[:, 0]


def _proposal(log_p: torch.Tensor, truth: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """log r, (R, V): logit λ = logit p(w) + advantage for the true token; the rest in p's proportions."""
    truth = truth[:, None]
    log_p_true = log_p.gather(1, truth).clamp(max=-1e-9)  # (R, 1)
    log_p_rest = torch.log(-torch.expm1(log_p_true))
    logit = log_p_true - log_p_rest + advantage[:, None]
    log_rest = F.logsigmoid(-logit) - log_p_rest
    log_r = log_p + log_rest
    return log_r.scatter(1, truth, F.logsigmoid(logit))


def _log_ratio(
    log_p: torch.Tensor, log_r: torch.Tensor, drawn: torch.Tensor, level: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """log Σ p(v)·N(x; v) − log Σ r(v)·N(x; v) for the noisy simplex x of the drawn tokens at ᾱ = level, (R,)."""
    if level == 1:
        return _at(log_p - log_r, drawn)
    x = noisy_simplex_(noise.double(), drawn, level.to(noise.device))
    scaled_variance = (1 - level) * SIMPLEX_VALUE
    x.mul_(float(2 * level.sqrt() / scaled_variance))
    return (log_p + x).logsumexp(1) - (log_r + x).logsumexp(1)


def log_likelihood(
    lm: SimplexDenoiser,
    batch: Mapping[str, torch.Tensor],
    steps: int = 2,
    samples: int = 16,
    seed: int | Iterable[int] = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimates a lower bound of log p(text) under a chain of `steps` steps at top_p 1.

    Args:
        lm: A denoiser trained by simplex diffusion.
        batch: As for `denoise`, with the true ids in input_ids under span_mask; they are scored, given the rest.
        steps: Of the chain, 1 or more. It is the likelihood of this chain, not of a longer one at another top_p.
        samples: Weighted runs that are averaged, beside the pilot runs. More samples tighten the bound.
        seed: One for all sequences or one each; the estimate is a function of it, whatever the batch.

    Returns:
        (bound (B,), standard error (B,)) in nats, float64. The error is infinite from a single sample. The bound is one
        in expectation: a single estimate may exceed the truth by its error.

    Raises:
        InputError: Before the first step, for another kind of model, batch or setting.
    """
    samples = validation.check_int("samples", samples, 1)
    if getattr(lm.config, "diffusion", "simplex") != "simplex":
        raise InputError(f"This model writes by {lm.config.diffusion} diffusion; the bound is of simplex diffusion.")
    _, mask, _ = validation.check_batch(lm, batch)
    truth = batch["input_ids"].to(lm.device)
    validation.check_ids(truth[mask], lm.config.vocab_size)
    seeds = validation.expand_seeds(seed, len(truth))

    def run(number: int, advantage: torch.Tensor) -> _WeightedRun:
        own_seeds = [each + (number << SEED_BITS) for each in seeds]
        noise = _Noise(mask, lm.config.vocab_size, own_seeds)
        hook = _WeightedRun(truth, own_seeds, advantage, noise)
        chain = denoise(lm, batch, steps, top_p=1.0, seed=own_seeds, hooks=[hook], noise=noise)
        for _ in chain:
            pass
        return hook

    def pilot(first: int, log_odds: float) -> torch.Tensor:
        """Log-probability of the true tokens at the end of pilot runs, up to a constant, (N,)."""
        odds = torch.full((int(mask.sum()),), log_odds, dtype=torch.float64, device=lm.device)
        ends = [run(first + i, odds).log_p_final for i in range(PILOTS)]
        return torch.stack(ends).logsumexp(0)

    right = pilot(1, CERTAIN)
    wrong = pilot(1 + PILOTS, -CERTAIN)
    advantage = (right - wrong).clamp(-CERTAIN, CERTAIN)
    runs = [run(1 + 2 * PILOTS + i, advantage) for i in range(samples)]
    log_weights = torch.stack([each.log_weights for each in runs])  # (samples, B)
    bound = log_weights.logsumexp(0) - math.log(samples)
    if samples == 1:
        unknown = torch.full_like(bound, torch.inf)
        return bound, unknown
    relative = (log_weights - bound).exp()
    return bound, relative.std(0) / samples**0.5
