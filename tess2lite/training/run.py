"""`python -m tess2lite.train recipe.yaml [field=value …]`: runs a recipe, and resumes it where it was interrupted.

With several processes: `accelerate launch -m tess2lite.train recipe.yaml`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer

from ..pretrained.devices import choose_device, choose_dtype
from ..pretrained.full_models import read_config
from ..pretrained.sources import bundled, find_source, plain_errors
from ..validation import InputError
from .build import build_trainer, check_run
from .card import hub_name, push, write_card
from .checkpoints import cannot_write, last_checkpoint, write_atomically
from .memory import ADVICE, estimate, measured_peak, require_memory, table
from .progress import Progress
from .recipe import CONSTANT, RewardRecipe, Training, help_text, read_recipe, value_of
from .rehearsal import rehearse
from .reward import prepare_reward
from .sources import local_files, parse_sources

RECIPE = "recipe.yaml"  # in every output: whose run it holds
# What may change when a run is resumed, because it does not change the result.
FREE = {
    "output",
    "save_every",
    "evaluate_every",
    "micro_batch_size",
    "gradient_checkpointing",
    "attn_implementation",
    "load_best_model_at_end",
    "early_stopping_patience",
    "report_to",
    "push_to_hub",
    "rehearse",
}


def train(recipe: Training) -> Trainer:
    """Runs a recipe to its end, from its last complete checkpoint where there is one, and saves the model in `output`.

    Raises:
        InputError: For what is wrong with the recipe, its data, or the room for it.
        FloatingPointError: When the loss or the weights are not finite; the last good checkpoint is kept.
    """
    check_same_run(recipe)
    check_run(recipe)
    _check_memory(recipe)
    trainer = prepare_reward(recipe) if isinstance(recipe, RewardRecipe) else build_trainer(recipe)
    trainer.add_callback(Progress(recipe.output, recipe.batch_size * recipe.length))
    is_main_process = trainer.is_world_process_zero()
    checkpoint = last_checkpoint(recipe.output)
    if is_main_process and checkpoint:
        print(f"resumes from {checkpoint}")
    if is_main_process and recipe.push_to_hub and _is_adapter_on_own_base(recipe):
        print(
            f"'{recipe.model}' is not on the hub, so nobody else can open an adapter of it. "
            "To push a whole model, merge it: python -m tess2lite.merge."
        )
    try:
        if is_main_process:
            write_atomically(Path(recipe.output) / RECIPE, yaml.safe_dump(_identity(recipe), sort_keys=False))
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(recipe.output)
        if is_main_process:
            write_card(recipe, trainer.state.log_history)
    except KeyboardInterrupt:
        print(f"Interrupted at step {trainer.state.global_step}; run it again to resume from the last checkpoint.")
        raise
    except ImportError as problem:
        if not recipe.optim:
            raise
        raise InputError(f"optim is {recipe.optim!r}: {problem}") from problem
    except torch.OutOfMemoryError as problem:
        raise InputError(f"The GPU's memory is full. Give {ADVICE}; the run resumes where it was.") from problem
    except Exception as problem:
        if not cannot_write(problem):
            raise
        raise InputError(
            f"Saving to '{recipe.output}' failed ({problem}); make room and run it again: "
            f"it resumes from {last_checkpoint(recipe.output) or 'the start'}."
        ) from problem
    if is_main_process:
        print(f"memory, measured: {measured_peak(trainer.args.device):.2f} GB at the peak")
        if recipe.push_to_hub:
            print(f"pushed to {push(recipe)}")
    return trainer


def _is_adapter_on_own_base(recipe: Training) -> bool:
    """Whether a run ends in an adapter whose base nobody else has."""
    return bool(recipe.lora_rank) and hub_name(recipe.model) is None and recipe.model not in bundled()


def _check_memory(recipe: Training) -> None:
    """Print the estimate beside what is free; raise InputError where it cannot fit."""
    device = choose_device(None)
    with plain_errors(recipe.model):
        config = read_config(find_source(recipe.model))
    dtype = choose_dtype(recipe.dtype, device)
    parts = estimate(config, recipe, device.type, dtype.itemsize)
    free = require_memory(parts, device)
    if int(os.environ.get("RANK", 0)) == 0:
        beside = "" if free is None else f"\n  {'free':14} {free:8.2f} GB"
        print(f"memory, estimated:\n{table(parts)}{beside}")


def _identity(recipe: Training) -> dict[str, Any]:
    """A recipe and the digests of the files that its data names."""
    digests = {}
    for source in parse_sources(recipe.data):
        if Path(source.path).exists():
            for file in local_files(source):
                digests[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    fields = dataclasses.asdict(recipe)
    return fields | ({"data_sha256": digests} if digests else {})


def check_same_run(recipe: Training) -> None:
    """Raise InputError unless the output is empty, or holds this recipe's run; only its length may grow."""
    checkpoint = last_checkpoint(recipe.output) if isinstance(recipe, Training) else None
    if checkpoint is None:
        return
    done = int(checkpoint.rsplit("-", 1)[1])
    if recipe.steps and done > recipe.steps:
        raise InputError(f"'{recipe.output}' has reached step {done}; steps={recipe.steps} asks for less.")
    path = Path(recipe.output) / RECIPE
    before = yaml.safe_load(path.read_text()) if path.exists() else {}
    may_grow = {"steps", "epochs"} if recipe.scheduler in CONSTANT and recipe.warmup >= 1 else set()
    if recipe.scheduler in CONSTANT and not recipe.warmup:
        may_grow = {"steps", "epochs"}
    for name, value in _identity(recipe).items():
        was = before.get(name, value if before else None)  # an earlier version may not have known the field
        if name in FREE | may_grow or was == value:
            continue
        why = f", and its {recipe.scheduler} schedule follows from it" if name in ("steps", "epochs") else ""
        raise InputError(
            f"'{recipe.output}' holds a run with {name} {was!r}, this recipe says {value!r}{why}; "
            "choose another output."
        )
    if done == recipe.steps:
        print(f"Training already reached step {done}; raise steps to continue.")


def main(arguments: list[str]) -> None:
    """Runs the recipe that command-line arguments name."""
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "Give a recipe: python -m tess2lite.train recipe.yaml [field=value …]. --help lists the fields."
        )
    changes = [change.partition("=") for change in arguments[1:]]
    if wrong := [name for name, equals, _ in changes if not equals]:
        raise InputError(f"'{wrong[0]}' changes nothing; write field=value, for example steps=500.")
    recipe = read_recipe(arguments[0], **{name: value_of(value) for name, _, value in changes})
    if recipe.rehearse:
        rehearse(recipe, train)
    else:
        train(recipe)


def command() -> None:
    """The command line; a user's mistake is one sentence."""
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
