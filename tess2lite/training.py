"""The diffusion loss, and transformers' Trainer with it in place of the next-token loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Trainer

from .masking import ul2
from .schedule import TRAINING_TIMESTEPS, alpha_bar
from .simplex import noisy_simplex_, rows_per_chunk, soft_embedding, stream

Noise = Callable[[slice], torch.Tensor]


def seeded_noise(seeds: list[int], span_mask: torch.Tensor, vocabulary: int, step: int) -> tuple[Noise, list[slice]]:
    """Training noise as a function of (seed, step, example), and the slices of masked rows it comes in.

    seeds: one an example; span_mask: (B, L). Returns (slice → ε (R, V), slices).
    """
    size, blocks, start = rows_per_chunk(vocabulary, span_mask.device), {}, 0
    for seed, rows in zip(seeds, span_mask.sum(1).tolist(), strict=True):
        for number, offset in enumerate(range(0, rows, size)):
            blocks[start + offset, start + min(offset + size, rows)] = (seed, number)
        start += rows

    def noise(rows: slice) -> torch.Tensor:
        seed, number = blocks[rows.start, rows.stop]
        generator = stream(seed, step, f"train {number}", span_mask.device)
        return torch.randn(rows.stop - rows.start, vocabulary, generator=generator, device=span_mask.device)

    return noise, [slice(*block) for block in blocks]


def diffusion_loss(lm, input_ids, span_mask, t, noise: Noise, blocks, conditioned: bool, attention_mask=None):
    """Mean cross-entropy over the masked positions, as `textbook.training_logits` and `textbook.loss`, in chunks.

    input_ids, span_mask: (B, L). t: (B,) whole timesteps below T. noise, blocks: slice of masked rows → ε (R, V).
    conditioned: self-condition on a first prediction from t+1, made without gradient.
    """
    matrix = lm.embedding_matrix()  # E, (V, H); detached on the soft path, as in the official code
    soft_path = _SoftPath(lm, matrix.detach(), input_ids, span_mask, attention_mask, noise, blocks)
    with torch.no_grad():
        belief = matrix.detach().mean(0)
        if conditioned:
            later = (t + 1).clamp(max=TRAINING_TIMESTEPS - 1)
            belief = soft_path.belief(soft_path.read(later, belief, matrix))
        mixed = soft_path.mix(t, belief)
    hidden = soft_path.forward(mixed, t, matrix)
    return cross_entropy(lm.head, hidden, input_ids[span_mask], rows_per_chunk(len(matrix), matrix.device))


class _SoftPath:
    """Noisy rows of one batch into the model and back, nothing V wide kept."""

    def __init__(self, lm, matrix, input_ids, span_mask, attention_mask, noise, blocks):
        self.lm, self.matrix, self.input_ids, self.span_mask = lm, matrix, input_ids, span_mask
        self.attention_mask, self.noise, self.blocks = attention_mask, noise, blocks
        self.ids, self.sequence = input_ids[span_mask], span_mask.nonzero()[:, 0]  # (N,)
        self.alpha_bar = alpha_bar(TRAINING_TIMESTEPS).to(matrix.device)

    def mix(self, t, belief):
        """Half the noisy simplex at t, half the belief (N, H) or (H,), as embeddings: (N, H)."""
        noisy = torch.empty(len(self.ids), self.matrix.shape[1], dtype=self.matrix.dtype, device=self.matrix.device)
        level = self.alpha_bar[t][self.sequence, None]  # (N, 1)
        for rows in self.blocks:
            simplex = noisy_simplex_(self.noise(rows), self.ids[rows], level[rows].to(self.matrix.dtype))
            noisy[rows] = soft_embedding(simplex.softmax(1), self.matrix).to(noisy.dtype)
        return (noisy + belief) / 2

    def forward(self, mixed, t, matrix):
        """Hidden states that the masked positions are read from, (N, H)."""
        time = self.lm.timestep_embed((t / TRAINING_TIMESTEPS).to(matrix.dtype)[:, None])  # (B, H)
        embeddings = F.embedding(self.input_ids, matrix)  # (B, L, H)
        soft = (mixed + time[self.sequence]).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(self.span_mask[..., None], soft)
        hidden = self.lm.hidden_states(embeddings, self.attention_mask)
        return hidden[:, :-1][self.span_mask[:, 1:]]

    def read(self, t, belief, matrix):
        return self.forward(self.mix(t, belief), t, matrix)

    def belief(self, hidden):
        """p·E of the prediction, (N, H)."""
        belief = torch.empty(len(hidden), self.matrix.shape[1], dtype=self.matrix.dtype, device=hidden.device)
        for rows in self.blocks:
            p = self.lm.head(hidden[rows]).softmax(1)
            belief[rows] = soft_embedding(p, self.matrix).to(belief.dtype)
        return belief


def cross_entropy(head, hidden: torch.Tensor, targets: torch.Tensor, size: int) -> torch.Tensor:
    """Mean cross-entropy of head(hidden), `size` rows at a time; logits are made again in the backward pass."""

    def chunk(h, y):
        return F.cross_entropy(head(h), y, reduction="sum")

    starts = range(0, len(hidden), size)
    parts = [checkpoint(chunk, hidden[i : i + size], targets[i : i + size], use_reentrant=False) for i in starts]
    return torch.stack(parts).sum() / len(hidden)


class DiffusionTrainer(Trainer):
    """Trains a denoiser on packed rows of `input_ids`: UL2 masks, t uniform, self-conditioning half of the time.

    Masks, t and noise are functions of (seed, step, place in the batch).
    """

    def compute_loss(self, model, inputs, **_):
        input_ids = inputs["input_ids"]
        step, seed = self.state.global_step, self.args.seed
        draw = stream(seed, step, "masks", torch.device("cpu"))
        masks = torch.stack([ul2(input_ids.shape[1], draw) for _ in input_ids])
        t = torch.randint(TRAINING_TIMESTEPS, (len(input_ids),), generator=draw)
        conditioned = bool(torch.rand((), generator=draw) < 0.5)
        masks, t = masks.to(input_ids.device), t.to(input_ids.device)
        seeds = [(seed << 20) + row for row in range(len(input_ids))]
        lm = self.accelerator.unwrap_model(model)
        noise, blocks = seeded_noise(seeds, masks, lm.config.vocab_size, step)
        return diffusion_loss(lm, input_ids, masks, t, noise, blocks, conditioned)
