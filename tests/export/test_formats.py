"""Formats, not only widths, in the words of every tool that takes bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from spectail.allocation.allocation import Allocation, LayerValue
from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.cli import run
from spectail.core.quantisers import QUANTISERS
from spectail.core.quantisers.integers import Integers, SymmetricIntegers
from spectail.errors import ExportError
from spectail.export.auto_round import layer_config
from spectail.export.formats import integers_of, is_k_quant
from spectail.export.llama_cpp import tensor_types
from spectail.export.llm_compressor import quantization_recipe
from spectail.export.torchao import widths
from tests.export.conftest import allocation, llama_names
from tests.language import llama

MODULES = [name for name, _ in llama().named_modules()]
BITS = {
    "int2": 2.25, "int4": 4.25, "int2-g64": 2.5, "int3-g64": 3.5, "w4a16": 4.125, "w8a16": 8.125,
    "fp8": 8.03, "nvfp4": 4.5, "q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5, "q5_k": 5.5,
    "q6_k": 6.5625,
}  # fmt: skip


def chosen(
    formats: dict[str, str], numel: dict[str, int] | None = None, left_out: tuple[str, ...] = ()
) -> Allocation:
    """An allocation of these formats."""
    shares = tuple(
        LayerValue(name, BITS[own], name, 2.0, (numel or {}).get(name, 4096), own)
        for name, own in formats.items()
    )
    left = tuple(LeftOut(name, Reason(Code.EXCLUDED, "excluded")) for name in left_out)
    return Allocation(target="bits", budget=9.0, settings={}, shares=shares, left_out=left)


def mixed(*formats: str) -> dict[str, str]:
    """The layers of the small Llama in these formats by turns, alike where vLLM needs it."""
    kinds = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 1, "up_proj": 1, "o_proj": 2}
    return {
        name: formats[(kinds.get(name.rpartition(".")[2], 3) + i // 7) % len(formats)]
        for i, name in enumerate(llama_names())
    }


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda q: q.name)
def test_every_format_is_read_from_its_name(quantiser: Any) -> None:
    found = integers_of(quantiser.name)
    if isinstance(quantiser, Integers | SymmetricIntegers):
        assert found is not None
        assert (found.bits, found.group) == (quantiser.bits, quantiser.group)
        assert found.symmetric is isinstance(quantiser, SymmetricIntegers)
    else:
        assert found is None
    assert is_k_quant(quantiser.name) is (type(quantiser).__name__ == "KQuant")


def _groups(recipe: str, modifier: str = "QuantizationModifier") -> Any:
    (stage,) = yaml.safe_load(recipe).values()
    return stage["quantization_modifiers"][modifier]["config_groups"]


def test_llm_compressor_has_a_group_for_each_format() -> None:
    formats = mixed("fp8", "nvfp4", "w4a16", "int3-g64")
    groups = _groups(quantization_recipe(chosen(formats), MODULES))
    assert {m: name for name, group in groups.items() for m in group["targets"]} == formats
    weights = {name: group["weights"] for name, group in groups.items()}
    assert weights["w4a16"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128
    }  # fmt: skip
    assert weights["int3-g64"] == {
        "num_bits": 3, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64
    }  # fmt: skip
    assert weights["fp8"]["strategy"] == "channel"
    assert weights["nvfp4"]["group_size"] == 16
    assert all(set(group) == {"weights", "targets"} for group in groups.values())


def test_llm_compressor_quantises_inputs_if_asked() -> None:
    formats = mixed("fp8", "nvfp4", "w4a16")
    groups = _groups(quantization_recipe(chosen(formats), MODULES, activations=True))
    assert groups["fp8"]["input_activations"]["dynamic"] is True
    assert groups["nvfp4"]["input_activations"]["dynamic"] == "local"
    assert "input_activations" not in groups["w4a16"]


def test_what_vllm_runs_as_one_layer_has_one_format() -> None:
    formats = dict.fromkeys(["a.q_proj", "a.k_proj", "a.v_proj", "a.o_proj"], "fp8")
    formats |= {"a.q_proj": "nvfp4", "b.experts.0.up_proj": "int2", "b.experts.1.up_proj": "fp8",
                "b.experts.1.down_proj": "w4a16"}  # fmt: skip
    # The mean of q, k and v is below 8.03 bits, and that of the experts 4.8.
    together = {"a.q_proj": "nvfp4", "a.k_proj": "nvfp4", "a.v_proj": "nvfp4", "a.o_proj": "fp8"}
    together |= dict.fromkeys([name for name in formats if "experts" in name], "nvfp4")
    groups = _groups(quantization_recipe(chosen(formats)))
    assert {m: name for name, group in groups.items() for m in group["targets"]} == together


def test_torchao_and_auto_round_say_the_format_of_every_module() -> None:
    formats = mixed("w4a16", "w8a16", "int4")
    assert widths(chosen(formats)) == {"formats": formats}
    found = layer_config(chosen(formats, left_out=("model.layers.0.mlp.router",)), MODULES)
    assert {name: (x["bits"], x["sym"]) for name, x in found.items()} == {
        name: {"w4a16": (4, True), "w8a16": (8, True), "int4": (4, False)}[own]
        for name, own in formats.items()
    }


def test_auto_round_is_told_what_stays() -> None:
    names = llama_names()
    made = chosen(dict.fromkeys(names[1:], "w4a16"), left_out=(names[0], "lm.extra"))
    for modules in (None, MODULES):
        found = layer_config(made, modules)
        assert found[names[0]]["bits"] == 16
        assert ("lm.extra" in found) is (modules is None)
    bits = {name: (2, 3, 4, 8, 16)[i % 5] for i, name in enumerate(names)}
    found = layer_config(allocation(bits, "bits"), MODULES, group_size=32)
    assert {name: x["bits"] for name, x in found.items()} == bits
    assert {x.get("group_size") for x in found.values()} == {32, None}


def test_llama_cpp_has_k_quants() -> None:
    found = tensor_types(chosen(mixed("q2_k", "q4_k", "q6_k")))
    assert {line.rpartition("=")[2] for line in found} == {"q2_K", "q4_K", "q6_K"}
    experts = {f"model.layers.0.mlp.experts.{i}.up_proj": "q6_k" for i in range(3)}
    experts["model.layers.0.mlp.experts.3.up_proj"] = "q2_k"
    # The mean is 5.6 bits; q6_k has more, and of those below it only q4_k is in use elsewhere.
    other = {"model.layers.0.mlp.down_proj": "q4_k"}
    assert tensor_types(chosen(experts | other))[0] == r"^blk\.0\.ffn_up_exps\.weight$=q4_K"


@pytest.mark.parametrize("numel", [1, 1000, 10**9])
def test_parts_share_a_format_within_the_budget(numel: int) -> None:
    formats = {"h.0.attn.c_attn.q": "fp8", "h.0.attn.c_attn.k": "int2", "h.1.mlp.c_fc": "w4a16"}
    made = chosen(formats, {"h.0.attn.c_attn.q": 1000, "h.0.attn.c_attn.k": numel})
    shared = widths(made)["formats"]["h.0.attn.c_attn"]
    mean = (BITS["fp8"] * 1000 + BITS["int2"] * numel) / (1000 + numel)
    assert shared == max((f for f in formats.values() if BITS[f] <= mean), key=BITS.__getitem__)


@pytest.mark.parametrize(
    ("tool", "own", "message"),
    [
        (quantization_recipe, "q4_k", "llm-compressor has no format q4_k: allocate again"),
        (widths, "q4_k", "torchao has no format q4_k: allocate again with --choices among int2 to"),
        (layer_config, "fp8", "auto-round has no format fp8: .* int2, int3, int4, int8, w4a16"),
        (tensor_types, "nvfp4", "llama.cpp has no format nvfp4"),
        (tensor_types, "w4a16", "llama.cpp has no format w4a16: .* q2_k, q3_k, q4_k, q5_k, q6_k"),
    ],
)  # fmt: skip
def test_a_format_that_a_tool_does_not_have(
    tool: Callable[..., Any], own: str, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        tool(chosen(dict.fromkeys(llama_names(), own)))


def test_what_cannot_be_exported() -> None:
    half = Allocation.from_dict(
        chosen({"a": "fp8"}).to_dict()
        | {"shares": [*chosen({"a": "fp8"}).to_dict()["shares"],
                      *allocation({"b": 4.0}, "bits").to_dict()["shares"]]}
    )  # fmt: skip
    with pytest.raises(ExportError, match="the allocation has formats, but none for b"):
        widths(half)
    with pytest.raises(ExportError, match="activations go with formats: widths are of weights al"):
        quantization_recipe(allocation({"a": 4}, "bits"), activations=True)
    with pytest.raises(ExportError, match="auto-round stores no 5 bits: allocate again with --cho"):
        layer_config(allocation({"a": 5}, "bits"))
    with pytest.raises(ExportError, match=r"the model has no module nowhere\.fc: give the folder"):
        layer_config(chosen({"nowhere.fc": "w4a16"}), MODULES)
    with pytest.raises(ExportError, match=r"auto-round addresses modules .* none: e\.up_proj\[0\]"):
        layer_config(chosen({"e.up_proj[0]": "w4a16"}))


@pytest.mark.parametrize(
    ("to", "flag", "works"),
    [
        ("llm-compressor", ["--option", "activations=true"], True),
        ("llm-compressor", ["--group-size", "32"], False),
        ("auto-round", ["--group-size", "32"], False),
        ("torchao", ["--group-size", "32"], False),
        ("torchao", [], True),
    ],
)
def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, flag: list[str], works: bool
) -> None:
    chosen(mixed("w4a16", "w8a16")).save(tmp_path / "bits.json")
    out = tmp_path / "out"
    code = run(["export", str(tmp_path / "bits.json"), "--to", to, "--out", str(out), *flag])
    assert code == (0 if works else 2)
    if not works:
        assert f"--group-size has no effect on {to} for this allocation" in capsys.readouterr().err
    elif to == "torchao":
        assert json.loads(out.read_text())["formats"] == mixed("w4a16", "w8a16")
