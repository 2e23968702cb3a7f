"""Masked diffusion with an absorbing state, the other kind of diffusion language model, to compare with.

As in LLaDA (Nie et al. 2025): tokens become one absorbing token, the tokenizer's `<unk>`, which ordinary text never
holds; the model learns to tell what they were, and writes by revealing what it is surest of. Backbone, label shift
and masks are those of simplex diffusion, as DiffuLLaMA (Gong et al. 2025) has them; a timestep is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from . import validation
from .chunks import generator_for, rows_per_chunk
from .loss import cross_entropy
from .sampling import Prediction, SamplerState, Step, loop
from .schedule import sampling_times
from .tokens import eos_token_ids
from .validation import InputError

if TYPE_CHECKING:
    from .hooks import Hook
    from .model import SimplexDenoiser

MASKED = "masked"  # `config.diffusion` of these models; others have none


def mask_token_id(lm) -> int:
    """The id of the mask token: the tokenizer's own, or else `<unk>`.

    Raises:
        InputError: There is neither, or it is BOS, EOS or PAD as well, which are tokens that the model writes.
    """
    tokenizer = lm.tokenizer
    for token in (getattr(tokenizer, "mask_token_id", None), getattr(tokenizer, "unk_token_id", None)):
        if token is not None and token not in (tokenizer.bos_token_id, tokenizer.pad_token_id, *eos_token_ids(lm)):
            return token
    raise InputError(
        f"'{lm.name_or_path}' has no tokenizer with an <unk> or a mask token of its own id, which stands for what is "
        "masked; save the model with a tokenizer that has a mask token."
    )


def absorbed(span_mask: torch.Tensor, share: torch.Tensor, examples: list[int], seed: int) -> torch.Tensor:
    """Which positions are absorbed, (B, L) bool: each one under the mask by itself, with the row's probability.

    share: (B,), in (0, 1]. examples: the number of each row; what is drawn is a function of (seed, example).
    """
    streams = [generator_for(seed, example, "absorbed", torch.device("cpu")) for example in examples]
    u = torch.stack([torch.rand(span_mask.shape[1], generator=generator) for generator in streams])  # (B, L)
    return span_mask & (u.to(share.device) < share[:, None])


def masked_loss(lm, input_ids, gone, share, token: int, attention_mask=None) -> torch.Tensor:
    """Σ 1/t · −log p(w) over the absorbed positions: LLaDA's equation 3 and, once `compute_loss` has divided it by the
    number of positions that could be absorbed in all rows together, its algorithm 1.

    input_ids, gone: (B, L). share: (B,), t of the paper. token: what the absorbed positions show.
    """
    matrix = lm.embedding_matrix()
    hidden = lm.hidden_states(F.embedding(input_ids.masked_fill(gone, token), matrix), attention_mask)
    weights = (1 / share)[gone.nonzero()[:, 0]]  # (N,)
    size = rows_per_chunk(len(matrix), matrix.device)
    return cross_entropy(lm.head, hidden[:, :-1][gone[:, 1:]], input_ids[gone], size, weights)


class MaskedState(SamplerState):
    """What stays the same through a run; its steps read token ids."""

    def __init__(self, lm: SimplexDenoiser, batch: Mapping[str, torch.Tensor], times: torch.Tensor, *settings: Any):
        super().__init__(lm, batch, times, *settings)
        self.token = mask_token_id(lm)
        self.levels = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64).tolist()  # the revealed ratio
        planned = [[round(count * ratio) for count in self.counts] for ratio in self.levels[1:]]
        self.planned = torch.tensor(planned, device=lm.device)  # (S, B) revealed positions after each step

    def first_input(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """The context, and mask tokens, (B, L)."""
        return self.input_ids.masked_fill(self.span_mask, self.token)

    def embeddings(self, ids: torch.Tensor, index: int) -> torch.Tensor:
        """What the backbone reads, (B, L, H)."""
        return self.embedding[ids]

    def constrain_(self, logits: torch.Tensor) -> torch.Tensor:
        """Never samples the mask token."""
        logits[:, self.token] = torch.finfo(logits.dtype).min
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

    def __init__(self, run: MaskedState, index: int, ids: torch.Tensor, top_k: int):
        super().__init__(run, index, ids, top_k)
        self._ids = ids
        self._is_masked = self.span_mask & (ids == run.token)  # (B, L)

    def current_tokens(self) -> torch.Tensor:
        """(B, L) ids that are revealed, and mask tokens."""
        run = self._run
        drawn = super().current_tokens()
        if self.is_last:
            return drawn
        unsampled = torch.full(self._ids.shape, -1.0, device=self._ids.device)
        confidence = run.scatter_masked(self.prediction().token_p, unsampled)
        rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(1)  # (B, L); ties from left to right
        revealed = ~self._is_masked | (rank < run.planned[self.index][:, None])
        return torch.where(revealed | self.is_assigned, drawn, run.token)

    def prediction(self) -> Prediction:
        """Of masked positions as in `Step`; what was revealed before is certain."""
        if self._prediction is None:
            out = super().prediction()
            run = self._run
            ids = run.gather_masked(self._ids)  # (N,)
            is_masked = run.gather_masked(self._is_masked)
            certain = torch.eye(1, self._top_k, device=ids.device)
            out.top_p = torch.where(is_masked[:, None], out.top_p, certain)
            out.top_ids = torch.where(is_masked[:, None], out.top_ids, ids[:, None])
            out.entropy = out.entropy * is_masked
            out.tokens = torch.where(is_masked, out.tokens, ids)
            out.token_p = torch.where(is_masked, out.token_p, 2)  # ranks before any probability
        return self._prediction

    @property
    def token_p(self) -> None:
        """None: most of `tokens` are mask tokens, which no prediction has drawn."""

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
    positions are revealed: the candidates, drawn as there, that the model gives the highest probability.
    """
    if timestep_spacing not in (None, "uniform"):
        raise InputError(f"timestep_spacing is {timestep_spacing!r}; a masked model has no timesteps: leave it out.")
    if start:
        raise InputError(f"start is {start}; a masked model has no noise to begin a text again from: begin at step 0.")
    run = MaskedState(lm, batch, sampling_times(steps), top_p, temperature, seed, final)
    return loop(run, validation.as_hooks(hooks), MaskedStep, 0, run.input_ids)
