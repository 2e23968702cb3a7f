"""Quality against steps: `python -m tess2lite_course.experiments.steps_figure` draws assets/gallery/steps.png.

It reads assets/findings/09-stories.json (`make findings ROW=09-stories`) and prints how many steps suffice: the fewest
from which on no arm is measurably worse than 100 uniform steps on the same stories.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt

from .comparisons import judge

DATA = Path("assets/findings/09-stories.json")
PICTURE = Path("assets/gallery/steps.png")
REFERENCE = "100 uniform"
STYLES = {
    "uniform": ("C0", "o", "-"),
    "informative": ("C1", "s", "-"),
    "uniform, last draw": ("C0", "o", ":"),
    "informative, last draw": ("C1", "s", ":"),
    "uniform, no self-conditioning": ("C0", "x", "--"),
    "informative, no self-conditioning": ("C1", "x", "--"),
}
METRICS = {"nats per token": "nats per token under tinytown-ar", "valid stories": "share of valid stories"}


def curves(experiment: dict, metric: str) -> dict[str, list[tuple[int, float, float, float]]]:
    """Returns, by setting, (steps, mean, low, high) in rising order of steps."""
    points = {}
    for arm, metrics in experiment["summary"].items():
        steps, _, setting = arm.partition(" ")
        if metric in metrics and setting in STYLES:
            points.setdefault(setting, []).append((int(steps), *metrics[metric]))
    return {setting: sorted(curve) for setting, curve in points.items()}


def steps_within_noise(experiment: dict, metric: str, setting: str) -> int | None:
    """Returns the fewest steps from which on a setting is not measurably worse than 100 uniform steps.

    Args:
        experiment: With runs that hold answers.
        metric: Of stories.
        setting: Such as "informative".

    Returns:
        The number of steps; None if even the most steps are worse.
    """
    arms = sorted((int(arm.split()[0]), arm) for arm in experiment["arms"] if re.fullmatch(rf"\d+ {setting}", arm))
    fewest = None
    for steps, arm in reversed(arms):
        if _verdict(experiment, metric, arm) == "does not hold":
            break
        fewest = steps
    return fewest


def _verdict(experiment: dict, metric: str, arm: str) -> str:
    """Of the claim that an arm is better than the reference, paired by story."""
    if arm == REFERENCE:
        return "too small to tell"
    scores = {}
    for run in experiment["runs"]:
        if run["arm"] in (arm, REFERENCE):
            answers = run["answers"][metric]
            for question, score in zip(answers["questions"], answers["scores"], strict=True):
                scores.setdefault(run["arm"], {})[run["seed"], question] = score
    both = sorted(set(scores[arm]) & set(scores[REFERENCE]))
    mine, other = ([scores[side][key] for key in both] for side in (arm, REFERENCE))
    questions = [question for _, question in both]
    return judge({"metric": metric}, mine, other, questions, None, metric == "nats per token")["verdict"]


def draw(experiment: dict) -> plt.Figure:
    """Returns the figure: one panel per metric, steps on a logarithmic axis, shaded 95 % intervals."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(10, 3.8), layout="constrained")
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for setting, points in curves(experiment, metric).items():
            colour, marker, line = STYLES[setting]
            steps, means, lows, highs = zip(*points, strict=True)
            axis.plot(steps, means, color=colour, marker=marker, linestyle=line, label=setting)
            if line == "-":
                axis.fill_between(steps, lows, highs, color=colour, alpha=0.15)
        axis.set(xscale="log", xlabel="diffusion steps", ylabel=label)
    axes[0].legend(fontsize=8)
    stories = experiment["prompts"] * len(experiment["seeds"])
    figure.suptitle(f"{stories} stories, 95 % intervals of the solid lines")
    return figure


if __name__ == "__main__":
    experiment = json.loads(DATA.read_text())
    draw(experiment).savefig(PICTURE, dpi=120)
    for metric in METRICS:
        for setting in ("uniform", "informative"):
            steps = steps_within_noise(experiment, metric, setting)
            print(f"{metric}, {setting} timesteps: {steps} steps are within noise of 100 uniform ones")
