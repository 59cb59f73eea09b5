"""What names say, and globs over them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from spectail.errors import SpecError
from spectail.models.naming.blocks import block_numbers, block_of, unit_of
from spectail.models.naming.kinds import kind_of
from spectail.models.naming.names import canonical_name, clean_names, layer_name, natural_key
from spectail.models.naming.select import select
from spectail.models.open import open_source
from spectail.results.depth import depths

NAMES = [
    # name, block, kind
    ("model.embed_tokens", None, "embedding"),
    ("model.layers.12.self_attn.q_proj", 12, "q"),
    ("model.layers.0.self_attn.k_proj", 0, "k"),
    ("model.layers.0.self_attn.o_proj", 0, "o"),
    ("model.layers.0.mlp.gate_proj", 0, "gate"),
    ("model.layers.0.mlp.up_proj", 0, "up"),
    ("model.layers.0.mlp.down_proj", 0, "down"),
    ("model.layers.3.mlp.gate", 3, "router"),
    ("model.layers.3.block_sparse_moe.gate", 3, "router"),
    ("model.layers.3.block_sparse_moe.experts.7.w1", 3, "gate"),
    ("model.layers.3.block_sparse_moe.experts.7.w2", 3, "down"),
    ("model.layers.3.mlp.experts.7.up_proj", 3, "up"),
    ("lm_head", None, "head"),
    ("transformer.h.5.attn.c_proj", 5, "o"),
    ("transformer.h.5.mlp.c_proj", 5, "fc2"),
    ("transformer.h.5.mlp.c_fc", 5, "fc1"),
    ("transformer.wte", None, "embedding"),
    ("bert.encoder.layer.2.attention.self.query", 2, "q"),
    ("bert.encoder.layer.2.attention.output.dense", 2, "o"),
    ("bert.encoder.layer.2.intermediate.dense", 2, "fc1"),
    ("bert.encoder.layer.2.output.dense", 2, "fc2"),
    ("embeddings.word_embeddings", None, "embedding"),
    ("encoder.block.1.layer.0.SelfAttention.q", 1, "q"),
    ("encoder.block.1.layer.1.DenseReluDense.wi_0", 1, "gate"),
    ("encoder.block.1.layer.1.DenseReluDense.wo", 1, "down"),
    ("blocks.3.attn.proj", 3, "o"),
    ("blocks.3.mlp.fc2", 3, "fc2"),
    ("gpt_neox.layers.1.attention.dense", 1, "o"),
    ("gpt_neox.layers.1.mlp.dense_h_to_4h", 1, "fc1"),
    ("encoder.layers.0.self_attn.out_proj", 0, "o"),
    ("model.layers.3.linear_attn.out_proj", 3, "o"),
    ("backbone.layers.7.mixer.out_proj", 7, "linear"),
    ("backbone.layers.7.mixer.o_proj", 7, "o"),
    ("model.layers.2.mamba.out_proj", 2, "linear"),
    ("model.layers.2.conv.out_proj", 2, "linear"),
    ("model.layers.2.mamba_decoder.mamba.out_proj", 2, "linear"),
    ("encoder.layers.0.linear1", 0, "fc1"),
    ("head", None, "head"),
    ("fc", None, "head"),
    ("layer1.0.conv1", 0, "linear"),
    ("features.3", None, "linear"),
    ("features.3.conv.0", 3, "linear"),
    ("0", None, "linear"),
    ("net.2", None, "linear"),
    ("proj", None, "linear"),
    ("fno_blocks.convs.1", 1, "linear"),
    ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", 1, "o"),
    ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 0, "q"),
    ("unet.mid_block.resnets.1.conv1", 0, "linear"),
    ("time_embedding.linear_1", None, "linear"),
    ("time_embedding.linear_2", None, "linear"),
    ("add_embedding.linear_1", None, "linear"),
    ("time_text_embed.timestep_embedder.linear_1", None, "linear"),
    ("time_embedding.0", None, "linear"),
    ("class_embedding.proj", None, "linear"),
    ("decoder.embedding_projection", None, "linear"),
    ("encoder.embedding_hidden_mapping_in", None, "linear"),
    ("embeddings_project", None, "linear"),
    ("inputs_embeds_projector", None, "linear"),
    ("linear_embedding", None, "embedding"),
    ("token_embedding.0", None, "embedding"),
    ("embeddings.patch_embeddings.projection", None, "embedding"),
    ("patch_embed.proj", None, "embedding"),
    ("class_embedding", None, "embedding"),
    ("embeddings.token", None, "embedding"),
]


@pytest.mark.parametrize(("name", "block", "kind"), NAMES)
def test_block_and_kind(name: str, block: int | None, kind: str) -> None:
    assert (block_of(name), kind_of(name)) == (block, kind)


def test_units_of_one_index_have_names_of_their_own() -> None:
    assert unit_of("layer2.0.conv1") == "layer2.0"
    assert unit_of("decoder.block.0.layer.1.EncDecAttention.q") == "decoder.block.0"
    assert unit_of("model.embed_tokens") is None


U_NETS: dict[str, list[tuple[str, int | None]]] = {
    "U-Net": [
        ("down_blocks.0.resnets.0.conv1", 0),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 1),
        ("up_blocks.0.resnets.0.conv1", 3),
        ("up_blocks.1.resnets.0.conv1", 4),
        ("mid_block.resnets.0.conv1", 2),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 2),
        ("conv_in", None),
    ],
    "an autoencoder counts encoder and decoder apart": [
        ("encoder.down_blocks.0.conv", 0),
        ("encoder.mid_block.conv", 1),
        ("decoder.mid_block.conv", 0),
        ("decoder.up_blocks.0.conv", 1),
    ],
    "older names": [
        ("input_blocks.0.0", 0),
        ("input_blocks.11.0", 11),
        ("middle_block.1.proj_in", 12),
        ("output_blocks.0.1", 13),
    ],
    "other stacks count by themselves": [("encoder.block.1.q", 1), ("decoder.block.0.q", 0)],
}


@pytest.mark.parametrize("case", U_NETS)
def test_the_stacks_of_a_u_net_share_no_numbers(case: str) -> None:
    assert block_numbers(name for name, _ in U_NETS[case]) == dict(U_NETS[case])


def test_the_layers_of_a_u_net_have_these_numbers() -> None:
    names = [name for name, _ in U_NETS["U-Net"]]
    state = {f"{name}.weight": torch.randn(4, 4) for name in names}
    layers = open_source(state).layers
    assert {layer.name: layer.block for layer in layers} == dict(U_NETS["U-Net"])
    assert depths(filter(None, map(unit_of, names))) == {
        "down_blocks.0": 0, "down_blocks.1": 1, "mid_block": 2, "up_blocks.0": 3, "up_blocks.1": 4,
    }  # fmt: skip


CANONICAL = {
    "model.layers.0.mlp.experts.gate_up_proj[3].gate": "model.layers.0.mlp.experts.3.gate_proj",
    "model.layers.0.mlp.experts.gate_up_proj[3].up": "model.layers.0.mlp.experts.3.up_proj",
    "model.layers.0.mlp.experts.down_proj[13]": "model.layers.0.mlp.experts.13.down_proj",
    "model.layers.0.mlp.switch_mlp.up_proj[3]": "model.layers.0.mlp.experts.3.up_proj",
    "model.layers.0.block_sparse_moe.experts.3.w1": "model.layers.0.mlp.experts.3.gate_proj",
    "model.layers.0.block_sparse_moe.experts.3.w2": "model.layers.0.mlp.experts.3.down_proj",
    "model.layers.0.block_sparse_moe.experts.3.w3": "model.layers.0.mlp.experts.3.up_proj",
    "model.layers.0.block_sparse_moe.gate": "model.layers.0.mlp.gate",
    "model.layers.0.block_sparse_moe.input_linear[1].up": "model.layers.0.mlp.experts.1.up_proj",
    "model.layers.0.block_sparse_moe.output_linear[1]": "model.layers.0.mlp.experts.1.down_proj",
    "model.layers.0.feed_forward.w1": "model.layers.0.feed_forward.w1",
    "model.layers.0.self_attn.q_proj": "model.layers.0.self_attn.q_proj",
    "model.layers.0.block_sparse_moe.router.layer": "model.layers.0.mlp.gate",
    "model.layers.0.mlp.router": "model.layers.0.mlp.gate",
    "embed_out": "lm_head",
    "prompts[1]": "prompts[1]",
}


@pytest.mark.parametrize("name", CANONICAL)
def test_canonical_name(name: str) -> None:
    assert canonical_name(name) == CANONICAL[name]
    assert canonical_name(CANONICAL[name]) == CANONICAL[name]


def test_wrappers_are_taken_off() -> None:
    assert clean_names(["module._orig_mod.a.weight", "module.b"]) == ["a.weight", "b"]
    assert clean_names(["module.a", "b"]) == ["module.a", "b"]
    peft = ["base_model.model.q.base_layer.weight", "base_model.model.q.lora_A.default.weight"]
    assert clean_names(peft) == ["q.weight", "q.lora_A.default.weight"]
    assert clean_names(["base_model.model.q.weight"]) == ["base_model.model.q.weight"]


def test_a_name_that_cleaning_would_double_stays() -> None:
    names = ["a._orig_mod.weight", "a.weight", "b._orig_mod.weight"]
    assert clean_names(names) == ["a._orig_mod.weight", "a.weight", "b.weight"]


def test_layer_name() -> None:
    assert [
        layer_name(name)
        for name in ("a.weight", "weight", "a.weight.tensor", "weight_ih_l0", "a.weights1")
    ] == [
        "a",
        "weight",
        "a",
        "weight_ih_l0",
        "a.weights1",
    ]


def test_natural_order() -> None:
    assert sorted(["l.10.a", "l.2.a", "l.b"], key=natural_key) == ["l.2.a", "l.10.a", "l.b"]


def test_names_and_blocks_need_no_torch() -> None:
    modules = "spectail.models.naming.names, spectail.models.naming.kinds, spectail.models.source"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


@pytest.fixture
def layers() -> Any:
    names = [
        "embed",
        *(f"layers.{i}.{part}" for i in range(3) for part in ("q", "k")),
        "experts.down_proj[1]",
    ]
    return open_source({name: torch.ones(2, 2) for name in names}).layers


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], 8),
        (["layers.*"], [], 6),
        (["layers.*"], ["*.k"], 3),
        (["*.q", "embed"], [], 4),
        (["layers.[01].q"], [], 2),
        (["experts.down_proj[1]"], [], 1),
        ([], ["nothing"], 8),
    ],
)
def test_select(layers: Any, include: list[str], exclude: list[str], expected: int) -> None:
    assert len(select(layers, include, exclude)) == expected


def test_a_glob_that_matches_nothing_names_itself_and_three_layers(layers: Any) -> None:
    with pytest.raises(
        SpecError, match=r"'\*q_proj' matches none of the 8 layers; .* embed, layers\.1\.k, experts"
    ):
        select(layers, ["layers.*", "*q_proj"])
    with pytest.raises(SpecError, match=r"--exclude '\*' leaves none of the 8 layers"):
        select(layers, [], ["*"])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("Transformer.encoderblock_11.MlpBlock_3.Dense_0", 11),
        ("encoder.layers_2.mlp.wi", 2),
        ("decoder.layers_0.0.mlp", 0),
        ("layers_norm", None),
    ],
)
def test_blocks_of_flax_are_numbered_in_the_name_itself(name: str, block: int | None) -> None:
    assert block_of(name) == block
