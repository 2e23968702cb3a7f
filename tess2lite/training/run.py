"""`python -m tess2lite.train recipe.yaml [field=value …]`: runs a recipe, and goes on where it was interrupted.

With several processes: `accelerate launch -m tess2lite.train recipe.yaml`.
"""

import dataclasses
import errno
import hashlib
import sys
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from transformers import Trainer

from .build import build_trainer
from .memory import estimate, measured_peak, table
from .recipe import Recipe, RewardRecipe, Training, read_recipe, value_of
from .reward import prepare_reward
from .trainer import last_checkpoint

RECIPE = "recipe.yaml"  # in every output: whose run it holds


def train(recipe: Training) -> Trainer:
    """Runs a recipe to its end, from its last whole checkpoint where there is one, and saves the model in `output`."""
    _same_run(recipe)
    trainer = prepare_reward(recipe) if isinstance(recipe, RewardRecipe) else build_trainer(recipe)
    lm, speaks = trainer.model, trainer.is_world_process_zero()
    if speaks and isinstance(recipe, Recipe):
        print("memory, estimated:", table(estimate(lm.config, recipe, lm.device.type, lm.dtype.itemsize)), sep="\n")
    try:
        if speaks:
            _write(Path(recipe.output) / RECIPE, yaml.safe_dump(_identity(recipe), sort_keys=False))
        trainer.train(resume_from_checkpoint=last_checkpoint(recipe.output))
        trainer.save_model(recipe.output)
    except KeyboardInterrupt:
        print(f"Interrupted at step {trainer.state.global_step}; run it again to go on from the last checkpoint.")
        raise
    except torch.OutOfMemoryError as problem:
        raise ValueError(
            "The GPU's memory is full. Give micro_batch_size=1, gradient_checkpointing=true, load_in_4bit=true with "
            "lora_rank, or a smaller length."
        ) from problem
    except (OSError, RuntimeError, SafetensorError) as problem:
        if not _cannot_write(problem):
            raise
        raise ValueError(
            f"Saving to '{recipe.output}' failed ({problem}); make room and run it again: "
            f"it goes on from {last_checkpoint(recipe.output) or 'the start'}."
        ) from problem
    if speaks:
        print(f"memory, measured: {measured_peak(lm.device):.2f} GB at the peak")
    return trainer


def _cannot_write(problem: Exception) -> bool:
    """A full or read-only disk, in the words of safetensors, torch.save and Python."""
    said = "I/O error" in str(problem) or "PytorchStreamWriter" in str(problem)
    return said or getattr(problem, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def _identity(recipe: Training) -> dict:
    """A recipe and, where its data is a file, that file's digest."""
    fields, path = dataclasses.asdict(recipe), Path(recipe.data)
    return fields | ({"data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if path.is_file() else {})


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a full disk leaves the old file."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def _same_run(recipe: Training) -> None:
    """A folder belongs to one recipe and its data; only its length may grow."""
    checkpoint = last_checkpoint(recipe.output) if isinstance(recipe, Training) else None  # what prepares it says so
    if checkpoint is None:
        return
    done = int(checkpoint.rsplit("-", 1)[1])
    if done > recipe.steps:
        raise ValueError(f"'{recipe.output}' has reached step {done}; steps={recipe.steps} asks for less.")
    path, now = Path(recipe.output) / RECIPE, _identity(recipe)
    before = yaml.safe_load(path.read_text()) if path.exists() else {}
    for name, value in now.items():
        was = before.get(name, value if before else None)  # an earlier version may not have known the field
        if name not in ("output", "steps", "save_every", "evaluate_every") and was != value:
            raise ValueError(
                f"'{recipe.output}' holds a run with {name} {was!r}, this recipe says {value!r}; choose another output."
            )
    if done == recipe.steps:
        print(f"Step {done} was reached before; for more, give more steps.")


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("Give a recipe: python -m tess2lite.train recipe.yaml [field=value …].")
    changes = [change.partition("=") for change in arguments[1:]]
    if wrong := [name for name, equals, _ in changes if not equals]:
        raise ValueError(f"'{wrong[0]}' changes nothing; write field=value, for example steps=500.")
    train(read_recipe(arguments[0], **{name: value_of(value) for name, _, value in changes}))


def command() -> None:
    """The command line; a user's mistake is one sentence."""
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
