"""What is measured and what came out, as frozen values that survive a trip through JSON. No torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from spectail.core.spec import Spec


@dataclass(frozen=True)
class Spectrum:
    """A pooled spectrum small enough to keep: a histogram of log10(eigenvalue), and quantiles of the largest ones."""

    edges: tuple[float, float]
    """log10 of the smallest and the largest non-zero eigenvalue; the bins between them are equally wide."""
    counts: tuple[int, ...]
    top: tuple[tuple[int, float], ...]
    """(rank, eigenvalue), rank 1 the largest, about evenly spaced in log rank: the survival curve is rank / N."""


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One row of the table (design: see docs/concepts for the meaning of each column); NaN where not measured."""

    name: str
    block: int | None
    kind: str
    rows: int
    cols: int
    numel: int
    n_matrices: int
    window_rows: int = 0
    window_cols: int = 0
    n_windows: int = 0
    n_eigenvalues: int = 0
    """Eigenvalues found, numerical zeros included."""
    n_zero: int = 0
    alpha: float = math.nan
    alpha_se: float = math.nan
    alpha_null: float = math.nan
    xmin: float = math.nan
    n_tail: int = 0
    ks: float = math.nan
    tail_verdict: str = ""
    lambda_max: float = math.nan
    frobenius_norm_sq: float = math.nan
    stable_rank: float = math.nan
    alpha_weighted: float = math.nan
    log_norm: float = math.nan
    entropy: float = math.nan
    weight_var: float = math.nan
    alpha_full: float = math.nan
    status: str = "ok"
    """ok, skipped or failed"""
    reason: str = ""
    """Why it is skipped or failed, or what to keep in mind about an ok row (not comparable, no error bar...)."""
    seconds: float = 0.0
    alpha_null_sd: float = math.nan
    """Spread of alpha over random matrices of this shape: the half width of the null band."""
    comparable: bool = True
    """False where the window is not that of the run, so that alpha must not be compared with other layers."""
    null_z: float = math.nan
    """alpha minus alpha_null, in combined standard errors of the two (see ``null_gap``)."""
    ks_p: float = math.nan
    """Upper bound of the chance that a true power law lies this far from its fit; for the KS cutoff only."""
    lognormal_ratio: float = math.nan
    """Log-likelihood of the power law minus that of a lognormal tail, in standard errors; for the KS cutoff only."""
    exponential_ratio: float = math.nan
    """The same against an exponential tail."""
    spectrum: Spectrum | None = field(default=None, repr=False)

    def row(self) -> dict[str, Any]:
        """The columns of the table, in their order."""
        return {name: getattr(self, name) for name in COLUMNS}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with None for NaN."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in self.row().items()}
        return values | {"spectrum": self.spectrum and dataclasses.asdict(self.spectrum)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerRecord:
        """The inverse of ``to_dict``; unknown keys are an error of the caller's file."""
        floats = {f.name for f in dataclasses.fields(cls) if f.type == "float"}
        known: dict[str, Any] = {k: math.nan if v is None and k in floats else v for k, v in values.items()}
        spectrum = known.pop("spectrum", None)
        if spectrum:
            spectrum = Spectrum(
                tuple(spectrum["edges"]), tuple(spectrum["counts"]), tuple((r, x) for r, x in spectrum["top"])
            )
        return cls(**known, spectrum=spectrum)


COLUMNS = tuple(f.name for f in dataclasses.fields(LayerRecord) if f.name != "spectrum")
"""Names of the table's columns; the order may grow at the end."""


def null_gap(layer: LayerRecord) -> float:
    """(alpha - null) in combined standard errors of the layer and of the null; NaN without an error bar or a null.

    A layer that is itself random has both spreads from the same cause: counting both is the cautious side.
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
    """What was typed to open the source, where that was text: the command that repeats the run needs it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"spec": self.spec.to_dict()}

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
