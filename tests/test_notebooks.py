"""The notebooks as they are committed: run, readable without a kernel, in small cells. (`make tour` runs them.)"""

import json
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
CHAPTERS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
NEEDS = {"06_evaluation": "[eval]"}  # an extra of pyproject.toml


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: "/".join(path.parts[-2:]))
def notebook(request):
    return json.loads(request.param.read_text())


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell["outputs"]]


def test_was_run_to_its_end_in_order(notebook):
    assert [cell["execution_count"] for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [output for output in outputs(notebook) if output["output_type"] == "error"]


def test_nothing_in_it_is_dead_without_a_kernel(notebook):
    assert "widgets" not in notebook["metadata"]
    text = json.dumps(outputs(notebook))
    assert "widget-view" not in text and "%|" not in text
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    if "Solutions" not in "".join(notebook["cells"][0]["source"]):
        assert any("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_cells_are_short_and_explained(notebook):
    assert all(len(cell["source"]) <= 25 for cell in code(notebook))
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[0] == "markdown" and kinds.count("markdown") >= 0.6 * kinds.count("code")
    header = "".join(notebook["cells"][0]["source"])
    assert all(word in header for word in ("**You will**", "**You need**", "**Takes**"))


def test_no_machine_is_in_it(notebook):
    assert not re.search(r"/(home|root|work|Users|tmp)/", json.dumps(notebook))


def repository():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def source(cell):
    return "".join(cell["source"])


def install_cell(path):
    (cell,) = [cell for cell in code(json.loads(path.read_text())) if "google.colab" in source(cell)]
    return cell


def run_install_cell(path):
    """What the cell asks the shell and IPython to do. Returns [(system | cd | pip, the rest of the line)]."""
    asked = []
    shell = types.SimpleNamespace(
        system=lambda line: asked.append(("system", line)),
        run_line_magic=lambda name, line: asked.append((name, line)),
    )
    plain = TransformerManager().transform_cell(source(install_cell(path)))
    exec(compile(plain, path.name, "exec"), {"get_ipython": lambda: shell})
    return asked


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_badges_open_this_notebook(path):
    place = repository().removeprefix("https://github.com/")
    links = re.findall(r"\[!\[[^]]+\]\(([^)]+)\)\]\(([^)]+)\)", source(json.loads(path.read_text())["cells"][0]))
    assert links == [
        (
            "https://colab.research.google.com/assets/colab-badge.svg",
            f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name}",
        ),
        (
            "https://mybinder.org/badge_logo.svg",
            f"https://mybinder.org/v2/gh/{place}/main?urlpath=lab/tree/notebooks/{path.name}",
        ),
    ]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_install_cell_comes_first_and_is_idle_here(path, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    cells = code(json.loads(path.read_text()))
    assert cells[0] == install_cell(path) and cells[0]["outputs"] == []
    assert not re.search(r"^\s*(import|from) (?!sys$)", source(cells[0]), re.MULTILINE)
    assert run_install_cell(path) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_install_cell_on_colab(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    url, name = repository(), repository().rsplit("/", 1)[1]
    assert run_install_cell(path) == [
        ("cd", "-q /content"),
        ("system", f"test -d {name} || git clone -q --depth 1 --branch main {url}"),
        ("pip", f'install -q "./{name}{NEEDS.get(path.stem, "")}"'),
        ("cd", f"-q {name}/notebooks"),
    ]


def test_extras_of_install_cells_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {f"[{name}]" for name in extras} >= set(NEEDS.values())
    assert {path.stem for path in CHAPTERS} >= set(NEEDS)
    # What only the extra brings is not imported by a notebook without it.
    for path in CHAPTERS:
        if path.stem not in NEEDS:
            every = "\n".join(map(source, code(json.loads(path.read_text()))))
            assert not re.search(r"lm_eval|metrics\.mauve|evaluation\.tasks", every)
