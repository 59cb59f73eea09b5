"""torch's distributed checkpoints: a ``.metadata`` file and ``__0_0.distcp`` files with pieces.

The metadata is a pickle of classes of ``torch.distributed.checkpoint.metadata``, read as data. Each
piece of a tensor is an archive of ``torch.save`` within a file. A tensor that was spread over
processes is assembled when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spectail.errors import SourceError
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.pickled import Inert, TensorRef
from spectail.models.formats.ranges import StoredArray, stored_tensor
from spectail.models.formats.remote_path import open_file
from spectail.models.formats.state_dict import state_tensors
from spectail.models.formats.torch_pickle import load_archive, load_pickle
from spectail.models.lazy_tensor import Index, LazyTensor, dtype_name, piece_of

Pieces: TypeAlias = "list[tuple[tuple[int, ...], StoredArray]]"
"""The pieces of a tensor: where each begins in the tensor, and where it lies in a file."""


def read_distcp(files: Sequence[ReadableFile]) -> Contents:
    """Describe the model's tensors of a distributed checkpoint, without those of the optimizer."""
    (file,) = files
    value, _ = load_pickle(file)
    reader = _Reader(file)
    try:
        tree = reader.tree(value.state())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SourceError(
            f"{file.path} is not the metadata of a distributed checkpoint that is known here; "
            "convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{file.path.parent} model.pt"
        ) from None
    tensors = state_tensors(tree)
    if not tensors:
        raise SourceError(
            f"{file.path.parent} is a distributed checkpoint without tensors of a model"
        )
    return Contents(tensors, more_files=tuple(reader.files.values()))


class _Reader:
    """Finds the pieces that the metadata names."""

    def __init__(self, file: ReadableFile) -> None:
        """Start with the metadata's file; files with pieces are opened when they are needed."""
        self.folder = file.path.parent
        self.files: dict[str, ReadableFile] = {}

    def tree(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Describe all tensors, nested as the saved dicts were."""
        pieces: dict[str, Pieces] = {}
        for index, place in metadata["storage_data"].items():
            # ``fqn`` is the tensor's full name. Entries without chunks are pickled Python objects.
            where = index.state()
            known = metadata["state_dict_metadata"].get(where["fqn"])
            if isinstance(known, Inert) and "chunks" in known.state():
                start = tuple(where.get("offset") or ())
                pieces.setdefault(where["fqn"], []).append((start, self._piece(place.state())))
        # Full names join keys with dots, and keys may hold dots
        # themselves. The planner's data keeps the keys apart.
        paths = metadata.get("planner_data") or {}
        tree: dict[str, Any] = {}
        for name, parts in pieces.items():
            shape = tuple(metadata["state_dict_metadata"][name].state()["size"])
            *outer, last = map(str, paths.get(name) or (name,))
            place = tree
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = _tensor(name, shape, parts)
        return tree

    def _piece(self, place: Mapping[str, Any]) -> StoredArray:
        """Find where the numbers of one piece lie."""
        name = PurePosixPath(place["relative_path"])
        # A checkpoint from elsewhere must not make this read any other file of the user's.
        if name.is_absolute() or ".." in name.parts:
            raise SourceError(
                f"{self.folder}/.metadata names the file {str(name)!r} outside of its own folder"
            )
        if str(name) not in self.files:
            if not (self.folder / name).is_file():
                raise SourceError(
                    f"{name} of the distributed checkpoint {self.folder} is missing; "
                    "copy all its files"
                )
            self.files[str(name)] = open_file(self.folder / name)
        value, _ = load_archive(self.files[str(name)], place["offset"], place["length"])
        if not isinstance(value, TensorRef) or value.problem:
            raise ValueError(place["relative_path"])
        return value.array()


def _tensor(name: str, shape: tuple[int, ...], pieces: Pieces) -> LazyTensor:
    """Describe a tensor by its pieces, which must fill it."""
    # Pieces do not overlap, so that the number of elements shows whether any is missing.
    if sum(torch.Size(array.shape).numel() for _, array in pieces) != torch.Size(shape).numel():
        raise SourceError(
            f"the pieces of {name!r} do not fill its shape {shape}: "
            "files of some processes are missing"
        )
    if len(pieces) == 1:
        return stored_tensor(name, pieces[0][1])
    dtype = dtype_name(pieces[0][1].dtype)
    return LazyTensor(name, shape, dtype, partial(_put_together, shape, pieces))


def _put_together(shape: tuple[int, ...], pieces: Pieces, index: Index) -> Tensor:
    """Read the pieces into one tensor."""
    whole = torch.empty(shape, dtype=pieces[0][1].dtype)
    for start, array in pieces:
        box = tuple(
            slice(first, first + size) for first, size in zip(start, array.shape, strict=True)
        )
        whole[box] = array.read()
    return piece_of(whole, index)


FORMAT = Format(
    name="a distributed checkpoint of torch",
    suffixes=(".metadata",),
    read=read_distcp,
    looks_like=lambda start, size: b"torch.distributed.checkpoint.metadata" in start,
    folder=(".metadata",),
)
