"""The sections of a run's page that hold a chart: titles, leads and captions."""

from __future__ import annotations

from spectail.core.cutoffs.base import Cutoff
from spectail.report.page import Chart, Section
from spectail.report.spectrum_plot import part_name

DEPTH = Section(
    id="depth-section",
    title="Alpha across depth",
    lead="Lower means a heavier tail. The dotted line is a matrix of independent entries.",
    chart=Chart(
        "depth",
        "Alpha by depth",
        "Bars are one standard error; the band is two standard deviations of a random matrix. "
        "Open marks have another window than the run and are not comparable. "
        "A point opens its layer below.",
    ),
)


def spectrum_section(cutoff: Cutoff) -> Section:
    """Make the section of a layer's spectrum, whose caption says what is drawn for this cutoff."""
    part = part_name(cutoff)
    what = (
        "The fit starts at xmin and holds the tail's share; where the points leave it, the tail is "
        "no power law."
        if cutoff.claims_power_law
        else f"Alpha is no claim of a power law here. It is 1 + 1 / m, where m is the mean of "
        f"ln(x / xmin) over the shaded part ({part}): the line falls by this slope, and ends m "
        f"beyond xmin. Dotted is a random matrix of the same variance, with its own slope."
    )
    return Section(
        id="layer-section",
        title="The spectrum of a layer",
        lead="What alpha summarises: the eigenvalues of all windows, pooled.",
        chart=Chart(
            "spectrum",
            "Spectrum of the chosen layer",
            "Left or above: the density of the pooled eigenvalues on a log axis. "
            "Right or below: the share of eigenvalues at or above a value; a power law is a "
            f"straight line there. {what}",
        ),
        chooses_layer=True,
    )


BLOCKS = Section(
    id="blocks",
    title="Blocks and kinds",
    lead="Each cell is one kind of layer in one block; darker means a heavier tail.",
    chart=Chart("heatmap", "Heat map of alpha by block and kind of layer", legend=False),
)
CHANGED = Section(
    id="changed-section",
    title="Where the weights changed",
    lead="The size of the change, over the size of the base's weights.",
    chart=Chart(
        "changed",
        "Relative change by depth",
        "Frobenius norm of the change over that of the base's weights, on a log axis. Layers with "
        "the base's own weights are skipped, and have no point.",
    ),
)
SHAPE_BIAS = Section(
    id="shape-bias",
    title="Windows against the full spectrum",
    lead="Off the dotted line, the shape of the matrix moved alpha: "
    "windows of one size take that out.",
    chart=Chart("full", "Alpha over windows against alpha of the full spectrum"),
)
