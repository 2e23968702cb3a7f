"""Trajectory → matplotlib Figure, for papers and static pages."""

from __future__ import annotations

import itertools
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

MAP = "cividis"  # monotone in luminance, the same to colour-blind eyes


def film_strip(trajectory, frames: int = 6, width: int = 92) -> Figure:
    """The text at a few steps from first to last, each beside the mean confidence of its prediction."""
    steps = np.unique(np.linspace(0, len(trajectory) - 1, frames).round().astype(int))
    texts = [textwrap.fill(drawable(trajectory.texts[step]), width) or " " for step in steps]
    heights = [text.count("\n") + 2.2 for text in texts]
    figure, axes = plt.subplots(
        len(steps), 1, figsize=(0.086 * width, 0.19 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axis, step, text in zip(axes[:, 0], steps, texts, strict=True):
        confidence = float(trajectory.confidence[step][trajectory.span_mask].mean())
        axis.add_patch(plt.Rectangle((0, 0.06), 0.012, 0.88, color=plt.get_cmap(MAP)(confidence)))
        axis.text(
            0.022, 0.94, f"step {step + 1} of {len(trajectory)}   ᾱ {trajectory.alpha_bar[step]:.2f}   "
            f"mean confidence {confidence:.2f}", fontsize=8, va="top", color="0.35",
        )  # fmt: skip
        axis.text(0.022, 0.94 - 1.1 / (text.count("\n") + 2.2), text, fontsize=9, va="top", family="monospace")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.axis("off")
    figure.tight_layout(pad=0.2)
    plt.close(figure)  # returned, not shown twice
    return figure


def trajectory_map(trajectory) -> Figure:
    """Confidence of every written position at every step; a dot where the shown token changed from the step before."""
    confidence = trajectory.confidence[:, trajectory.span_mask].T.numpy()  # (M, S)
    tokens = trajectory.tokens[:, trajectory.span_mask].T.numpy()
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    image = axis.imshow(
        confidence,
        aspect="auto",
        cmap=MAP,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(0.5, confidence.shape[1] + 0.5, confidence.shape[0] - 0.5, -0.5),
    )  # steps count from 1
    position, step = np.nonzero(tokens[:, 1:] != tokens[:, :-1])
    axis.plot(step + 2, position, ".", color="white", markeredgecolor="black", markeredgewidth=0.3, markersize=3)
    axis.set(xlabel="diffusion step", ylabel="written position", title="confidence; dots: the token changed")
    figure.colorbar(image, ax=axis, label="probability of the most likely token")
    plt.close(figure)
    return figure


def loss_curves(curves: dict[str, list[tuple[list[int], list[float]]]]) -> Figure:
    """Loss against training step. curves: name → one (steps, losses) a seed; thin lines are seeds, thick their mean."""
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for (name, seeds), marker in zip(curves.items(), itertools.cycle("os^vD*")):
        steps, mean = seeds[0][0], np.mean([losses for _, losses in seeds], axis=0)
        (line,) = axis.plot(steps, mean, marker=marker if len(steps) < 20 else None, markersize=4, label=name)
        for steps, losses in seeds if len(seeds) > 1 else ():
            axis.plot(steps, losses, color=line.get_color(), linewidth=0.6)
    axis.set(xlabel="training step", ylabel="diffusion loss (nats a token)")
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure


def drawable(text: str) -> str:
    """Text as matplotlib can draw it: one line, no dollar mathematics, no signs its font lacks."""
    flat = " ".join(text.replace("$", r"\$").split())
    return "".join(char if char.isprintable() and ord(char) < 0x2000 else "·" for char in flat)
