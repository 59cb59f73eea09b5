"""Members of zip archives: read in place if stored uncompressed, else unpacked into memory."""

from __future__ import annotations

import zipfile

from spectail.basics.memory import in_words
from spectail.errors import SourceError
from spectail.models.formats.open_file import MemoryFile, ReadableFile

_LOCAL_HEADER = 30
"""Bytes of a member's own header. Its last two numbers are the lengths of the name and the extra
field that follow it."""

_UNPACKED, _RATIO = 2**26, 32
"""Bytes, and how many times the size of an archive, that its members may have when unpacked.
Weights hardly shrink when they are packed; zeros shrink to a thousandth, and would fill the
memory."""


def open_archive(file: ReadableFile, start: int = 0, size: int | None = None) -> zipfile.ZipFile:
    """Open the archive at ``start``; ``size`` is its length if it is only a part of the file.

    Raises:
        SourceError: Its members would take far more memory than the archive.

    """
    archive = zipfile.ZipFile(file.stream(start, size))
    packed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    unpacked = sum(info.file_size for info in packed)
    if unpacked > _UNPACKED + _RATIO * (file.size if size is None else size):
        raise SourceError(
            f"{file.path} would unpack to {in_words(unpacked)}, over {_RATIO} times its size: "
            "save it uncompressed, if it is yours"
        )
    return archive


def member(
    file: ReadableFile, start: int, archive: zipfile.ZipFile, name: str
) -> tuple[ReadableFile, int, int]:
    """Return where a member of an archive lies: in which file, from which byte, and how many bytes.

    ``start`` is where the archive begins in ``file``.

    Raises:
        KeyError: There is no such member.
        ValueError: It does not fit into the file.

    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return MemoryFile(file.path, archive.read(name)), 0, info.file_size
    # The archive's directory gives lengths too, but the extra field of the local header may be
    # another: torch pads it so that the data is aligned.
    header = file.read(start + info.header_offset, _LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = start + info.header_offset + _LOCAL_HEADER + lengths
    if offset + info.file_size > file.size:
        raise ValueError(name)
    return file, offset, info.file_size
