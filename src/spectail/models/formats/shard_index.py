"""The index of a model that is split into shards: which files hold which tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spectail.basics.schema import checked, parse_json
from spectail.basics.texts import first_line, first_names
from spectail.errors import SourceError
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.remote_path import open_at_once, refuse_denied
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.naming.names import natural_key


def read_index(index: FilePath) -> tuple[list[FilePath], list[str]]:
    """Return the files that an index names, all from its own folder, and its tensors' names.

    Raises:
        SourceError: The file is no index, it names a shard elsewhere, or a shard is missing or may
            not be read.

    """
    try:
        stored = checked(dict[str, Any], parse_json(index.read_text(encoding="utf-8")))
        weight_map = checked(dict[str, str], stored.get("weight_map"))
    except ValueError as error:  # also text that is not UTF-8
        raise SourceError(
            f"{index} is not an index of shards: "
            f"expected JSON with a 'weight_map' from tensor to file name ({first_line(error)})"
        ) from None
    names = sorted(set(weight_map.values()), key=natural_key)
    if not names:
        raise SourceError(
            f"{index} is an index of shards that names none; download the model again"
        )
    folder = index.parent
    open_at_once(folder / name for name in names if Path(name).name == name)
    missing = []
    for name in names:
        # A downloaded index must not make this read any other file of the user's.
        if Path(name).name != name or name in {"", ".", ".."} or "\\" in name:
            raise SourceError(
                f"{index} names the shard {name!r} outside of its own folder; "
                "expected plain file names"
            )
        if not (folder / name).is_file():
            missing.append(name)
    if missing:
        # The address of the index may be signed for this file alone.
        refuse_denied(folder / missing[0])
        raise SourceError(
            f"shard {first_names(missing)} of {index} is missing; download the model again"
        )
    return [folder / name for name in names], list(weight_map)


def names_without_shard(promised: Iterable[str], tensors: Sequence[LazyTensor]) -> tuple[str, ...]:
    """Return a note on the tensors that an index names and no shard holds."""
    there = {stored.name for stored in tensors}
    promised = list(promised)
    lost = [name for name in promised if name not in there]
    # If all names are missing, the format translates names and none can match the index.
    if not lost or len(lost) == len(promised):
        return ()
    return (f"the index names {first_names(lost)}, which no shard holds",)
