"""The table of formats that are read; a new one is a module with a ``FORMAT`` and one line here."""

from __future__ import annotations

from spectail.errors import SourceError
from spectail.models.formats import (
    distcp,
    flax_file,
    gguf,
    hdf5,
    npy,
    onnx_file,
    safetensors,
    torch_pickle,
)
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.format import Format
from spectail.models.formats.remote_path import open_file

FORMATS: list[Format] = [
    safetensors.FORMAT,
    torch_pickle.FORMAT,
    distcp.FORMAT,
    gguf.FORMAT,
    onnx_file.FORMAT,
    flax_file.FORMAT,
    hdf5.FORMAT,
    npy.FORMAT,
]
"""All formats. If a folder holds a model in several of them, the first is read."""
_FIRST_BYTES = 512
"""Bytes of a file's content that formats may look at."""


def endings() -> tuple[str, ...]:
    """Return the endings of all formats."""
    return tuple(suffix for form in FORMATS for suffix in form.suffixes)


def format_of(path: FilePath) -> Format:
    """Return the format of a file: by its ending, unless its content is clearly of another format.

    Raises:
        SourceError: Neither the ending nor the content is known.

    """
    file = open_file(path)
    start = bytes(file.read(0, _FIRST_BYTES))
    named = [form for form in FORMATS if path.name.lower().endswith(form.suffixes)]
    alike = [form for form in FORMATS if form.looks_like(start, file.size)]
    # People rename files: a ``.bin`` may be safetensors.
    if named and (named[0] in alike or not alike):
        return named[0]
    if alike:
        return alike[0]
    what = "is empty" if not start else "is of no known format"
    raise SourceError(
        f"{path} {what}; expected a {', '.join(endings())} file or an index of shards"
    )


def format_of_shards(paths: list[FilePath]) -> Format:
    """Return the format of the files that an index names; torch's if they differ."""
    formats = {form.name: form for form in map(format_of, paths)}
    return next(iter(formats.values())) if len(formats) == 1 else torch_pickle.FORMAT
