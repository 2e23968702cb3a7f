"""transformers' Trainer with the diffusion loss in place of the next-token loss, and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Trainer

from ..chunks import generator_for
from ..loss import diffusion_loss, seeded_noise
from ..schedule import TRAINING_TIMESTEPS
from ..span_masks import after, prefix, ul2
from .data import Rows


@dataclass
class DiffusionCollator:
    """Rows of ids → a batch with masks and timesteps, each a function of (seed, example).

    masking: "ul2" or "prefix" (`span_masks.py`), "all" but the first token, or "given" where rows bring their own
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
        generator = generator_for(self.seed, row["example"], "mask and time", torch.device("cpu"))
        t = torch.randint(TRAINING_TIMESTEPS, (), generator=generator)
        if self.masking == "given":
            return torch.tensor(row["span_mask"]), t
        length = len(row["input_ids"])
        if self.masking == "all":
            return after(length, 1), t
        return {"ul2": ul2, "prefix": prefix}[self.masking](length, generator), t


COMPLETE = "whole"  # marks a checkpoint that was saved to its end


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole; ones that a kill cut short are passed over."""
    whole = {
        int(path.parent.name.split("-")[1]): str(path.parent) for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")
    }
    return whole[max(whole)] if whole else None


GRID = tuple(range(250, TRAINING_TIMESTEPS, 500))  # evaluation timesteps

GRID_SEED = 0  # of evaluation masks and noise, whatever seed a run was trained with


def _total_weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Σ of a batch's loss weights: the number of labels where it brings none."""
    counted = batch["labels"] != -100
    return (batch["loss_weights"] * counted).sum() if "loss_weights" in batch else counted.sum()


class WholeCheckpoints:
    """Marks a Trainer's checkpoint when all of it is saved, so that one cut short by a kill is not taken for one."""

    def _save_checkpoint(self, *args):
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / COMPLETE).unlink(missing_ok=True)  # until it is whole again
        super()._save_checkpoint(*args)
        if self.args.should_save:  # last of all: a checkpoint without it was cut short
            (folder / COMPLETE).touch()


class DiffusionTrainer(WholeCheckpoints, Trainer):
    """transformers' Trainer on the diffusion loss: T 5000, self-conditioning half of the time.

    Give it `Rows` or `data.endless` and a `DiffusionCollator`, or a collator of your own. All randomness is a
    function of (seed, example), the self-conditioning coin of (seed, step): a run resumes exactly, on one process or
    several.

    A batch has `input_ids` (B, L), `span_mask` (B, L) bool, `t` (B,) whole timesteps, `example` (B,) row numbers and
    `labels` (B, L), −100 outside the span mask. It may have `loss_weights` (B, L), by which the cross-entropies are
    averaged over the whole batch (1 each without it), and `attention_mask` (B, L), 0 on filler.
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

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """What the summed loss is divided by: the weights of all accumulated batches on all processes."""
        if not batch_samples or "loss_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = sum(_total_weight(batch) for batch in batch_samples).to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        coin = torch.rand(
            (), generator=generator_for(self.args.seed, self.state.global_step, "coin", torch.device("cpu"))
        )
        loss = self._batch_loss(model, inputs, bool(coin < self.self_conditioning), self.args.seed)
        loss = loss / (_total_weight(inputs) if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}; what was saved before is whole. "
                "Start anew in another output with a lower learning rate."
            )
        # DDP averages over processes what is already divided by the count over all of them.
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    def _batch_loss(self, model, inputs, self_condition: bool, seed: int) -> torch.Tensor:
        ids, mask = inputs["input_ids"], inputs["span_mask"]

        def run(lm):
            noise, blocks = seeded_noise(seed, inputs["example"].tolist(), mask, lm.config.vocab_size)
            weights, attention_mask = inputs.get("loss_weights"), inputs.get("attention_mask")
            return diffusion_loss(lm, ids, mask, inputs["t"], noise, blocks, self_condition, weights, attention_mask)

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
            count += float(_total_weight(inputs))
        return total / count
