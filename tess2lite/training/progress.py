"""What a run says while it goes on: its speed, the hours to go, and a log that is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

LOG = "log.jsonl"  # in every output: losses and rates, one JSON line per entry
MEASURED_STEPS = 10  # after which the speed is said


class Progress(TrainerCallback):
    """Prints tokens per second and the time to go after ten steps, and keeps every logged entry.

    Args:
        output: Folder of the log.
        tokens_per_step: Over all processes.
    """

    def __init__(self, output: str | Path, tokens_per_step: int):
        self.path = Path(output) / LOG
        self.tokens_per_step = tokens_per_step
        self.first_step = 0
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first_step = state.global_step
        self.started = time.monotonic()
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        earlier = [line for line in lines if _step_of(line) <= state.global_step]  # later ones are trained again
        self.path.write_text("".join(f"{line}\n" for line in earlier))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = state.global_step - self.first_step
        if done != MEASURED_STEPS or not state.is_world_process_zero:
            return
        seconds = (time.monotonic() - self.started) / done
        hours = seconds * (state.max_steps - state.global_step) / 3600
        print(f"{self.tokens_per_step / seconds:,.0f} tokens per second; about {hours:.1f} hours to go")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step} | logs, default=float) + "\n")


def _step_of(line: str) -> int:
    """The step of a log entry; a line that a kill cut short counts as later than all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**63
