"""Write ``docs/notebooks``: the tutorials as notebooks, with their output (``make notebooks``).

The Markdown pages in ``docs/tutorials`` are the source. The site shows the notebooks in their place
(``docs/generate.py``), and a test runs them again and holds them to their source.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

DOCS = Path(__file__).parent
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
NOTEBOOKS = DOCS / "notebooks"
PLOTLY = "application/vnd.plotly.v1+json"


def notebook(page: Path) -> NotebookNode:
    """Turn a tutorial into a notebook that was not run yet."""
    made = jupytext.read(page)
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # random by default, which would change every file at every run
    made.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    return made


def run(made: NotebookNode) -> NotebookNode:
    """Run a notebook in an empty folder. Figures are kept as plotly's JSON; errors are raised."""
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    with TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(made, timeout=300, coalesce_streams=True, resources=where).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)  # the times of day at which it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _kept(output)]
    made.metadata.pop("language_info", None)
    return made


def _kept(output: NotebookNode) -> bool:
    """Whether to keep an output: not progress bars, nor warnings that name local folders."""
    emptied = "data" in output and not any(output.data.values())
    return not emptied and output.get("name") != "stderr"


def main() -> None:
    """Run all tutorials and write their notebooks."""
    NOTEBOOKS.mkdir(exist_ok=True)
    for page in TUTORIALS:
        nbformat.write(run(notebook(page)), NOTEBOOKS / f"{page.stem}.ipynb")


if __name__ == "__main__":
    main()
