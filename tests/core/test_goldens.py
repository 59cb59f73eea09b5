"""Every number that the published code gave on known input, reproduced in
legacy mode from the same windows.

The bulk goes through the functions that ``tail_fit`` is made of, because its error bar and its
null cost far more than the fit; a sample goes through ``tail_fit`` itself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from spectail.core.measure import measure, tail_fit
from spectail.core.published import published_windows
from spectail.core.spec import Spec
from spectail.core.spectra import numerical_zeros, window_eigenvalues
from spectail.core.tails import fit_from
from spectail.core.windows import Window, window_shape
from spectail.errors import SpecError
from tests.goldens import published
from tests.reference import plain_farms

RECORDS = [
    (matrix_id, record)
    for matrix_id in published.matrix_ids()
    for record in published.records_of(matrix_id)
]


def spec_of(record: dict[str, Any], cutoff: str = "median", *, legacy: bool = True) -> Spec:
    """The Spec that asks for a record's windows."""
    if (sampling := record["sampling"]) is None:
        return Spec(window="whole", cutoff=cutoff, legacy=legacy)
    grid, step = sampling["sampling_ops_per_dim"], sampling["step_size"]
    return Spec(
        window=sampling["num_row_samples"],
        aspect_ratio=sampling["Q_ratio"],
        placement=f"grid:{grid}" if grid else f"step:{step}",
        cutoff=cutoff,
        legacy=legacy,
    )


def label(matrix_id: str, record: dict[str, Any]) -> str:
    """A readable test id."""
    if record["sampling"] is None:
        return f"{matrix_id}-whole"
    spec = spec_of(record)
    return f"{matrix_id}-{record['impl']}-{spec.window}-{spec.aspect_ratio}-{spec.placement}"


def lost_its_ratio(record: dict[str, Any]) -> bool:
    """Whether the published code measured windows of another shape than it was asked for."""
    return (
        bool(record["sampling"]) and record["windows"]["real_shape"] != record["windows"]["nominal"]
    )


def cases(keep: Any) -> list[Any]:
    """The records that ``keep`` accepts, as pytest parameters."""
    return [pytest.param(m, r, id=label(m, r)) for m, r in RECORDS if keep(r)]


def placed(
    matrix_id: str, record: dict[str, Any]
) -> tuple[torch.Tensor, Window, list[tuple[int, int]]]:
    """The matrices of a record and its windows as legacy mode places them."""
    slices = torch.from_numpy(published.kernel_slices(published.matrix(matrix_id)))
    shape = (slices.shape[1], slices.shape[2])
    if record["sampling"] is None:
        return slices, Window(*shape), [(0, 0)]
    return slices, *published_windows(shape, spec_of(record), record["sampling"]["num_row_samples"])


@lru_cache(maxsize=1)
def cached_eigenvalues(
    matrix_id: str, window: Window, corners: tuple[tuple[int, int], ...]
) -> np.ndarray:
    slices = torch.from_numpy(published.kernel_slices(published.matrix(matrix_id)))
    found = np.sort(window_eigenvalues(slices, window, corners, exact_zeros=True), axis=None)
    return found * 0.5 if published.matrix(matrix_id).ndim == 4 else found


def tolerance(fit: dict[str, Any]) -> float:
    """How far float32 may be off: three times its measured distance from float64, at least 1e-5."""
    return float(max(1e-5, 3 * fit["f32_f64_rel"]))


def check_alpha(alpha: float, ks: float, fit: dict[str, Any]) -> None:
    """Float64 within 1e-5 in alpha and 2e-5 in the KS distance; float32
    within its own rounding of both."""
    assert alpha == pytest.approx(fit["alpha_f64"], rel=1e-5)
    assert alpha == pytest.approx(fit["alpha"], rel=tolerance(fit))
    assert ks == pytest.approx(fit["D_f64"], rel=2e-5)
    if fit["f32_f64_rel"] < 1e-5:
        assert ks == pytest.approx(fit["D"], abs=1e-4)


def test_every_fit_has_a_float64_value_to_compare_with() -> None:
    fits = [
        fit
        for _, record in RECORDS
        if not lost_its_ratio(record)
        for fit in record["fits"].values()
    ]
    measured = [fit for fit in fits if "skipped" not in fit]
    assert len(fits) - len(measured) == 85, "the published code found 85 KS fits too slow"
    assert all("alpha_f64" in fit for fit in measured)
    assert len(measured) > 1600


