"""ONNX graphs: which constants are weights, which way round they lie and what they are called.

The graphs are written with onnx's helpers as torch's and TensorFlow's exporters write them;
onnx's own reference evaluator is the oracle of the orientation: the weights that are read
compute what the graph computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional

from spectail.errors import SourceError
from spectail.models.open import open_source


def random(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def save(path: Path, nodes: Any, constants: Any, shape: Sequence[int], **options: Any) -> Path:
    """Write a graph from x to y; constants are arrays by name."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], stored)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="test"
    )
    onnx.save(model, path, **options)
    return path


def node(
    kind: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: Any
) -> Any:
    return helper.make_node(kind, inputs, outputs, name, **attributes)


def run(path: Path, x: Any) -> Any:
    outputs: Any = ReferenceEvaluator(str(path)).run(None, {"x": x})
    return torch.from_numpy(np.array(outputs[0]))


def by_name(source: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in source.layers}


LINEAR = {
    "MatMul": ([node("MatMul", ["x", "w"], ["y"])], lambda w: w.T),
    "MatMul from the left": ([node("MatMul", ["w", "x"], ["y"])], None),
    "Gemm": ([node("Gemm", ["x", "w"], ["y"])], lambda w: w.T),
    "Gemm, transposed": ([node("Gemm", ["x", "w"], ["y"], transB=1)], lambda w: w),
    "Gemm, scaled": ([node("Gemm", ["x", "w"], ["y"], transB=1, alpha=0.5)], lambda w: w),
    "transposed before": (
        [node("Transpose", ["w"], ["v"], perm=[1, 0]), node("MatMul", ["x", "v"], ["y"])],
        lambda w: w,
    ),
    "transposed by default": (
        [node("Transpose", ["w"], ["v"]), node("MatMul", ["x", "v"], ["y"])],
        lambda w: w,
    ),
    "renamed before": (
        [node("Identity", ["w"], ["v"]), node("MatMul", ["x", "v"], ["y"])],
        lambda w: w.T,
    ),
    "converted before": (
        [node("Cast", ["w"], ["v"], to=1), node("MatMul", ["x", "v"], ["y"])],
        lambda w: w.T,
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_layer_is_out_by_in(case: str, tmp_path: Path) -> None:
    nodes, stored = LINEAR[case]
    weight = random(5, 7)  # (out, in)
    x = random(7, 3) if stored is None else random(3, 7)
    constant = weight if stored is None else np.ascontiguousarray(stored(weight))
    path = save(tmp_path / "m.onnx", nodes, {"w": constant}, list(x.shape))
    (layer,) = open_source(path).layers
    read = layer.read()[0]
    assert (layer.rows, layer.cols) == (5, 7)
    product = (
        read @ torch.from_numpy(x)
        if stored is None
        else functional.linear(torch.from_numpy(x), read)
    )
    torch.testing.assert_close(product, run(path, x))


def test_convolutions_embeddings_and_parameters(tmp_path: Path) -> None:
    constants = {
        "conv.weight": random(6, 4, 3, 3),
        "up.weight": random(6, 2, 2, 2),
        "scale": random(1, 2, 1, 1),
        "table.weight": random(9, 5),
        "ids": np.array([[1, 2], [3, 4]]),
    }
    nodes = [
        node("Conv", ["x", "conv.weight"], ["a"]),
        node("ConvTranspose", ["a", "up.weight"], ["b"]),
        node("Mul", ["b", "scale"], ["y"]),
        node("Gather", ["table.weight", "ids"], ["z"]),
    ]
    layers = by_name(open_source(save(tmp_path / "m.onnx", nodes, constants, [1, 4, 5, 5])))
    assert [(n, layers[n].kind) for n in ("conv", "up", "table")] == [
        ("conv", "conv"),
        ("up", "conv"),
        ("table", "embedding"),
    ]
    assert torch.equal(
        layers["conv"].read()[4], torch.from_numpy(constants["conv.weight"][:, :, 1, 1])
    )
    assert "does not multiply by it (Mul)" in layers["scale"].no_weight
    assert "ids" not in layers


SCOPES = {
    "a child of a list": ("/layers.0/layers.0.2/MatMul", "layers.0.2"),
    "nested": (
        "/bert/encoder/layer.11/attention/self/query/MatMul_1",
        "bert.encoder.layer.11.attention.self.query",
    ),
    "sequence in a sequence": (
        "/features/features.1/features.1.0/block/block.0/Conv",
        "features.1.0.block.0",
    ),
}


@pytest.mark.parametrize("case", SCOPES)
def test_a_name_that_an_exporter_made_up_is_replaced_by_the_module(
    case: str, tmp_path: Path
) -> None:
    scope, name = SCOPES[case]
    nodes = [node("MatMul", ["x", "onnx::MatMul_12"], ["y"], scope)]
    (layer,) = open_source(
        save(tmp_path / "m.onnx", nodes, {"onnx::MatMul_12": random(7, 5)}, [3, 7])
    ).layers
    assert layer.name == name


def test_the_bias_beside_it_tells_the_name(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "val_3"], ["a"], "node_7"),
        node("Add", ["h.2.mlp.fc.bias", "a"], ["y"]),
    ]
    constants = {"val_3": random(7, 5), "h.2.mlp.fc.bias": random(5)}
    (layer,) = open_source(save(tmp_path / "m.onnx", nodes, constants, [3, 7])).layers
    assert (layer.name, layer.block) == ("h.2.mlp.fc", 2)


