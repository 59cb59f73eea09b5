"""What the parts of each layout are, against slices written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spectail.errors import SourceError
from spectail.models.open import open_source

from .cases import PLAIN, TRANSFORMERS


def by_name(source: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in open_source(source).layers}


def matrix(source: Any, name: str) -> Any:
    (found,) = by_name(source)[name].read()
    return found


def test_lstm_gates() -> None:
    model: Any = nn.LSTM(3, 5, proj_size=2)
    layers: Any = by_name(model)
    assert list(layers) == [
        *(f"weight_{side}_l0.{gate}" for side in ("ih", "hh") for gate in "ifgo"),
        "weight_hr_l0",
    ]
    assert torch.equal(layers["weight_ih_l0.g"].read()[0], model.weight_ih_l0[10:15])
    assert {layer.kind for layer in layers.values()} == {"recurrent"}


def test_gru_gates() -> None:
    model: Any = nn.GRU(3, 5, bidirectional=True)
    assert torch.equal(matrix(model, "weight_hh_l0_reverse.n"), model.weight_hh_l0_reverse[10:])


def test_attention_in_projection() -> None:
    model = nn.MultiheadAttention(8, 2)
    assert torch.equal(matrix(model, "in_proj_weight.k"), model.in_proj_weight[8:16])
    assert [layer.kind for layer in by_name(model).values()] == ["q", "k", "v", "o"]


def test_grouped_and_transposed_convolutions_keep_their_stored_shape() -> None:
    model: Any = PLAIN["convolutions"]()
    shapes = {
        name: (layer.n_matrices, layer.rows, layer.cols) for name, layer in by_name(model).items()
    }
    assert shapes == {
        "0": (9, 6, 2),
        "2": (9, 6, 1),
        "3": (6, 6, 4),
        "4": (5, 8, 4),
        "5": (8, 2, 4),
    }
    assert torch.equal(by_name(model)["0"].read()[5], model[0].weight[:, :, 1, 2])


def test_raw_audio_and_long_positional_convolutions_are_convolutions() -> None:
    state = {"a.weight": torch.zeros(40, 1, 100), "b.weight": torch.zeros(256, 4, 128)}
    assert [(layer.kind, layer.n_matrices) for layer in open_source(state).layers] == [
        ("conv", 100),
        ("conv", 128),
    ]


def test_other_three_dimensional_parameters_are_stacks() -> None:
    layers = by_name(PLAIN["transformer"]())
    assert (layers["mixers.w1[1]"].rows, layers["mixers.w1[1]"].cols) == (40, 48)


def test_tables_and_tokens_are_no_weight_matrices() -> None:
    layers = by_name(PLAIN["transformer"]())
    assert {name for name, layer in layers.items() if layer.kind == "parameter"} == {
        "cls_token",
        "pos_embed",
    }
    assert (layers["pos_embed"].rows, layers["pos_embed"].cols) == (5, 8)
    assert (
        layers["cls_token"].no_weight
        == "no weight matrix: learned tokens or queries of Transformer"
    )
    with pytest.raises(
        SourceError, match="pos_embed cannot be read: no weight matrix: a position table"
    ):
        layers["pos_embed"].read()


@pytest.mark.parametrize("case", ["fourier", "real view fourier"])
def test_one_complex_matrix_per_mode(case: str) -> None:
    model: Any = PLAIN[case]()
    weight: Any = model.weight if case == "fourier" else torch.view_as_complex(model.weight.tensor)
    (layer,) = open_source(model).layers
    assert (layer.name, layer.kind) == ("weight", "spectral")
    assert (layer.n_matrices, layer.rows, layer.cols) == (8, 5, 3)
    assert torch.equal(layer.read()[3], weight[:, :, 1, 1].T)


def test_gpt2_is_transposed_and_split() -> None:
    pytest.importorskip("transformers")
    model: Any = TRANSFORMERS["gpt2"]()
    stored = model.transformer.h[1].attn.c_attn.weight
    for source in (model, model.state_dict()):
        assert torch.equal(matrix(source, "transformer.h.1.attn.c_attn.k"), stored[:, 8:16].T)
        assert torch.equal(
            matrix(source, "transformer.h.1.attn.c_proj"),
            model.transformer.h[1].attn.c_proj.weight.T,
        )
        names = by_name(source)
        assert "transformer.h.0.crossattention.c_attn.v" in names
        assert "transformer.h.0.crossattention.c_attn.q" not in names
        assert names["transformer.h.0.mlp.c_fc"].rows == 32
        assert names["transformer.h.0.mlp.c_proj"].kind == "fc2"


def test_nanogpt_is_not_transposed() -> None:
    state = {
        "transformer.h.0.attn.c_attn.weight": torch.randn(24, 8),
        "transformer.h.0.attn.c_proj.weight": torch.randn(8, 8),
        "transformer.h.0.mlp.c_fc.weight": torch.randn(32, 8),
        "transformer.h.0.mlp.c_proj.weight": torch.randn(8, 32),
    }
    layers = by_name(state)
    assert torch.equal(
        matrix(state, "transformer.h.0.attn.c_proj"), state["transformer.h.0.attn.c_proj.weight"]
    )
    assert torch.equal(
        matrix(state, "transformer.h.0.attn.c_attn.v"),
        state["transformer.h.0.attn.c_attn.weight"][16:],
    )
    assert layers["transformer.h.0.mlp.c_fc"].rows == 32


def test_mixtral_experts() -> None:
    pytest.importorskip("transformers")
    model: Any = TRANSFORMERS["mixtral"]()
    experts = model.model.layers[1].mlp.experts
    prefix = "model.layers.1.mlp.experts."
    assert torch.equal(matrix(model, prefix + "gate_up_proj[2].gate"), experts.gate_up_proj[2, :12])
    assert torch.equal(matrix(model, prefix + "gate_up_proj[2].up"), experts.gate_up_proj[2, 12:])
    assert torch.equal(matrix(model, prefix + "down_proj[0]"), experts.down_proj[0])
    assert by_name(model)["model.layers.1.mlp.gate"].kind == "router"


def test_gpt_oss_experts_are_transposed_and_interleaved() -> None:
    pytest.importorskip("transformers")
    model: Any = TRANSFORMERS["gpt-oss"]()
    experts = model.model.layers[1].mlp.experts
    prefix = "model.layers.1.mlp.experts."
    for source in (model, model.state_dict()):
        assert torch.equal(
            matrix(source, prefix + "gate_up_proj[1].gate"), experts.gate_up_proj[1, :, ::2].T
        )
        assert torch.equal(
            matrix(source, prefix + "gate_up_proj[1].up"), experts.gate_up_proj[1, :, 1::2].T
        )
        assert torch.equal(matrix(source, prefix + "down_proj[1]"), experts.down_proj[1].T)
        assert prefix + "gate_up_proj_bias" not in by_name(source)


def test_llama4_experts_are_transposed_only() -> None:
    state = {
        "model.layers.0.feed_forward.experts.gate_up_proj": torch.randn(2, 8, 24),
        "model.layers.0.feed_forward.experts.down_proj": torch.randn(2, 12, 8),
    }
    stored = state["model.layers.0.feed_forward.experts.gate_up_proj"]
    found = matrix(state, "model.layers.0.feed_forward.experts.gate_up_proj[1].up")
    assert torch.equal(found, stored[1, :, 12:].T)


def test_grouped_query_attention_is_split_where_the_heads_are_known() -> None:
    pytest.importorskip("transformers")
    model = TRANSFORMERS["phi3"]()
    layers = by_name(model)
    shapes = [layers[f"model.layers.0.self_attn.qkv_proj.{part}"].rows for part in "qkv"]
    assert shapes == [16, 8, 8]
    name = "model.layers.0.self_attn.qkv_proj"
    assert by_name({name + ".weight": torch.randn(32, 16)})[name].kind == "qkv"


def test_gpt_neox_is_split_head_by_head() -> None:
    pytest.importorskip("transformers")
    model: Any = TRANSFORMERS["gpt-neox"]()
    weight = model.gpt_neox.layers[0].attention.query_key_value.weight
    found = matrix(model, "gpt_neox.layers.0.attention.query_key_value.k")
    assert torch.equal(found, torch.cat([weight[4:8], weight[16:20]]))


def test_pieces_of_weight_norm_from_old_torch() -> None:
    v, g = torch.randn(6, 4, 3), torch.rand(6, 1, 1)
    state = {"conv.weight_g": g, "conv.weight_v": v, "conv.bias": torch.zeros(6)}
    source = open_source(state)
    expected = torch._weight_norm(v, g, 0)
    assert [layer.name for layer in source.layers] == ["conv"]
    torch.testing.assert_close(source.layers[0].read(), expected.permute(2, 0, 1))
    assert source.n_vectors == 1


def test_float8_experts_are_scaled_one_by_one() -> None:
    gate_up, down = (
        torch.randn(2, 24, 8).to(torch.float8_e4m3fn),
        torch.randn(2, 8, 12).to(torch.float8_e4m3fn),
    )
    scale = torch.rand(2, 1, 1)
    state = {
        "mlp.experts.gate_up_proj": gate_up,
        "mlp.experts.gate_up_proj_scale_inv": scale,
        "mlp.experts.down_proj": down,
    }
    found = matrix(state, "mlp.experts.gate_up_proj[1].up")
    assert torch.equal(found, gate_up[1, 12:].float() * scale[1])


def test_values_that_do_not_exist_are_a_problem_of_the_row() -> None:
    with torch.device("meta"):
        meta = nn.Linear(3, 4)
    assert "meta device" in str(open_source(meta).layers[0].problem)
    assert "not initialised" in str(open_source(nn.Sequential(nn.LazyLinear(4))).layers[0].problem)
    assert "empty" in str(open_source({"a.weight": torch.zeros(0, 4)}).layers[0].problem)
    assert "sparse" in str(open_source({"a.weight": torch.eye(3).to_sparse()}).layers[0].problem)


def test_what_is_no_weight_is_left_out() -> None:
    state = {
        "h.0.attn.bias": torch.ones(1, 1, 9, 9),
        "bn.running_mean": torch.ones(4),
        "bn.num_batches_tracked": torch.tensor(3),
        "embeddings.position_ids": torch.arange(9)[None],
        "table": torch.zeros(3, 3, dtype=torch.int64),
        "a.weight": torch.ones(3, 4),
    }
    source = open_source(state)
    assert [layer.name for layer in source.layers] == ["a"]
    assert source.n_vectors == 0


def test_two_names_of_one_layer_stay_apart() -> None:
    source = open_source({"a": torch.ones(2, 3), "a.weight": torch.zeros(3, 4)})
    assert [(layer.name, layer.rows) for layer in source.layers] == [("a", 2), ("a.weight", 3)]
