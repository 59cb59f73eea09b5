"""llama.cpp itself: a GGUF file of mixed types, written by its tool and run by it again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from spectail.export.llama_cpp import LlamaCpp, gguf_tensor, tensor_type
from tests.export.conftest import allocation, llama_names
from tests.export.runs import wide_llama
from tests.export.test_formats import chosen, mixed

COMMAND, BENCH = shutil.which("llama-quantize"), shutil.which("llama-bench")
"""Programs of llama.cpp; the second one runs a model on random words."""
gguf = pytest.importorskip("gguf")
FORMATS = mixed("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
WIDTHS = {name: (2, 3, 4, 5, 6, 8)[i % 6] for i, name in enumerate(llama_names())}


def _gguf(path: Path) -> Path:
    """The small Llama as a GGUF file without a vocabulary."""
    model = wide_llama()
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, values in model.state_dict().items():
        layer = name.removesuffix(".weight")
        own = {"model.norm": "output_norm.weight", "model.embed_tokens": "token_embd.weight",
               "lm_head": "output.weight"}.get(layer) or gguf_tensor(layer)  # fmt: skip
        if own is None:
            block, norm = layer.split(".")[2], layer.rpartition(".")[2]
            own = f"blk.{block}.{'attn' if norm == 'input_layernorm' else 'ffn'}_norm.weight"
        array = values.float().numpy()
        writer.add_tensor(own, array if array.ndim == 1 else array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def _expected(formats: bool) -> dict[str, str]:
    names = {}
    for name in llama_names():
        kind = FORMATS[name].upper() if formats else tensor_type(WIDTHS[name]).upper()
        names[str(gguf_tensor(name))] = kind
    return names


def _text(formats: bool) -> str:
    return LlamaCpp().text(chosen(FORMATS) if formats else allocation(WIDTHS, "bits"))


@pytest.mark.skipif(not COMMAND, reason="llama-quantize is not on the PATH")
@pytest.mark.parametrize("formats", [True, False], ids=["formats", "widths"])
def test_the_command_reads_the_file(tmp_path: Path, formats: bool) -> None:
    source, out, types = _gguf(tmp_path / "f16.gguf"), tmp_path / "mixed.gguf", tmp_path / "t.txt"
    types.write_text(_text(formats))
    run = [str(COMMAND), "--tensor-type-file", str(types), str(source), str(out), "Q8_0", "1"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    found = _types(out)
    assert {name: found[name] for name in _expected(formats)} == _expected(formats)
    assert found["output.weight"] == "Q8_0"
    if BENCH:
        run = [BENCH, "-m", str(out), "-p", "4", "-n", "2", "-r", "1", "-t", "1", "-o", "json"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-500:]
        assert [row["n_prompt"] for row in json.loads(done.stdout)] == [4, 0]
