"""Lint, types, density, and the arrows between modules."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import density
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tess2lite"
MODULES = sorted(PACKAGE.rglob("*.py"))
COURSE = ROOT / "notebooks" / "tess2lite_course"

# Who may import whom inside the package, from the ground up; what is not listed may import everything. A name is a
# module, a folder, or "folder/module", whose line counts in place of its folder's. Within a folder all is allowed.
ARROWS = {
    "times": {"validation"},
    "schedule": {"times", "validation"},
    "chunks": set(),
    "nucleus": set(),
    "layers": {"validation"},
    "simplex": {"layers"},
    "span_masks": {"validation"},
    "textbook": set(),
    "tokens": set(),
    "validation": set(),
    "recording": {"validation"},
    "trajectory": {"recording", "validation"},
    "viz": {"trajectory"},
    "viz/theory": {"textbook"},
    "viz/export": {"trajectory", "validation"},
    "viz/figures": {"schedule"},
    "viz/panels": {"chunks", "generation", "guidance", "hooks", "schedule", "textbook", "tokens", "validation"},
    "viz/voices": {"chat_template", "evaluation", "pretrained", "tokens", "validation"},
    "viz/widget": {
        "generation",
        "guidance",
        "hooks",
        "insides",
        "recording",
        "sampling",
        "schedule",
        "tokens",
        "trajectory",
        "validation",
    },
    "viz/live/page": {"loading", "validation"},
    "viz/live/__main__": {"validation"},
    "model": {"layers", "loss", "textbook", "validation"},
    "pretrained": {"chat_template", "layers", "model", "reward", "tokens", "validation"},
    "loading": {"model", "pretrained"},
    "loss": {"chunks", "schedule", "simplex"},
    "sampling": {"chunks", "nucleus", "schedule", "simplex", "tokens", "validation"},
    "mask_diffusion": {"pretrained", "sampling", "schedule", "validation"},
    "chat_template": {"tokens", "validation"},
    "reward": {"layers", "model", "tokens", "validation"},
    "guidance": {"layers", "pretrained", "reward", "simplex", "validation"},
    "hooks": {"recording", "sampling", "trajectory", "validation"},
    "generation": {
        "chat_template",
        "hooks",
        "mask_diffusion",
        "recording",
        "sampling",
        "span_masks",
        "tokens",
        "trajectory",
        "validation",
        "viz",
    },
    "training/__init__": {"pretrained"},
    "training/recipe": {"validation"},
    "training/memory": {"chunks", "validation"},
    "training/merge": {"pretrained", "validation"},
    "training/rehearsal": {"generation", "loading", "pretrained", "validation"},
    "training": {
        "chat_template",
        "chunks",
        "layers",
        "loading",
        "loss",
        "mask_diffusion",
        "model",
        "pretrained",
        "reward",
        "schedule",
        "simplex",
        "span_masks",
        "tinytown",
        "tokens",
        "validation",
    },
    "insides": {"generation", "layers", "model", "schedule", "trajectory", "validation"},
    "tinytown": {"chat_template"},
    "evaluation": {
        "chat_template",
        "chunks",
        "loading",
        "mask_diffusion",
        "pretrained",
        "reward",
        "sampling",
        "schedule",
        "simplex",
        "tinytown",
        "tokens",
        "training",
        "validation",
    },
}


def type_checking_lines(tree):
    """Line numbers under `if TYPE_CHECKING:`, which do not run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from range(node.lineno, node.end_lineno + 1)


def imports(path):
    """First names of the package's own modules that a file imports, its own folder's apart."""
    level = len(path.relative_to(PACKAGE).parts) - 1
    tree = ast.parse(path.read_text())
    for_types = set(type_checking_lines(tree))
    for node in ast.walk(tree):
        if getattr(node, "lineno", None) in for_types:
            continue
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


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path, names):
    """Full names of the package's modules that a file imports at any depth, functions included."""
    tree = ast.parse(path.read_text())
    unused = set(type_checking_lines(tree))
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or node.lineno in unused:
            continue
        home = ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])
        for alias in node.names:
            yield f"{home}.{alias.name}" if f"{home}.{alias.name}" in names else home


def test_no_import_circle():
    """Imports inside functions count, so that none of them can hide a circle."""
    names = {module_name(path) for path in MODULES}
    graph = {module_name(path): set(imported_modules(path, names)) - {module_name(path)} for path in MODULES}
    assert graph["tess2lite.sampling"] & {"tess2lite.validation", "tess2lite.schedule"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_table_of_arrows_has_no_circle():
    """Folders count as a whole here; a module with a line of its own counts alone."""
    graph = {name: set(targets) for name, targets in ARROWS.items()}
    graphlib.TopologicalSorter(graph).prepare()


SIDE_EFFECTS = """
import logging, os, signal, sys
import IPython

def record(name):
    original = getattr(logging.Logger, name)

    def recorded(self, *args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].endswith("logging"):  # logging itself, or a library's helper around it
            frame = frame.f_back
        if frame.f_globals["__name__"].startswith("tess2lite"):
            calls.append(f"{self.name}.{name}")
        return original(self, *args, **kwargs)

    setattr(logging.Logger, name, recorded)

calls = []
for name in ("setLevel", "addHandler", "addFilter"):
    record(name)
shell = IPython.core.interactiveshell.InteractiveShell.instance()
import torch, transformers

def state():
    return dict(os.environ), (sys.excepthook, signal.getsignal(signal.SIGINT), shell.custom_exceptions)

environment, handlers = state()
import tess2lite
environment_after, handlers_after = state()
changed = {name for name in environment_after if environment_after[name] != environment.get(name)}
print("environment", sorted(changed - {"OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF"}))  # what torch reads when it loads
print("loggers", calls)
print("handlers unchanged", handlers_after == handlers)
"""


def test_importing_has_no_side_effects():
    done = subprocess.run([sys.executable, "-c", SIDE_EFFECTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["environment []", "loggers []", "handlers unchanged True"]


def test_the_package_does_not_know_the_notebooks():
    assert not [path for path in MODULES if "tess2lite_course" in path.read_text()]


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted(COURSE.rglob("*.py"))], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_no_asserts(path):
    """Users' mistakes get a sentence, not an AssertionError."""
    assert "assert " not in path.read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_code_is_not_dense():
    counts = density.densities()
    assert density.too_dense(counts) == []
    assert density.mean(counts) <= density.MAX_MEAN


def test_the_front_room_is_small():
    assert density.front_room(density.densities()) <= density.MAX_FRONT_ROOM


def test_density_counts_code_only():
    text = '"""A docstring."""\n\n# a comment\nx = f(1)  # six tokens\ny = f"{x} and {x:.1f}"\n'
    assert density.code_tokens(text) == [4, 4, 4, 4, 4, 4, 5, 5, 5]


def test_types():
    """Mypy reads its level from pyproject.toml."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def public_functions(tree):
    """Functions and methods without a leading underscore, those of private classes and functions left out."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_public_signatures_have_types():
    untyped = []
    for path in MODULES:
        for function in public_functions(ast.parse(path.read_text())):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.annotation is None]
            if set(names) - {"self", "cls"} or function.returns is None:
                untyped.append(f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}")
    assert untyped == []
