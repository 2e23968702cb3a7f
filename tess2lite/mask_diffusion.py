"""Masked diffusion with an absorbing state, the other kind of diffusion language model, to compare with.

As in LLaDA (Nie et al. 2025): tokens become one absorbing token, the tokenizer's `<unk>`, which ordinary text never
holds; the model learns to tell what they were, and writes by revealing what it is surest of. Backbone, label shift
and masks are those of simplex diffusion, as DiffuLLaMA (Gong et al. 2025) has them; a timestep is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F

from . import validation
from .chunks import generator_for, rows_per_chunk
from .loss import cross_entropy
from .sampling import Hook, SamplerState, Step, loop
from .tokens import eos_token_ids
from .validation import InputError

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


def masked_loss(lm, input_ids, gone, share, token: int) -> torch.Tensor:
    """Σ 1/t · −log p(w) over the absorbed positions: LLaDA's equation 3 and, once `compute_loss` has divided it by the
    number of positions that could be absorbed in all rows together, its algorithm 1.

    input_ids, gone: (B, L). share: (B,), t of the paper. token: what the absorbed positions show.
    """
    matrix = lm.embedding_matrix()
    hidden = lm.hidden_states(F.embedding(input_ids.masked_fill(gone, token), matrix), None)
    weights = (1 / share)[gone.nonzero()[:, 0]]  # (N,)
    size = rows_per_chunk(len(matrix), matrix.device)
    return cross_entropy(lm.head, hidden[:, :-1][gone[:, 1:]], input_ids[gone], size, weights)


class MaskedState(SamplerState):
    """What stays the same through a run; its input are token ids alone."""

    def __init__(self, lm, *settings):
        super().__init__(lm, *settings)
        self.token = mask_token_id(lm)
        # Index t+1: the share that is revealed.
        self.levels = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64).tolist()

    def first_input(self, *_) -> torch.Tensor:
        return self.input_ids.masked_fill(self.span_mask, self.token)  # (B, L)

    def embeddings(self, ids: torch.Tensor, _) -> torch.Tensor:
        return self.embedding[ids]


class MaskedStep(Step):
    """One step: every absorbed position is predicted, and the surest are revealed, for good.

    Read as `sampling.Step`, with these differences. tokens: what is revealed after the step, the absorbing token
    elsewhere; the last step's, and those of one whose `stop` is set, are all revealed. Tokens that are replaced are
    what the next step reads. alpha_bar: share of the positions that was revealed before, as planned. top, argmax,
    confidence, entropy: of the prediction; what was revealed before is sure.
    """

    def __init__(self, run: MaskedState, index: int, ids: torch.Tensor, k: int):
        super().__init__(run, index, ids, k)
        self._ids, self._gone = ids, self.span_mask & (ids == run.token)  # (B, L)

    @Step.tokens.getter
    def tokens(self) -> torch.Tensor:
        if self._edited is not None:
            return self._edited.clone()
        drawn = self._spread("tokens", self._ids)
        revealed = ~self._gone | self.stop | self._surest()
        return torch.where(revealed, drawn, self._run.token)

    def _surest(self) -> torch.Tensor:
        """The round(N·(i+1)/S) surest of a sequence's N positions, (B, L); those revealed before come first."""
        sure = self._spread("sure", torch.full(self._ids.shape, -1.0, device=self._ids.device))
        rank = sure.argsort(dim=1, descending=True, stable=True).argsort(1)  # (B, L); ties from left to right
        wanted = [round(n * (self.index + 1) / self._run.steps) for n in self._run.counts]
        return rank < torch.tensor(wanted, device=rank.device)[:, None]

    def _logits_of(self, chunk, hidden: torch.Tensor) -> torch.Tensor:
        logits = super()._logits_of(chunk, hidden)
        logits[:, self._run.token] = torch.finfo(logits.dtype).min  # nothing is revealed as what stands for the unknown
        return logits

    def _project(self) -> dict[str, torch.Tensor]:
        if self._projected is None:
            out, run = super()._project(), self._run
            known, gone = run.gather_masked(self._ids), run.gather_masked(self._gone)  # (N,)
            alone = torch.eye(1, self._k, device=gone.device)  # all on the first
            out["top_p"] = torch.where(gone[:, None], out["top_p"], alone)
            out["top_ids"] = torch.where(gone[:, None], out["top_ids"], known[:, None])
            out["entropy"] = out["entropy"] * gone
            out["tokens"] = torch.where(gone, out["tokens"], known)
            out["sure"] = torch.where(gone, out["sure"], 2)  # before any probability
        return self._projected

    def _kept(self, chunk, p: torch.Tensor, tokens: torch.Tensor, _) -> dict:
        return {"sure": p.gather(1, tokens[:, None])[:, 0]}

    def finish(self) -> torch.Tensor:
        """What the next step reads, (B, L)."""
        return self.tokens


def denoise(
    lm,
    batch: Mapping[str, torch.Tensor],
    steps: int = 100,
    top_p: float | None = 0.99,
    temperature: float = 1.0,
    seed: int | Iterable[int] = 0,
    hooks: Iterable[Hook] = (),
    start: int = 0,
) -> Iterator[MaskedStep]:
    """Reveal all masked positions in `steps` steps, low-confidence remasking (LLaDA, section 2.4).

    Arguments, errors and seeds as in `sampling.denoise`. After step i of S, round(N·(i+1)/S) of a sequence's N
    positions are revealed: the candidates, drawn as there, that the model gives the highest probability.
    """
    run, hooks = MaskedState(lm, batch, steps, top_p, temperature, seed), validation.as_hooks(hooks)
    if start:
        raise ValueError(f"start is {start}; a masked model has no noise to begin a text again from: begin at step 0.")
    if any(hasattr(hook, "check") for hook in hooks):
        raise ValueError("Guidance moves the logits of a simplex model, and this one is masked; leave it out.")
    return loop(run, hooks, MaskedStep, 0, run.input_ids)
