"""Find out what an ONNX graph does with a constant: the operator that uses it, and its module.

Exporters fold the transposes of linear layers into the constant and then call it
``onnx::MatMul_123`` or ``val_7``. The scope of the node that uses it still names the module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MATRIX_INPUTS: dict[str, tuple[int, ...]] = {
    "MatMul": (1, 0),
    "Gemm": (1, 0),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gather": (0,),
    "Einsum": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "MatMulInteger": (1,),
    "ConvInteger": (1,),
    "DynamicQuantizeMatMul": (1,),
    "QLinearMatMul": (3,),
    "QLinearConv": (3,),
    "QGemm": (3,),
    "MatMulNBits": (1,),
    "FusedMatMul": (1, 0),
    "FusedGemm": (1, 0),
    "FusedConv": (1,),
    "Attention": (1,),
    "GatherBlockQuantized": (0,),
    "DeformConv": (1,),
}
"""Inputs of the operators that multiply by a matrix or look rows up in one."""
_PASSED_ON = {"Identity", "Cast", "Transpose", "DequantizeLinear", "Squeeze", "Unsqueeze"}
"""Operators through which a constant reaches the one that uses it."""
_REARRANGED = _PASSED_ON | {"Slice", "Concat", "Reshape", "Split", "Pad"}
"""Operators that rearrange a constant: their output has the same weights in an order that is not
followed here."""
_HELPERS = {"DequantizeLinear": 1, "QuantizeLinear": 1, "MatMulNBits": 2, "GatherBlockQuantized": 2}
"""The first of an operator's inputs that are scales and zero points and no tensors of the model."""
_MACHINE_NAME = re.compile(
    r"^(?:onnx::\w+_\d+|\d+|val_\d+|_v_\d+|(?:.*/)?Constant(?:_\d+)?_output_\d+|.*_output_\d+"
    r"|const\w*_\d+|t_\d+|[\w/]*[Tt]ranspose\w*(?::\d+)?|W\d+|initializer_\d+)$"
)
"""Names that exporters make up."""
_TENSORFLOW = re.compile(
    r"(?:/(?:Cast|MatMul|Conv2D|convolution|depthwise|Tensordot|BiasAdd|embedding_lookup))*"
    r"/Read\w*Op(?:/\w+)*$"
)
"""The end of a constant's name in graphs that come from TensorFlow."""


@dataclass(frozen=True)
class Use:
    """One operator that takes a constant, as which input, and through which other operators."""

    node: Any
    position: int
    steps: tuple[Any, ...] = ()
    """Nodes that the constant went through."""

    @property
    def is_matrix(self) -> bool:
        """Whether the operator multiplies by the constant or looks rows up in it."""
        return self.position in MATRIX_INPUTS.get(self.node.op_type, ())


