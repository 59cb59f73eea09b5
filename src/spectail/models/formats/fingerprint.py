"""Fingerprints: the same weights give the same text, independent of their place and date."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.remote_file import RemoteFile
from spectail.models.lazy_tensor import LazyTensor

MIB = 1024 * 1024
WHOLE_FILE = 256 * MIB
"""Files up to this size are read whole. Of larger files, the first MiB and 4 KiB of every further
MiB are read."""
WHOLE_TENSOR = 4 * MIB
"""Tensors in memory up to this many bytes are hashed whole."""
SAMPLE = 4096
"""Bytes that are read of every further MiB of a large file."""


_WANTED: ContextVar[bool] = ContextVar("fingerprints are wanted", default=True)


@contextmanager
def no_fingerprints() -> Iterator[None]:
    """Open sources within the block without fingerprints, for which values would be read."""
    token = _WANTED.set(False)
    try:
        yield
    finally:
        _WANTED.reset(token)


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of bytes, marked as such."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def fingerprint_files(files: Iterable[tuple[str, ReadableFile]]) -> str:
    """Hash named files by name, size and content, but not by their folder or date.

    Of a remote file only the first bytes are read; the rest is identified by the hash or ETag that
    its place states.

    The files are the open ones that the tensors are read from, so that a fingerprint always belongs
    to the content that is measured.

    Raises:
        SourceChangedError: A file was written since it was opened.

    """
    if not _WANTED.get():
        return ""
    digest = hashlib.sha256()
    # Sorted, so that the order in which a folder lists its files does not matter.
    for name, file in sorted(files, key=lambda item: item[0]):
        digest.update(f"{name}\0{file.size}\0".encode("utf-8", "surrogatepass"))
        if isinstance(file, RemoteFile):
            digest.update(f"{file.identity}\0".encode() + file.start)
            continue
        if file.size <= WHOLE_FILE:
            for start in range(0, file.size, MIB):
                digest.update(file.read(start, MIB))
            continue
        digest.update(file.read(0, MIB))
        # The last bytes are always among the samples.
        for start in [*range(MIB, file.size, MIB), file.size - SAMPLE]:
            digest.update(file.read(start, SAMPLE))
    return f"sha256:{digest.hexdigest()}"


def fingerprint_tensors(tensors: Iterable[LazyTensor]) -> str:
    """Hash tensors in memory by name, shape, type and bytes, and large ones by a regular sample."""
    if not _WANTED.get():
        return ""
    digest = hashlib.sha256()
    for stored in tensors:
        described = f"{stored.name}\0{stored.shape}\0{stored.dtype}\0"
        digest.update(described.encode("utf-8", "surrogatepass"))
        # Name and shape are all there is of a tensor without values.
        if stored.problem or not stored.numel:
            continue
        try:
            flat = stored.read(()).detach().reshape(-1)
        except Exception:  # noqa: BLE001 - a tensor whose own method fails: its row says so
            continue
        size = flat.numel() * flat.element_size()
        if size > WHOLE_TENSOR:
            # The step is odd: an even one would miss columns of a matrix with 2^k columns.
            flat = flat[:: (size // WHOLE_TENSOR + 1) | 1]
        # A lazily conjugated or negated view has no bytes of its own yet.
        flat = flat.resolve_conj().resolve_neg()
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
