"""Masked diffusion with an absorbing state, the other kind of diffusion language model, to compare with.

As in LLaDA (Nie et al. 2025): tokens become the mask token, which is the tokenizer's `<unk>` where it has none of its
own; the model learns to predict them, and writes by revealing those with the highest confidence. Backbone, label shift
and masks are those of simplex diffusion, as DiffuLLaMA (Gong et al. 2025) has them; a timestep is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from . import validation
from .pretrained.tokenizers import mask_token_id
from .sampling import Prediction, SamplerState, Step, loop
from .schedule import sampling_times
from .validation import InputError

if TYPE_CHECKING:
    from .hooks import Hook
    from .model import SimplexDenoiser

MASKED = "masked"  # `config.diffusion` of these models; others have none


class MaskedState(SamplerState):
    """What stays the same through a run; its steps read token ids."""

    def __init__(self, lm: SimplexDenoiser, batch: Mapping[str, torch.Tensor], times: torch.Tensor, *settings: Any):
        super().__init__(lm, batch, times, *settings)
        self.mask_token_id = mask_token_id(lm)
        self.alphas_bar = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64).tolist()  # the revealed ratio
        planned = []
        for ratio in self.alphas_bar[1:]:
            planned.append([round(count * ratio) for count in self.counts])
        self.planned = torch.tensor(planned, device=lm.device)  # (S, B) revealed positions after each step

    def first_input(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """The context, and mask tokens, (B, L)."""
        return self.input_ids.masked_fill(self.span_mask, self.mask_token_id)

    def embeddings(self, ids: torch.Tensor, index: int) -> torch.Tensor:
        """What the backbone reads, (B, L, H)."""
        return self.embedding[ids]

    def constrain_(self, logits: torch.Tensor) -> torch.Tensor:
        """Never samples the mask token."""
        never = torch.finfo(logits.dtype).min
        logits[:, self.mask_token_id] = never
        return logits

    def next_input(self, *_: Any, **__: Any) -> None:
        """None: the next step reads tokens, see `MaskedStep.finish`."""


class MaskedStep(Step):
    """One step: every masked position is predicted, and those with the highest confidence are revealed, for good.

    Read as `sampling.Step`, with these differences. tokens: what is revealed after the step, mask tokens elsewhere;
    in the last step, and in one whose `stop` is set, all are revealed. Assigned tokens are what the next step reads.
    alpha_bar: the ratio of positions that were planned to be revealed before. top, argmax, confidence, entropy: of the
    prediction; what was revealed before has probability 1.
    """

    __slots__ = ("_ids", "_is_masked")

    def __init__(self, sampler: MaskedState, index: int, ids: torch.Tensor, top_k: int):
        super().__init__(sampler, index, ids, top_k)
        self._ids = ids
        self._is_masked = self.span_mask & (ids == sampler.mask_token_id)  # (B, L)

    def current_tokens(self) -> torch.Tensor:
        """(B, L) ids that are revealed, and mask tokens."""
        sampler = self._sampler
        sampled = super().current_tokens()
        if self.is_last:
            return sampled
        unsampled = torch.full(self._ids.shape, -1.0, device=self._ids.device)
        confidence = sampler.scatter_masked(self.prediction().token_p, unsampled)
        order = confidence.argsort(dim=1, descending=True, stable=True)  # ties from left to right
        rank = order.argsort(1)  # (B, L)
        revealed = ~self._is_masked | (rank < sampler.planned[self.index][:, None])
        return torch.where(revealed | self.is_assigned, sampled, sampler.mask_token_id)

    def prediction(self) -> Prediction:
        """Of masked positions as in `Step`; what was revealed before is certain."""
        if self._prediction is not None:
            return self._prediction
        out = super().prediction()
        sampler = self._sampler
        ids = sampler.gather_masked(self._ids)  # (N,)
        is_masked = sampler.gather_masked(self._is_masked)
        certain = torch.eye(1, self._top_k, device=ids.device)
        self._prediction = out._replace(
            tokens=torch.where(is_masked, out.tokens, ids),
            token_p=torch.where(is_masked, out.token_p, 2),  # ranks before any probability
            top_ids=torch.where(is_masked[:, None], out.top_ids, ids[:, None]),
            top_p=torch.where(is_masked[:, None], out.top_p, certain),
            entropy=out.entropy * is_masked,
        )
        return self._prediction

    @property
    def token_p(self) -> None:
        """None: most of `tokens` are mask tokens, which no prediction has sampled."""

    def finish(self) -> torch.Tensor:
        """What the next step reads, (B, L)."""
        super().finish()
        return self.current_tokens()


def denoise(
    lm: SimplexDenoiser,
    batch: Mapping[str, torch.Tensor],
    steps: int | None = None,
    top_p: float | None = 0.99,
    temperature: float = 1.0,
    seed: int | Iterable[int] = 0,
    hooks: Hook | Iterable[Hook] = (),
    start: int = 0,
    timestep_spacing: str | None = None,
    final: str = "argmax",
) -> Iterator[MaskedStep]:
    """Reveal all masked positions step by step: low-confidence remasking (LLaDA, section 2.4).

    Arguments, errors and seeds as in `sampling.denoise`. After step i of S, round(N·(i+1)/S) of a sequence's N
    positions are revealed: the candidates, sampled as there, that the model gives the highest probability.
    """
    if timestep_spacing not in (None, "uniform"):
        raise InputError(f"timestep_spacing is {timestep_spacing!r}; a masked model has no timesteps: leave it out.")
    if start:
        raise InputError(f"start is {start}; a masked model has no noise to begin a text again from: begin at step 0.")
    sampler = MaskedState(lm, batch, sampling_times(steps), top_p, temperature, seed, final)
    return loop(sampler, validation.as_hooks(hooks), MaskedStep, 0, sampler.input_ids)
