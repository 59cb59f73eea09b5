"""Members of zip archives: an uncompressed one is read in place, a compressed one is unpacked into memory."""

from __future__ import annotations

import zipfile

from spectail.models.formats.open_file import MemoryFile, ReadableFile

_LOCAL_HEADER = 30
"""Bytes of a member's own header before its name and extra field, whose lengths are its last two
numbers."""


def member(
    file: ReadableFile, start: int, archive: zipfile.ZipFile, name: str
) -> tuple[ReadableFile, int, int]:
    """Find where the bytes of a member begin and how many they are, in an archive that begins at ``start`` of a file.

    Raises:
        KeyError: there is no such member.
        ValueError: it does not fit into the file.

    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return MemoryFile(file.path, archive.read(name)), 0, info.file_size
    header = file.read(start + info.header_offset, _LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = start + info.header_offset + _LOCAL_HEADER + lengths
    if offset + info.file_size > file.size:
        raise ValueError(name)
    return file, offset, info.file_size
