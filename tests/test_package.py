"""What a plain install brings along."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def test_a_wheel_holds_models_grammar_and_recipes(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel")
    path = next(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    files = set(zipfile.ZipFile(path).namelist())
    for model in ("tinytown-ar", "tinytown-base"):
        for file in ("config.json", "model.safetensors", "tokenizer.json", "card.json"):
            assert f"tess2lite/models/{model}/{file}" in files
    others = (
        "tinytown/grammar.txt",
        "training/recipes/mistral-7b-nf4.yaml",
        "viz/explorer.mjs",
        "viz/live/page.html",
        "viz/live/worker.js",
    )
    assert {f"tess2lite/{file}" for file in others} <= files
    assert {"tess2lite_course/tools/checks.py", "tess2lite_course/experiments/recipes/01.yaml"} <= files


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned_names():
    """Names in constraints.txt whose marker, if any, holds here."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    return {canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()}


def required_names(requirements):
    """All distributions that a list of requirements installs here, indirect ones included."""
    queue = [(Requirement(text), {""}) for text in requirements]
    seen = set()
    while queue:
        requirement, extras = queue.pop()
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        key = name, frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            children = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # an extra that is not installed here
            children = []
        queue += [(Requirement(child), {"", *requirement.extras}) for child in children]
    return {name for name, _ in seen}


def test_environment_names_python_pip_and_the_package_only():
    lines = (ROOT / "environment.yml").read_text().splitlines()
    listed = [line.strip(" -") for line in lines if line.strip().startswith("- ")]
    assert listed == ["python>=3.11", "pip", "pip:", "c constraints.txt", "e .[lab,eval,site,test]"]


def test_constraints_pin_every_distribution_that_is_installed():
    extras = project()["optional-dependencies"]
    requirements = project()["dependencies"] + [line for lines in extras.values() for line in lines]
    required = required_names(requirements)
    assert {"torch", "anyio", "docutils", "nltk"} <= required  # an indirect one of each kind
    chosen_by_torch = {name for name in required if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert required - chosen_by_torch <= pinned_names()


def test_what_is_heavy_is_imported_when_it_is_needed():
    heavy = ["bitsandbytes", "datasets", "IPython", "ipywidgets", "lm_eval", "matplotlib", "peft", "trl"]
    asked = f"import sys, tess2lite; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SEEN_BY_TORCH = """
import importlib.abc, os, runpy, sys
class Watcher(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("PYTORCH_ALLOC_CONF"))
sys.meta_path.insert(0, Watcher())
sys.argv = ["train", "--help"]
runpy.run_module("tess2lite.train", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="expandable segments are Linux's")
@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "PASSIVE expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64", "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "PASSIVE None"),
    ],
)
def test_torch_finds_its_settings_when_it_loads(given, seen):
    """Set later they would do nothing; what a user has set stays."""
    names = ("OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-c", SEEN_BY_TORCH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == seen
