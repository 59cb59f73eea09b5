"""ONNX: the constants that a graph multiplies by, as (out, in) under the names of their modules.

The ``onnx`` library parses the file, which stays in memory and may have 2 GiB at most. Weights in
separate files are read by ranges. The operators are those of the ONNX specification and of ONNX
Runtime's list of contributed operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectail.errors import SourceError
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.onnx_graph import Graph, Use, attribute, is_machine_name, readable
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray, permuted_tensor, row_major, stored_tensor
from spectail.models.formats.remote_path import open_file
from spectail.models.lazy_tensor import Index, LazyTensor, dtype_name, piece_of, unreadable

_TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
}
"""Numbers of ``TensorProto.DataType``, and torch's types."""
_EXTERNAL = 1
"""``TensorProto.DataLocation`` of values in another file."""
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Positions of torch's gates (LSTM: i, f, g, o; GRU: r, z, n) in ONNX's order (i, o, f, c; z, r,
h)."""
_SCALED_INPUTS = {"QLinearMatMul": (4, 5), "QLinearConv": (4, 5), "QGemm": (4, 5)}
"""Operators on integers, and which of their inputs are the weight's scale and zero point."""


@dataclass(frozen=True)
class _Scales:
    """How integers become weights: (q - zero) * scale, one pair for all or one per slice."""

    scale: Tensor
    zero: Tensor
    axis: int


def read_onnx(files: Sequence[ReadableFile]) -> Contents:
    """Describe the weights of an ONNX model."""
    (file,) = files
    model = _parsed(file)
    reader = _Reader(file, Graph().add(model.graph))
    tensors = [
        tensor for item in reader.graph.in_order_of_use() for tensor in reader.described(*item)
    ]
    if not tensors:
        raise SourceError(
            f"{file.path} is an ONNX graph without weights; expected a model with initialisers"
        )
    return Contents(_with_own_names(_tied(tensors)), more_files=tuple(reader.external.values()))


def _parsed(file: ReadableFile) -> Any:
    """Parse the file with the onnx library, which is an optional dependency."""
    try:
        import onnx
    except ImportError:
        raise SourceError(f"reading {file.path} needs the onnx library: pip install onnx") from None
    if file.size == 0:
        raise SourceError(f"{file.path} is empty; expected an ONNX model")
    try:
        model = onnx.load_model_from_string(bytes(file.read(0, file.size)))
    except Exception:  # noqa: BLE001 - protobuf's errors have no public base class
        model = None
    if model is None or not model.graph.node:
        raise SourceError(
            f"{file.path} is not a readable ONNX model: it is truncated or of another format"
        )
    return model


