"""Trajectories → the explorer: its data, and HTML that needs no kernel and no network.

The drawing is done by explorer.mjs; the comment at its head is the contract of the data made here. Every id becomes an
index of a run's own list of token strings, probabilities become bytes, and columns are base64 of little-endian numbers.
"""

from __future__ import annotations

import base64
import html
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from ..trajectory import Trajectory, as_trajectory

if TYPE_CHECKING:
    from ..generation import Generation
    from .voices import Voice

Run: TypeAlias = "Trajectory | Generation"

MODULE = Path(__file__).parent / "explorer.mjs"
LISTED = 40  # steps that the list for readers without scripts holds
LISTED_CHARACTERS = 150_000  # and how long it may become
RUN_BYTES = 3_400_000  # of one run's numbers before base64, so that its page stays below 5 MB

# Texts of tokens that end or pad, for trajectories whose settings do not name them.
ENDS = {"</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "[EOS]"}
PADS = {"[PAD]", "<pad>", "<|pad|>"}
BEGINNINGS = {"<s>", "<bos>", "<|begin_of_text|>"}
PADDING = re.compile(f"({'|'.join(map(re.escape, sorted(PADS)))})+$")


def explorer(trajectory: Run, note: str = "") -> str:
    """One run as HTML: the text at every step, a map of tokens × steps, and what was likely at each place.

    Args:
        trajectory: A `Trajectory`, or the `Generation` that holds one.
        note: A sentence to put under the text.

    Returns:
        HTML that works offline. Without scripts it shows the last text and a list of earlier ones. What a model wrote
        is shown as text, never run.
    """
    trajectory = as_trajectory(trajectory)
    return _page({"runs": [run_data(trajectory, note=note)]}, {"": trajectory})


def comparison(runs: dict[str, Run], voices: Sequence[Voice] = ()) -> str:
    """Several runs in one explorer, name → trajectory: the last is compared with the first, all are its tabs.

    Args:
        runs: Name → trajectory.
        voices: Final texts that answer the same prompt, in a list with their rewards (`voices.py`).

    Raises:
        ValueError: If `runs` is not a dict with at least one run.
    """
    if not isinstance(runs, dict) or not runs:
        raise ValueError(f"runs is {type(runs).__name__}; give a dict of one or more trajectories by name.")
    trajectories = {str(name): as_trajectory(run) for name, run in runs.items()}
    data: dict[str, Any] = {"runs": [run_data(run, name) for name, run in trajectories.items()]}
    data["runs"][-1]["voices"] = [voice.as_dict() for voice in voices]
    if len(runs) > 1:
        data["beside"] = [0, len(runs) - 1]
    return _page(data, trajectories)


def spread(steps: int, count: int) -> list[int]:
    """Return at most `count` indices of a run's steps, evenly from the first to the last."""
    even = np.linspace(0, steps - 1, count).round()
    return np.unique(even.astype(int)).tolist()


def pins_of(hooks: Iterable) -> list[dict[str, int]]:
    """Each pinned token of a run's hooks: position, first step (index), token id, and the step after its last."""
    pins = []
    for hook in hooks:
        if type(hook).__name__ != "Pin":
            continue
        for position, token in hook.tokens.items():
            pin = {"position": position, "step": hook.start, "token": token}
            if hook.stop != float("inf"):
                pin["until"] = hook.stop
            pins.append(pin)
    return pins


def run_data(trajectory: Trajectory, name: str = "", note: str = "") -> dict[str, Any]:
    """One run as the contract in explorer.mjs has it; what does not fit into a page is left out and said in its note.

    Args:
        trajectory: A `Trajectory`.
        name: Label of its tab.
        note: A sentence under its text.
    """
    positions = trajectory.span_mask.nonzero()[:, 0]  # (M,)
    columns = _Columns(trajectory, positions)
    detailed = columns.detailed()
    header = run_header(trajectory, name)
    header["pieces"] = columns.pieces
    header["end"], header["pad"] = columns.special_ids()
    header |= columns.packed(detailed)
    steps = len(trajectory)
    if len(detailed) < steps:
        header["detailed"] = detailed
        note += f" To keep this page small, the candidates are kept for {len(detailed)} of {steps} steps."
    header["note"] = note.strip()
    return header


def run_header(trajectory: Trajectory, name: str) -> dict[str, Any]:
    """What the contract says of a run apart from its steps."""
    texts = trajectory.context_strings
    if not texts:
        texts = [trajectory.token_strings[i] for i in trajectory.tokens[-1].tolist()]
    is_written = trajectory.span_mask.tolist()
    context = ["" if written else text for text, written in zip(texts, is_written, strict=True)]
    if context[0] in BEGINNINGS:
        context[0] = ""
    settings = trajectory.settings
    return {
        "name": name,
        "steps": settings.get("steps", trajectory.first + len(trajectory)),
        "first": trajectory.first,
        "positions": trajectory.span_mask.nonzero()[:, 0].tolist(),
        "known": context,
        "pins": _pins(trajectory),
    }


def _pins(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Pinned tokens by their text; a file may hold anything, so what does not fit is dropped."""
    pins = trajectory.settings.get("pins", [])
    if not isinstance(pins, list):
        return []
    shown = [_shown_pin(trajectory, pin) for pin in pins if isinstance(pin, dict)]
    return [pin for pin in shown if pin]


def _shown_pin(trajectory: Trajectory, pin: dict) -> dict[str, Any] | None:
    """A pin with its token's text, None where its numbers are not numbers or the token is unknown."""
    numbers = [pin.get(name) for name in ("position", "step", "token")]
    if not all(isinstance(number, int) for number in numbers):
        return None
    position, step, token = numbers
    if token not in trajectory.token_strings:
        return None
    shown = {"position": position, "step": step, "token": piece(trajectory, token)}
    if isinstance(pin.get("until"), int):
        shown["until"] = pin["until"]
    return shown


class _Columns:
    """A trajectory's numbers at the positions it wrote, as the explorer reads them."""

    def __init__(self, trajectory: Trajectory, positions: torch.Tensor):
        self.trajectory = trajectory
        self.positions = positions
        self.ids = sorted(trajectory.token_strings)
        self.pieces = [piece(trajectory, i) for i in self.ids]
        self.width = torch.uint16 if len(self.ids) <= 2**16 else torch.uint32
        self.p = (trajectory.top_p[:, positions] * 255).round().to(torch.uint8)  # (S, M, k)
        self.kept = self.p > 0
        self.kept[..., 0] = True
        self.kept[..., 255:] = False  # their number is a byte

    def special_ids(self) -> tuple[list[int], list[int]]:
        """Indices of the tokens that end a text, and of those that pad it."""
        return self._named_ids("eos_token_id", ENDS), self._named_ids("pad_token_id", PADS)

    def _named_ids(self, setting: str, texts: set[str]) -> list[int]:
        """Indices of the ids that a setting names; where it is missing, of the tokens with these texts."""
        strings = self.trajectory.token_strings
        named = self.trajectory.settings.get(setting, [i for i, text in strings.items() if text in texts])
        if not isinstance(named, list):
            named = [named]
        index = {token: at for at, token in enumerate(self.ids)}
        return [index[i] for i in named if isinstance(i, int) and i in index]

    def detailed(self) -> list[int]:
        """The steps whose candidates fit; all of them but in large runs."""
        steps, places = self.p.shape[:2]
        size = self.width.itemsize
        always = steps * places * (size + 1)
        by_step = places + self.kept.sum((1, 2)) * (size + 1)
        if always + steps * places + int(by_step.sum()) <= RUN_BYTES:
            return list(range(steps))
        room = max(1, int((RUN_BYTES - always) / float(by_step.float().mean())))
        return spread(steps, min(steps, max(2, room)))

    def packed(self, detailed: list[int]) -> dict[str, Any]:
        """The columns; entropies only where there is room for them."""
        run = self.trajectory
        at = self.positions
        listed = self.kept[detailed]
        entropy = torch.empty(0)
        if len(detailed) == len(run):
            entropy = (run.entropy[:, at] * 16).round().clamp(0, 255)
        reward = None
        if "reward" in run.records:
            reward = _rounded(run.records["reward"], 4)
        before = torch.empty(0)
        gain = torch.empty(0)
        if "logprob_gain" in run.records:
            before = run.records["argmax_before_guidance"][:, at]
            gain = (run.records["logprob_gain"][:, at] * 100).round().clamp(-32_767, 32_767)
        top = run.top_ids[detailed][:, at]
        return self._optional(detailed) | {
            "tokens": self._indices(run.tokens[:, at]),
            "sure": _packed(self.p[..., 0], torch.uint8),
            "counts": _packed(listed.sum(-1), torch.uint8),
            "top": self._indices(top[listed]),
            "p": _packed(self.p[detailed][listed], torch.uint8),
            "entropy": _packed(entropy, torch.uint8),
            "alpha_bar": _rounded(run.alpha_bar, 5),
            "reward": reward,
            "before": self._indices(before),
            "gain": _packed(gain, torch.int16),
        }

    def _optional(self, detailed: list[int]) -> dict[str, str]:
        """How likely the drawn tokens were, and the loudest tokens of the noisy pages, where there is room for them."""
        records = self.trajectory.records
        steps, places = self.p.shape[:2]
        size = self.width.itemsize
        used = steps * places * (size + 3) + int(self.kept.sum()) * (size + 1)
        columns: dict[str, str] = {}
        if len(detailed) < steps or used + steps * places * (size + 1) > RUN_BYTES:
            return columns
        if "token_p" in records:
            columns["drawn"] = _packed((records["token_p"][:, self.positions] * 255).round(), torch.uint8)
        if "noisy_tokens" in records:
            columns["noisy"] = self._indices(records["noisy_tokens"][:, self.positions])
        return columns

    def _indices(self, ids: torch.Tensor) -> str:
        indices = torch.searchsorted(torch.tensor(self.ids), ids.long())
        return _packed(indices, self.width)


def _rounded(values: torch.Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def piece(trajectory: Trajectory, token: int) -> str:
    """A token's text; bytes that are not whole characters as U+DC00 + byte, for the explorer to join."""
    partial = trajectory.token_bytes.get(token)
    if partial is None:
        return trajectory.token_strings[token]
    return bytes(partial).decode("utf-8", "surrogateescape")


def _packed(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    numbers = tensor.to(dtype).numpy()
    return base64.b64encode(numbers.tobytes()).decode()


def _page(data: dict[str, Any], runs: dict[str, Trajectory]) -> str:
    """The element, what it shows without scripts, and the script that draws in it."""
    identity = f"t2-{secrets.token_hex(6)}"
    notes = [run["note"] for run in data["runs"]]
    static = "".join(_static(name, run, note) for (name, run), note in zip(runs.items(), notes, strict=True))
    literal = json.dumps(data).replace("<", "\\u003c")  # no text can close the script element
    call = f'explore(document.getElementById("{identity}"), {literal});'
    script = f"<script>(() => {{\n{_script()}\n{call}\n}})();</script>"
    return f'<div id="{identity}" class="t2-explorer">{static}</div>{script}'


def _static(name: str, trajectory: Trajectory, note: str) -> str:
    title = f"<p><b>{html.escape(name)}</b></p>" if name else ""
    text = html.escape(_readable(trajectory.texts[-1]))
    say = f"{trajectory.label(len(trajectory) - 1)}. To go through the steps, run the cell or let scripts run."
    noted = f"<p>{html.escape(note)}</p>" if note else ""
    return (
        f'{title}<p>{html.escape(say)}</p><div dir="auto" style="white-space: pre-wrap">{text}</div>'
        f"{noted}{_listing(trajectory)}"
    )


def _listing(trajectory: Trajectory) -> str:
    steps = len(trajectory)
    longest = max(len(text) for text in trajectory.texts)
    room = LISTED_CHARACTERS // max(1, longest)
    listed = spread(steps, max(1, min(steps, LISTED, room)))
    frames = []
    for i in listed:
        signal = float(trajectory.alpha_bar[i])
        heading = html.escape(f"{trajectory.label(i)}, {signal:.0%} signal")
        text = html.escape(_readable(trajectory.texts[i]))
        frames.append(f"<p><b>{heading}</b><br>{text}</p>")
    what = f"All {steps} steps" if len(listed) == steps else f"{len(listed)} of {steps} steps"
    return f"<details><summary>{what} as a list</summary>{''.join(frames)}</details>"


def _readable(text: str) -> str:
    """Text that UTF-8 can hold, without the padding at its end."""
    return PADDING.sub("", text).encode("utf-8", "replace").decode()


@cache
def _script() -> str:
    """The module as a plain script: without its exports, its comments and its indentation."""
    code = MODULE.read_text(encoding="utf-8")
    code = code[code.index("const STYLE") :]
    lines = [line.strip() for line in code.splitlines()]
    code = "\n".join(line for line in lines if line and not line.startswith(("//", "/**", "export default")))
    return re.sub(r"^export ", "", code, flags=re.MULTILINE)


setattr(Trajectory, "_repr_html_", explorer)  # noqa: B010  IPython shows a trajectory as its explorer
