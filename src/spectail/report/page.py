"""One self-contained HTML page: template, style, scripts and data in one file without requests.

The page's content security policy allows only the two scripts that are written here, by their
hashes, and forbids every request. Even if the escaping of a layer's name had a hole, nothing could
run or load.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup, escape

from spectail.basics.json_values import plain
from spectail.basics.texts import visible
from spectail.results.table import storable

if TYPE_CHECKING:
    import plotly.graph_objects as go

SPACE = "\n\xa0"
"""White space of a page that stays as it is, although it cannot be seen."""


class Column(NamedTuple):
    """A column of the page's table; ``type`` names its cell type in ``report.js``."""

    key: str
    label: str
    type: str
    main: bool = True
    """Whether the page shows it before the reader asks for all columns."""
    help: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return self._asdict()


class Paragraph(NamedTuple):
    """A titled paragraph; names between backticks become code, quiet paragraphs are paler."""

    topic: str
    text: str
    quiet: bool = False


class Chart(NamedTuple):
    """A panel into which the script draws the figure of this id, with buttons as a legend."""

    id: str
    label: str
    caption: str = ""
    legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled section with words, a chart, or both. All text is plain, without HTML."""

    id: str
    title: str
    lead: str = ""
    """One line on what the section shows."""
    words: tuple[Paragraph, ...] = ()
    aside: tuple[Paragraph, ...] = ()
    """Paragraphs beside the others, on how to read them."""
    chart: Chart | None = None
    chooses_layer: bool = False
    """Whether a list above the chart lets the reader choose the layer."""


@lru_cache(maxsize=1)
def addresses() -> tuple[tuple[str, str], ...]:
    """Return the addresses that the package names: its documentation, its code, the paper."""
    try:
        found = metadata.metadata("spectail").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ()
    pairs = (entry.partition(", ") for entry in found)
    return tuple((word, address) for word, _, address in pairs)


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page; the template ``page.html`` arranges and escapes it."""

    title: str
    eyebrow: str
    heading: str
    settings: tuple[tuple[str, list[tuple[str, str]]], ...]
    """Lines of (word, value) pairs, each with a name, which may be empty."""
    numbers: list[tuple[str, str, str]]
    """Key numbers: (what, number, note)."""
    sections: tuple[Section, ...]
    table_lead: str
    """One line above the table."""
    command: str
    """The command that reproduces these numbers."""
    origins: list[tuple[str, str]]
    """Where the numbers come from: (what, value)."""
    written: str = field(default_factory=lambda: f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}")
    """When the page was written, in local time."""
    links: tuple[tuple[str, str], ...] = field(default_factory=addresses)
    """Where to read on: (word, address)."""


def page_mark(eyebrow: str) -> bytes:
    """Return the bytes near the beginning of a page that show its kind."""
    return f'<meta name="generator" content="spectail, {eyebrow}">'.encode()


@lru_cache(maxsize=8)
def _static(name: str) -> str:
    """Read a file of the folder ``static``."""
    return resources.files("spectail.report").joinpath("static", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def plotly_js() -> str:
    """Return plotly.js with unix line ends, which browsers use when they hash a script."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def embed(values: object) -> str:
    """Write values as JSON for the inside of a script element.

    NaN becomes null. The text is ASCII and has no ``<``, so that it cannot end the element.
    """
    text = json.dumps(plain(values), allow_nan=False, separators=(",", ":"))
    # "</script>" and "<!--" would end or confuse the element, whatever the quoting.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def figure_data(fig: go.Figure) -> dict[str, Any]:
    """Return a figure as the JSON that plotly.js draws."""
    # plotly's own encoder writes NaN as null and arrays as lists.
    found: dict[str, Any] = json.loads(fig.to_json(validate=False))
    return {"data": found["data"], "layout": found["layout"]}


def render(page: Page, payload: Mapping[str, object]) -> str:
    """Write the whole page; ``payload`` holds the figures and the table for its script."""
    # plotly.js is 4 MB, but a page that loads it from the network would not open offline.
    plotly, script = plotly_js(), _static("table.js") + _static("report.js")
    # Inline scripts run only if the policy has their hash; a script in a smuggled name has none.
    sources = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script))
    policy = (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
    text = _template().render(
        page=page,
        policy=Markup(policy),
        css=Markup(_static("report.css")),
        data=Markup(embed(payload)),
        plotly=Markup(plotly),
        script=Markup(script),
    )
    # Names in a file may hold lone surrogates, which UTF-8 cannot write.
    return storable(text)


@lru_cache(maxsize=1)
def _template() -> Any:
    """Parse the page's template, which escapes all text that is not marked as HTML."""
    # Markup() marks what is HTML already; everything else is escaped.
    environment = Environment(autoescape=True, finalize=_shown)
    environment.filters["with_code"] = _with_code
    environment.filters["minus"] = minus
    return environment.from_string(_static("page.html"))


def _shown(value: Any) -> Any:
    """Escape what cannot be seen in a text: a mark of direction turns all that follows it."""
    plain_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value, SPACE) if plain_text else value


def _digest(script: str) -> str:
    """Return the hash of a script as a content security policy writes it."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _with_code(text: str) -> Markup:
    """Write a sentence with a capital, and turn text between backticks into code."""
    parts = str(escape(_shown(text[:1].upper() + text[1:]))).split("`")
    # Names stay as they are; between them a hyphen before a number is a minus sign.
    return Markup("".join(f"<code>{x}</code>" if i % 2 else minus(x) for i, x in enumerate(parts)))


def minus(text: str) -> str:
    """Write minus signs as such: before a number, and between spaces."""
    return re.sub(r"(?<![\w.-])-(?=\d)|(?<= )-(?= )", "\u2212", text)
