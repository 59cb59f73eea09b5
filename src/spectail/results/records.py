"""Records of what was measured: frozen values that can be stored as JSON and restored. No torch."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeAlias

import msgspec

from spectail.basics.json_values import plain
from spectail.basics.schema import (
    Count,
    Finite,
    NotNegative,
    Positive,
    SchemaError,
    Share,
    build,
    checked,
)
from spectail.core.spec import Spec
from spectail.models.source import NOT_A_WEIGHT
from spectail.results.columns import Column, column

Status: TypeAlias = Annotated[str, msgspec.Meta(pattern="^(ok|skipped|failed)$")]
"""What became of a layer."""
Rank: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""The place of an eigenvalue among all of a layer, from the largest on."""
Exponent: TypeAlias = Annotated[float, msgspec.Meta(ge=1, le=sys.float_info.max)]
"""An exponent of a tail, which is 1 plus a positive number."""


@dataclass(frozen=True)
class Spectrum:
    """Summary of a pooled spectrum: a histogram of log10(eigenvalue) and the largest ones."""

    edges: tuple[Finite, Finite]
    """log10 of the smallest and the largest non-zero eigenvalue. The bins between them have equal
    width."""
    counts: tuple[Count, ...]
    """Number of eigenvalues in each bin."""
    top: tuple[tuple[Rank, Positive], ...]
    """Pairs (rank, eigenvalue), where rank 1 is the largest. The ranks are about evenly spaced in
    log rank. The survival curve is rank / N."""

    def __post_init__(self) -> None:
        """Refuse a histogram that ends before it begins."""
        if self.edges[0] > self.edges[1]:
            raise ValueError(f"edges from {self.edges[0]:g} to {self.edges[1]:g}")


@dataclass(frozen=True)
class Rounding:
    """What a layer becomes in one format: see ``spectail.core.quantisers``."""

    format: str
    """Name of the format, such as ``int4``."""
    bits: float
    """Bits per weight, scales included."""
    error: float
    """Relative squared error, ||Q(W) - W||^2 / ||W||^2."""


