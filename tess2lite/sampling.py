"""denoise(): text out of noise, one step at a time. The simplex DDPM sampler of TESS 2.

Between steps only token ids, one soft embedding a masked position and the seeds live; everything V wide
is made and dropped in chunks of rows (`simplex.py`). `generation.py` puts text around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from . import inputs
from .schedule import alpha_bar
from .simplex import TRIES, noisy_simplex_, nucleus, rows_per_chunk, self_conditioned, soft_embedding, stream


class Run:
    """What stays the same through a run: the batch, the settings, and the rows cut into blocks.

    A block is a slice of one sequence's masked positions. Noise and draws are functions of (seed, step, block),
    so a sequence gets the same ones whatever batch it is in, and any block can be made again.
    """

    def __init__(self, lm, batch, steps, top_p, temperature, seeds, noise):
        self.lm, self.steps, self.top_p, self.temperature, self.noise = lm, steps, top_p, temperature, noise
        self.input_ids, self.span_mask, self.attention_mask = batch
        self.alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar(steps)])  # index t+1; ᾱ_{−1} = 1
        self.alpha_bar = self.alpha_bar.to(lm.device)
        self.embedding = lm.embedding_matrix().detach()  # E, (V, H)
        self.known = self.embedding[self.input_ids]  # (B, L, H)
        self.places = self.span_mask.nonzero()  # (N, 2): sequence, position
        self.reseed(seeds)
        self._noise_of_step = (None, None)

    def reseed(self, seeds: list[int]) -> None:
        """From now on noise and draws of other seeds, one a sequence."""
        self.blocks = list(self._cut(seeds))

    def _cut(self, seeds) -> Iterator[tuple[int, int, slice]]:
        start, size = 0, rows_per_chunk(len(self.embedding), self.lm.device)
        for seed, rows in zip(seeds, self.span_mask.sum(1).tolist(), strict=True):
            for number, offset in enumerate(range(0, rows, size)):
                yield seed, number, slice(start + offset, start + min(offset + size, rows))
            start += rows

    def fresh_noise(self, step: int, block) -> torch.Tensor:
        """ε of one block, (R, V): drawn in float32 whatever the model computes in."""
        seed, number, rows = block
        if self.noise is None:
            shape = (rows.stop - rows.start, len(self.embedding))
            generator = stream(seed, step, f"noise {number}", self.embedding.device)
            noise = torch.randn(shape, generator=generator, device=generator.device)
        else:
            if self._noise_of_step[0] != step:
                shape = (*self.input_ids.shape, len(self.embedding))
                replayed = torch.as_tensor(self.noise(step, shape), device=self.embedding.device)
                self._noise_of_step = (step, replayed[self.span_mask])
            noise = self._noise_of_step[1][rows].clone()
        return noise.to(torch.promote_types(torch.float32, self.embedding.dtype))

    @torch.no_grad()
    def first_input(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """Soft embeddings for step `index`, self-conditioned on the uniform belief: (N, H).

        Pure noise for step 0; for a later one the noisy simplex of `tokens` (N,) that it would read.
        """
        soft = self.embedding.new_empty(len(self.places), self.embedding.shape[1])
        level = self.alpha_bar[self.steps - index] if index else torch.zeros((), device=soft.device)
        for block in self.blocks:
            noisy = noisy_simplex_(self.fresh_noise(index - 1, block), tokens[block[2]] if index else None, level)
            soft[block[2]] = soft_embedding(noisy.softmax(1), self.embedding)
        return (soft + self.embedding.mean(0)) / 2

    @torch.no_grad()
    def read(self, soft: torch.Tensor, t: int) -> torch.Tensor:
        """The backbone's hidden states at each position's left neighbour, (B, L, H); zeros at the first."""
        time = torch.tensor([t / self.steps], dtype=torch.float64, device=soft.device)
        embeddings = self.known.clone()
        embeddings[self.span_mask] = soft + self.lm.embed_time(time)
        hidden = self.lm.hidden_states(embeddings, self.attention_mask)
        return torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)

    def choose(self, p: torch.Tensor, logits: torch.Tensor, index: int, block) -> torch.Tensor:
        """Tokens of one block: argmax without top_p, else a draw from the nucleus. (R,)."""
        if self.top_p is None:
            return logits.argmax(1)
        seed, number, _ = block
        generator = stream(seed, index, f"draw {number}", p.device)
        u = torch.rand((TRIES + 1, len(p)), generator=generator, device=p.device)
        if self.temperature != 1:
            p = ((logits - logits.amax(1, keepdim=True)) / self.temperature).softmax(1)
        return nucleus(p, self.top_p, u)


class Step:
    """One denoising step. A hook, or the body of a `for step in denoise(…)`, may read all of it, replace
    `logits` (or `masked_logits`) or `tokens` by assignment (`step.tokens = …`; a tensor that was read is a copy, and
    changing it in place changes nothing), and set `stop`; the run goes on with what it finds. Where V is large,
    `edit_logits` changes them without ever holding all.

    index: 0 … steps−1. t: timestep, steps−1−index. alpha_bar: ᾱ of the noisy simplex that was read.
    input_ids, span_mask, attention_mask: (B, L), the batch; attention_mask is None where there is no filler.
    reward: (B,) of the prediction, and ascent, what was added to its logits: set by guidance.
    conditioned: whether the next step is shown this prediction beside its noisy simplex; set False before `tokens` is
    read, it is shown the uniform belief.
    """

    def __init__(self, run: Run, index: int, hidden: torch.Tensor, k: int):
        self._run, self._hidden = run, hidden
        self.index, self.t = index, run.steps - 1 - index
        # The first input is pure noise, whatever the schedule's last entry says.
        self.alpha_bar = float(run.alpha_bar[self.t + 1]) if index else 0.0
        self.input_ids, self.span_mask, self.attention_mask = run.input_ids, run.span_mask, run.attention_mask
        self.stop, self.reward, self.ascent, self.conditioned = False, None, None, True
        self._k = k
        self._logits = self._projected = self._edited = None
        self._edits: list[Callable] = []

    @property
    def tokens(self) -> torch.Tensor:
        """(B, L) ids: known ones, and what the prediction was projected to. Can be replaced."""
        if self._edited is not None:
            return self._edited.clone()
        tokens = self._run.input_ids.clone()
        tokens[self.span_mask] = self._project()["tokens"]
        return tokens

    @tokens.setter
    def tokens(self, tokens: torch.Tensor) -> None:
        if tokens.shape != self.span_mask.shape:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}; this run needs {tuple(self.span_mask.shape)}.")
        inputs.check_ids(tokens, len(self._run.embedding))
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
        logits[first] = 0
        if self._logits is not None or self._edits:
            logits[self.span_mask] = self.masked_logits
        return logits

    @logits.setter
    def logits(self, logits: torch.Tensor) -> None:
        self.masked_logits = logits[self.span_mask]

    @property
    @torch.no_grad()
    def masked_logits(self) -> torch.Tensor:
        """(N, V), logits of the masked positions in the order of `span_mask.nonzero()`. Can be replaced."""
        return torch.cat([logits for _, logits in self.logit_blocks()])

    @masked_logits.setter
    def masked_logits(self, logits: torch.Tensor) -> None:
        shape = (len(self._run.places), len(self._run.embedding))
        if logits.shape != shape:
            raise ValueError(f"masked_logits has shape {tuple(logits.shape)}; this step needs {shape}.")
        self._logits, self._edits, self._projected = logits.detach(), [], None

    def edit_logits(self, edit: Callable[[torch.Tensor, slice], torch.Tensor]) -> None:
        """edit(logits (R, V), rows) → (R, V), asked for some rows of `masked_logits` at a time, after earlier edits."""
        self._edits, self._projected = [*self._edits, edit], None

    @torch.no_grad()
    def logit_blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, logits (R, V)) of `masked_logits`, some rows at a time."""
        hidden = self._hidden[self.span_mask]
        for _, _, rows in self._run.blocks:
            yield rows, self._logits_of(rows, hidden[rows])

    def _logits_of(self, rows: slice, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._run.lm.head(hidden) if self._logits is None else self._logits[rows].clone()  # (R, V)
        for edit in self._edits:
            logits = edit(logits, rows)
        return logits

    def reseed(self, seed) -> None:
        """Noise and draws of another seed from this step on: one for every sequence, or one each."""
        self._run.reseed(inputs.one_each(seed, len(self.input_ids)))
        self._projected = None

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
        k = min(inputs.whole("k", k, 1), len(self._run.embedding))
        if k > self._k:
            self._k, self._projected = k, None
        known = self._run.input_ids[..., None].expand(-1, -1, self._k)
        sure = torch.eye(self._k, device=self.span_mask.device)[0].expand(known.shape)
        return self._spread("top_ids", known)[..., :k], self._spread("top_p", sure)[..., :k]

    @property
    def unguided(self) -> torch.Tensor | None:
        """(B, L) ids that the model held most likely before it was guided; None where it was not."""
        return self._of_ascent("likeliest", self.input_ids)

    @property
    def push(self) -> torch.Tensor | None:
        """(B, L) what guidance added to the log-probability of the most likely token there is now, in nats."""
        return self._of_ascent("push", torch.zeros(self.span_mask.shape, device=self.span_mask.device))

    def _of_ascent(self, name: str, elsewhere: torch.Tensor) -> torch.Tensor | None:
        if self.ascent is None:
            return None
        self._project()
        whole, blocks = elsewhere.clone(), getattr(self.ascent, name)
        whole[self.span_mask] = torch.cat([blocks[rows.start] for _, _, rows in self._run.blocks]).to(whole.dtype)
        return whole

    @property
    def entropy(self) -> torch.Tensor:
        """(B, L) entropy of the prediction in nats; 0 at known positions."""
        return self._spread("entropy", torch.zeros(self.span_mask.shape, device=self.span_mask.device))

    def _spread(self, name: str, elsewhere: torch.Tensor) -> torch.Tensor:
        whole = elsewhere.clone()
        whole[self.span_mask] = self._project()[name].to(whole.dtype)
        return whole

    @torch.no_grad()
    def _project(self) -> dict[str, torch.Tensor]:
        """One pass over all rows: tokens, what can be said of them, and the next step's input."""
        if self._projected is None:
            rows, device = len(self._run.places), self.span_mask.device
            self._projected = {
                "tokens": torch.empty(rows, dtype=torch.long, device=device),
                "top_ids": torch.empty(rows, self._k, dtype=torch.long, device=device),
                "top_p": torch.empty(rows, self._k, device=device),
                "entropy": torch.empty(rows, device=device),
                "soft": self._run.embedding.new_empty(rows, self._run.embedding.shape[1]),
            }
            hidden = self._hidden[self.span_mask]
            for block in self._run.blocks:
                self._project_block(block, hidden[block[2]])
        return self._projected

    def _project_block(self, block, hidden: torch.Tensor, tokens: torch.Tensor | None = None) -> None:
        run, rows, out = self._run, block[2], self._projected
        logits = self._logits_of(rows, hidden)
        p = logits.softmax(1)
        top, best = p.max(1, keepdim=True) if self._k == 1 else p.topk(self._k)  # (R, k)
        if not torch.isfinite(top).all():
            raise FloatingPointError(f"Step {self.index} predicts no finite numbers; check weights and hooks.")
        out["top_p"][rows], out["top_ids"][rows] = top, best
        # H = log Z − Σ p·z, and log Z = z_max − log p_max; a banned token (−∞) adds 0 to the sum
        log_z = logits.gather(1, best[:, :1])[:, 0] - top[:, 0].log()
        finite = logits.nan_to_num(neginf=0.0) if self._edits or self._logits is not None else logits
        out["entropy"][rows] = (log_z - torch.linalg.vecdot(p, finite)).clamp(min=0).to(out["entropy"].dtype)
        out["tokens"][rows] = run.choose(p, logits, self.index, block) if tokens is None else tokens
        del logits  # V wide: its memory is the noise's now
        if self.t > 0:
            noisy = noisy_simplex_(run.fresh_noise(self.index, block), out["tokens"][rows], run.alpha_bar[self.t])
            belief = p if self.conditioned else torch.full_like(p, 1 / p.shape[1])
            out["soft"][rows] = soft_embedding(self_conditioned(noisy, belief), run.embedding)

    @torch.no_grad()
    def finish(self) -> torch.Tensor:
        """The next step's soft embeddings (N, H), with every edit taken in."""
        projected = self._project()
        if self._edited is not None:
            tokens, hidden = self._edited[self.span_mask], self._hidden[self.span_mask]
            changed = tokens != projected["tokens"]
            for block in self._run.blocks:
                if changed[block[2]].any():
                    self._project_block(block, hidden[block[2]], tokens[block[2]])
        return projected["soft"]


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

    batch: `input_ids` (B, L); `span_mask` (B, L) bool, True where the model writes; optionally
    `attention_mask` (B, L), 0 on filler that only makes rows equally long. What input_ids holds inside the
    span mask is not read.
    top_p: nucleus of the projection to tokens, in (0, 1]; None for argmax. temperature: divides the logits of
    that draw. seed: one for every sequence, or one each; the same seed gives the same text in any batch.
    start: first step; above 0 the run begins with the tokens that input_ids holds inside the span mask, noised as
    that step would read them. hooks: callables on each step, in order; one with a `check` has
    check(lm) called first. noise: (step, (B, L, V)) → standard normal,
    −1 for the start; replaces the seeded noise in tests.

    The text is `step.tokens` of the last step. Raises ValueError or TypeError before the first step.
    """
    inputs.check_simplex(lm)
    steps = inputs.whole("steps", steps, 1)
    inputs.check_numbers(top_p, temperature)
    hooks = inputs.callables(hooks)
    for hook in filter(lambda hook: hasattr(hook, "check"), hooks):
        hook.check(lm)
    start = inputs.whole("start", start, 0, steps - 1)
    checked = inputs.check_batch(lm, batch)
    run = Run(lm, checked, steps, top_p, temperature, inputs.one_each(seed, len(checked[0])), noise)
    tokens = batch["input_ids"].to(lm.device)[run.span_mask]  # (N,)
    if start:
        inputs.check_ids(tokens, lm.config.vocab_size)
    return _loop(run, hooks, start, tokens)


def _loop(run: Run, hooks: list[Hook], start: int, tokens: torch.Tensor) -> Iterator[Step]:
    soft = run.first_input(start, tokens)
    k = max(getattr(hook, "k", 1) for hook in [None, *hooks])  # found in the one pass, whichever hook reads first
    for index in range(start, run.steps):
        step = Step(run, index, run.read(soft, run.steps - 1 - index), min(k, len(run.embedding)))
        for hook in hooks:
            hook(step)
        yield step
        soft = step.finish()
        if step.stop:
            return
