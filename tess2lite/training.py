"""The diffusion loss, and transformers' Trainer with it in place of the next-token loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Trainer

from .data import Rows
from .masking import after, prefix, ul2
from .schedule import TRAINING_TIMESTEPS, alpha_bar
from .simplex import cut, noisy_simplex_, rows_per_chunk, soft_embedding, stream

Noise = Callable[[slice], torch.Tensor]


def seeded_noise(seed: int, examples: list[int], span_mask: torch.Tensor, vocabulary: int) -> tuple[Noise, list[slice]]:
    """Training noise as a function of (seed, example), and the slices of masked rows it comes in.

    examples: the number of each row of span_mask (B, L). Returns (slice → ε (R, V), slices).
    """
    device = span_mask.device
    chunks = cut(span_mask.sum(1).tolist(), rows_per_chunk(vocabulary, device), device)
    starting, keys = {chunk.rows.start: chunk for chunk in chunks}, [(seed, example) for example in examples]

    def noise(rows: slice) -> torch.Tensor:
        chunk = starting[rows.start]
        out = torch.empty(sum(chunk.counts), vocabulary, device=device)
        return chunk.standard_normal_(out, chunk.streams(keys, "training noise", device))

    return noise, [chunk.rows for chunk in chunks]


def diffusion_loss(lm, input_ids, span_mask, t, noise: Noise, blocks, conditioned: bool):
    """Summed cross-entropy over the masked positions, as `textbook.training_logits`, in chunks.

    input_ids, span_mask: (B, L). t: (B,) whole timesteps below T. noise, blocks: slice of masked rows → ε (R, V).
    conditioned: self-condition on a first prediction from t+1, made without gradient.
    """
    matrix = lm.embedding_matrix()  # E, (V, H); detached on the soft path, as in the official code
    path = _SoftPath(lm, matrix.detach(), input_ids, span_mask, blocks)
    with torch.no_grad():
        belief = matrix.detach().mean(0)
        times = [(t + 1).clamp(max=TRAINING_TIMESTEPS - 1), t] if conditioned else [t]
        *first, soft = path.noisy(noise, times)
        if conditioned:
            belief = path.belief(path.forward(*first, belief, times[0], matrix))
    hidden = path.forward(soft, belief, t, matrix)
    return cross_entropy(lm.head, hidden, path.ids, rows_per_chunk(len(matrix), matrix.device))


class _SoftPath:
    """Noisy rows of one batch into the model and back, nothing V wide kept."""

    def __init__(self, lm, matrix, input_ids, span_mask, blocks):
        self.lm, self.matrix, self.input_ids, self.span_mask, self.blocks = lm, matrix, input_ids, span_mask, blocks
        self.places = span_mask.flatten().nonzero()[:, 0]  # (N,), found once: a GPU must be waited for
        self.ids, self.sequence = input_ids.flatten()[self.places], self.places // input_ids.shape[1]  # (N,)

    def noisy(self, noise: Noise, times) -> torch.Tensor:
        """p·E of the noisy simplexes at each of `times` (B,), with the same noise: (times, N, H)."""
        matrix = self.matrix
        soft = matrix.new_empty(len(times), len(self.ids), matrix.shape[1])
        levels = alpha_bar(TRAINING_TIMESTEPS).to(matrix.device)[torch.stack(times)][:, self.sequence, None]
        levels = levels.to(torch.promote_types(torch.float32, matrix.dtype))  # (times, N, 1)
        for rows in self.blocks:
            drawn = noise(rows)
            for out, level in zip(soft, levels, strict=True):
                simplex = noisy_simplex_(drawn.clone(), self.ids[rows], level[rows])
                out[rows] = soft_embedding(torch.softmax(simplex, 1, out=simplex), matrix)
        return soft

    def forward(self, noisy, belief, t, matrix):
        """Hidden states that the masked positions are read from, (N, H), for their noisy rows and the belief."""
        time = self.lm.embed_time(t / TRAINING_TIMESTEPS)  # (B, H)
        embeddings = F.embedding(self.input_ids, matrix)  # (B, L, H)
        soft = ((noisy + belief) / 2 + time[self.sequence]).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(self.span_mask[..., None], soft)
        hidden = self.lm.hidden_states(embeddings, None)
        return hidden.flatten(0, 1)[self.places - 1]

    def belief(self, hidden):
        """p·E of the prediction, (N, H)."""
        belief = self.matrix.new_empty(len(hidden), self.matrix.shape[1])
        for rows in self.blocks:
            logits = self.lm.head(hidden[rows])
            belief[rows] = soft_embedding(torch.softmax(logits, 1, out=logits), self.matrix)
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


@dataclass
class DiffusionCollator:
    """Rows of ids → a batch with masks and timesteps, each a function of (seed, example).

    masking: "ul2" or "prefix" (`masking.py`), "all" but the first token, or "given" where rows bring their own
    `span_mask`, as chats do.
    labels, as transformers' Trainer counts them: ids under the mask, −100 elsewhere.
    """

    masking: str
    seed: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])  # (B, L)
        masks, times = zip(*(self._drawn(row) for row in rows), strict=True)
        span_mask = torch.stack(masks)
        if span_mask[:, 0].any():
            raise ValueError("A span mask covers a row's first token, which nothing stands before to be read from.")
        return {
            "input_ids": ids,
            "span_mask": span_mask,
            "t": torch.stack(times),  # (B,)
            "example": torch.tensor([row["example"] for row in rows]),
            "labels": ids.masked_fill(~span_mask, -100),
        }

    def _drawn(self, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
        generator = stream(self.seed, row["example"], "mask and time", torch.device("cpu"))
        t = torch.randint(TRAINING_TIMESTEPS, (), generator=generator)
        if self.masking == "given":
            return torch.tensor(row["span_mask"]), t
        length = len(row["input_ids"])
        if self.masking == "all":
            return after(length, 1), t
        return {"ul2": ul2, "prefix": prefix}[self.masking](length, generator), t


WHOLE = "whole"  # marks a checkpoint that was saved to its end


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole; ones that a kill cut short are passed over."""
    whole = {
        int(path.parent.name.split("-")[1]): str(path.parent) for path in Path(folder).glob(f"checkpoint-*/{WHOLE}")
    }
    return whole[max(whole)] if whole else None


