"""Compare two runs: pair their layers by name, never by position, and compute what changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectail.basics.json_values import plain
from spectail.errors import RunError
from spectail.models.naming.pairing import Pairing, pair_names
from spectail.models.source import NOT_A_WEIGHT
from spectail.results.records import LayerRecord, Results
from spectail.results.table import storable, table_html, with_whole_blocks

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("xmin", "stable_rank", "lambda_max", "weight_var")
"""Columns that are listed for both runs, beside alpha and its error."""
PAIRED = "paired"
"""Status of a pair whose alphas can be compared."""
_MEASURED = {False: "the weights", True: "the change from a base"}
"""What a run measured, by whether it has a base."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The differences between run A and run B.

    ``table`` has one row per pair and one per unpaired layer: name, name_a, name_b, kind, block,
    alpha_a, alpha_b, alpha_se_a, alpha_se_b, alpha_change (B - A), z (the change in combined
    standard errors), METRICS of both runs, status (paired, only in A, only in B, shapes differ, not
    comparable) and reason. ``warnings`` are sentences about settings and layers that the two runs
    do not share.
    """

    table: pd.DataFrame
    warnings: tuple[str, ...]

    def moved(self, n: int = 10) -> pd.DataFrame:
        """Return the ``n`` comparable pairs whose alpha changed most, the largest change first.

        Pairs whose alpha did not change are left out.
        """
        change = self.table["alpha_change"]
        # A stable sort keeps the order of layers among equal changes.
        paired = self.table[(self.table["status"] == PAIRED) & change.notna() & (change != 0)]
        order = paired["alpha_change"].abs().sort_values(ascending=False, kind="stable").index
        return paired.loc[order].head(n)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the warnings, and the rows with None for what is unknown."""
        table = with_whole_blocks(self.table).astype(object)
        rows = table.where(table.notna(), None).to_dict("records")
        return {"warnings": list(self.warnings), "rows": plain(rows)}

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        return table_html(self.table)


def pair_layers(a: Results, b: Results) -> Comparison:
    """Pair the layers of two runs by name; raise RunError if they share none.

    ``pair_names`` describes which forms of a name pair. Parameters that are not weight matrices
    have no row.
    """
    pairing = _paired(a, b)
    partner = pairing.pairs
    if not partner:
        # Name one layer of each run, so that the reader sees how the names differ.
        first, second = (f"{x.layers[0].name!r}" if x.layers else "nothing" for x in (a, b))
        raise RunError(
            f"the two analyses share no layer: A has {first} and others, B has {second}; "
            "compare one model"
        )
    import pandas as pd  # slow to import, and not needed before

    by_name = {layer.name: layer for layer in b.layers}
    unlike = _unlike(a, b)
    rows = [
        _row(layer, by_name[partner[layer.name]], unlike)
        if layer.name in partner
        else _row(layer, None) | {"reason": storable(_alone(layer, pairing))}
        for layer in _weights(a)
    ]
    rows += [_row(None, by_name[name]) for name in pairing.right_only]
    table = pd.DataFrame(rows).astype({"block": "float64"})  # as in an analysis: NaN without one
    return Comparison(table, tuple(_warnings(a, b, table)))


def _paired(a: Results, b: Results) -> Pairing:
    """Pair the weights of two runs by their names and by their names in files of transformers."""
    names, saved = zip(*(_names(run) for run in (a, b)), strict=True)
    return pair_names(*names, left_saved=saved[0], right_saved=saved[1])


def _names(run: Results) -> tuple[list[str], dict[str, str]]:
    """Return the names of a run's weights, and those names that differ in a saved file."""
    layers = _weights(run)
    return [layer.name for layer in layers], {
        layer.name: layer.saved_as for layer in layers if layer.saved_as
    }


def _weights(run: Results) -> list[LayerRecord]:
    """Return the rows of weight matrices."""
    return [layer for layer in run.layers if layer.kind != NOT_A_WEIGHT]


def _alone(layer: LayerRecord, pairing: Pairing) -> str:
    """Return why a layer has no partner if it has several candidates, else an empty string."""
    others = pairing.ambiguous.get(layer.name, ())
    return f"several layers of B could be this one: {', '.join(others)}" if others else ""


