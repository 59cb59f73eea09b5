"""llama.cpp's names and types; patterns are searched for in a tensor's
name, as llama-quantize does.
"""

import re

import pytest

from spectail.errors import ExportError
from spectail.export.llama_cpp import gguf_tensor, tensor_type, tensor_types
from spectail.models.formats.gguf_names import FAMILIES, hf_name
from spectail.models.naming.names import layer_name
from tests.export.conftest import allocation, llama_names

TENSORS = [
    (family, f"blk.13.{stem}.weight") for family in FAMILIES for stem in FAMILIES[family].inside
]
TENSORS += [(family, f"{stem}.weight") for family in FAMILIES for stem in FAMILIES[family].top]


@pytest.mark.parametrize(("architecture", "tensor"), TENSORS, ids="/".join)
def test_names_go_back_to_where_they_came_from(architecture: str, tensor: str) -> None:
    named = hf_name(architecture, tensor)
    assert named is not None
    name = layer_name(named.name.replace("{}", "5"))
    assert gguf_tensor(name) == tensor


@pytest.mark.parametrize(
    ("layer", "tensor"),
    [
        ("layers.2.mlp.down_proj", "blk.2.ffn_down.weight"),
        ("model.language_model.layers.2.mlp.down_proj", "blk.2.ffn_down.weight"),
        ("h.10.attn.c_attn.v", "blk.10.attn_qkv.weight"),
        ("model.layers.2.mlp.gate_up_proj.gate", "blk.2.ffn_up.weight"),
        ("model.layers.2.mlp.experts.gate_up_proj[3].up", "blk.2.ffn_up_exps.weight"),
        ("model.layers.2.block_sparse_moe.experts.3.w2", "blk.2.ffn_down_exps.weight"),
        ("bert.encoder.layer.0.attention.self.query", "blk.0.attn_q.weight"),
        ("model.vision_tower.layers.2.mlp.down_proj", None),
        ("features.3.conv", None),
    ],
)
def test_forms_of_a_name(layer: str, tensor: str | None) -> None:
    assert gguf_tensor(layer) == tensor


@pytest.mark.parametrize(
    ("width", "kind"),
    [(1, "q2_K"), (2, "q2_K"), (3, "q3_K"), (4, "q4_K"), (5, "q5_K"), (6, "q6_K"), (7, "q8_0"),
     (8, "q8_0"), (9, "f16"), (16, "f16"), (17, "f32"), (32, "f32")],
)  # fmt: skip
def test_the_narrowest_type_of_at_least_the_width(width: int, kind: str) -> None:
    assert tensor_type(width) == kind


def test_every_pattern_finds_its_tensor_and_no_other() -> None:
    names = [f"model.layers.{i}.{n.split('.', 3)[3]}" for i in (1, 11, 111) for n in llama_names(1)]
    widths = {name: (2, 3, 4, 8)[i % 4] for i, name in enumerate(names)}
    found = {}
    for argument in tensor_types(allocation(widths, "bits")):
        pattern, kind = argument.rsplit("=", 1)
        found[pattern] = kind
    assert list(found)[0] == r"^blk\.1\.ffn_down\.weight$"  # noqa: RUF015
    for name, width in widths.items():
        tensor = gguf_tensor(name)
        assert tensor is not None
        assert [kind for pattern, kind in found.items() if re.search(pattern, tensor)] == [
            tensor_type(width)
        ]
    assert all(pattern == pattern.lower() and not re.search(r"\s|=", pattern) for pattern in found)


def test_experts_share_a_tensor_and_stay_within_the_budget() -> None:
    values = {
        f"model.layers.0.mlp.experts.{i}.up_proj": width for i, width in enumerate((2, 2, 2, 8))
    }
    assert tensor_types(allocation(values | {"model.layers.0.mlp.down_proj": 3}, "bits")) == (
        r"^blk\.0\.ffn_up_exps\.weight$=q3_K",
        r"^blk\.0\.ffn_down\.weight$=q3_K",
    )


def test_what_llama_cpp_has_no_word_for() -> None:
    with pytest.raises(
        ExportError,
        match=r"llama.cpp's names of these layers are not known: features.3.conv; make th",
    ):
        tensor_types(allocation({"features.3.conv": 4}, "bits"))
    with pytest.raises(
        ExportError, match=r"llama.cpp takes an allocation of bits, but this one is of sparsity"
    ):
        tensor_types(allocation({"features.3.conv": 0.5}))
    with pytest.raises(ExportError, match=r"llama.cpp has no type of 33 bits"):
        tensor_type(33)
