"""The mutators reach what they are made for, and give the same bytes for the same seed."""

import io
import json
import pickletools
import zipfile
from collections.abc import Callable
from random import Random

import pytest

from . import seeds, structure
from .mutate import mutate_bytes

FILES: dict[str, tuple[Callable[..., bytes], Callable[[], bytes]]] = {
    "safetensors": (
        structure.safetensors_entries,
        lambda: next(seeds.safetensors()).files["model.safetensors"],
    ),
    "gguf": (structure.gguf_fields, lambda: [*seeds.gguf_files()][1].files["model.gguf"]),
    "zip": (structure.zip_headers, lambda: next(iter(next(seeds.torch_files()).files.values()))),
    "pickle": (structure.pickle_opcodes, lambda: [*seeds.pickles()][1].files["model.pkl"]),
    "hdf5": (structure.hdf5_blocks, lambda: [*seeds.hdf5()][1].files["model.weights.h5"]),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_seed_gives_the_same_damage(name: str) -> None:
    mutator, good = FILES[name]
    content = good()
    made = [mutator(Random(i), content) for i in range(200)]
    assert made == [mutator(Random(i), content) for i in range(200)]
    assert sum(damaged != content for damaged in made) > 150
    assert len(set(made)) > 60


def test_headers_of_tensors_stay_json() -> None:
    content = FILES["safetensors"][1]()
    for i in range(100):
        damaged = structure.safetensors_entries(Random(i), content)
        json.loads(damaged[8 : 8 + int.from_bytes(damaged[:8], "little")])


def test_opcodes_are_found_to_the_last() -> None:
    content = FILES["pickle"][1]()
    pieces = structure._opcodes(content)
    assert b"".join(pieces) == content
    assert len(pieces) == len([*pickletools.genops(content)]) + 1
    assert pieces[-2] == b"."


def test_gguf_fields_are_found_to_the_last() -> None:
    content = FILES["gguf"][1]()
    found = structure._gguf_places(content)
    kinds = [kind for kind, _, _ in found]
    assert {"version", "count", "length", "array", "type", "value", "shape", "offset"} <= {*kinds}
    n_tensors = int.from_bytes(content[8:16], "little")
    assert kinds.count("offset") == n_tensors > 3


def test_directories_and_headers_of_archives_contradict_each_other() -> None:
    content = FILES["zip"][1]()
    opened = 0
    for i in range(200):
        damaged = structure.zip_headers(Random(i), content)
        assert len(damaged) == len(content)
        try:
            with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
                opened += bool(archive.infolist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            continue
    assert 20 < opened < 200


def test_damage_of_both_kinds_is_mixed() -> None:
    mixed = structure.sometimes(0.5, lambda rng, content: b"", mutate_bytes)
    made = [mixed(Random(i), b"x" * 100) for i in range(100)]
    assert 20 < made.count(b"") < 80