def _unlike(a: Results, b: Results) -> str:
    """Return why alphas of the two runs are different quantities, or an empty string."""
    # Windows are compared layer by layer in _status; these settings concern every layer.
    for word, before, now in (
        ("", *(_MEASURED[run.measures_change] for run in (a, b))),
        ("cutoff ", str(a.run.spec.cutoff), str(b.run.spec.cutoff)),
        ("legacy ", str(a.run.spec.legacy), str(b.run.spec.legacy)),
    ):
        if before != now:
            return f"{word}{before} in A, {now} in B: different quantities"
    return ""


def _row(a: LayerRecord | None, b: LayerRecord | None, unlike: str = "") -> dict[str, object]:
    """Return the row of a pair, or of a layer that only one run has."""
    # Names and kinds follow run B, the later one, unless only A has the layer.
    one = b or a
    if one is None:
        raise ValueError("a row needs a layer")
    status, reason = _status(a, b)
    if status == PAIRED and unlike:
        status, reason = "not comparable", unlike
    # Variances add up for independent weights. Two versions of one model share most of theirs, so
    # that their z is too small rather than too large.
    change = b.alpha - a.alpha if a and b and status == PAIRED else math.nan
    error = math.hypot(a.alpha_se, b.alpha_se) if a and b else math.nan
    row: dict[str, object] = {
        "name": storable(one.name),
        "name_a": storable(a.name) if a else "",
        "name_b": storable(b.name) if b else "",
        "kind": storable(one.kind),
        "block": one.block,
        "alpha_a": a.alpha if a else math.nan,
        "alpha_b": b.alpha if b else math.nan,
        "alpha_se_a": a.alpha_se if a else math.nan,
        "alpha_se_b": b.alpha_se if b else math.nan,
        "alpha_change": change,
        "z": change / error if error > 0 else math.nan,
    }
    for metric in METRICS:
        row[f"{metric}_a"] = getattr(a, metric) if a else math.nan
        row[f"{metric}_b"] = getattr(b, metric) if b else math.nan
    return {**row, "status": status, "reason": storable(reason)}


def _status(a: LayerRecord | None, b: LayerRecord | None) -> tuple[str, str]:
    """Return the status of a row and the reason for it."""
    if a is None or b is None:
        return "only in A" if a else "only in B", ""
    # A matrix and its transpose have the same spectrum (some formats store weights transposed).
    if (a.rows, a.cols) not in ((b.rows, b.cols), (b.cols, b.rows)) or a.n_matrices != b.n_matrices:
        return "shapes differ", f"{a.rows} x {a.cols} in A, {b.rows} x {b.cols} in B"
    if a.status != "ok" or b.status != "ok":
        unmeasured = [
            f"{x.status} in {run}: {x.reason}"
            for x, run in ((a, "A"), (b, "B"))
            if x.status != "ok"
        ]
        return "not comparable", "; ".join(unmeasured)
    # Windows turn with a transposed matrix.
    if sorted((a.window_rows, a.window_cols)) != sorted((b.window_rows, b.window_cols)):
        before, now = (f"{x.window_rows} x {x.window_cols}" for x in (a, b))
        return "not comparable", f"windows of {before} in A, {now} in B"
    return PAIRED, ""


def _warnings(a: Results, b: Results, table: pd.DataFrame) -> list[str]:
    """Describe in sentences what the two runs do not share."""
    found = []
    before, now = a.run.spec.to_dict(), b.run.spec.to_dict()
    for key in before:
        if before[key] != now[key]:
            found.append(
                f"The runs differ in {key.replace('_', ' ')}: {before[key]} in A, {now[key]} in B."
            )
    if a.run.window != b.run.window:
        size = f"{a.run.window or 'none'} in A, {b.run.window or 'none'} in B"
        found.append(
            f"The common windows differ ({size}): measure both with one --window to compare them."
        )
    for what, one, other in (
        ("measured the change from different bases", a.run.base, b.run.base),
        (
            "are of different versions of spectail",
            *(x.run.versions.get("spectail", "") for x in (a, b)),
        ),
    ):
        if one and other and one != other:
            found.append(f"The runs {what}: {one} in A, {other} in B.")
    if a.run.fingerprint == b.run.fingerprint:
        found.append("Both runs measured the same weights.")
    counts = table["status"].value_counts().drop(PAIRED, errors="ignore")
    if len(counts):
        apart = ", ".join(f"{count} {status}" for status, count in counts.items())
        found.append(f"Layers that could not be compared: {apart}; the table gives the reasons.")
    return found
