"""Remote layers with a tolerance: only the bands of their windows are fetched."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.core.bands import Bands
from spectail.core.measure import measure, tail_fit
from spectail.models.layout.arrange import as_is, as_one, kernel_slices, transposed
from spectail.models.layout.part import Part
from spectail.models.lazy_tensor import in_memory
from tests.models.servers import serve

SPEC = st.Spec(window=32, tolerance=0.05)
NORMS = ["lambda_max", "frobenius_norm_sq", "stable_rank", "weight_var", "log_norm"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tables(folder: Path, **options: Any) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The table of m.safetensors read over the network, that of the file, and the bytes sent."""
    with serve(folder) as server:
        remote = st.analyze(f"{server.url}/m.safetensors", spec=SPEC, **options).table
        sent = server.sent
    local = st.analyze(folder / "m.safetensors", spec=SPEC, **options).table
    return remote.set_index("name"), local.set_index("name"), sent


def test_a_layer_of_many_bands_costs_the_rows_of_its_windows(tmp_path: Path) -> None:
    long = draw(1024, 768)
    save_file({"long.weight": long}, tmp_path / "m.safetensors")
    remote, local, sent = tables(tmp_path)
    row = remote.to_dict("index")["long"]
    taken = int(row["n_windows"])
    assert 4 <= taken < 16
    # Every window lies in a row band of its own: 32 rows of 768 numbers of 4 bytes.
    assert sent < taken * 32 * 768 * 4 + 70_000
    assert sent < 0.4 * long.numel() * 4
    same = [name for name in local if name not in [*NORMS, "seconds", "reason"]]
    same = [name for name in same if name not in ("alpha_weighted", "log_spectral_norm")]
    pd.testing.assert_frame_equal(remote[same], local[same], check_exact=True)
    assert remote[NORMS].isna().all(axis=None)
    assert local[NORMS].notna().all(axis=None)
    assert "norms and variance not measured: they need every weight" in row["reason"]
    assert "norms" not in str(local.loc["long", "reason"])


def test_a_layer_of_few_bands_is_read_whole_with_its_norms(tmp_path: Path) -> None:
    save_file({"short.weight": draw(224, 2048)}, tmp_path / "m.safetensors")
    remote, local, _ = tables(tmp_path)
    pd.testing.assert_frame_equal(
        remote.drop(columns="seconds"), local.drop(columns="seconds"), check_exact=True
    )
    assert remote[NORMS].notna().all(axis=None)


@pytest.mark.parametrize(
    "asked", [{"full_spectrum": True}, {"quantization_errors": True}, {"traps": True}]
)
def test_what_asks_for_the_whole_matrix_reads_it(tmp_path: Path, asked: dict[str, Any]) -> None:
    save_file({"long.weight": draw(1024, 64)}, tmp_path / "m.safetensors")
    remote, local, _ = tables(tmp_path, **asked)
    pd.testing.assert_frame_equal(
        remote.drop(columns="seconds"), local.drop(columns="seconds"), check_exact=True
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (math.nan, "some of the weights that were read are NaN or infinite"),
        (math.inf, "some of the weights that were read are NaN or infinite"),
        (0.0, "all weights that were read are zero"),
    ],
)
def test_bands_that_cannot_be_used_fail_the_layer(tmp_path: Path, bad: float, reason: str) -> None:
    save_file({"long.weight": torch.full((1024, 64), bad)}, tmp_path / "m.safetensors")
    remote, _, _ = tables(tmp_path)
    assert remote.loc["long", "status"] == "failed"
    assert remote.loc["long", "reason"] == reason


def test_no_band_is_read_twice_and_never_more_than_the_matrix() -> None:
    matrix, reads = draw(256, 320).double(), []

    def read(start: int, stop: int) -> torch.Tensor:
        reads.append((start, stop))
        return matrix[None, start:stop]

    tight = st.Spec(window=32, tolerance=1e-6)
    fit = measure(Bands(256, 320, 0, read), tight)
    assert sorted(reads) == [(start, start + 32) for start in range(0, 256, 32)]
    assert fit.alpha == tail_fit(matrix, tight).alpha
    assert fit.alpha_se == tail_fit(matrix, tight).alpha_se


@pytest.mark.parametrize("placement", ["random:100", "grid:20", "step:5"])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_overlapping_bands_share_is_read_once(placement: str, axis: int) -> None:
    matrix, times = draw(256, 320).double(), torch.zeros(320)

    def read(start: int, stop: int) -> torch.Tensor:
        times[start:stop] += 1
        return matrix[None].narrow(axis + 1, start, stop - start)

    for tolerance in (1e-6, 0.05):
        spec = st.Spec(window=32, tolerance=tolerance, placement=placement)
        fit = measure(Bands(256, 320, axis, read), spec)
        assert times.max() == 1
        # Windows side by side share sums, which bands of columns cut: the last digit may differ.
        assert fit.alpha == pytest.approx(tail_fit(matrix, spec).alpha, rel=1e-12 * axis, abs=0)
        assert fit.alpha_se == pytest.approx(
            tail_fit(matrix, spec).alpha_se, rel=1e-12 * axis, abs=0
        )
        times.zero_()


@pytest.mark.parametrize("cutoff", ["median", "ks"])
def test_columns_can_be_bands(cutoff: str) -> None:
    matrix = draw(96, 640).double()
    spec = st.Spec(window=32, tolerance=0.05, cutoff=cutoff)
    by_columns = Bands(96, 640, 1, lambda start, stop: matrix[None, :, start:stop])
    assert measure(by_columns, spec).alpha == tail_fit(matrix, spec).alpha


@pytest.mark.parametrize(
    ("arrange", "shape", "index"),
    [
        (as_one, (40, 30), ()),
        (as_one, (5, 40, 30), (2,)),
        (as_one, (90, 30), (slice(20, 60),)),
        (as_one, (3, 90, 30), (1, slice(-50, -10))),
        (transposed, (40, 30), ()),
        (transposed, (5, 40, 30), (4,)),
    ],
)
def test_a_band_of_a_part_is_that_of_the_whole_part(
    arrange: Any, shape: tuple[int, ...], index: Any
) -> None:
    tensor = in_memory("w", draw(*shape))
    cut = Part("w", "linear", 1, 40, 30, index, arrange)
    whole = cut.read(tensor)
    axis = cut.band_axis
    assert axis == (0 if arrange is as_one else 1)
    assert torch.equal(cut.read_band(tensor, 7, 19), whole.narrow(axis + 1, 7, 12))


@pytest.mark.parametrize(
    ("arrange", "index"),
    [
        (as_is, ()),
        (kernel_slices, ()),
        (partial(as_one), ()),
        (as_one, (slice(0, 4), slice(0, 4))),
    ],
)
def test_other_layouts_have_no_bands(arrange: Any, index: Any) -> None:
    assert Part("w", "linear", 1, 4, 4, index, arrange).band_axis is None


def test_a_damaged_number_outside_the_windows_is_not_seen() -> None:
    matrix = np.zeros((64 * 32, 32))
    matrix[:] = np.random.default_rng(0).standard_normal(matrix.shape)
    matrix[33] = np.nan  # the second band, which few windows do not visit
    few = Bands(*matrix.shape, 0, lambda start, stop: torch.from_numpy(matrix[None, start:stop]))
    fit = measure(few, st.Spec(window=32, tolerance=0.3))
    assert fit.status == "ok"
    assert fit.n_windows == 4
