"""Integers of 1 to 8 bits that lie one behind the other in bytes or words, the lowest bits first."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack ``count`` unsigned integers from each row (the last dimension) of bytes or 32-bit words, as int32.

    An integer may begin in one byte and end in the next, as in the 3-bit layouts of GPTQ and MLX.

    >>> unpack(torch.tensor([[0x21, 0x43]], dtype=torch.uint8), 4, 4).tolist()
    [[1, 2, 3, 4]]
    """
    stream: Tensor = packed.contiguous().view(torch.uint8).to(torch.int32)
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=stream.device)
        codes: Tensor = (stream.unsqueeze(-1) >> shifts) & (2**bits - 1)
        return codes.flatten(-2)[..., :count]
    starts = torch.arange(count, device=stream.device) * bits
    stream = torch.nn.functional.pad(stream, (0, 1))
    pairs = stream[..., starts // 8] | (stream[..., starts // 8 + 1] << 8)
    shifted: Tensor = pairs >> (starts % 8).to(torch.int32)
    rest: Tensor = shifted & (2**bits - 1)
    return rest


def unpack_words(packed: Tensor, bits: int, count: int) -> Tensor:
    """The same where each 32-bit word holds a whole number of integers and its last bits may be empty."""
    shifts = torch.arange(32 // bits, dtype=torch.int32, device=packed.device) * bits
    codes: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)[..., :count]


def spread_groups(values: Tensor, count: int) -> Tensor:
    """Repeat one number for each group of a row (the last dimension) over the group's entries."""
    return values.repeat_interleave(-(-count // values.shape[-1]), dim=-1)[..., :count]
