"""`python -m tess2lite.train recipe.yaml [field=value …]`: runs a recipe, and goes on where it was interrupted.

With several processes: `accelerate launch -m tess2lite.train recipe.yaml`.
"""

from __future__ import annotations

import dataclasses
import errno
import sys
from pathlib import Path

import yaml
from safetensors import SafetensorError

from .memory import estimate, measured_peak, table
from .recipe import Recipe, prepare, read_recipe
from .training import DiffusionTrainer, last_checkpoint


def train(recipe: Recipe) -> DiffusionTrainer:
    """Runs a recipe to its end, from its last whole checkpoint where there is one, and saves the model in `output`."""
    _same_recipe(recipe)
    trainer = prepare(recipe)
    if trainer.is_world_process_zero():
        (Path(recipe.output) / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False))
        lm = trainer.model
        print("memory, estimated:")
        print(table(estimate(lm.config, recipe, lm.device.type, lm.dtype.itemsize)))
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(recipe.output))
        trainer.save_model(recipe.output)
    except KeyboardInterrupt:
        print(f"Interrupted at step {trainer.state.global_step}; run it again to go on from the last checkpoint.")
        raise
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


def _same_recipe(recipe: Recipe) -> None:
    """A folder belongs to one recipe; only its length may change."""
    path = Path(recipe.output) / "recipe.yaml"
    if not path.exists():
        return
    before, now = yaml.safe_load(path.read_text()), dataclasses.asdict(recipe)
    for name in now:
        if name not in ("output", "steps", "save_every", "evaluate_every") and before.get(name) != now[name]:
            raise ValueError(
                f"'{recipe.output}' holds a run with {name} {before.get(name)!r}, this recipe says {now[name]!r}; "
                "choose another output, or the same recipe."
            )


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("Give a recipe: python -m tess2lite.train recipe.yaml [field=value …].")
    for change in arguments[1:]:
        if "=" not in change:
            raise ValueError(f"'{change}' changes nothing; write field=value, for example steps=500.")
    changes = {name: yaml.safe_load(value) for name, value in (change.split("=", 1) for change in arguments[1:])}
    train(read_recipe(arguments[0], **changes))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError) as problem:
        sys.exit(str(problem))
