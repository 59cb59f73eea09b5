"""Files that no program would write, built byte by byte from the formats' descriptions."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgpack
import numpy as np
import torch
from onnx import TensorProto, helper

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Attack: TypeAlias = Callable[[Path], Path]
"""Writes an input into a folder and returns what is opened."""
HUGE = 2**40
DEEP = 100_000


def one_file(name: str, make: Callable[[], bytes]) -> Attack:
    """An attack of one file."""
    return lambda folder: put(folder, name, make())


def inside(key: str, depth: int) -> dict[str, Any]:
    """A dict within a dict within a dict."""
    value: dict[str, Any] = {"num_attention_heads": 4}
    for _ in range(depth):
        value = {key: value}
    return value


def put(folder: Path, name: str, content: bytes | str) -> Path:
    """Write a file and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    )
    return path


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A file with this header, as JSON or as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: Any, start: int, stop: int, dtype: Any = "F32") -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def tensors(shapes: Shapes) -> bytes:
    """A valid file of zeros in these shapes."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape, dtype=object))
        header[name] = entry(list(shape), at, at + size)
        at += size
    return safetensors(header, bytes(at))


def model_with(folder: Path, config: Any, shapes: Shapes | None = None) -> Path:
    """A folder with a small model and this config.json, as JSON or as it is."""
    shapes = shapes or {"model.layers.0.self_attn.qkv_proj.weight": (64, 32)}
    put(folder, "model.safetensors", tensors(shapes))
    put(folder, "config.json", config if isinstance(config, str) else json.dumps(config))
    return folder


def adapter(folder: Path, shapes: Shapes, config: Any = None) -> Path:
    """A folder with an adapter in these shapes."""
    named = {f"base_model.model.layers.0.q_proj.{key}": shape for key, shape in shapes.items()}
    put(folder, "adapter_model.safetensors", tensors(named))
    stated = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | (config or {})
    put(folder, "adapter_config.json", json.dumps(stated))
    return folder


LORA = {"lora_A.weight": (4, 32), "lora_B.weight": (32, 4)}
"""Shapes of a LoRA of rank 4."""


def text(value: str) -> bytes:
    """A text of GGUF."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(
    infos: list[tuple[str, tuple[int, ...], int, int]],
    data: bytes = b"",
    metadata: bytes = b"",
    n_values: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A GGUF file; shapes are in torch's order. ``metadata`` holds entries that are packed."""
    values = text("general.architecture") + struct.pack("<I", 8) + text("llama") + metadata
    head = b"GGUF" + struct.pack(
        "<IQQ", 3, len(infos) if n_tensors is None else n_tensors, n_values or 1
    )
    for name, shape, kind, offset in infos:
        values += text(name) + struct.pack("<I", len(shape))
        values += b"".join(struct.pack("<Q", size) for size in shape[::-1])
        values += struct.pack("<IQ", kind, offset)
    head += values
    return head + bytes(-len(head) % 32) + data


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def archive(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def big_member(name: str, size: int, start: bytes = b"") -> bytes:
    """An archive of one member of zeros, which is written in pieces."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open(name, "w", force_zip64=True) as member,
    ):
        member.write(start)
        for _ in range(size // 2**22):
            member.write(bytes(2**22))
    return stream.getvalue()


def pickled(code: bytes) -> bytes:
    """An archive of torch.save whose pickle is this program."""
    return archive({"x/data.pkl": code, "x/version": b"3\n", "x/data/0": bytes(64)})


def calls(module: str, name: str, arguments: bytes = b"(") -> bytes:
    """A pickle that calls a function; ``arguments`` are its opcodes, beginning with a mark."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"tR."


def view(shape: tuple[int, ...], strides: tuple[int, ...], elements: int = 16) -> bytes:
    """An archive with one tensor of this shape and these strides over 16 numbers."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK" + bytes([elements]) + b"tQ"
    sizes = [b"(" + b"".join(_number(x) for x in of) + b"t" for of in (shape, strides)]
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + b"".join(sizes)
    rebuilt += b"\x89ccollections\nOrderedDict\n)RtR"
    return pickled(b"\x80\x02}X\x08\x00\x00\x00a.weight" + rebuilt + b"s.")


def _number(value: int) -> bytes:
    """A pickled whole number."""
    return pickle.dumps(value, 2)[2:-1]


def npy(header: str, data: bytes = b"") -> bytes:
    """A file of numpy with this header."""
    content = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(content)) + content + data


def flax(tree: Any) -> bytes:
    """A msgpack file."""
    packed: bytes = msgpack.packb(tree, use_bin_type=True)
    return packed


def array(shape: Any, dtype: str = "float32", data: bytes = b"") -> msgpack.ExtType:
    """An array as Flax stores it."""
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data), use_bin_type=True))


def onnx_model(dims: tuple[int, ...], raw: bytes = b"", **external: str) -> bytes:
    """A graph that multiplies by one constant."""
    constant = TensorProto(name="layers.0.weight", data_type=1)
    constant.dims[:] = dims
    if external:
        constant.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            found = constant.external_data.add()
            found.key, found.value = key, value
    else:
        constant.raw_data = raw
    node = helper.make_node("MatMul", ["x", "layers.0.weight"], ["y"], "/layers.0/MatMul")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])
    graph = helper.make_graph([node], "g", [x], [y], [constant])
    return bytes(helper.make_model(graph).SerializeToString())
