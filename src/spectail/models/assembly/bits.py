"""Unpacking of integers of 1 to 8 bits that are stored bit by bit, the lowest bits first."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack ``count`` unsigned integers from each row of bytes or 32-bit words, as int32.

    A row is the last dimension. An integer may begin in one byte and end in the next, as in the
    3-bit layouts of GPTQ and MLX.

    >>> unpack(torch.tensor([[0x21, 0x43]], dtype=torch.uint8), 4, 4).tolist()
    [[1, 2, 3, 4]]
    """
    # One row first: torch views a column of a transposed tensor as contiguous, but not as bytes.
    words = packed.reshape(-1).view(torch.uint8)
    stream: Tensor = words.reshape(*packed.shape[:-1], -1).to(torch.int32)
    # No integer crosses the end of a byte, so every byte is split alone.
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=stream.device)
        codes: Tensor = (stream.unsqueeze(-1) >> shifts) & (2**bits - 1)
        return codes.flatten(-2)[..., :count]
    starts = torch.arange(count, device=stream.device) * bits
    # Otherwise read the two bytes that an integer can touch. The zero at the end is the second byte
    # of the last integer.
    stream = torch.nn.functional.pad(stream, (0, 1))
    pairs = stream[..., starts // 8] | (stream[..., starts // 8 + 1] << 8)
    shifted: Tensor = pairs >> (starts % 8).to(torch.int32)
    rest: Tensor = shifted & (2**bits - 1)
    return rest


def unpack_words(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack integers from 32-bit words that each hold a whole number of integers.

    Unlike in :func:`unpack`, no integer crosses the end of a word; the last bits of a word may be
    unused.
    """
    shifts = torch.arange(32 // bits, dtype=torch.int32, device=packed.device) * bits
    codes: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)[..., :count]


def spread_groups(values: Tensor, count: int, length: int) -> Tensor:
    """Repeat each number of a row (the last dimension) over the ``length`` entries of its group.

    The last group of a row may be shorter, so that there are ``count`` entries.
    """
    return values.repeat_interleave(length, dim=-1)[..., :count]
