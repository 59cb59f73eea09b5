"""What identifies the content of a source: the same weights give the same text, wherever and whenever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from spectail.models.lazy_tensor import LazyTensor

MIB = 1024 * 1024
WHOLE_FILE = 256 * MIB
"""Files up to this size are read whole; of larger ones the first MiB and 4 KiB of every further MiB."""
WHOLE_TENSOR = 4 * MIB
SAMPLE = 4096


def fingerprint_files(files: Iterable[tuple[str, Path]]) -> str:
    """Hash named files by name, size and content; where they lie and when they were written does not enter."""
    digest = hashlib.sha256()
    for name, path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE:
                while block := file.read(MIB):
                    digest.update(block)
                continue
            digest.update(file.read(MIB))
            for start in [*range(MIB, size, MIB), size - SAMPLE]:
                file.seek(start)
                digest.update(file.read(SAMPLE))
    return f"sha256:{digest.hexdigest()}"


def fingerprint_tensors(tensors: Iterable[LazyTensor]) -> str:
    """Hash tensors in memory by name, shape, type and bytes; a regular sample of those above 4 MiB."""
    digest = hashlib.sha256()
    for stored in tensors:
        digest.update(f"{stored.name}\0{stored.shape}\0{stored.dtype}\0".encode())
        if stored.problem or not stored.numel:
            continue
        flat = stored.read(()).detach().reshape(-1)
        size = flat.numel() * flat.element_size()
        if size > WHOLE_TENSOR:
            # An odd step, or a sample of a matrix with 2^k columns would see a few columns only.
            flat = flat[:: (size // WHOLE_TENSOR + 1) | 1]
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
