"""Laws of every file format: the values come back, damage is one line, a slice
reads a slice, layers can be sent."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from spectail.errors import SourceError
from spectail.models.formats.ranges import StoredArray
from spectail.models.formats.table import FORMATS
from spectail.models.open import open_source

from .format_cases import WRITERS, state


def values_of(source: Any) -> dict[str, Any]:
    return {f"{layer.name}.weight": layer.read()[0].numpy() for layer in source.layers}


def weights(values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value.ndim > 1}


def same(found: Any, expected: Any) -> Any:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )


def test_every_format_has_a_writer_here() -> None:
    assert {name.partition(",")[0] for name in WRITERS} == {form.name for form in FORMATS}


@pytest.mark.parametrize("case", WRITERS)
def test_names_orientation_and_values_come_back(case: Any, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state())
    source = open_source(path)
    assert same(values_of(source), weights(state()))
    assert [layer.name for layer in source.layers] == ["layers.0", "layers.1"]
    assert source.n_vectors == 1


@pytest.mark.parametrize("case", WRITERS)
def test_a_folder_of_the_format_is_opened(case: Any, tmp_path: Path) -> None:
    WRITERS[case](tmp_path, state())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert same(values_of(open_source(tmp_path)), weights(state()))


@pytest.mark.parametrize("case", WRITERS)
def test_content_counts_where_the_ending_is_none_or_another(case: Any, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state())
    if case == "a msgpack file of Flax":
        pytest.skip("nothing at its beginning tells a msgpack file")
    for name in ("blob", "wrong.safetensors", "wrong.bin"):
        shutil.copy(path, tmp_path / name)
        assert same(values_of(open_source(tmp_path / name)), weights(state()))


@pytest.mark.parametrize("case", WRITERS)
def test_saving_again_in_the_same_process_gives_the_new_values(case: Any, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state(1))
    first = open_source(path)
    assert same(values_of(first), weights(state(1)))
    path = WRITERS[case](tmp_path, state(2))
    second = open_source(path)
    assert same(values_of(second), weights(state(2)))
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("case", WRITERS)
def test_layers_can_be_sent_to_another_process(case: Any, tmp_path: Path) -> None:
    source = open_source(WRITERS[case](tmp_path, state()))
    for layer, copy in zip(source.layers, pickle.loads(pickle.dumps(source.layers)), strict=True):
        assert torch.equal(layer.read(), copy.read())


@pytest.mark.parametrize("case", WRITERS)
def test_a_file_that_ends_early_is_one_line(case: Any, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state())
    content = path.read_bytes()
    cut = path.with_name("cut" + path.suffix if path.suffix else "cut.metadata")
    for size in sorted({*range(0, len(content), max(1, len(content) // 60)), len(content) - 1}):
        cut.write_bytes(content[:size])
        with pytest.raises(SourceError) as caught:
            values_of(open_source(cut))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", WRITERS)
def test_damage_is_an_error_of_ours_or_other_values(case: Any, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state())
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    refused = []
    for _ in range(60):
        damaged = content.copy()
        for position in generator.integers(0, min(len(content), 700), size=3):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            for layer in open_source(path).layers:
                if layer.problem is None and not layer.no_weight:
                    layer.read()
        except SourceError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in text for text in refused)


@pytest.mark.parametrize(
    "case", ["a safetensors file", "a file of torch.save", "a GGUF file", "a file of numpy"]
)
def test_a_slice_reads_its_own_bytes_only(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = StoredArray.read

    def spy(array: Any, index: Any = ()) -> Any:
        piece = original(array, index)
        read.append(piece.untyped_storage().nbytes())
        return piece

    monkeypatch.setattr(StoredArray, "read", spy)
    values = {"layers.0.weight": state(rows=640)["layers.0.weight"]}
    (layer,) = open_source(WRITERS[case](tmp_path, values)).layers
    read.clear()
    piece = layer.tensor.read((slice(64, 72), slice(0, 32)))
    assert np.array_equal(piece.numpy(), values["layers.0.weight"][64:72])
    assert max(read) == 8 * 32 * 4


INDICES = [
    (),
    (2,),
    (-1,),
    (slice(1, 3),),
    (slice(None), 1),
    (slice(None), slice(1, 4, 2)),
    (1, slice(None), -2),
]


@pytest.mark.parametrize("index", [*INDICES, (slice(3, 1),), (slice(None, None, -1),), (0, 0, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_index_gives_what_numpy_gives(
    index: tuple[Any, ...], order: Literal["C", "F"], tmp_path: Path
) -> None:
    values = np.asarray(np.random.default_rng(0).standard_normal((4, 5, 6)), order=order)
    np.save(tmp_path / "a.npy", values)
    tensor = open_source(tmp_path / "a.npy").layers[0].tensor
    if any(isinstance(part, slice) and (part.step or 1) < 0 for part in index):
        with pytest.raises(ValueError, match="step must be greater than zero"):
            tensor.read(index)  # torch knows no negative steps either
        return
    assert np.array_equal(tensor.read(index).numpy(), values[index])
