"""Trajectory → matplotlib Figure, for papers and static pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..schedule import SCHEDULES, alpha_bar
from .explorer import as_trajectory
from .export import MAP, drawable
from .theory import recovery_probability


def trajectory_map(trajectory) -> Figure:
    """Confidence of every written position at every step; a dot where the shown token changed from the step before."""
    trajectory = as_trajectory(trajectory)
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


def commit_order(trajectory) -> Figure:
    """When each written position settled: the step from which its most likely token never changed, by position."""
    trajectory = as_trajectory(trajectory)
    written = trajectory.span_mask.nonzero()[:, 0]
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axis.scatter(written, trajectory.commit_step()[written] + 1, c=trajectory.flips()[written], cmap=MAP, s=14)
    figure.colorbar(axis.collections[0], ax=axis, label="changes of mind")
    axis.set(xlabel="position", ylabel="settled at step", ylim=(0, len(trajectory) + 1))
    plt.close(figure)
    return figure


def bands(trajectory) -> Figure:
    """Entropy and confidence over the steps: median of the written positions, their middle half and middle 90 %."""
    trajectory = as_trajectory(trajectory)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    of = {"entropy (nats)": trajectory.entropy, "probability of the most likely token": trajectory.confidence}
    steps = np.arange(1, len(trajectory) + 1)
    for axis, (label, values) in zip(axes, of.items(), strict=True):
        low, lower, middle, upper, high = np.quantile(
            values[:, trajectory.span_mask].numpy(), [0.05, 0.25, 0.5, 0.75, 0.95], axis=1
        )
        axis.fill_between(steps, low, high, alpha=0.15, color="C0", label="middle 90 %")
        axis.fill_between(steps, lower, upper, alpha=0.35, color="C0", label="middle half")
        axis.plot(steps, middle, color="C0", label="median")
        axis.set(xlabel="diffusion step", ylabel=label)
    axes[0].legend(fontsize=8)
    plt.close(figure)
    return figure


def schedules(timesteps: int = 5000) -> Figure:
    """ᾱ against time, for every schedule there is."""
    figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    for name, dash in zip(SCHEDULES, itertools.cycle(["-", "--", ":"])):
        axis.plot(np.arange(timesteps) / timesteps, alpha_bar(timesteps, name), dash, label=name.replace("_", " "))
    axis.set(xlabel="time $t/T$", ylabel="signal left, $\\bar\\alpha_t$")
    axis.legend()
    plt.close(figure)
    return figure


def recovery(vocabularies=(100, 1_024, 32_000), timesteps: int = 5000) -> Figure:
    """Probability that the largest entry of a noisy simplex is its token, against time, by the exact integral."""
    figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    curve, times = alpha_bar(timesteps), np.linspace(0, 0.98, 50)
    for size, dash in zip(vocabularies, itertools.cycle(["-", "--", ":"])):
        p = [recovery_probability(float(curve[int(time * timesteps)]), size) for time in times]
        axis.plot(times, p, dash, label=f"V = {size:,}")
    axis.set(xlabel="time $t/T$", ylabel="P(argmax is the token)")
    axis.legend()
    plt.close(figure)
    return figure


def token_bars(probabilities: dict, token: int, decode, count: int = 8) -> Figure:
    """The likeliest tokens of each distribution. probabilities: name → (V,); token: the true one, hatched."""
    figure, axes = plt.subplots(1, len(probabilities), figsize=(4.5 * len(probabilities), 2.8), layout="constrained")
    for axis, (name, p) in zip(np.atleast_1d(axes), probabilities.items(), strict=True):
        values, ids = (part.tolist() for part in p.topk(min(count, len(p))))
        bars = axis.barh(range(len(ids)), values, color=["#c44" if i == token else "#789" for i in ids])
        for i, bar in zip(ids, bars, strict=True):
            bar.set_hatch("//" if i == token else "")
        axis.set_yticks(range(len(ids)), [drawable(repr(decode([i]))) for i in ids])
        axis.invert_yaxis()
        axis.set(title=f"{name}: {float(p[token]):.1%} on the token", xlabel="probability", xlim=(0, 1))
    plt.close(figure)
    return figure


def loss_curves(curves: dict, loss: str = "diffusion loss (nats a token)") -> Figure:
    """A loss by training step. curves: name → one (steps, losses) a seed; thin lines are seeds, thick their mean."""
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for (name, seeds), marker in zip(curves.items(), itertools.cycle("os^vD*")):
        steps, mean = seeds[0][0], np.mean([losses for _, losses in seeds], axis=0)
        (line,) = axis.plot(steps, mean, marker=marker if len(steps) < 20 else None, markersize=4, label=name)
        for steps, losses in seeds if len(seeds) > 1 else ():
            axis.plot(steps, losses, color=line.get_color(), linewidth=0.6)
    axis.set(xlabel="training step", ylabel=loss)
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure


def reward_curves(runs: dict) -> Figure:
    """Predicted reward over the steps of several runs, name → trajectory, on one scale."""
    figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
    for (name, run), dash in zip(runs.items(), itertools.cycle(("-", "--", ":", "-."))):
        axis.plot(range(run.first + 1, run.first + len(run) + 1), run.records["reward"], dash, label=name)
    axis.set(xlabel="diffusion step", ylabel="predicted reward")
    axis.legend()
    plt.close(figure)
    return figure


def steps_against_quality(arms: dict, metric: str, cost: str = "CPU seconds per text") -> Figure:
    """A metric by diffusion steps, with its interval, and what a text costs on a second axis.

    arms: "50 steps, halted" → {metric: [mean, low, high], …}, as a finding's `summary` has them; what follows the
    comma names the curve.
    """
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    clock, curves = axis.twinx(), {}
    for arm, measured in arms.items():
        steps, _, kind = arm.partition(" steps")
        curves.setdefault(kind.strip(", ") or "self-conditioned", []).append((int(steps), measured))
    for (kind, points), marker in zip(curves.items(), itertools.cycle("os^D")):
        steps, means = [step for step, _ in points], [measured[metric][0] for _, measured in points]
        whiskers = _whiskers([measured[metric] for _, measured in points])
        line = axis.errorbar(steps, means, whiskers, marker=marker, capsize=3, label=kind)
        # A run of all steps was watched; a text that halts would have cost its share of them.
        seconds = [m[cost][0] * m.get("steps", [step])[0] / step for step, m in points]
        clock.plot(steps, seconds, ":", marker=marker, markersize=3, color=line[0].get_color())
    axis.set(xscale="log", xlabel="diffusion steps", ylabel=metric)
    axis.set_xticks(sorted({step for points in curves.values() for step, _ in points}), minor=False)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.minorticks_off()
    clock.set_ylabel(f"{cost} (dotted)")
    axis.legend(fontsize=8, loc="upper center")
    plt.close(figure)
    return figure


def _whiskers(intervals: Iterable[list[float | None]]) -> list[list[float]]:
    """How far [mean, low, high] intervals reach below and above their means; none where they are unknown."""
    known = [(mean, *(mean if end is None else end for end in ends)) for mean, *ends in intervals]
    return [[mean - low for mean, low, _ in known], [high - mean for mean, _, high in known]]


def time_against_length(arms: dict, prefix: str = "seconds for ") -> Figure:
    """Seconds by the number of tokens written. arms: name → {"seconds for 64": [mean, low, high], …}."""
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for (name, measured), marker in zip(arms.items(), itertools.cycle("os^D")):
        points = {int(key.removeprefix(prefix)): value for key, value in measured.items() if key.startswith(prefix)}
        lengths = list(points)
        means = [mean for mean, _, _ in points.values()]
        axis.errorbar(lengths, means, _whiskers(points.values()), marker=marker, capsize=3, label=name)
    axis.set(xscale="log", yscale="log", xlabel="tokens written", ylabel="seconds")
    axis.set_xticks(lengths)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.minorticks_off()
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure
