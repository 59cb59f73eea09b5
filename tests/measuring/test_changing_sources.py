"""A model that changes while it is measured: one clear line, exit code 2, and no mixed table."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.errors import SourceChangedError
from spectail.measuring.journal import JOURNAL_FILE
from tests.conftest import weights


def folder_of(path: Path, seed: int = 0) -> Path:
    """A model folder of two shards, an index and a configuration."""
    path.mkdir(exist_ok=True)
    state = weights(seed)
    names = list(state)
    where: dict[str, str] = {}
    for number in (1, 2):
        shard = f"model-0000{number}-of-00002.safetensors"
        mine = names[number - 1 :: 2]
        save_file({name: state[name] for name in mine}, path / shard)
        where |= dict.fromkeys(mine, shard)
    index = {"metadata": {}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "hidden_size": 96}))
    return path


def in_place(path: Path, other: Path) -> None:
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def in_place_with_the_old_date(path: Path, other: Path) -> None:
    stat = path.stat()
    in_place(path, other)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def by_a_second_name_with_the_old_date(path: Path, other: Path) -> None:
    path.with_name("second").hardlink_to(path)
    in_place_with_the_old_date(path.with_name("second"), other)


def truncated(path: Path, other: Path) -> None:
    os.truncate(path, 200)


def replaced(path: Path, other: Path) -> None:
    shutil.copy(other, path.with_name("new"))
    path.with_name("new").replace(path)


CHANGES: dict[str, Callable[[Path, Path], None]] = {
    f.__name__: f
    for f in (
        in_place,
        in_place_with_the_old_date,
        by_a_second_name_with_the_old_date,
        truncated,
        replaced,
    )
}
FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("moment", [1, 6, 13])
def test_a_changed_source_ends_the_run_and_the_journal_holds_rows_of_one_model(
    tmp_path: Path, change: str, name: str, moment: int
) -> None:
    model, other = folder_of(tmp_path / "model"), folder_of(tmp_path / "other", seed=1)
    (other / "config.json").write_text(json.dumps({"num_attention_heads": 6, "hidden_size": 96}))
    truth = st.analyze(model).table.set_index("name")
    seen: list[Any] = []

    def progress(layer: Any, done: int, total: int) -> None:
        seen.append(layer)
        if len(seen) == moment:
            CHANGES[change](model / name, other / name)

    with pytest.raises(SourceChangedError) as caught:
        st.analyze(model, out=tmp_path / "run", progress=progress)
    assert f"{name} has changed since it was opened" in str(caught.value)
    journal = tmp_path / "run" / JOURNAL_FILE
    assert f"; {journal} keeps the layers measured before" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [JOURNAL_FILE]
    rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    for row in rows:
        if row["status"] == "ok":
            assert row["alpha"] == pytest.approx(truth.loc[row["name"], "alpha"], rel=1e-9)
    if moment > 6 and change != "truncated":
        assert rows


def test_a_deleted_file_was_read_to_its_end(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model")
    whole = st.analyze(model).table
    again = st.analyze(
        model, progress=lambda layer, done, total: (model / FILES[0]).unlink(missing_ok=True)
    ).table
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_the_command_line_gives_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from spectail.measuring import run as module

    model = folder_of(tmp_path / "model")
    measured: Any = module._measured

    def then_truncated(*args: Any) -> Any:
        yield from measured(*args)
        truncated(model / FILES[1], model)

    monkeypatch.setattr(module, "_measured", then_truncated)
    assert run(["analyze", str(model), "--out", str(tmp_path / "run")]) == 2
    output = capsys.readouterr()
    assert len(output.err.strip().splitlines()) == 1
    assert "has changed since it was opened" in output.err
    assert not (tmp_path / "run" / "analysis.json").exists()


def test_heads_belong_to_the_fingerprint(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model")
    st.analyze(model, out=tmp_path / "run")
    (model / "config.json").write_text(json.dumps({"num_attention_heads": 6, "hidden_size": 96}))
    with pytest.raises(st.RunError, match="holds a run of another model"):
        st.analyze(model, out=tmp_path / "run")


def test_the_base_of_an_adapter_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    base, adapter = folder_of(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    pieces = {
        "lora_A.weight": torch.randn(16, 96),
        "lora_B.weight": torch.randn(96, 16),
        "lora_magnitude_vector": torch.rand(96) + 0.5,
    }
    prefix = "base_model.model.model.layers.0.self_attn.q_proj."
    save_file(
        {prefix + name: piece for name, piece in pieces.items()},
        adapter / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "use_dora": True}
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    before = st.analyze(adapter)
    folder_of(base, seed=1)
    after = st.analyze(adapter)
    assert before.table["alpha"].dropna().tolist() != after.table["alpha"].dropna().tolist()
    assert before.run.fingerprint != after.run.fingerprint
    with pytest.raises(SourceChangedError):
        st.analyze(adapter, progress=lambda *_: replaced(base / FILES[0], base / FILES[1]))
