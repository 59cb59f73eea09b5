"""Attacks by files of torch.save and other pickles."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import builders as b
from .. import seeds
from ..builders import Attack, one_file


def _pt(make: Callable[[], bytes]) -> Attack:
    return one_file("model.pt", make)


def _shared_dicts(keys: int, depth: int) -> dict[str, Any]:
    """Dicts whose values are all one dict, whose values are all one dict..."""
    value: dict[str, Any] = {"a": torch.ones(3)}
    for _ in range(depth):
        value = dict.fromkeys(map(str, range(keys)), value)
    return value


def _self_referring(keys: int) -> dict[str, Any]:
    """A dict whose values are the dict itself."""
    value: dict[str, Any] = {}
    value.update(dict.fromkeys(map(str, range(keys)), value))
    value["w"] = torch.ones(3)
    return value


def _shared_objects(depth: int) -> bytes:
    """A foreign object of lists that hold the list below ten times; no tensor anywhere."""
    code = b"\x80\x02cargparse\nNamespace\n)\x81q\x00]q\x01"
    for level in range(depth):
        code += b"]q" + bytes([level + 2]) + b"(" + b"h" + bytes([level + 1])
        code += (b"h" + bytes([level + 1])) * 9 + b"e"
    return code + b"b."


TORCH: dict[str, Attack] = {
    "an expanded number": _pt(
        lambda: b.saved({"a.weight": torch.zeros(1).expand(100_000, 100_000)})
    ),
    "an expanded row": _pt(lambda: b.saved({"a.weight": torch.zeros(64).expand(30_000_000, 64)})),
    "strides of zero by hand": _pt(lambda: b.view((100_000, 100_000), (0, 0))),
    "windows that overlap": _pt(
        lambda: b.saved({"a.weight": torch.zeros(60_000).as_strided((30_000, 30_000), (1, 1))})
    ),
    "an expanded convolution": _pt(
        lambda: b.saved({"conv.weight": torch.zeros(1).expand(512, 512, 100, 100)})
    ),
    "an expanded quantised tensor": _pt(
        lambda: b.saved(
            {
                "weight_packed": torch.zeros(1, dtype=torch.int32).expand(100_000, 100_000),
                "weight_scale": torch.zeros(100_000, 1),
            }
        )
    ),
    "negative strides": _pt(lambda: b.view((4, 4), (-4, 1))),
    "a negative shape": _pt(lambda: b.view((-4, -4), (4, 1))),
    "a shape of 2^63": _pt(lambda: b.view((2**63, 2**63), (0, 0))),
    "an empty shape of 2^62": _pt(lambda: b.view((2**62, 0), (1, 1))),
    "more strides than sizes": _pt(lambda: b.view((4, 4), (4, 1, 1, 1))),
    "self-referring dicts of 400 keys": _pt(lambda: b.saved(_self_referring(400))),
    "dicts that share their values": _pt(lambda: b.saved(_shared_dicts(60, 6))),
    "lists that share their entries": _pt(lambda: b.pickled(_shared_objects(40))),
    "lists in lists": _pt(lambda: b.pickled(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")),
    "tuples in tuples": _pt(lambda: b.pickled(b"\x80\x02)" + b"\x85" * 50_000 + b".")),
    "dicts in dicts": _pt(lambda: b.pickled(b"\x80\x02}" + b"K\x01}" * 5000 + b"s" * 5000 + b".")),
    "a code object": _pt(lambda: b.pickled(b.calls("types", "CodeType"))),
    "os.system": _pt(lambda: b.pickled(b.calls("os", "system", b"(U\x09touch pwn"))),
    "builtins.getattr": _pt(
        lambda: b.pickled(b.calls("builtins", "getattr", b"(ctorch\nload\nU\x08__init__"))
    ),
    "a lazy module of torch": _pt(lambda: b.pickled(b.calls("torch", "_dynamo"))),
    "torch.hub.load": _pt(lambda: b.pickled(b.calls("torch.hub", "load", b"(U\x01aU\x01b"))),
    "a dotted name": _pt(lambda: b.pickled(b"\x80\x04\x8c\x05torch\x8c\x0dload.__code__\x93.")),
    "numpy's fromfile": _pt(lambda: b.pickled(b.calls("numpy", "fromfile", b"(U\x0b/etc/passwd"))),
    "numpy's type of 2^31 letters": _pt(
        lambda: b.pickled(b.calls("numpy", "dtype", b"(U\x0bV2147483647"))
    ),
    "an extension code": _pt(lambda: b.pickled(b"\x80\x02\x82\x01.")),
    "a frame of 2^62 bytes": _pt(
        lambda: b.pickled(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.")
    ),
    "a text of 2^62 bytes": _pt(
        lambda: b.pickled(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"N.")
    ),
    "bytes of 2^62": _pt(lambda: b.pickled(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"N.")),
    "a memo place of 2^31 - 1": _pt(
        lambda: b.pickled(b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".")
    ),
    "a memo place of 50 million": _pt(
        lambda: b.pickled(b"\x80\x02Nr" + struct.pack("<I", 50_000_000) + b".")
    ),
    "a memo place of 50 million as a text": _pt(lambda: b.pickled(b"Np50000000\n.")),
    "a number of a million digits": _pt(lambda: b.pickled(b"I" + b"9" * 10**6 + b"\n.")),
    "a nested torch file in itself": one_file("model.bin", lambda: _nested_storage(40)),
    "a deflated member of 500 MB": _pt(lambda: b.big_member("x/data.pkl", 2**29, b"\x80\x02N.")),
    "a deflated pickle of 500 MB of marks": _pt(lambda: _deflated_pickle(2**29)),
    "a deflated storage of 500 MB": _pt(lambda: _deflated_storage(2**29)),
    "10,000 members of one name": _pt(lambda: _members(10_000)),
    "a zip of lying sizes": _pt(lambda: _lying_zip()),
    "integers that all have one hash": one_file(
        "model.pkl", lambda: pickle.dumps({i * sys.hash_info.modulus: i for i in range(1, 3000)}, 2)
    ),
    "scales that are objects": _pt(lambda: _broken_scales()),
    "distributed pieces elsewhere": lambda d: _distributed(d),
}


def _nested_storage(depth: int) -> bytes:
    """A storage that was pickled as the bytes of a torch file, again and again."""
    inner = b"\x80\x02N."
    for _ in range(depth):
        inner = (
            b"\x80\x02ctorch.storage\n_load_from_bytes\n(B"
            + struct.pack("<I", len(inner))
            + inner
            + b"tR."
        )
    return inner


def _deflated_pickle(size: int) -> bytes:
    """A pickle of as many empty lists as there are bytes, compressed to a thousandth."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("x/data.pkl", "w", force_zip64=True) as member,
    ):
        member.write(b"\x80\x02")
        for _ in range(size // 2**22):
            member.write(b"]" * 2**22)
    return stream.getvalue()


def _deflated_storage(size: int) -> bytes:
    """A weight of zeros, compressed to a thousandth."""
    side = int((size // 4) ** 0.5)
    code = zipfile.ZipFile(io.BytesIO(b.view((side, side), (side, 1)))).read("x/data.pkl")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("x/data.pkl", code)
        with file.open("x/data/0", "w", force_zip64=True) as member:
            for _ in range(size // 2**22):
                member.write(bytes(2**22))
    return stream.getvalue()


def _members(count: int) -> bytes:
    """An archive with very many members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("x/data.pkl", b"\x80\x02N.")
        for i in range(count):
            file.writestr(f"x/data/{i}", b"")
    return stream.getvalue()


def _lying_zip() -> bytes:
    """An archive whose directory says that a member has 2^32 - 2 bytes."""
    content = b.archive({"x/data.pkl": b"\x80\x02N."})
    at = content.rfind(b"PK\x01\x02") + 20
    return content[:at] + struct.pack("<II", 2**32 - 2, 2**32 - 2) + content[at + 8 :]


def _broken_scales() -> bytes:
    """A quantised tensor whose scales are no numbers."""
    q = torch.quantize_per_channel(
        torch.randn(16, 16), torch.ones(16).double(), torch.zeros(16).long(), 0, torch.qint8
    )
    members = {}
    with zipfile.ZipFile(io.BytesIO(b.saved({"a.weight": q}))) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = members[name].replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX", 1)
    return b.archive(members)


def _distributed(folder: Path) -> Path:
    """A distributed checkpoint whose metadata names a file above."""
    seed = next(seeds.distcp())
    for name, content in seed.files.items():
        b.put(folder, name, content.replace(b"__0_0.distcp", b"../../passwd"))
    return folder