GRID = tuple(range(250, TRAINING_TIMESTEPS, 500))  # evaluation timesteps
GRID_SEED = 0  # of evaluation masks and noise, whatever seed a run was trained with


class WholeCheckpoints:
    """Marks a Trainer's checkpoint when all of it is saved, so that one cut short by a kill is not taken for one."""

    def _save_checkpoint(self, *args):
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / WHOLE).unlink(missing_ok=True)  # until it is whole again
        super()._save_checkpoint(*args)
        if self.args.should_save:  # last of all: a checkpoint without it was cut short
            (folder / WHOLE).touch()


class DiffusionTrainer(WholeCheckpoints, Trainer):
    """transformers' Trainer on the diffusion loss: T 5000, self-conditioning half of the time.

    Give it `Rows` or `data.endless` and a `DiffusionCollator`. All randomness is a function of (seed, example), the
    self-conditioning coin of (seed, step): a run resumes exactly, on one process or several.
    """

    grid_masking = "ul2"

    def __init__(self, *args, self_conditioning: float = 0.5, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:  # transformers would split batches over threads, which a forward by function cannot
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs; start it with `accelerate launch`, one process a GPU, "
                "or let it see one: CUDA_VISIBLE_DEVICES=0."
            )
        self.self_conditioning = self_conditioning
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the whole batch's masked positions

    def _get_train_sampler(self, *_):
        rows = self.train_dataset
        return torch.utils.data.SequentialSampler(rows) if isinstance(rows, Rows) else None  # shuffled already

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        coin = torch.rand((), generator=stream(self.args.seed, self.state.global_step, "coin", torch.device("cpu")))
        loss = self._batch_loss(model, inputs, bool(coin < self.self_conditioning), self.args.seed)
        count = (inputs["labels"] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / count
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}; what was saved before is whole. "
                "Start anew in another output with a lower learning rate."
            )
        # DDP averages over processes what is already divided by the count over all of them.
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    def _batch_loss(self, model, inputs, conditioned: bool, seed: int) -> torch.Tensor:
        ids, mask = inputs["input_ids"], inputs["span_mask"]

        def run(lm):
            noise, blocks = seeded_noise(seed, inputs["example"].tolist(), mask, lm.config.vocab_size)
            return diffusion_loss(lm, ids, mask, inputs["t"], noise, blocks, conditioned)

        return model(run=run)  # through the wrappers: DDP must see a forward pass

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss at each t of a fixed grid, with masks and noise that are always the same, self-conditioned unless
        the run never was.

        Masks are `grid_masking`'s, whatever the run was trained on, or the rows' own where they bring some.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        self.model.eval()
        metrics = {f"{metric_key_prefix}_{name}": loss for name, loss in self._measured(rows).items()}
        self.model.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured(self, rows) -> dict[str, float]:
        masked = DiffusionCollator("given" if "span_mask" in rows[0] else self.grid_masking, GRID_SEED)

        def at(t):
            return lambda some: masked(some) | {"t": torch.full((len(some),), t)}

        losses = {t: self._mean_loss(rows, at(t)) for t in GRID}
        return {"loss": sum(losses.values()) / len(losses)} | {f"loss_at_{t}": loss for t, loss in losses.items()}

    def _mean_loss(self, rows, collate) -> float:
        """Over all labels of all rows, however they are cut into batches."""
        total = count = 0
        for start in range(0, len(rows), self.args.per_device_eval_batch_size):
            some = range(start, min(start + self.args.per_device_eval_batch_size, len(rows)))
            inputs = self._prepare_inputs(collate([rows[j] for j in some]))
            with self.compute_loss_context_manager():
                total += float(self._batch_loss(self.model, inputs, self.self_conditioning > 0, GRID_SEED))
            count += int((inputs["labels"] != -100).sum())
        return total / count
