"""One look for the pictures of all experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectail.basics.files import all_or_nothing

COLOURS = (
    *("#2f6fc4", "#c97a05", "#12906a", "#d0492f", "#8a63d2", "#2a9bc7", "#c2619b"),
    *("#8a8a2b", "#8d6e63", "#68778d"),
)
MARKERS = "osD^vPXp*h"
INK = "#3b4049"
QUIET = "#8b93a1"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
}


def panels(
    rows: int, cols: int, *, size: tuple[float, float], share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of rows x cols panels, ``size`` in inches, and its panels row by row."""
    for name, value in STYLE.items():
        mpl.rcParams[name] = value
    fig, axes = plt.subplots(
        rows, cols, figsize=size, sharey=share_y, squeeze=False, layout="constrained"
    )
    return fig, list(axes.flat)


def save(fig: Figure, path: Path) -> None:
    """Write the figure as PNG on white, the same bytes for the same figure."""
    with all_or_nothing(path) as (part,):
        fig.savefig(part, dpi=150, facecolor="white", metadata={"Software": None})
    plt.close(fig)
