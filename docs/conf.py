"""The static site: README, notebooks with their outputs, and the reference made from docstrings (`make site`).

The source folder is the repository, so that links between pages are the same here and in a code browser.
"""

import re
import shutil
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent
LIVE_PAGE = ROOT / "build" / "page.html"
sys.path[:0] = [str(ROOT)]

project = "tess2lite"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "assets/**/README.md",
    "docs/*.md",
    "notebooks/*.ipynb",
    "notebooks/solutions/*.ipynb",
    "tests/*/README.md",
]

html_theme = "furo"
html_title = f"tess2lite {release}"
html_copy_source = False
html_math_renderer = "mathml"
html_extra_path = [str(LIVE_PAGE)] if LIVE_PAGE.exists() else []

nb_execution_mode = "off"  # the committed outputs are shown
myst_enable_extensions = ["dollarmath", "html_image", "substitution"]
myst_substitutions = {
    "live_page": '<a href="../page.html">Open it.</a>' if LIVE_PAGE.exists() else "It was not made for this site."
}
myst_dmath_double_inline = True  # $$ within a paragraph, as Jupyter shows it
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource"}
default_role = "code"  # `name` in a docstring is code, as in Markdown


def escape(app, what, name, obj, options, lines):
    """Docstrings are plain text: outside of backticks, `*`, `|` and a trailing `_` mean themselves."""
    for index, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        lines[index] = "".join(part if part.startswith("`") else re.sub(r"([*|]|_\b)", r"\\\1", part) for part in parts)


def visit_math(self, node):
    """Formulas become MathML, which browsers show without a script from elsewhere."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def front_page(app, error):
    """The README is what a visitor sees first."""
    if error is None:
        site = Path(app.outdir)
        shutil.copy(site / "README.html", site / "index.html")


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    app.connect("build-finished", front_page)
