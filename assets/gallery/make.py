"""python assets/gallery/make.py [name …]: the pictures beside this file, from bundled models and assets/findings.

`states` are the explorer and the live page in all their states, each in light and in dark. They are photographed in
Chromium: playwright of the extra `test`, and a `chromium` on the path.
"""

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import tess2lite as t2
from tess2lite.hooks import Pin
from tess2lite.tokens import encode
from tess2lite.viz import figures, panels
from tess2lite.viz.explorer import MODULE, run_data
from tess2lite.viz.export import export
from tess2lite.viz.live.page import write_page

HERE = Path(__file__).parent
STATES = HERE / "states"
BEGINNING = "Once there was a girl named Anna. Anna lost her red kite in the forest."
DESK = {"width": 892, "height": 592}  # the frame of 860 × 560 and a margin
PHONE = {"width": 360, "height": 1030}
SEARCHER = 8  # the word of the run of notebook 04 that says who looked for the kite
ACTOR = "{ whatIf() {}, why() {}, go() {}, stop() {} }"
IS_DONE = "() => document.querySelector('#status').textContent.startsWith('Done')"


def finding(name: str) -> dict:
    return json.loads((HERE.parent / "findings" / f"{name}.json").read_text())


def story(lm) -> t2.Generation:
    """The run of notebook 04."""
    return t2.generate(lm, BEGINNING, steps=50, length=60, seed=0, progress=False)


def drawn(figure, dpi: int = 140) -> Image.Image:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=dpi)
    return Image.open(held)


def keep(picture: Image.Image, path: Path, colours: int = 128) -> None:
    picture.convert("RGB").quantize(colours, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(HERE)}: {path.stat().st_size / 1e3:.0f} kB, {Image.open(path).size}")


# The states of the explorer and of the live page


def in_both_schemes(page: Page, name: str, whole: bool = False) -> None:
    """Keep what the page shows, in light and in dark."""
    for scheme, ending in (("light", ""), ("dark", "_dark")):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)  # a changed word fades in
        keep(Image.open(io.BytesIO(page.screenshot(full_page=whole))), STATES / f"{name}{ending}.png", 96)
    page.emulate_media(color_scheme="light")


def page_of(data: dict, actor: str = "{}", fields: list | None = None, says: str = "") -> str:
    """A page with an explorer of this data, which is `handle` there, and something that could act."""
    options = f"{{ tour: false, actor: {actor}, controls: {json.dumps({'fields': fields or [], 'says': says})} }}"
    script = (
        f"{MODULE.read_text()}\nwindow.handle = explore(document.getElementById('run'), {json.dumps(data)}, {options});"
    )
    style = "body { margin: 16px } @media (prefers-color-scheme: dark) { body { background: #111 } }"
    safe = script.replace("</", "<\\/")
    return f"<!doctype html><style>{style}</style><main><div id=run></div></main><script type=module>{safe}</script>"


@contextmanager
def opened(browser: Browser, content: str | Path, size: dict | None = None, **settings) -> Iterator[Page]:
    page = browser.new_page(viewport=size or DESK, **settings)
    if isinstance(content, Path):
        page.goto(content.as_uri())
    else:
        page.set_content(content)
    yield page
    page.close()


def go(page: Page, step: int, word: int, view: str = "Map") -> None:
    """Goes to a step, holds the word of that number in the last run, and opens a view."""
    page.locator("input[type=range]").fill(str(step - 1))
    page.locator(".pane").last.locator(".slot").nth(word).click()
    page.get_by_role("tab", name=view).click()
    page.mouse.move(0, 0)


def one_run(browser: Browser, lm, written: t2.Generation) -> None:
    """A recorded run: first sight, noise, the views, the end, a phone, the tour, no scripts."""
    data = {"runs": [run_data(written.trajectory)]}
    with opened(browser, page_of(data)) as page:
        in_both_schemes(page, "end")
        go(page, 1, 0)
        in_both_schemes(page, "noise")
        page.keyboard.press("Escape")
        go(page, 14, 0)
        in_both_schemes(page, "map")
        for name, view in (("curves", "Curves"), ("step", "This step")):
            page.get_by_role("tab", name=view).click()
            in_both_schemes(page, name)
        page.get_by_role("button", name="Show the tour").click()
        in_both_schemes(page, "tour")
    with opened(browser, page_of(data), PHONE) as page:
        go(page, 14, 0)
        in_both_schemes(page, "phone", whole=True)
    exported = export(written, Path(tempfile.mkdtemp()) / "run.html")
    with opened(browser, exported, java_script_enabled=False) as page:
        in_both_schemes(page, "without_scripts")


