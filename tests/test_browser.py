"""The explorer and the panels as people meet them: in a real browser, in JupyterLab, on a page without a network."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request

import nbformat
import pytest
from test_explorer import HOSTILE, trajectory
from test_guidance import small_judge

import tess2lite as t2
from tess2lite.viz.explorer import comparison
from tess2lite.viz.export import export

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
PROMPT = "Tom had a drum."


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written():
    return t2.generate(t2.load("tinytown-base"), PROMPT, steps=8, length=30, seed=1, progress=False)


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a trajectory as an exported page, the network cut off; whatever a page runs by itself is a failure."""
    contexts = []

    def open_page(run, page_html=None, **settings):
        path = export(run, tmp_path / "run.html")
        if page_html:
            path.write_text(
                f"<!doctype html><html lang=en><title>x</title><body><main>{page_html}</main></body></html>"
            )
        contexts.append(browser.new_context(offline=True, **settings))
        page = contexts[-1].new_page()
        page.on("dialog", lambda dialog: pytest.fail(f"the page ran {dialog.message}"))
        page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def text(page):
    return page.locator("[data-text]").first.inner_text()


def label(page):
    return page.locator("output").first.inner_text()


def scrubs(page):
    """Arrow keys on the slider, play and hover each change what is shown."""
    last = text(page)
    slider = page.locator("input[type=range]").first
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert "step 7 of 8" in label(page)
    page.keyboard.press("Home")
    assert "step 1 of 8" in label(page) and text(page) != last
    page.locator("button", has_text="Play").first.click()
    page.wait_for_function("document.querySelector('output').textContent.includes('step 8 of 8')")
    assert text(page) == last
    tokens = page.locator("[data-text] [role=option]")
    tokens.nth(3).hover()
    third = page.locator("[data-which]").first.inner_text()
    tokens.nth(9).hover()
    assert page.locator("[data-which]").first.inner_text() != third
    tokens.nth(9).click()
    page.keyboard.press("ArrowLeft")
    eighth = page.locator("[data-which]").first.inner_text()
    tokens.nth(8).hover()
    assert page.locator("[data-which]").first.inner_text() == eighth


def test_an_exported_page_scrubs_offline(opened, written):
    page = opened(written.trajectory)
    assert "step 8 of 8" in label(page)  # the final frame first
    scrubs(page)


def test_every_step_shows_the_recorded_tokens(opened, written):
    page, run = opened(written.trajectory), written.trajectory
    slider = page.locator("input[type=range]").first
    for step in (0, 3, 7):
        slider.fill(str(step))
        shown = page.locator("[data-text] [role=option]").all_text_contents()
        ids = run.tokens[step, run.span_mask].tolist()
        assert shown == [run.token_strings[i] or "∅" for i in ids]
        page.locator("[data-text] [role=option]").nth(5).hover()
        listed = page.locator("[data-top] tr td:first-child").all_text_contents()
        top = run.top_ids[step, run.span_mask][5].tolist()
        assert listed == [run.token_strings[i] for i in top][: len(listed)] and listed


