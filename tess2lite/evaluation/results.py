"""Results on disk: whole or not at all, stamped with where they came from, and resumed answer by answer."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
import transformers


def stamp() -> dict[str, str]:
    """The environment a figure was measured in."""
    return {
        "tess2lite": version("tess2lite"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
    }


def write_json(path: Path, content) -> None:
    """All of it or nothing: a kill in mid-write leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    part.replace(path)


class Log:
    """Records under keys, one JSON line each, appended as they are made; a file cut in mid-line loses that line alone.

    An evaluation asks `key in log` before it computes, so one that was interrupted counts nothing twice.
    """

    def __init__(self, path):
        self.path, self.known = Path(path), {}
        whole = 0  # bytes
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            try:
                key, record = json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):
                    raise ValueError(f"'{path}' is no log of answers; give another file, or move it away.") from None
                break
            self.known[key] = record
            whole += len(line)
        if self.path.exists() and whole < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str):
        return self.known[key]

    def add(self, key: str, record) -> None:
        self.known[key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps([key, record], ensure_ascii=False) + "\n")
