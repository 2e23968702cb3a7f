"""The diffusion loss, a chunk of rows at a time."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .chunks import make_chunks, rows_per_chunk
from .schedule import TRAINING_TIMESTEPS, alpha_bar
from .simplex import noisy_simplex_

Noise = Callable[[slice], torch.Tensor]


def seeded_noise(seed: int, examples: list[int], span_mask: torch.Tensor, vocabulary: int) -> tuple[Noise, list[slice]]:
    """Training noise as a function of (seed, example).

    Args:
        seed: Of the noise.
        examples: The number of each row.
        span_mask: (B, L) bool.
        vocabulary: V.

    Returns:
        Slice of masked rows → ε (R, V), and the slices that it comes in.
    """
    device = span_mask.device
    counts = span_mask.sum(1).tolist()
    size = rows_per_chunk(vocabulary, device)
    chunks = make_chunks(counts, size, device)
    chunk_at = {chunk.rows.start: chunk for chunk in chunks}
    keys = [(seed, example) for example in examples]

    def noise(rows: slice) -> torch.Tensor:
        chunk = chunk_at[rows.start]
        out = torch.empty(sum(chunk.counts), vocabulary, device=device)
        generators = chunk.generators(keys, "training noise", device)
        return chunk.standard_normal_(out, generators)

    blocks = [chunk.rows for chunk in chunks]
    return noise, blocks


def diffusion_loss(
    lm: Any,
    input_ids: torch.Tensor,
    span_mask: torch.Tensor,
    t: torch.Tensor,
    noise: Noise,
    blocks: list[slice],
    self_condition: bool,
    loss_weights: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Summed cross-entropy over the masked positions, as `textbook.training_logits`, in chunks.

    Args:
        lm: The denoiser.
        input_ids: (B, L).
        span_mask: (B, L) bool, True where the model must write.
        t: (B,) whole timesteps below T.
        noise: Slice of masked rows → ε (R, V).
        blocks: The slices of masked rows that noise comes in.
        self_condition: Self-condition on a first prediction from t+1, made without gradient.
        loss_weights: (B, L), the weight of each position's cross-entropy; None for 1 each.
        attention_mask: (B, L), 0 on filler; None where there is none.

    Returns:
        Σ weight · cross-entropy, a scalar.
    """
    path = _SoftPath(lm, input_ids, span_mask, blocks, attention_mask)
    with torch.no_grad():
        self_cond = path.soft_embedding.uniform  # p·E of the uniform distribution
        times = [t]
        if self_condition:
            earlier = (t + 1).clamp(max=TRAINING_TIMESTEPS - 1)
            times = [earlier, t]
        *first, soft = path.noisy(noise, times)
        if self_condition:
            hidden = path.forward(*first, self_cond, earlier)
            self_cond = path.soft_prediction(hidden)
    hidden = path.forward(soft, self_cond, t)
    weights = None
    if loss_weights is not None:
        weights = loss_weights.flatten()[path.masked_idx]  # (N,)
    size = rows_per_chunk(lm.config.vocab_size, hidden.device)
    return cross_entropy(lm.head, hidden, path.ids, size, weights)


def seeded_loss(
    lm: Any,
    input_ids: torch.Tensor,
    span_mask: torch.Tensor,
    t: torch.Tensor,
    seed: int = 0,
    example: torch.Tensor | None = None,
    self_condition: bool = False,
    **settings: Any,
) -> torch.Tensor:
    """`diffusion_loss` with noise that is a function of (seed, example).

    Args:
        lm, input_ids, span_mask, t, self_condition, settings: As in `diffusion_loss`.
        seed: Of the noise.
        example: (B,) the number of each row; None for 0 … B−1.
    """
    examples = list(range(len(input_ids))) if example is None else example.tolist()
    noise, blocks = seeded_noise(seed, examples, span_mask, lm.config.vocab_size)
    return diffusion_loss(lm, input_ids, span_mask, t, noise, blocks, self_condition, **settings)


class _SoftPath:
    """Noisy rows of one batch into the model and back; no vocabulary-sized tensor is kept."""

    def __init__(self, lm, input_ids, span_mask, blocks, attention_mask):
        self.lm = lm
        self.soft_embedding = lm.soft_embedding()  # E is detached here, as in the official code
        self.input_ids = input_ids
        self.span_mask = span_mask
        self.blocks = blocks
        self.attention_mask = attention_mask
        self.masked_idx = span_mask.flatten().nonzero()[:, 0]  # (N,), computed once: `nonzero()` synchronises the GPU
        self.ids = input_ids.flatten()[self.masked_idx]  # (N,)
        self.sequence = self.masked_idx // input_ids.shape[1]  # (N,)

    def noisy(self, noise: Noise, times: list[torch.Tensor]) -> torch.Tensor:
        """p·E of the noisy simplexes at each of `times` (B,), with the same noise: (times, N, H)."""
        uniform = self.soft_embedding.uniform  # (H,)
        precision = torch.promote_types(torch.float32, uniform.dtype)
        soft = uniform.new_empty(len(times), len(self.ids), len(uniform))
        table = alpha_bar(TRAINING_TIMESTEPS).to(uniform.device)
        alphas_bar = table[torch.stack(times)].to(precision)  # (times, B)
        alphas_bar = alphas_bar[:, self.sequence, None]  # (times, N, 1)
        for rows in self.blocks:
            sampled_noise = noise(rows)
            for i in range(len(times)):
                simplex = noisy_simplex_(sampled_noise.clone(), self.ids[rows], alphas_bar[i, rows])
                p = torch.softmax(simplex, 1, out=simplex)
                soft[i, rows] = self.soft_embedding(p)
        return soft

    def forward(self, noisy, self_cond, t):
        """Hidden states (N, H) that the masked positions are predicted from.

        noisy: (N, H). self_cond: (N, H) or (H,).
        """
        time = self.lm.embed_time(t / TRAINING_TIMESTEPS)  # (B, H)
        embeddings = self.lm.embed_context(self.input_ids)  # (B, L, H)
        soft = (noisy + self_cond) / 2 + time[self.sequence]
        soft = soft.to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(self.span_mask[..., None], soft)
        hidden = self.lm.hidden_states(embeddings, self.attention_mask)
        return hidden.flatten(0, 1)[self.masked_idx - 1]

    def soft_prediction(self, hidden):
        """p·E of the prediction, (N, H)."""
        soft = torch.empty_like(hidden, dtype=self.soft_embedding.dtype)
        for rows in self.blocks:
            logits = self.lm.head(hidden[rows])
            p = torch.softmax(logits, 1, out=logits)
            soft[rows] = self.soft_embedding(p)
        return soft


def cross_entropy(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    size: int,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Summed cross-entropy in chunks, whose logits are recomputed in the backward pass.

    Args:
        head: Hidden states → logits.
        hidden: (N, H); no rows give 0, with a gradient of 0.
        targets: (N,).
        size: Rows per chunk.
        weights: (N,), None for 1 each.
    """

    def chunk_loss(rows: slice) -> torch.Tensor:
        logits = head(hidden[rows])
        if weights is None:
            return F.cross_entropy(logits, targets[rows], reduction="sum")
        losses = F.cross_entropy(logits, targets[rows], reduction="none")
        return (weights[rows] * losses).sum()

    losses = []
    for start in range(0, max(1, len(hidden)), size):
        rows = slice(start, start + size)
        losses.append(checkpoint(chunk_loss, rows, use_reentrant=False))
    return torch.stack(losses).sum()
