"""Layers that are read in passes over bands have the numbers of layers that are read whole."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.core import bands
from spectail.core.bands import Bands
from spectail.core.metrics import largest_eigenvalue, moments
from spectail.core.quantisers import group_range, rounding_errors
from spectail.measuring import cost, reading
from spectail.models.layout.part import Part
from spectail.models.lazy_tensor import LazyTensor

FROM_LAMBDA_MAX = ["stable_rank", "alpha_weighted", "log_spectral_norm", "lambda_max"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Weights with heavy rows and a mean, in this type."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, shape) * np.exp(rng.standard_normal(shape[0])).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    return torch.from_numpy(0.02 * values + 0.003).to(dtype)


@pytest.fixture
def whole_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that are read whole from now on, where all might be read in bands."""
    monkeypatch.setattr(reading, "MOST_WHOLE", 0)
    # Several bands in a pass, whose ends fall on neither rows of windows nor pieces of sums.
    monkeypatch.setattr(bands, "BAND_ENTRIES", 7_777)
    names: list[str] = []
    read = Part.read

    def noted(self: Part, tensor: LazyTensor) -> torch.Tensor:
        names.append(self.name)
        return read(self, tensor)

    monkeypatch.setattr(Part, "read", noted)
    return names


def table(source: Any, **options: Any) -> pd.DataFrame:
    return st.analyze(source, **options).table.set_index("name").drop(columns="seconds")


def check_same(found: pd.DataFrame, expected: pd.DataFrame, rel: float = 1e-9) -> None:
    """All columns agree to the last bit, those of the largest eigenvalue nearly."""
    exact = [name for name in expected if name not in FROM_LAMBDA_MAX]
    pd.testing.assert_frame_equal(found[exact], expected[exact], check_exact=True)
    for name in FROM_LAMBDA_MAX:
        assert found[name].to_numpy() == pytest.approx(
            expected[name].to_numpy(), rel=rel, nan_ok=True
        )


SPECS: Mapping[str, Mapping[str, Any]] = {
    "tiles": {"window": 48},
    "overlapping": {"window": 48, "placement": "step:16"},
    "random": {"window": 48, "placement": "random:9"},
    "long windows": {"window": 40, "aspect_ratio": 3.0},
    "few": {"window": 32, "tolerance": 0.05},
    "ks": {"window": 48, "cutoff": "ks"},
    "published": {"window": 48, "legacy": True},
    "weightwatcher": {"window": 48, "legacy": "weightwatcher"},
}


