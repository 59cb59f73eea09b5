"""Attacks by GGUF files."""

from __future__ import annotations

import struct
from collections.abc import Callable

from .. import builders as b
from ..builders import Attack, one_file


def _gguf(make: Callable[[], bytes]) -> Attack:
    return one_file("model.gguf", make)


GGUF: dict[str, Attack] = {
    "experts of shape (2^40, 1, 0)": _gguf(
        lambda: b.gguf([("blk.0.ffn_gate_exps.weight", (b.HUGE, 1, 0), 0, 0)])
    ),
    "experts of shape (0, 1, 2^40)": _gguf(
        lambda: b.gguf([("blk.0.ffn_gate_exps.weight", (0, 1, b.HUGE), 0, 0)])
    ),
    "2^62 metadata values": _gguf(lambda: b.gguf([], n_values=2**62)),
    "2^62 tensors": _gguf(lambda: b.gguf([], n_tensors=2**62)),
    "an array of 2^62 empty arrays": _gguf(
        lambda: b.gguf(
            [],
            metadata=b.text("a")
            + struct.pack("<IIQ", 9, 9, 2**62)
            + struct.pack("<IQ", 0, 0) * 1000,
            n_values=2,
        )
    ),
    "arrays in arrays": _gguf(
        lambda: b.gguf(
            [],
            metadata=b.text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50_000,
            n_values=2,
        )
    ),
    "an array of 2^60 numbers": _gguf(
        lambda: b.gguf([], metadata=b.text("a") + struct.pack("<IIQ", 9, 0, 2**60), n_values=2)
    ),
    "a key of 2^63 letters": _gguf(
        lambda: b.gguf([], metadata=struct.pack("<Q", 2**63) + b"x", n_values=2)
    ),
    "an alignment of 2^31": _gguf(
        lambda: b.gguf(
            [("a.weight", (16, 16), 0, 0)],
            bytes(1024),
            b.text("general.alignment") + struct.pack("<II", 4, 2**31),
            2,
        )
    ),
    "an offset of 2^63": _gguf(lambda: b.gguf([("a.weight", (16, 16), 0, 2**63)], bytes(1024))),
    "an empty tensor of 2^62 rows": _gguf(lambda: b.gguf([("a.weight", (2**62, 0), 0, 0)])),
    "a tensor without dimensions": _gguf(lambda: b.gguf([("a.weight", (), 0, 0)], bytes(64))),
    "a quantised tensor of 0 columns": _gguf(
        lambda: b.gguf([("blk.0.attn_q.weight", (32, 0), 2, 0)], bytes(64))
    ),
    "heads of 2^32 - 1": _gguf(
        lambda: b.gguf(
            [("blk.0.attn_q.weight", (16, 16), 0, 0)],
            bytes(1024),
            b.text("llama.attention.head_count") + struct.pack("<II", 4, 2**32 - 1),
            2,
        )
    ),
    "heads of -1": _gguf(
        lambda: b.gguf(
            [("blk.0.attn_q.weight", (16, 16), 0, 0)],
            bytes(1024),
            b.text("llama.attention.head_count") + struct.pack("<Ii", 5, -1),
            2,
        )
    ),
    "a shape before of another size": _gguf(
        lambda: b.gguf(
            [("a.weight", (16, 16), 0, 0)],
            bytes(1024),
            b.text("comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQii", 9, 5, 2, 2**30, 2**30),
            2,
        )
    ),
    "a negative shape before": _gguf(
        lambda: b.gguf(
            [("a.weight", (16, 16), 0, 0)],
            bytes(1024),
            b.text("comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQii", 9, 5, 2, -16, -16),
            2,
        )
    ),
    "a shape before that is a text": _gguf(
        lambda: b.gguf(
            [("a.weight", (16, 16), 0, 0)],
            bytes(1024),
            b.text("comfy.gguf.orig_shape.a.weight") + struct.pack("<I", 8) + b.text("16"),
            2,
        )
    ),
    "99999 parts": lambda d: b.put(d, "m-00001-of-99999.gguf", b.gguf([])),
    "a LoRA of llama.cpp of 80 GB": _gguf(
        lambda: b.gguf(
            [
                ("blk.0.attn_v.weight.lora_a", (1, 100_000), 0, 0),
                ("blk.0.attn_v.weight.lora_b", (100_000, 1), 0, 400_000),
            ],
            bytes(800_000),
        )
    ),
}
