"""How likely a text is: a bound on the log-likelihood under the very chain of S steps that writes.

Step i predicts p_i, draws w' ~ p_i and makes the next noisy simplex x = √(1−ᾱ)·k·ε + 2k√ᾱ·onehot(w') of it. Given
the true tokens w, the noisy simplexes of all steps are independent Gaussians q, so Jensen's inequality says

    log p(w) ≥ Σ_{i<S−1} E[log Σ_w' p_i(w')·exp(c·(x[w'] − x[w]))] + E[log p_{S−1}(w)],  c = 2√ᾱ/((1−ᾱ)·k),

with x ~ q at the level ᾱ of the step that follows: each summand is the density of x under p_i over that under q. At
ᾱ = 1 the noisy simplex is the token itself and the term becomes log p_i(w), as it is for the last step, whose "next
noisy simplex" is the text.
"""

from __future__ import annotations

import torch

from .. import validation
from ..chunks import generator_for
from ..sampling import denoise
from ..schedule import alpha_bar
from ..simplex import SIMPLEX_VALUE, noisy_simplex_


class Bound:
    """A hook that adds up the terms of each sequence and has the chain go on with the true tokens.

    truth: (B, L) ids. seeds: one a sequence. total: (B,) of the steps so far, in nats.
    """

    def __init__(self, truth: torch.Tensor, seeds: list[int]):
        self.truth, self.seeds = truth, seeds
        self.total = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)

    def __call__(self, step) -> None:
        levels = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar(step.index + step.t + 1)])
        sequences, tokens = step.span_mask.nonzero()[:, 0], self.truth[step.span_mask]  # (N,)
        for rows, logits in step.logit_blocks():
            sequence = int(sequences[rows.start])  # a block lies in one
            place = rows.start - int((sequences < sequence).sum())
            # Noise of its own, not what the run reads next: the same expectation, as p_i has seen neither.
            generator = generator_for(self.seeds[sequence], step.index, f"likelihood {place}", logits.device)
            self.total[sequence] += _terms(logits, tokens[rows], levels[step.t], generator).sum()
        step.tokens = self.truth


def _terms(logits: torch.Tensor, tokens: torch.Tensor, level: torch.Tensor, generator) -> torch.Tensor:
    """log Σ_w' p(w')·exp(c·(x[w'] − x[w])) of some rows, (R,), for x at ᾱ = level."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)  # (R, V)
    if level < 1:
        x = torch.randn(log_p.shape, dtype=log_p.dtype, device=log_p.device, generator=generator)
        x = noisy_simplex_(x, tokens, level.to(x.device))
        c = float(2 * level.sqrt() / ((1 - level) * SIMPLEX_VALUE))
        return log_p.add_(x.sub_(x.gather(1, tokens[:, None])), alpha=c).logsumexp(1)
    return log_p.gather(1, tokens[:, None])[:, 0]


def log_likelihood(lm, batch, steps: int = 10, samples: int = 4, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """A lower bound of log p(text) under the chain of `steps` steps at top_p 1, estimated by Monte Carlo.

    batch: as for `denoise`, with the true ids in input_ids under span_mask; what stands there is scored, given the
    rest. samples: independent runs that are averaged. seed: one for all sequences or one each; the estimate is a
    function of it, whatever the batch.

    Returns (mean (B,), standard error (B,)) in nats, float64; the error is infinite from a single sample. With one
    step there is no latent and the mean estimates E[log p(w)] over the first noise, which log p is at least.
    Raises ValueError or TypeError before the first step.
    """
    samples = validation.check_int("samples", samples, 1)
    if getattr(lm.config, "diffusion", "simplex") != "simplex":
        raise ValueError(f"This model writes by {lm.config.diffusion} diffusion; the bound is of simplex diffusion.")
    _, mask, _ = validation.check_batch(lm, batch)
    truth = batch["input_ids"].to(lm.device)
    validation.check_ids(truth[mask], lm.config.vocab_size)
    seeds, found = validation.expand_seeds(seed, len(truth)), []
    for sample in range(samples):
        drawn = [seed + (sample << 64) for seed in seeds]  # the first samples are the same, however many there are
        bound = Bound(truth, drawn)
        for _ in denoise(lm, batch, steps, top_p=None, seed=drawn, hooks=[bound]):
            pass
        found.append(bound.total)
    found = torch.stack(found)  # (samples, B)
    error = found.std(0) / samples**0.5 if samples > 1 else torch.full_like(found[0], torch.inf)
    return found.mean(0), error
