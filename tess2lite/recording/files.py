"""The file of a trajectory: one safetensors file, tensors as they are and strings as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..validation import InputError, expand_path
from .fields import ids_of

FORMAT = "tess2lite trajectory 3"
TENSORS = ("tokens", "top_ids", "top_p", "entropy", "alpha_bar", "span_mask")
STRINGS = ("texts", "token_strings", "token_bytes", "context_strings", "settings")
RECORD = "records."  # what a record's name begins with in a file
BROKEN = (SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError)  # what a file may cause


def write_fields(path: str | Path, fields: Mapping[str, Any]) -> None:
    """Write the fields of a trajectory.

    Raises:
        OSError: The file cannot be written.
    """
    path = expand_path(path)
    strings = {name: fields[name] for name in STRINGS}
    tensors = {name: fields[name].contiguous() for name in TENSORS}
    for name, values in fields["records"].items():
        tensors[RECORD + name] = values.contiguous()
    header = {"format": FORMAT, "strings": json.dumps(strings)}
    try:
        save_file(tensors, path, header)
    except SafetensorError as problem:
        raise OSError(f"'{path}' could not be written ({problem}); give a file in a folder with room.") from None


def read_fields(path: str | Path) -> dict[str, Any]:
    """Read the fields of a trajectory, and check that they fit each other: a file may come from anywhere.

    Raises:
        InputError: The file does not exist or is not a complete trajectory.
    """
    path = expand_path(path)
    if not Path(path).is_file():
        raise InputError(f"The trajectory file '{path}' does not exist; give one that Trajectory.save wrote.")
    try:
        fields = _read(path)
        _check(fields)
    except BROKEN as problem:
        raise InputError(
            f"'{path}' is not a complete trajectory of this version; give a file written by Trajectory.save."
        ) from problem
    return fields


def _read(path: str) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        header = file.metadata()
    if header["format"] != FORMAT:
        raise ValueError("another format")
    tensors = load_file(path)
    records = {}
    for name in list(tensors):
        if name.startswith(RECORD):
            records[name.removeprefix(RECORD)] = tensors.pop(name)
    strings = json.loads(header["strings"])
    for name in ("token_strings", "token_bytes"):
        strings[name] = {int(i): value for i, value in strings[name].items()}
    if set(tensors) != set(TENSORS) or set(strings) != set(STRINGS):
        raise ValueError("parts are missing or unknown")
    return {**tensors, **strings, "records": records}


def _check(fields: dict[str, Any]) -> None:
    """Raise ValueError unless all parts fit each other."""
    top_p = fields["top_p"]
    mask = fields["span_mask"]
    steps, length, k = fields["top_ids"].shape
    shapes = {
        "tokens": (steps, length),
        "top_ids": (steps, length, k),
        "top_p": (steps, length, k),
        "entropy": (steps, length),
        "alpha_bar": (steps,),
        "span_mask": (length,),
    }
    records = fields["records"].values()
    tensors = [*(fields[name] for name in shapes), *records]
    ids = ids_of(fields)
    strings = [*fields["texts"], *fields["context_strings"], *fields["token_strings"].values()]
    fits = [
        steps > 0 and k > 0,
        mask.dtype == torch.bool and mask.any(),
        all(fields[name].shape == shape for name, shape in shapes.items()),
        all(values.shape in ((steps,), (steps, length)) for values in records),
        all(values.isfinite().all() for values in tensors),
        not ids.is_floating_point() and set(ids.unique().tolist()) <= fields["token_strings"].keys(),
        ((top_p >= 0) & (top_p <= 1.001)).all(),
        all(isinstance(text, str) for text in strings),
        all(0 <= byte < 256 for values in fields["token_bytes"].values() for byte in values),
        len(fields["texts"]) == steps,
        len(fields["context_strings"]) in (0, length),
        isinstance(fields["settings"].get("start", 0), int),
    ]
    if not all(fits):
        raise ValueError("parts that do not fit each other")
