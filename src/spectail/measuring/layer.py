"""Measure one layer and return its row of the table.

Only this module knows both matrices and layer names.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spectail.basics.texts import type_and_line
from spectail.core.bands import Bands
from spectail.core.cuda import is_out_of_memory
from spectail.core.goodness import GoodnessOfFit, judge_tail, verdict
from spectail.core.measure import estimator_of, measure, too_small
from spectail.core.metrics import entropy, log_alpha_norm, moments, signal_to_noise
from spectail.core.quantisers import group_range
from spectail.core.tail_fit import TailFit
from spectail.core.tolerance import spread_order
from spectail.core.traps import MIN_SIDE, find_traps
from spectail.errors import SourceChangedError, SourceError, SourceUnreachableError, SpecError
from spectail.measuring.reading import few_bands, read_layer
from spectail.models.difference import UnchangedError
from spectail.models.source import Layer, SourceFile
from spectail.results.records import LayerRecord, RunInfo, Spectrum, null_gap

if TYPE_CHECKING:
    from torch import Tensor

    from spectail.core.spec import Spec

SOLVER_ERRORS = (np.linalg.LinAlgError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What the eigenvalue solvers of NumPy and torch raise if they do not converge."""
BINS = 80
"""Bins of the stored histogram."""
TOP_POINTS = 60
"""Number of largest eigenvalues that are stored, evenly spaced in log rank."""
NOT_ONE_TAIL = "not applicable: alpha is an average over several tails"
"""Verdict for a convolution if the published code averages alphas over its divisions
(``Spec.legacy``)."""

TRAPS_OF_MEAN = "the mean of the weights alone is large enough for a trap"
"""Remark on traps that need no huge weights."""
NO_EDGE = (
    f"traps not looked for: a window's short side is below {MIN_SIDE}, or all weights are equal"
)
"""Remark on a layer that has no edge."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first layer is read."""

    run: RunInfo
    layers: tuple[Layer, ...]
    device: str
    source: Any = None
    """The source as it was given, for engines whose workers open it again."""
    alpha_only: bool = False
    """Leave out what training does not use: the error bar, the norms of the whole matrices and the
    stored spectrum."""
    quantization_errors: bool = False
    """Also measure the errors of formats: see ``with_rounding``."""
    files: tuple[SourceFile, ...] = ()
    """The files that the layers are read from, to be checked at the end."""
    base: Any = None
    """The model whose weights are taken away, as it was given."""


def measure_layer(layer: Layer, plan: Plan) -> LayerRecord:
    """Return a layer's row; problems of the layer's data become its status and reason."""
    started = time.perf_counter()
    record = record_of(layer)
    spec = plan.run.spec
    if layer.no_weight:
        return replace(record, status="skipped", reason=layer.no_weight)
    if layer.problem:
        return replace(record, status="failed", reason=layer.problem)
    if reason := too_small((layer.rows, layer.cols), spec, layer.n_matrices):
        return replace(record, status="skipped", reason=reason)
    try:
        with torch.no_grad():
            record = _read_and_measured(record, layer, plan)
    except UnchangedError as error:
        record = replace(record, status="skipped", reason=str(error), relative_change=0.0)
    except SpecError as error:
        record = replace(record, status="skipped", reason=str(error))
    except (SourceChangedError, SourceUnreachableError):
        raise  # the rows so far would be of one model and the rest of another
    except Exception as error:  # noqa: BLE001 - no layer may end a run of hours, whatever it raises
        record = replace(record, status="failed", reason=why_failed(error))
    reason = "; ".join(filter(None, [layer.note, record.reason]))
    return replace(record, reason=reason, seconds=round(time.perf_counter() - started, 4))


def _read_and_measured(record: LayerRecord, layer: Layer, plan: Plan) -> LayerRecord:
    """Read a layer, whole or as far as its windows need, and add all numbers to its row."""
    run = plan.run
    needed = run.full_spectrum or run.traps or plan.quantization_errors
    if not needed and (bands := few_bands(layer, run, plan.device)):
        return _measured(record, bands, plan)
    matrices, of_base = read_layer(layer, run, plan.device, shuffled=run.traps)
    record = _measured(record, matrices, plan)
    share = moments(matrices)[1] / of_base if of_base else math.nan
    return replace(record, relative_change=math.sqrt(share) if math.isfinite(share) else math.nan)


