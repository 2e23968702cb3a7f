"""Lint, and the arrows between modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tess2lite"
MODULES = sorted(PACKAGE.rglob("*.py"))
COURSE = ROOT / "notebooks" / "tess2lite_course"

# Who may import whom inside the package, from the ground up; what is not listed may import everything. A name is a
# module, a folder, or "folder/module", whose line counts in place of its folder's. Within a folder all is allowed.
ARROWS = {
    "schedule": set(),
    "chunks": set(),
    "nucleus": set(),
    "simplex": set(),
    "span_masks": set(),
    "textbook": set(),
    "tokens": set(),
    "validation": set(),
    "trajectory": {"viz"},  # to show itself, and only when it is asked to
    "viz": set(),
    "viz/theory": {"textbook"},
    "viz/figures": {"schedule"},
    "viz/panels": {"chunks", "generation", "guidance", "hooks", "schedule", "textbook", "tokens", "validation"},
    "model": {"textbook", "schedule", "simplex", "span_masks"},
    "loading": {"model"},
    "loss": {"chunks", "schedule", "simplex"},
    "sampling": {"chunks", "nucleus", "schedule", "simplex", "validation"},
    "mask_diffusion": {"chunks", "loss", "sampling", "schedule", "validation"},
    "chat_template": {"tokens"},
    "reward": {"validation", "loading"},
    "guidance": {"validation", "reward"},
    "hooks": {"validation"},
    "generation": {
        "chat_template",
        "mask_diffusion",
        "sampling",
        "span_masks",
        "tokens",
        "trajectory",
        "validation",
        "viz",
    },
    "training/recipe": set(),
    "training/memory": {"chunks"},
    "training/merge": {"loading"},
    "training": {
        "chat_template",
        "chunks",
        "loading",
        "loss",
        "mask_diffusion",
        "model",
        "reward",
        "schedule",
        "span_masks",
        "tinytown",
        "tokens",
    },
    "tinytown": {"chat_template"},
    "evaluation": {
        "chat_template",
        "chunks",
        "loading",
        "mask_diffusion",
        "sampling",
        "schedule",
        "simplex",
        "tinytown",
        "tokens",
        "training",
        "validation",
    },
}


def imports(path):
    """First names of the package's own modules that a file imports, its own folder's apart."""
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


def test_the_package_does_not_know_the_notebooks():
    assert not [path for path in MODULES if "tess2lite_course" in path.read_text()]


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted(COURSE.rglob("*.py"))], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_no_asserts(path):
    """Users' mistakes get a sentence, not an AssertionError."""
    assert "assert " not in path.read_text()


def test_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
