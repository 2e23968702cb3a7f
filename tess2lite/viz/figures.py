"""Trajectory → matplotlib Figure, for papers and static pages."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..schedule import SCHEDULES, alpha_bar
from .explorer import Run, as_trajectory
from .export import MAP, drawable
from .theory import recovery_probability

DASHES = ("-", "--", ":")
MARKERS = "os^D"
INK = "#787878"  # as readable on white as on a dark page
Drawn = ParamSpec("Drawn")
Interval: TypeAlias = Sequence[Any]  # numbers: mean, low, high; None where an end is unknown


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one pair of axes, which no notebook shows by itself."""
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure, axis


def _on_any_page(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Let the page show through a figure; what was black becomes `INK`."""

    @functools.wraps(draw)
    def drawn(*args: Drawn.args, **kwargs: Drawn.kwargs) -> Figure:
        figure = draw(*args, **kwargs)
        figure.set_facecolor("none")
        for axis in figure.axes:
            axis.set_facecolor("none")
            axis.tick_params(colors=INK, which="both")
            for spine in axis.spines.values():
                spine.set_edgecolor(INK)
            legend = axis.get_legend()
            if legend:
                legend.get_frame().set_facecolor("none")
        for text in figure.findobj(Text):
            if text.get_color() == "black":
                text.set_color(INK)
        return figure

    return drawn


@_on_any_page
def trajectory_map(trajectory: Run) -> Figure:
    """Confidence of every written position at every step; a dot where the shown token changed from the step before."""
    trajectory = as_trajectory(trajectory)
    confidence = trajectory.confidence[:, trajectory.span_mask].T.numpy()  # (M, S)
    tokens = trajectory.tokens[:, trajectory.span_mask].T.numpy()
    positions, steps = confidence.shape
    figure, axis = _axes(8, 4.5)
    image = axis.imshow(
        confidence,
        aspect="auto",
        cmap=MAP,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(0.5, steps + 0.5, positions - 0.5, -0.5),  # steps count from 1
    )
    position, step = np.nonzero(tokens[:, 1:] != tokens[:, :-1])
    axis.plot(
        step + 2,
        position,
        ".",
        color="white",
        markeredgecolor="black",
        markeredgewidth=0.3,
        markersize=3,
    )
    axis.set_xlabel("diffusion step")
    axis.set_ylabel("written position")
    axis.set_title("confidence; dots: the token changed")
    figure.colorbar(image, ax=axis, label="probability of the most likely token")
    return figure


@_on_any_page
def commit_order(trajectory: Run) -> Figure:
    """When each written position settled: the step from which its most likely token never changed, by position."""
    trajectory = as_trajectory(trajectory)
    written = trajectory.span_mask.nonzero()[:, 0]
    settled_at = trajectory.commit_step()[written] + 1
    changes = trajectory.flips()[written]
    figure, axis = _axes(8, 3.2)
    points = axis.scatter(written, settled_at, c=changes, cmap=MAP, s=14)
    figure.colorbar(points, ax=axis, label="changes of mind")
    axis.set_xlabel("position")
    axis.set_ylabel("settled at step")
    axis.set_ylim(0, len(trajectory) + 1)
    return figure


@_on_any_page
def bands(trajectory: Run) -> Figure:
    """Entropy and confidence over the steps: median of the written positions, their middle half and middle 90 %."""
    trajectory = as_trajectory(trajectory)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    plt.close(figure)
    written = trajectory.span_mask
    _draw_bands(left, trajectory.entropy[:, written], "entropy (nats)")
    _draw_bands(right, trajectory.confidence[:, written], "probability of the most likely token")
    left.legend(fontsize=8)
    return figure


def _draw_bands(axis: Axes, values: torch.Tensor, label: str) -> None:
    """Quantiles of (S, M) values over the M positions, by step."""
    quantiles = np.quantile(values.numpy(), [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
    low, lower, middle, upper, high = quantiles
    steps = np.arange(1, len(values) + 1)
    axis.fill_between(steps, low, high, alpha=0.15, color="C0", label="middle 90 %")
    axis.fill_between(steps, lower, upper, alpha=0.35, color="C0", label="middle half")
    axis.plot(steps, middle, color="C0", label="median")
    axis.set_xlabel("diffusion step")
    axis.set_ylabel(label)


@_on_any_page
def schedules(timesteps: int = 5000) -> Figure:
    """ᾱ against time, for every schedule there is."""
    figure, axis = _axes(6.5, 3.4)
    times = np.arange(timesteps) / timesteps
    for name, dash in zip(SCHEDULES, itertools.cycle(DASHES)):
        label = name.replace("_", " ")
        axis.plot(times, alpha_bar(timesteps, name), dash, label=label)
    axis.set_xlabel("time $t/T$")
    axis.set_ylabel("signal left, $\\bar\\alpha_t$")
    axis.legend()
    return figure


@_on_any_page
def recovery(vocabularies: Sequence[int] = (100, 1_024, 32_000), timesteps: int = 5000) -> Figure:
    """Probability that the largest entry of a noisy simplex is its token, against time, by the exact integral."""
    figure, axis = _axes(6.5, 3.8)
    alphas_bar = alpha_bar(timesteps)
    times = np.linspace(0, 0.98, 50)
    for size, dash in zip(vocabularies, itertools.cycle(DASHES)):
        p = []
        for time in times:
            t = int(time * timesteps)
            p.append(recovery_probability(float(alphas_bar[t]), size))
        axis.plot(times, p, dash, label=f"V = {size:,}")
    axis.set_xlabel("time $t/T$")
    axis.set_ylabel("P(argmax is the token)")
    axis.legend()
    return figure


@_on_any_page
def token_bars(
    probabilities: Mapping[str, torch.Tensor], token: int, decode: Callable[[list[int]], str], count: int = 8
) -> Figure:
    """The most likely tokens of each distribution.

    Args:
        probabilities: (V,) by name.
        token: The true one, hatched.
        decode: Ids → text.
        count: How many tokens are shown.
    """
    number = len(probabilities)
    figure, axes = plt.subplots(1, number, figsize=(4.5 * number, 2.8), layout="constrained", squeeze=False)
    plt.close(figure)
    for axis, (name, p) in zip(axes[0], probabilities.items(), strict=True):
        top = p.topk(min(count, len(p)))
        ids = top.indices.tolist()
        colors = ["#c44" if i == token else "#789" for i in ids]
        bars = axis.barh(range(len(ids)), top.values.tolist(), color=colors)
        for i, bar in zip(ids, bars, strict=True):
            bar.set_hatch("//" if i == token else "")
        labels = [drawable(repr(decode([i]))) for i in ids]
        axis.set_yticks(range(len(ids)), labels)
        axis.invert_yaxis()
        axis.set_title(f"{name}: {float(p[token]):.1%} on the token")
        axis.set_xlabel("probability")
        axis.set_xlim(0, 1)
    return figure


Curve: TypeAlias = tuple[Sequence[int], Sequence[float]]  # steps and the loss at each


@_on_any_page
def loss_curves(curves: Mapping[str, Sequence[Curve]], loss: str = "diffusion loss (nats per token)") -> Figure:
    """A loss by training step.

    Args:
        curves: By name, (steps, losses) for each seed; thin lines are seeds, the thick one their mean.
        loss: Label of the axis.
    """
    figure, axis = _axes(6.5, 3.6)
    for (name, seeds), marker in zip(curves.items(), itertools.cycle("os^vD*")):
        steps, _ = seeds[0]
        mean = np.mean([losses for _, losses in seeds], axis=0)
        shown_marker = marker if len(steps) < 20 else None
        (line,) = axis.plot(steps, mean, marker=shown_marker, markersize=4, label=name)
        if len(seeds) > 1:
            for steps, losses in seeds:
                axis.plot(steps, losses, color=line.get_color(), linewidth=0.6)
    axis.set_xlabel("training step")
    axis.set_ylabel(loss)
    axis.legend(fontsize=8)
    return figure


@_on_any_page
def reward_curves(runs: Mapping[str, Run]) -> Figure:
    """Predicted reward over the steps of several runs, by name, on one scale."""
    figure, axis = _axes(6, 2.6)
    for (name, run), dash in zip(runs.items(), itertools.cycle(("-", "--", ":", "-."))):
        trajectory = as_trajectory(run)
        first = trajectory.first + 1
        steps = range(first, first + len(trajectory))
        axis.plot(steps, trajectory.records["reward"], dash, label=name)
    axis.set_xlabel("diffusion step")
    axis.set_ylabel("predicted reward")
    axis.legend()
    return figure


@_on_any_page
def steps_against_quality(
    arms: Mapping[str, Mapping[str, Interval]], metric: str, cost: str = "CPU seconds per text"
) -> Figure:
    """A metric by diffusion steps, with its interval, and what a text costs on a second axis.

    Args:
        arms: "50 steps, halted" → {metric: [mean, low, high], …}, as an experiment's `summary` has them; what
            follows the comma names the curve.
        metric: Which one is drawn.
        cost: The metric of the second axis.
    """
    figure, axis = _axes(7, 3.8)
    clock = axis.twinx()
    curves: dict[str, list] = {}
    for arm, measured in arms.items():
        number, _, kind = arm.partition(" steps")
        name = kind.strip(", ") or "self-conditioned"
        curves.setdefault(name, []).append((int(number), measured))
    for (name, points), marker in zip(curves.items(), itertools.cycle(MARKERS)):
        steps = [step for step, _ in points]
        color = _draw_intervals(axis, steps, [measured[metric] for _, measured in points], name, marker)
        seconds = [_halted_cost(measured, cost, step) for step, measured in points]
        clock.plot(steps, seconds, ":", marker=marker, markersize=3, color=color)
    axis.set_xlabel("diffusion steps")
    axis.set_ylabel(metric)
    clock.set_ylabel(f"{cost} (dotted)")
    axis.set_xscale("log")
    _label_only(axis, sorted({step for points in curves.values() for step, _ in points}))
    axis.legend(fontsize=8, loc="upper center")
    return figure


def _halted_cost(measured: Mapping[str, Interval], cost: str, steps: int) -> float:
    """Every run was watched to its end; a text that halts would have cost its share of the steps."""
    mean_steps, *_ = measured.get("steps", [steps])
    mean_cost, *_ = measured[cost]
    return mean_cost * mean_steps / steps


def _draw_intervals(axis: Axes, x: list[int], intervals: Iterable[Interval], name: str, marker: str) -> str:
    """Draws means with whiskers to low and high, none where they are unknown. Returns the color."""
    means = []
    below = []
    above = []
    for mean, low, high in intervals:
        means.append(mean)
        below.append(0 if low is None else mean - low)
        above.append(0 if high is None else high - mean)
    line, *_ = axis.errorbar(x, means, [below, above], marker=marker, capsize=3, label=name)
    return line.get_color()


def _label_only(axis: Axes, ticks: Sequence[int]) -> None:
    """A logarithmic x axis with these whole numbers and no others."""
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.minorticks_off()


@_on_any_page
def time_against_length(arms: Mapping[str, Mapping[str, Interval]], prefix: str = "seconds for ") -> Figure:
    """Seconds by the number of tokens written.

    Args:
        arms: By name, {"seconds for 64": [mean, low, high], …}.
        prefix: What stands before the number of tokens.
    """
    figure, axis = _axes(7, 3.8)
    for (name, measured), marker in zip(arms.items(), itertools.cycle(MARKERS)):
        points = {int(key.removeprefix(prefix)): value for key, value in measured.items() if key.startswith(prefix)}
        lengths = list(points)
        _draw_intervals(axis, lengths, points.values(), name, marker)
    axis.set_xlabel("tokens written")
    axis.set_ylabel("seconds")
    axis.set_xscale("log")
    axis.set_yscale("log")
    _label_only(axis, lengths)
    axis.legend(fontsize=8)
    return figure
