"""Attacks by files of numpy, Flax, ONNX and Keras, and by tensors of any format."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .. import builders as b
from ..builders import Attack, one_file

NUMPY: dict[str, Attack] = {
    "a header nested deep": one_file("a.npy", lambda: b.npy("(" * 5000 + ")" * 5000)),
    "a header of unary minuses": one_file("a.npy", lambda: b.npy("-" * 100_000 + "1")),
    "a header of additions": one_file("a.npy", lambda: b.npy("1" + "+1" * 100_000)),
    "a header that calls": one_file("a.npy", lambda: b.npy("__import__('os').system('touch pwn')")),
    "a shape of 10^400": one_file(
        "a.npy",
        lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (10**400, 0)})),
    ),
    "a negative shape": one_file(
        "a.npy",
        lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (-4, -4)}), bytes(64)),
    ),
    "a shape of texts": one_file(
        "a.npy",
        lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": ("9" * 5000, "4")})),
    ),
    "a shape of infinity": one_file(
        "a.npy", lambda: b.npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1e999, 4)}")
    ),
    "a type of 5,000 digits": one_file(
        "a.npy",
        lambda: b.npy(repr({"descr": "<f" + "9" * 5000, "fortran_order": False, "shape": (4, 4)})),
    ),
    "Python objects": one_file(
        "a.npy",
        lambda: b.npy(
            repr({"descr": "|O", "fortran_order": False, "shape": (4, 4)}), pickle.dumps(print)
        ),
    ),
    "a deflated array of 500 MB": one_file("a.npz", lambda: _deflated_npz(11585)),
    "ten deflated arrays of 64 MB": one_file("a.npz", lambda: _many_arrays(10)),
    "an empty array of 2^62 rows": one_file(
        "a.npy", lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (2**62, 0)}))
    ),
    "an archive of one array twice": one_file("a.npz", lambda: _twice()),
}


def _zeros(side: int) -> bytes:
    """The header of an array of zeros."""
    return b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (side, side)}))


def _deflated_npz(side: int) -> bytes:
    return b.big_member("w.npy", 4 * side * side, _zeros(side))


def _many_arrays(count: int) -> bytes:
    """An archive of arrays of zeros of 64 MB each."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for i in range(count):
            with file.open(f"w{i}.npy", "w", force_zip64=True) as member:
                member.write(_zeros(4096))
                for _ in range(16):
                    member.write(bytes(2**22))
    return stream.getvalue()


def _twice() -> bytes:
    stream = io.BytesIO()
    named: dict[str, Any] = {"a.weight": np.ones((16, 16), np.float32)}
    np.savez(stream, **named)
    stream.seek(0)
    with zipfile.ZipFile(stream, "a") as file:
        content = file.read("a.weight.npy")
    return b.archive({"a/weight.npy": content, "a.weight.npy": content})


