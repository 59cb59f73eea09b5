"""Who takes part: whatever has a name, a kind and a shape can be asked about; reasons are
values."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import spectail as st
from spectail.allocation.coverage import Candidate, cover
from spectail.allocation.left_out import Code, LeftOut, Reason, describe_left_out
from spectail.models.source import NOT_A_WEIGHT
from tests.allocation.conftest import layer, results


def plain(name: str, kind: str = "linear", rows: int = 64, cols: int = 64) -> Any:
    return SimpleNamespace(name=name, kind=kind, rows=rows, cols=cols)


def codes(coverage: Any) -> dict[str, Any]:
    return {layer.name: layer.why.code for layer in coverage.left_out}


def test_name_kind_and_shape_are_all_that_it_needs() -> None:
    layers = [
        plain("embed", "embedding"),
        plain("layers.0.up", "up"),
        plain("layers.0.norm"),
        plain("layers.0.dw", "conv", rows=64, cols=1),
        plain("layers.0.filter", "spectral"),
        plain("layers.0.table", NOT_A_WEIGHT),
        plain("stem"),
        plain("layers.0.down", "down"),
    ]
    found = cover(layers, inside_blocks=True, exclude=["*.down"])
    assert found.layers == (layers[1],)
    assert codes(found) == {
        "embed": Code.EMBEDDING,
        "layers.0.norm": Code.NORM,
        "layers.0.dw": Code.DEPTHWISE,
        "layers.0.filter": Code.SPECTRAL,
        "layers.0.table": Code.NO_WEIGHT,
        "stem": Code.OUTSIDE_BLOCKS,
        "layers.0.down": Code.EXCLUDED,
    }


def test_kernel_positions_and_the_reason_of_a_parameter_count_where_they_are_known() -> None:
    layers = [
        Candidate("layers.0.up", "up", 64, 64),
        Candidate("layers.0.conv1d", "conv", 64, 4, n_matrices=4),
        Candidate("layers.1.conv1d", "conv", 64, 4, n_matrices=5),
        Candidate("layers.0.table", NOT_A_WEIGHT, 64, 64, no_weight="a position table"),
    ]
    found = cover(layers, inside_blocks=True)
    assert codes(found) == {
        "layers.0.conv1d": Code.DEPTHWISE,
        "layers.0.table": Code.NO_WEIGHT,
    }
    assert found.left_out[1].reason == "a position table"


@pytest.mark.parametrize("kind", ["embedding", "head", "router", "lora"])
def test_named_layers_take_part_whatever_their_kind(kind: str) -> None:
    layers = [plain("a", kind), plain("b", kind), plain("c"), plain("p", NOT_A_WEIGHT)]
    found = cover(layers, inside_blocks=False, always={"a", "c", "p"})
    assert [layer.name for layer in found.layers] == ["a", "c"]
    assert found.layers[0].kind == kind
    found = cover(layers, inside_blocks=False, always={"a"}, exclude=["a"])
    assert codes(found)["a"] == Code.EXCLUDED


def test_a_reason_survives_json_with_its_code() -> None:
    layer = LeftOut("a", Reason(Code.NO_ALPHA, "no alpha: failed: x: y"))
    assert layer.reason == str(layer.why) == "no alpha: failed: x: y"
    assert layer.to_dict() == {"name": "a", "code": "no-alpha", "reason": "no alpha: failed: x: y"}
    assert LeftOut.from_dict(layer.to_dict()) == layer
    without = LeftOut.from_dict({"name": "a", "reason": "an embedding"})
    assert without.why == Reason(Code.OTHER, "an embedding")


def test_an_allocation_keeps_its_codes(tmp_path: Path) -> None:
    analysis = results(layer("lm_head", kind="head"), layer("layers.0.up"), layer("layers.1.up"))
    made = st.allocate(analysis, target="sparsity", budget=0.5)
    loaded = st.Allocation.load(made.save(tmp_path / "a.json"))
    assert loaded.left_out == made.left_out
    assert loaded.left_out[0].why.code == Code.HEAD


def test_an_unknown_code_is_refused() -> None:
    stored = {"name": "a", "code": "no-such-code", "reason": "an embedding"}
    made = st.allocate(results(layer("layers.0.up")), target="sparsity", budget=0.5).to_dict()
    with pytest.raises(st.AllocationError, match="a is left out by the code 'no-such-code'"):
        st.Allocation.from_dict(made | {"left_out": [stored]})


def test_layers_of_one_reason_share_a_line() -> None:
    head, norm = Reason(Code.HEAD, "the output head"), Reason(Code.NORM, "a norm")
    lines = describe_left_out([LeftOut(str(i), norm) for i in range(5)] + [LeftOut("h", head)])
    assert lines == ["left out, a norm: 0, 1, 2 and 2 more", "left out, the output head: h"]
