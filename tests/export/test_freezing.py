"""Which layers to train, in the words of axolotl and PEFT, against these libraries themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.cli import run
from spectail.errors import ExportError
from spectail.export.freezing import Axolotl, axolotl_matches, lora_targets, unfrozen_parameters
from spectail.export.parameters import check_patterns
from spectail.models.live.language import parameter_names
from tests.export.conftest import allocation, llama_names
from tests.language import llama

TRAINED = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"]


def _choice(names: list[str], trained: list[str]) -> Allocation:
    return allocation({name: float(name in trained) for name in names}, "freeze")


CHOICE = _choice(llama_names(), TRAINED)
PARAMETERS = [name for name, _ in llama().named_parameters()]


def _unfrozen(patterns: list[str], model: nn.Module) -> set[str]:
    """What the real axolotl trains."""
    freeze = pytest.importorskip("axolotl.utils.freeze")
    freeze.freeze_layers_except(model, patterns)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("parameters", [None, PARAMETERS], ids=["unchecked", "checked"])
def test_axolotl_trains_what_was_chosen(parameters: Any) -> None:
    patterns = unfrozen_parameters(CHOICE, parameters)
    assert _unfrozen(patterns, llama()) == {f"{name}.weight" for name in TRAINED}


@pytest.mark.filterwarnings("ignore")
def test_biases_and_more_patterns_are_trained_in_axolotl() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)), nn.LayerNorm(4))
    names = [name for name, _ in model.named_parameters()]
    chosen = _choice([str(i) for i in range(12)], ["1", "10"])
    patterns = unfrozen_parameters(chosen, names, also=("^12.weight$",))
    trained = {"1.weight", "1.bias", "10.weight", "10.bias", "12.weight"}
    assert {n for n in names if any(axolotl_matches(p, n) for p in patterns)} == trained
    assert _unfrozen(patterns, model) == trained


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "pattern",
    ["^a.b", "a.b", r"^a\.b", "b", "^a.b.weight$", "a.b.weight[:2]", "a.[a-z]+", "a.+b", "^a.b$[3]",
     "^(a|c).b", "^a.b.weight$[1:3]", "a.b.w[eE]", "a.b[0-9]*.weight"],
)  # fmt: skip
def test_our_rule_is_axolotls(pattern: str) -> None:
    freeze = pytest.importorskip("axolotl.utils.freeze")
    theirs = freeze.LayerNamePattern(pattern)
    for name in ("a.b.weight", "a.b.bias", "axb.weight", "c.a.b.weight", "a.b1.weight", "a.b"):
        assert axolotl_matches(pattern, name) is theirs.match(name), name


def test_names_with_signs_of_regular_expressions() -> None:
    odd = ["a.b+c", "a.b(1)", "a.[x]y", "a.b$", "axb+c", "a.bbc"]
    for name in odd:
        patterns = unfrozen_parameters(_choice(odd, [name]))
        assert [x for x in odd if axolotl_matches(patterns[0], f"{x}.weight")] == [name]


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("^lm_head.bias$", r"the pattern '\^lm_head\.bias\$' matches nothing in the model, whose"),
        (r"^lm_head\.weight$", "matches nothing .*; axolotl reads dots as they are, without a ba"),
        ("", "the pattern '' matches everything in the model"),
        ("[a-z]+", r"the pattern '\[a-z\]\+' matches everything in the model"),
        ("model.layers.1", r"also matches model\.layers\.1\.self_attn\.k_proj\.weight, model\.lay"),
        ("model.layers.(1", "is no regular expression: missing"),
    ],
)
def test_a_pattern_that_matches_nothing_everything_or_a_frozen_layer(
    also: str, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        Axolotl(PARAMETERS, also=also).text(CHOICE)
    with pytest.raises(ExportError, match=message):
        Axolotl(PARAMETERS, also=["^lm_head.weight$", also]).text(CHOICE)


def test_the_yaml_is_axolotls_key() -> None:
    loaded = yaml.safe_load(Axolotl(PARAMETERS, also="^model.norm.weight$").text(CHOICE))
    assert list(loaded) == ["unfrozen_parameters"]
    assert loaded["unfrozen_parameters"] == [
        "^model.layers.0.mlp.up_proj(.weight|.bias)?$",
        "^model.layers.1.self_attn.q_proj(.weight|.bias)?$",
        "^model.norm.weight$",
    ]


def _adapted(model: nn.Module, arguments: dict[str, Any]) -> set[str]:
    """The parameters that PEFT gives an adapter."""
    peft = pytest.importorskip("peft")
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=2, **arguments), model)
    return {
        name.partition(".lora_A")[0].replace(".base_layer", "")
        for name, _ in adapted.named_parameters()
        if ".lora_A" in name
    }


@pytest.mark.parametrize("parameters", [None, PARAMETERS], ids=["unchecked", "checked"])
def test_peft_adapts_what_was_chosen(parameters: Any) -> None:
    targets = json.loads(json.dumps(lora_targets(CHOICE, parameters)))
    assert targets == {"target_modules": sorted(TRAINED)}
    assert _adapted(llama(), targets) == set(TRAINED)


class _Towers(nn.Module):
    """Two stacks of layers, whose names end in each other as those of CLIP do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        self.vision = nn.Module()
        self.vision.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))


