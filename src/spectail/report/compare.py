"""Two runs side by side: layers paired by name, never by position, and what moved between them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from spectail.errors import RunError
from spectail.models.naming.names import canonical_name
from spectail.records import LayerRecord, Results
from spectail.report.tables import storable

PREFIXES = ("base_model.model.", "model.", "transformer.", "module.")
"""What the same model's names may start with when it is saved with and without its head."""
METRICS = ("xmin", "stable_rank", "lambda_max", "weight_var")
PAIRED = "paired"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What moved from run A to run B.

    ``table`` has one row per pair and one per unpaired layer: name, name_a, name_b, kind, block, alpha_a, alpha_b,
    alpha_se_a, alpha_se_b, alpha_change (B - A), z (the change in combined standard errors), METRICS of both, status
    (paired, only in A, only in B, shapes differ, not comparable) and reason. ``warnings`` are sentences on what
    the two runs do not share.
    """

    table: pd.DataFrame
    warnings: tuple[str, ...]

    def moved(self, n: int = 10) -> pd.DataFrame:
        """The ``n`` comparable pairs whose alpha changed most, the largest change first; none where nothing moved."""
        change = self.table["alpha_change"]
        paired = self.table[(self.table["status"] == PAIRED) & change.notna() & (change != 0)]
        order = paired["alpha_change"].abs().sort_values(ascending=False, kind="stable").index
        return paired.loc[order].head(n)

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        html: str = self.table.to_html(index=False, max_rows=60, float_format="{:.4g}".format, na_rep="")
        return html


def pair_layers(a: Results, b: Results) -> Comparison:
    """Pair the layers of two runs by name; RunError where they share none.

    Equal names first, then known forms of one name (fused and separate experts), then names that differ in a leading
    ``model.`` or the like. A form that two layers of a run share pairs nothing.
    """
    partner = _partners(a, b)
    if not partner:
        first, second = (f"{x.layers[0].name!r}" if x.layers else "nothing" for x in (a, b))
        raise RunError(f"the two analyses share no layer: A has {first} and others, B has {second}; compare one model")
    by_name = {layer.name: layer for layer in b.layers}
    unlike = _unlike(a, b)
    rows = [_row(layer, by_name[partner[layer.name]] if layer.name in partner else None, unlike) for layer in a.layers]
    paired = set(partner.values())
    rows += [_row(None, layer) for layer in b.layers if layer.name not in paired]
    table = pd.DataFrame(rows).astype({"block": "Int64"})
    return Comparison(table, tuple(_warnings(a, b, table)))


def _partners(a: Results, b: Results) -> dict[str, str]:
    """Name in A -> name in B."""
    found: dict[str, str] = {}
    for form in (str, canonical_name, _bare):
        left = [layer.name for layer in a.layers if layer.name not in found]
        taken = set(found.values())
        right = [layer.name for layer in b.layers if layer.name not in taken]
        first, second = (_unique({name: form(name) for name in names}) for names in (left, right))
        found |= {first[key]: second[key] for key in first.keys() & second.keys()}
    return found


def _unique(forms: dict[str, str]) -> dict[str, str]:
    """Form -> name, for forms that one name alone has."""
    counts = Counter(forms.values())
    return {form: name for name, form in forms.items() if counts[form] == 1}


def _bare(name: str) -> str:
    """The canonical name without what may stand in front of the model."""
    name = canonical_name(name)
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _unlike(a: Results, b: Results) -> str:
    """Why no alpha of one run may be compared with one of the other; empty where they measure the same thing."""
    for key in ("cutoff", "legacy"):
        before, now = str(getattr(a.run.spec, key)), str(getattr(b.run.spec, key))
        if before != now:
            return f"{key} {before} in A, {now} in B: different quantities"
    return ""


def _row(a: LayerRecord | None, b: LayerRecord | None, unlike: str = "") -> dict[str, object]:
    one = b or a
    if one is None:
        raise ValueError("a row needs a layer")
    status, reason = _status(a, b)
    if status == PAIRED and unlike:
        status, reason = "not comparable", unlike
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
    if a is None or b is None:
        return "only in A" if a else "only in B", ""
    if (a.rows, a.cols) not in ((b.rows, b.cols), (b.cols, b.rows)) or a.n_matrices != b.n_matrices:
        return "shapes differ", f"{a.rows} x {a.cols} in A, {b.rows} x {b.cols} in B"
    if a.status != "ok" or b.status != "ok":
        unmeasured = [f"{x.status} in {run}: {x.reason}" for x, run in ((a, "A"), (b, "B")) if x.status != "ok"]
        return "not comparable", "; ".join(unmeasured)
    if sorted((a.window_rows, a.window_cols)) != sorted((b.window_rows, b.window_cols)):
        windows = f"windows of {a.window_rows} x {a.window_cols} in A, {b.window_rows} x {b.window_cols} in B"
        return "not comparable", windows
    return PAIRED, ""


def _warnings(a: Results, b: Results, table: pd.DataFrame) -> list[str]:
    """What the two runs do not share, in sentences."""
    found = []
    before, now = a.run.spec.to_dict(), b.run.spec.to_dict()
    for key in before:
        if before[key] != now[key]:
            found.append(f"The runs differ in {key.replace('_', ' ')}: {before[key]} in A, {now[key]} in B.")
    if a.run.window != b.run.window:
        size = f"{a.run.window or 'none'} in A, {b.run.window or 'none'} in B"
        found.append(f"The common windows differ ({size}): measure both with one --window to compare them.")
    if a.run.fingerprint == b.run.fingerprint:
        found.append("Both runs measured the same weights.")
    counts = table["status"].value_counts().drop(PAIRED, errors="ignore")
    if len(counts):
        apart = ", ".join(f"{count} {status}" for status, count in counts.items())
        found.append(f"Layers that could not be compared: {apart}; the table gives the reasons.")
    return found