OTHERS: dict[str, Attack] = {
    "flax: a map of 2^32 entries": one_file("m.msgpack", lambda: b"\xdf\xff\xff\xff\xff"),
    "flax: a list of 2^32 entries": one_file(
        "m.msgpack", lambda: b"\xdd\xff\xff\xff\xff" + b"\x90" * 1000
    ),
    "flax: lists in lists": one_file("m.msgpack", lambda: b"\x91" * b.DEEP + b"\x90"),
    "flax: nested arrays by the thousands": one_file(
        "m.msgpack", lambda: b.flax({"params": {"a": {"kernel": [[[0]] * 1000] * 40}}})
    ),
    "flax: a shape of -4": one_file(
        "m.msgpack",
        lambda: b.flax({"params": {"a": {"kernel": b.array([-4, -4], data=bytes(64))}}}),
    ),
    "flax: an empty shape of 2^62": one_file(
        "m.msgpack", lambda: b.flax({"params": {"a": {"kernel": b.array([2**62, 0])}}})
    ),
    "flax: a shape that is a text": one_file(
        "m.msgpack", lambda: b.flax({"params": {"a": {"kernel": b.array("44", data=bytes(64))}}})
    ),
    "flax: a type that is no type": one_file(
        "m.msgpack",
        lambda: b.flax({"params": {"a": {"kernel": b.array([4, 4], "load", bytes(64))}}}),
    ),
    "flax: params in params": one_file("m.msgpack", lambda: b.flax(b.inside("params", 60))),
    "flax: chunks of a shape of 2^62": one_file(
        "m.msgpack",
        lambda: b.flax(
            {
                "params": {
                    "a": {
                        "kernel": {
                            "__msgpack_chunked_array__": True,
                            "shape": [2**62, 0],
                            "chunks": [],
                        }
                    }
                }
            }
        ),
    ),
    "onnx: dims of 2^62": one_file("m.onnx", lambda: b.onnx_model((2**62, 2**62))),
    "onnx: dims of 2^40 and 0": one_file("m.onnx", lambda: b.onnx_model((b.HUGE, 0))),
    "onnx: negative dims": one_file("m.onnx", lambda: b.onnx_model((-16, -16), bytes(1024))),
    "onnx: external data elsewhere": one_file(
        "m.onnx", lambda: b.onnx_model((4, 4), location="../../etc/passwd")
    ),
    "onnx: an absolute place": one_file(
        "m.onnx", lambda: b.onnx_model((4, 4), location="/etc/passwd")
    ),
    "onnx: an offset of -1": lambda d: _external(d, offset="-1"),
    "onnx: an offset that is no number": lambda d: _external(d, offset="nan"),
    "onnx: an offset of 5,000 digits": lambda d: _external(d, offset="9" * 5000),
    "onnx: a place with NUL": one_file("m.onnx", lambda: b.onnx_model((4, 4), location="x\0")),
    "onnx: the folder as data": one_file("m.onnx", lambda: b.onnx_model((4, 4), location=".")),
    "onnx: no values at all": one_file("m.onnx", lambda: b.onnx_model((30_000, 30_000))),
    "hdf5: a chunked dataset of 2^60 zeros": one_file(
        "m.h5", lambda: _h5(chunks=(64, 64), shape=(2**30, 2**30))
    ),
    "hdf5: a dataset without storage": one_file("m.h5", lambda: _h5(shape=(60_000, 60_000))),
    "hdf5: a link to itself": one_file("m.h5", lambda: _h5_links()),
    "hdf5: a list of free places that leads back": one_file("m.h5", lambda: _h5_heap()),
    "hdf5: the same behind another program's data": one_file("m.h5", lambda: _h5_heap(512)),
    "hdf5: a dataset in another file": one_file("m.h5", lambda: _h5_external()),
    "hdf5: a virtual dataset of another file": one_file("m.h5", lambda: _h5_virtual()),
    "hdf5: zeros that are compressed": one_file(
        "m.h5",
        lambda: _h5(chunks=(2048, 2048), shape=(40_000, 40_000), compression="gzip", fill=True),
    ),
    "keras: a deflated member of 500 MB": one_file(
        "m.keras", lambda: b.big_member("model.weights.h5", 2**29)
    ),
    "any: a page of the web": one_file("model.bin", lambda: b"<!DOCTYPE html>" + b"x" * 1000),
    "any: a file of zeros": one_file("model.gguf", lambda: bytes(10**6)),
    "any: factors of a CP form of 2^60": lambda d: b.put(
        d,
        "model.safetensors",
        b.tensors(
            {
                "a.weight.factors.factor_0": (2**18, 1),
                "a.weight.factors.factor_1": (2**18, 1),
                "a.weight.factors.factor_2": (2**18, 1),
                "a.weight.weights": (1,),
            }
        ),
    ),
    "any: a weight norm of other shapes": lambda d: b.put(
        d, "model.safetensors", b.tensors({"a.weight_g": (100_000, 1), "a.weight_v": (1, 100_000)})
    ),
    "any: a mask of other shapes": lambda d: b.put(
        d,
        "model.safetensors",
        b.tensors({"a.weight_orig": (100_000, 1), "a.weight_mask": (1, 100_000)}),
    ),
}


def _external(folder: Path, **more: Any) -> Path:
    b.put(folder, "x.bin", bytes(64))
    return b.put(folder, "m.onnx", b.onnx_model((4, 4), location="x.bin", **more))


def _h5(
    *, shape: tuple[int, int], chunks: Any = None, compression: Any = None, fill: bool = False
) -> bytes:
    """A file with one dataset that takes next to no space."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        data = file.create_dataset(
            "layers/dense/vars/0", shape, np.float32, chunks=chunks, compression=compression
        )
        if fill:
            data[: chunks[0], : chunks[1]] = 0
    return stream.getvalue()


def _h5_heap(before: int = 0) -> bytes:
    """A file whose heaps have one free place each, which is followed by itself."""
    stream = io.BytesIO()
    with h5py.File(stream, "w", userblock_size=before) as file:
        file["layers/dense/vars/0"] = np.ones((16, 16), np.float32)
    data = bytearray(stream.getvalue())
    heap = data.find(b"HEAP")
    while heap >= 0:
        free, segment = (
            int.from_bytes(data[heap + at : heap + at + 8], "little") for at in (16, 24)
        )
        place = before + segment + free
        data[place : place + 8] = free.to_bytes(8, "little")
        heap = data.find(b"HEAP", heap + 1)
    return bytes(data)


def _h5_links() -> bytes:
    """Groups that hold each other."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        group = file.create_group("layers/a")
        group["b"] = file["layers"]
        group["c"] = h5py.SoftLink("/layers/a/c")
        group["d"] = h5py.ExternalLink("/etc/passwd", "/x")
        file["layers/dense/vars/0"] = np.ones((16, 16), np.float32)
    return stream.getvalue()


def _h5_external() -> bytes:
    """A dataset whose numbers lie in another file."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset(
            "layers/dense/vars/0", (16, 16), np.uint8, external=[("/etc/passwd", 0, 256)]
        )
    return stream.getvalue()


def _h5_virtual() -> bytes:
    """A dataset that is composed of another file's."""
    stream = io.BytesIO()
    layout = h5py.VirtualLayout((16, 16), np.float32)
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(16, 16))
    with h5py.File(stream, "w") as file:
        file.create_virtual_dataset("layers/dense/vars/0", layout)
    return stream.getvalue()
