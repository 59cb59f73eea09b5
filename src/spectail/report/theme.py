"""One look for every figure, on light and on dark backgrounds, also for colour-blind readers.

Marks have a contrast of about 3:1 against white and against near-black. Kinds of layer differ in
symbol as well as in colour. All text for plotly goes through ``safe``: plotly interprets some HTML
tags, and layer names come from files of unknown origin.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from spectail.basics.texts import visible
from spectail.report.notebook import figure_class
from spectail.report.page import SPACE

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK = "#777d87"
"""Text and axes on an unknown background (a notebook); the HTML page sets its own colour."""
GRID = "rgba(128, 134, 144, 0.18)"
NULL = "#8b93a1"
NULL_FILL = "rgba(128, 136, 150, 0.22)"
ACCENT = "#2f6fc4"
FIT = "#d0492f"
TIMES = "\u00d7"
"""The sign between rows and columns."""
FONT = "Inter, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
HEAT_SCALE = (
    (0.0, "#43339b"),
    (0.25, "#2f6fc4"),
    (0.5, "#2aa3a6"),
    (0.75, "#93c98b"),
    (1.0, "#f2dd8c"),
)
"""Dark violet is a low alpha, a heavy tail. Lightness rises evenly along the scale."""

# In the order of _KNOWN_KINDS, then those for other kinds.
_COLOURS = (
    *("#2f6fc4", "#c97a05", "#12906a", "#d0492f", "#8a63d2", "#2a9bc7", "#c2619b"),
    *("#8a8a2b", "#8d6e63", "#68778d"),
)
_SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "cross",
    "x",
    "pentagon",
    "star",
    "hexagon",
)
_KNOWN_KINDS = ("q", "k", "v", "o", "gate", "up", "down")


def safe(text: str) -> str:
    """Escape text for plotly and HTML, and characters that cannot be seen or stored."""
    # Quotes too, because names also stand in attributes.
    return html.escape(visible(text, SPACE), quote=True)


def kind_styles(kinds: list[str]) -> dict[str, tuple[str, str]]:
    """Return (colour, symbol) of each kind.

    q, k, v, o, gate, up and down look the same in every report. Other kinds get what is left.
    """
    styles = {
        kind: (_COLOURS[i], _SYMBOLS[i]) for i, kind in enumerate(_KNOWN_KINDS) if kind in kinds
    }
    # Other kinds take colours that no known kind could have, then those of absent known kinds.
    free = [
        i for i in range(len(_COLOURS)) if i >= len(_KNOWN_KINDS) or _KNOWN_KINDS[i] not in kinds
    ]
    free = sorted(free, key=lambda i: (i < len(_KNOWN_KINDS), i)) or list(range(len(_COLOURS)))
    others = [kind for kind in dict.fromkeys(kinds) if kind not in styles]
    # When the colours are used up they come again with another symbol.
    for i, kind in enumerate(others):
        place = free[i % len(free)]
        styles[kind] = (_COLOURS[place], _SYMBOLS[(place + i // len(free)) % len(_SYMBOLS)])
    return styles


def axis(title: str, **more: object) -> dict[str, Any]:
    """Return the settings of one plain axis: a title, few ticks, a faint grid, no zero line."""
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "tickfont": {"size": 12},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "ticks": "",
        "automargin": True,
        **more,
    }


def figure(**layout: object) -> go.Figure:
    """Make an empty figure with the shared fonts, margins, legend and a transparent background.

    In a notebook it is drawn in the exported page too, see ``report.notebook``.
    """
    # The page restyles text and grid for light and dark; transparent grounds let it show through.
    base: dict[str, Any] = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": INK},
        "margin": {"l": 58, "r": 18, "t": 44, "b": 52},
        "height": 420,
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemsizing": "constant",
        },
        "hovermode": "closest",
    }
    return figure_class()(layout={**base, **layout})


def note(fig: go.Figure, text: str) -> go.Figure:
    """Write into an empty figure why there is nothing to draw."""
    fig.add_annotation(
        text=safe(text),
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 14},
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return fig