def with_a_kernel(browser: Browser, lm, written: t2.Generation) -> None:
    """What can be done where a kernel answers: reasons, another word, a form, waiting, a mistake."""
    run = written.trajectory
    positions = run.span_mask.nonzero()[:, 0].tolist()
    why = t2.attribute(lm, run, 13, positions[8])
    with opened(browser, page_of({"runs": [run_data(run) | {"why": [why.as_dict()]}]}, ACTOR)) as page:
        go(page, 14, 8)
        page.get_by_role("button", name="Why?").click()
        in_both_schemes(page, "why")
    (max_token,) = encode(lm.tokenizer, " Max")
    pinned = t2.replay(lm, written, [Pin({positions[SEARCHER]: max_token}, start=6)], progress=False)
    runs = [run_data(run, "as it was"), run_data(pinned.trajectory, "another word at step 7")]
    with opened(browser, page_of({"runs": runs, "beside": [0, 1]}, ACTOR)) as page:
        go(page, 40, SEARCHER, "Difference")
        in_both_schemes(page, "difference")
    panel = panels.run_panel(lm, BEGINNING)
    with opened(browser, page_of({"runs": runs[:1]}, ACTOR, panel.fields, panel.says), DESK | {"height": 740}) as page:
        go(page, 14, 8)
        page.locator("button.bar").first.click()
        page.locator(".say", has_text="busy").wait_for()
        in_both_schemes(page, "busy")
        page.evaluate("handle.fail('The prompt is empty; give at least one word to start from.')")
        in_both_schemes(page, "mistake")


def guided_answers(browser: Browser) -> None:
    """The guidance panel's runs and further answers, with notebook 05's request."""
    lm = t2.load("tinytown-instruct")
    panel = panels.guidance_panel(
        lm, {"cheerful": t2.load_reward("tinytown-reward", base=lm)}, "Tell me something about the garden."
    )
    panel.go({"steps": 25, "seed": 5})
    with opened(browser, page_of(panel.data | {"beside": [0, 1]})) as page:
        go(page, 25, 8, "Curves")
        in_both_schemes(page, "guided")
        page.get_by_role("tab", name="Answers").click()
        in_both_schemes(page, "answers")


def live_pages(browser: Browser) -> None:
    """The page of stories, with another word at a step; that of questions; a phone."""
    for model in ("tinytown-base", "tinytown-instruct"):
        path = Path(tempfile.mkdtemp()) / "page.html"
        write_page(path, t2.load(model, device="cpu"))
        with opened(browser, path, DESK | {"height": 780}) as page:
            page.wait_for_function(IS_DONE, timeout=120_000)
            page.locator(".tour button", has_text="Skip").click()
            page.add_style_tag(content="#status { visibility: hidden }")  # the speed is this machine's
            if model == "tinytown-instruct":
                page.locator("input[type=range]").fill("10")
                page.locator(".slot").nth(4).click()
                in_both_schemes(page, "live_answer")
                continue
            page.locator(".slot", has_text="Hanna").first.click()
            page.locator("input[type=range]").fill("8")
            page.get_by_placeholder("another word").fill("Max")
            page.get_by_role("button", name="Try it").click()
            page.locator(".tabs button").nth(1).wait_for()
            page.wait_for_function(IS_DONE, timeout=120_000)
            in_both_schemes(page, "live_story")
            page.set_viewport_size(PHONE | {"height": 1340})
            in_both_schemes(page, "live_phone")


def states() -> None:
    STATES.mkdir(exist_ok=True)
    lm = t2.load("tinytown-base")
    written = story(lm)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        one_run(browser, lm, written)
        with_a_kernel(browser, lm, written)
        guided_answers(browser)
        live_pages(browser)


# Figures


def trajectory() -> Image.Image:
    return drawn(figures.trajectory_map(story(t2.load("tinytown-base")).trajectory), 150)


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


def film() -> None:
    """The moving picture of the front page: the run of notebook 04."""
    path = export(story(t2.load("tinytown-base")).trajectory, HERE / "run.gif")
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    names = sys.argv[1:] or ["run", "states", "trajectory", "hacking"]
    if "run" in names:
        film()
    if "states" in names:
        states()
    for picture in (trajectory, hacking):
        if picture.__name__ in names:
            keep(picture(), HERE / f"{picture.__name__}.png")
