"""The notebooks as they are committed: run, readable without a kernel, in small cells. (`make tour` runs them.)"""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").rglob("*.ipynb"))


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
