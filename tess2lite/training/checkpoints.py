"""Checkpoints that are complete and finite, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # what the mixin is mixed into; importing it takes seconds
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
COMPLETE = "complete"  # name of the file that marks a checkpoint which was saved to its end


def last_checkpoint(folder: str | Path) -> str | None:
    """Returns the newest complete checkpoint of a run; those that a kill cut short are passed over."""
    marks = Path(folder).glob(f"checkpoint-*/{COMPLETE}")
    complete = {int(mark.parent.name.split("-")[1]): str(mark.parent) for mark in marks}
    return complete[max(complete)] if complete else None


def write_atomically(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all: a full disk or a kill leaves the old one.

    The new file gets the mode that the umask gives, as any file that a user writes.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def cannot_write(problem: Exception) -> bool:
    """Whether a disk is full or read-only, in the words of Python, safetensors, tokenizers and torch.save."""
    text = str(problem)
    is_write_error = any(words in text for words in ("I/O error", "PytorchStreamWriter", "inline_container"))
    is_write_error |= any(f"(os error {number})" in text for number in FULL_DISK)  # of a bare Exception
    return is_write_error or getattr(problem, "errno", None) in FULL_DISK


class CompleteCheckpoints(_Trainer):
    """Mixin for a transformers Trainer: a checkpoint is marked when all of it is saved, and only if it is finite.

    A checkpoint that a kill cut short has no mark, and one that diverged is not written at all, so that neither is
    resumed from nor pushes out a good one.
    """

    def _save_checkpoint(self, *args: Any) -> None:
        self.require_finite_weights()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / COMPLETE).unlink(missing_ok=True)  # until it is complete again
        super()._save_checkpoint(*args)
        if self.args.should_save:
            (folder / COMPLETE).touch()

    def require_finite_weights(self) -> None:
        """Raise FloatingPointError, on every process, unless all trained weights are finite."""
        is_finite = all(_is_finite(weight) for weight in self.model.parameters() if weight.requires_grad)
        self._require(is_finite, "The weights are not finite")

    def require_finite_loss(self, loss: torch.Tensor) -> None:
        """Raise FloatingPointError unless a loss is finite."""
        if not torch.isfinite(loss):
            self._raise(f"The loss is {loss.item()}")

    def _require(self, is_true: bool, otherwise: str) -> None:
        flag = torch.tensor([is_true], device=self.args.device)
        if not self.accelerator.gather(flag).all():
            self._raise(otherwise)

    def _raise(self, problem: str) -> None:
        raise FloatingPointError(
            f"{problem} at step {self.state.global_step}; what was saved before is whole. "
            "Start again in another output with a lower learning_rate."
        )


def _is_finite(weight: torch.Tensor) -> bool:
    shard = weight.to_local() if hasattr(weight, "to_local") else weight
    return bool(torch.isfinite(shard.detach()).all())
