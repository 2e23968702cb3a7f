"""A trajectory as a file: .html (the explorer, whole and offline), .gif (the text as it comes), .png (a film strip)."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from .figures import drawable, film_strip
from .html import explorer

FRAMES = 60  # of a GIF, at most


def export(trajectory, path) -> Path:
    """Writes what the path's ending says. Returns the path; raises ValueError for another ending."""
    path, trajectory = Path(path), getattr(trajectory, "trajectory", trajectory)  # a Generation will do
    writers = {".html": _html, ".gif": _gif, ".png": lambda run, to: film_strip(run).savefig(to, dpi=150)}
    if path.suffix not in writers:
        raise ValueError(f"'{path}' ends in '{path.suffix}'; give a name that ends in {', '.join(writers)}.")
    writers[path.suffix](trajectory, path)
    return path


# As JupyterLab's dark theme has it: the explorer is styled by these.
DARK = """:root { color-scheme: light dark } @media (prefers-color-scheme: dark) { :root { background: #111;
--jp-content-font-color1: #eee; --jp-layout-color0: #111; --jp-border-color1: #616161 } }"""


def _html(trajectory, path: Path) -> None:
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A text out of noise</title>'
        f"<style>{DARK}</style></head>"
    )
    path.write_text(f"{head}<body><main>{explorer(trajectory)}</main></body></html>", encoding="utf-8")


def _gif(trajectory, path: Path) -> None:
    steps = np.unique(np.linspace(0, len(trajectory) - 1, FRAMES).round().astype(int))
    texts = [textwrap.fill(drawable(trajectory.texts[step]), 80) for step in steps]
    height = 0.6 + 0.22 * max(text.count("\n") + 1 for text in texts)  # inches
    figure, axis = plt.subplots(figsize=(8, height))
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.98)
    axis.axis("off")
    label = axis.text(0, 1, "", fontsize=8, color="0.35", va="top", transform=axis.transAxes)
    shown = axis.text(0, 1 - 0.3 / height, "", fontsize=10, va="top", family="monospace", transform=axis.transAxes)

    def draw(frame):
        label.set_text(f"{trajectory.label(steps[frame])}   ᾱ {trajectory.alpha_bar[steps[frame]]:.2f}")
        shown.set_text(texts[frame])

    FuncAnimation(figure, draw, len(steps)).save(path, PillowWriter(fps=8), dpi=100)
    plt.close(figure)
