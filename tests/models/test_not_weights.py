"""What counts as a weight matrix: by the owning module in a live model, by the name in a file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectail as st
from spectail.allocation.coverage import cover
from spectail.core.spec import Spec
from spectail.errors import AllocationError
from spectail.measuring.layer import record_of
from spectail.measuring.planning import make_plan
from spectail.models.naming.not_weights import are_weights_named, no_matrix
from spectail.models.open import open_source

MATRICES = {
    # torch, torchvision, timm, diffusers
    "encoder.layers.encoder_layer_0.self_attention.in_proj_weight": (2304, 768),
    "blocks.0.attn.qkv.weight": (2304, 768),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.weight": (640, 640),
    "transformer_blocks.0.norm1.linear.weight": (9216, 1536),
    "fc.weight": (1, 768),
    "features.0.0.weight": (32, 3, 3, 3),
    "attn.conv.weight": (1, 1, 3),
    "rnn.weight_hh_l1_reverse": (2048, 512),
    "attn.q_proj_weight": (64, 32),
    "pos_conv_embed.conv.weight": (768, 48, 128),
    "encoder.embed_positions.weight": (1024, 768),
    # CLIP
    "text_projection": (512, 512),
    "visual.proj": (768, 512),
    # experts of every release
    "model.layers.0.mlp.experts.gate_up_proj": (8, 28672, 4096),
    "transformer.blocks.0.ffn.experts.mlp.w1": (86016, 6144),
    "model.layers.0.block_sparse_moe.input_linear.weight": (32, 1024, 1536),
    "layers.0.mlp.experts.w13_weight": (8, 2048, 1024),
    # modules that multiply by parameters of their own
    "model.layers.2.mamba_decoder.mamba.x_proj_weight": (2, 264, 3712),
    "model.layers.0.temporal_block.rg_lru.input_gate_weight": (10, 256, 256),
    "transformer.layer.0.rel_attn.q": (1024, 16, 64),
    "layers.0.spline_weight": (64, 28, 8),
    # Fourier layers
    "fno_blocks.convs.weight.0.tensor": (32, 32, 16, 9),
    "conv0.weights1": (32, 32, 12, 12),
    # RWKV
    "blocks.0.att.time_maa_w2": (5, 32, 2048),
    "blocks.0.att.g1": (2048, 128),
    "blk.0.time_mix_key.weight": (2048, 2048),
    # Flax
    "params.encoder.layer_0.attention.query.kernel": (768, 768),
    "params.shared.embedding": (32128, 512),
}
TABLES = {
    "cls_token": (1, 1, 768),
    "vit.embeddings.mask_token": (1, 1, 768),
    "pos_embed": (1, 197, 768),
    "encoder.pos_embedding": (1, 197, 768),
    "positional_embedding": (77, 512),
    "layers.0.blocks.1.attn.relative_position_bias_table": (169, 24),
    "beit.layer.0.relative_position_bias_table": (732, 12),
    "blocks.2.attn.rel_pos_h": (27, 64),
    "blocks.0.ls1.gamma": (1, 1024),
    "stages.0.blocks.0.layer_scale": (96, 1, 1),
    "stages.3.layers.0.grn.weight": (1, 1, 1, 3072),
    "stages.0.0.conv.gain": (64, 1, 1, 1),
    "blocks.0.attn.logit_scale": (24, 1, 1),
    "blocks.0.attn.attention_biases": (12, 49),
    "model.layers.0.self_attn.k_norm.weight": (32, 128),
    "backbone.layers.0.mixer.A_log": (5120, 16),
    "blk.0.ssm_a": (5120, 16),
    "blocks.0.att.time_mix_k": (1, 1, 2048),
    "blocks.0.att.time_maa_x": (1, 1, 2048),
    "blk.0.time_mix_lerp_x.weight": (1, 1, 2048),
    "blocks.0.attention.time_mix_key": (1, 1, 4096),
    "model.layers.0.ffn_hc.fn": (24, 16384),
    "model.layers.0.mlp.experts.down_proj_bias": (32, 2880),
    "layer.0.rel_attn.r_w_bias": (16, 64),
    "qformer.query_tokens": (1, 32, 768),
    "quantizer.codevectors": (1, 640, 128),
    "rotary_emb.inv_freq": (1, 64),
    "scale_shift_table": (6, 1152),
    "patch_embed.pos_emb.weight": (64, 64, 1152),
    "snake1.alpha": (1, 64, 1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name: str) -> None:
    assert no_matrix(name, MATRICES[name]) is None


@pytest.mark.parametrize("name", TABLES)
def test_tables_tokens_and_scales(name: str) -> None:
    assert no_matrix(name, TABLES[name])


def test_complex_tensors_of_three_dimensions_are_fourier_layers() -> None:
    assert no_matrix("conv.theta", (8, 8, 5), is_complex=True) is None
    assert no_matrix("conv.theta", (8, 8, 5)) is not None
    assert no_matrix("freqs", (2048, 64), is_complex=True) is not None


def test_names_that_say_nothing_are_matrices_only_where_no_tensor_is_called_weight() -> None:
    assert no_matrix("layers.0.theta", (8, 8)) is not None
    assert no_matrix("layers.0.theta", (8, 8), among_weights=False) is None
    assert no_matrix("cls_token", (2, 8), among_weights=False) is not None
    assert are_weights_named(["a.b", "a.weight"])
    assert not are_weights_named(["a.b", "a_weight"])


class Mixer(nn.Module):
    """A block of modules and parameters, as state-space models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(32, 64)
        self.A_log = nn.Parameter(torch.randn(64, 16))
        self.theta = nn.Parameter(torch.randn(64, 64))
        self.norm = nn.LayerNorm([16, 16])
        self.pos_embed = nn.Embedding(20, 32)


