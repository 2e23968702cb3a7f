"""Trajectory → one HTML string that needs no kernel and no network."""

from __future__ import annotations

import base64
import html
import json
import secrets
from pathlib import Path

import torch

HERE = Path(__file__).parent
LISTED = 40  # steps that the list for readers without scripts holds
SUPPRESS = 'data-lm-suppress-shortcuts="true"'  # JupyterLab would take the arrow keys


def explorer(trajectory, note: str = "", beside=None) -> str:
    """The text at every step behind a slider with play, a tokens × steps map, each token's alternatives and history.

    Without scripts: the last text, and a list of earlier ones. note: a sentence to put under it. beside: a trajectory;
    tokens that differ from its are marked. Returns an HTML string; whatever a model wrote is shown as text
    (textContent), never run.
    """
    trajectory = getattr(trajectory, "trajectory", trajectory)  # a Generation will do
    identity, last = f"t2-{secrets.token_hex(6)}", len(trajectory) - 1
    css = (HERE / "explorer.css").read_text().replace("#ID", f"#{identity}")
    script = (HERE / "explorer.js").read_text().strip()
    bar = _BAR.format(last=last, first=trajectory.first, suppress=SUPPRESS)
    parts = ", ".join(map(_literal, (_data(trajectory, beside), bar, _PANELS)))
    call = f"({script})(document.getElementById({json.dumps(identity)}), {parts})"
    labels = _labels(trajectory)
    return (
        f'<div id="{identity}" role="group" aria-label="A text written by denoising"><style>{css}</style>'
        f"<output>{html.escape(labels[-1])}</output>"
        f'<div data-text dir="auto">{html.escape(trajectory.texts[-1])}</div>'
        "<p data-static>To scrub through the steps, run the cell, or let scripts run.</p>"
        f"<p data-note>{html.escape(note)}</p>{_listing(trajectory, labels)}"
        f"<script>{call}</script></div>"
    )


def comparison(runs: dict) -> str:
    """Runs side by side, name → trajectory: one slider moves all, and what differs from the first is marked."""
    if not isinstance(runs, dict) or not runs:
        raise ValueError(f"runs is {type(runs).__name__}; give a dict of one or more trajectories by name.")
    runs = {str(name): getattr(run, "trajectory", run) for name, run in runs.items()}
    identity, first = f"t2-{secrets.token_hex(6)}", next(iter(runs.values()))
    columns = "".join(
        f'<div style="flex:1;min-width:24em"><b>{html.escape(name)}</b>{explorer(run, beside=first)}</div>'
        for name, run in runs.items()
    )
    call = f"({_TOGETHER})(document.getElementById({json.dumps(identity)}))"
    return f'<div id="{identity}" style="display:flex;flex-wrap:wrap;gap:8px">{columns}<script>{call}</script></div>'


# A slider that moved takes the others to the same step of the run, as far as they have it, and stops their play.
_TOGETHER = """root => {
  const all = [...root.querySelectorAll("input[type=range]")];
  let leading = null;
  all.forEach(one => one.addEventListener("t2step", () => {
    if (leading) return;
    leading = one;
    all.filter(other => other !== one).forEach(other => {
      const step = +one.value + +one.dataset.first - other.dataset.first;
      other.value = Math.max(0, Math.min(+other.max, step));
      other.dispatchEvent(new Event("t2show"));
    });
    leading = null;
  }));
}"""


# Controls come from the script: where scripts do not run, nothing dead is shown.
_BAR = (
    '<div data-bar><button type="button" {suppress}>Play</button><input type="range" min="0" max="{last}" '
    'value="{last}" data-first="{first}" aria-label="diffusion step" {suppress}></div>'
)
_PANELS = (
    '<div data-below><figure><div data-map><canvas role="img" aria-label="Map of confidence: a '
    'column for each step, a row for each written token, light is sure"></canvas>'
    "<div data-cursor></div><div data-row></div></div>"
    "<figcaption>rows: tokens, columns: steps, light: sure. Click to go there.</figcaption>"
    '<svg viewBox="0 0 300 80" preserveAspectRatio="none" role="img" aria-label="Curves over the steps"></svg>'
    "<figcaption>over the steps, each to its own scale: — signal left ᾱ, - - mean entropy, ··· reward</figcaption>"
    "</figure><div><div data-which></div>"
    '<table aria-label="likeliest tokens"><tbody data-top></tbody></table>'
    "<div data-push></div><div data-flips></div><ul data-history></ul></div></div>"
    "<p data-hint>Shade and underline say how unsure the model is of its first choice: dashed below "
    "80 %, dotted below 40 %. <span data-differs hidden>A bar above: another token than in the first run. </span>"
    "<span data-pushed hidden>▴: guidance changed the likeliest token in this step. </span>"
    "Point at a token, or walk with the arrow keys.</p>"
)


