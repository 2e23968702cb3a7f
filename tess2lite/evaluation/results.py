"""Results on disk: complete or not at all, stamped with where they came from, and resumed answer by answer."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from ..training.checkpoints import write_atomically
from ..validation import InputError, expand_path


def stamp() -> dict[str, str]:
    """Returns the environment a figure was measured in: versions and device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    packages = {name: version(name) for name in ("tess2lite", "torch", "transformers")}
    return packages | {"python": platform.python_version(), "device": device}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Surrounds code that writes to a path in a folder of its own.

    Raises:
        InputError: In place of the system's error, for a full or read-only disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as problem:
        raise InputError(
            f"Nothing can be written to '{path}': {problem.strerror}; make room, or choose another path."
        ) from problem


def write_json(path: Path, content: object) -> None:
    """Writes all of it or nothing: a kill in the middle leaves the old file."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes all of it or nothing: a kill in the middle leaves the old file."""
    with writing(path):
        write_atomically(path, text)


class Log:
    """Records under keys, one JSON line each, appended as they are made; a kill loses at most the last line.

    Attributes:
        path: The file; None keeps records in memory.
        records: The records by their keys.
    """

    def __init__(self, path: str | Path | None = None):
        """
        Args:
            path: A new file, or an earlier log that is resumed. A line that was cut is removed.

        Raises:
            InputError: For another file, which stays as it is, or a path that cannot be written.
        """
        self.path = Path(expand_path(path)) if path else None
        self.records: dict[str, object] = {}
        if not self.path:
            return
        with writing(self.path):  # rather now than after the first answer
            self.path.touch()
        *lines, cut = self.path.read_bytes().split(b"\n")
        try:
            if not all(b'["'.startswith(line[:2]) for line in [*lines, cut]):
                raise ValueError
            self.records = dict(map(json.loads, lines))
        except (TypeError, ValueError):
            raise InputError(f"'{path}' is not a log of answers; give another file, or move it away.") from None
        os.truncate(self.path, self.path.stat().st_size - len(cut))

    def add(self, key: str, record: object) -> None:
        """Keeps a record, in the file too."""
        self.records[key] = record
        if self.path:
            with writing(self.path), self.path.open("a") as file:
                file.write(json.dumps([key, record], ensure_ascii=False) + "\n")
