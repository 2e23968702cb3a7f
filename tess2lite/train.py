"""`python -m tess2lite.train recipe.yaml [field=value …]`: runs a recipe, and goes on where it was interrupted.

With several processes: `accelerate launch -m tess2lite.train recipe.yaml`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import sys
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from transformers import Trainer

from .memory import estimate, measured_peak, table
from .preference import prepare_reward
from .preparation import prepare
from .recipe import Recipe, RewardRecipe, Training, read_recipe, value_of
from .training import last_checkpoint


def train(recipe: Training) -> Trainer:
    """Runs a recipe to its end, from its last whole checkpoint where there is one, and saves the model in `output`."""
    _same_run(recipe)
    trainer = prepare_reward(recipe) if isinstance(recipe, RewardRecipe) else prepare(recipe)
    if trainer.is_world_process_zero() and isinstance(recipe, Recipe):
        lm = trainer.model
        print("memory, estimated:")
        print(table(estimate(lm.config, recipe, lm.device.type, lm.dtype.itemsize)))
    try:
        if trainer.is_world_process_zero():
            _write(Path(recipe.output) / RECIPE, yaml.safe_dump(_identity(recipe), sort_keys=False))
        trainer.train(resume_from_checkpoint=last_checkpoint(recipe.output))
        trainer.save_model(recipe.output)
    except KeyboardInterrupt:
        print(f"Interrupted at step {trainer.state.global_step}; run it again to go on from the last checkpoint.")
        raise
    except torch.OutOfMemoryError as problem:
        raise ValueError(
            "The GPU's memory is full. Give rows_at_once=1, gradient_checkpointing=true, load_in_4bit=true with "
            "lora_rank, or a smaller length."
        ) from problem
    except (OSError, RuntimeError, SafetensorError) as problem:
        if not _cannot_write(problem):
            raise
        raise ValueError(
            f"Saving to '{recipe.output}' failed ({problem}); make room and run it again: "
            f"it goes on from {last_checkpoint(recipe.output) or 'the start'}."
        ) from problem
    if trainer.is_world_process_zero():
        print(f"memory, measured: {measured_peak(trainer.model.device):.2f} GB at the peak")
    return trainer


def _cannot_write(problem: Exception) -> bool:
    """A full or read-only disk, in the words of Python, safetensors and torch.save."""
    if isinstance(problem, OSError):
        return problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
    return "I/O error" in str(problem) or "PytorchStreamWriter" in str(problem)


RECIPE = "recipe.yaml"  # in every output: whose run it holds


def _identity(recipe: Training) -> dict:
    """A recipe and, where its data is a file, that file's digest."""
    path = Path(recipe.data)
    digest = {"data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if path.is_file() else {}
    return dataclasses.asdict(recipe) | digest


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a full disk leaves the old file."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def _same_run(recipe: Training) -> None:
    """A folder belongs to one recipe and its data; only its length may grow."""
    path, checkpoint = Path(recipe.output) / RECIPE, last_checkpoint(recipe.output)
    if checkpoint is None:
        return
    done = int(checkpoint.rsplit("-", 1)[1])
    if done > recipe.steps:
        raise ValueError(f"'{recipe.output}' has reached step {done}; steps={recipe.steps} asks for less.")
    before, now = yaml.safe_load(path.read_text()) if path.exists() else {}, _identity(recipe)
    for name in now:
        if name not in ("output", "steps", "save_every", "evaluate_every") and before.get(name) != now[name]:
            raise ValueError(
                f"'{recipe.output}' holds a run with {name} {before.get(name)!r}, this recipe says {now[name]!r}; "
                "choose another output, or the same recipe."
            )
    if done == recipe.steps:
        print(f"Step {done} was reached before; for more, give more steps.")


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("Give a recipe: python -m tess2lite.train recipe.yaml [field=value …].")
    for change in arguments[1:]:
        if "=" not in change:
            raise ValueError(f"'{change}' changes nothing; write field=value, for example steps=500.")
    changes = {name: value_of(value) for name, value in (change.split("=", 1) for change in arguments[1:])}
    train(read_recipe(arguments[0], **changes))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
