"""`rehearse=true`: three steps, killed, resumed, merged, loaded and used, so that the real run ends well."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from ..generation import infill
from ..loading import load
from ..pretrained.reward_models import load_reward
from ..validation import InputError
from .checkpoints import last_checkpoint
from .merge import merge
from .recipe import TRAININGS, PretrainingRecipe, RewardRecipe, Training
from .sources import first_line

STEPS = 3
PASSES = 2  # per step at most: gradients are accumulated, but not for long
KEPT = 3  # checkpoints' worth of room: two of them, and the finished model
PATIENCE = 1800  # seconds for the first step


def rehearse(recipe: Training, train: Callable[[Training], Any]) -> None:
    """Runs a recipe for three steps in a folder beside its output, and does with the result what a user would.

    Args:
        recipe: Of any kind.
        train: `run.train`.

    Raises:
        InputError: For what would have ended the real run: no room, no hub, no memory, bad data, a model that
            cannot be saved or loaded.
    """
    output = Path(recipe.output)
    rows_per_pass = recipe.micro_batch_size * int(os.environ.get("WORLD_SIZE", 1))
    folder = output.with_name(f"{output.name}-rehearsal")
    if folder.exists():
        raise InputError(f"'{folder}' exists already; remove it to rehearse again.")
    short = dataclasses.replace(
        recipe,
        output=str(folder),
        batch_size=min(recipe.batch_size, PASSES * rows_per_pass),  # as much memory as in the real run, in less time
        steps=STEPS,
        epochs=0.0,
        warmup=0,
        num_eval_examples=min(recipe.num_eval_examples, 4),
        evaluate_every=STEPS,
        save_every=1,
        load_best_model_at_end=False,
        early_stopping_patience=0,
        push_to_hub="",
        rehearse=False,
    )
    if recipe.push_to_hub:
        _require_hub(recipe.push_to_hub)
    try:
        _say("three steps, killed after the first checkpoint")
        _run_and_kill(short)
        _say("resuming")
        train(short)
        _require_room(short)
        _use(short)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(f"{folder}-merged", ignore_errors=True)
    _say("done: the run can be saved, resumed, loaded and used")


def _say(what: str) -> None:
    print(f"rehearsal: {what}", flush=True)


def _require_hub(repository: str) -> None:
    """Raise InputError unless the hub answers, and lets this account write to the repository's owner."""
    from huggingface_hub import HfApi

    try:
        account = HfApi().whoami()
    except Exception as problem:  # no network, no login, an expired token
        said = first_line(problem).rstrip(".")
        raise InputError(f"Nothing can be pushed to the hub: {said}; log in, or leave push_to_hub out.") from problem
    name = account["name"]
    owners = [name, *(organization["name"] for organization in account.get("orgs", []))]
    if repository.partition("/")[0] not in owners:
        raise InputError(f"{name!r} may not push to {repository!r}; give a name in {' or '.join(owners)}.")
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(f"On the hub the token of {name!r} may only read; log in with one that may write.")


def _run_and_kill(recipe: Training) -> None:
    """The first step in a process of its own, which is killed as a power cut would."""
    kind = next(name for name, training in TRAININGS.items() if training is type(recipe))
    folder = Path(recipe.output)
    folder.mkdir(parents=True)
    path = folder / "rehearsed.yaml"
    path.write_text(yaml.safe_dump({"kind": kind} | dataclasses.asdict(recipe)))
    log = folder / "rehearsed.log"
    environment = os.environ | {"TQDM_DISABLE": "1"}  # the last line of the log is the reason of a failure, not a bar
    command = [sys.executable, "-m", "tess2lite.train", str(path)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        start = time.monotonic()
        while process.poll() is None and not last_checkpoint(folder):
            if time.monotonic() - start > PATIENCE:
                process.kill()
                raise InputError(f"The first step took more than {PATIENCE / 60:.0f} minutes; give smaller rows.")
            time.sleep(0.05)
        process.kill()
        process.wait()
    if not last_checkpoint(folder):
        lines = log.read_text().strip().splitlines() or ["the process died without a word"]
        raise InputError(f"The rehearsed run failed: {lines[-1]}")


def _require_room(recipe: Training) -> None:
    """Room on the disk for what the real run keeps."""
    checkpoint = Path(last_checkpoint(recipe.output) or recipe.output)
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    free = shutil.disk_usage(recipe.output).free
    if KEPT * size > free:
        needed = KEPT * size / 1e9
        raise InputError(f"The run keeps about {needed:.1f} GB of checkpoints; the disk has {free / 1e9:.1f} GB free.")


def _use(recipe: Training) -> None:
    """Load the result as a user would, and write or judge with it."""
    device = "GPU" if torch.cuda.is_available() else "CPU"
    if isinstance(recipe, RewardRecipe):
        _say(f"judging on the {device}")
        judge: Any = load_reward(recipe.output, recipe.load_in_4bit)
        judge.score_ids(torch.tensor([[judge.tokenizer.bos_token_id, judge.tokenizer.eos_token_id]]))
        return
    source = recipe.output
    if recipe.lora_rank:
        _say("merging")
        merge(source, f"{source}-merged")
        source = f"{source}-merged"
    if isinstance(recipe, PretrainingRecipe):
        load(source)
        return
    _say(f"writing on the {device}")
    lm = load(source, recipe.load_in_4bit, recipe.dtype)
    infill(lm, "_" * min(8, recipe.length - 1), steps=2, progress=False)
