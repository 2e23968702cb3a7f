"""`python tests/benchmarks/scaling.py`: how the cost of sampling grows with V, L, B and the number of steps.

The model of `common.py`, 2 threads, top_p 0.99, half of each text masked; what is not varied has the value there. Of a
step, and beside it of a bare forward pass with the head on the masked half: process CPU time, which other programs on
the machine disturb less than the clock, medians of steps taken in turn. A line is fitted by least squares, each point
weighted by 1/cost, so that a small model's error counts as much as a large one's. Writes assets/scaling.json and .png.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import B, L, V, bare, batch, model
from matplotlib import pyplot as plt

import tess2lite as t2

ASSETS = Path(__file__).parents[2] / "assets"
TURNS = 7
VARIED = {
    "vocabulary": (4_000, 8_000, 16_000, 32_000, 64_000),
    "length": (64, 128, 256, 512, 1024),
    "rows": (1, 2, 4, 8),
}
AXES = {"vocabulary": "vocabulary V", "length": "length L (tokens)", "rows": "batch B (texts)", "steps": "steps"}
STEPS = (5, 10, 20, 40)


def cpu_ms(once) -> float:
    begin = time.process_time()
    once()
    return (time.process_time() - begin) * 1000


def point(vocabulary=V, length=L, rows=B) -> dict[str, float]:
    """CPU ms of a step and of the bare pass."""
    lm, inputs = model(vocabulary, length).eval(), batch(vocabulary, length, rows)
    run = t2.denoise(lm, inputs, steps=TURNS + 2)
    timed = {"step": lambda: next(run), "bare": lambda: bare(lm, inputs)}
    turns = [{name: cpu_ms(once) for name, once in timed.items()} for _ in range(TURNS + 2)]
    return {name: statistics.median(turn[name] for turn in turns[2:]) for name in timed}


def whole_run(lm, inputs, steps: int) -> float:
    """CPU ms of all steps, the lesser of two runs."""
    return min(cpu_ms(lambda: list(t2.denoise(lm, inputs, steps=steps))) for _ in range(2))


def line(x, y) -> dict[str, float]:
    """Slope, intercept, R², and the largest deviation of a point from the line, relative to the line."""
    x, y = np.array(x, float), np.array(y)
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    fitted = slope * x + intercept
    r2 = 1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return {
        "slope": slope,
        "intercept": intercept,
        "r2": r2,
        "deviation": np.abs(y / fitted - 1).max(),
        "exponent": np.polyfit(np.log(x), np.log(y), 1)[0],
    }


def measured() -> dict:
    results = {}
    for name, values in VARIED.items():
        points = [point(**{name: value}) for value in values]
        results[name] = {"x": values, **{kind: [p[kind] for p in points] for kind in ("step", "bare")}}
        print(name, results[name], flush=True)
    lm, inputs = model().eval(), batch()
    results["steps"] = {"x": STEPS, "step": [whole_run(lm, inputs, steps) for steps in STEPS]}
    for result in results.values():
        result["lines"] = {kind: line(result["x"], result[kind]) for kind in ("step", "bare") if kind in result}
    return results


def draw(results: dict) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        for kind, marker, colour in (("step", "o", "#1f4e79"), ("bare", "s", "#b8860b")):
            if kind not in result:
                continue
            fit, x = result["lines"][kind], np.array([0, max(result["x"])])
            label = {"step": "the run" if name == "steps" else "a sampling step", "bare": "bare forward pass"}[kind]
            axis.plot(result["x"], result[kind], marker, color=colour, label=f"{label}, R² {fit['r2']:.3f}")
            axis.plot(x, fit["slope"] * x + fit["intercept"], "-" if kind == "step" else "--", color=colour)
        axis.set(xlabel=AXES[name], ylabel="CPU ms", xlim=(0, None), ylim=(0, None))
        axis.legend(fontsize=8, loc="upper left")
        axis.grid(alpha=0.3)
    figure.suptitle(f"Cost of sampling (V {V:,}, L {L}, B {B} where not varied; half masked, 2 CPU threads)")
    figure.savefig(ASSETS / "scaling.png", dpi=110)


def main() -> None:
    torch.set_num_threads(2)
    path = ASSETS / "scaling.json"
    if sys.argv[1:] != ["--draw"]:  # --draw: from the numbers that are there
        path.write_text(json.dumps(measured(), indent=1) + "\n")
    results = json.loads(path.read_text())
    draw(results)
    print(f"{'':12} {'':5} {'slope':>11} {'CPU ms at 0':>12} {'R²':>6} {'off the line by':>16} {'exponent':>9}")
    for name, result in results.items():
        for kind, fit in result["lines"].items():
            print(
                f"{name:12} {kind:5} {fit['slope']:11.4g} {fit['intercept']:12.0f} {fit['r2']:6.3f} "
                f"{fit['deviation']:16.0%} {fit['exponent']:9.2f}"
            )


if __name__ == "__main__":
    main()
