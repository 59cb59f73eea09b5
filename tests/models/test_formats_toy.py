"""A new format is one file and one line: a made-up text format goes the
whole way, alone and in a folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from spectail.cli import run
from spectail.errors import SourceError
from spectail.models.formats import table
from spectail.models.formats.format import Contents, Format
from spectail.models.lazy_tensor import LazyTensor, piece_of
from spectail.models.open import open_source

# --- the one file ---------------------------------------------------------------------------------


def read_toy(files: Any) -> Contents:
    """Lines of JSON: a name, rows and columns; then the numbers as text."""
    tensors = []
    for file in files:
        if not file.size:
            raise SourceError(f"{file.path} is empty; expected a toy file")
        for line in bytes(file.read(0, file.size)).decode().splitlines()[1:]:
            name, shape, numbers = json.loads(line)
            read = partial(read_numbers, numbers, shape)
            tensors.append(LazyTensor(name, tuple(shape), "float32", read))
    return Contents(tensors, notes=("a toy",))


def read_numbers(numbers: Any, shape: tuple[int, ...], index: Any) -> Any:
    return piece_of(torch.tensor(numbers).reshape(shape), index)


TOY = Format(
    "a toy file", (".toy",), read_toy, looks_like=lambda start, size: start.startswith(b"TOY\n")
)

# --------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "FORMATS", [*table.FORMATS, TOY])  # the one line


def weight(number: int) -> Any:
    return np.random.default_rng(number).standard_normal((80, 96)).astype(np.float32)


def write(path: Path) -> Path:
    lines = [
        [f"model.layers.{i}.mlp.up_proj.weight", [80, 96], weight(i).ravel().tolist()]
        for i in (0, 1)
    ]
    path.write_text("TOY\n" + "\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("where", ["file", "folder", "other ending"])
def test_a_toy_format_goes_the_whole_way(toy: Any, where: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = write(folder / ("model.toy" if where != "other ending" else "blob"))
    source = folder if where == "folder" else path
    rows = st.analyze(source).table
    assert list(rows["name"]) == ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    assert list(rows["kind"]) == ["up", "up"]
    expected = [st.tail_fit(weight(i)).alpha for i in (0, 1)]
    np.testing.assert_allclose(rows["alpha"], expected, rtol=1e-6)
    assert run(["analyze", str(source), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    written = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert "a toy" in json.dumps(written)


def test_damage_that_a_format_does_not_find_is_one_line(toy: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "model.toy")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(SourceError, match="is not readable as a toy file: it is damaged") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_the_ending_is_unknown_without_the_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is of no known format"):
        open_source(write(tmp_path / "model.toy"))
