"""transformers' Trainer with exact resume and a loss of our own, and the diffusion loss in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from ..chunks import generator_for
from ..schedule import TRAINING_TIMESTEPS
from ..span_masks import after, prefix, ul2
from ..validation import InputError
from .checkpoints import CompleteCheckpoints, last_checkpoint, write_atomically
from .data import MixedRows, Rows
from .timesteps import TimestepSampler

__all__ = ["GRID", "GRID_SEED", "DiffusionCollator", "DiffusionTrainer", "ResumableTrainer", "last_checkpoint"]

Batch = dict[str, torch.Tensor]

GRID = tuple(range(250, TRAINING_TIMESTEPS, 500))  # evaluation timesteps
GRID_SEED = 0  # of evaluation masks and noise, whatever seed a run was trained with
FULL_ROWS = 0.2  # share of steps whose rows are padded to their full length when others are not
MAX_SHORT_PADDING = 16  # PAD tokens after an answer in the other steps, at most
MASKS = {"ul2": ul2, "prefix": prefix}
WEIGHT_POWER = {"token": 0.0, "sqrt": 0.5, "row": 1.0}
CPU = torch.device("cpu")


@dataclass
class DiffusionCollator:
    """Rows of ids → a batch with masks and timesteps, each a function of (seed, example).

    `labels`, as transformers' Trainer counts them, are ids under the mask and −100 elsewhere.

    Attributes:
        masking: "ul2" or "prefix" (`span_masks.py`), "all" but the first token, or "given" where rows bring their
            own `span_mask`, as chats do.
        seed: Of everything that is random.
        timesteps: Draws t; None for uniform as in the paper.
        loss_weighting: "token": each position counts alike. "row": each row does, as in the official code, which
            averages over a forward pass. "sqrt": between the two.
        pad_weight: Weight of PAD under the mask, 1 in the official code.
        pad_id: Token id of PAD; needed for a pad_weight and for short rows.
        batch_size: Rows per step where rows are "longest": after an answer come at most 16 PAD, except in a fifth
            of the steps, which are padded as the rows come. None pads all rows as they come ("length").
    """

    masking: str
    seed: int
    timesteps: TimestepSampler | None = None
    loss_weighting: str = "token"
    pad_weight: float = 1.0
    pad_id: int | None = None
    batch_size: int | None = None

    def __call__(self, rows: list[dict]) -> Batch:
        drawn = [self._draw(row) for row in rows]
        masks = [mask for mask, _ in drawn]
        if any(bool(mask[0]) for mask in masks):
            raise InputError("A span mask covers a row's first token, which has no left neighbour to predict it from.")
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        lengths = [self._length(row, mask) for row, mask in zip(rows, masks, strict=True)]
        longest = max(lengths)
        batch = {
            "input_ids": _stack(ids, lengths, longest),  # (B, L)
            "span_mask": _stack(masks, lengths, longest),
            "t": torch.stack([t for _, t in drawn]),  # (B,)
            "example": torch.tensor([row["example"] for row in rows]),
        }
        batch["labels"] = batch["input_ids"].masked_fill(~batch["span_mask"], -100)
        if min(lengths) < longest:
            places = torch.arange(longest)
            batch["attention_mask"] = (places < torch.tensor(lengths)[:, None]).long()
        if self.loss_weighting != "token" or self.pad_weight != 1:
            batch["loss_weights"] = self._weights(batch)
        return batch

    def _draw(self, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask (L,) and timestep () of a row."""
        generator = generator_for(self.seed, row["example"], "mask and time", CPU)
        if self.timesteps is None:
            t = torch.randint(TRAINING_TIMESTEPS, (), generator=generator)
        else:
            t = self.timesteps.draw(generator)
        length = len(row["input_ids"])
        if self.masking == "given":
            return torch.tensor(row["span_mask"]), t
        if self.masking == "all":
            return after(length, 1), t
        return MASKS[self.masking](length, generator), t

    def _length(self, row: dict, mask: torch.Tensor) -> int:
        """How much of a row is kept; a function of (seed, example) and the step's number."""
        ids = row["input_ids"]
        if self.batch_size is None:
            return len(ids)
        step = row["example"] // self.batch_size
        coin = torch.rand((), generator=generator_for(self.seed, step, "full rows", CPU))
        if coin < FULL_ROWS:
            return len(ids)
        is_text = (torch.tensor(ids) != self.pad_id) | ~mask
        end = int(is_text.nonzero().max()) + 1
        generator = generator_for(self.seed, row["example"], "padding", CPU)
        padding = int(torch.randint(MAX_SHORT_PADDING + 1, (), generator=generator))
        return min(len(ids), end + padding)

    def _weights(self, batch: Batch) -> torch.Tensor:
        """Loss weights (B, L): w / (Σ of the row's w)^power, with w the pad_weight of PAD and 1 elsewhere."""
        weights = batch["span_mask"].float()
        if self.pad_weight != 1:
            weights = weights.masked_fill((batch["input_ids"] == self.pad_id) & batch["span_mask"], self.pad_weight)
        total = weights.sum(1, keepdim=True).clamp(min=1e-6)
        return weights / total ** WEIGHT_POWER[self.loss_weighting]


