"""denoise(): text out of noise, one step at a time. The simplex DDPM sampler of TESS 2.

Between steps only token ids, one soft embedding a masked position and the seeds live; everything V wide
is made and dropped in chunks of rows (`simplex.py`). `generation.py` puts text around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from . import validation
from .chunks import Chunk, make_chunks, rows_per_chunk
from .nucleus import MAX_REJECTIONS, sample_nucleus
from .schedule import alpha_bar
from .simplex import noisy_simplex_, self_condition, soft_embedding


class SamplerState:
    """What stays the same through a run: the batch, the settings, and the masked rows cut into chunks.

    Noise and draws are functions of (seed, step, block), so a sequence gets the same ones whatever batch it is in,
    and any chunk can be made again.
    """

    def __init__(self, lm, batch, steps, top_p, temperature, seed, noise=None):
        validation.check_sampling_args(top_p, temperature)
        self.lm, self.top_p, self.temperature, self.noise = lm, top_p, temperature, noise
        self.steps = validation.check_int("steps", steps, 1)
        self.input_ids, self.span_mask, self.attention_mask = validation.check_batch(lm, batch)
        self.seeds = validation.expand_seeds(seed, len(self.input_ids))
        self.levels = [1.0, *alpha_bar(self.steps).tolist()]  # ᾱ, index t+1; ᾱ_{−1} = 1
        self.alpha_bar = torch.tensor(self.levels, dtype=torch.float64, device=lm.device)
        self.embedding = lm.embedding_matrix().detach()  # E, (V, H)
        self.known = self.embedding[self.input_ids]  # (B, L, H)
        # Masked positions of the flattened batch, (N,): found once, since a GPU must be waited for.
        self.masked_idx, self.counts = self.span_mask.flatten().nonzero()[:, 0], self.span_mask.sum(1).tolist()
        self.chunks = make_chunks(self.counts, rows_per_chunk(len(self.embedding), lm.device), lm.device)
        self._noise_of_step, self._wide = (None, None), None

    def gather_masked(self, whole: torch.Tensor) -> torch.Tensor:
        """(B, L, …) → (N, …)."""
        return whole.flatten(0, 1)[self.masked_idx]

    def scatter_masked(self, rows: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
        """(N, …) → (B, L, …)."""
        return elsewhere.flatten(0, 1).index_copy(0, self.masked_idx, rows.to(elsewhere.dtype)).view_as(elsewhere)

    def wide(self, logits: torch.Tensor) -> torch.Tensor:
        """Memory like a chunk's logits, the same in each step: new one costs a page fault for every 4 KB."""
        if self._wide is None or self._wide.dtype != logits.dtype:
            self._wide = logits.new_empty(max(sum(chunk.counts) for chunk in self.chunks), logits.shape[1])
        return self._wide[: len(logits)]

    def streams(self, step: int, purpose: str, chunk: Chunk) -> list[torch.Generator]:
        return chunk.streams([(seed, step) for seed in self.seeds], purpose, self.embedding.device)

    def fresh_noise(self, step: int, chunk: Chunk, spare: torch.Tensor | None = None) -> torch.Tensor:
        """ε of one chunk, (R, V): drawn in float32 whatever the model computes in, in memory to spare if it fits."""
        device, vocabulary = self.embedding.device, len(self.embedding)
        if self.noise is None:
            if spare is None or spare.dtype != torch.float32:
                spare = torch.empty(sum(chunk.counts), vocabulary, device=device)
            noise = chunk.standard_normal_(spare, self.streams(step, "noise", chunk))
        else:
            if self._noise_of_step[0] != step:
                replayed = torch.as_tensor(self.noise(step, (*self.input_ids.shape, vocabulary)), device=device)
                self._noise_of_step = (step, self.gather_masked(replayed))
            noise = self._noise_of_step[1][chunk.rows].clone()
        return noise.to(torch.promote_types(torch.float32, self.embedding.dtype))

    @torch.no_grad()
    def first_input(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """Soft embeddings for step `index`, self-conditioned on the uniform belief: (N, H).

        Pure noise for step 0; for a later one the noisy simplex of `tokens` (N,) that it would read.
        """
        level, soft = self.alpha_bar[self.steps - index] if index else torch.zeros(()), []
        for chunk in self.chunks:
            noisy = noisy_simplex_(self.fresh_noise(index - 1, chunk), tokens[chunk.rows] if index else None, level)
            soft.append(soft_embedding(noisy.softmax(1), self.embedding))
        return (torch.cat(soft) + self.embedding.mean(0)) / 2

    @torch.no_grad()
    def read(self, state: torch.Tensor, t: int) -> torch.Tensor:
        """The backbone's hidden states at each position's left neighbour, (B, L, H); zeros at the first."""
        hidden = self.lm.hidden_states(self.embeddings(state, t), self.attention_mask)
        return torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)

    def embeddings(self, soft: torch.Tensor, t: int) -> torch.Tensor:
        """What the backbone reads, (B, L, H)."""
        time = torch.full((1,), t / self.steps, dtype=torch.float64, device=soft.device)
        return self.scatter_masked(soft + self.lm.embed_time(time), self.known)

    def choose(self, p: torch.Tensor, logits: torch.Tensor, index: int, chunk: Chunk) -> torch.Tensor:
        """Tokens of one chunk: argmax without top_p, else a draw from the nucleus. (R,)."""
        if self.top_p is None:
            return logits.argmax(1)
        draws = zip(chunk.counts, self.streams(index, "draw", chunk), strict=True)
        u = torch.cat(
            [torch.rand((MAX_REJECTIONS + 1, n), generator=stream, device=p.device) for n, stream in draws], 1
        )
        if self.temperature != 1:
            p = ((logits - logits.amax(1, keepdim=True)) / self.temperature).softmax(1)
        return sample_nucleus(p, self.top_p, u)


