"""HDF5 files whose lists of free places end, whatever was deleted, and those whose lists do not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spectail.errors import SourceError
from spectail.models.formats.hdf5_heaps import CheckedStream
from spectail.models.formats.open_file import OpenFile
from spectail.models.open import open_source

HEAP = b"HEAP\0\0\0\0"
DENSE = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)


def keras_with_free_places(**options: Any) -> bytes:
    """A file with groups that were deleted, so that its heap has several free places."""
    stream = io.BytesIO()
    with h5py.File(stream, "w", **options) as file:
        for number in range(9):
            file.create_dataset(f"layers/a_dense_layer_{number}/vars/0", data=DENSE)
        for number in range(1, 9, 2):
            del file[f"layers/a_dense_layer_{number}"]
    return stream.getvalue()


def numbers(data: bytes, place: int, count: int) -> list[int]:
    """The 64-bit numbers at a place."""
    return [int.from_bytes(data[place + 8 * i : place + 8 * i + 8], "little") for i in range(count)]


def list_of(data: bytes, heap: int, base: int = 0) -> list[int]:
    """The places in the file of a heap's free places."""
    _, free, segment = numbers(data, heap + 8, 3)
    found = []
    while free != 1:
        found.append(base + segment + free)
        (free,) = numbers(data, found[-1], 1)
    return found


def longest_list(data: bytes, base: int = 0) -> list[int]:
    heaps = [at for at in range(len(data)) if data.startswith(HEAP, at)]
    return max((list_of(data, heap, base) for heap in heaps), key=len)


def first_of_list(data: bytes, base: int, first: int) -> int:
    """What the heap whose list begins at this place of the file calls the place."""
    heaps = [at for at in range(len(data)) if data.startswith(HEAP, at)]
    (heap,) = (at for at in heaps if list_of(data, at, base)[:1] == [first])
    return numbers(data, heap + 8, 2)[1]


def read_through(stream: CheckedStream, step: int) -> None:
    while stream.readinto(bytearray(step)):
        pass


@pytest.mark.parametrize("options", [{}, {"userblock_size": 1024}, {"libver": "latest"}])
def test_files_with_free_places_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    data = keras_with_free_places(**options)
    if "libver" not in options:
        assert len(longest_list(data, options.get("userblock_size", 0))) > 1
    (tmp_path / "m.h5").write_bytes(data)
    layers = open_source(tmp_path / "m.h5").layers
    assert [layer.name for layer in layers] == [
        f"a_dense_layer_{number}" for number in range(0, 9, 2)
    ]
    assert all(np.array_equal(layer.read()[0].numpy(), DENSE.T) for layer in layers)


@pytest.mark.parametrize("base", [0, 512, 4096])
@pytest.mark.parametrize("back_to", [0, -1])
@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
def test_a_list_without_end_is_refused(tmp_path: Path, base: int, back_to: int, step: int) -> None:
    """The heap is found at whatever places a reader stops."""
    data = bytearray(keras_with_free_places(userblock_size=base))
    places = longest_list(bytes(data), base)
    free = places[back_to] - places[0] + first_of_list(bytes(data), base, places[0])
    data[places[-1] : places[-1] + 8] = free.to_bytes(8, "little")
    (tmp_path / "m.h5").write_bytes(data)
    stream = CheckedStream(OpenFile(tmp_path / "m.h5"), 0)
    with pytest.raises(SourceError, match=r"m\.h5 is damaged: a list of free places leads back"):
        read_through(stream, step)
