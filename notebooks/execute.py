"""python notebooks/execute.py [notebook …]: runs notebooks in place, and takes out what would be dead on a static page.

Progress bars and widget state go; a widget that is the point of its cell leaves a sentence in its place.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
INSTEAD = "(Controls that need a running kernel: open this notebook in JupyterLab and run the cell.)"


def still(output: dict) -> dict | None:
    """An output as a page without a kernel can show it; None for one that is not worth showing."""
    if output.get("name") == "stderr":
        return None
    if WIDGET in output.get("data", {}):
        bar = "%|" in output["data"].get("text/plain", "") or "denoising" in output["data"].get("text/plain", "")
        if bar or output["output_type"] != "execute_result":
            return None
        output["data"] = {"text/plain": INSTEAD}
    return output


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(HERE)}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(still, cell.outputs) if output is not None]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(str(path) for path in HERE.glob("*.ipynb")):
        execute(Path(name))
