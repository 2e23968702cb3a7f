"""python assets/gallery/make.py [name …]: the pictures beside this file, from bundled models and assets/findings.

Pages are photographed in Chromium: playwright of the extra `test`, and a `chromium` on the path.
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

import tess2lite as t2
from tess2lite.schedule import alpha_bar
from tess2lite.simplex import noisy_simplex_
from tess2lite.viz import explorer as viz_explorer
from tess2lite.viz import figures, theory
from tess2lite.viz.export import export
from tess2lite.viz.live.page import write_page

HERE = Path(__file__).parent


def finding(name: str) -> dict:
    return json.loads((HERE.parent / "findings" / f"{name}.json").read_text())


def story():
    """The run of notebook 04."""
    begun = "Once there was a girl named Anna. Anna lost her red kite in the forest."
    return t2.generate(t2.load("tinytown-base"), begun, steps=50, length=60, seed=0, progress=False)


def drawn(figure, dpi: int = 140) -> Image.Image:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=dpi)
    return Image.open(held)


def photographed(written: str, step: int, word: int, view: str = "Map", scheme: str = "light") -> Image.Image:
    """An explorer at a step (index), with the word of that number held, in a light or dark page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        size = {"width": 900, "height": 620}
        page = browser.new_page(viewport=size, device_scale_factor=1.4, color_scheme=scheme)
        page.set_content(f"<!doctype html><main>{written}</main>")
        page.locator("input[type=range]").fill(str(step))
        page.locator(".pane").last.locator(".slot").nth(word).click()
        page.get_by_role("tab", name=view).click()
        page.mouse.move(0, 0)
        return Image.open(io.BytesIO(page.locator(".x").screenshot()))


def explorer(scheme: str = "light") -> Image.Image:
    return photographed(viz_explorer.explorer(story()), step=13, word=0, scheme=scheme)


def explorer_dark() -> Image.Image:
    return explorer("dark")


def one_step() -> Image.Image:
    """The explorer's view of one step from the inside."""
    return photographed(viz_explorer.explorer(story()), step=13, word=10, view="This step")


def live_page() -> Image.Image:
    """Its first story, half-way: the first run at opening, and what another word at step 8 makes of it."""
    path = Path(tempfile.mkdtemp()) / "page.html"
    write_page(path, t2.load("tinytown-base", device="cpu"))
    is_done = "() => document.querySelector('#status').textContent.startsWith('Done')"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 800}, device_scale_factor=1.4)
        page.goto(path.as_uri())
        page.wait_for_function(is_done, timeout=120_000)
        page.locator(".tour button", has_text="Skip").click()
        page.locator(".slot").nth(2).click()
        page.locator("input[type=range]").fill("8")
        page.locator(".bar:not(.rest):not(.drawn)").first.click()
        page.locator(".tabs button").nth(1).wait_for()
        page.wait_for_function(is_done, timeout=120_000)
        return Image.open(io.BytesIO(page.screenshot()))


def trajectory() -> Image.Image:
    return drawn(figures.trajectory_map(story().trajectory), 150)


def guided() -> Image.Image:
    """The pair of notebook 05."""
    lm, asked = t2.load("tinytown-instruct"), [{"role": "user", "content": "Tell me something about the garden."}]
    cheerful, runs = t2.load_reward("tinytown-reward", base=lm), {}
    for name, scale in (("unguided", 0), ("guided, η = 10", 10)):
        hooks = [t2.RewardGuidance(cheerful, scale)]
        runs[name] = t2.generate(lm, asked, steps=25, seed=5, length=50, hooks=hooks, progress=False)
    return photographed(viz_explorer.comparison(runs), step=24, word=8, view="Curves")


def hacking() -> Image.Image:
    arms = [a for a in finding("guidance")["summary"].values() if a["model"] == "tinytown-reward" and a["best_of"] == 1]
    scales = [max(arm["scale"], 1) for arm in arms]  # 0 is drawn at the left end
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, name, style in ((0, "predicted", "C0--s"), (0, "true", "C1-o"), (1, "broken", "C1-o")):
        means, lows, highs = np.array([arm[name] for arm in arms]).T
        reach = [means - lows, highs - means]
        axes[axis].errorbar(scales, means, reach, fmt=style, capsize=3, label=f"{name} reward")
    for axis, label in zip(axes, ("reward, 95 % intervals", "broken sentences per text"), strict=True):
        axis.set(xscale="log", xlabel="guidance scale η", ylabel=label)
        axis.set_xticks(scales, [f"{arm['scale']:g}" for arm in arms])
        axis.minorticks_off()
    axes[0].legend()
    return drawn(figure)


def noise() -> Image.Image:
    """The figure of notebook 01: how much of one token of 1,024 is left."""
    torch.manual_seed(24)
    curve, tokens = alpha_bar(5000), torch.zeros(1500, dtype=torch.long)
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    many, few = (torch.linspace(0, 0.98, number) for number in (99, 15))
    for k, marker in [(1.0, "o"), (2.5, "v"), (5.0, "s"), (10.0, "^")]:
        noisy = [noisy_simplex_(torch.randn(1500, 1024), tokens, curve[int(t * 5000)].float()) for t in few]  # of k = 5
        counted = [float((at * k / 5).softmax(1)[:, 0].mean()) for at in noisy]
        (line,) = axis.plot(many, [theory.expected_mass(float(curve[int(t * 5000)]), 1024, k) for t in many])
        axis.plot(few, counted, marker, color=line.get_color(), label=f"k = {k:g}")
    axis.set(xlabel="time $t/T$ (noise grows to the right)", ylabel="mean softmax mass on the token")
    axis.set_title("one token of 1,024; lines: predicted; points: counted in 1,500 draws")
    axis.legend()
    return drawn(figure)


def film() -> None:
    """The moving picture of the front page: the run of notebook 04."""
    path = export(story().trajectory, HERE / "run.gif")
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    if not sys.argv[1:] or "run" in sys.argv[1:]:
        film()
    for picture in (explorer, explorer_dark, one_step, live_page, trajectory, guided, hacking, noise):
        if not sys.argv[1:] or picture.__name__ in sys.argv[1:]:
            path = HERE / f"{picture.__name__}.png"
            picture().convert("RGB").quantize(128).save(path, optimize=True)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {Image.open(path).size}")