def why_failed(error: Exception) -> str:
    """Return the reason that a layer's row shows after an error."""
    if isinstance(error, SourceError):
        return str(error)
    if is_out_of_memory(error):
        return "the GPU's memory does not hold this layer: use --device cpu"
    if isinstance(error, SOLVER_ERRORS):
        return f"the eigenvalue solver gave up: {error}"
    # torch has no type of its own for a failed allocation on the CPU.
    if isinstance(error, MemoryError) or "memory" in str(error):
        return "this machine has not enough memory for this layer: run again where there is more"
    return f"it cannot be measured ({type_and_line(error)})"


def record_of(layer: Layer) -> LayerRecord:
    """Return a layer's row before anything is measured."""
    return LayerRecord(
        name=layer.name,
        block=layer.block,
        kind=layer.kind,
        rows=layer.rows,
        cols=layer.cols,
        numel=layer.numel,
        n_matrices=layer.n_matrices,
        reason=layer.no_weight or "",
        saved_as=layer.saved_as,
        part=layer.part.cut if layer.part else "",
    )


def _measured(record: LayerRecord, matrices: Tensor | Bands, plan: Plan) -> LayerRecord:
    """Add all measured numbers to a row."""
    spec, run = plan.run.spec, plan.run
    fit = measure(
        matrices, spec, run.window, convolution=record.kind == "conv", error_bar=not plan.alpha_only
    )
    record = replace(
        record,
        window_rows=fit.window.rows,
        window_cols=fit.window.cols,
        n_windows=fit.n_windows,
        n_eigenvalues=fit.eigenvalues.size + fit.n_zero,
        n_zero=fit.n_zero,
        weight_var=fit.weight_var,
        status=fit.status,
        reason=fit.reason,
        spectrum=_summary(fit) if fit.eigenvalues.size and not plan.alpha_only else None,
    )
    if fit.status == "ok":
        record = _with_alpha(record, fit, plan)
        if run.erg:
            count = estimator_of(spec).erg_count(fit)
            record = replace(record, erg_n=count, erg_gap=count - record.n_tail)
        if run.traps and not isinstance(matrices, Bands):
            record = _with_traps(record, fit, matrices, plan)
    # A layer without a tail fit still has norms, if its weights are finite.
    if plan.alpha_only or not math.isfinite(fit.sum_of_squares):
        return record
    return _with_norms(record, fit, matrices, plan)


def _with_alpha(record: LayerRecord, fit: TailFit, plan: Plan) -> LayerRecord:
    """Add alpha, its error, its null and the verdict on the tail."""
    own_window = not estimator_of(plan.run.spec).is_comparable(fit, plan.run.window)
    remark = (
        f"not comparable: too small for the common window of {plan.run.window}"
        if own_window
        else ""
    )
    judged, words = _judged(fit, plan.run.spec)
    record = replace(
        record,
        alpha=fit.alpha,
        alpha_se=fit.alpha_se,
        alpha_null=fit.alpha_null,
        alpha_null_sd=fit.alpha_null_sd,
        xmin=fit.xmin,
        n_tail=fit.n_tail,
        ks=fit.ks,
        comparable=not own_window,
        tail_verdict=words,
        ks_p=judged.ks_p,
        lognormal_ratio=judged.lognormal_ratio,
        exponential_ratio=judged.exponential_ratio,
        reason="; ".join(filter(None, [remark, fit.reason])),
    )
    return replace(record, null_z=null_gap(record))


