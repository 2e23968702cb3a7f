"""The static site: built with warnings as errors, its links followed, its pages opened in an offline browser."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").rglob("*.ipynb"))
EXPLORER_TEXT = """input => {
  const root = input.getRootNode();
  return (root.host ? root : input.closest(".cell_output")).textContent;
}"""
EXPLORERS = {path for path in NOTEBOOKS if "t2-explorer" in (ROOT / path).read_text(encoding="utf-8")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("myst_nb")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Links(HTMLParser):
    """Collects where a page points to and what can be pointed at in it."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors = [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.targets.append(value)


def test_no_link_of_the_site_is_broken(site):
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > len(NOTEBOOKS) + 5
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue  # another site, or data in the page itself
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages[path].anchors if path in pages else {unquote(parts.fragment)}
            if not path.exists() or unquote(parts.fragment) not in known:
                broken.append(f"{page.relative_to(site)}: {target}")
    assert broken == []


def test_the_reference_has_every_module(site):
    pages = {path.stem: path.read_text() for path in (site / "docs" / "reference").glob("*.html")}
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "tess2lite").rglob("*.py")]
    modules = [".".join(path.parts) for path in paths if path.name not in ("__init__", "__main__")]
    assert [module for module in modules if f'id="module-{module}"' not in "".join(pages.values())] == []
    method = re.sub("<[^>]+>", "", pages["1_method"])
    assert "tess2lite.generate(" in method and "tess2lite.sampling.denoise(" in method


@pytest.fixture
def page(browser):
    page = browser.new_context(offline=True).new_page()
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    yield page
    page.context.close()


def test_the_front_page_shows_the_readme(site, page):
    page.goto((site / "index.html").as_uri())
    assert page.locator("h1").first.inner_text().startswith("tess2lite")
    assert page.locator("article img").first.evaluate("image => image.naturalWidth") > 200


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_shows_its_outputs(site, page, notebook):
    page.goto((site / notebook).with_suffix(".html").as_uri())
    assert page.locator("div.cell_output").count() > 1
    pictures = page.locator("div.cell_output img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert all(pictures)
    assert "$" not in "".join(page.locator("article section > p").all_inner_texts())  # formulas are formulas
    assert page.locator(".t2-explorer").count() > 0 or notebook not in EXPLORERS
    if notebook in EXPLORERS:
        slider = page.locator("div.cell_output input[type=range]").first
        last = slider.evaluate(EXPLORER_TEXT)
        slider.evaluate("input => { input.value = input.min; input.dispatchEvent(new Event('input')); }")
        page.wait_for_timeout(200)
        assert slider.evaluate(EXPLORER_TEXT) != last


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("notebook", sorted(EXPLORERS))
def test_axe_finds_nothing_on_a_page_with_an_explorer(site, browser, notebook, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    size = {"width": 1200, "height": 900}
    page = browser.new_context(offline=True, viewport=size, color_scheme=scheme, reduced_motion="reduce").new_page()
    page.goto((site / notebook).with_suffix(".html").as_uri())
    page.locator(".slot").first.wait_for()
    page.wait_for_timeout(300)  # a changed word fades in
    found = axe.run(page).response["violations"]
    page.context.close()
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found] == []