class _Reader:
    """Describes the constants of one graph."""

    def __init__(self, file: ReadableFile, graph: Graph) -> None:
        """Start with the constants of a graph that was read from a file."""
        self.file, self.graph = file, graph
        self.external: dict[str, ReadableFile] = {}
        self.protos = {name: proto for name, proto, _ in graph.constants}
        self.recurrent: dict[str, list[str]] = {}
        """Outputs of the recurrent nodes of each module, in order: its layers."""

    def described(self, name: str, proto: Any, listed: bool) -> list[LazyTensor]:
        """Describe a constant; the list is empty for one that is no parameter of the model."""
        if self.graph.is_helper(name):
            return []
        if len(proto.dims) < 2:
            # Vectors are only counted. Constants of other types are shapes or indices.
            return (
                [self._stored(name, proto)] if listed and proto.data_type in {1, 10, 11, 16} else []
            )
        uses = list(self.graph.uses(name))
        use = next((use for use in uses if use.is_matrix), None)
        if use is None:
            if not is_machine_name(name) and self.graph.reaches_matrix(name):
                # The weight is sliced or joined with others before its use: keep its stored form.
                return [self._stored(readable(name), proto)]
            if not listed or is_machine_name(name):
                # A constant that the exporter made up, such as a mask or a shape.
                return []
            users = ", ".join(sorted({use.node.op_type for use in uses})) or "no operator"
            return [
                replace(
                    self._stored(readable(name), proto),
                    no_weight=f"the graph does not multiply by it ({users})",
                )
            ]
        return self._weight(name, proto, use)

    def _weight(self, name: str, proto: Any, use: Use) -> list[LazyTensor]:
        """Describe a constant that an operator multiplies by."""
        module = self.graph.module_of(use)
        own = readable(name)
        # An embedding that is stored under the name of the output layer that it is tied to.
        alias = (
            use.node.op_type == "Gather"
            and own.endswith(".weight")
            and not own.startswith(f"{module}.")
        )
        called = f"{module}.weight" if module and (is_machine_name(name) or alias) else own
        stored = self._unpacked(self._stored(called, proto), name, use)
        if use.node.op_type in _GATES:
            return self._recurrent(stored, module, use)
        for step in use.steps:
            if step.op_type == "Transpose":
                axes = attribute(step, "perm", list(range(len(stored.shape)))[::-1])
                stored = permuted_tensor(stored, axes)
        return [_oriented(stored, use)]

    def _stored(self, name: str, proto: Any) -> LazyTensor:
        """Describe the constant as it is stored."""
        shape = tuple(proto.dims)
        dtype = _TYPES.get(proto.data_type)
        if dtype is None:
            return unreadable(
                name,
                shape,
                "uint8",
                f"stored as ONNX type {proto.data_type}, which is not read here",
            )
        if proto.data_location == _EXTERNAL:
            return self._external(name, proto, dtype)
        size = torch.Size(shape).numel() * dtype.itemsize
        if proto.HasField("raw_data") and len(proto.raw_data) != size:
            raise SourceError(
                f"{self.file.path} is damaged: "
                f"{name!r} has {len(proto.raw_data)} bytes and needs {size}"
            )
        return LazyTensor(name, shape, dtype_name(dtype), partial(_read_proto, proto, dtype))

    def _external(self, name: str, proto: Any, dtype: torch.dtype) -> LazyTensor:
        """Describe a constant whose values lie in another file of the folder."""
        info = {item.key: item.value for item in proto.external_data}
        location = PurePosixPath(info.get("location", ""))
        # A downloaded model must not make this read any other file of the user's.
        if location.is_absolute() or ".." in location.parts or not location.parts:
            raise SourceError(
                f"{self.file.path} names the file {str(location)!r} outside of its own folder"
            )
        path = self.file.path.parent / location
        if not path.is_file():
            raise SourceError(
                f"{location}, which holds weights of {self.file.path}, is missing; "
                "download the model again"
            )
        if str(location) not in self.external:
            self.external[str(location)] = open_file(path)
        shape = tuple(proto.dims)
        array = StoredArray(
            self.external[str(location)], int(info.get("offset", 0)), dtype, shape, row_major(shape)
        )
        if array.end > array.file.size:
            raise SourceError(
                f"{path} is truncated: {name!r} does not fit into it; download it again"
            )
        return stored_tensor(name, array)

    def _unpacked(self, stored: LazyTensor, name: str, use: Use) -> LazyTensor:
        """Dequantise integers by the scales that the graph states; packed integers are not read."""
        if stored.is_floating or stored.problem:
            return stored
        names = self._scale_names(name, use)
        values = [self.protos.get(part) if part else None for part in names]
        if values[0] is None:
            problem = f"integers of the operator {use.node.op_type}, which are not dequantised here"
            return replace(stored, problem=problem)
        steps = [step for step in use.steps if step.op_type == "DequantizeLinear"]
        if steps and attribute(steps[0], "block_size", 0):
            return replace(
                stored, problem="integers with a scale per block, which are not dequantised here"
            )
        scale = self._stored("", values[0]).read(())
        zero = self._stored("", values[1]).read(()) if values[1] is not None else torch.zeros(())
        last = use.node.op_type in {
            "MatMulInteger",
            "QLinearMatMul",
            "QGemm",
            "DynamicQuantizeMatMul",
        }
        # DequantizeLinear states the axis (1 by default). Matrix products have a scale per column,
        # and convolutions have one per output, which is the first dimension.
        axis = attribute(steps[0], "axis", 1) if steps else len(stored.shape) - 1 if last else 0
        scales = _Scales(scale.float(), zero.float(), axis % len(stored.shape))
        return replace(stored, dtype="float32", read=partial(_dequantised, stored.read, scales))

    def _scale_names(self, name: str, use: Use) -> tuple[str, str]:
        """Return the names of scale and zero point, from an operator's inputs or by convention."""
        for step in use.steps:
            if step.op_type == "DequantizeLinear":
                return step.input[1], step.input[2] if len(step.input) > 2 else ""
        if use.node.op_type in _SCALED_INPUTS:
            scale, zero = _SCALED_INPUTS[use.node.op_type]
            return use.node.input[scale], use.node.input[zero]
        stem = name.removesuffix("_quantized")
        return f"{stem}_scale", f"{stem}_zero_point"

    def _recurrent(self, stored: LazyTensor, module: str, use: Use) -> list[LazyTensor]:
        """Give W or R of a recurrent operator torch's names and gate order, one per direction."""
        layers = self.recurrent.setdefault(module, [])
        # An output may be left out, with an empty name. Any other of them identifies the node.
        if use.node.output[0] not in layers and use.node.output[-1] not in layers:
            layers.append(next(filter(None, use.node.output)))
        layer = layers.index(next(filter(None, use.node.output)))
        which = "ih" if use.position == 1 else "hh"
        gates = _GATES[use.node.op_type]
        prefix = f"{module}." if module else ""
        if len(stored.shape) < 3:
            read = partial(_read_gates, stored.read, None, gates)
            return [
                replace(stored, name=f"{prefix}weight_{which}_l{layer}", read=read, no_weight="")
            ]
        return [
            replace(
                stored,
                name=f"{prefix}weight_{which}_l{layer}{'_reverse' if direction else ''}",
                shape=stored.shape[1:],
                read=partial(_read_gates, stored.read, direction, gates),
                identity=None,
                no_weight="",
            )
            for direction in range(stored.shape[0])
        ]