def test_names_that_end_in_each_other_become_one_expression() -> None:
    model = _Towers()
    names = [name.removesuffix(".weight") for name, _ in model.named_parameters()]
    names = [name for name in names if not name.endswith("bias")]
    for trained in (["layers.1"], ["vision.layers.1"], ["layers.1", "layers.11"]):
        targets = lora_targets(_choice(names, trained))
        assert isinstance(targets["target_modules"], str if trained[0][0] == "l" else list)
        assert _adapted(_Towers(), targets) == set(trained)


def test_a_name_that_ends_the_name_of_what_holds_others_becomes_an_expression_too() -> None:
    peft = pytest.importorskip("peft")
    head, held = nn.Linear(4, 4), nn.ModuleDict({"up": nn.Linear(4, 4), "down": nn.Linear(4, 4)})
    model = nn.ModuleDict({"mlp": head, "block": nn.ModuleDict({"mlp": held})})
    names = ["mlp", "block.mlp.up", "block.mlp.down"]
    found = lora_targets(_choice(names, ["mlp", "block.mlp.up"]))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **found))
    have = {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert have == {"base_model.model.mlp", "base_model.model.block.mlp.up"}


def test_a_name_left_out_of_the_allocation_counts_as_frozen() -> None:
    left = LeftOut("vision.layers.1", Reason(Code.OTHER_TOWER, "beside the language model"))
    chosen = allocation({"layers.1": 1.0, "layers.2": 0.0}, "freeze")
    values = chosen.to_dict() | {"left_out": [left.to_dict()]}
    assert lora_targets(Allocation.from_dict(values))["target_modules"] == r"layers\.1"


def test_matrices_of_attention_and_recurrence_are_parameters() -> None:
    names = ["attn.in_proj_weight.q", "attn.in_proj_weight.k", "rnn.weight_ih_l0.i", "fc"]
    targets = lora_targets(_choice(names, names[:3]))
    loose = ["attn.in_proj_weight", "rnn.weight_ih_l0"]
    assert targets == {"target_modules": [], "target_parameters": loose}
    patterns = unfrozen_parameters(_choice(names, names[:3]))
    for name in loose:
        assert [axolotl_matches(pattern, name) for pattern in patterns].count(True) == 1


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 mixture, whose file stores the experts one by one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=16,
        num_experts=3, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        num_experts_per_tok=1, head_dim=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mixture")
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stored", [True, False], ids=["file", "live"])
def test_experts_in_one_tensor_are_a_parameter(mixture: Path, stored: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(mixture)
    names = parameter_names(mixture)
    assert list(names) == [name for name, _ in model.named_parameters()]
    if stored:
        experts = [f"model.layers.{b}.mlp.experts.{i}.{p}_proj" for b in (0, 1) for i in range(3)
                   for p in ("gate", "up", "down")]  # fmt: skip
        trained = [x for x in experts if ".1." in x[:16] and "down" not in x]
    else:
        experts = [f"model.layers.{b}.mlp.experts.gate_up_proj[{i}].{p}" for b in (0, 1)
                   for i in range(3) for p in ("gate", "up")]  # fmt: skip
        experts += [
            f"model.layers.{b}.mlp.experts.down_proj[{i}]" for b in (0, 1) for i in range(3)
        ]
        trained = [x for x in experts if ".1." in x[:16] and "gate_up" in x]
    attention = [f"model.layers.{b}.self_attn.q_proj" for b in (0, 1)]
    chosen = _choice([*experts, *attention], [*trained, attention[0]])
    fused = "model.layers.1.mlp.experts.gate_up_proj"
    found = [
        name
        for name in names
        if any(axolotl_matches(pattern, name) for pattern in unfrozen_parameters(chosen, names))
    ]
    assert sorted(found) == sorted([fused, f"{attention[0]}.weight"])
    targets = lora_targets(chosen, names)
    assert targets == {"target_modules": [attention[0]], "target_parameters": [fused]}
    adapted = _adapted(model, targets)
    assert adapted == {"model.layers.1.mlp.experts", attention[0]}
    half = _choice([*experts, *attention], trained[:1])
    with pytest.raises(ExportError, match=f"{fused} would be trained in part, but a parameter is"):
        unfrozen_parameters(half, names)


def test_what_cannot_be_exported() -> None:
    with pytest.raises(ExportError, match="axolotl takes an allocation of freeze, but this one is"):
        unfrozen_parameters(allocation({"a": 0.5}))
    with pytest.raises(ExportError, match="PEFT takes an allocation of freeze, but this one is of"):
        lora_targets(allocation({"a": 4}, "bits"))
    with pytest.raises(ExportError, match="the allocation trains no layer"):
        unfrozen_parameters(_choice(["a", "b"], []))
    other = [name.replace("mlp", "feed_forward") for name in PARAMETERS]
    with pytest.raises(ExportError, match=r"no parameter for these layers: give the folder .*: mo"):
        unfrozen_parameters(CHOICE, other)
    with pytest.raises(ExportError, match=r"'x' also matches y\.x, which the allocation freezes"):
        check_patterns(["x"], ["a", "x", "y.x"], ["y.x"], lambda p, n: n.endswith(p))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CHOICE.save(tmp_path / "train.json")
    (tmp_path / "model").mkdir()
    llama().config.save_pretrained(tmp_path / "model")
    given = ["export", str(tmp_path / "train.json"), "--to", "axolotl"]
    model = ["--model", str(tmp_path / "model")]
    out = ["--out", str(tmp_path / "a.yaml")]
    assert run([*given, *out, *model, "--option", 'also=["^lm_head.weight$"]']) == 0
    assert capsys.readouterr().out == f"axolotl: {tmp_path / 'a.yaml'}\n"
    found = yaml.safe_load((tmp_path / "a.yaml").read_text())["unfrozen_parameters"]
    assert found[-1] == "^lm_head.weight$"
    assert len(found) == 3
    given[3] = "peft"
    assert run([*given, "--out", str(tmp_path / "p.json")]) == 0
    assert "names are not checked" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text()) == {"target_modules": sorted(TRAINED)}
    given[3] = "axolotl"
    assert run([*given, "--out", str(tmp_path / "b"), *model, "--option", "also=nothing"]) == 2
    error = capsys.readouterr().err
    assert "the pattern 'nothing' matches nothing in the model" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_every_weight_of_the_model_is_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "m").mkdir()
    llama().config.save_pretrained(tmp_path / "m")
    assert list(parameter_names(tmp_path / "m")) == PARAMETERS