def test_the_owning_module_decides_in_a_live_model() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Mixer()])
    layers = {layer.name.removeprefix("layers.0."): layer for layer in open_source(model).layers}
    assert {name for name, layer in layers.items() if not layer.no_weight} == {
        "in_proj",
        "pos_embed",
    }
    assert (
        layers["A_log"].no_weight == "no weight matrix: a state-space or mixing parameter of Mixer"
    )
    owners = "linear, convolution, embedding, recurrent or experts module"
    assert (
        layers["theta"].no_weight == f"no weight matrix: a parameter of Mixer that no {owners} owns"
    )
    assert layers["norm"].no_weight == "no weight matrix: the scale of LayerNorm"


def test_what_is_no_matrix_has_a_skipped_row_and_no_say_in_the_window() -> None:
    matrix = torch.randn(256, 256)
    state = {
        "layers.0.q.weight": matrix,
        "layers.1.q.weight": matrix.T.contiguous(),
        "layers.0.A_log": matrix[:, :80],
    }
    plan = make_plan(state, spec=Spec(window="common"))
    assert plan.run.window == 256
    rows = st.analyze(state).table.set_index("name")
    row = rows.loc["layers.0.A_log"]
    assert (row["status"], row["kind"]) == ("skipped", "parameter")
    assert row["reason"] == "no weight matrix: a state-space or mixing parameter"
    assert list(rows["status"]) == ["ok", "ok", "skipped"]


def test_no_glob_brings_back_what_is_no_matrix() -> None:
    state = {
        "layers.0.q.weight": torch.ones(8, 8),
        "layers.0.A_log": torch.ones(8, 8),
        "head.weight": torch.ones(9, 8),
    }
    records = [record_of(layer) for layer in open_source(state).layers]
    found = cover(records, inside_blocks=True, include=["*"])
    assert [layer.name for layer in found.layers] == ["layers.0.q", "head"]
    assert {item.name: item.reason for item in found.left_out} == {
        "layers.0.A_log": "no weight matrix: a state-space or mixing parameter"
    }
    with pytest.raises(
        AllocationError,
        match=r"'\*A_log' matches no weight matrix: layers\.0\.A_log: no weight matrix",
    ):
        cover(records, inside_blocks=True, include=["*A_log"])
