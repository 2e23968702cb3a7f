"""Reward guidance: gradient ascent on the logits while the text is written (section on reward guidance of TESS 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import validation
from .layers.rows import product
from .pretrained.tokenizers import check_shared_tokens
from .reward import RewardModel, check_reward_model
from .simplex import soft_embedding
from .validation import InputError

if TYPE_CHECKING:
    from .model import SimplexDenoiser
    from .sampling import Step

MAX_SCALE = 1e6  # text falls apart long before, numbers after


class LogitUpdate:
    """What guidance adds to a step's logits, computed on any of their rows.

    By the chain rule ∇_Ŝ R = p·(u − Σ p·u) with u = ∂R/∂(p·E)·Eᵀ, so only (N, H_R) gradients are kept.

    Args:
        scale: η.
        matrices: E_R of each reward model, (V, H_R).

    Attributes:
        gradients: For each inner step ∂R/∂(p·E_R) by each model, (N, H_R).
    """

    def __init__(self, scale: float, matrices: list[torch.Tensor]):
        self.scale = scale
        self.matrices = matrices
        self.gradients: list[list[torch.Tensor]] = []

    def __call__(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Add all inner steps to the logits (R, V) of some rows, in place, and return them."""
        for gradients in self.gradients:
            logits.add_(self.gradient(logits, gradients, rows), alpha=self.scale)
        return logits

    def gradient(self, logits: torch.Tensor, gradients: list[torch.Tensor], rows: slice) -> torch.Tensor:
        """∇_Ŝ R of some rows, (R, V)."""
        p = logits.softmax(1)
        u = torch.zeros_like(p)
        for gradient, matrix in zip(gradients, self.matrices, strict=True):
            u += product(gradient[rows], matrix)
        mean = torch.linalg.vecdot(p, u)
        return u.sub_(mean[:, None]).mul_(p)


