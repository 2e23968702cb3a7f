"""python notebooks/badges.py: badges for Colab and Binder and an install cell for Colab, in every notebook.

The address is `Repository` under `[project.urls]` of pyproject.toml. Outputs stay, execution counts are in order, and a
second run changes nothing.
"""

import tomllib
from pathlib import Path

import nbformat

BRANCH = "main"
EXTRAS = {"06_evaluation": "eval"}  # of a notebook that needs more than the package's own dependencies
COLAB_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
BINDER_BADGE = "https://mybinder.org/badge_logo.svg"
INSTALL = """\
import sys

if "google.colab" in sys.modules:  # elsewhere this cell does nothing
    %cd -q /content
    !test -d {name} || git clone -q --depth 1 --branch {branch} {url}
    %pip install -q "./{name}{extra}"
    %cd -q {name}/notebooks"""


def repository(root: Path) -> str:
    """https://github.com/OWNER/REPO, without an ending."""
    with open(root / "pyproject.toml", "rb") as file:
        url = tomllib.load(file)["project"].get("urls", {}).get("Repository", "")
    if not url.startswith("https://github.com/"):
        raise SystemExit(
            f"pyproject.toml has Repository = '{url}' in [project.urls]; give https://github.com/OWNER/REPO."
        )
    return url.removesuffix("/").removesuffix(".git")


def badges(url: str, stem: str) -> str:
    """One line of markdown: two pictures that link to the notebook of that name."""
    place, path = url.removeprefix("https://github.com/"), f"notebooks/{stem}.ipynb"
    colab = f"https://colab.research.google.com/github/{place}/blob/{BRANCH}/{path}"
    binder = f"https://mybinder.org/v2/gh/{place}/{BRANCH}?urlpath=lab/tree/{path}"
    return f"[![Open in Colab]({COLAB_BADGE})]({colab}) [![Launch on Binder]({BINDER_BADGE})]({binder})"


def install(url: str, stem: str) -> str:
    """The source of the install cell."""
    extra = f"[{EXTRAS[stem]}]" if stem in EXTRAS else ""
    return INSTALL.format(name=url.rsplit("/", 1)[1], branch=BRANCH, url=url, extra=extra)


def dressed(notebook, url: str, stem: str):
    """The notebook with its badges below the title and its install cell below the header."""
    header = notebook.cells[0]
    lines = [line for line in header.source.split("\n") if COLAB_BADGE not in line]
    title, rest = lines[0], "\n".join(lines[1:]).strip("\n")
    header.source = f"{title}\n\n{badges(url, stem)}\n\n{rest}"
    notebook.cells = [cell for cell in notebook.cells if cell.get("id") != f"{stem[:2]}-colab"]
    notebook.cells.insert(1, nbformat.v4.new_code_cell(install(url, stem), id=f"{stem[:2]}-colab"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    return notebook


def main(root: Path) -> None:
    url = repository(root)
    for path in sorted((root / "notebooks").glob("0*.ipynb")):
        nbformat.write(dressed(nbformat.read(path, as_version=4), url, path.stem), path)


if __name__ == "__main__":
    main(Path(__file__).parent.parent)
