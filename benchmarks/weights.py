"""Weights whose spectra look like a trained model's, made from a seed.

They have a bulk, scaled rows and columns, and a heavy low-rank part:

    W = D_r N D_c + s U diag(k^-0.6) V^T

N is Gaussian with variance 1 / cols. D_r and D_c hold lognormal scales, whose width sets how far
the bulk is from Marchenko and Pastur's law, and so the median alpha. The second term has
``RANK`` directions whose strengths fall as a power law from ``s`` times the bulk's edge. Width
and strength differ by kind of layer and with depth, so alphas differ.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK = 128
DECAY = 0.6
"""Exponent of the strengths of the low-rank directions."""
CHARACTER = {
    "q_proj": (0.45, 4.0),
    "k_proj": (0.50, 5.0),
    "v_proj": (0.20, 2.0),
    "o_proj": (0.25, 3.0),
    "gate_proj": (0.30, 2.5),
    "up_proj": (0.15, 2.0),
    "down_proj": (0.20, 2.0),
}
"""Width of the scales' logarithms and strength of the low-rank part in the
first block, by kind of layer."""
OTHERS = (0.3, 3.0)
"""The same for embedding and head."""
CHUNK = 4096
"""Rows that are made at a time: what bounds the memory."""
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "num_attention_heads": 32,
}
"""LLaMA-7B without its 32 blocks."""
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "vocab_size": 32000,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
"""Llama-2-70B without its 80 blocks."""


def made(
    rows: int,
    cols: int,
    *,
    name: str = "q_proj",
    depth: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A rows x cols matrix with the spectrum of its kind at ``depth`` from 0 to 1.

    The kind is the last part of ``name``. The same arguments give the same weights. Beside the
    result only CHUNK rows are in memory.
    """
    width, strength = CHARACTER.get(name.rsplit(".", 1)[-1], OTHERS)
    width, strength = width * (1 + 0.6 * depth), strength * (1.5 - depth)
    random = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{depth:.6f}".encode()))
    rank = min(RANK, rows, cols)
    edge = 1 + math.sqrt(rows / cols)
    strengths = strength * edge * torch.arange(1, rank + 1) ** -DECAY
    row_scale = torch.exp(width * torch.randn(rows, 1, generator=random) - width**2)
    col_scale = torch.exp(width * torch.randn(cols, generator=random) - width**2) / math.sqrt(cols)
    right = (
        torch.randn(rank, cols, generator=random) * (strengths / math.sqrt(cols * rows))[:, None]
    )
    result = torch.empty(rows, cols, dtype=dtype)
    for top in range(0, rows, CHUNK):
        part = slice(top, min(top + CHUNK, rows))
        count = part.stop - top
        noise = torch.randn(count, cols, generator=random).mul_(row_scale[part]).mul_(col_scale)
        result[part] = noise.addmm_(torch.randn(count, rank, generator=random), right)
    return result


def shapes_of_block(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """The seven matrices of a block, output x input."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config.get("num_attention_heads", 1)
    shared = hidden // heads * config.get("num_key_value_heads", heads)
    attention = {
        f"self_attn.{kind}_proj": (shared if kind in "kv" else hidden, hidden) for kind in "qkvo"
    }
    return attention | {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def write_checkpoint(
    folder: Path,
    blocks: int,
    *,
    config: dict[str, int] | None = None,
    per_shard: int = 2,
    seed: int = 0,
) -> int:
    """Write a sharded bfloat16 Llama checkpoint in the Hugging Face layout.

    It has ``blocks`` blocks. Returns its size in bytes.

    ``config`` is LLAMA where none is given. One shard (``per_shard``
    blocks) is in memory at a time.
    """
    config = config or LLAMA
    folder.mkdir(parents=True, exist_ok=True)
    groups = [range(i, min(i + per_shard, blocks)) for i in range(0, blocks, per_shard)]
    where: dict[str, str] = {}
    size = 0
    for number, group in enumerate([None, *groups], 1):
        file = f"model-{number:05d}-of-{len(groups) + 1:05d}.safetensors"
        shard = dict(_ends(config, seed) if group is None else _blocks(config, group, blocks, seed))
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
        size += sum(2 * tensor.numel() for tensor in shard.values())
    _describe(folder, config, blocks, where, size)
    return size


def write_sample(
    folder: Path, blocks: int, written: Collection[int], *, config: dict[str, int]
) -> int:
    """Write a checkpoint of which only the blocks ``written`` have values.

    The other files have their header and their full length, and take no room on the disk: what lies
    behind the header is a hole. Returns the bytes of all tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    size = 0
    for number, block in enumerate([None, *range(blocks)], 1):
        file = f"model-{number:05d}-of-{blocks + 1:05d}.safetensors"
        if block in written:
            tensors = dict(_blocks(config, range(block, block + 1), blocks, 0))
            save_file(tensors, folder / file, metadata={"format": "pt"})
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        else:
            shapes = _shapes_of_shard(config, block)
            _write_hole(folder / file, shapes)
        where |= dict.fromkeys(shapes, file)
        size += sum(2 * math.prod(shape) for shape in shapes.values())
    _describe(folder, config, blocks, where, size)
    return size


def _shapes_of_shard(config: dict[str, int], block: int | None) -> dict[str, tuple[int, ...]]:
    """The tensors of a block, or of both ends for None."""
    hidden = (config["hidden_size"],)
    if block is None:
        ends = dict.fromkeys(
            ("model.embed_tokens.weight", "lm_head.weight"), (config["vocab_size"], *hidden)
        )
        return ends | {"model.norm.weight": hidden}
    prefix = f"model.layers.{block}."
    matrices = {f"{prefix}{name}.weight": shape for name, shape in shapes_of_block(config).items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return matrices | {f"{prefix}{norm}.weight": hidden for norm in norms}


def _write_hole(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of bfloat16 tensors with a hole in place of its values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _describe(
    folder: Path, config: dict[str, int], blocks: int, where: dict[str, str], size: int
) -> None:
    """Write the index of the shards and the model's configuration."""
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(
        json.dumps(described | config | {"num_hidden_layers": blocks})
    )


def _ends(config: dict[str, int], seed: int) -> Iterator[tuple[str, Tensor]]:
    shape = config["vocab_size"], config["hidden_size"]
    for name in ("model.embed_tokens", "lm_head"):
        yield f"{name}.weight", made(*shape, name=name, seed=seed, dtype=torch.bfloat16)
    yield "model.norm.weight", torch.ones(config["hidden_size"], dtype=torch.bfloat16)


def _blocks(
    config: dict[str, int], group: range, blocks: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    for block in group:
        prefix = f"model.layers.{block}."
        for name, shape in shapes_of_block(config).items():
            depth = block / max(1, blocks - 1)
            weight = made(
                *shape, name=f"{prefix}{name}", depth=depth, seed=seed, dtype=torch.bfloat16
            )
            yield f"{prefix}{name}.weight", weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", torch.ones(config["hidden_size"], dtype=torch.bfloat16)
