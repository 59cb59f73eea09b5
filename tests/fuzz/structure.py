"""Damage with knowledge of a format's structure: values that contradict each other.

Each function keeps a file readable up to the point that it damages, so that the checks behind the
first one are reached too. The formats are written from their documentation: safetensors' README,
the ZIP application note (4.3.7 and 4.3.12), the opcodes of ``pickletools``, GGUF's specification
and the HDF5 file format specification (versions 0 to 3 of the superblock).
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from .mutate import LARGE, NUMBERS, mutate_bytes, mutate_npy, odd_value


def _number(rng: Random, size: int) -> int:
    """A number to put in place of a size, an offset or a count of a file of ``size`` bytes."""
    return rng.choice([*NUMBERS, *LARGE, size, size - 1, size + 1, rng.randrange(size + 1)])


def _packed(code: str, number: int) -> bytes:
    """A number in a ``struct`` code, cut to its width."""
    width = struct.calcsize(f"<{code}")
    return (number % (1 << 8 * width)).to_bytes(width, "little")


def safetensors_entries(rng: Random, content: bytes) -> bytes:
    """Change shapes, types and offsets of tensors so that they contradict each other."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    one, other = header[rng.choice(names)], header[rng.choice(names)]
    start, stop = one["data_offsets"]
    action = rng.randrange(9)
    if action == 0:
        one["data_offsets"] = [stop, start]
    elif action == 1:
        one["data_offsets"] = list(other["data_offsets"])
    elif action == 2:
        shift = rng.choice([-4, -1, 1, 2, 4, 64, -start, len(content)])
        one["data_offsets"] = [start + shift, stop + shift]
    elif action == 3:
        one["data_offsets"][rng.randrange(2)] = _number(rng, len(content))
    elif action == 4:
        one["shape"], other["shape"] = other["shape"], one["shape"]
    elif action == 5:
        one["shape"] = _same_product(rng, one["shape"])
    elif action == 6:
        one["shape"] = [*one["shape"], rng.choice([0, 1, 1, 2, -1])]
    elif action == 7:
        one["dtype"] = rng.choice(
            ["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64"]
        )
    else:
        old, new = rng.choice(names), rng.choice(names)
        header[_joined(rng, old, new)] = header.pop(old)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _same_product(rng: Random, shape: list[int]) -> list[int]:
    """Another shape of as many numbers."""
    count = 1
    for size in shape:
        count *= size
    shapes = [[count], [1, count], [count, 1], [-1, -count], shape[::-1], [1] * 30 + shape]
    return rng.choice([*shapes, [2, count // 2], [count // 4, 2, 2]])


def _joined(rng: Random, old: str, new: str) -> str:
    """A name with the ending of another tensor's, or with one that has a meaning."""
    endings = ["scale", "weight_scale", "qweight", "g_idx", "lora_A.weight", "weight_g", "SCB"]
    stem = old.rpartition(".")[0]
    return f"{stem}.{rng.choice([new.rpartition('.')[2], *endings])}"


def mutate_zip(rng: Random, content: bytes) -> bytes:
    """Change members of an archive and pack them again, so that checksums fit, or bytes."""
    if (how := rng.random()) < 0.4:
        return (zip_headers if how < 0.2 else mutate_bytes)(rng, content)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    # The pickle or the array's header holds the meaning; the numbers do not.
    telling = [i for i, (name, _) in enumerate(members) if name.endswith((".pkl", ".npy", ".h5"))]
    at = rng.choice(telling) if telling and rng.random() < 0.8 else rng.randrange(len(members))
    name, inner = members[at]
    action = rng.randrange(12)
    if action == 0:
        del members[at]
    elif action == 1:
        members.append(members[rng.randrange(len(members))])
    elif action == 2:
        members[at] = (str(odd_value(rng))[:200].replace("\0", "") or "x", inner)
    elif name.endswith(".npy"):
        members[at] = (name, mutate_npy(rng, inner))
    elif name.endswith(".pkl") and rng.random() < 0.6:
        members[at] = (name, pickle_opcodes(rng, inner))
    else:
        members[at] = (name, mutate_bytes(rng, inner))
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(result, "w", kind) as archive:
        for name, inner in members:
            archive.writestr(name.encode("utf-8", "replace").decode() or "x", inner)
    return result.getvalue()


def zip_headers(rng: Random, content: bytes) -> bytes:
    """Make an archive's directory and its local headers contradict each other."""
    data = bytearray(content)
    # Places of the fields behind each mark: those of 2 bytes, those of 4.
    marks = {
        b"PK\x03\x04": ((4, 6, 8, 26, 28), (14, 18, 22)),
        b"PK\x01\x02": ((6, 8, 10, 28, 30, 32, 34), (16, 20, 24, 38, 42)),
        b"PK\x05\x06": ((4, 6, 8, 10, 20), (12, 16)),
    }
    for _ in range(rng.choice([1, 1, 2])):
        mark = rng.choice(list(marks))
        places = [i for i in range(len(data) - 21) if data[i : i + 4] == mark]
        if not places:
            return mutate_bytes(rng, content)
        at, short = rng.choice(places), rng.random() < 0.5
        field, width = rng.choice(marks[mark][0 if short else 1]), "H" if short else "I"
        if rng.random() < 0.2:
            # Another member's name of the same length, or a path outside.
            name = rng.choice([b"../../x", b"/etc/pas", b"\0\0\0\0"])
            start = at + (30 if mark == b"PK\x03\x04" else 46)
            data[start : start + len(name)] = name[: max(0, len(data) - start)]
        else:
            new = _packed(width, _number(rng, len(content)))
            data[at + field : at + field + len(new)] = new
    return bytes(data)


_GLOBALS = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"cposix\nsystem\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n",
    b"ccollections\nOrderedDict\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.multiarray\nscalar\n",
    b"ctorch\nQUInt8Storage\n", b"ctorch._utils\n_rebuild_qtensor\n", b"c_codecs\nencode\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"cargparse\nNamespace\n", b"c\n\n", b"ca.b\nc.d\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
)  # fmt: skip
_OPCODES = (
    b"R", b"b", b"o", b"\x81", b"\x92", b"\x93", b"Q", b"(", b"t", b"d", b"l", b"0", b"1", b"2",
    b"e", b"a", b"s", b"u", b")", b"]", b"}", b"N", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90",
    b"\x91", b"\x94", b"\x88", b"ios\nsystem\n", b"itorch\nSize\n", b"\x82\x01", b"\x83\x01\x00",
    b"\x84\x01\x00\x00\x00", b"P0\n", b"h\x00", b"h\xff", b"j\x00\x00\x00\x7f", b"K\x00", b"K\xff",
    b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"\x8b\xff\xff\xff\x7f", b"G\x7f\xf8" + bytes(6), b"I1e5\n", b"L" + b"9" * 99 + b"L\n",
    b"\x97", b"\x98", b"\x95" + b"\xff" * 8, b"\x80\xff", b".", b"V\\ud800\n", b"X\x00\x00\x00\x00",
)  # fmt: skip


def pickle_opcodes(rng: Random, content: bytes) -> bytes:
    """Insert, drop, exchange or repeat opcodes of a pickle."""
    pieces = _opcodes(content)
    if len(pieces) < 3:
        return mutate_bytes(rng, content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(pieces))
        action = rng.randrange(7)
        if action == 0:
            pieces.insert(at, rng.choice(_OPCODES))
        elif action == 1:
            pieces[at] = rng.choice(_OPCODES)
        elif action == 2:
            places = [i for i, piece in enumerate(pieces) if piece[:1] in {b"c", b"\x93", b"i"}]
            pieces[rng.choice(places or [at])] = rng.choice(_GLOBALS)
        elif action == 3:
            pieces.insert(at, rng.choice(_GLOBALS) + rng.choice([b")R", b"(tR", b")\x81", b"}b"]))
        elif action == 4:
            del pieces[at]
        elif action == 5:
            pieces.insert(at, pieces[rng.randrange(len(pieces))])
        else:
            places = [i for i, piece in enumerate(pieces) if piece[:1] in {b"K", b"M", b"J"}]
            number = rng.choice([*NUMBERS, *LARGE, -1, -(2**31)])
            pieces[rng.choice(places or [at])] = b"\x8a\x0a" + number.to_bytes(
                10, "little", signed=True
            )
    return b"".join(pieces)


def _opcodes(content: bytes) -> list[bytes]:
    """A pickle's opcodes with their arguments; what follows the last one is the last piece."""
    starts: list[int] = []
    stream = io.BytesIO(content)
    try:
        while stream.tell() < len(content):
            for _, _, place in pickletools.genops(stream):
                starts.append(place or 0)
            break
    except ValueError:
        pass
    ends = [*starts[1:], stream.tell()] if starts else []
    pieces = [content[i:j] for i, j in zip(starts, ends, strict=True)]
    return [*pieces, content[stream.tell() :]]


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of GGUF's types of metadata values that are numbers."""


def gguf_fields(rng: Random, content: bytes) -> bytes:
    """Put odd numbers into the fields of a GGUF header: counts, lengths, types, shapes, offsets."""
    try:
        fields = _gguf_places(content)
    except (struct.error, IndexError, KeyError):
        return mutate_bytes(rng, content)
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(sorted({kind for kind, _, _ in fields}))
        _, at, code = rng.choice([field for field in fields if field[0] == kind])
        number = rng.randrange(40) if kind == "type" else _number(rng, len(content))
        new = _packed(code, rng.choice([number, number, -number]))
        data[at : at + len(new)] = new
    if rng.random() < 0.1:
        name = rng.choice([b"general.alignment", b"llama.attention.head_count"])
        at = data.find(name)
        if at >= 0:  # a key that is known gets a value of another type
            data[at + len(name)] = rng.randrange(13)
    return bytes(data)


def _gguf_places(content: bytes) -> list[tuple[str, int, str]]:
    """What the fields of a GGUF header are, where they lie, and their ``struct`` codes."""
    found = [("version", 4, "I"), ("count", 8, "Q"), ("count", 16, "Q")]
    n_tensors, n_values = struct.unpack_from("<QQ", content, 8)
    at = 24

    def number(kind: str, code: str) -> int:
        nonlocal at
        found.append((kind, at, code))
        value: int = struct.unpack_from(f"<{code}", content, at)[0]
        at += struct.calcsize(f"<{code}")
        return value

    def text() -> None:
        nonlocal at
        length = number("length", "Q")
        at += length

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            item, count = number("type", "I"), number("array", "Q")
            for _ in range(count):
                value(item)
        else:
            found.append(("value", at, {1: "B", 2: "H", 4: "I", 8: "Q"}[_SIZES[kind]]))
            at += _SIZES[kind]

    for _ in range(n_values):
        text()
        value(number("type", "I"))
    for _ in range(n_tensors):
        text()
        for _ in range(number("dimensions", "I")):
            number("shape", "Q")
        number("type", "I")
        number("offset", "Q")
    return found


def hdf5_blocks(rng: Random, content: bytes) -> bytes:
    """Change the superblock, object headers, trees, heaps and messages of an HDF5 file."""
    data = bytearray(content)
    marks = (b"TREE", b"HEAP", b"SNOD", b"OHDR", b"GCOL", b"FRHP", b"BTHD", b"OCHK", b"\x89HDF")
    for _ in range(rng.choice([1, 1, 2])):
        mark = rng.choice(marks)
        places = [i for i in range(len(data)) if data[i : i + len(mark)] == mark]
        at = rng.choice(places or [0]) + rng.randrange(4, 96)
        if rng.random() < 0.5:
            at -= at % 8
        width = rng.choice("BHIQQ")
        addresses = [0, 96, 800, 2**64 - 1, at, max(0, at - 8)]
        new = _packed(width, rng.choice([_number(rng, len(content)), rng.choice(addresses)]))
        data[at : at + len(new)] = new
    return bytes(data)


def sometimes(share: float, often: Callable[..., bytes], other: Callable[..., bytes]) -> Any:
    """A mutator that is ``often`` with a probability of ``share``, and ``other`` else."""
    return lambda rng, content: (often if rng.random() < share else other)(rng, content)
