"""What is measured and what came out, as frozen values that survive a trip through JSON. No torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from spectail.core.spec import Spec
from spectail.models.source import NOT_A_WEIGHT


@dataclass(frozen=True)
class Spectrum:
    """A pooled spectrum small enough to keep: a histogram of log10(eigenvalue), and quantiles of the largest ones."""

    edges: tuple[float, float]
    """log10 of the smallest and the largest non-zero eigenvalue; the bins between them are equally
    wide."""
    counts: tuple[int, ...]
    top: tuple[tuple[int, float], ...]
    """(rank, eigenvalue), rank 1 the largest, about evenly spaced in log rank: the survival curve
    is rank / N."""


@dataclass(frozen=True)
class Column:
    """One column of the table of layers: the record, the DataFrame, the report and the documentation follow from it."""

    name: str
    label: str
    """Its heading in the report."""
    cell: str
    """How the report writes a value: the name of a cell type in ``report.js``."""
    meaning: str
    """One phrase for the documentation, and what the heading shows when one points at it."""
    main: bool = False
    """Whether the report shows it before one asks for all columns."""


def _column(
    label: str, cell: str, meaning: str, default: Any = dataclasses.MISSING, *, main: bool = False
) -> Any:
    """Declare a field of the record together with what its column is called and means."""
    about = {"label": label, "cell": cell, "meaning": meaning, "main": main}
    return (
        field(metadata=about)
        if default is dataclasses.MISSING
        else field(default=default, metadata=about)
    )


RATIO = "log-likelihood of the power law minus that of {}, in standard errors; negative: {} fits better (`ks` only)"


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One row of the table; NaN where not measured. The fields, in order, are the table's columns."""

    name: str = _column("Layer", "name", "full name of the parameter, without `.weight`", main=True)
    block: int | None = _column(
        "Block", "count", "index of the repeated unit that holds the layer", main=True
    )
    kind: str = _column(
        "Kind", "text", "what the layer does: q, k, v, o, gate, up, down, conv, ...", main=True
    )
    rows: int = _column("Rows", "count", "output size of each matrix")
    cols: int = _column("Columns", "count", "input size of each matrix")
    numel: int = _column("Weights", "count", "number of weights")
    n_matrices: int = _column(
        "Matrices", "count", "matrices that pool into the row: kernel positions, modes, heads"
    )
    window_rows: int = _column("Window rows", "count", "rows of each window", 0)
    window_cols: int = _column("Window cols", "count", "columns of each window", 0)
    n_windows: int = _column("Windows", "count", "windows over all matrices of the row", 0)
    n_eigenvalues: int = _column(
        "Eigenvalues", "count", "eigenvalues found, numerical zeros included", 0
    )
    n_zero: int = _column(
        "Zeros", "count", "numerical zeros among the eigenvalues, left out of the fit", 0
    )
    alpha: float = _column(
        "Alpha",
        "alpha",
        "tail exponent; on the report's scale the dot, the stroke is a random matrix",
        math.nan,
        main=True,
    )
    alpha_se: float = _column(
        "± error", "fixed", "standard error of alpha (jackknife)", math.nan, main=True
    )
    alpha_null: float = _column(
        "Random", "fixed", "alpha of a matrix of independent entries", math.nan
    )
    xmin: float = _column("xmin", "number", "eigenvalue from which on the tail is fitted", math.nan)
    n_tail: int = _column("In tail", "count", "eigenvalues in the tail", 0)
    ks: float = _column(
        "KS", "fixed", "Kolmogorov-Smirnov distance between the tail and its fit", math.nan
    )
    tail_verdict: str = _column(
        "Tail verdict", "why", "whether a power law describes the tail (`ks` only)", ""
    )
    lambda_max: float = _column(
        "Largest eigenvalue", "number", "largest eigenvalue of the *whole* matrix", math.nan
    )
    frobenius_norm_sq: float = _column(
        "Sum of eigenvalues", "number", "sum of the eigenvalues of the *whole* matrix", math.nan
    )
    stable_rank: float = _column(
        "Stable rank", "number", "frobenius_norm_sq / lambda_max", math.nan, main=True
    )
    alpha_weighted: float = _column(
        "Alpha weighted", "number", "alpha * log10(lambda_max)", math.nan
    )
    log_norm: float = _column("Log norm", "number", "log10(frobenius_norm_sq)", math.nan)
    entropy: float = _column(
        "Entropy",
        "number",
        "entropy of the whole spectrum, from 0 to 1 (`--full-spectrum` only)",
        math.nan,
    )
    weight_var: float = _column("Weight variance", "number", "variance of the weights", math.nan)
    alpha_full: float = _column(
        "Full alpha",
        "fixed",
        "alpha of the whole matrix, without windows (`--full-spectrum` only)",
        math.nan,
    )
    status: str = _column("Status", "status", "ok, skipped or failed", "ok", main=True)
    reason: str = _column(
        "Reason",
        "why",
        "why a row is skipped or failed; on an ok row, what to keep in mind",
        "",
        main=True,
    )
    seconds: float = _column("Seconds", "number", "time to read and measure the layer", 0.0)
    alpha_null_sd: float = _column(
        "Random sd", "fixed", "spread of alpha over random matrices of this shape", math.nan
    )
    comparable: bool = _column(
        "Comparable",
        "text",
        "whether the window is the run's, so that alpha compares with other layers",
        True,
    )
    null_z: float = _column(
        "From random",
        "errors",
        "alpha - alpha_null, in combined standard errors of the two",
        math.nan,
        main=True,
    )
    ks_p: float = _column(
        "KS p",
        "fixed",
        "at most this often would a true power law fit as badly (`ks` only)",
        math.nan,
    )
    lognormal_ratio: float = _column(
        "Lognormal ratio", "errors", RATIO.format("a lognormal tail", "the lognormal"), math.nan
    )
    exponential_ratio: float = _column(
        "Exponential ratio",
        "errors",
        RATIO.format("an exponential tail", "the exponential"),
        math.nan,
    )
    saved_as: str = _column(
        "Name in the file",
        "text",
        "name in the file that transformers writes for a live model, where it differs",
        "",
    )
    spectrum: Spectrum | None = field(default=None, repr=False)

    @property
    def no_weight(self) -> str | None:
        """Why the row's tensor is no weight matrix; None for weights."""
        return self.reason if self.kind == NOT_A_WEIGHT else None

    def row(self) -> dict[str, Any]:
        """The columns of the table, in their order."""
        return {name: getattr(self, name) for name in COLUMNS}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with None for NaN."""
        values = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in self.row().items()
        }
        return values | {"spectrum": self.spectrum and dataclasses.asdict(self.spectrum)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerRecord:
        """The inverse of ``to_dict``; unknown keys are an error of the caller's file."""
        floats = {f.name for f in dataclasses.fields(cls) if f.type == "float"}
        known: dict[str, Any] = {
            k: math.nan if v is None and k in floats else v for k, v in values.items()
        }
        spectrum = known.pop("spectrum", None)
        if spectrum:
            spectrum = Spectrum(
                tuple(spectrum["edges"]),
                tuple(spectrum["counts"]),
                tuple((r, x) for r, x in spectrum["top"]),
            )
        return cls(**known, spectrum=spectrum)