def _oriented(stored: LazyTensor, use: Use) -> LazyTensor:
    """Bring a constant into torch's orientation, (out, in)."""
    kind = use.node.op_type
    if kind in {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "DeformConv"}:
        return replace(stored, layout="conv", no_weight="")
    if kind in {"Gather", "GatherBlockQuantized"}:
        return replace(stored, layout="embedding" if len(stored.shape) == 2 else None)
    first = use.position == 0
    gemm = kind in {"Gemm", "QGemm", "FusedGemm"}
    flag = attribute(use.node, "transA" if first else "transB", 0)
    # y = x W has W as (in, out), and y = W x as (out, in). A transposed operand turns this round.
    in_out = first == bool(flag)
    if kind in {"Attention", "MatMulNBits", "Einsum"}:
        in_out = kind == "Attention"
    weight = replace(stored, no_weight="")
    if in_out:
        weight = permuted_tensor(
            weight, [*range(len(stored.shape) - 2), len(stored.shape) - 1, len(stored.shape) - 2]
        )
    # Gemm computes alpha x W: the factor belongs to the weight.
    factor = float(attribute(use.node, "alpha", 1.0)) if gemm or kind == "FusedMatMul" else 1.0
    if factor != 1.0:
        weight = replace(weight, read=partial(_scaled, weight.read, factor))
    return weight


def _scaled(read: Callable[[Index], Tensor], factor: float, index: Index) -> Tensor:
    """Read a weight and multiply it by a factor."""
    return read(index) * factor


def _read_gates(
    read: Callable[[Index], Tensor], direction: int | None, gates: tuple[int, ...], index: Index
) -> Tensor:
    """Read one direction of a recurrent weight and put its gates in torch's order."""
    parts = read(() if direction is None else (direction,)).chunk(len(gates))
    return piece_of(torch.cat([parts[gate] for gate in gates]), index)


def _dequantised(read: Callable[[Index], Tensor], scales: _Scales, index: Index) -> Tensor:
    """Read integers and compute (q - zero) * scale."""
    whole = read(()).float()
    along = [1] * whole.ndim
    along[scales.axis] = -1
    scale, zero = (
        part.reshape(along) if part.numel() > 1 else part.reshape(())
        for part in (scales.scale, scales.zero)
    )
    return piece_of((whole - zero) * scale, index)


def _read_proto(proto: Any, dtype: torch.dtype, index: Index) -> Tensor:
    """Return the values of a tensor from the parsed graph."""
    if proto.HasField("raw_data"):
        content = np.frombuffer(bytearray(proto.raw_data), np.uint8)
        flat = (
            torch.from_numpy(content).view(dtype) if content.size else torch.empty(0, dtype=dtype)
        )
    else:
        import onnx.numpy_helper

        try:
            array = np.ascontiguousarray(onnx.numpy_helper.to_array(proto)).reshape(-1)
        except (ValueError, TypeError) as error:
            raise SourceError(
                f"the values of {proto.name!r} cannot be read ({error}): the file is damaged"
            ) from None
        # numpy has no bfloat16 or float8 of its own; as bytes they pass to torch unchanged.
        flat = torch.from_numpy(array.view(np.uint8).copy()).view(dtype)
    return piece_of(flat.reshape(tuple(proto.dims)), index)


def _tied(tensors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Mark output layers that are copies of an embedding as tied to it.

    Exporters transpose a tied embedding into a constant of its own, so that only the values show
    it.
    """
    tables = [tensor for tensor in tensors if tensor.layout == "embedding" and not tensor.problem]
    result = []
    for tensor in tensors:
        mate = next((table for table in tables if _is_copy(tensor, table)), None)
        shared = mate or (tensor if tensor in tables else None)
        result.append(replace(tensor, identity=("onnx", shared.name)) if shared else tensor)
    return result


def _is_copy(tensor: LazyTensor, table: LazyTensor) -> bool:
    """Whether a weight holds the same values as an embedding."""
    if (
        tensor is table
        or tensor.shape != table.shape
        or tensor.problem
        or tensor.layout is not None
    ):
        return False
    # Both are read whole. Only tensors of the same shape as an embedding come so far.
    return torch.equal(tensor.read(()), table.read(()))


def _with_own_names(tensors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Number the weights of operators that share a module's name."""
    seen: dict[str, int] = {}
    result = []
    for tensor in tensors:
        count = seen.get(tensor.name, 0)
        seen[tensor.name] = count + 1
        stem = tensor.name.removesuffix(".weight")
        result.append(replace(tensor, name=f"{stem}.{count + 1}.weight") if count else tensor)
    return result


def _looks_like(start: bytes, size: int) -> bool:
    """Whether a file begins as a ModelProto: a small version as field 1, then field 2."""
    return start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] == b"\x12"


FORMAT = Format(
    name="an ONNX model",
    suffixes=(".onnx",),
    read=read_onnx,
    looks_like=_looks_like,
)