def _with_traps(record: LayerRecord, fit: TailFit, matrices: Tensor, plan: Plan) -> LayerRecord:
    """Add the traps of the layer, looked for in as many windows as alpha was measured in."""
    spec, convolution = plan.run.spec, record.kind == "conv"
    matrices, window, positions = estimator_of(spec).cut(
        matrices, spec, plan.run.window, convolution=convolution
    )
    taken = fit.n_windows // matrices.shape[0]
    if taken < len(positions):  # the rest was not needed for the tolerance
        positions = [positions[i] for i in islice(spread_order(positions, window), taken)]
    found = find_traps(matrices, window, positions, seed=spec.seed)
    remark = TRAPS_OF_MEAN if found.from_mean else NO_EDGE if math.isnan(found.p) else ""
    return replace(
        record,
        n_traps=found.n,
        trap_ratio=found.ratio,
        trap_p=found.p,
        reason="; ".join(filter(None, [record.reason, remark])),
    )


def _judged(fit: TailFit, spec: Spec) -> tuple[GoodnessOfFit, str]:
    """Return the goodness of fit of the tail and a verdict in words.

    The numbers are NaN unless the cutoff claims a power law.
    """
    unasked = GoodnessOfFit(n_tail=fit.n_tail)
    if not spec.cutoff.claims_power_law:
        return unasked, spec.cutoff.unjudged
    tail = fit.eigenvalues[np.searchsorted(fit.eigenvalues, fit.xmin, side="left") :]
    # xmin and n_tail of an average over several tails do not describe one tail of the pool.
    if tail.size != fit.n_tail or tail[0] != fit.xmin:
        return unasked, NOT_ONE_TAIL
    judged = judge_tail(tail)
    return judged, verdict(judged)


def _with_norms(
    record: LayerRecord, fit: TailFit, matrices: Tensor | Bands, plan: Plan
) -> LayerRecord:
    """Add the metrics of the whole matrices."""
    estimator, convolution = estimator_of(plan.run.spec), record.kind == "conv"
    # A run that may be off by a tolerance does not wait for the last digits of a norm either.
    largest, total = estimator.norms(
        fit, matrices, convolution=convolution, rough=plan.run.spec.tolerance is not None
    )
    record = replace(
        record,
        lambda_max=largest,
        frobenius_norm_sq=total,
        stable_rank=total / largest if largest else math.nan,
        alpha_weighted=record.alpha * math.log10(largest) if largest else math.nan,
        log_norm=math.log10(total) if total else math.nan,
        log_spectral_norm=math.log10(largest) if largest else math.nan,
        group_range=group_range(matrices),
    )
    # Without windows the fit already holds the whole spectrum, so the entropy costs nothing.
    whole = plan.run.spec.window == "whole"
    if not (whole or plan.run.full_spectrum):
        return record
    full = fit if whole else estimator.whole(matrices, plan.run.spec, convolution=convolution)
    spectrum = estimator.spectrum(full)
    alpha_full = full.alpha if plan.run.full_spectrum else math.nan
    remark = "" if whole or not full.reason else f"the whole matrix has no alpha: {full.reason}"
    return replace(
        record,
        reason="; ".join(filter(None, [record.reason, remark])),
        entropy=entropy(spectrum, full.rank),
        log_alpha_norm=log_alpha_norm(spectrum, record.alpha),
        rank_loss=full.rank_loss,
        matrix_rank=full.rank,
        alpha_full=alpha_full,
        snr=signal_to_noise(full.eigenvalues, full.n_zero, (record.rows, record.cols)),
    )


def _summary(fit: TailFit) -> Spectrum:
    """Summarize the eigenvalues for the report: a histogram in log10 and the largest ones."""
    # np.histogram would widen a range of width zero, and its bins would not match the edges.
    logs = np.log10(fit.eigenvalues)
    low, high = float(logs[0]), float(logs[-1])
    counts, _ = np.histogram(logs, bins=BINS, range=(low, max(high, low + 1e-9)))
    ranks = np.unique(np.geomspace(1, logs.size, TOP_POINTS).astype(int))
    top = tuple((int(rank), float(f"{fit.eigenvalues[-rank]:.6g}")) for rank in ranks)
    return Spectrum((low, high), tuple(int(count) for count in counts), top)
