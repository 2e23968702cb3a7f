"""denoise(): text out of noise, one step at a time. The simplex DDPM sampler of TESS 2.

Between steps only token ids, one soft embedding per masked position and the seeds persist; all vocabulary-sized
work happens on (R, V) chunks (`chunks.py`, `simplex.py`). `generation.py` puts text around it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import validation
from .chunks import Chunk, make_chunks, rows_per_chunk
from .nucleus import MAX_REJECTIONS, sample_nucleus
from .schedule import alpha_bar_at, sampling_times
from .simplex import noisy_simplex_, self_condition_, soft_embedding
from .tokens import eos_token_ids, up_to_eos
from .validation import InputError

if TYPE_CHECKING:
    from .hooks import Hook
    from .model import SimplexDenoiser

LogitEdit = Callable[[torch.Tensor, slice], torch.Tensor]
Noise = Callable[[int, tuple[int, ...]], torch.Tensor]


class Prediction(NamedTuple):
    """What one pass over all N masked positions predicts.

    Attributes:
        tokens: (N,) ids that the prediction was projected to.
        token_p: (N,) their probabilities.
        top_ids: (N, k) the most likely ids, most likely first.
        top_p: (N, k) their probabilities.
        entropy: (N,) in nats.
        next_input: (N, H) soft embeddings that the next step reads; None at the last step.
    """

    tokens: torch.Tensor
    token_p: torch.Tensor
    top_ids: torch.Tensor
    top_p: torch.Tensor
    entropy: torch.Tensor
    next_input: torch.Tensor | None

    @classmethod
    def concatenate(cls, parts: list[Prediction]) -> Prediction:
        """One record from those of consecutive chunks."""
        columns = zip(*parts, strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))


class SamplerState:
    """What stays the same through a run: the batch, the settings, and the masked rows cut into chunks.

    Noise and sampled tokens are functions of (seed, step, block), so a sequence gets the same ones in any batch, and
    any chunk can be recomputed.

    Attributes:
        times: t/T of each step.
        alphas_bar: ᾱ that each step reads, 0 for the first, whose input is pure noise; and 1 for the end.
        masked_idx: (N,) indices of the masked positions in the flattened batch.
        counts: How many each sequence has.
        embedding: E, (V, H).
        reads_noisy_tokens: Whether a hook asks for them: an argmax over V costs several per cent of a step.
        noisy_tokens: Step → (N,), the most likely token of each noisy simplex that it reads.
    """

    def __init__(
        self,
        lm: SimplexDenoiser,
        batch: Mapping[str, torch.Tensor],
        times: torch.Tensor,
        top_p: float | None,
        temperature: float,
        seed: int | Iterable[int],
        final: str,
        noise: Noise | None = None,
    ):
        validation.check_sampling_args(top_p, temperature, final)
        self.lm = lm
        self.top_p = top_p
        self.temperature = temperature
        self.noise = noise
        self.steps = len(times)
        self.times = times.tolist()
        self.argmax_at_end = final == "argmax" and top_p is not None
        self.input_ids, self.span_mask, self.attention_mask = validation.check_batch(lm, batch)
        self.seeds = validation.expand_seeds(seed, len(self.input_ids))
        self.alphas_bar = [0.0, *alpha_bar_at(times).tolist()[1:], 1.0]
        self._alphas_bar = torch.tensor(self.alphas_bar, dtype=torch.float64, device=lm.device)
        self.embedding = lm.embedding_matrix().detach()
        self.context = self.embedding[self.input_ids]  # (B, L, H)
        # Computed once: nonzero() and tolist() synchronise the GPU.
        self.masked_idx = self.span_mask.flatten().nonzero()[:, 0]
        self.counts = self.span_mask.sum(1).tolist()
        self.eos = torch.tensor(eos_token_ids(lm), device=lm.device)
        size = rows_per_chunk(len(self.embedding), lm.device)
        self.chunks = make_chunks(self.counts, size, lm.device)
        self.reads_noisy_tokens = False
        self.noisy_tokens: dict[int, torch.Tensor] = defaultdict(lambda: torch.empty_like(self.masked_idx))
        self._replayed_noise = (None, None)
        self._scratch = None

    def gather_masked(self, values: torch.Tensor) -> torch.Tensor:
        """(B, L, …) → (N, …)."""
        return values.flatten(0, 1)[self.masked_idx]

    def scatter_masked(self, rows: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
        """(N, …) → (B, L, …)."""
        rows = rows.to(elsewhere.dtype)
        flat = elsewhere.flatten(0, 1).index_copy(0, self.masked_idx, rows)
        return flat.view_as(elsewhere)

    def scratch(self, logits: torch.Tensor) -> torch.Tensor:
        """A buffer shaped like a chunk of logits, reused across steps to avoid page faults."""
        if self._scratch is None or self._scratch.dtype != logits.dtype:
            rows = max(sum(chunk.counts) for chunk in self.chunks)
            self._scratch = logits.new_empty(rows, logits.shape[1])
        return self._scratch[: len(logits)]

    def generators(self, step: int, purpose: str, chunk: Chunk) -> list[torch.Generator]:
        """One generator per block of a chunk."""
        keys = [(seed, step) for seed in self.seeds]
        return chunk.generators(keys, purpose, self.embedding.device)

    def fresh_noise(self, step: int, chunk: Chunk, out: torch.Tensor | None = None) -> torch.Tensor:
        """ε of one chunk, (R, V), in float32 whatever the model computes in, and in the buffer `out` if it fits."""
        embedding = self.embedding
        if self.noise is not None:
            noise = self._replayed(self.noise, step)[chunk.rows].clone()
        else:
            if out is None or out.dtype != torch.float32:
                out = torch.empty(sum(chunk.counts), len(embedding), device=embedding.device)
            generators = self.generators(step, "noise", chunk)
            noise = chunk.standard_normal_(out, generators)
        return noise.to(torch.promote_types(torch.float32, embedding.dtype))

    def _replayed(self, noise: Noise, step: int) -> torch.Tensor:
        """The given noise of all masked positions, (N, V), computed once per step."""
        if self._replayed_noise[0] != step:
            shape = (*self.input_ids.shape, len(self.embedding))
            values = torch.as_tensor(noise(step, shape), device=self.embedding.device)
            self._replayed_noise = (step, self.gather_masked(values))
        return self._replayed_noise[1]

    def _keep_noisy_tokens(self, index: int, chunk: Chunk, noisy: torch.Tensor) -> None:
        if self.reads_noisy_tokens:
            self.noisy_tokens[index][chunk.rows] = noisy.argmax(1)

    @torch.no_grad()
    def first_input(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """Soft embeddings for step `index`, self-conditioned on the uniform distribution: (N, H).

        Pure noise for step 0; for a later one the noisy simplex of `tokens` (N,) that it would read.
        """
        soft = []
        for chunk in self.chunks:
            noise = self.fresh_noise(index - 1, chunk)
            signal = tokens[chunk.rows] if index else None
            noisy = noisy_simplex_(noise, signal, self._alphas_bar[index])
            self._keep_noisy_tokens(index, chunk, noisy)
            soft.append(soft_embedding(noisy.softmax(1), self.embedding))
        return (torch.cat(soft) + self.embedding.mean(0)) / 2

    @torch.no_grad()
    def read(self, state: torch.Tensor, index: int) -> torch.Tensor:
        """The backbone's hidden states at each position's left neighbour, (B, L, H); zeros at the first."""
        embeddings = self.embeddings(state, index)
        hidden = self.lm.hidden_states(embeddings, self.attention_mask)
        return torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)

    def embeddings(self, soft: torch.Tensor, index: int) -> torch.Tensor:
        """What the backbone reads, (B, L, H)."""
        time = torch.full((1,), self.times[index], dtype=torch.float64, device=soft.device)
        soft = soft + self.lm.embed_time(time)
        return self.scatter_masked(soft, self.context)

    def constrain_(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (R, V) after all edits, without the tokens that this kind of diffusion never writes."""
        return logits

    def sample_tokens(self, p: torch.Tensor, logits: torch.Tensor, index: int, chunk: Chunk) -> torch.Tensor:
        """Tokens of one chunk, (R,): argmax without top_p, else a sample from the nucleus."""
        if self.top_p is None:
            return logits.argmax(1)
        uniform = []
        generators = self.generators(index, "draw", chunk)
        for count, generator in zip(chunk.counts, generators, strict=True):
            shape = (MAX_REJECTIONS + 1, count)
            uniform.append(torch.rand(shape, generator=generator, device=p.device))
        if self.temperature != 1:
            below_max = logits - logits.amax(1, keepdim=True)
            p = (below_max / self.temperature).softmax(1)
        return sample_nucleus(p, self.top_p, torch.cat(uniform, 1))

    def next_input(
        self,
        index: int,
        chunk: Chunk,
        p: torch.Tensor | None,
        tokens: torch.Tensor,
        scratch: torch.Tensor,
    ) -> torch.Tensor | None:
        """Soft embeddings (R, H) of one chunk for the step after `index`; None after the last.

        p: (R, V) to self-condition on, None for the uniform distribution. scratch: (R, V), overwritten.
        """
        if index + 1 == self.steps:
            return None
        noise = self.fresh_noise(index, chunk, scratch)
        noisy = noisy_simplex_(noise, tokens, self._alphas_bar[index + 1])
        self._keep_noisy_tokens(index + 1, chunk, noisy)
        self_cond = 1 / len(self.embedding) if p is None else p
        p_sum = self_condition_(noisy, self_cond)
        return soft_embedding(p_sum, self.embedding) / 2


