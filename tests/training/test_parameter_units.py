"""What follows what: norms and biases by the structure of the modules, fused and
computed weights, first and last.
"""

from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.models.live.walk import module_source
from spectail.training.parameter_units import first_and_last, units_of
from spectail.training.rules import TempBalance
from tests.models import cases


def described(model: Any) -> Any:
    """Names of the parameters of each unit."""
    names = {id(p): name for name, p in model.named_parameters()}
    units = units_of(model, module_source(model).layers)
    return {unit.name: [names[id(p)] for p in unit.parameters] for unit in units}


def ends(model: Any) -> Any:
    return first_and_last(model, units_of(model, module_source(model).layers))


class Residual(nn.Module):
    """Names that tell nothing."""

    def __init__(self, rows: Any, cols: Any) -> None:
        super().__init__()
        self.alice = nn.Conv2d(cols, rows, 3, bias=False)
        self.bob = nn.BatchNorm2d(rows)
        self.carol = nn.Conv2d(rows, rows, 3)
        self.dave = nn.GroupNorm(4, rows)
        self.side = nn.Sequential(nn.Conv2d(cols, rows, 1), nn.BatchNorm2d(rows))
        self.gain = nn.Parameter(torch.ones(rows))


def test_norms_and_biases_follow_by_structure() -> None:
    model = nn.Sequential(Residual(64, 32), nn.BatchNorm2d(64), nn.Linear(64, 10))
    assert described(model) == {
        "0.alice": ["0.alice.weight", "0.gain", "0.bob.weight", "0.bob.bias"],
        "0.carol": ["0.carol.weight", "0.carol.bias", "0.dave.weight", "0.dave.bias"],
        "0.side.0": [
            "0.side.0.weight", "0.side.0.bias", "0.side.1.weight", "0.side.1.bias",
            "1.weight", "1.bias",
        ],
        "2": ["2.weight", "2.bias"],
    }  # fmt: skip


def test_a_norm_in_front_follows_the_weight_after_it() -> None:
    model = nn.Sequential(
        nn.Linear(16, 64), nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64)), nn.LayerNorm(64)
    )  # fmt: skip
    assert described(model) == {
        "0": ["0.weight", "0.bias"],
        "1.1": ["1.1.weight", "1.0.weight", "1.0.bias", "1.1.bias", "2.weight", "2.bias"],
    }


def test_every_parameter_belongs_to_exactly_one_unit() -> None:
    models = [
        case()
        for case in (cases.normed, cases.convolutions, cases.gpt2, cases.mixtral, cases.Transformer)
    ]
    models += [nn.LSTM(64, 64, 2), nn.TransformerEncoderLayer(64, 4, 64)]
    for model in models:
        found = [name for names in described(model).values() for name in names]
        assert sorted(found) == sorted(name for name, _ in model.named_parameters()), type(
            model
        ).__name__


def test_parts_of_one_parameter_are_one_unit() -> None:
    lstm = described(nn.LSTM(64, 64, 2))
    assert lstm["weight_ih_l0"] == ["weight_ih_l0"]
    assert lstm["weight_hh_l0"] == ["weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    units = units_of(model := cases.mixtral(), module_source(model).layers)
    fused = next(unit for unit in units if unit.name == "model.layers.0.mlp.experts.gate_up_proj")
    assert len(fused.layers) == 6
    assert len(fused.weights) == 1


def test_pieces_of_a_computed_weight_train_alike() -> None:
    found = described(cases.normed())
    pieces = {"new.parametrizations.weight.original0", "new.parametrizations.weight.original1"}
    assert set(found["new"][:2]) == pieces
    assert found["new"][2:] == ["new.bias"]
    assert found["pruned"][0] == "pruned.weight_orig"


def test_first_and_last_layer() -> None:
    assert ends(nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 7), nn.Linear(7, 3))) == (
        "0",
        "3",
    )
    assert ends(cases.Transformer()) == ("mixers.w1", "head"), (
        "tokens and position tables are no layers"
    )
    assert ends(cases.Tied()) == ("embed_tokens", "embed_tokens"), "a tied head is the last layer"
    gpt2 = cases.gpt2()
    assert ends(gpt2) == ("transformer.wte", "transformer.wte")
    weight_norm = nn.utils.parametrizations.weight_norm
    assert ends(nn.Sequential(weight_norm(nn.Linear(8, 9)), nn.Linear(9, 3))) == ("0", "1")


def test_a_fused_parameter_takes_the_mean_alpha_of_its_parts() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward = nn.Linear(16, 64)
            self.attn = nn.MultiheadAttention(64, 4)
            self.between = nn.Linear(64, 96)
            self.again = nn.Linear(96, 64)
            self.out = nn.Linear(64, 4)

    torch.manual_seed(3)
    model = Fused()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = st.Balancer(model, optimizer, TempBalance(map="sqrt"), every=None)
    balancer.update()
    alphas = st.analyze(model).table.set_index("name")["alpha"]
    parts = [f"attn.in_proj_weight.{part}" for part in "qkv"]
    assert balancer.history[-1].alphas["attn.in_proj_weight"] == pytest.approx(
        alphas[parts].mean(), rel=1e-12
    )
    assert len(balancer.factors) == 4


def test_a_language_model_leaves_out_embeddings_head_and_norms() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    for tied in (False, True):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=99, tie_word_embeddings=tied, **sizes))
        balancer = st.Balancer(
            model, torch.optim.AdamW(model.parameters()), "alphadecay", every=500
        )
        assert len(balancer.factors) == 14
        assert balancer.left_out["model.embed_tokens"] == "an embedding"
        assert ("lm_head" in balancer.left_out) is not tied


@pytest.mark.parametrize("include", [(), ("norm",)])
def test_include_adds_a_matrix_that_is_called_like_a_norm(include: Any) -> None:
    names = ("first", "inner", "norm", "last")
    model = nn.Sequential()
    for name in names:
        model.add_module(name, nn.Linear(128, 128))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = TempBalance(spec=st.Spec(window=64), include=include)
    balancer = st.Balancer(model, optimizer, rule, every=10)
    assert balancer.left_out.get("norm") == (None if include else "a norm")