RATIO = (
    "log-likelihood of the power law minus that of {}, in standard errors; "
    "negative: {} fits better (`ks` only)"
)


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One row of the table; NaN if not measured. The fields, in order, are the table's columns."""

    name: str = column("Layer", "name", "full name of the parameter, without `.weight`", main=True)
    block: Count | None = column(
        "Block", "count", "index of the repeated unit that holds the layer", main=True
    )
    kind: str = column(
        "Kind", "text", "what the layer does: q, k, v, o, gate, up, down, conv, ...", main=True
    )
    rows: Count = column("Rows", "count", "output size of each matrix")
    cols: Count = column("Columns", "count", "input size of each matrix")
    numel: Count = column("Weights", "count", "number of weights")
    n_matrices: Count = column(
        "Matrices", "count", "matrices whose eigenvalues are pooled: kernel positions, modes, heads"
    )
    window_rows: Count = column("Window rows", "count", "rows of each window", 0)
    window_cols: Count = column("Window cols", "count", "columns of each window", 0)
    n_windows: Count = column(
        "Windows", "count", "number of windows over all matrices of the row", 0
    )
    n_eigenvalues: Count = column(
        "Eigenvalues", "count", "eigenvalues found, numerical zeros included", 0
    )
    n_zero: Count = column(
        "Zeros", "count", "numerical zeros among the eigenvalues, left out of the fit", 0
    )
    alpha: Exponent = column(
        "Alpha",
        "alpha",
        "exponent of the tail; the report draws it as a dot, and a random matrix as a stroke",
        math.nan,
        main=True,
    )
    alpha_se: NotNegative = column(
        "± error", "fixed", "standard error of alpha (jackknife)", math.nan, main=True
    )
    alpha_null: NotNegative = column(
        "Random",
        "fixed",
        "alpha of a random matrix: independent entries of equal variance (the null)",
        math.nan,
    )
    xmin: NotNegative = column("xmin", "number", "smallest eigenvalue of the tail", math.nan)
    n_tail: Count = column("In tail", "count", "eigenvalues in the tail", 0)
    ks: Share = column(
        "KS", "fixed", "Kolmogorov-Smirnov distance between the tail and its fit", math.nan
    )
    tail_verdict: str = column(
        "Tail verdict", "why", "whether a power law describes the tail (`ks` only)", ""
    )
    lambda_max: NotNegative = column(
        "Largest eigenvalue", "number", "largest eigenvalue of the *whole* matrix", math.nan
    )
    frobenius_norm_sq: NotNegative = column(
        "Sum of eigenvalues", "number", "sum of the eigenvalues of the *whole* matrix", math.nan
    )
    stable_rank: NotNegative = column(
        "Stable rank", "number", "frobenius_norm_sq / lambda_max", math.nan, main=True
    )
    alpha_weighted: Finite = column(
        "Alpha weighted", "number", "alpha * log10(lambda_max)", math.nan
    )
    log_norm: Finite = column("Log norm", "number", "log10(frobenius_norm_sq)", math.nan)
    entropy: NotNegative = column(
        "Entropy",
        "number",
        "entropy of the whole spectrum, from 0 to 1 (`--full-spectrum` only)",
        math.nan,
    )
    weight_var: NotNegative = column(
        "Weight variance", "number", "variance of the weights", math.nan
    )
    alpha_full: Exponent = column(
        "Full alpha",
        "fixed",
        "alpha of the whole matrix, without windows (`--full-spectrum` only)",
        math.nan,
    )
    status: Status = column("Status", "status", "ok, skipped or failed", "ok", main=True)
    reason: str = column(
        "Reason",
        "why",
        "why a row is skipped or failed; on an ok row, remarks",
        "",
        main=True,
    )
    seconds: NotNegative = column("Seconds", "number", "time to read and measure the layer", 0.0)
    alpha_null_sd: NotNegative = column(
        "Random sd", "fixed", "spread of alpha over random matrices of this shape", math.nan
    )
    comparable: bool = column(
        "Comparable",
        "text",
        "whether the layer was measured in the run's window, so that its alpha compares",
        True,
    )
    null_z: Finite = column(
        "From random",
        "errors",
        "alpha - alpha_null, in combined standard errors of the two",
        math.nan,
        main=True,
    )
    ks_p: Share = column(
        "KS p",
        "fixed",
        "upper bound of the p-value of the power-law fit (`ks` only)",
        math.nan,
    )
    lognormal_ratio: Finite = column(
        "Lognormal ratio", "errors", RATIO.format("a lognormal tail", "the lognormal"), math.nan
    )
    exponential_ratio: Finite = column(
        "Exponential ratio",
        "errors",
        RATIO.format("an exponential tail", "the exponential"),
        math.nan,
    )
    saved_as: str = column(
        "Name in the file",
        "text",
        "name in the file that transformers writes for a live model, where it differs",
        "",
    )
    snr: Finite = column(
        "Signal to noise",
        "number",
        "Spectrum's signal-to-noise ratio of the whole matrix (`--full-spectrum` only)",
        math.nan,
    )
    log_spectral_norm: Finite = column("Log spectral norm", "number", "log10(lambda_max)", math.nan)
    log_alpha_norm: Finite = column(
        "Log alpha norm",
        "number",
        "log10 of the sum of eigenvalue^alpha over the whole spectrum (`--full-spectrum` only)",
        math.nan,
    )
    rank_loss: NotNegative = column(
        "Rank loss",
        "count",
        "eigenvalues of the whole matrices that are zero within rounding (`--full-spectrum` only)",
        math.nan,
    )
    matrix_rank: NotNegative = column(
        "Rank",
        "count",
        "eigenvalues of the whole matrices that are above zero (`--full-spectrum` only)",
        math.nan,
    )
    relative_change: NotNegative = column(
        "Relative change",
        "number",
        "norm of the change over the norm of the base's weights (`--base` only)",
        math.nan,
    )
    n_traps: NotNegative = column(
        "Traps",
        "count",
        "eigenvalues beyond the edge once the entries are shuffled (`--traps` only)",
        math.nan,
    )
    trap_ratio: NotNegative = column(
        "Trap ratio",
        "number",
        "largest eigenvalue of the shuffled layer over the edge (`--traps` only)",
        math.nan,
    )
    trap_p: Share = column(
        "Trap p",
        "fixed",
        "probability that a layer of light-tailed entries has as large an eigenvalue "
        "(`--traps` only)",
        math.nan,
    )
    erg_n: NotNegative = column(
        "ERG",
        "count",
        "most eigenvalues, from the largest on, whose product is at least 1 if their mean is 1 "
        "(`--erg` only)",
        math.nan,
    )
    erg_gap: Finite = column(
        "ERG gap",
        "count",
        "erg_n - n_tail; positive: the tail starts too high for the ERG condition (`--erg` only)",
        math.nan,
    )
    spectrum: Spectrum | None = field(default=None, repr=False)
    part: str = field(default="", repr=False)
    """How the layer was cut out of its parameter: ``Part.cut``. A stored record counts for a layer
    only if it was cut in the same way."""
    group_range: NotNegative = field(default=math.nan, repr=False)
    """Mean squared range of groups of 128 weights, over the mean square of the weights."""
    rounding: tuple[Rounding, ...] = field(default=(), repr=False)
    """The error of each format, if asked for: ``allocate`` chooses bits by it."""

    @property
    def no_weight(self) -> str | None:
        """Why the row's tensor is no weight matrix; None for weights."""
        return self.reason if self.kind == NOT_A_WEIGHT else None

    def row(self) -> dict[str, Any]:
        """Return the columns of the table, in their order."""
        return {name: getattr(self, name) for name in COLUMNS}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with None for NaN."""
        values: dict[str, Any] = plain(self.row())
        stored = values | {
            # dataclasses.asdict copies each of its hundreds of numbers, which costs more than
            # writing them.
            "spectrum": self.spectrum and dict(vars(self.spectrum)),
            "group_range": plain(self.group_range),
            "part": self.part,
        }
        if self.rounding:
            stored["rounding"] = [list(dataclasses.astuple(found)) for found in self.rounding]
        return stored

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerRecord:
        """Restore a record from ``to_dict``; SchemaError for anything else."""
        # JSON has no NaN: None stands for it in columns of numbers, whose default is NaN.
        fields = {
            name: value
            for name, value in checked(dict[str, Any], values).items()
            if value is not None or name not in _NUMBERS
        }
        if unknown := fields.keys() - _FIELDS:
            raise SchemaError(f"this version does not know its field {min(unknown)!r}")
        if "rounding" in fields:
            found = checked(tuple[tuple[str, Positive, NotNegative], ...], fields["rounding"])
            fields["rounding"] = [dict(zip(_ROUNDING, one, strict=True)) for one in found]
        return checked(cls, fields)


_KINDS_OF_NUMBERS = {"Finite", "NotNegative", "Exponent", "Share"}
_FIELDS = {f.name: str(f.type) for f in dataclasses.fields(LayerRecord)}
_NUMBERS = {name for name, kind in _FIELDS.items() if kind in _KINDS_OF_NUMBERS}
_ROUNDING = tuple(f.name for f in dataclasses.fields(Rounding))

COLUMN_TABLE = tuple(
    Column(f.name, **f.metadata) for f in dataclasses.fields(LayerRecord) if f.metadata
)
"""All columns of the table in their order. New columns are added at the end."""
COLUMNS = tuple(column.name for column in COLUMN_TABLE)
"""The names of all columns."""


def null_gap(layer: LayerRecord) -> float:
    """Return (alpha - alpha_null) in combined standard errors of the layer and of the null.

    The null is the alpha of a random matrix. The result is NaN without an error bar or a null. For
    a layer that is itself random both spreads have the same cause, so counting both is cautious.
    """
    # A fixed xmin has a null without a spread; the error of the layer alone then counts.
    spread = layer.alpha_null_sd if math.isfinite(layer.alpha_null_sd) else 0.0
    error = math.hypot(layer.alpha_se, spread)
    return (layer.alpha - layer.alpha_null) / error if error > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The settings and the model of a run.

    They suffice to repeat the run and to refuse to continue it with another model or setting.
    """

    source: str
    fingerprint: str
    spec: Spec
    window: Annotated[int, msgspec.Meta(ge=1)] | None
    """Short side of the common window; None if every layer has its own."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Kinds of layer that are measured; empty for all."""
    types: tuple[str, ...] = ()
    """Types of layer that are measured; empty for all."""
    full_spectrum: bool = False
    traps: bool = False
    erg: bool = False
    device: str = "cpu"
    n_vectors: Count = 0
    """Number of parameters with fewer than two dimensions, which have no row."""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    given: str = ""
    """The text that opened the source, if it was text. The command that repeats the run needs
    it."""
    base: str = ""
    """The same of the model whose weights were taken away."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "spec": self.spec.to_dict()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunInfo:
        """Restore a run from ``to_dict``; SchemaError for anything else."""
        text = partial(checked, str)
        return build(cls, values, spec=partial(build, Spec, placement=text, cutoff=text))


@dataclass(frozen=True)
class Results:
    """A run: its settings and one record per layer, in the model's order."""

    run: RunInfo
    layers: tuple[LayerRecord, ...]

    @property
    def measures_change(self) -> bool:
        """Whether the change of weights from a base was measured in place of the weights."""
        # A base that was given as an object has no text.
        return bool(self.run.base) or any(math.isfinite(x.relative_change) for x in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as in ``analysis.json``."""
        return {"run": self.run.to_dict(), "layers": [layer.to_dict() for layer in self.layers]}