def _stack(rows: Sequence[torch.Tensor], lengths: Sequence[int], longest: int) -> torch.Tensor:
    """Rows cut to their lengths and filled with zeros, (B, longest)."""
    out = rows[0].new_zeros(len(rows), longest)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        out[number, :length] = row[:length]
    return out


def total_weight(batch: Batch) -> torch.Tensor:
    """Returns the sum of a batch's loss weights: the number of its labels where it brings none."""
    is_counted = batch["labels"] != -100
    return (batch["loss_weights"] * is_counted).sum() if "loss_weights" in batch else is_counted.sum()


class ResumableTrainer(CompleteCheckpoints, Trainer):
    """transformers' Trainer around a summed loss that is a function of (seed, example): a run resumes exactly.

    Subclasses say what the loss is (`_batch_loss`) and what is measured (`_measure`). The sum is divided by the
    number of labels, or by the `loss_weights`, of all accumulated batches on all processes, so that a batch may be
    cut in any way. Give it `Rows`, `MixedRows` or `data.endless`.

    Args:
        clip_per_group: Clip the gradients of E, head, timestep embedding and layers apart, each to max_grad_norm.
    """

    def __init__(self, *args: Any, clip_per_group: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise InputError(
                f"One process sees {self.args.n_gpu} GPUs; start it with `accelerate launch`, one process per GPU, "
                "or let it see one: CUDA_VISIBLE_DEVICES=0. Trainer would use DataParallel, which this forward does "
                "not support."
            )
        self.clip_per_group = clip_per_group
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the whole batch's weights
        self._last_inputs: Batch | None = None

    def _batch_loss(self, model: torch.nn.Module, inputs: Batch, seed: int) -> torch.Tensor:
        """The summed loss of a batch in training."""
        raise NotImplementedError

    def _evaluation_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        """The summed loss of a batch in evaluation, a function of the example alone."""
        raise NotImplementedError

    def _measure(self, rows: Sequence[dict]) -> dict[str, float]:
        """What `evaluate` reports of held-out rows: "loss" and whatever else, by name."""
        raise NotImplementedError

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler | None:
        rows = self.train_dataset
        is_ordered = isinstance(rows, Rows | MixedRows)  # and shuffled already
        return torch.utils.data.SequentialSampler(rows) if is_ordered else None

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """What the summed loss is divided by: the weights of all accumulated batches on all processes."""
        if not batch_samples or "loss_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = torch.stack([total_weight(batch) for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        self._last_inputs = inputs
        total = total_weight(inputs) if num_items_in_batch is None else num_items_in_batch
        loss = self._batch_loss(model, inputs, self.args.seed) / total
        self.require_finite_loss(loss)
        # DDP averages over processes what is already divided by the total over all of them.
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    @torch.no_grad()
    def require_finite_weights(self) -> None:
        """Raise FloatingPointError unless the weights, and the loss they give on the last batch, are finite."""
        super().require_finite_weights()
        if self._last_inputs is not None:
            self.model.eval()
            with self.compute_loss_context_manager():
                loss = self._evaluation_loss(self.model, self._last_inputs)
            self.model.train()
            self._require(bool(torch.isfinite(loss)), "The weights give a loss that is not finite")

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        if not self.clip_per_group:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        groups: dict[str, list[torch.Tensor]] = {}
        for name, weight in model.named_parameters():
            groups.setdefault(parameter_group(name), []).append(weight)
        clip = torch.nn.utils.clip_grad_norm_
        norms = [clip(weights, self.args.max_grad_norm) for weights in groups.values()]
        return torch.stack(norms).norm()

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure held-out rows, with masks and noise that are the same in every run, and log the result."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        self.model.eval()
        metrics = {f"{metric_key_prefix}_{name}": loss for name, loss in self._measure(rows).items()}
        self.model.train()
        self.log(metrics)
        # A notebook's table has a column for each of these; losses at noise levels stay in the log.
        brief = {name: value for name, value in metrics.items() if "_loss_at_" not in name}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, brief)
        return metrics

    def _mean_loss(self, rows: Sequence[dict], collate: Callable[[list[dict]], Batch]) -> float:
        """Over all labels of all rows, however they are cut into batches."""
        total = count = 0.0
        for start in range(0, len(rows), self.args.per_device_eval_batch_size):
            places = range(start, min(start + self.args.per_device_eval_batch_size, len(rows)))
            inputs = self._prepare_inputs(collate([rows[place] for place in places]))
            with self.compute_loss_context_manager():
                total += float(self._evaluation_loss(self.model, inputs))
            count += float(total_weight(inputs))
        return total / count