COLUMN_TABLE = tuple(
    Column(f.name, **f.metadata) for f in dataclasses.fields(LayerRecord) if f.metadata
)
"""All columns of the table, in their order; the order may grow at the end."""
COLUMNS = tuple(column.name for column in COLUMN_TABLE)
"""Their names."""


def null_gap(layer: LayerRecord) -> float:
    """(alpha - null) in combined standard errors of the layer and of the null; NaN without an error bar or a null.

    A layer that is itself random has both spreads from the same cause: counting both is the
    cautious side.
    """
    spread = layer.alpha_null_sd if math.isfinite(layer.alpha_null_sd) else 0.0
    error = math.hypot(layer.alpha_se, spread)
    return (layer.alpha - layer.alpha_null) / error if error > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What was measured: enough to repeat the run, and to refuse to mix it with another."""

    source: str
    fingerprint: str
    spec: Spec
    window: int | None
    """Short side of the common window; None where every layer has its own."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    full_spectrum: bool = False
    device: str = "cpu"
    n_vectors: int = 0
    """Parameters with fewer than two dimensions, which have no row."""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    given: str = ""
    """What was typed to open the source, where that was text: the command that repeats the run
    needs it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "spec": self.spec.to_dict()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunInfo:
        """The inverse of ``to_dict``."""
        lists = {k: tuple(values[k]) for k in ("include", "exclude", "notes")}
        return cls(**{**values, **lists, "spec": Spec(**values["spec"])})


@dataclass(frozen=True)
class Results:
    """A run: what was asked and one record per layer, in the model's order."""

    run: RunInfo
    layers: tuple[LayerRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in ``analysis.json``."""
        return {"run": self.run.to_dict(), "layers": [layer.to_dict() for layer in self.layers]}
