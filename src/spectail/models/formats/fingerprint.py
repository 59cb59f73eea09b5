"""What identifies the content of a source: the same weights give the same text, wherever and whenever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from spectail.errors import SourceError
from spectail.models.formats.open_file import OpenFile
from spectail.models.lazy_tensor import LazyTensor

MIB = 1024 * 1024
WHOLE_FILE = 256 * MIB
"""Files up to this size are read whole; of larger ones the first MiB and 4 KiB of every further
MiB."""
WHOLE_TENSOR = 4 * MIB
SAMPLE = 4096


def fingerprint_files(files: Iterable[tuple[str, OpenFile]]) -> str:
    """Hash named files by name, size and content; where they lie and when they were written does not enter.

    The files are those that the tensors are read from, so that a fingerprint never belongs to
    another content.

    Raises:
        SourceChangedError: a file was written since it was opened.

    """
    digest = hashlib.sha256()
    for name, file in sorted(files, key=lambda item: item[0]):
        digest.update(f"{name}\0{file.size}\0".encode())
        if file.size <= WHOLE_FILE:
            for start in range(0, file.size, MIB):
                digest.update(file.read(start, MIB))
            continue
        digest.update(file.read(0, MIB))
        for start in [*range(MIB, file.size, MIB), file.size - SAMPLE]:
            digest.update(file.read(start, SAMPLE))
    return f"sha256:{digest.hexdigest()}"


def fingerprint_tensors(tensors: Iterable[LazyTensor]) -> str:
    """Hash tensors in memory by name, shape, type and bytes; a regular sample of those above 4 MiB."""
    digest = hashlib.sha256()
    for stored in tensors:
        digest.update(f"{stored.name}\0{stored.shape}\0{stored.dtype}\0".encode())
        if stored.problem or not stored.numel:
            continue
        try:
            flat = stored.read(()).detach().reshape(-1)
        except SourceError:  # a quantised tensor whose own method fails: its row says so
            continue
        size = flat.numel() * flat.element_size()
        if size > WHOLE_TENSOR:
            # An odd step, or a sample of a matrix with 2^k columns would see a few columns only.
            flat = flat[:: (size // WHOLE_TENSOR + 1) | 1]
        flat = (
            flat.resolve_conj().resolve_neg()
        )  # views that torch conjugates or negates later have no bytes yet
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