def test_the_map_takes_to_a_step_and_a_token(opened, written):
    page = opened(written.trajectory)
    box = page.locator("canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] * 10.5 / 30)
    assert "step 3 of 8" in label(page)
    assert f"position {written.trajectory.span_mask.nonzero()[10, 0]}" in page.locator("[data-which]").inner_text()


def test_runs_side_by_side_move_together(opened, written):
    other = t2.replay(t2.load("tinytown-base"), written.trajectory, seed=5, progress=False).trajectory
    page = opened(written.trajectory, comparison({"one": written.trajectory, "other": other}))
    page.locator("input[type=range]").first.fill("2")
    page.locator("input[type=range]").first.dispatch_event("input")
    labels = page.locator("output").all_text_contents()
    assert len(labels) == 2 and all("step 3 of 8" in label for label in labels)
    assert page.locator("[data-text]").nth(0).locator(".differs").count() == 0
    differ = int(other.difference(written.trajectory)[2].sum())
    assert page.locator("[data-text]").nth(1).locator(".differs").count() == differ > 0


def test_tokens_that_guidance_changed_are_marked_with_their_push(opened):
    lm = t2.load("tinytown-base")
    hook = t2.RewardGuidance(small_judge(lm), 3e3)
    run = t2.generate(lm, PROMPT, steps=8, length=30, hooks=[hook], progress=False).trajectory
    page = opened(run)
    step, position = next((s, p) for s, p in (run.argmax_before_guidance != run.argmax).nonzero().tolist() if s > 0)
    page.locator("input[type=range]").fill(str(step))
    page.locator("input[type=range]").dispatch_event("input")
    marked = page.locator("[data-text] .pushed")
    assert marked.count() == int((run.argmax_before_guidance != run.argmax)[step].sum()) > 0
    assert ", changed by guidance" in marked.first.get_attribute("aria-label")
    marked.first.click()
    says = page.locator("[data-push]").inner_text()
    pushed = float(run.logprob_gain[step, position])
    assert says.startswith("guidance changed") and f"{abs(pushed):.2f} nats" in says
    assert "▴: guidance changed" in page.locator("[data-hint]").inner_text()


@pytest.mark.parametrize("scripts", [True, False])
def test_hostile_text_is_shown_and_never_run(opened, scripts):
    page = opened(trajectory(["soup", *HOSTILE]), java_script_enabled=scripts)
    page.wait_for_timeout(200)
    assert page.locator("img").count() == 0
    if scripts:
        assert HOSTILE[0] in page.locator("[data-text]").inner_text()
        page.locator("[data-text] [role=option]").nth(1).hover()
        assert HOSTILE[0] in page.locator("[data-top]").inner_text()
    else:
        assert HOSTILE[-1] in page.locator("[data-text]").inner_text()  # the last step, readable without scripts
        assert page.locator("button, input, canvas, svg").count() == 0  # nothing dead
        page.locator("summary").click()
        assert HOSTILE[1] in page.locator("details").inner_text()
    assert page.get_by_text("run the cell, or let scripts run").count() == (0 if scripts else 1)


@pytest.fixture
def serious(browser):
    """What axe-core calls serious or critical on a page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page):
        found = axe.run(page).response["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]

    return check


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, written, serious, scheme):
    page = opened(written.trajectory, color_scheme=scheme)
    page.locator("input[type=range]").first.fill("3")
    background = "getComputedStyle(document.querySelector('[role=group]')).backgroundColor"
    assert page.evaluate(background) == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}[scheme]
    assert not serious(page)


def test_axe_finds_nothing_serious_in_odd_tokens_and_in_two_runs(opened, written, serious):
    odd = trajectory(["a", "b"])
    odd.token_strings = {0: "\u200b", 1: "\n"}
    page = opened(odd)
    assert not serious(page)
    assert page.locator("[data-text] [role=option]").all_text_contents()[0] == "U+200B"
    assert not serious(opened(odd, comparison({"one": written.trajectory, "other": written.trajectory})))


def test_play_is_calm_where_motion_is_unwelcome(opened, written):
    page = opened(written.trajectory, reduced_motion="reduce")
    page.locator("button", has_text="Play").click()
    page.wait_for_timeout(600)
    assert "step 1 of 8" in label(page)


# In JupyterLab

CELLS = [
    f"import tess2lite as t2\nlm = t2.load('tinytown-base')\n"
    f"out = t2.generate(lm, {PROMPT!r}, steps=8, length=30, seed=1, progress=False)\nout",
    "from tess2lite_course import panels\npanel = panels.run_panel(lm, 'Tom had a drum.', steps=5)\npanel",
    "panels.intervention_panel(lm, out)",
    "panels.noise_panel(lm)",
    "instruct = t2.load('tinytown-instruct')\n"
    "judges = {name: t2.load_reward(name, base=instruct) for name in ('tinytown-reward', 'tinytown-reward-brief')}\n"
    "panels.guidance_panel(instruct, judges, 'Tell me something about the barn.', steps=5)",
    "t2.generate(lm, 'Anna', steps=0)",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on localhost over a folder with one notebook; (folder, its address)."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "page.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
         "--ServerApp.token=t", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"],
        env=os.environ | homes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    yield folder, address
    server.terminate()
    server.wait()


def notebook_page(browser, lab, name="page.ipynb"):
    page = browser.new_page(viewport={"width": 1300, "height": 6000})
    page.set_default_timeout(60_000)
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{lab[1]}/api", timeout=1)
            break
        except OSError:
            page.wait_for_timeout(500)
    page.goto(f"{lab[1]}/lab/workspaces/{secrets.token_hex(4)}/tree/{name}?token=t")  # no tabs of before
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    return page


def menu(page, *entries):
    for entry in entries:
        page.locator(f".lm-MenuBar-itemLabel:text-is('{entry}'), .lm-Menu-itemLabel:text-is('{entry}')").first.click()
        page.wait_for_timeout(500)  # menus open under the pointer


@pytest.fixture(scope="module")
def live(browser, lab):
    page = notebook_page(browser, lab)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    for _ in range(5):
        menu(page, "Run", "Run All Cells")
        page.wait_for_timeout(4_000)
        if page.locator(".jp-InputPrompt").first.inner_text() != "[ ]:":  # a kernel still connecting forgets the cells
            break
    page.wait_for_selector(".widget-image", timeout=120_000)
    yield page
    page.close()


def cell(page, number):
    return page.locator(".jp-CodeCell").nth(number)


def test_the_explorer_is_live_in_jupyterlab(live):
    scrubs(live)


def set_number(box, name, value):
    """Types into the readout of a labelled slider, or into a labelled field."""
    control = box.locator(f".jupyter-widgets:has(> .widget-label:text-is('{name}'))").first
    readout = control.locator(".widget-readout, input").last
    readout.click()
    readout.fill(str(value))
    readout.press("Enter")


def run_and_read(box):
    box.get_by_role("button", name="Run").or_(box.get_by_role("button", name="Go on from here")).click()
    box.page.wait_for_timeout(300)
    box.page.wait_for_function(
        "box => [...box.querySelectorAll('button')].some(b => /Run|Go on/.test(b.textContent) && !b.disabled)",
        arg=box.element_handle(),
    )
    box.page.wait_for_timeout(500)
    return box.locator("[data-text]").last.inner_text(), box.locator("output").last.inner_text()


def test_the_run_panel_changes_the_run(live):
    box = cell(live, 1).locator(".jp-OutputArea-output").first
    first = run_and_read(box)
    assert "step 5 of 5" in first[1]
    set_number(box, "steps", 7)
    assert "step 7 of 7" in run_and_read(box)[1]
    set_number(box, "seed", 4)
    other = run_and_read(box)
    set_number(box, "seed", 5)
    assert run_and_read(box)[0] != other[0]
    box.locator("textarea").fill(" ")
    box.get_by_role("button", name="Run").click()
    live.wait_for_function("document.body.textContent.includes('prompt is empty')")


def test_a_pinned_token_survives_to_the_end(live):
    box = cell(live, 2).locator(".jp-OutputArea-output").first
    set_number(box, "step", 2)
    box.locator("select").first.select_option(index=4)
    box.locator(".widget-text input[type=text]").fill(" robot")
    box.locator(".widget-text input[type=text]").press("Tab")
    run_and_read(box)
    shown = box.locator("[data-text]").last.locator("[role=option]").nth(4)
    assert shown.inner_text().strip() == "robot"


def test_the_noise_lab_answers_its_slider(live):
    box = cell(live, 3).locator(".jp-OutputArea-output").first
    image = box.locator("img").get_attribute("src")
    assert "0.727" in box.inner_text()
    set_number(box, "time t/T", 0.6)
    live.wait_for_function(
        "([box, old]) => box.querySelector('img').src !== old && !box.textContent.includes('0.727')",
        arg=[box.element_handle(), image],
    )


def test_the_guidance_lab_shows_both_runs(live):
    box = cell(live, 4).locator(".jp-OutputArea-output").first

    def texts():
        run_and_read(box)
        live.wait_for_function("box => box.querySelectorAll('[data-text]').length === 2", arg=box.element_handle())
        return box.locator("[data-text]").all_inner_texts()

    unguided, guided = texts()
    assert guided != unguided and box.locator("img[alt='Predicted reward by step']").count() == 1
    set_number(box, "scale η", 2000)
    stronger = texts()
    assert stronger[0] == unguided and stronger[1] not in (guided, unguided)
    box.locator("select").first.select_option("tinytown-reward-brief")
    assert texts()[1] != stronger[1]
    box.locator("textarea").fill(" ")
    box.get_by_role("button", name="Run").click()
    live.wait_for_function("document.body.textContent.includes('message has no content; give its text')")


IMAGE = "<img src=x onerror=alert(1)>"
LONG = "Tom sat. " * 200


@pytest.mark.parametrize(
    "number, field, given, sentence, good",
    [
        (1, "prompt", "", "prompt is empty", PROMPT),
        (1, "prompt", LONG, "context of 128; shorten it", IMAGE),
        (2, "token", "hippopotamus", "'hippopotamus' is 7 tokens, not one", " kite"),
        (2, "token", IMAGE, f"'{IMAGE}' is 21 tokens, not one", " kite"),
        (3, "sentence", "", "The sentence is empty", "Tom sat."),
        (3, "sentence", LONG, "context of 128", IMAGE),
        (4, "prompt", "", "message has no content", IMAGE),
    ],
)
def test_a_mistake_in_a_panel_is_a_sentence_and_it_goes_on(live, number, field, given, sentence, good):
    box = cell(live, number).locator(".jp-OutputArea-output").first
    typed = box.locator(f".jupyter-widgets:has(> .widget-label:text-is('{field}'))").locator("textarea, input").first
    buttons = box.get_by_role("button", name="Run").or_(box.get_by_role("button", name="Go on from here"))

    def give(text):
        typed.fill(text)
        typed.press("Tab")
        if buttons.count():
            buttons.click()

    ran = []
    live.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    give(given)
    alert = box.get_by_role("alert")
    alert.wait_for()
    assert sentence in alert.inner_text() and alert.locator("*").count() == 0
    give(good)
    alert.wait_for(state="detached")
    if buttons.count():
        live.wait_for_function("button => !button.disabled", arg=buttons.element_handle())
    assert alert.count() == 0 and box.locator("img[src=x]").count() == 0 and not ran


def test_a_mistake_in_a_cell_is_one_sentence_under_it(live):
    error = cell(live, 5).locator("[data-mime-type='application/vnd.jupyter.error'], .jp-RenderedText").last
    error.wait_for()
    lines = error.inner_text().strip().splitlines()
    assert lines[-1] == "ValueError: steps is 0; give a whole number of 1 or more." and len(lines) < 12
    assert "t2.generate(lm, 'Anna', steps=0)" in error.inner_text() and "sampling.py" not in error.inner_text()


def test_it_outlives_the_kernel_and_reopening(live, browser, lab):
    live.keyboard.press("Escape")
    menu(live, "File", "Save Notebook")
    menu(live, "Kernel", "Shut Down Kernel")
    live.wait_for_timeout(1_500)
    scrubs(live)
    again = notebook_page(browser, lab)
    again.wait_for_selector("[data-text] [role=option]")
    scrubs(again)
    again.close()


def test_an_untrusted_copy_shows_the_final_text(live, browser, lab):
    notebook = nbformat.read(lab[0] / "page.ipynb", 4)
    notebook.cells[0].source += "\n# changed by somebody else"
    nbformat.write(notebook, lab[0] / "copy.ipynb")
    page = notebook_page(browser, lab, "copy.ipynb")
    area = cell(page, 0).locator(".jp-OutputArea")
    area.locator("text=step 8 of 8").first.wait_for()
    run = t2.generate(t2.load("tinytown-base"), PROMPT, steps=8, length=30, seed=1, progress=False)
    assert page.locator("[data-text] [role=option]").count() == 0  # its script did not run
    assert area.locator("button, input[type=range], canvas").count() == 0  # and nothing dead is shown
    assert " ".join(run.trajectory.texts[-1].split()) in " ".join(area.inner_text().split())
    page.close()