@pytest.mark.parametrize("stored", ["file", "memory"])
@pytest.mark.parametrize("spec", SPECS)
def test_bands_change_no_number(
    spec: str,
    stored: str,
    tmp_path: Path,
    whole_reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = {
        "wide.weight": drawn(200, 510),
        "tall.weight": drawn(500, 210, dtype=torch.float16),
        "square.weight": drawn(300, 300, dtype=torch.bfloat16),
    }
    save_file(weights, tmp_path / "m.safetensors")
    source = weights if stored == "memory" else tmp_path / "m.safetensors"
    found = table(source, spec=st.Spec(**SPECS[spec]), erg=True)
    assert not whole_reads
    monkeypatch.setattr(reading, "MOST_WHOLE", 2**30)
    # A rough iteration ends at a step that rounding may decide.
    check_same(
        found,
        table(source, spec=st.Spec(**SPECS[spec]), erg=True),
        rel=1e-2 if spec == "few" else 1e-9,
    )
    assert set(whole_reads) == {"wide", "tall", "square"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_over_bands_are_those_of_the_whole(
    axis: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "BAND_ENTRIES", 70_001)
    matrix = drawn(700, 900, dtype=dtype)[None]
    parts = Bands(
        700, 900, axis, lambda start, stop: matrix.narrow(axis + 1, start, stop - start),
        complete=True,
    )  # fmt: skip
    assert moments(parts) == pytest.approx(moments(matrix), rel=1e-12 * axis)
    assert group_range(parts) == pytest.approx(group_range(matrix), rel=0, nan_ok=True)
    assert list(rounding_errors(parts)) == list(rounding_errors(matrix))
    wide = matrix[0].to(torch.complex128 if dtype.is_complex else torch.float64).numpy()
    dense = float(np.linalg.svd(wide, compute_uv=False)[0]) ** 2
    assert largest_eigenvalue(parts) == pytest.approx(dense, rel=1e-8)
    assert largest_eigenvalue(parts, rough=True) == pytest.approx(dense, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_weights_in_bands(scale: float) -> None:
    matrix = drawn(200, 300, dtype=torch.float64)[None]
    scaled = matrix * scale
    parts = Bands(200, 300, 0, lambda start, stop: scaled[:, start:stop], complete=True)
    assert largest_eigenvalue(parts) / scale**2 == pytest.approx(
        largest_eigenvalue(matrix), rel=1e-8
    )


def test_transposed_fused_and_expert_layers(
    whole_reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {
        # transformers' Conv1D stores (in, out), which these shapes show.
        "transformer.h.0.mlp.c_fc.weight": drawn(128, 512),
        "transformer.h.0.mlp.c_proj.weight": drawn(512, 128),
        "transformer.h.0.attn.c_attn.weight": drawn(128, 384),
        "model.layers.0.block_sparse_moe.experts.gate_up_proj": drawn(3, 256, 128),
        "model.layers.0.mlp.gate_up_proj.weight": drawn(512, 128),
    }
    spec = st.Spec(window=32)
    found = table(weights, spec=spec)
    banded = set(found.index) - set(whole_reads)
    assert {"transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"} <= banded
    assert len([name for name in banded if "gate" in name or "up" in name]) >= 4
    monkeypatch.setattr(reading, "MOST_WHOLE", 2**30)
    expected = table(weights, spec=spec)
    # Sums over columns have another order than sums over rows.
    sums = ["frobenius_norm_sq", "weight_var", "log_norm"]
    for name in sums:
        assert found[name].to_numpy() == pytest.approx(expected[name].to_numpy(), rel=1e-12)
    check_same(found.drop(columns=sums), expected.drop(columns=sums))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_fine_tuning_changed(
    dtype: torch.dtype, tmp_path: Path, whole_reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"a.weight": drawn(300, 200, dtype=dtype), "b.weight": drawn(200, 300, dtype=dtype)}
    after = {"a.weight": before["a.weight"] + drawn(300, 200, dtype=dtype, seed=1)}
    after["b.weight"] = before["b.weight"].clone()
    for name, weights in (("before", before), ("after", after)):
        save_file(weights, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "after.safetensors", tmp_path / "before.safetensors"]
    options: dict[str, Any] = {"base": files[1], "spec": st.Spec(window=48)}
    found = table(files[0], **options)
    assert not whole_reads
    assert found.loc["b", "status"] == "skipped"
    assert found.loc["b", "relative_change"] == 0
    monkeypatch.setattr(reading, "MOST_WHOLE", 2**30)
    expected = table(files[0], **options)
    assert found.loc["a", "relative_change"] == pytest.approx(
        expected.loc["a", "relative_change"], rel=1e-5
    )
    check_same(found.drop(columns="relative_change"), expected.drop(columns="relative_change"))


WHOLE: Mapping[str, tuple[Callable[[], dict[str, torch.Tensor]], dict[str, Any]]] = {
    "full spectrum": (lambda: {"a.weight": drawn(200, 300)}, {"full_spectrum": True}),
    "traps": (lambda: {"a.weight": drawn(200, 300)}, {"traps": True}),
    "whole": (lambda: {"a.weight": drawn(200, 300)}, {"spec": st.Spec(window="whole")}),
    "large windows": (lambda: {"a.weight": drawn(200, 300)}, {"spec": st.Spec(window=150)}),
    "convolution": (lambda: {"a.weight": drawn(64, 64, 3, 3)}, {"spec": st.Spec(window=32)}),
    "quantised": (
        lambda: {
            "a.weight": torch.randint(-127, 127, (256, 256), dtype=torch.int8),
            "a.SCB": torch.ones(256),
        },
        {"spec": st.Spec(window=32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_still_read_whole(case: str, whole_reads: list[str]) -> None:
    source, options = WHOLE[case]
    assert set(table(source(), **options)["status"]) == {"ok"}
    assert "a" in whole_reads


def test_an_array_stored_by_columns_is_read_whole(tmp_path: Path, whole_reads: list[str]) -> None:
    values = drawn(200, 300).numpy()
    for array, times in ((np.ascontiguousarray(values), 0), (np.asfortranarray(values), 1)):
        np.save(tmp_path / "a.npy", array)
        whole_reads.clear()
        table(tmp_path / "a.npy", spec=st.Spec(window=48))
        assert len(whole_reads) == times


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "2 of 60000 weights are NaN or infinite"),
        (math.inf, "2 of 60000 weights are NaN or infinite"),
        (0.0, "all weights are zero"),
    ],
)
def test_unusable_weights_have_the_same_reasons(
    value: float, reason: str, whole_reads: list[str]
) -> None:
    weights = drawn(200, 300) if value else torch.zeros(200, 300)
    weights[[3, 199], [4, 299]] = value
    row = table({"a.weight": weights}, spec=st.Spec(window=48)).loc["a"]
    assert (row["status"], row["reason"]) == ("failed", reason)
    assert not whole_reads


def test_errors_of_formats_come_from_bands_too(
    whole_reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"a.weight": drawn(256, 512, dtype=torch.bfloat16)}

    def errors() -> Any:
        analysis = st.analyze(weights, spec=st.Spec(window=48), quantization_errors=True)
        return analysis.layers[0].rounding

    found = errors()
    assert found
    assert not whole_reads
    monkeypatch.setattr(reading, "MOST_WHOLE", 2**30)
    assert errors() == found


PEAK = """
import sys
import torch
torch.set_num_threads(1)
import spectail as st
from safetensors.torch import load_file
from spectail.measuring import reading

def memory(field):
    # Not getrusage: its peak begins with that of the process that started this one.
    text = open("/proc/self/status").read()
    return int(text.partition(field + ":")[2].split()[0]) * 1024

path, stored, reading.MOST_WHOLE = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = st.Spec(window=128, tolerance=0.05)
st.analyze({"a.weight": torch.randn(400, 400)}, spec=spec)  # imports and buffers
source = path if stored == "file" else load_file(path)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = memory("VmRSS")
row = st.analyze(source, spec=spec, **eval(sys.argv[4])).table.iloc[0]
assert row["status"] == "ok", row["reason"]
print(memory("VmHWM") - before)
"""


def peak_of(path: Path, stored: str, most_whole: int, **options: Any) -> int:
    """Bytes that measuring a layer adds to the memory of a process of its own, at the most."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), stored, str(most_whole), repr(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of one layer of 128 MiB in float16, 256 MiB in float32."""
    path = tmp_path_factory.mktemp("large") / "m.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"a.weight": torch.randn(8192, 8192, generator=generator).half()}, path)
    return path


SLACK = 160 * 2**20
"""Bytes that memory allocators keep although they are free, and small buffers: 60 to 105 MiB, by
how the threads happen to run."""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("stored", "most_whole", "options"),
    [
        ("file", 0, {}),
        ("memory", 0, {}),
        ("file", 2**30, {}),
        pytest.param("file", 2**30, {"traps": True}, marks=pytest.mark.slow),
    ],
    ids=["bands of a file", "bands in memory", "whole", "traps"],
)
def test_the_planned_memory_is_that_which_is_taken(
    stored: str,
    most_whole: int,
    options: dict[str, Any],
    large: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "MOST_WHOLE", most_whole)
    [layer] = st.open_source(large).layers
    whole = cost.estimate(layer, st.Spec(window=128, tolerance=0.05), 128, **options)
    planned = whole.memory - cost.PROCESS_BYTES
    taken = peak_of(large, stored, most_whole, **options)
    if stored == "memory":
        # The library maps the file, whose pages count as the process's memory.
        taken -= 2 * 8192**2
    assert 0.7 * planned < taken < planned + SLACK
    # A copy in float32 alone would take 256 MiB.
    assert (taken < SLACK + 2**25) == (most_whole == 0)