class Step:
    """One denoising step. A hook, or the body of a `for step in denoise(…)`, may read all of it, replace
    `logits` (or `masked_logits`) or `tokens` by assignment (`step.tokens = …`; a tensor that was read is a copy, and
    changing it in place changes nothing), and set `stop`; the run goes on with what it finds. Where V is large,
    `edit_logits` changes them without ever holding all.

    index: 0 … steps−1. t: timestep, steps−1−index. alpha_bar: ᾱ of the noisy simplex that was read.
    input_ids, span_mask, attention_mask: (B, L), the batch; attention_mask is None where there is no filler.
    reward: (B,) of the prediction, and ascent, what was added to its logits: set by guidance.
    self_condition: whether the next step is shown this prediction beside its noisy simplex; set False before `tokens`
    is read, it is shown the uniform belief.
    """

    def __init__(self, run: SamplerState, index: int, state: torch.Tensor, k: int):
        self._run, self._k = run, k
        self.index, self.t = index, run.steps - 1 - index
        self._hidden = run.read(state, self.t)
        # The first input is pure noise, whatever the schedule's last entry says.
        self.alpha_bar = run.levels[self.t + 1] if index else 0.0
        self.input_ids, self.span_mask, self.attention_mask = run.input_ids, run.span_mask, run.attention_mask
        self.stop, self.reward, self.ascent, self.self_condition = False, None, None, True
        self._logits = self._projected = self._edited = None
        self._edits: list[Callable] = []

    @property
    def tokens(self) -> torch.Tensor:
        """(B, L) ids: known ones, and what the prediction was projected to. Can be replaced."""
        if self._edited is not None:
            return self._edited.clone()
        return self._spread("tokens", self.input_ids)

    @tokens.setter
    def tokens(self, tokens: torch.Tensor) -> None:
        if tokens.shape != self.span_mask.shape:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}; this run needs {tuple(self.span_mask.shape)}.")
        validation.check_ids(tokens, len(self._run.embedding))
        self._edited = torch.where(self.span_mask, tokens, self._run.input_ids)

    @property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """(B, L, V), aligned with the positions they speak of. Can be replaced; only masked positions count."""
        run = self._run
        logits = run.lm.head(self._hidden.flatten(0, 1)).view(*self._hidden.shape[:2], -1)
        first = torch.zeros_like(self.span_mask)
        first[:, 0] = True
        if run.attention_mask is not None:
            first |= run.attention_mask.bool() & (run.attention_mask.cumsum(1) == 1)
        logits.masked_fill_(first[..., None], 0)
        return run.scatter_masked(self.masked_logits, logits) if self._logits is not None or self._edits else logits

    @logits.setter
    def logits(self, logits: torch.Tensor) -> None:
        self.masked_logits = self._run.gather_masked(logits)

    @property
    @torch.no_grad()
    def masked_logits(self) -> torch.Tensor:
        """(N, V), logits of the masked positions in the order of `span_mask.nonzero()`. Can be replaced."""
        return torch.cat([logits for _, logits in self.logit_blocks()])

    @masked_logits.setter
    def masked_logits(self, logits: torch.Tensor) -> None:
        shape = (len(self._run.masked_idx), len(self._run.embedding))
        if logits.shape != shape:
            raise ValueError(f"masked_logits has shape {tuple(logits.shape)}; this step needs {shape}.")
        self._logits, self._edits, self._projected = logits.detach(), [], None

    def edit_logits(self, edit: Callable[[torch.Tensor, slice], torch.Tensor]) -> None:
        """edit(logits (R, V), rows) → (R, V), asked for some rows of `masked_logits` at a time, after earlier edits."""
        self._edits, self._projected = [*self._edits, edit], None

    @torch.no_grad()
    def logit_blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, logits (R, V)) of `masked_logits`, some rows of one sequence at a time."""
        hidden = self._run.gather_masked(self._hidden)
        for chunk in self._run.chunks:
            yield from chunk.split(self._logits_of(chunk, hidden))

    def _logits_of(self, chunk: Chunk, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of a chunk, (R, V), from the hidden states of all masked positions."""
        rows = chunk.rows
        logits = self._run.lm.head(hidden[rows]) if self._logits is None else self._logits[rows].clone()
        for edit in self._edits:  # in blocks: what an edit makes is V wide, too
            for block, part in chunk.split(logits):
                part.copy_(edit(part, block))
        return logits

    def reseed(self, seed) -> None:
        """Noise and draws of another seed from this step on: one for every sequence, or one each."""
        self._run.seeds, self._projected = validation.expand_seeds(seed, len(self.input_ids)), None

    @property
    def argmax(self) -> torch.Tensor:
        """(B, L) ids the model holds most likely; known ids elsewhere."""
        return self.top(1)[0][..., 0]

    @property
    def text_mask(self) -> torch.Tensor:
        """(B, L) bool: written positions up to the first EOS the model holds most likely; what follows is no text."""
        eos = self._run.lm.config.eos_token_id
        ends = torch.isin(self.argmax, torch.tensor([] if eos is None else eos, device=self.span_mask.device))
        ends = (ends & self.span_mask).long()
        return self.span_mask & (ends.cumsum(1) - ends == 0)

    @property
    def confidence(self) -> torch.Tensor:
        """(B, L) probability of the most likely token; 1 at known positions."""
        return self.top(1)[1][..., 0]

    def top(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k likeliest tokens of the prediction and their probabilities, both (B, L, k), falling.

        At known positions the known token has probability 1.
        """
        k = min(validation.check_int("k", k, 1), len(self._run.embedding))
        if k > self._k:
            self._k, self._projected = k, None
        known = self._run.input_ids[..., None].expand(-1, -1, self._k)
        sure = torch.eye(self._k, device=self.span_mask.device)[0].expand(known.shape)
        return self._spread("top_ids", known)[..., :k], self._spread("top_p", sure)[..., :k]

    @property
    def argmax_before_guidance(self) -> torch.Tensor | None:
        """(B, L) ids that the model held most likely before it was guided; None where it was not."""
        return self._of_ascent("argmax_before_guidance", self.input_ids)

    @property
    def logprob_gain(self) -> torch.Tensor | None:
        """(B, L) what guidance added to the log-probability of the most likely token there is now, in nats."""
        return self._of_ascent("logprob_gain", torch.zeros(self.span_mask.shape, device=self.span_mask.device))

    def _of_ascent(self, name: str, elsewhere: torch.Tensor) -> torch.Tensor | None:
        if self.ascent is None:
            return None
        self._project()
        return self._run.scatter_masked(torch.cat(list(getattr(self.ascent, name).values())), elsewhere)

    @property
    def entropy(self) -> torch.Tensor:
        """(B, L) entropy of the prediction in nats; 0 at known positions."""
        return self._spread("entropy", torch.zeros(self.span_mask.shape, device=self.span_mask.device))

    def _spread(self, name: str, elsewhere: torch.Tensor) -> torch.Tensor:
        return self._run.scatter_masked(self._project()[name], elsewhere)

    @torch.no_grad()
    def _project(self) -> dict[str, torch.Tensor]:
        """One pass over all rows: tokens, what can be said of them, and the next step's input."""
        if self._projected is None:
            hidden = self._run.gather_masked(self._hidden)
            parts = [self._project_chunk(chunk, hidden) for chunk in self._run.chunks]
            self._projected = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            if not torch.isfinite(self._projected["top_p"]).all():
                raise FloatingPointError(f"Step {self.index} predicts no finite numbers; check weights and hooks.")
        return self._projected

    def _project_chunk(self, chunk: Chunk, hidden: torch.Tensor, tokens=None) -> dict[str, torch.Tensor]:
        run, edited = self._run, self._edits or self._logits is not None
        logits = self._logits_of(chunk, hidden)
        p = logits.softmax(1) if edited else torch.softmax(logits, 1, out=run.wide(logits))
        top, best = p.max(1, keepdim=True) if self._k == 1 else p.topk(self._k)  # (R, k)
        tokens = run.choose(p, logits, self.index, chunk) if tokens is None else tokens
        # H = log Z − Σ p·z, and log Z = z_max − log p_max; a banned token (−∞) adds 0 to the sum
        log_z = logits.gather(1, best[:, :1])[:, 0] - top[:, 0].log()
        finite = logits.nan_to_num_(neginf=0.0) if edited else logits
        entropy = (log_z - torch.linalg.vecdot(p, finite)).clamp(min=0)
        kept = self._kept(chunk, p, tokens, logits)
        return {"tokens": tokens, "top_ids": best, "top_p": top, "entropy": entropy, **kept}

    def _kept(self, chunk: Chunk, p: torch.Tensor, tokens: torch.Tensor, spare: torch.Tensor) -> dict:
        """What the next step reads. spare: memory (R, V) that nobody needs any more."""
        run = self._run
        if self.t == 0:
            return {}
        noisy = noisy_simplex_(run.fresh_noise(self.index, chunk, spare), tokens, run.alpha_bar[self.t])
        belief = p if self.self_condition else 1 / p.shape[1]
        return {"soft": soft_embedding(self_condition(noisy, belief), run.embedding) / 2}

    @torch.no_grad()
    def finish(self) -> torch.Tensor | None:
        """The next step's soft embeddings (N, H), with every edit taken in."""
        soft = self._project().get("soft")
        if self._edited is not None and soft is not None:
            tokens, hidden = self._run.gather_masked(self._edited), self._run.gather_masked(self._hidden)
            changed = tokens != self._projected["tokens"]
            for chunk in self._run.chunks:
                if changed[chunk.rows].any():
                    soft[chunk.rows] = self._project_chunk(chunk, hidden, tokens[chunk.rows])["soft"]
        return soft


Hook = Callable[[Step], None]


def denoise(
    lm,
    batch: Mapping[str, torch.Tensor],
    steps: int = 100,
    top_p: float | None = 0.99,
    temperature: float = 1.0,
    seed: int | Iterable[int] = 0,
    hooks: Iterable[Hook] = (),
    noise: Callable | None = None,
    start: int = 0,
) -> Iterator[Step]:
    """Denoise all masked positions together, in `steps` steps; yields each `Step` as it is made.

    batch: `input_ids` (B, L); `span_mask` (B, L) bool, True where the model writes; optionally `attention_mask` (B, L),
    0 on filler that only makes rows equally long. What input_ids holds inside the span mask is not read.
    top_p: nucleus of the projection to tokens, in (0, 1]; None for argmax. temperature: divides the logits of
    that draw. seed: one for every sequence, or one each; the same seed gives the same text in any batch.
    start: first step; above 0 the run begins with the tokens that input_ids holds inside the span mask, noised as
    that step would read them. hooks: callables on each step, in order; one with a `check` has check(lm) called first.
    noise: (step, (B, L, V)) → standard normal, −1 for the start; replaces the seeded noise in tests.

    The text is `step.tokens` of the last step. Raises ValueError or TypeError before the first step.
    """
    validation.check_simplex(lm)
    run, hooks = SamplerState(lm, batch, steps, top_p, temperature, seed, noise), validation.as_hooks(hooks)
    for hook in filter(lambda hook: hasattr(hook, "check"), hooks):
        hook.check(lm)
    start = validation.check_int("start", start, 0, run.steps - 1)
    tokens = run.gather_masked(batch["input_ids"].to(lm.device))  # (N,)
    if start:
        validation.check_ids(tokens, lm.config.vocab_size)
    return loop(run, hooks, Step, start, tokens)


def loop(run: SamplerState, hooks: list[Hook], kind: type[Step], start: int, tokens: torch.Tensor) -> Iterator[Step]:
    state = run.first_input(start, tokens)
    k = max(getattr(hook, "k", 1) for hook in [None, *hooks])  # found in the one pass, whichever hook reads first
    for index in range(start, run.steps):
        step = kind(run, index, state, min(k, len(run.embedding)))
        for hook in hooks:
            hook(step)
        yield step
        state = step.finish()
        if step.stop:
            return
