"""A trajectory as a file: .html (the explorer, whole and offline), .gif (the text as it comes), .png (a film strip)."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from ..validation import expand_path
from .explorer import as_trajectory, explorer, spread

FRAMES = 60  # of a GIF, at most
FONT = get_font(findfont("DejaVu Sans Mono"))
MAP = "cividis"  # monotone in luminance, the same to colour-blind eyes


def export(trajectory, path) -> Path:
    """Writes what the path's ending says. Returns the path; raises ValueError for another ending."""
    path = Path(expand_path(path))
    trajectory = as_trajectory(trajectory)
    writers = {".html": _html, ".gif": _gif, ".png": lambda run, to: film_strip(run).savefig(to, dpi=150)}
    if path.suffix not in writers:
        raise ValueError(f"'{path}' ends in '{path.suffix}'; give a name that ends in {', '.join(writers)}.")
    try:
        writers[path.suffix](trajectory, path)
    except OSError as problem:
        said = problem.strerror or problem
        raise OSError(f"'{path}' could not be written ({said}); give a file in a folder with room.") from problem
    return path


# As JupyterLab's dark theme has it: the explorer is styled by these.
DARK = """:root { color-scheme: light dark } @media (prefers-color-scheme: dark) { :root { background: #111;
--jp-content-font-color1: #eee; --jp-layout-color0: #111; --jp-border-color1: #616161 } }"""


def _html(trajectory, path: Path) -> None:
    head = f'<meta charset="utf-8"><title>A text out of noise</title><style>{DARK}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body><main>{explorer(trajectory)}</main></body></html>'
    path.write_text(page, encoding="utf-8")


def _gif(trajectory, path: Path) -> None:
    steps = spread(len(trajectory), FRAMES)
    texts = [textwrap.fill(drawable(trajectory.texts[step]), 80) for step in steps]
    height = 0.6 + 0.22 * max(text.count("\n") + 1 for text in texts)  # inches
    figure, axis = plt.subplots(figsize=(8, height))
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.98)
    axis.axis("off")
    label = axis.text(0, 1, "", fontsize=8, color="0.35", va="top", transform=axis.transAxes)
    shown = axis.text(0, 1 - 0.3 / height, "", fontsize=10, va="top", family="monospace", transform=axis.transAxes)

    def draw(frame):
        label.set_text(_label(trajectory, steps[frame]))
        shown.set_text(texts[frame])

    FuncAnimation(figure, draw, len(steps)).save(path, PillowWriter(fps=8), dpi=100)
    plt.close(figure)


def film_strip(trajectory, frames: int = 6) -> Figure:
    """The text at a few steps from first to last, each beside the mean confidence of its prediction."""
    trajectory = as_trajectory(trajectory)
    steps = spread(len(trajectory), frames)
    texts = [textwrap.fill(drawable(trajectory.texts[step]), 92) or " " for step in steps]
    heights = [text.count("\n") + 2.2 for text in texts]  # lines
    size = (7.9, 0.19 * sum(heights))  # inches
    figure, axes = plt.subplots(len(steps), 1, figsize=size, height_ratios=heights, squeeze=False)
    for axis, step, text, height in zip(axes[:, 0], steps, texts, heights, strict=True):
        confidence = float(trajectory.confidence[step][trajectory.span_mask].mean())
        axis.add_patch(plt.Rectangle((0, 0.06), 0.012, 0.88, color=plt.get_cmap(MAP)(confidence)))
        says = f"{_label(trajectory, step)}   mean confidence {confidence:.2f}"
        axis.text(0.022, 0.94, says, fontsize=8, va="top", color="0.35")
        axis.text(0.022, 0.94 - 1.1 / height, text, fontsize=9, va="top", family="monospace")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.axis("off")
    figure.tight_layout(pad=0.2)
    plt.close(figure)  # returned, not shown twice
    return figure


def _label(trajectory, step: int) -> str:
    return f"{trajectory.label(step)}   ᾱ {trajectory.alpha_bar[step]:.2f}"


def drawable(text: str) -> str:
    """Text as matplotlib can draw it: one line, no dollar mathematics, no signs its font lacks."""
    flat = " ".join(text.replace("$", r"\$").split())
    return "".join(char if FONT.get_char_index(ord(char)) else "·" for char in flat)