def test_a_bias_that_an_exporter_merged_tells_nothing(tmp_path: Path) -> None:
    """Equal constants (biases of zeros) become one, under the name of the first."""
    nodes = [
        node("MatMul", ["x", "val_1"], ["a"], "/layers.0/fc/MatMul"),
        node("Add", ["a", "norm.bias"], ["b"]),
        node("MatMul", ["b", "val_2"], ["c"], "node_9"),
        node("Add", ["c", "norm.bias"], ["y"]),
    ]
    constants = {"val_1": random(7, 5), "val_2": random(5, 5), "norm.bias": np.zeros(5, np.float32)}
    layers = by_name(open_source(save(tmp_path / "m.onnx", nodes, constants, [3, 7])))
    assert list(layers) == ["layers.0.fc", "val_2"]


def test_an_output_layer_that_is_tied_to_the_embedding_has_no_row_of_its_own(
    tmp_path: Path,
) -> None:
    table = random(9, 5)
    nodes = [
        node("Gather", ["lm_head.weight", "ids"], ["e"], "/wte/Gather"),
        node("MatMul", ["x", "val_8"], ["y"], "/lm_head/MatMul"),
        node("MatMul", ["x", "val_9"], ["z"], "/other/MatMul"),
    ]
    constants = {
        "lm_head.weight": table,
        "ids": np.array([1]),
        "val_8": np.ascontiguousarray(table.T),
    }
    path = save(tmp_path / "m.onnx", nodes, constants | {"val_9": random(5, 9)}, [3, 5])
    layers = by_name(open_source(path))
    assert [(name, layer.kind) for name, layer in layers.items()] == [
        ("wte", "embedding"),
        ("other", "linear"),
    ]


def test_scopes_of_torch_export_and_names_of_tensorflow(tmp_path: Path) -> None:
    scoped = node("MatMul", ["x", "val_2"], ["a"], "node_MatMul_7")
    scoped.metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'att.0', 'att.0.q', 'linear_4']"
    )
    name = "model/dense_1/Cast/ReadVariableOp:0"
    nodes = [scoped, node("MatMul", ["a", name], ["y"])]
    layers = by_name(
        open_source(
            save(tmp_path / "m.onnx", nodes, {"val_2": random(7, 5), name: random(5, 4)}, [3, 7])
        )
    )
    assert list(layers) == ["att.0.q", "model.dense_1"]


def test_one_module_that_multiplies_twice(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "1"], ["a"], "/att/MatMul"),
        node("MatMul", ["a", "2"], ["y"], "/att/MatMul_1"),
    ]
    layers = by_name(
        open_source(
            save(tmp_path / "m.onnx", nodes, {"1": random(7, 5), "2": random(5, 4)}, [3, 7])
        )
    )
    assert [(name, layer.rows) for name, layer in layers.items()] == [("att", 5), ("att.2", 4)]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_have_torchs_names_and_gates(kind: str, tmp_path: Path) -> None:
    """Compared with torch's own module, whose gates are put into the
    order of ONNX's specification."""
    module = getattr(nn, kind)(4, 3, bidirectional=True, bias=False)
    order = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}[kind]
    state = module.state_dict()

    def stacked(which: Any) -> Any:
        ways = [state[f"weight_{which}_l0"], state[f"weight_{which}_l0_reverse"]]
        return torch.stack(
            [torch.cat([way.chunk(len(order))[i] for i in order]) for way in ways]
        ).numpy()

    nodes = [
        node(kind, ["x", "w", "r"], ["y"], f"/rnn/{kind}", hidden_size=3, direction="bidirectional")
    ]
    found = by_name(
        open_source(
            save(tmp_path / "m.onnx", nodes, {"w": stacked("ih"), "r": stacked("hh")}, [2, 1, 4])
        )
    )
    expected = by_name(open_source(nn.ModuleDict({"rnn": module})))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].read(), layer.read()) for name, layer in expected.items())


