"""Hugging Face's names for the tensors of a GGUF file, and where llama.cpp has reordered rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PERMUTED = frozenset(
    {
        "llama",
        "deci",
        "arcee",
        "smollm3",
        "granite",
        "granitemoe",
        "mistral3",
        "minicpm",
        "internlm2",
        "baichuan",
        "xverse",
        "olmo",
    }
)
"""Architectures whose rows of q and k llama.cpp's converter reorders for its own rotary embedding.
"""

_LLAMA_TOP = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_LLAMA = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_SHARED_EXPERT = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}


@dataclass(frozen=True)
class Family:
    """The names of one architecture's tensors, outside and inside of its blocks."""

    top: dict[str, str]
    """Names of tensors outside of blocks, by llama.cpp's names."""
    blocks: str
    """The part of a name before the block's number."""
    inside: dict[str, str]
    """Names of tensors inside of a block, by llama.cpp's names."""
    stored_in_out: frozenset[str] = field(default_factory=frozenset)
    """Tensors that transformers stores as (in, out), the transpose of the file's."""


def _like_llama(**changes: str) -> Family:
    """Return a family with Llama's names, except for some changes."""
    return Family(_LLAMA_TOP, "model.layers.", _LLAMA | changes)


_NAMED_LIKE_LLAMA = (
    "qwen2",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "stablelm",
    "olmo",
    "olmo2",
    "olmoe",
    "smollm3",
    "granite",
    "mistral3",
    "deepseek2",
    "command-r",
    "cohere2",
    "nemotron",
    "arcee",
    "minicpm",
    "apertus",
    "xverse",
    "exaone4",
    "ernie4_5",
    "hunyuan-dense",
    "glm4moe",
    "dots1",
)
"""Architectures whose tensors have the names of Llama's."""
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(_NAMED_LIKE_LLAMA, _like_llama()),
    "llama": _like_llama(**_MIXTRAL),
    "qwen2moe": _like_llama(**_SHARED_EXPERT),
    "gpt-oss": _like_llama(ffn_gate_inp="mlp.router"),
    "phi3": _like_llama(ffn_up="mlp.gate_up_proj"),
    "glm4": _like_llama(ffn_up="mlp.gate_up_proj"),
    "phi2": _like_llama(attn_output="self_attn.dense", ffn_up="mlp.fc1", ffn_down="mlp.fc2"),
    "starcoder2": _like_llama(ffn_up="mlp.c_fc", ffn_down="mlp.c_proj"),
    "gpt2": Family(
        {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output": "lm_head"},
        "transformer.h.",
        {
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
    "bert": Family(
        {
            "token_embd": "embeddings.word_embeddings",
            "position_embd": "embeddings.position_embeddings",
            "token_types": "embeddings.token_type_embeddings",
        },
        "encoder.layer.",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
        },
    ),
    "nomic-bert": Family(
        {
            "token_embd": "embeddings.word_embeddings",
            "token_types": "embeddings.token_type_embeddings",
        },
        "encoder.layers.",
        {
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_up": "mlp.fc11",
            "ffn_gate": "mlp.fc12",
            "ffn_down": "mlp.fc2",
        },
    ),
}
"""The architectures whose names are known."""

_IN_BLOCK = re.compile(r"^blk\.(\d+)\.(\w+)\.(weight|bias)$")


@dataclass(frozen=True)
class HfName:
    """The name of a GGUF tensor in Hugging Face's files."""

    name: str
    """Full parameter name, with ``{}`` for the expert's number if experts are stacked."""
    stem: str
    """llama.cpp's name inside of the block."""
    transposed: bool = False
    """Whether Hugging Face stores the transpose."""


def hf_name(architecture: str, name: str) -> HfName | None:
    """Translate one tensor's name; None if the architecture or the tensor is unknown.

    >>> hf_name("llama", "blk.3.attn_q.weight").name
    'model.layers.3.self_attn.q_proj.weight'
    """
    family = FAMILIES.get(architecture)
    if family is None:
        return None
    if match := _IN_BLOCK.match(name):
        block, stem, ending = match.groups()
        inside = family.inside.get(stem)
        if inside is None:
            return None
        return HfName(
            f"{family.blocks}{block}.{inside}.{ending}", stem, stem in family.stored_in_out
        )
    stem, _, ending = name.rpartition(".")
    top = family.top.get(stem)
    return HfName(f"{top}.{ending}", stem) if top else None
