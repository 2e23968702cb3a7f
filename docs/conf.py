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

# The method's modules; others at the top level follow by name.
READING_ORDER = [
    "textbook",
    "schedule",
    "span_masks",
    "simplex",
    "nucleus",
    "chunks",
    "model",
    "loading",
    "loss",
    "sampling",
    "hooks",
    "guidance",
    "reward",
    "trajectory",
    "chat_template",
    "tokens",
    "generation",
    "mask_diffusion",
    "validation",
]

project = "tess2lite"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [  # an asset's README is a page of the site only where it is named here
    "*.md",
    "assets/findings/README.md",
    "assets/models/README.md",
    "assets/models/*/README.md",
    "docs/*.md",
    "docs/reference/*.md",
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
napoleon_use_ivar = True  # a dataclass lists its fields already
default_role = "code"  # `name` in a docstring is code, as in Markdown


def write_reference() -> None:
    """Write docs/reference: a page for the method, one for each folder of the package."""
    package = ROOT / "tess2lite"
    names = {path.stem for path in package.glob("*.py")} - {"__init__"}
    ordered = [name for name in READING_ORDER if name in names]
    pages = {
        "1_method": (
            "The method",
            ["tess2lite", *(f"tess2lite.{name}" for name in ordered + sorted(names - {*ordered}))],
        )
    }
    for folder in sorted(path.parent for path in package.glob("*/__init__.py")):
        paths = [path.relative_to(ROOT).with_suffix("") for path in sorted(folder.rglob("*.py"))]
        modules = [".".join(path.parts) for path in paths if path.name not in ("__init__", "__main__")]
        pages[folder.name] = (folder.name, modules)
    target = ROOT / "docs" / "reference"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name, (title, modules) in pages.items():
        parts = [
            f"## {module.removeprefix('tess2lite.')}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```"
            for module in modules
        ]
        (target / f"{name}.md").write_text("\n\n".join([f"# {title}", *parts]) + "\n")


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


# What the theme leaves out: the level of captions, names of the two sidebars, a way to scroll code with the keyboard.
ACCESSIBLE = {
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="site">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="this page">',
    '<div class="highlight"><pre>': '<div class="highlight"><pre tabindex="0">',
    '<div class="math-wrapper docutils container">': '<div class="math-wrapper docutils container" tabindex="0">',
}


def finish_pages(app, error):
    """Mend the theme's pages; the README is what a visitor sees first."""
    if error is not None:
        return
    site = Path(app.outdir)
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for given, mended in ACCESSIBLE.items():
            text = text.replace(given, mended)
        path.write_text(text, encoding="utf-8")
    shutil.copy(site / "README.html", site / "index.html")


write_reference()


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    app.connect("build-finished", finish_pages)


# Public names are also importable from the package itself: a link to either is right.
suppress_warnings = ["ref.python"]