@pytest.mark.parametrize(("matrix_id", "record"), cases(lambda r: not lost_its_ratio(r)))
def test_published_record(matrix_id: str, record: dict[str, Any]) -> None:
    _, window, corners = placed(matrix_id, record)
    if record["sampling"]:
        assert list(window) == record["windows"]["real_shape"]
        tops, lefts = published.starts(record["windows"], record["sampling"]["step_size"])
        assert sorted(corners) == sorted({(top, left) for top in tops for left in lefts})
    found = cached_eigenvalues(matrix_id, window, tuple(corners))
    check_spectrum(found, record)
    for name, fit in record["fits"].items():
        if "skipped" not in fit:
            cutoff = spec_of(record, published.CUTOFFS[name]).cutoff
            ours = fit_from(found, cutoff.start(found))
            check_alpha(ours.alpha, ours.ks, fit)


def check_spectrum(found: np.ndarray, record: dict[str, Any]) -> None:
    """Count, sum, largest and quantiles, as closely as float32 has them."""
    known = record["eigs"]
    assert found.size == known["n"]
    assert found.sum() == pytest.approx(known["sum"], rel=1e-5)
    assert found.sum() == pytest.approx(record["norm"], rel=1e-5)
    assert found[-1] == pytest.approx(record["spectral_norm"], rel=1e-5)
    quantiles = np.quantile(found, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    assert quantiles == pytest.approx(known["quantiles"], rel=1e-4, abs=1e-6 * found[-1])


@pytest.mark.parametrize(("matrix_id", "record"), cases(lost_its_ratio))
def test_a_ratio_that_the_published_code_lost_is_kept_or_refused(
    matrix_id: str, record: dict[str, Any]
) -> None:
    weights = published.matrix(matrix_id)
    rows, cols = weights.shape
    side = min(record["sampling"]["num_row_samples"], rows, cols)
    width = int(side * record["sampling"]["Q_ratio"])
    assert [side, width] != record["windows"]["real_shape"]
    if width <= cols:
        assert placed(matrix_id, record)[1] == (side, width)
        return
    with pytest.raises(SpecError) as error:
        tail_fit(weights, spec_of(record))
    assert str(error.value) == (
        f"legacy windows of {side} x {width} do not fit into a matrix of {rows} x {cols}, "
        f"where the published code would silently use another aspect ratio"
    )


THROUGH_TAIL_FIT = [
    ("gauss_512x512", "whole", "ks"),
    ("gauss_512x512", "llm-64-1.0-grid:5", "median"),
    ("gauss_512x512", "llm-128-0.5-grid:5", "peak"),
    ("gauss_512x512", "llm-100-1.0-step:50", "median"),
    ("student3_128x512", "whole", "median"),
    ("student3_128x512", "whole", "peak"),
    ("student3_128x512", "llm-64-2.0-grid:5", "ks"),
    ("lowrank_300x1000", "llm-128-2.0-step:64", "median"),
    ("gauss_1024x256", "llm-256-1.0-grid:5", "median"),
    ("smollm2/model.layers.15.self_attn.k_proj", "whole", "peak"),
    ("smollm2/model.layers.15.self_attn.k_proj", "llm-64-1.0-grid:10", "median"),
    ("minilm/encoder.layer.0.attention.self.key", "llm-100-1.0-grid:10", "median"),
]


@pytest.mark.parametrize(("matrix_id", "sampling", "cutoff"), THROUGH_TAIL_FIT)
def test_tail_fit_gives_the_published_alpha(matrix_id: str, sampling: str, cutoff: str) -> None:
    (record,) = (r for m, r in RECORDS if label(m, r) == f"{matrix_id}-{sampling}")
    ours = tail_fit(published.matrix(matrix_id), spec_of(record, cutoff))
    (known,) = (fit for name, fit in record["fits"].items() if published.CUTOFFS[name] == cutoff)
    assert ours.status == "ok"
    check_alpha(ours.alpha, ours.ks, known)
    check_spectrum(ours.eigenvalues, record)


def even_and_full(record: dict[str, Any]) -> bool:
    """Whether the default windows are the published ones: ratio 1 and a floor
    stride that reaches the edges."""
    if lost_its_ratio(record) or not record["sampling"] or record["sampling"]["Q_ratio"] != 1:
        return False
    known = record["fits"]["none"]
    if "skipped" in known or record["eigs"]["n"] > 4000:
        return False
    rows, cols = published.GOLDENS["matrices"][record["matrix"]]["shape"]
    spec, window = spec_of(record, legacy=False), Window(*record["windows"]["real_shape"])
    tops, lefts = published.starts(record["windows"], record["sampling"]["step_size"])
    return spec.placement.positions(rows, cols, window) == [
        (top, left) for top in tops for left in lefts
    ]


@pytest.mark.parametrize(("matrix_id", "record"), cases(even_and_full))
def test_the_default_route_agrees_where_its_windows_are_the_published_ones(
    matrix_id: str, record: dict[str, Any]
) -> None:
    matrix = torch.from_numpy(published.matrix(matrix_id))
    side = min(record["windows"]["real_shape"])
    spec = spec_of(record, legacy=False)
    rows, cols = matrix.shape
    window = window_shape(rows, cols, side)
    found = window_eigenvalues(matrix[None], window, spec.placement.positions(rows, cols, window))
    zero = numerical_zeros(found, window)
    kept = np.sort(found[~zero])
    assert not zero.any()
    for name in ("none", "xmin_mid"):
        cutoff = spec_of(record, published.CUTOFFS[name], legacy=False).cutoff
        assert fit_from(kept, cutoff.start(kept)).alpha == pytest.approx(
            record["fits"][name]["alpha_f64"], rel=1e-5
        )


FITTED_CONVOLUTIONS = [c for c in published.GOLDENS["conv"] if "alpha" in c]


@pytest.mark.parametrize(
    "known", FITTED_CONVOLUTIONS, ids=lambda c: f"{c['matrix']}-{c['Q_ratio']}-{c['fix_fingers']}"
)
def test_published_convolution(known: dict[str, Any]) -> None:
    slices = torch.from_numpy(published.kernel_slices(published.matrix(known["matrix"])))
    spec = Spec(
        window=100,
        aspect_ratio=known["Q_ratio"],
        cutoff=published.CUTOFFS[known["fix_fingers"]],
        legacy=True,
    )
    ours = measure(slices, spec, convolution=True)
    assert ours.status == "ok"
    assert ours.alpha == pytest.approx(known["alpha"], rel=1e-5)
    assert ours.ks == pytest.approx(known["D"], rel=1e-4)
    assert ours.eigenvalues.size == known["eigs_num"]
    assert ours.eigenvalues.sum() == pytest.approx(known["eigs_sum"], rel=1e-5)


@pytest.mark.parametrize("matrix_id", [m for m in published.matrix_ids() if m.startswith("conv")])
def test_a_whole_convolution_counts_half(matrix_id: str) -> None:
    (record,) = published.records_of(matrix_id)
    slices = torch.from_numpy(published.kernel_slices(published.matrix(matrix_id)))
    ours = measure(slices, spec_of(record), convolution=True)
    check_alpha(ours.alpha, ours.ks, record["fits"]["xmin_mid"])
    check_spectrum(ours.eigenvalues, record)


TURNED = [
    (matrix_id, record, fit)
    for matrix_id, record in RECORDS
    for fit in record["fits"].values()
    if not lost_its_ratio(record) and "ours" in fit and fit["f32_f64_rel"] > 1e-5
]
"""Fits in which rounding in float32 chose another cutoff than float64 does."""


@pytest.mark.parametrize(
    ("matrix_id", "record", "known"),
    TURNED,
    ids=[f"{label(m, r)}-{i}" for i, (m, r, _) in enumerate(TURNED)],
)
def test_where_float32_chose_another_cutoff_the_published_fit_is_ours_at_that_cutoff(
    matrix_id: str, record: dict[str, Any], known: dict[str, Any]
) -> None:
    """Which of two near ties float32 takes depends on the processor; the fit at it does not."""
    _, window, corners = placed(matrix_id, record)
    found = cached_eigenvalues(matrix_id, window, tuple(corners))
    logs, counts = np.log(found[1:]), np.arange(found.size - 1, 0, -1)
    with np.errstate(divide="ignore"):
        alphas = 1 + counts / (np.cumsum(logs[::-1])[::-1] - counts * logs)
    ours = fit_from(found, 1 + int(np.argmin(np.abs(alphas - known["alpha"]))))
    assert ours.alpha == pytest.approx(known["alpha"], rel=1e-4)
    assert ours.ks == pytest.approx(known["D"], abs=5e-5)


def test_float32_chose_another_cutoff_in_some_fits() -> None:
    assert len(TURNED) > 20


@pytest.mark.slow
def test_the_float64_values_that_were_added_come_from_the_plain_oracle() -> None:
    added = [
        (m, r, n, f)
        for m, r in RECORDS
        if not lost_its_ratio(r)
        for n, f in r["fits"].items()
        if "ours" in f
    ]
    for matrix_id, record, name, fit in added[::40]:
        slices, window, corners = placed(matrix_id, record)
        found = plain_farms.pooled_eigenvalues(list(slices.numpy()), window, corners)
        assert plain_farms.fit(found, published.CUTOFFS[name], legacy=True).alpha == pytest.approx(
            fit["alpha_f64"], rel=1e-8
        )
