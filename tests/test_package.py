"""What a plain install brings along."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_a_wheel_holds_models_grammar_and_recipes(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel")
    path = next(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    files = set(zipfile.ZipFile(path).namelist())
    for model in ("tinytown-ar", "tinytown-base"):
        for file in ("config.json", "model.safetensors", "tokenizer.json", "card.json"):
            assert f"tess2lite/models/{model}/{file}" in files
    others = ("tinytown/grammar.txt", "training/recipes/mistral-7b-nf4.yaml", "viz/explorer.js")
    assert {f"tess2lite/{file}" for file in (*others, "viz/explorer.css")} <= files
    assert {"tess2lite_course/tools/checks.py", "tess2lite_course/experiments/recipes/01.yaml"} <= files


def test_dependencies_are_listed_once():
    """environment.yml names python, pip and the package; constraints only pin."""
    lines = (ROOT / "environment.yml").read_text().splitlines()
    wanted = [line.strip(" -") for line in lines if line.strip().startswith("- ")]
    assert wanted == ["python>=3.11", "pip", "pip:", "c constraints.txt", "e .[lab,eval,test]"]
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {name.split(">")[0].lower() for name in listed} <= pinned


def test_what_is_heavy_is_imported_when_it_is_needed():
    heavy = ["bitsandbytes", "datasets", "IPython", "ipywidgets", "lm_eval", "matplotlib", "peft", "trl"]
    asked = f"import sys, tess2lite; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
