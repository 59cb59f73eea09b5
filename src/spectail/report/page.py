"""One self-contained HTML page: template, style, script, plotly.js and data in one file that never asks the network.

The page's policy lets only the two scripts written here run (by their hashes) and forbids every
request, so that even a hole in the escaping of a layer's name could not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup, escape

from spectail.results.table import storable

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Column(NamedTuple):
    """A column as the page's table shows it; ``type`` names its cell in ``report.js``."""

    key: str
    label: str
    type: str
    main: bool = True
    """Shown without asking for all columns."""
    help: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self._asdict()


class Paragraph(NamedTuple):
    """A titled paragraph in words; names between backticks become code, a quiet one steps back."""

    topic: str
    text: str
    quiet: bool = False


class Chart(NamedTuple):
    """A panel that the script draws the figure of this id into, with its own legend of buttons."""

    id: str
    label: str
    caption: str = ""
    legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled section with one line on what it shows: words, a chart, or both. All text is plain."""

    id: str
    title: str
    lead: str = ""
    words: tuple[Paragraph, ...] = ()
    aside: tuple[Paragraph, ...] = ()
    """Paragraphs beside the others: how to read them."""
    chart: Chart | None = None
    chooses_layer: bool = False
    """Whether a list above the chart chooses the layer that is drawn."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page says; the template ``page.html`` says where. All text is plain, the template escapes it."""

    title: str
    eyebrow: str
    heading: str
    settings: tuple[tuple[str, list[tuple[str, str]]], ...]
    """Lines of (word, value) pairs, each line with a name or none."""
    numbers: list[tuple[str, str, str]]
    """Key numbers: (what, number, note)."""
    sections: tuple[Section, ...]
    table_lead: str
    command: str
    """What gives these numbers again."""
    origins: list[tuple[str, str]]
    """Where the numbers come from: (what, value)."""


@lru_cache(maxsize=8)
def _static(name: str) -> str:
    return resources.files("spectail.report").joinpath("static", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def embed(values: object) -> str:
    """Values as JSON that can stand inside a script element: NaN as null, no ``</`` and no ``<!--``, ASCII only."""
    text = json.dumps(_plain(values), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(values: object) -> object:
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values


def figure_data(fig: go.Figure) -> dict[str, Any]:
    """A figure as the JSON that plotly.js draws."""
    found: dict[str, Any] = json.loads(fig.to_json(validate=False))
    return {"data": found["data"], "layout": found["layout"]}


def render(page: Page, payload: Mapping[str, object]) -> str:
    """Write the whole page; ``payload`` are the figures and the table that its script draws."""
    plotly, script = _plotly(), _static("table.js") + _static("report.js")
    sources = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script))
    policy = (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )
    text = _template().render(
        page=page,
        policy=Markup(policy),
        css=Markup(_static("report.css")),
        data=Markup(embed(payload)),
        plotly=Markup(plotly),
        script=Markup(script),
    )
    return storable(text)


@lru_cache(maxsize=1)
def _template() -> Any:
    """Parse the page's template; it escapes all text unless told that it is HTML."""
    environment = Environment(autoescape=True)
    environment.filters["with_code"] = _with_code
    return environment.from_string(_static("page.html"))


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _with_code(text: str) -> Markup:
    """Write a sentence with a capital, and what stands between backticks as code."""
    return Markup(
        re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text[:1].upper() + text[1:])))
    )
