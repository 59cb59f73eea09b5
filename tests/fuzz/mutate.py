"""Damage to files: to any bytes, and to the values of JSON, msgpack, numpy and ONNX.

Each function takes a source of random choices and the bytes of a good file, and returns the bytes
of a bad one. The same seed gives the same bytes.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

import msgpack
import onnx

Mutator: TypeAlias = Callable[[Random, bytes], bytes]

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31)
LARGE = (2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def odd_value(rng: Random) -> Any:
    """A JSON value that a reader may not expect."""
    makers: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(NUMBERS + LARGE),
        lambda: -rng.choice(NUMBERS + LARGE),
        lambda: rng.choice([0.0, -0.0, 0.5, -1.5, 1e-320, 1.7e308, 5.0]),
        lambda: rng.choice([float("nan"), float("inf"), float("-inf")]),
        lambda: 10 ** rng.choice([19, 30, 400]),
        lambda: rng.choice(["", "a", "\0", "\x1b[31m", "../../etc/passwd", "/etc/passwd"]),
        lambda: rng.choice(["\ud800", "²", "x" * 5000, "1", "nan", "[/nope]", "(a+)+$", "model"]),
        lambda: [],
        lambda: {},
        lambda: [odd_value(rng) for _ in range(rng.randrange(4))],
        lambda: {str(odd_value(rng)): odd_value(rng) for _ in range(rng.randrange(3))},
        lambda: nested(rng.choice([3, 50, 500])),
        lambda: [[0]] * rng.choice([3, 300]),
    ]
    return rng.choice(makers)()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in nested dicts and lists."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        here = waiting.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here)
        for key, inner in list(items):
            found.append((here, key))
            if isinstance(inner, dict | list):
                waiting.append(inner)
    return found


def odd_tree(rng: Random, value: Any) -> Any:  # noqa: C901 - a list of kinds of damage
    """Change one to three places of nested dicts and lists, in place."""
    if not isinstance(value, dict | list) or rng.random() < 0.02:
        return odd_value(rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not (places := _places(value)):
            break
        holder, key = rng.choice(places)
        other, other_key = rng.choice(places)
        action = rng.randrange(10)
        if action < 5:
            holder[key] = odd_value(rng)
        elif action == 5:
            del holder[key]
        elif action == 6:
            holder[key], other[other_key] = other[other_key], holder[key]
            if _is_circular(value):
                holder[key] = None
                other[other_key] = None
        elif action == 7 and isinstance(holder, dict):
            holder[str(odd_value(rng))] = holder.pop(key)
        elif action == 8 and isinstance(holder[key], int | float) and holder[key] == holder[key]:
            holder[key] = rng.choice(
                [-holder[key], holder[key] + 1, holder[key] // 2, holder[key] * 2]
            )
        elif isinstance(holder, list):
            # Not a deep copy, which ends at a thousand levels.
            holder.insert(key, copy.copy(holder[key]))
    return value


def _is_circular(value: Any) -> bool:
    """Whether a container holds itself, so that its parts would never end."""
    seen, waiting = set(), [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict | list):
            if id(here) in seen:
                return True
            seen.add(id(here))
            waiting += here.values() if isinstance(here, dict) else here
    return False


def mutate_json(rng: Random, content: bytes) -> bytes:
    """Change values of a JSON text, or its characters."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, content)
    try:
        value = odd_tree(rng, json.loads(content))
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, content)
    if rng.random() < 0.05:
        # Numbers that Python's writer cannot write.
        text = re.sub(r"\b\d+\b", lambda m: rng.choice([m[0], m[0], "1e400", "-1e999"]), text)
    if rng.random() < 0.02:
        depth = rng.choice([500, 20_000, 200_000])
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ", " + text[1:]  # every key twice
    return text.encode("utf-8", "surrogatepass")


def mutate_values(rng: Random, content: bytes) -> bytes:
    """Change values of a JSON text, which stays one."""
    try:
        text = json.dumps(odd_tree(rng, json.loads(content)))
    except RecursionError:  # deeper than Python writes
        return content
    return text.encode("utf-8", "surrogatepass")


