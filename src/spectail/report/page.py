"""One self-contained HTML page: template, style, script, plotly.js and data in one file that never asks the network.

The page's policy lets only the two scripts written here run (by their hashes) and forbids every request, so that
even a hole in the escaping of a layer's name could not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from spectail.report.theme import safe


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


@lru_cache(maxsize=8)
def _static(name: str) -> str:
    return resources.files("spectail.report").joinpath("static", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _plotly() -> str:
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


def render(title: str, body: str, payload: Mapping[str, object]) -> str:
    """The whole page; ``title`` is plain text, ``body`` is HTML whose text is already escaped."""
    plotly, script = _plotly(), _static("table.js") + _static("report.js")
    sources = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script))
    policy = (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )
    return string.Template(_static("page.html")).substitute(
        policy=policy,
        title=safe(title),
        css=_static("report.css"),
        body=body,
        data=embed(payload),
        plotly=plotly,
        script=script,
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def section(id: str, title: str, lead: str, content: str) -> str:
    """A titled section with one line on what it shows."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{id}" aria-labelledby="{id}-title"><h2 id="{id}-title">{title}</h2>{lead}{content}</section>'


def chart(id: str, label: str, caption: str = "", *, legend: bool = True, above: str = "") -> str:
    """A panel that the script draws figure ``id`` into, with its own legend of buttons."""
    box = (
        f'<div class="legend" data-legend="{id}" role="group" aria-label="Show or hide lines"></div>' if legend else ""
    )
    under = f"<figcaption>{caption}</figcaption>" if caption else ""
    drawing = f'<div class="chart" id="{id}" role="img" aria-label="{safe(label)}"></div>'
    return f'<figure class="panel">{above}{box}{drawing}{under}</figure>'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Key numbers: (what, number, note), plain text."""
    cells = (
        f'<div class="card"><dt>{safe(what)}</dt><dd><div class="number">{safe(number)}</div>'
        f'<div class="note">{safe(note)}</div></dd></div>'
        for what, number, note in items
    )
    return f'<dl class="cards">{"".join(cells)}</dl>'


def paragraphs(items: Iterable[tuple[str, str]], quiet: Sequence[str] = ()) -> str:
    """Titled paragraphs in words, none for no items; names between backticks become code, ``quiet`` ones step back."""
    cells = []
    for topic, text in items:
        shade = ' class="quiet"' if topic in quiet else ""
        cells.append(f"<dt{shade}>{safe(topic)}</dt><dd{shade}>{_with_code(_sentence(text))}</dd>")
    return f'<dl class="words">{"".join(cells)}</dl>' if cells else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", safe(text))


def table_section(title: str, lead: str) -> str:
    """The tools and the empty table that the script fills, sorts and filters."""
    tools = (
        '<div class="tools" role="search">'
        '<input type="search" id="filter" placeholder="Filter by name, kind or reason" aria-label="Filter the table">'
        '<select id="kind" aria-label="Kind of layer"><option value="">all kinds</option></select>'
        '<select id="status" aria-label="Status"><option value="">any status</option></select>'
        '<label class="check"><input type="checkbox" id="wide"> all columns</label>'
        '<output id="count" aria-live="polite"></output></div>'
    )
    scroller = (
        f'<div class="scroller" tabindex="0" role="region" aria-label="{safe(title)}">'
        '<table id="table"><thead></thead><tbody></tbody></table></div>'
    )
    return section("layers", safe(title), lead, tools + scroller)


def footer(items: Iterable[tuple[str, str]], *, command: str) -> str:
    """Where the numbers come from: (what, value) in plain text, and the command that gives them again."""
    rows = "".join(f"<dt>{safe(what)}</dt><dd>{safe(text)}</dd>" for what, text in items if text)
    return f"<footer><dl><dt>Again</dt><dd><pre>{safe(command)}</pre></dd>{rows}</dl></footer>"