@dataclass
class Graph:
    """The nodes of a model and of its inner graphs, indexed by their inputs."""

    takers: dict[str, list[tuple[Any, int]]] = field(default_factory=dict)
    """The nodes that take a value, and as which input, by the value's name."""
    nodes: list[Any] = field(default_factory=list)
    constants: list[tuple[str, Any, bool]] = field(default_factory=list)
    """Name, tensor and whether the model lists it as a parameter, in order."""

    def add(self, graph: Any) -> Graph:
        """Add a graph, and those of its conditional branches and loops."""
        self.constants += [(tensor.name, tensor, True) for tensor in graph.initializer]
        for node in graph.node:
            self.nodes.append(node)
            # Names are unique over a graph and its inner graphs, so one index serves all of them.
            for position, name in enumerate(node.input):
                self.takers.setdefault(name, []).append((node, position))
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants.append((node.output[0], attribute.t, False))
                for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    self.add(inner)
        return self

    def uses(self, name: str, steps: tuple[Any, ...] = ()) -> Iterator[Use]:
        """Yield the operators that a constant reaches."""
        for node, position in self.takers.get(name, []):
            # The limit ends chains that a damaged graph has closed to a ring.
            if node.op_type in _PASSED_ON and position == 0 and len(steps) < 8:
                yield from self.uses(node.output[0], (*steps, node))
            else:
                yield Use(node, position, steps)

    def reaches_matrix(self, name: str, depth: int = 12) -> bool:
        """Whether an operator multiplies by a constant after it was rearranged in any way."""
        for node, position in self.takers.get(name, []) if depth else []:
            if position in MATRIX_INPUTS.get(node.op_type, ()) and (
                # Input 0 is usually what flows through the model:
                # there, a rearranged constant is no weight.
                position > 0 or node.op_type == "Gather"
            ):
                return True
            rearranged = node.op_type in _REARRANGED and (position == 0 or node.op_type == "Concat")
            if rearranged and any(self.reaches_matrix(output, depth - 1) for output in node.output):
                return True
        return False

    def in_order_of_use(self) -> list[tuple[str, Any, bool]]:
        """List the constants in the order in which the graph takes them, which is the model's."""
        # From the last node to the first, so that the first use is the one that remains.
        order = {
            name: number
            for number, node in reversed(list(enumerate(self.nodes)))
            for name in node.input
        }
        return sorted(self.constants, key=lambda item: order.get(item[0], len(self.nodes)))

    def is_helper(self, name: str) -> bool:
        """Whether a constant only serves to unpack another one (scales, zero points)."""
        takers = self.takers.get(name, [])
        return bool(takers) and all(
            position >= _HELPERS.get(node.op_type, 99) for node, position in takers
        )

    def module_of(self, use: Use) -> str:
        """Return the module that an operator belongs to, by scope or bias; empty if unknown."""
        return _by_scopes(use.node) or _by_name(use.node) or self._by_bias(use)

    def _by_bias(self, use: Use) -> str:
        """Return the module's name from its bias: an input of the operator, or added to its output.

        Exporters merge equal constants. A bias that several operators take (of zeros, for example)
        is therefore not used.
        """
        after = [
            node
            for node, _ in self.takers.get(next(iter(use.node.output), ""), [])
            if node.op_type == "Add"
        ]
        # Gemm and Conv take their bias as the third input; after a MatMul it is added.
        inputs = [*list(use.node.input)[2:3], *(name for node in after for name in node.input)]
        known = {name for name, _, listed in self.constants if listed}
        single = [name for name in inputs if name in known and len(self.takers[name]) == 1]
        found = [name.removesuffix(".bias") for name in single if name.endswith(".bias")]
        return found[0] if found else ""


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return an attribute of a node: a number, a list of numbers or a text."""
    for item in node.attribute:
        if item.name == name:
            # Numbers of ``AttributeProto.AttributeType``.
            return {1: item.f, 2: item.i, 3: item.s, 6: list(item.floats), 7: list(item.ints)}.get(
                item.type, default
            )
    return default


def is_machine_name(name: str) -> bool:
    """Whether an exporter made a name up.

    >>> is_machine_name("onnx::MatMul_460"), is_machine_name("layers.0.weight")
    (True, False)
    """
    return _MACHINE_NAME.match(name) is not None


def readable(name: str) -> str:
    """Return a constant's own name in torch's form: dots between modules, ``weight`` at the end.

    >>> readable("model/dense_1/Cast/ReadVariableOp:0"), readable("fc.weight_quantized")
    ('model.dense_1.weight', 'fc.weight')
    """
    name = _TENSORFLOW.sub("/weight", re.sub(r":\d+$", "", name))
    name = re.sub(r"/kernel$", "/weight", name)
    return re.sub(r"_quantized$", "", name).strip("/").replace("/", ".")


def _by_scopes(node: Any) -> str:
    """Return the module from the scopes that torch.export leaves: the last but one of them.

    The last scope is the operator itself.
    """
    texts = [item.value for item in node.metadata_props if item.key.endswith("name_scopes")]
    try:
        scopes = ast.literal_eval(texts[0]) if texts else []
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def _by_name(node: Any) -> str:
    """Return the module from a node's name: ``/layers.0/layers.0.1/MatMul`` is in ``layers.0.1``.

    A piece that begins with the whole piece before it is a child of a list or sequence.
    """
    pieces = [piece for piece in node.name.split("/")[:-1] if piece]
    followed = zip(pieces, [*pieces[1:], ""], strict=False)
    kept = [piece for piece, following in followed if not following.startswith(piece + ".")]
    return ".".join(kept)
