"""A notebook shows a progress bar while it measures, and its figures after it was exported."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest

import spectail as st
from spectail.report.notebook import _Holder
from tests.conftest import weights
from tests.report.test_browser import until

nbclient: Any = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
nbconvert = pytest.importorskip("nbconvert")
pytestmark = pytest.mark.filterwarnings("ignore")

Notebook: Any = nbclient.NotebookClient
MEASURE = """import spectail as st
from tests.conftest import weights
analysis = st.analyze(weights())"""
JSON, HTML = "application/vnd.plotly.v1+json", "text/html"
LIBRARY = "window.Plotly = Plotly"
"""A line of plotly.js itself."""


class Client(Notebook):  # type: ignore[misc]
    """Runs a notebook and keeps every message about its outputs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.messages: list[Any] = []

    def process_message(self, msg: Any, *args: Any) -> Any:
        self.messages.append(msg)
        return super().process_message(msg, *args)


def outputs(client: Client) -> list[Any]:
    return [output for cell in client.nb.cells for output in cell.outputs]


@pytest.fixture(scope="module")
def notebook() -> Client:
    """A notebook that was run, in a kernel of its own: that takes ten seconds, so once."""
    sources = (
        MEASURE,
        "analysis.plot()",
        "fig = analysis.plot_layer('model.layers.1.mlp.up_proj')\nfig.show()\nfig",
        "import plotly.io as pio\nprint(pio.renderers.default)",
        "pio.renderers.default = 'json'\nst.analyze(weights(), progress=None).plot()",
    )
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(x) for x in sources])
    root = str(Path(__file__).parents[2])
    client = Client(made, timeout=120, resources={"metadata": {"path": root}})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PLOTLY_RENDERER", raising=False)  # docs.notebooks sets it
        client.execute()
    return client


def test_the_bar_is_shown_and_leaves_nothing(notebook: Client) -> None:
    sent = [x["content"]["data"] for x in notebook.messages if "data" in x["content"]]
    bars = [data for data in sent if "<progress" in data.get(HTML, "")]
    assert bars
    assert bars[0]["text/plain"] == "measuring: 0%, model.embed_tokens"
    left = notebook.nb.cells[0].outputs
    assert [output.data for output in left] == [{"text/plain": "", HTML: ""}]
    assert not any(output.output_type == "stream" for output in left)


def test_plotly_js_is_sent_once_and_the_renderer_stays(notebook: Client) -> None:
    figures = [x.data for x in outputs(notebook) if x.get("data", {}).keys() >= {JSON, HTML}]
    assert len(figures) == 3
    assert [LIBRARY in figure[HTML] for figure in figures] == [True, False, False]
    assert all(figure[JSON]["data"] for figure in figures)
    assert notebook.nb.cells[3].outputs[0].text == "plotly_mimetype\n"


def test_the_exported_page_draws_the_figures_offline(
    notebook: Client, browser: Any, tmp_path: Path
) -> None:
    text, _ = nbconvert.HTMLExporter().from_notebook_node(notebook.nb)
    assert text.count(LIBRARY) == 1
    path = tmp_path / "notebook.html"
    path.write_text(text, encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    errors: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri(), wait_until="domcontentloaded")
    until(page, "document.querySelectorAll('.js-plotly-plot .main-svg').length >= 3", 30)
    drawn = page.evaluate(
        "Array.from(document.querySelectorAll('.js-plotly-plot')).map("
        "x => [x.querySelectorAll('.trace').length, x.getBoundingClientRect().width])"
    )
    assert len(drawn) == 3
    assert all(traces > 0 and width > 300 for traces, width in drawn), drawn
    assert errors == []
    context.close()


def test_a_user_who_chose_a_renderer_or_no_bar_gets_that(notebook: Client) -> None:
    assert [set(output.data) for output in notebook.nb.cells[4].outputs] == [{"application/json"}]


def test_plotly_js_is_sent_again_when_its_cell_is_run_again() -> None:
    holder = _Holder()

    def run(count: int, cell: str | None) -> bool:
        parent = {"metadata": {} if cell is None else {"cellId": cell}}
        return holder.needs_library(
            SimpleNamespace(execution_count=count, get_parent=lambda: parent)
        )

    # Two figures in cell a, one in b; then both cells again, and a front end without ids.
    runs = [(1, "a"), (1, "a"), (2, "b"), (3, "a"), (3, "a"), (4, "b"), (5, None)]
    assert [run(*x) for x in runs] == [True, False, False, True, False, False, False]


def test_scripts_stay_silent(capfd: pytest.CaptureFixture[str]) -> None:
    st.analyze(weights())
    assert capfd.readouterr() == ("", "")


def test_copies_and_pickles_are_plotly_figures() -> None:
    fig = st.analyze(weights()).plot()
    for other in (copy.deepcopy(fig), pickle.loads(pickle.dumps(fig))):
        assert type(other) is go.Figure
        assert other == fig
    assert isinstance(fig, go.Figure)
