"""The card of a trained model: what it is, what it was made from and how, what it reached."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from ..pretrained.sources import HUB_NAME, bundled
from ..validation import InputError
from .checkpoints import write_atomically
from .recipe import TRAININGS, RewardRecipe, Training
from .sources import first_line, parse_sources

CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/\w+$")  # how the hub's cache names a repository
CARD = "README.md"


def write_card(recipe: Training, log_history: list[dict[str, Any]]) -> Path:
    """Writes the card of a finished run into its output and returns its path.

    Args:
        recipe: Of the run. Local paths in it are named by their last part alone.
        log_history: The Trainer's.
    """
    path = Path(recipe.output) / CARD
    write_atomically(path, card_text(recipe, log_history))
    return path


def card_text(recipe: Training, log_history: list[dict[str, Any]]) -> str:
    """Returns the card as Markdown with the hub's YAML header."""
    kind = next(name for name, training in TRAININGS.items() if training is type(recipe))
    is_reward = isinstance(recipe, RewardRecipe)
    header: dict[str, Any] = {"library_name": "peft" if recipe.lora_rank else "transformers"}
    if base := hub_name(recipe.model):
        header["base_model"] = base
    datasets = [source.path.partition(":")[0] for source in parse_sources(recipe.data) if is_on_hub(source.path)]
    if datasets:
        header["datasets"] = datasets
    header["pipeline_tag"] = "text-classification" if is_reward else "text-generation"
    header["tags"] = ["tess2lite", "diffusion", kind]
    name = Path(recipe.push_to_hub or recipe.output).name
    loader = "load_reward" if is_reward else "load"
    fields = dataclasses.asdict(recipe) | {"output": Path(recipe.output).name, "model": public_name(recipe.model)}
    fields["data"] = [public_name(source.path) for source in parse_sources(recipe.data)]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {name}",
        f"A {kind} model trained with tess2lite from {public_name(recipe.model)}"
        f"{' as a LoRA adapter' if recipe.lora_rank else ''}.",
        f"```python\nimport tess2lite as t2\n\nmodel = t2.{loader}({recipe.push_to_hub or name!r})\n```",
        "## Losses",
        _losses(log_history),
        "## Recipe",
        f"```yaml\n{yaml.safe_dump({'kind': kind} | fields, sort_keys=False)}```",
    ]
    return "\n\n".join(parts) + "\n"


def is_on_hub(name: str) -> bool:
    """Whether a name is a hub repository's, as far as its form and this machine's folders tell."""
    repository = name.partition(":")[0]
    has_form = re.fullmatch(HUB_NAME, repository) is not None
    return has_form and not Path(repository).exists() and repository not in bundled()


def hub_name(name: str) -> str | None:
    """The repository that a hub name, or a folder in the hub's cache, stands for; None for other names."""
    cached = CACHED.search(Path(name).as_posix())
    if cached:
        return "/".join(cached.groups())
    return name if is_on_hub(name) else None


def public_name(name: str) -> str:
    """A hub name as it is; of a local path the last part, which says nothing of the machine."""
    return hub_name(name) or Path(name).name


def _losses(log_history: list[dict[str, Any]]) -> str:
    """A table of the held-out losses, or a sentence where there are none."""
    evaluations = [entry for entry in log_history if "eval_loss" in entry]
    trained = [entry["loss"] for entry in log_history if "loss" in entry]
    if not evaluations:
        return f"The last training loss is {trained[-1]:.4f}." if trained else "No loss was logged."
    lines = ["| step | held-out loss |", "| --- | --- |"]
    lines += [f"| {entry['step']} | {entry['eval_loss']:.4f} |" for entry in evaluations]
    by_time = {key.rsplit("_", 1)[1]: loss for key, loss in evaluations[-1].items() if "_at_" in key}
    if by_time:
        lines += ["", "At the last step, by timestep of 5000:", "", f"| t | {' | '.join(by_time)} |"]
        lines += [f"| --- |{' --- |' * len(by_time)}"]
        lines += [f"| loss | {' | '.join(f'{loss:.3f}' for loss in by_time.values())} |"]
    return "\n".join(lines)


def push(recipe: Training) -> str:
    """Uploads a finished run's model and card to the hub, privately where the repository is new.

    Returns:
        The repository's address.

    Raises:
        InputError: The hub does not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(recipe.push_to_hub, private=True, exist_ok=True)
        api.upload_folder(
            folder_path=recipe.output,
            repo_id=recipe.push_to_hub,
            ignore_patterns=["checkpoint-*", "*.part", "recipe.yaml", "training_args.bin"],
        )
    except Exception as problem:  # no network, no login, no room, no right
        raise InputError(
            f"The model is finished in '{recipe.output}', but it was not pushed to '{recipe.push_to_hub}': "
            f"{first_line(problem).rstrip('.')}; run it again to push it."
        ) from problem
    return str(address)