class Step:
    """One denoising step, as hooks and the body of a `for step in denoise(…)` see it.

    Everything may be read. `tokens`, `logits`, `masked_logits`, `self_condition` and `stop` may be assigned, until
    the next step is asked for. Tensors that were read are copies: changing one in place raises unless it is then
    assigned. Where V is large, `edit_logits` changes logits without ever holding all of them.

    Attributes:
        index: 0 … steps−1.
        steps: How many the run has if nothing stops it.
        t: t/T, what the model is told.
        alpha_bar: ᾱ of the noisy simplex that was read, 0 for pure noise.
        next_alpha_bar: ᾱ at which this step's tokens are noised for the next; 1 at the end.
        input_ids, span_mask, attention_mask: (B, L), the batch; attention_mask is None where there is no filler.
        masked_idx: (N,) indices of the masked positions in the flattened batch; `masked_logits` has their order.
        records: Name → tensor, (B,) or (B, L), that hooks want remembered; `hooks.Recorder` keeps them.
        stop: Ends the run after this step.
    """

    __slots__ = (
        "_edits",
        "_handed_out",
        "_hidden",
        "_logits",
        "_mean_entropy",
        "_override",
        "_phase",
        "_prediction",
        "_sampler",
        "_self_condition",
        "_top_k",
        "alpha_bar",
        "attention_mask",
        "index",
        "input_ids",
        "masked_idx",
        "next_alpha_bar",
        "records",
        "span_mask",
        "steps",
        "stop",
        "t",
    )
    ASSIGNABLE = ("tokens", "logits", "masked_logits", "self_condition", "stop")

    def __init__(self, sampler: SamplerState, index: int, state: torch.Tensor, top_k: int):
        self._sampler = sampler
        self._top_k = top_k
        self._hidden = sampler.read(state, index)
        self._logits: torch.Tensor | None = None
        self._edits: list[LogitEdit] = []
        self._override: torch.Tensor | None = None  # (B, L) assigned tokens, −1 where there are none
        self._prediction: Prediction | None = None
        self._handed_out: list[tuple[torch.Tensor, int]] = []
        self._self_condition = True
        self.index = index
        self.steps = sampler.steps
        self.t = sampler.times[index]
        self.alpha_bar = sampler.alphas_bar[index]
        self.next_alpha_bar = sampler.alphas_bar[index + 1]
        self.input_ids = sampler.input_ids
        self.span_mask = sampler.span_mask
        self.attention_mask = sampler.attention_mask
        self.masked_idx = sampler.masked_idx
        self.records: dict[str, torch.Tensor] = {}
        self.stop = False
        self._phase = "current"

    def __setattr__(self, name: str, value: Any) -> None:
        phase = getattr(self, "_phase", "new")
        if not name.startswith("_") and phase != "new":
            if name not in self.ASSIGNABLE:
                raise InputError(f"step.{name} cannot be assigned; assign {', '.join(self.ASSIGNABLE)}.")
            self._check_current(name)
        super().__setattr__(name, value)

    def _check_current(self, name: str) -> None:
        if self._phase == "over":
            raise InputError(
                f"step.{name} was changed after step {self.index} had ended; change it in a hook, or in the loop's "
                "body before the next step."
            )

    @property
    def is_last(self) -> bool:
        """Whether the run ends here, because all steps are done or `stop` is set."""
        return self.stop or self.index + 1 == self.steps

    def _copy(self, values: torch.Tensor) -> torch.Tensor:
        """`values`, remembered in order to notice an edit in place, which would change nothing."""
        if not values.is_inference():  # those have no version
            self._handed_out.append((values, values._version))
        return values

    def _take(self, values: torch.Tensor) -> torch.Tensor:
        """An assigned tensor; what was read, edited and is now assigned is not a mistake."""
        self._handed_out = [entry for entry in self._handed_out if entry[0] is not values]
        return values

    def _check_in_place_edits(self) -> None:
        if any(values._version != version for values, version in self._handed_out):
            raise InputError(
                f"A tensor read from step {self.index} was changed in place, which has no effect; assign it, as in "
                "step.tokens = tokens, or change a clone."
            )
        self._handed_out = []

    @property
    def tokens(self) -> torch.Tensor:
        """(B, L) ids: the context, and what the prediction was projected to. Can be assigned."""
        return self._copy(self.current_tokens())

    @tokens.setter
    def tokens(self, tokens: torch.Tensor) -> None:
        needed = tuple(self.span_mask.shape)
        if tokens.shape != needed:
            raise InputError(f"tokens has shape {tuple(tokens.shape)}; this run needs {needed}.")
        validation.check_ids(tokens, len(self._sampler.embedding))
        self._override = torch.where(self.span_mask, self._take(tokens), self.input_ids)

    @property
    def is_assigned(self) -> torch.Tensor:
        """(B, L) bool, where a hook has written the token."""
        if self._override is None:
            return torch.zeros_like(self.span_mask)
        return self._override >= 0

    def current_tokens(self) -> torch.Tensor:
        """`tokens`, not to be changed."""
        prediction = self.prediction()
        at_end = self._sampler.argmax_at_end and self.is_last
        rows = prediction.top_ids[:, 0] if at_end else prediction.tokens
        tokens = self._sampler.scatter_masked(rows, self.input_ids)
        if self._override is None:
            return tokens
        return torch.where(self.is_assigned, self._override, tokens)

    def set_token(self, position: int, token: int) -> None:
        """Writes one token at one position of every sequence and leaves the others as they are."""
        self._check_current("set_token")
        token = validation.check_int("token", token, 0, len(self._sampler.embedding) - 1)
        if self._override is None:
            self._override = torch.where(self.span_mask, -1, self.input_ids)
        self._override[:, position] = token

    @property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """(B, L, V), aligned with the positions they predict. Can be assigned; only masked positions count."""
        sampler = self._sampler
        hidden = self._hidden.flatten(0, 1)
        logits = sampler.lm.head(hidden).view(*self.span_mask.shape, -1)
        is_real = torch.ones_like(self.input_ids) if self.attention_mask is None else self.attention_mask
        is_first = is_real.cumsum(1) * is_real == 1
        logits.masked_fill_(is_first[..., None], 0)
        rows = torch.cat([rows for _, rows in self.logit_blocks()])
        return self._copy(sampler.scatter_masked(rows, logits))

    @logits.setter
    def logits(self, logits: torch.Tensor) -> None:
        self._replace_logits(self._sampler.gather_masked(self._take(logits)))

    @property
    @torch.no_grad()
    def masked_logits(self) -> torch.Tensor:
        """(N, V), logits of the masked positions in the order of `span_mask.nonzero()`. Can be assigned."""
        return self._copy(torch.cat([logits for _, logits in self.logit_blocks()]))

    @masked_logits.setter
    def masked_logits(self, logits: torch.Tensor) -> None:
        shape = (len(self.masked_idx), len(self._sampler.embedding))
        if logits.shape != shape:
            raise InputError(f"masked_logits has shape {tuple(logits.shape)}; this step needs {shape}.")
        self._replace_logits(self._take(logits))

    def _replace_logits(self, rows: torch.Tensor) -> None:
        self._logits = rows.detach().clone()
        self._edits = []
        self._prediction = None

    def edit_logits(self, edit: LogitEdit) -> None:
        """Call edit(logits (R, V), rows) → (R, V) on some rows of `masked_logits` at a time, after earlier edits."""
        self._check_current("edit_logits")
        self._edits = [*self._edits, edit]
        self._prediction = None

    @torch.no_grad()
    def logit_blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, logits (R, V)) of `masked_logits`, some rows of one sequence at a time."""
        hidden = self._sampler.gather_masked(self._hidden)
        for chunk in self._sampler.chunks:
            yield from chunk.split(self._chunk_logits(chunk, hidden))

    def _chunk_logits(self, chunk: Chunk, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of a chunk, (R, V), from the hidden states of all masked positions."""
        if self._logits is None:
            logits = self._sampler.lm.head(hidden[chunk.rows])
        else:
            logits = self._logits[chunk.rows].clone()
        for edit in self._edits:  # block by block: an edit's own temporaries are (R, V), too
            for block, part in chunk.split(logits):
                part.copy_(edit(part, block))
        return self._sampler.constrain_(logits)

    @property
    def self_condition(self) -> bool:
        """Whether the next step self-conditions on this prediction; False before it is read: on the uniform one."""
        return self._self_condition

    @self_condition.setter
    def self_condition(self, value: bool) -> None:
        if self._prediction is not None and value != self._self_condition:
            raise InputError(
                f"self_condition was assigned after the prediction of step {self.index} had been read; assign it "
                "first, before tokens, confidence or entropy are read."
            )
        self._self_condition = value

    def reseed(self, seed: int | Iterable[int]) -> None:
        """Draws noise and tokens from another seed, from this step on: one for every sequence, or one each."""
        self._check_current("reseed")
        self._sampler.seeds = validation.expand_seeds(seed, len(self.input_ids))
        self._prediction = None

    @property
    def argmax(self) -> torch.Tensor:
        """(B, L) most likely ids; the context's own elsewhere."""
        ids, _ = self.top(1)
        return ids[..., 0]

    @property
    def text_mask(self) -> torch.Tensor:
        """(B, L) bool: masked positions up to and including the first EOS among the most likely tokens."""
        before_end = up_to_eos(self.argmax, self._sampler.eos, self.span_mask)
        return self.span_mask & before_end

    @property
    def confidence(self) -> torch.Tensor:
        """(B, L) probability of the most likely token; 1 outside the span mask."""
        _, p = self.top(1)
        return p[..., 0]

    @property
    def entropy(self) -> torch.Tensor:
        """(B, L) entropy of the prediction in nats; 0 outside the span mask."""
        zeros = torch.zeros(self.span_mask.shape, device=self.span_mask.device)
        return self._sampler.scatter_masked(self.prediction().entropy, zeros)

    def top(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most likely tokens and their probabilities, both (B, L, k), most likely first.

        Outside the span mask the token of the context has probability 1.
        """
        k = min(validation.check_int("k", k, 1), len(self._sampler.embedding))
        if k > self._top_k:
            self._top_k = k
            self._prediction = None
        prediction = self.prediction()
        context = self.input_ids[..., None].expand(-1, -1, self._top_k)
        certain = torch.eye(1, self._top_k, device=context.device).expand(context.shape)
        ids = self._sampler.scatter_masked(prediction.top_ids, context)
        p = self._sampler.scatter_masked(prediction.top_p, certain)
        return ids[..., :k], p[..., :k]

    @torch.no_grad()
    def prediction(self) -> Prediction:
        """The record of this step's one pass over all masked positions, computed when any of it is first read."""
        if self._prediction is None:
            hidden = self._sampler.gather_masked(self._hidden)
            parts = [self._predict(chunk, hidden) for chunk in self._sampler.chunks]
            self._prediction = Prediction.concatenate(parts)
            self._mean_entropy = float(self._prediction.entropy.mean())  # synchronises the GPU, once per step
            if not math.isfinite(self._mean_entropy):
                raise FloatingPointError(
                    f"Step {self.index} produced NaN or inf logits; check the weights and any hook that edits logits."
                )
        return self._prediction

    def _predict(self, chunk: Chunk, hidden: torch.Tensor) -> Prediction:
        sampler = self._sampler
        is_edited = bool(self._edits) or self._logits is not None
        logits = self._chunk_logits(chunk, hidden)
        out = None if is_edited else sampler.scratch(logits)
        p = torch.softmax(logits, 1, out=out)
        top_p, top_ids = p.max(1, keepdim=True) if self._top_k == 1 else p.topk(self._top_k)
        tokens = sampler.sample_tokens(p, logits, self.index, chunk)
        token_p = p.gather(1, tokens[:, None])[:, 0]
        if is_edited:
            logits.nan_to_num_(neginf=0.0)  # a banned token (−∞) adds 0 to the mean logit
        entropy = _entropy(p, logits, top_p[:, 0], top_ids[:, :1])
        self_cond = p if self._self_condition else None
        next_input = sampler.next_input(self.index, chunk, self_cond, tokens, scratch=logits)
        return Prediction(tokens, token_p, top_ids, top_p, entropy, next_input)

    @property
    @torch.no_grad()
    def token_p(self) -> torch.Tensor | None:
        """(B, L) probability of each of `tokens` in the prediction, 1 on the context."""
        prediction = self.prediction()
        sampler = self._sampler
        at_end = sampler.argmax_at_end and self.is_last
        rows = prediction.top_p[:, 0] if at_end else prediction.token_p
        if self._override is not None:
            tokens = sampler.gather_masked(self.current_tokens())[:, None]
            rows = torch.cat([logits.softmax(1).gather(1, tokens[at])[:, 0] for at, logits in self.logit_blocks()])
        context = torch.ones(self.span_mask.shape, dtype=rows.dtype, device=rows.device)
        return sampler.scatter_masked(rows, context)

    @property
    def noisy_tokens(self) -> torch.Tensor | None:
        """(B, L) most likely token of each noisy simplex that the step read; None unless a hook asks for them."""
        rows = self._sampler.noisy_tokens.get(self.index)
        if rows is None:
            return None
        return self._sampler.scatter_masked(rows, self.input_ids)

    @property
    def mean_entropy(self) -> float:
        """Entropy in nats per masked position, over the whole batch."""
        self.prediction()
        return self._mean_entropy

    @torch.no_grad()
    def finish(self) -> torch.Tensor | None:
        """The next step's soft embeddings (N, H), with every edit taken in; nothing can be assigned afterwards."""
        self._check_in_place_edits()
        sampler = self._sampler
        prediction = self.prediction()
        soft = prediction.next_input
        self._phase = "over"
        if self._override is None or soft is None:
            return soft
        tokens = sampler.gather_masked(self.current_tokens())
        hidden = sampler.gather_masked(self._hidden)
        changed = tokens != prediction.tokens
        for chunk in sampler.chunks:
            if changed[chunk.rows].any():
                logits = self._chunk_logits(chunk, hidden)
                p = logits.softmax(1) if self._self_condition else None
                soft[chunk.rows] = sampler.next_input(self.index, chunk, p, tokens[chunk.rows], scratch=logits)
        return soft


def _entropy(p: torch.Tensor, logits: torch.Tensor, max_p: torch.Tensor, argmax: torch.Tensor) -> torch.Tensor:
    """H = log Z − Σ p·z, in nats, (R,), where log Z = z_max − log p_max. max_p: (R,). argmax: (R, 1)."""
    log_z = logits.gather(1, argmax)[:, 0] - max_p.log()
    mean_logit = torch.linalg.vecdot(p, logits)
    return (log_z - mean_logit).clamp(min=0)


def denoise(
    lm: SimplexDenoiser,
    batch: Mapping[str, torch.Tensor],
    steps: int | None = None,
    top_p: float | None = 0.99,
    temperature: float = 1.0,
    seed: int | Iterable[int] = 0,
    hooks: Hook | Iterable[Hook] = (),
    noise: Noise | None = None,
    start: int = 0,
    timestep_spacing: str | Iterable[float] | None = None,
    final: str = "argmax",
) -> Iterator[Step]:
    """Denoise all masked positions together; yields each `Step` as it is made.

    Args:
        lm: A simplex denoiser.
        batch: `input_ids` (B, L); `span_mask` (B, L) bool, True where the model writes; optionally `attention_mask`
            (B, L), 0 on filler that only makes rows equally long. `input_ids` inside the span mask is not read.
        steps: How many; None for 100.
        top_p: Nucleus of the projection to tokens, in (0, 1]; None for argmax.
        temperature: Divides the logits before sampling.
        seed: One for every sequence, or one each; the same seed gives the same text in any batch.
        hooks: Called on each step, in order (`hooks.Hook`).
        noise: (step, (B, L, V)) → standard normal, −1 for the start; replaces the seeded noise in tests.
        start: First step; above 0 the run begins with the tokens that `input_ids` holds inside the span mask, noised
            as that step would read them.
        timestep_spacing: "uniform", "informative" or falling times t/T (`schedule.sampling_times`); None for what
            `lm.config.timestep_spacing` says, else "uniform".
        final: "argmax" to end with the most likely tokens of the last step, as the official code shows them;
            "sample" to end with its sample.

    Yields:
        Each step; the text is `step.tokens` of the last.

    Raises:
        InputError: Before the first step.
    """
    validation.check_simplex(lm)
    config = lm.config
    if timestep_spacing is None:
        timestep_spacing = getattr(config, "timestep_spacing", "uniform")
    times = sampling_times(steps, timestep_spacing, getattr(config, "loss_curve", None))
    sampler = SamplerState(lm, batch, times, top_p, temperature, seed, final, noise)
    start = validation.check_int("start", start, 0, sampler.steps - 1)
    tokens = sampler.gather_masked(batch["input_ids"].to(lm.device))  # (N,)
    if start:
        validation.check_ids(tokens, config.vocab_size)
    return loop(sampler, validation.as_hooks(hooks), Step, start, tokens)


def loop(
    sampler: SamplerState, hooks: list[Hook], step_class: type[Step], start: int, tokens: torch.Tensor
) -> Iterator[Step]:
    """Check hooks, and return the run's steps: hooks, then the caller, then the next step."""
    for hook in hooks:
        if check := getattr(hook, "check", None):
            check(sampler.lm)
    # The largest of all, computed in the one pass whoever reads first.
    top_k = max([getattr(hook, "top_k", 1) for hook in hooks], default=1)
    top_k = min(top_k, len(sampler.embedding))
    sampler.reads_noisy_tokens = any(getattr(hook, "reads_noisy_tokens", False) for hook in hooks)

    def steps() -> Iterator[Step]:
        state = sampler.first_input(start, tokens)
        for index in range(start, sampler.steps):
            step = step_class(sampler, index, state, top_k)
            for hook in hooks:
                hook(step)
            yield step
            state = step.finish()
            if step.stop:
                return

    return steps()
