"""From a name or a folder to a reward model, frozen for guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..model import SimplexDenoiser
from ..reward import RewardModel, classifier
from ..validation import InputError, check_denoiser
from .adapters import read_adapter
from .full_models import load_full_model, read_config
from .shared_base import freeze_, model_on_base
from .sources import adapter_base, find_source, plain_errors, read_json
from .tokenizers import find_tokenizer


def load_reward(
    name: str | Path,
    load_in_4bit: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    base: SimplexDenoiser | None = None,
    score_position: str | None = None,
) -> RewardModel:
    """Load a reward model: a sequence classifier with one label, as `hamishivi/mistral_tess2_rm`, or an adapter.

    Weights are frozen; gradients are taken of its input alone.

    Args:
        name: A bundled reward model, a local folder or a hub name.
        load_in_4bit, dtype, device: As in `tess2lite.load`.
        base: For an adapter, a denoiser that was loaded from the same base: its weights are shared, as they are, and
            guidance costs the adapter's memory alone.
        score_position: "last" or "eos", see `RewardModel`; by default what the model's files say, else "last", as in
            the official code.

    Raises:
        InputError: The source is not a reward model, or not one on this base.
    """
    source = find_source(name)
    if score_position not in (None, "last", "eos"):
        raise InputError(f"score_position is {score_position!r}; choose one of last, eos.")
    if base is not None:
        check_denoiser(base, "base")
        if load_in_4bit or dtype is not None or device is not None:
            raise InputError("base has a precision and a device already; leave load_in_4bit, dtype and device out.")
    with plain_errors(name):
        named_base = adapter_base(source)
        if base is not None:
            model = model_on_base(classifier, base, named_base, name)
        else:
            full = find_source(named_base) if named_base else source
            model = load_classifier(full, load_in_4bit, dtype, device, new_head=bool(named_base))
        if named_base:
            read_adapter(source, scores=True).attach(model)
        saved_config = read_json(source, "config.json") | read_json(source, "reward.json")
        model.config.score_position = score_position or saved_config.get("score_position", "last")
    return freeze_(model)


def load_classifier(
    source: str,
    load_in_4bit: bool,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    new_head: bool,
) -> RewardModel:
    """Load a reward model from a sequence classifier or, with a new head, from any model of its family."""
    changes: dict[str, Any] = {}
    if new_head:
        changes = {"fresh": ("score.weight",), "num_labels": 1}
    elif read_config(source).num_labels != 1:
        raise InputError(f"'{source}' is not a reward model; give a sequence classifier with one label, or an adapter.")
    model = load_full_model(classifier, source, load_in_4bit, dtype, device, **changes)
    model.tokenizer = find_tokenizer(source, model)
    return model
