"""Fused and per-head attention of GGUF files, which the header's head counts tell how to cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spectail.models.open import open_source

from .test_gguf import by_name, gguf, random, write


@pytest.mark.parametrize("architecture", ["falcon", "gptneox", "bloom", "dbrx", "chatglm", "novel"])
def test_llama_cpp_brings_every_family_into_blocks(tmp_path: Path, architecture: str) -> None:
    fused = random(64, 32)
    layers = by_name(
        open_source(write(tmp_path / "m.gguf", architecture, {"blk.1.attn_qkv.weight": fused}))
    )
    assert {name: (x.kind, x.block) for name, x in layers.items()} == {
        f"blk.1.attn_qkv.{k}": (k, 1) for k in "qkv"
    }
    for kind, rows in zip("qkv", np.split(fused, [32, 48]), strict=True):
        assert np.array_equal(layers[f"blk.1.attn_qkv.{kind}"].read()[0].numpy(), rows)


def test_heads_by_block_and_their_own_size(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "novel")
    writer.add_head_count([2, 4, 4])
    writer.add_head_count_kv([1, 2, 2])
    writer.add_key_length(6)
    tensors = {"blk.0.attn_qkv.weight": random(24, 32), "blk.1.attn_qkv.weight": random(48, 32)}
    for name, values in (tensors | {"blk.2.attn_qkv.weight": random(64, 32)}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    layers = by_name(open_source(path))
    assert [layers[f"blk.0.attn_qkv.{kind}"].rows for kind in "qkv"] == [12, 6, 6]
    assert [layers[f"blk.1.attn_qkv.{kind}"].rows for kind in "qkv"] == [24, 12, 12]
    assert "64 rows are not the 4 + 2 x 2 heads of 6 rows" in layers["blk.2.attn_qkv"].note


@pytest.mark.parametrize("quantised", [False, True])
def test_latent_attention_of_deepseek_is_stored_by_head(tmp_path: Path, quantised: bool) -> None:
    keys, values = random(4, 64, 32), random(4, 32, 64)
    tensors = {"blk.0.attn_k_b.weight": keys, "blk.0.attn_v_b.weight": values}
    layers = by_name(
        open_source(write(tmp_path / "m.gguf", "deepseek2", tensors, quantised=quantised))
    )
    assert {name: (x.kind, x.n_matrices, x.rows, x.cols) for name, x in layers.items()} == {
        "blk.0.attn_k_b": ("k", 4, 64, 32),
        "blk.0.attn_v_b": ("v", 4, 32, 64),
    }
    np.testing.assert_allclose(
        layers["blk.0.attn_k_b"].read().numpy(), keys, atol=0.02 if quantised else 0
    )
