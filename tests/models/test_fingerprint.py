"""What identifies a source: its content, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectail.models.formats import fingerprint
from spectail.models.formats.open_file import OpenFile
from spectail.models.open import open_source


def test_place_and_time_do_not_enter(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 4)}, tmp_path / "m.safetensors")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "m.safetensors", tmp_path / "other")
    os.utime(tmp_path / "other" / "m.safetensors", (1, 1))
    first, second = (
        open_source(tmp_path / "m.safetensors"),
        open_source(tmp_path / "other" / "m.safetensors"),
    )
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint.startswith("sha256:")


def test_one_value_enters(tmp_path: Path) -> None:
    weight = torch.ones(3, 4)
    save_file({"a": weight}, tmp_path / "m.safetensors")
    before = open_source(tmp_path / "m.safetensors").fingerprint
    weight[2, 3] = 2
    save_file({"a": weight}, tmp_path / "m.safetensors")
    assert open_source(tmp_path / "m.safetensors").fingerprint != before


@pytest.mark.parametrize("position", [0, 3 * 2**20 + 100, 5 * 2**20 + 6])
def test_large_files_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE_FILE", 2**20)
    path = tmp_path / "large"
    content = bytearray(5 * 2**20 + 7)
    path.write_bytes(content)
    before = fingerprint.fingerprint_files([("large", OpenFile(path))])
    content[position] = 1
    path.write_bytes(content)
    assert fingerprint.fingerprint_files([("large", OpenFile(path))]) != before


def test_live_weights_enter_and_training_mode_does_not() -> None:
    model = nn.Linear(3, 4)
    before = open_source(model).fingerprint
    assert open_source(model.eval()).fingerprint == before
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert open_source(model).fingerprint != before


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.int64, torch.bool]
)
def test_all_types_can_be_hashed(dtype: torch.dtype) -> None:
    assert open_source({"a.weight": torch.ones(2, 2), "b": torch.ones(2, 2).to(dtype)}).fingerprint


def test_large_tensors_are_sampled_in_every_column() -> None:
    state = {"a.weight": torch.zeros(2048, 2048)}
    before = open_source(state).fingerprint
    state["a.weight"][:, 7] = 1
    assert open_source(state).fingerprint != before


def test_tensors_that_are_conjugated_or_negated_later_enter_with_their_values() -> None:
    values = torch.randn(20, 24, dtype=torch.complex64)
    late = {"a.weight": values.conj(), "b.weight": values.conj().imag}
    now = {"a.weight": values.conj().resolve_conj(), "b.weight": (-values.imag).contiguous()}
    assert late["b.weight"].is_neg()
    opened = open_source(late)
    assert opened.fingerprint == open_source(now).fingerprint
    for layer, expected in zip(opened.layers, now.values(), strict=True):
        read = layer.read()[0]
        assert not read.is_conj()
        assert not read.is_neg()
        torch.testing.assert_close(read, expected)
