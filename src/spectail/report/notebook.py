"""Figures that a notebook keeps when it is exported as HTML.

In a Jupyter kernel plotly sends a figure as JSON only (``plotly_mimetype``). JupyterLab draws that,
but ``jupyter nbconvert --to html`` cannot. So the figures here add HTML, which needs no network:
plotly.js, 4 MB, is in the output of the first figure and the others use it.
"""

from __future__ import annotations

import json
import os
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any

from spectail.basics.notebook import cell_id, kernel
from spectail.report.page import embed, figure_data, plotly_js

if TYPE_CHECKING:
    import plotly.graph_objects as go

JSON_ONLY = {"application/vnd.plotly.v1+json"}
_LIBRARY = """<script>
window.PlotlyConfig = {MathJaxConfig: "local"};
window.spectailDefine = window.define;
window.define = undefined; // require.js of the page would take plotly.js for a module
</script><script>%s</script><script>window.define = window.spectailDefine;</script>
"""
_FIGURE = """<div id=%(id)s style="min-height: %(height)dpx"></div><script>
(() => {
  const place = document.getElementById(%(id)s), figure = %(figure)s;
  const draw = () => Plotly.newPlot(place, figure.data, figure.layout, {responsive: true});
  const load = () => {
    if (window.Plotly) return draw();
    // The output that held plotly.js was cleared.
    const script = document.createElement("script");
    script.src = %(address)s;
    script.onload = draw;
    script.onerror = () => { place.textContent = %(message)s; };
    document.head.append(script);
  };
  // In an exported page the output with plotly.js may come later.
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", load);
  else load();
})();
</script>"""
_MESSAGE = "This figure needs plotly.js, whose output was cleared: run the whole notebook again."


class _Holder:
    """The run of a cell that plotly.js was sent to."""

    run: int | None = None
    cell: str | None = None

    def needs_library(self, shell: Any) -> bool:
        """Whether this run of a cell must hold plotly.js; it counts as sent from now on."""
        run, cell = shell.execution_count, cell_id(shell)
        # The output of an earlier run of the same cell is gone.
        again = cell is not None and cell == self.cell and run != self.run
        if self.run is not None and not again:
            return False
        self.run, self.cell = run, cell
        return True


_HOLDER = _Holder()


@cache
def figure_class() -> type[go.Figure]:
    """Return plotly's Figure, drawn in exported notebooks too.

    Made at the first figure, so that measuring and training do not import plotly.
    """
    import plotly.graph_objects as go

    class Figure(go.Figure):  # type: ignore[misc]
        """A figure of plotly. Copies and pickles of it are plain figures."""

        def show(self, *args: Any, **options: Any) -> None:
            """Show the figure, as in plotly; ``renderer`` chooses how."""
            if args or options or not _displayed(self):
                super().show(*args, **options)

        def _ipython_display_(self) -> None:
            if not _displayed(self):
                super()._ipython_display_()

        def __reduce__(self) -> Any:
            return go.Figure, (self.to_dict(),)

    return Figure


def _displayed(fig: go.Figure) -> bool:
    """Display a figure in a notebook; False where plotly does it as well, or the user chose how."""
    import plotly.io as pio

    shell = kernel()
    if shell is None or "PLOTLY_RENDERER" in os.environ or not pio.renderers.render_on_display:
        return False
    bundle = fig._repr_mimebundle_()
    if bundle.keys() != JSON_ONLY:
        return False
    library = _LIBRARY % plotly_js() if _HOLDER.needs_library(shell) else ""
    from IPython.display import display  # the kernel has loaded it

    show: Any = display  # IPython has no annotations
    show({**bundle, "text/html": library + figure_html(fig)}, raw=True)
    return True


def figure_html(fig: go.Figure) -> str:
    """Return the HTML that draws a figure with the plotly.js of the page."""
    from plotly.offline import get_plotlyjs_version

    values = {
        "id": json.dumps(str(uuid.uuid4())),
        "height": fig.layout.height or 450,
        "figure": embed(figure_data(fig)),
        "address": json.dumps(f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"),
        "message": json.dumps(_MESSAGE),
    }
    return _FIGURE % values