@pytest.mark.parametrize("per_axis", [False, True])
@pytest.mark.parametrize("zero", [0, 3])
def test_integers_with_scales_are_dequantised(per_axis: bool, zero: int, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(-100, 100, (7, 5)).astype(np.int8)
    scale = random(5) ** 2 + 0.01 if per_axis else np.float32(0.02)
    zeros = np.full(5, zero, np.int8) if per_axis else np.int8(zero)
    nodes = [
        node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    x = random(3, 7)
    path = save(
        tmp_path / "m.onnx",
        nodes,
        {"q": weight, "s": np.array(scale), "z": np.array(zeros)},
        [3, 7],
    )
    (layer,) = open_source(path).layers
    torch.testing.assert_close(
        functional.linear(torch.from_numpy(x), layer.read()[0]), run(path, x)
    )


def test_onnx_runtimes_dynamic_quantisation_and_packed_weights(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(0, 255, (7, 5)).astype(np.uint8)
    constants = {
        "fc.weight_quantized": weight,
        "fc.weight_scale": np.array(0.5, np.float32),
        "fc.weight_zero_point": np.array(128, np.uint8),
        "B": np.zeros((5, 1, 16), np.uint8),
        "scales": random(5, 1),
    }
    nodes = [
        node("MatMulInteger", ["x", "fc.weight_quantized", "xz", "fc.weight_zero_point"], ["a"]),
        node("MatMulNBits", ["a", "B", "scales"], ["y"], "/proj/MatMul_Q4", domain="com.microsoft"),
    ]
    layers = by_name(open_source(save(tmp_path / "m.onnx", nodes, constants, [3, 7])))
    assert list(layers) == ["fc", "B"]
    assert torch.equal(layers["fc"].read()[0], (torch.from_numpy(weight).float() - 128).T * 0.5)
    assert "integers of the operator MatMulNBits" in layers["B"].problem


def test_weights_in_a_file_of_their_own_are_read_by_ranges(tmp_path: Path) -> None:
    values = random(40, 50)
    nodes = [node("MatMul", ["x", "fc.weight"], ["y"])]
    save(
        tmp_path / "m.onnx",
        nodes,
        {"fc.weight": values},
        [3, 40],
        save_as_external_data=True,
        size_threshold=0,
        location="w",
    )
    source = open_source(tmp_path / "m.onnx")
    assert np.array_equal(source.layers[0].read()[0].numpy(), values.T)
    content = bytearray((tmp_path / "w").read_bytes())
    content[7] ^= 1
    (tmp_path / "w").write_bytes(content)
    assert open_source(tmp_path / "m.onnx").fingerprint != source.fingerprint
    with pytest.raises(SourceError, match="has changed since"):
        source.layers[0].read()
    (tmp_path / "w").unlink()
    with pytest.raises(SourceError, match=r"w, which holds weights of .* is missing"):
        open_source(tmp_path / "m.onnx")


def test_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], {"w": random(4, 5)}, [3, 4]
    )
    model = onnx.load(path)
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"'\.\./secret' outside of its own folder"):
        open_source(path)


def test_branches_and_constant_nodes(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [
            node(
                "Constant",
                [],
                ["/a/Constant_output_0"],
                value=numpy_helper.from_array(random(7, 5)),
            ),
            node("MatMul", ["x", "/a/Constant_output_0"], ["out"], "/a/MatMul"),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    nodes = [node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]
    layers = by_name(open_source(save(tmp_path / "m.onnx", nodes, {"yes": np.array(True)}, [3, 7])))
    assert np.array_equal(layers["a"].read()[0].numpy(), random(7, 5).T)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types(dtype: str, tmp_path: Path) -> None:
    values = torch.randn(4, 5).to(getattr(torch, dtype))
    number = {"float16": 10, "bfloat16": 16, "float64": 11}[dtype]
    path = save(
        tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], {"w": random(4, 5)}, [3, 4]
    )
    model = onnx.load(path)
    stored = model.graph.initializer[0]
    stored.data_type, stored.raw_data = number, values.view(torch.uint8).numpy().tobytes()
    path.write_bytes(model.SerializeToString())
    assert torch.equal(
        open_source(path).layers[0].read()[0],
        values.T.to(torch.float64 if dtype == "float64" else torch.float32),
    )


def test_a_missing_library_gives_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(
        tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], {"w": random(4, 5)}, [3, 4]
    )
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(SourceError, match="pip install onnx"):
        open_source(path)


def test_a_graph_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="an ONNX graph without weights"):
        open_source(save(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], {}, [3]))