def parameter_group(name: str) -> str:
    """The group that a weight's gradient is clipped with."""
    for group in ("timestep_embed", "embed_tokens", "lm_head"):
        if group in name:
            return group
    return "layers"


class GridTrainer(ResumableTrainer):
    """What trainers of diffusion share: a loss at each timestep of a fixed grid.

    `evaluate` takes masks as `grid_masking` says, whatever the run was trained on, or the rows' own where they
    bring some; the weights of positions are the collator's. The last grid is saved with the model as `loss_curve`.
    """

    grid_masking = "ul2"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._loss_curve: dict[str, list[float]] | None = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers, and the loss curve of the last evaluation with it."""
        if self._loss_curve is not None:
            self.model.config.loss_curve = self._loss_curve
        super().save_model(output_dir, _internal_call)
        is_adapter = hasattr(self.model, "peft_config")  # which has no config of the model
        if self.args.should_save and is_adapter and self._loss_curve is not None:
            save_diffusion_config(output_dir or self.args.output_dir, loss_curve=self._loss_curve)

    def _measure(self, rows: Sequence[dict]) -> dict[str, float]:
        masking = "given" if "span_mask" in rows[0] else self.grid_masking
        collator = self.data_collator
        names = ("loss_weighting", "pad_weight", "pad_id")
        weighted = {name: getattr(collator, name) for name in names if hasattr(collator, name)}
        collate = DiffusionCollator(masking, GRID_SEED, **weighted)

        def collate_at(t: int) -> Callable[[list[dict]], Batch]:
            return lambda batch: collate(batch) | {"t": torch.full((len(batch),), t)}

        losses = {t: self._mean_loss(rows, collate_at(t)) for t in GRID}
        curve = {"t": [t / TRAINING_TIMESTEPS for t in GRID], "loss": list(losses.values())}
        # A model that takes its steps by its curve keeps the one it has, where the new one never rises.
        samples_by_it = getattr(self.model.config, "timestep_spacing", "uniform") == "informative"
        if not samples_by_it or max(curve["loss"]) > curve["loss"][0]:
            self._loss_curve = curve
        by_time = {f"loss_at_{t}": loss for t, loss in losses.items()}
        return {"loss": sum(losses.values()) / len(losses)} | by_time


class DiffusionTrainer(GridTrainer):
    """transformers' Trainer on the diffusion loss: T 5000, self-conditioning half of the time.

    All randomness is a function of (seed, example), the self-conditioning coin of (seed, step): a run resumes
    exactly, on one process or several.

    A batch has `input_ids` (B, L), `span_mask` (B, L) bool, `t` (B,) whole timesteps, `example` (B,) row numbers and
    `labels` (B, L), −100 outside the span mask. It may have `loss_weights` (B, L), by which the cross-entropies are
    averaged over the whole batch (1 each without it), and `attention_mask` (B, L), 0 on filler.

    Args:
        self_conditioning: Share of steps that are self-conditioned. Evaluation is, unless it is 0.
    """

    def __init__(self, *args: Any, self_conditioning: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.self_conditioning = self_conditioning

    def _batch_loss(self, model: torch.nn.Module, inputs: Batch, seed: int) -> torch.Tensor:
        coin = torch.rand((), generator=generator_for(seed, self.state.global_step, "coin", CPU))
        return self._denoising_loss(model, inputs, bool(coin < self.self_conditioning), seed)

    def _evaluation_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        return self._denoising_loss(model, inputs, self.self_conditioning > 0, GRID_SEED)

    def _denoising_loss(self, model: torch.nn.Module, inputs: Batch, self_condition: bool, seed: int) -> torch.Tensor:
        names = ("input_ids", "span_mask", "t", "example", "loss_weights", "attention_mask")
        options = {name: inputs[name] for name in names if name in inputs}
        return model(**options, seed=seed, self_condition=self_condition)  # wrappers must see a forward pass


def save_diffusion_config(folder: str | Path, **entries: Any) -> None:
    """Add what a denoiser's config has beside its base's to an adapter folder; `load` reads it."""
    path = Path(folder) / "diffusion.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    write_atomically(path, json.dumps(saved | entries) + "\n")
