"""Parts of one weight get one value together, and the budget holds."""

import re
from collections.abc import Iterable

import pytest
import yaml
from torch import nn

import spectail as st
from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.auto_round import layer_config
from spectail.export.llm_compressor import pruning_recipe, quantization_recipe
from spectail.export.parts import by_module, module_name
from spectail.export.rates import factors
from spectail.export.torch_pruning import channel_ratios, pruning_ratio_dict
from spectail.models.naming.names import layer_name
from spectail.models.naming.stored import stored_name
from spectail.models.open import open_source
from tests.export.conftest import allocation
from tests.models.fused import FAMILIES


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("transformer.h.0.attn.c_attn.k", "transformer.h.0.attn.c_attn"),
        ("model.layers.0.self_attn.qkv_proj.v", "model.layers.0.self_attn.qkv_proj"),
        (
            "gpt_neox.layers.0.attention.query_key_value.q",
            "gpt_neox.layers.0.attention.query_key_value",
        ),
        ("model.layers.0.mlp.gate_up_proj.up", "model.layers.0.mlp.gate_up_proj"),
        ("blocks.0.attn.q", "blocks.0.attn.q"),
        ("layers.0.linear_attn.in_proj_qkvz.z", "layers.0.linear_attn.in_proj_qkvz"),
        ("layers.0.linear_attn.in_proj_ba.b", "layers.0.linear_attn.in_proj_ba"),
        ("encoder.layer.0.attention.self.in_proj.v", "encoder.layer.0.attention.self.in_proj"),
        ("layers.0.attn.gqkv_proj.gate", "layers.0.attn.gqkv_proj"),
        ("layers.0.mlp.Wi.up", "layers.0.mlp.Wi"),
        ("layers.0.mlp.gate", "layers.0.mlp.gate"),
        ("layers.0.self_attn.kv_proj.k", "layers.0.self_attn.kv_proj"),
        ("model.layers.0.mlp.experts.gate_up_proj[3].gate", None),
        ("attn.in_proj_weight.q", None),
        ("rnn.weight_ih_l0.i", None),
        ("model.layers.0.self_attn.q_proj.lora", None),
    ],
)
def test_the_module_that_holds_a_layer(layer: str, module: str | None) -> None:
    assert module_name(layer) == module


def test_sparsities_of_parts_are_averaged_by_numel() -> None:
    found = by_module(
        allocation({"h.0.attn.c_attn.q": 0.2, "h.0.attn.c_attn.k": 0.8, "h.0.mlp.c_fc": 0.3},
                   numel={"h.0.attn.c_attn.q": 3000, "h.0.attn.c_attn.k": 1000}),
        "x",
    )  # fmt: skip
    assert found == {
        "h.0.attn.c_attn": pytest.approx((0.2 * 3000 + 0.8 * 1000) / 4000, abs=1e-15),
        "h.0.mlp.c_fc": 0.3,
    }


@pytest.mark.parametrize(
    ("q", "k", "together"), [(2, 4, 3), (2, 8, 4), (3, 4, 3), (4, 4, 4), (2, 3, 2)]
)
def test_widths_of_parts_become_one_in_use_that_is_not_above_their_mean(
    q: int, k: int, together: int
) -> None:
    values = {"h.0.attn.c_attn.q": q, "h.0.attn.c_attn.k": k, "a": 2, "b": 3, "c": 4, "d": 8}
    assert by_module(allocation(values, "bits"), "x")["h.0.attn.c_attn"] == together


class _Apart(nn.Module):
    """Modules whose names are those of parts of a fused weight: what holds them has no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.ModuleDict({x: nn.Linear(32, 32) for x in "qkv"})})
        self.mlp = nn.ModuleDict(
            {"fc1": nn.ModuleDict({x: nn.Linear(32, 32) for x in ("gate", "up")})}
        )


def test_parts_that_are_modules_of_their_own_keep_their_names() -> None:
    model = _Apart()
    layers = [f"attn.qkv.{x}" for x in "qkv"] + ["mlp.fc1.gate", "mlp.fc1.up"]
    assert [x.name for x in st.analyze(model).layers] == layers
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    ratios = {name: 0.3 + i / 10 for i, name in enumerate(layers)}
    renamed = {f"model.{x}" if x else x: x for x in modules}
    cases: tuple[Iterable[str], ...] = (modules, iter(modules), renamed)
    for names in cases:
        live = [f"model.{x}" for x in layers] if isinstance(names, dict) else layers
        recipe = yaml.safe_load(pruning_recipe(allocation(ratios), names))
        [settings] = recipe["spectail_stage"]["pruning_modifiers"].values()
        found = dict(zip(settings["targets"], settings["sparsity"], strict=True))
        assert found == dict(zip(live, ratios.values(), strict=True))
    widths = {name: 2.0 + i % 3 for i, name in enumerate(layers)}
    bits = allocation(widths, "bits")
    assert {x: own["bits"] for x, own in layer_config(bits, modules).items()} == widths
    recipe = yaml.safe_load(quantization_recipe(bits, modules))
    [groups] = recipe["spectail_stage"]["quantization_modifiers"].values()
    assert {
        name: group["weights"]["num_bits"]
        for group in groups["config_groups"].values()
        for name in group["targets"]
    } == widths
    rates = Allocation.from_dict(allocation(ratios, "lr").to_dict() | {"budget": 1.0})
    by_name = factors(rates, parameters)
    for name in parameters:
        matching = [x for pattern, x in by_name.items() if re.search(pattern, name)]
        assert matching == [ratios[name.rpartition(".")[0]]]
    # Without the names of the modules nothing tells, but a module without a weight is refused.
    with pytest.raises(ExportError, match=r"the module attn\.qkv has no weight"):
        pruning_ratio_dict(channel_ratios(allocation(ratios)), model)


def test_layers_that_are_no_modules_are_named() -> None:
    values = {f"l.0.experts.down_proj[{i}]": 0.5 for i in range(7)}
    with pytest.raises(ExportError) as error:
        by_module(allocation(values), "llm-compressor")
    assert str(error.value) == (
        "llm-compressor addresses modules by name, and these layers are none: "
        "l.0.experts.down_proj[0], l.0.experts.down_proj[1], l.0.experts.down_proj[2], "
        "l.0.experts.down_proj[3], l.0.experts.down_proj[4] and 2 more; "
        "make the allocation without them, with exclude"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_a_fused_weight_knows_the_weight(family: str) -> None:
    pytest.importorskip("transformers")
    layers = open_source(FAMILIES[family].build()).layers
    assert [stored_name(x.name) for x in layers] == [layer_name(x.tensor.name) for x in layers]