def mutate_lines(rng: Random, content: bytes) -> bytes:
    """Change one line of a file with one JSON value per line."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    action = rng.randrange(6)
    if action == 0:
        del lines[at]
    elif action == 1:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif lines[at]:
        lines[at] = mutate_json(rng, lines[at])
    return b"\n".join(lines)


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """Flip, cut, repeat or overwrite bytes, numbers in particular."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        size = len(data)
        # Headers are at the beginning or the end, so half of the damage is there.
        near = rng.choice([min(size, 200), size, size])
        at = rng.randrange(near) if near else 0
        at = size - 1 - at if size and rng.random() < 0.2 else at
        action = rng.randrange(9)
        if action == 0 and size:
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1 and size:
            data[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif action == 2:
            width = rng.choice([1, 2, 4, 8])
            number = rng.choice([*NUMBERS, *LARGE, size, size - 1, size + 1]) % 2 ** (8 * width)
            data[at : at + width] = number.to_bytes(width, rng.choice(["little", "big"]))
        elif action == 3:
            del data[at:]
        elif action == 4:
            del data[at : at + rng.choice([1, 2, 8, 64])]
        elif action == 5:
            data[at:at] = data[at : at + rng.choice([1, 4, 8, 64])]
        elif action == 6:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 8, 64]))
        elif action == 7:
            _overwrite_digits(rng, data, at)
        else:
            other = rng.randrange(size) if size else 0
            length = rng.choice([1, 4, 8, 32])
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def _overwrite_digits(rng: Random, data: bytearray, at: int) -> None:
    """Replace a number that is written in digits."""
    match = re.compile(rb"\d+").search(data, at)
    if match:
        text = str(rng.choice([*NUMBERS, *LARGE, -1, 10**30])).encode()
        data[match.start() : match.end()] = text


def mutate_safetensors(rng: Random, content: bytes) -> bytes:
    """Change the header as JSON and state its new length, or any bytes."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    header = mutate_json(rng, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutate_npy(rng: Random, content: bytes) -> bytes:
    """Change the Python literal of an array's header, or any bytes."""
    end = content.find(b"\n") + 1
    if rng.random() < 0.4 or content[:6] != b"\x93NUMPY" or not end:
        return mutate_bytes(rng, content)
    header = {"descr": "<f4", "fortran_order": False, "shape": (16, 24)}
    key = rng.choice(list(header))
    makers: list[Callable[[], Any]] = [
        lambda: odd_value(rng),
        lambda: rng.choice(["<f4", "|O", ">f8", "<U9", "V4", "<f16", "=i4", "<c8", "<f99"]),
        lambda: tuple(odd_value(rng) for _ in range(rng.randrange(5))),
        lambda: (rng.choice(NUMBERS + LARGE), rng.choice(NUMBERS + LARGE)),
    ]
    header[key] = rng.choice(makers)()
    if rng.random() < 0.1:
        del header[key]
    text = repr(header).encode("utf-8", "replace") + b"\n"
    if rng.random() < 0.05:
        text = b"(" * rng.choice([50, 5000]) + text
    return content[:8] + (len(text) % 65536).to_bytes(2, "little") + text + content[end:]


def mutate_msgpack(rng: Random, content: bytes) -> bytes:
    """Change values of a msgpack file and pack them again, or any bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)

    def unpack(code: int, inner: bytes) -> Any:
        return msgpack.ExtType(code, mutate_bytes(rng, inner) if rng.random() < 0.2 else inner)

    tree = odd_tree(rng, msgpack.unpackb(content, ext_hook=unpack))
    try:
        packed: bytes = msgpack.packb(tree, unicode_errors="surrogatepass")
    except (OverflowError, ValueError, TypeError):
        return mutate_bytes(rng, content)
    return packed


def mutate_onnx(rng: Random, content: bytes) -> bytes:  # noqa: C901 - as above
    """Change fields of the parsed graph, or any bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    model = onnx.load_model_from_string(content)
    for _ in range(rng.choice([1, 1, 2])):
        graph = model.graph
        constant, node = rng.choice(graph.initializer), rng.choice(graph.node)
        action = rng.randrange(9)
        if action == 0:
            constant.dims[:] = [rng.choice(NUMBERS + LARGE[:5]) for _ in range(rng.randrange(5))]
        elif action == 1:
            constant.dims[:] = [-n for n in constant.dims]
        elif action == 2:
            constant.data_type = rng.randrange(30)
        elif action == 3:
            constant.name = str(odd_value(rng)).encode("utf-8", "replace").decode()[:100]
        elif action == 4:
            constant.raw_data = mutate_bytes(rng, constant.raw_data)
        elif action == 5:
            node.op_type = rng.choice(["Gemm", "MatMul", "Conv", "LSTM", "Gather", "QGemm", "GRU"])
        elif action == 6:
            del node.input[rng.randrange(len(node.input)) :]
        elif action == 7:
            node.input[rng.randrange(len(node.input))] = constant.name
        else:
            constant.data_location = 1
            entry = constant.external_data.add()
            entry.key = rng.choice(["location", "offset", "length"])
            entry.value = rng.choice(["model.bin", "../x", "/etc/passwd", "-5", "nan", "9" * 30])
        if not graph.initializer or not node.input:
            break
    return bytes(model.SerializeToString())
