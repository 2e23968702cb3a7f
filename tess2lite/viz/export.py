"""A trajectory as a file: .html (the explorer, whole and offline), .gif (the text as it comes), .png (a film strip)."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from ..trajectory import Trajectory
from ..validation import expand_path
from .explorer import Run, as_trajectory, explorer, spread

FRAMES = 60  # of a GIF, at most
FONT = get_font(findfont("DejaVu Sans Mono"))
MAP = "cividis"  # monotone in luminance, the same to colour-blind eyes


def export(trajectory: Run, path: str | Path) -> Path:
    """Write a run as a file.

    Args:
        trajectory: What was recorded.
        path: Its ending says the format: .html, .gif or .png.

    Returns:
        The path.

    Raises:
        ValueError: If the path has another ending.
        OSError: If the file cannot be written.
    """
    path = Path(expand_path(path))
    trajectory = as_trajectory(trajectory)
    writers = {".html": _html, ".gif": _gif, ".png": _png}
    if path.suffix not in writers:
        raise ValueError(f"'{path}' ends in '{path.suffix}'; give a name that ends in {', '.join(writers)}.")
    try:
        writers[path.suffix](trajectory, path)
    except OSError as problem:
        reason = problem.strerror or problem
        raise OSError(f"'{path}' could not be written ({reason}); give a file in a folder with room.") from problem
    return path


TITLE = "A text out of noise"
STYLE = """:root { color-scheme: light dark } body { max-width: 860px; margin: 12px auto; padding: 0 8px }
h1 { margin: 0 0 8px; font: 600 22px/1.3 Charter, Georgia, "Liberation Serif", serif }
@media (prefers-color-scheme: dark) { :root { background: #111 } }"""
HEAD = f"""<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title><style>{STYLE}</style>"""


def _png(trajectory: Trajectory, path: Path) -> None:
    film_strip(trajectory).savefig(path, dpi=150)


def _html(trajectory: Trajectory, path: Path) -> None:
    body = f"<main><h1>{TITLE}</h1>{explorer(trajectory)}</main>"
    page = f'<!doctype html><html lang="en"><head>{HEAD}</head><body>{body}</body></html>'
    path.write_text(page, encoding="utf-8")


def _gif(trajectory: Trajectory, path: Path) -> None:
    steps = spread(len(trajectory), FRAMES)
    texts = [textwrap.fill(drawable(trajectory.texts[step]), 80) for step in steps]
    most_lines = max(text.count("\n") + 1 for text in texts)
    height = 0.6 + 0.22 * most_lines  # inches
    figure, axis = plt.subplots(figsize=(8, height))
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.98)
    axis.axis("off")
    place: dict[str, Any] = {"va": "top", "transform": axis.transAxes}
    label = axis.text(0, 1, "", fontsize=8, color="0.35", **place)
    shown = axis.text(0, 1 - 0.3 / height, "", fontsize=10, family="monospace", **place)

    def draw(frame: int) -> None:
        label.set_text(_label(trajectory, steps[frame]))
        shown.set_text(texts[frame])

    animation = FuncAnimation(figure, draw, len(steps))
    animation.save(path, PillowWriter(fps=8), dpi=100)
    plt.close(figure)


def film_strip(trajectory: Run, frames: int = 6) -> Figure:
    """The text at a few steps from first to last, each beside the mean confidence of its prediction."""
    trajectory = as_trajectory(trajectory)
    steps = spread(len(trajectory), frames)
    texts = [textwrap.fill(drawable(trajectory.texts[step]), 92) or " " for step in steps]
    heights = [text.count("\n") + 2.2 for text in texts]  # lines
    size = (7.9, 0.19 * sum(heights))  # inches
    figure, axes = plt.subplots(len(steps), 1, figsize=size, height_ratios=heights, squeeze=False)
    colors = plt.get_cmap(MAP)
    for axis, step, text, height in zip(axes[:, 0], steps, texts, heights, strict=True):
        written = trajectory.confidence[step][trajectory.span_mask]
        confidence = float(written.mean())
        bar = plt.Rectangle((0, 0.06), 0.012, 0.88, color=colors(confidence))
        axis.add_patch(bar)
        says = f"{_label(trajectory, step)}   mean confidence {confidence:.2f}"
        axis.text(0.022, 0.94, says, fontsize=8, va="top", color="0.35")
        axis.text(0.022, 0.94 - 1.1 / height, text, fontsize=9, va="top", family="monospace")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.axis("off")
    figure.tight_layout(pad=0.2)
    plt.close(figure)  # returned, not shown twice
    return figure


def _label(trajectory: Trajectory, step: int) -> str:
    return f"{trajectory.label(step)}   ᾱ {trajectory.alpha_bar[step]:.2f}"


def drawable(text: str) -> str:
    """Text as matplotlib can draw it: one line, no dollar mathematics, no signs its font lacks."""
    flat = " ".join(text.replace("$", r"\$").split())
    return "".join(char if FONT.get_char_index(ord(char)) else "·" for char in flat)
