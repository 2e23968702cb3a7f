"""Trajectory → one HTML string that needs no kernel and no network."""

from __future__ import annotations

import base64
import html
import json
import secrets
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
LISTED = 40  # steps that the list for readers without scripts holds


def explorer(trajectory, note: str = "", beside=None) -> str:
    """The text at every step behind a slider with play, a tokens × steps map, each token's alternatives and history.

    Without scripts: the last text, and a list of earlier ones. note: a sentence to put under it. beside: a trajectory;
    tokens that differ from its are marked. Returns an HTML string; whatever a model wrote is shown as text
    (textContent), never run.
    """
    trajectory = run_of(trajectory)
    identity, labels = f"t2-{secrets.token_hex(6)}", _labels(trajectory)
    css = (HERE / "explorer.css").read_text().replace("#ID", f"#{identity}")
    return (
        f'<div id="{identity}" role="group" aria-label="A text written by denoising"><style>{css}</style>'
        f"<output>{html.escape(labels[-1])}</output>"
        f'<div data-text dir="auto">{html.escape(trajectory.texts[-1])}</div>'
        "<p data-static>To scrub through the steps, run the cell, or let scripts run.</p>"
        f"<p data-note>{html.escape(note)}</p>{_listing(trajectory, labels)}"
        f"{_script('explorer', identity, _data(trajectory, beside, labels))}</div>"
    )


def run_of(given):
    """The trajectory of what `generate` returned, or a trajectory as it is."""
    run = getattr(given, "trajectory", given)
    if not hasattr(run, "top_ids"):
        raise TypeError(f"The run is a {type(given).__name__}; give what generate returned, or its trajectory.")
    return run


def comparison(runs: dict) -> str:
    """Runs side by side, name → trajectory: one slider moves all, and what differs from the first is marked."""
    if not isinstance(runs, dict) or not runs:
        raise ValueError(f"runs is {type(runs).__name__}; give a dict of one or more trajectories by name.")
    runs = {str(name): run_of(run) for name, run in runs.items()}
    identity, first = f"t2-{secrets.token_hex(6)}", next(iter(runs.values()))
    columns = "".join(
        f'<div style="flex:1;min-width:24em"><b>{html.escape(name)}</b>{explorer(run, beside=first)}</div>'
        for name, run in runs.items()
    )
    style = "display:flex;flex-wrap:wrap;gap:8px"
    return f'<div id="{identity}" style="{style}">{columns}{_script("comparison", identity)}</div>'


def _script(name: str, identity: str, *data) -> str:
    """A function of a .js file called on an element; "<" as an escape, so that no text can close the script element."""
    code = (HERE / f"{name}.js").read_text().strip()
    given = "".join(f", {json.dumps(part)}" for part in data).replace("<", "\\u003c")
    return f'<script>({code})(document.getElementById("{identity}"){given})</script>'


def spread(steps: int, count: int) -> list[int]:
    """At most `count` of a run's steps (index), evenly from the first to the last."""
    return np.unique(np.linspace(0, steps - 1, count).round().astype(int)).tolist()


def _labels(trajectory) -> list[str]:
    entropy = trajectory.entropy[:, trajectory.span_mask].mean(1)  # (S,)
    return [
        f"{trajectory.label(i)} · ᾱ read {trajectory.alpha_bar[i]:.3f} · mean entropy {entropy[i]:.2f} nats"
        + ("" if trajectory.reward is None else f" · reward {trajectory.reward[i]:.2f}")
        for i in range(len(trajectory))
    ]


def _listing(trajectory, labels: list[str]) -> str:
    chosen = spread(len(labels), LISTED)
    frames = "".join(f"<p><b>{html.escape(labels[i])}</b><br>{html.escape(trajectory.texts[i])}</p>" for i in chosen)
    what = f"All {len(labels)} steps" if len(chosen) == len(labels) else f"{len(chosen)} of {len(labels)} steps"
    return f"<details><summary>{what} as a list</summary>{frames}</details>"


def _data(trajectory, beside, labels: list[str]) -> dict:
    """What the script draws: ids become places in a list of pieces, probabilities bytes.

    Of each prediction the tokens that would round to nothing are left out, but for the first.
    """
    written = trajectory.span_mask.nonzero()[:, 0]  # (M,)
    ids = sorted(trajectory.token_strings)
    width = torch.uint16 if len(ids) < 2**16 else torch.uint32

    def places(of: torch.Tensor) -> str:
        return _packed(torch.searchsorted(torch.tensor(ids), of.long()), width)

    p = (trajectory.top_p[:, written] * 255).round().to(torch.uint8)  # (S, M, k)
    kept = p > 0
    kept[..., 0], kept[..., 255:] = True, False  # how many there are is a byte
    unguided, push = torch.empty(2, 0)
    if trajectory.logprob_gain is not None:
        unguided, push = trajectory.argmax_before_guidance[:, written], trajectory.logprob_gain[:, written]  # (S, M)
    curves = [trajectory.alpha_bar, trajectory.entropy[:, written].mean(1), trajectory.reward]
    return {
        "first": trajectory.first,
        "written": written.tolist(),
        "known": trajectory.known or [trajectory.token_strings[i] for i in trajectory.tokens[-1].tolist()],
        "pieces": [trajectory.token_strings[i] for i in ids],
        "tokens": places(trajectory.tokens[:, written]),
        "counts": _packed(kept.sum(-1), torch.uint8),
        "top": places(trajectory.top_ids[:, written][kept]),
        "p": _packed(p[kept], torch.uint8),
        "labels": labels,
        "differs": _packed(trajectory.difference(beside)[:, written], torch.uint8) if beside else "",
        "unguided": places(unguided),
        "push": _packed((push * 100).round().clamp(-32_767, 32_767), torch.int16),
        "curves": [[round(value, 4) for value in curve.tolist()] for curve in curves if curve is not None],
    }


def _packed(tensor: torch.Tensor, dtype) -> str:
    return base64.b64encode(tensor.to(dtype).numpy().tobytes()).decode()
