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

import tess2lite as t2

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


def label(page):
    return page.locator("output").first.inner_text()


def words(page):
    return page.locator(".words").first.inner_text()


def scrubs(page):
    """Arrow keys on the slider, play and a click each change what is shown."""
    last = words(page)
    slider = page.locator("input[type=range]").first
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert label(page) == "step 7/8"
    page.keyboard.press("Home")
    assert label(page) == "step 1/8" and words(page) != last
    page.get_by_role("button", name="Play").first.click()
    page.locator("output", has_text="step 8/8").first.wait_for()
    assert words(page) == last
    slots = page.locator(".slot")
    slots.nth(9).click()
    ninth = page.locator(".name").first.inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".name").first.inner_text() != ninth
    page.keyboard.press("Escape")


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
    return box.locator(".words").last.inner_text(), box.locator("output").last.inner_text()


def test_the_run_panel_changes_the_run(live):
    box = cell(live, 1).locator(".jp-OutputArea-output").first
    first = run_and_read(box)
    assert "step 5/5" in first[1]
    set_number(box, "steps", 7)
    assert "step 7/7" in run_and_read(box)[1]
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
    shown = box.locator(".pane").last.locator(".slot").nth(4)
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
        box.locator(".words").nth(1).wait_for()
        return box.locator(".words").all_inner_texts()

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
    again.wait_for_selector(".slot")
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
    assert page.locator(".slot").count() == 0  # its script did not run
    assert area.locator("button, input[type=range], canvas").count() == 0  # and nothing dead is shown
    assert " ".join(run.trajectory.texts[-1].split()) in " ".join(area.inner_text().split())
    page.close()
