"""Trajectory → one HTML string that needs no kernel and no network."""

from __future__ import annotations

import html
import json
import secrets

# Inline, no fetch, text only through textContent: whatever a model wrote is shown, never run.
_SCRIPT = """
(() => {
  const root = document.getElementById(ID), frames = FRAMES, range = root.querySelector("input");
  const text = root.querySelector("[data-text]"), label = root.querySelector("output");
  const button = root.querySelector("button");
  let timer = null;
  const show = () => {
    const frame = frames[range.value];
    text.textContent = frame.text;
    label.textContent = frame.label;
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const tick = () => { if (+range.value >= +range.max) return stop(); range.value = +range.value + 1; show(); };
  button.onclick = () => {
    if (timer) return stop();
    if (+range.value >= +range.max) range.value = 0;
    show();
    timer = setInterval(tick, 120);
    button.textContent = "Pause";
  };
  range.oninput = () => { stop(); show(); };
  root.querySelector("[data-controls]").hidden = false;
  show();
})();
"""

_STYLE = (
    "border:1px solid var(--jp-border-color1,#ccc);border-radius:4px;padding:10px;max-width:52em;"
    "color:var(--jp-content-font-color1,inherit);background:var(--jp-layout-color0,transparent)"
)


def _label(trajectory, step: int) -> str:
    entropy = trajectory.entropy[step][trajectory.span_mask].mean()
    return (
        f"step {step + 1} of {len(trajectory)} · ᾱ read {trajectory.alpha_bar[step]:.3f} · "
        f"mean entropy {entropy:.2f} nats"
    )


def scrubber(trajectory, note: str = "") -> str:
    """The text at every step behind a slider with play; without scripts the last text and a list of frames.

    note: a sentence to put under it. Returns an HTML string.
    """
    frames = [{"text": text, "label": _label(trajectory, i)} for i, text in enumerate(trajectory.texts)]
    last, identity = frames[-1], f"t2-{secrets.token_hex(6)}"
    script = _SCRIPT.replace("ID", json.dumps(identity), 1)
    # "<" as an escape: no text can close the script element.
    script = script.replace("FRAMES", json.dumps(frames).replace("<", "\\u003c"), 1)
    listing = "".join(f"<p><b>{html.escape(f['label'])}</b><br>{html.escape(f['text'])}</p>" for f in frames)
    suppress = 'data-lm-suppress-shortcuts="true"'  # JupyterLab would take the arrow keys
    return (
        f'<div id="{identity}" style="{_STYLE}">'
        f'<div data-controls hidden><button type="button" {suppress}>Play</button> '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{len(frames) - 1}" aria-label="diffusion step" '
        f'style="width:60%;vertical-align:middle" {suppress}></div>'
        f"<output>{html.escape(last['label'])}</output>"
        f'<p data-text dir="auto" style="white-space:pre-wrap;min-height:6em;font-size:1.1em">'
        f"{html.escape(last['text'])}</p>"
        f"<p>{html.escape(note)}</p>"
        f"<details><summary>All {len(frames)} steps as a list</summary>{listing}</details>"
        f"<script>{script}</script></div>"
    )