class RewardGuidance:
    """A hook: Ŝ ← Ŝ + scale·∇_Ŝ R(softmax(Ŝ)·E_R), inside the mask, before Ŝ is projected to tokens.

    It records, in every step, `reward` (B,) of the prediction as it was before, `argmax_before_guidance` (B, L) and
    `logprob_gain` (B, L), what it added to the log-probability of the token that is now the most likely, in nats.

    Args:
        reward_model: From `tess2lite.load_reward`, or several: R = Σ weightᵢ·Rᵢ.
        scale: η of the paper, 0 … 1e6; 0.25 was its best. 0 reads the reward and changes nothing.
        inner_steps: Ascents per diffusion step, each from a fresh gradient; the paper takes one.
        weights: One per reward model, 1 by default; a negative one steers away.
        start, end: The guided part of the run, as fractions of its steps. The reward is read in all of them.
    """

    logit_update = LogitUpdate

    def __init__(
        self,
        reward_model: RewardModel | Sequence[RewardModel],
        scale: float = 0.25,
        inner_steps: int = 1,
        weights: Iterable[float] | None = None,
        start: float = 0.0,
        end: float = 1.0,
    ):
        self.models = list(reward_model) if isinstance(reward_model, Sequence) else [reward_model]
        for model in self.models:
            check_reward_model(model)
        validation.check_number("scale", scale, 0, MAX_SCALE)
        self.scale = scale
        self.inner_steps = validation.check_int("inner_steps", inner_steps, 1)
        if not isinstance(weights, Iterable | None):
            raise InputError(f"weights is {weights!r}; give a list with one for each reward model.")
        self.weights = [1.0] * len(self.models) if weights is None else list(weights)
        if not self.models or len(self.weights) != len(self.models):
            raise InputError(
                f"There are {len(self.models)} reward models and {len(self.weights)} weights; give one weight each."
            )
        for weight in self.weights:
            validation.check_number("weight", weight, -MAX_SCALE, MAX_SCALE)
        validation.check_number("start", start, 0, 1)
        validation.check_number("end", end, start, 1)
        self.start = start
        self.end = end

    def check(self, lm: SimplexDenoiser) -> None:
        """Raise InputError unless reward models and a simplex denoiser read the same tokens."""
        validation.check_simplex(lm)
        for model in self.models:
            check_shared_tokens(model, lm)

    def __call__(self, step: Step) -> None:
        guided = self.scale > 0 and self.start <= step.index / step.steps < self.end
        likeliest = []
        for _, logits in step.logit_blocks():
            likeliest.append(logits.argmax(1))
            vocabulary = logits.shape[1]
        argmax = torch.cat(likeliest)
        matrices = [_with_rows(model.embedding_rows(), vocabulary) for model in self.models]
        update = self.logit_update(self.scale, matrices)
        before = step.input_ids.flatten().index_copy(0, step.masked_idx, argmax)
        step.records["argmax_before_guidance"] = before.view_as(step.input_ids)
        gain = torch.zeros(step.span_mask.shape, device=step.span_mask.device)
        step.records["logprob_gain"] = gain
        for inner in range(self.inner_steps if guided else 1):
            rewards, gradients = self._gradient(step, update, guided)
            if inner == 0:
                step.records["reward"] = rewards
            update.gradients.append(gradients)
        if guided:
            step.edit_logits(_recorded(update, gain.view(-1), step.masked_idx))

    def _gradient(self, step: Step, update: LogitUpdate, guided: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Rewards (B,) of the prediction after the ascents so far, and ∂R/∂(p·E_R) by each model, (N, H_R)."""
        total = torch.zeros(len(step.input_ids), device=step.span_mask.device)
        gradients: list[torch.Tensor] = []
        for model, weight, matrix in zip(self.models, self.weights, update.matrices, strict=True):
            blocks = []
            for rows, logits in step.logit_blocks():
                p = update(logits, rows).softmax(1).to(matrix.device)
                blocks.append(soft_embedding(p, matrix))
            soft = torch.cat(blocks).requires_grad_(guided)  # (N, H_R)
            with torch.set_grad_enabled(guided):
                embeddings = matrix[step.input_ids.to(matrix.device)]  # (B, L, H_R)
                embeddings = embeddings.masked_scatter(step.span_mask[..., None].to(matrix.device), soft)
                rewards = weight * model.score_embeddings(embeddings, _attention_mask(model, step))  # (B,)
                if guided:
                    gradients += torch.autograd.grad(rewards.sum(), soft)
            total = total + rewards.detach().to(total.device)
        return total, gradients


def _with_rows(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """E_R with a row for each of the denoiser's logits, (V, H_R).

    One tokenizer, but vocabularies padded to different multiples of 64: rows that no token has are left out, and spare
    logits get rows of zeros, which the reward does not read.
    """
    if len(matrix) == size:
        return matrix  # padding by nothing would be a copy of E
    return torch.nn.functional.pad(matrix, (0, 0, 0, size - len(matrix)))


def _recorded(update: LogitUpdate, gain: torch.Tensor, masked_idx: torch.Tensor) -> Any:
    """The update as an edit of logits that writes what it gained into `gain` (B·L)."""

    def edit(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        before = logits.clone()
        after = update(logits, rows)
        best = after.argmax(1, keepdim=True)
        gained = _log_probability(after, best) - _log_probability(before, best)
        gain[masked_idx[rows]] = gained.to(gain.dtype)
        return after

    return edit


def _log_probability(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log p of one id per row, (R,). ids: (R, 1)."""
    return logits.gather(1, ids)[:, 0] - logits.logsumexp(1)


def _attention_mask(model: RewardModel, step: Step) -> torch.Tensor | None:
    """The text as the reward model was trained to read it: to the end of the row, or up to EOS."""
    if model.config.score_position == "last":
        return step.attention_mask
    seen = step.text_mask | ~step.span_mask
    return (seen if step.attention_mask is None else seen & step.attention_mask.bool()).long()
