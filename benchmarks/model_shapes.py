"""Shapes of the weight matrices of large language models, from their public configurations.

Only what the cost of a measurement depends on: names stand for kinds, and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spectail.models.lazy_tensor import unreadable
from spectail.models.source import Layer


@dataclass(frozen=True)
class Shape:
    """A model by the numbers of its config.json."""

    hidden: int
    intermediate: int
    blocks: int
    vocabulary: int
    queries: int
    """Rows of the query projection: heads x size of a head."""
    keys: int
    """Rows of the key and of the value projection."""
    experts: int = 0
    """Routed experts of a block; 0 for a dense model."""
    expert_size: int = 0
    dense_blocks: int = 0
    """Blocks at the beginning of a mixture that have one dense MLP of ``intermediate``."""
    latent: tuple[int, int, int, int] | None = None
    """Multi-head latent attention of DeepSeek-V3: rank of the queries, rank of keys and values
    with the rotary part, and without it, and rows of the expanded keys and values."""


MODELS = {
    # Llama 1 and 2 (7B), Llama 2 (70B), Llama 3.1 (405B), Kimi K2 (1.04T; DeepSeek-V3's layout).
    "7B": Shape(4096, 11008, 32, 32000, 4096, 4096),
    "70B": Shape(8192, 28672, 80, 32000, 8192, 1024),
    "405B": Shape(16384, 53248, 126, 128256, 16384, 1024),
    "1T mixture": Shape(
        7168,
        18432,
        61,
        163840,
        64 * 192,
        0,
        experts=384,
        expert_size=2048,
        dense_blocks=1,
        latent=(1536, 576, 512, 64 * 256),
    ),
}
"""Models of four sizes, in bfloat16."""


def layers_of(shape: Shape) -> list[Layer]:
    """Return the layers of a model, with shapes and names only."""
    return [
        Layer(
            name=name,
            kind=name.rsplit(".", 1)[-1],
            block=None,
            rows=rows,
            cols=cols,
            n_matrices=1,
            numel=rows * cols,
            tensor=unreadable(name, (rows, cols), "bfloat16", "only a shape"),
            part=None,
        )
        for name, rows, cols in _matrices(shape)
    ]


def _matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Yield name, rows and columns of every weight matrix."""
    yield "embed_tokens", shape.vocabulary, shape.hidden
    for block in range(shape.blocks):
        prefix = f"layers.{block}"
        for name, rows, cols in _attention(shape):
            yield f"{prefix}.self_attn.{name}", rows, cols
        if not shape.experts or block < shape.dense_blocks:
            yield from _mlp(f"{prefix}.mlp", shape.hidden, shape.intermediate)
            continue
        yield f"{prefix}.mlp.router", shape.experts, shape.hidden
        # The routed experts, and one that is shared.
        for expert in range(shape.experts + 1):
            yield from _mlp(f"{prefix}.mlp.experts.{expert}", shape.hidden, shape.expert_size)
    yield "lm_head", shape.vocabulary, shape.hidden


def _attention(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Yield the projections of one block's attention."""
    if shape.latent is None:
        yield "q_proj", shape.queries, shape.hidden
        yield "k_proj", shape.keys, shape.hidden
        yield "v_proj", shape.keys, shape.hidden
        yield "o_proj", shape.hidden, shape.queries
        return
    query_rank, with_rotary, rank, expanded = shape.latent
    yield "q_a_proj", query_rank, shape.hidden
    yield "q_b_proj", shape.queries, query_rank
    yield "kv_a_proj", with_rotary, shape.hidden
    yield "kv_b_proj", expanded, rank
    yield "o_proj", shape.hidden, expanded // 2


def _mlp(prefix: str, hidden: int, size: int) -> Iterator[tuple[str, int, int]]:
    """Yield the three projections of a gated MLP."""
    yield f"{prefix}.gate_proj", size, hidden
    yield f"{prefix}.up_proj", size, hidden
    yield f"{prefix}.down_proj", hidden, size
