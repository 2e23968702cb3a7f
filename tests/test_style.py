"""Thin means thin: lint, the arrows between modules, and their size."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tess2lite"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAB = ROOT / "notebooks" / "tess2lite_lab"

# Who may import whom inside the package, from the ground up; what is not listed may import everything.
ARROWS = {
    "schedule": set(),
    "simplex": set(),
    "masking": set(),
    "textbook": set(),
    "data": set(),
    "inputs": set(),
    "trajectory": {"viz"},  # to show itself, and only when it is asked to
    "viz": set(),
    "model": {"textbook", "schedule", "simplex", "masking"},
    "loading": {"model"},
    "sampling": {"schedule", "simplex", "masking", "model", "inputs"},
    "training": {"schedule", "simplex", "masking", "model", "data"},
    "chats": {"data", "inputs", "generation"},  # a conversation generates, when it is asked to
    "recipe": set(),
    "masked": {"schedule", "simplex", "inputs", "sampling", "training"},
    "pretraining": {"simplex", "loading", "model", "recipe", "training"},
    "preparation": {"recipe", "chats", "data", "loading", "masked", "pretraining", "training", "tinytown"},
    "preference": {"recipe", "preparation", "chats", "loading", "reward", "training", "tinytown"},
    "evaluation": {
        "chats",
        "data",
        "inputs",
        "masked",
        "recipe",
        "training",
        "loading",
        "sampling",
        "schedule",
        "simplex",
        "tinytown",
    },
    "memory": {"simplex"},
    "reward": {"inputs", "loading"},
    "guidance": {"inputs", "reward"},
    "hooks": {"inputs"},
    "generation": {"sampling", "masked", "trajectory", "chats", "data", "masking", "viz", "inputs"},
}


def imports(path):
    """First names of the package's own modules that a file imports."""
    level = len(path.relative_to(PACKAGE).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == level + 1:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("tess2lite"):
            pytest.fail(f"{path.name} imports {node.module} absolutely")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    home = "/".join(parts) if "/".join(parts) in ARROWS else parts[0]
    if home in ARROWS:
        assert set(imports(path)) <= ARROWS[home] | {parts[0]}


def test_the_package_does_not_know_the_lab():
    assert not [path for path in MODULES if "tess2lite_lab" in path.read_text()]


@pytest.mark.parametrize("path", [*MODULES, *LAB.glob("*.py")], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= (200 if path.name == "textbook.py" else 350)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name
    assert "assert " not in text  # users' mistakes get a sentence, not an AssertionError


def code_lines(path):
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    text = path.read_text()
    said = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            said |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" and number not in said for number, line in lines)


def test_the_package_is_thin():
    world = {path for path in MODULES if path.is_relative_to(PACKAGE / "tinytown")}
    assert sum(code_lines(path) for path in MODULES if path not in world) <= 3_000
    assert sum(map(code_lines, MODULES)) <= 4_000


def test_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
