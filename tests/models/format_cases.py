"""One writer for each file format: the same three tensors, as the format's own
library or documentation stores them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import h5py
import msgpack
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

State = dict[str, np.ndarray]


def state(seed: int = 0, rows: int = 8) -> State:
    """Two weights, (out, in), of layers that follow each other, and a bias."""
    generator = np.random.default_rng(seed)
    return {
        "layers.0.weight": generator.standard_normal((rows, 32), np.float32),
        "layers.0.bias": generator.standard_normal(rows, np.float32),
        "layers.1.weight": generator.standard_normal((32, rows), np.float32),
    }


def tensors(values: State) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in values.items()}


def write_safetensors(folder: Path, values: State) -> Path:
    save_file(tensors(values), folder / "model.safetensors")
    return folder / "model.safetensors"


def write_torch(folder: Path, values: State) -> Path:
    torch.save(tensors(values), folder / "model.pt")
    return folder / "model.pt"


def write_old_torch(folder: Path, values: State) -> Path:
    torch.save(tensors(values), folder / "model.bin", _use_new_zipfile_serialization=False)
    return folder / "model.bin"


def write_distributed(folder: Path, values: State) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that one process saves alone
        save_distributed(tensors(values), checkpoint_id=folder, no_dist=True)
    return folder / ".metadata"


def write_gguf(folder: Path, values: State) -> Path:
    writer = gguf.GGUFWriter(folder / "model.gguf", "novel")
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def write_onnx(folder: Path, values: State) -> Path:
    first, second = values["layers.0.weight"], values["layers.1.weight"]
    nodes = [
        helper.make_node(
            "Gemm", ["x", "layers.0.weight", "layers.0.bias"], ["h"], "/layers.0/Gemm", transB=1
        ),
        helper.make_node("MatMul", ["h", "onnx::MatMul_7"], ["y"], "/layers.1/MatMul"),
    ]
    constants = [
        numpy_helper.from_array(first, "layers.0.weight"),
        numpy_helper.from_array(values["layers.0.bias"], "layers.0.bias"),
        numpy_helper.from_array(np.ascontiguousarray(second.T), "onnx::MatMul_7"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, first.shape[1]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, second.shape[0]])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants), producer_name="test"
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def packed_array(value: np.ndarray) -> msgpack.ExtType:
    """What flax.serialization's documentation says of arrays: extension 1, a
    list of shape, type and bytes."""
    return msgpack.ExtType(
        1, msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
    )


def write_flax(folder: Path, values: State) -> Path:
    tree: dict[str, Any] = {"layers": {"0": {}, "1": {}}}
    for name, value in values.items():
        _, number, leaf = name.split(".")
        kernel = leaf == "weight"
        tree["layers"][number]["kernel" if kernel else leaf] = packed_array(
            value.T if kernel else value
        )
    (folder / "flax_model.msgpack").write_bytes(msgpack.packb({"params": tree}, use_bin_type=True))
    return folder / "flax_model.msgpack"


def write_keras(folder: Path, values: State) -> Path:
    with h5py.File(folder / "model.h5", "w") as file:
        for name, value in values.items():
            path = name.replace(".", "/").replace("weight", "kernel:0").replace("bias", "bias:0")
            file["model_weights/" + path] = value.T if "weight" in name else value
    return folder / "model.h5"


def write_numpy(folder: Path, values: dict[str, Any]) -> Path:
    np.savez(folder / "weights.npz", **values)
    return folder / "weights.npz"


WRITERS: dict[str, Callable[[Path, State], Path]] = {
    "a safetensors file": write_safetensors,
    "a file of torch.save": write_torch,
    "a file of torch.save, the older layout": write_old_torch,
    "a distributed checkpoint of torch": write_distributed,
    "a GGUF file": write_gguf,
    "an ONNX model": write_onnx,
    "a msgpack file of Flax": write_flax,
    "an HDF5 file of Keras": write_keras,
    "a file of numpy": write_numpy,
}
"""Writers by the format's name (or that and a variant of it)."""
