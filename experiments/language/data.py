"""Text as bytes: training, validation and test text apart, and batches drawn from them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.pruning.texts import Texts


@dataclass(frozen=True)
class Corpus:
    """Texts as byte values (n,), by use."""

    train: Tensor
    validation: Tensor
    test: Tensor


def corpus(texts: Texts) -> Corpus:
    """Text to train on, to validate on (other pages of that book) and to test on.

    These are the calibration text, the selection text and the rest.
    """
    return Corpus(
        *map(as_bytes, (texts.calibration, texts.selection, "\n\n".join(texts.tests.values())))
    )


def as_bytes(text: str) -> Tensor:
    """UTF-8 bytes (n,) as uint8."""
    return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())


def drawn(n: int = 4000) -> Corpus:
    """Sums written out, to see whether the experiment runs."""

    def text(seed: int) -> str:
        pick = random.Random(seed)
        pairs = [(pick.randrange(50), pick.randrange(50)) for _ in range(n // 8)]
        return " ".join(f"{a}+{b}={a + b}." for a, b in pairs)

    return Corpus(*map(as_bytes, map(text, range(3))))


def batch(text: Tensor, *, size: int, length: int, generator: torch.Generator) -> Tensor:
    """Pieces (size, length) from random places, int64."""
    starts = torch.randint(len(text) - length, (size, 1), generator=generator)
    return text[starts + torch.arange(length)].long()


def spaced(text: Tensor, *, size: int, length: int) -> Tensor:
    """Pieces (size, length) evenly spaced over the text, int64: the same for every run."""
    starts = torch.linspace(0, len(text) - length, size).long()[:, None]
    return text[starts + torch.arange(length)].long()
