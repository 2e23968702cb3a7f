"""Reward guidance: gradient ascent on the logits while the text is written (section on reward guidance of TESS 2)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence

import torch

from . import validation
from .reward import check_reward_model

LARGEST = 1e6  # scale; text falls apart long before, numbers after


class LogitUpdate:
    """What a step's logits gain. By the chain rule ∇_Ŝ R = p·(u − Σ p·u) with u = ∂R/∂(p·E)·Eᵀ: nothing V wide is kept.

    matrices: E_R of each reward model, (V, H_R). gradients: for each inner step ∂R/∂(p·E_R) by each model, (N, H_R).
    """

    def __init__(self, scale: float, matrices: list[torch.Tensor]):
        self.scale, self.matrices, self.gradients = scale, matrices, []
        self.argmax_before_guidance, self.logprob_gain = (
            {},
            {},
        )  # by first row: ids before, and what the likeliest token gained, in nats

    def __call__(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Logits (R, V) of some rows after all ascents, in place: each V wide tensor counts."""
        for gradients in self.gradients:
            logits.add_(self.by_logits(logits, gradients, rows), alpha=self.scale)
        return logits

    def by_logits(self, logits: torch.Tensor, gradients: list[torch.Tensor], rows: slice) -> torch.Tensor:
        """∇_Ŝ R of some rows, (R, V)."""
        p = logits.softmax(1)
        u = sum((g[rows] @ matrix.T).to(p) for g, matrix in zip(gradients, self.matrices, strict=True))
        return u.sub_(torch.linalg.vecdot(p, u)[:, None]).mul_(p)

    def recorded(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """The same, with a record of what it changed."""
        before, log_z = logits.argmax(1), logits.logsumexp(1)
        kept = logits.clone()
        raised = self(logits, rows)
        best = raised.argmax(1, keepdim=True)
        after = raised.gather(1, best)[:, 0] - raised.logsumexp(1)
        self.argmax_before_guidance[rows.start], self.logprob_gain[rows.start] = (
            before,
            after - (kept.gather(1, best)[:, 0] - log_z),
        )
        return raised


class RewardGuidance:
    """A hook: Ŝ ← Ŝ + scale·∇_Ŝ R(softmax(Ŝ)·E_R), inside the mask, before Ŝ is projected to tokens.

    reward_model: from `tess2lite.load_reward`; several are added up, R = Σ weightᵢ·Rᵢ, and a negative weight steers
    away. scale: η of the paper, 0 … 1e6; 0.25 was its best, 0 reads the reward and changes nothing. inner_steps:
    ascents in one diffusion step, each from a fresh gradient; the paper takes one. weights: one each, by default 1.
    start, end: the guided part of the run, as shares of its steps. The reward is read in all of them.
    """

    ascent = LogitUpdate

    def __init__(self, reward_model, scale=0.25, inner_steps=1, weights=None, start=0.0, end=1.0):
        self.models = list(reward_model) if isinstance(reward_model, Sequence) else [reward_model]
        for model in self.models:
            check_reward_model(model)
        _number("scale", scale, 0, LARGEST)
        self.scale, self.inner_steps = scale, validation.check_int("inner_steps", inner_steps, 1)
        if not isinstance(weights, Iterable | None):
            raise TypeError(f"weights is {weights!r}; give a list with one for each reward model.")
        self.weights = [1.0] * len(self.models) if weights is None else list(weights)
        if not self.models or len(self.weights) != len(self.models):
            raise ValueError(
                f"There are {len(self.models)} reward models and {len(self.weights)} weights; give one weight each."
            )
        for weight in self.weights:
            _number("weight", weight, -LARGEST, LARGEST)
        _number("start", start, 0, 1)
        _number("end", end, start, 1)
        self.start, self.end = start, end

    def check(self, lm) -> None:
        """Raises ValueError unless reward models and denoiser read the same tokens."""
        for model in self.models:
            ours, theirs = model.get_input_embeddings().weight, lm.get_input_embeddings().weight
            if len(ours) != len(theirs):
                raise ValueError(
                    f"The reward model reads {len(ours)} tokens, the denoiser writes {len(theirs)}; "
                    "guidance needs a reward model with the denoiser's own tokenizer."
                )
            if model.tokenizer and lm.tokenizer and model.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
                raise ValueError(
                    "The reward model's tokenizer has other tokens than the denoiser's, though as many; "
                    "guidance needs a reward model with the denoiser's own tokenizer."
                )

    def __call__(self, step) -> None:
        steps = step.index + step.t + 1
        guided = self.scale > 0 and self.start <= step.index / steps < self.end
        ascent = self.ascent(self.scale, [model.get_input_embeddings().weight.detach() for model in self.models])
        for inner in range(self.inner_steps if guided else 1):
            rewards, gradients = self._gradient(step, ascent, guided)
            if inner == 0:
                step.reward = rewards
            ascent.gradients.append(gradients)
        if guided:
            step.ascent = ascent
            step.edit_logits(ascent.recorded)

    def _gradient(self, step, ascent, wanted: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Rewards (B,) of the prediction after the ascents so far, and for each model ∂R/∂(p·E_R), (N, H_R)."""
        total, gradients = 0, []
        for model, weight, matrix in zip(self.models, self.weights, ascent.matrices, strict=True):
            soft = [ascent(logits, rows).softmax(1).to(matrix) @ matrix for rows, logits in step.logit_blocks()]
            soft = torch.cat(soft).requires_grad_(wanted)  # (N, H_R)
            with torch.set_grad_enabled(wanted):
                embeddings = matrix[step.input_ids.to(matrix.device)]  # (B, L, H_R)
                embeddings = embeddings.masked_scatter(step.span_mask[..., None].to(matrix.device), soft)
                rewards = weight * model.score_embeddings(embeddings, _read_mask(model, step))  # (B,)
                gradients += torch.autograd.grad(rewards.sum(), soft) if wanted else ()
            total = total + rewards.detach().to(step.span_mask.device)
        return total, gradients


def _read_mask(model, step) -> torch.Tensor | None:
    """The attention mask of the text as the reward model learned to read it: to the end of the row, or up to EOS."""
    if model.config.read_at == "last":
        return step.attention_mask
    seen = step.text_mask | ~step.span_mask
    return (seen if step.attention_mask is None else seen & step.attention_mask.bool()).long()


def _number(name: str, value, least: float, most: float) -> None:
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; give a number from {least:g} to {most:g}.")


def best_of(reward_model, generations: list) -> tuple[int, torch.Tensor]:
    """Best-of-n: the index of the generation that a reward model likes best, and the rewards of all, (n,).

    The baseline of guidance: `texts = generate(lm, [prompt] * n, seed=range(n))`.
    """
    check_reward_model(reward_model)
    several = isinstance(generations, (list, tuple)) and generations
    if not several or not all(hasattr(g, "token_ids") for g in generations):
        raise ValueError("generations holds no texts of generate; give what generate returned for a list of prompts.")
    rewards = torch.stack([reward_model.score_ids(torch.tensor([g.token_ids]))[0] for g in generations])
    return int(rewards.argmax()), rewards
