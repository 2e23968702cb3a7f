"""Results on disk: whole or not at all, stamped with where they came from, and resumed answer by answer."""

from __future__ import annotations

import json
import os
import platform
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch


def stamp() -> dict[str, str]:
    """The environment a figure was measured in."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    packages = {name: version(name) for name in ("tess2lite", "torch", "transformers")}
    return packages | {"python": platform.python_version(), "device": device}


@contextmanager
def writing(path: Path):
    """Around what writes into a folder of a path's own; a full or read-only disk is a sentence."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as problem:
        raise ValueError(
            f"Nothing can be written to '{path}': {problem.strerror}; make room, or choose another."
        ) from problem


def write_json(path: Path, content) -> None:
    """All of it or nothing: a kill in mid-write leaves the old file."""
    part = path.with_suffix(".part")
    with writing(path):
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        part.replace(path)


class Log:
    """Records under keys, one JSON line each, appended as they are made; a file cut in mid-line loses that line alone.

    path: None keeps them in memory. known: the records by their keys.
    """

    def __init__(self, path=None):
        self.path, self.known = path and Path(path), {}
        if not path:
            return
        with writing(self.path):  # rather now than after the first answer
            self.path.touch()
        *lines, cut = self.path.read_bytes().split(b"\n")
        try:
            if not all(b'["'.startswith(line[:2]) for line in [*lines, cut]):
                raise ValueError
            self.known = dict(map(json.loads, lines))
        except (TypeError, ValueError):
            raise ValueError(f"'{path}' is no log of answers; give another file, or move it away.") from None
        os.truncate(self.path, self.path.stat().st_size - len(cut))

    def add(self, key: str, record) -> None:
        self.known[key] = record
        if self.path:
            with writing(self.path), self.path.open("a") as file:
                file.write(json.dumps([key, record], ensure_ascii=False) + "\n")
