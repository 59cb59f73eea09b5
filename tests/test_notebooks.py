"""The notebooks run, hold the text and code of their tutorials, and were
committed as they ran, with pictures.
"""

from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")

docs: Any = import_module("docs.notebooks")


def outputs(found: Any) -> list[Any]:
    return [output for cell in found.cells for output in cell.get("outputs", [])]


def pictures(found: Any) -> list[Any]:
    return [
        output.data[docs.PLOTLY]
        for output in outputs(found)
        if docs.PLOTLY in output.get("data", {})
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", docs.TUTORIALS, ids=lambda page: page.stem)
def test_a_notebook_is_its_tutorial_and_runs(page: Any) -> None:
    committed = nbformat.read(docs.NOTEBOOKS / f"{page.stem}.ipynb", as_version=4)
    made = docs.notebook(page)
    sources = [(cell.cell_type, cell.source) for cell in made.cells]
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == sources, (
        "run make notebooks"
    )
    docs.run(made)
    for found in (made, committed):
        assert {output.output_type for output in outputs(found)} <= {
            "stream",
            "display_data",
            "execute_result",
        }
        assert any(picture["data"] for picture in pictures(found))
    assert len(pictures(made)) == len(pictures(committed))
    code = [
        [cell for cell in found.cells if cell.cell_type == "code"] for found in (made, committed)
    ]
    assert [bool(cell.outputs) for cell in code[0]] == [bool(cell.outputs) for cell in code[1]]
