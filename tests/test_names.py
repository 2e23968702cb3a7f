"""Names that the project gave up must not come back, nor phrases that a reader has to learn first."""

import io
import json
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

import tess2lite as t2

ROOT = Path(__file__).parent.parent

# Only names that cannot mean anything else; ambiguous ones are a matter of reading.
IDENTIFIERS = [
    "Ascent",
    "Bystander",
    "Forget",
    "WHOLE",
    "absorbing_token",
    "check_numbers",
    "guidance_lab",
    "hold_out",
    "embed_known",
    "informative_timesteps",
    "known_texts",
    "left_to_right",
    "load_left_to_right",
    "load_whole",
    "museum",
    "noise_lab",
    "one_each",
    "read_at",
    "rows_at_once",
    "sharing_base",
    "tess2lite_lab",
]
PHRASES = [
    "belongs into",
    "drawn anew",
    "nats a token",
    "seconds a text",
    "to the bit",
    "V wide",
    "V-wide",
    "fmt: skip",
]


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def written_text(path):
    """What people write in a file: of a notebook, the sources of its cells."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def python_names(text):
    return {
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.NAME
    }


def words(path):
    """Identifiers of a Python file, all words of any other."""
    text = written_text(path)
    return python_names(text) if path.suffix == ".py" else set(re.findall(r"\w+", text))


FILES = ["*.py", "*.md", "*.ipynb", "*.js", "*.mjs", "*.yaml", "Makefile"]


def test_no_old_identifier():
    found = []
    for path in tracked(*FILES):
        if path.name in ("test_names.py", "CHANGELOG.md"):
            continue
        old = set(IDENTIFIERS) & words(path)
        if path.suffix in (".md", ".ipynb"):
            old -= {"Forget", "museum"}  # fine in prose
        found += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(old)]
    assert found == []


def test_what_texts_and_notebooks_take_from_the_package_is_there():
    missing = []
    for path in tracked("*.md", "*.ipynb"):
        if path.name != "CHANGELOG.md":
            names = set(re.findall(r"\bt2\.([A-Za-z_]+)", written_text(path)))
            missing += [f"{path.relative_to(ROOT)}: t2.{name}" for name in sorted(names) if not hasattr(t2, name)]
    assert missing == []


def test_no_old_phrase():
    found = []
    for path in tracked(*FILES):
        if path.name != "test_names.py":
            text = written_text(path)
            found += [f"{path.relative_to(ROOT)}: {phrase}" for phrase in PHRASES if phrase in text]
    assert found == []


def test_the_search_sees_identifiers_and_not_their_parts(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""A museum of words."""\n\nnoise_lab = forgetful = 1\n')
    assert words(path) & set(IDENTIFIERS) == {"noise_lab"}
