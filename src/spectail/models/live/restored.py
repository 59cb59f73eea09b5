"""Change tensors of a model for a while, and get them back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put the values of these tensors back, in place and bit for bit, when the context ends.

    This also holds after an error or Ctrl-C. The memory cost is one copy of the tensors.
    """
    before = [(tensor.detach(), tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        try:
            _put_back(before)
        except KeyboardInterrupt:
            # Ctrl-C at this moment, often the second one: half of the values would be of no use.
            _put_back(before)
            raise


def _put_back(before: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the kept values into their tensors."""
    with torch.no_grad():
        for tensor, values in before:
            tensor.copy_(values)