def _labels(trajectory) -> list[str]:
    entropies = trajectory.entropy[:, trajectory.span_mask].mean(1).tolist()
    rewards = [""] * len(trajectory) if trajectory.reward is None else [f" · reward {r:.2f}" for r in trajectory.reward]
    return [
        f"{trajectory.label(i)} · ᾱ read {alpha_bar:.3f} · mean entropy {entropy:.2f} nats{reward}"
        for i, (alpha_bar, entropy, reward) in enumerate(
            zip(trajectory.alpha_bar.tolist(), entropies, rewards, strict=True)
        )
    ]


def _listing(trajectory, labels: list[str]) -> str:
    chosen = sorted({round(i) for i in torch.linspace(0, len(labels) - 1, min(LISTED, len(labels))).tolist()})
    frames = "".join(f"<p><b>{html.escape(labels[i])}</b><br>{html.escape(trajectory.texts[i])}</p>" for i in chosen)
    what = f"All {len(labels)} steps" if len(chosen) == len(labels) else f"{len(chosen)} of {len(labels)} steps"
    return f"<details><summary>{what} as a list</summary>{frames}</details>"


def _literal(value) -> str:
    """As JavaScript; "<" as an escape, so that no text can close the script element."""
    return json.dumps(value).replace("<", "\\u003c")


def _data(trajectory, beside) -> dict:
    """What the script draws: ids become places in a list of pieces, probabilities bytes.

    Of each prediction the tokens that would round to nothing are left out, but for the first.
    """
    written = trajectory.span_mask.nonzero()[:, 0]  # (M,)
    ids = sorted(trajectory.pieces)
    table = torch.tensor(ids)

    def place(of: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(table, of.long())

    p = (trajectory.top_p[:, written] * 255).round().to(torch.uint8)  # (S, M, k)
    kept = p > 0
    kept[..., 0] = True
    width = torch.uint16 if len(ids) < 2**16 else torch.uint32
    entropy = trajectory.entropy[:, written].mean(1)
    pushed = trajectory.push is not None
    curves = [(trajectory.alpha_bar, ""), (entropy, "6 4")]
    curves += [(trajectory.reward, "1 4")] if trajectory.reward is not None else []
    return {
        "steps": len(trajectory),
        "written": written.tolist(),
        "known": trajectory.known or [trajectory.pieces[i] for i in trajectory.tokens[-1].tolist()],
        "pieces": [trajectory.pieces[i] for i in ids],
        "bytes": width.itemsize,
        "tokens": _packed(place(trajectory.tokens[:, written]), width),
        "counts": _packed(kept.sum(-1), torch.uint8),
        "top": _packed(place(trajectory.top_ids[:, written])[kept], width),
        "p": _packed(p[kept], torch.uint8),
        "labels": _labels(trajectory),
        "differs": _packed(trajectory.difference(beside)[:, written], torch.uint8) if beside else "",
        "unguided": _packed(place(trajectory.unguided[:, written]), width) if pushed else "",
        "push": _packed((trajectory.push[:, written] * 100).round().clamp(-32_767, 32_767), torch.int16)
        if pushed
        else "",
        "curves": [{"values": [round(v, 4) for v in curve.tolist()], "dash": dash} for curve, dash in curves],
    }


def _packed(tensor: torch.Tensor, dtype) -> str:
    return base64.b64encode(tensor.to(dtype).numpy().tobytes()).decode()
