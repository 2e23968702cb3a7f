"""The diffusion loss, a chunk of rows at a time."""

from __future__ import annotations

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
    """Training noise as a function of (seed, example), and the slices of masked rows it comes in.

    examples: the number of each row of span_mask (B, L). Returns (slice → ε (R, V), slices).
    """
    device = span_mask.device
    chunks = make_chunks(span_mask.sum(1).tolist(), rows_per_chunk(vocabulary, device), device)
    starting, keys = {chunk.rows.start: chunk for chunk in chunks}, [(seed, example) for example in examples]

    def noise(rows: slice) -> torch.Tensor:
        chunk = starting[rows.start]
        out = torch.empty(sum(chunk.counts), vocabulary, device=device)
        return chunk.standard_normal_(out, chunk.generators(keys, "training noise", device))

    return noise, [chunk.rows for chunk in chunks]


def diffusion_loss(
    lm,
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
        belief = path.soft_embedding.mean()
        times = [(t + 1).clamp(max=TRAINING_TIMESTEPS - 1), t] if self_condition else [t]
        *first, soft = path.noisy(noise, times)
        if self_condition:
            belief = path.belief(path.forward(*first, belief, times[0]))
    hidden = path.forward(soft, belief, t)
    weights = None if loss_weights is None else loss_weights.flatten()[path.masked_idx]  # (N,)
    return cross_entropy(lm.head, hidden, path.ids, rows_per_chunk(lm.config.vocab_size, hidden.device), weights)


def seeded_loss(
    lm: Any,
    input_ids: torch.Tensor,
    span_mask: torch.Tensor,
    t: torch.Tensor,
    seed: int = 0,
    example: torch.Tensor | None = None,
    self_condition: bool = False,
    loss_weights: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`diffusion_loss` with noise that is a function of (seed, example).

    Args:
        lm, input_ids, span_mask, t, self_condition, loss_weights, attention_mask: As of `diffusion_loss`.
        seed: Of the noise.
        example: (B,) the number of each row; None for 0 … B−1.
    """
    examples = list(range(len(input_ids))) if example is None else example.tolist()
    noise, blocks = seeded_noise(seed, examples, span_mask, lm.config.vocab_size)
    return diffusion_loss(
        lm, input_ids, span_mask, t, noise, blocks, self_condition, loss_weights, attention_mask
    )  # fmt: skip


class _SoftPath:
    """Noisy rows of one batch into the model and back; no vocabulary-sized tensor is kept."""

    def __init__(self, lm, input_ids, span_mask, blocks, attention_mask):
        self.lm = lm
        self.soft_embedding = lm.soft_embedding()  # E is detached here, as in the official code
        self.input_ids = input_ids
        self.span_mask = span_mask
        self.blocks = blocks
        self.attention_mask = attention_mask
        self.masked_idx = span_mask.flatten().nonzero()[:, 0]  # (N,), found once: a GPU must be waited for
        self.ids, self.sequence = input_ids.flatten()[self.masked_idx], self.masked_idx // input_ids.shape[1]  # (N,)

    def noisy(self, noise: Noise, times) -> torch.Tensor:
        """p·E of the noisy simplexes at each of `times` (B,), with the same noise: (times, N, H)."""
        matrix = self.soft_embedding.matrix
        soft = matrix.new_empty(len(times), len(self.ids), matrix.shape[1])
        levels = alpha_bar(TRAINING_TIMESTEPS).to(matrix.device)[torch.stack(times)][:, self.sequence, None]
        levels = levels.to(torch.promote_types(torch.float32, matrix.dtype))  # (times, N, 1)
        for rows in self.blocks:
            drawn = noise(rows)
            for out, level in zip(soft, levels, strict=True):
                simplex = noisy_simplex_(drawn.clone(), self.ids[rows], level[rows])
                out[rows] = self.soft_embedding(torch.softmax(simplex, 1, out=simplex))
        return soft

    def forward(self, noisy, belief, t):
        """Hidden states that the masked positions are read from, (N, H), for their noisy rows and the belief."""
        time = self.lm.embed_time(t / TRAINING_TIMESTEPS)  # (B, H)
        embeddings = self.lm.embed_known(self.input_ids)  # (B, L, H)
        soft = ((noisy + belief) / 2 + time[self.sequence]).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(self.span_mask[..., None], soft)
        hidden = self.lm.hidden_states(embeddings, self.attention_mask)
        return hidden.flatten(0, 1)[self.masked_idx - 1]

    def belief(self, hidden):
        """p·E of the prediction, (N, H)."""
        belief = torch.empty_like(hidden, dtype=self.soft_embedding.matrix.dtype)
        for rows in self.blocks:
            logits = self.lm.head(hidden[rows])
            belief[rows] = self.soft_embedding(torch.softmax(logits, 1, out=logits))
        return belief


def cross_entropy(head, hidden: torch.Tensor, targets: torch.Tensor, size: int, weights=None) -> torch.Tensor:
    """Summed cross-entropy of head(hidden), `size` rows at a time; logits are made again in the backward pass.

    hidden: (N, H). targets: (N,). weights: (N,), None for 1 each. No rows give 0, with a gradient of 0.
    """

    def chunk(rows):
        if weights is None:
            return F.cross_entropy(head(hidden[rows]), targets[rows], reduction="sum")
        return (weights[rows] * F.cross_entropy(head(hidden[rows]), targets[rows], reduction="none")).sum()

    blocks = [slice(start, start + size) for start in range(0, max(1, len(hidden)), size)]
    return torch.stack([checkpoint(chunk, rows, use_reentrant=False) for rows in blocks]).sum()
