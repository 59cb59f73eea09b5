"""Servers that state neither ETag nor date: a file swapped for one of equal size is noticed."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.models.open import open_source
from spectail.models.source import Source
from tests.models.format_cases import WRITERS, state
from tests.models.servers import Server, serve

SILENT: dict[str, Any] = {"etags": False, "dates": False}
"""Options of a server that says nothing by which a change could be noticed."""


def layers(seed: int, count: int = 10, side: int = 200) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.weight": torch.randn(side, side, generator=generator) for i in range(count)
    }


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    save_file(layers(0), tmp_path / "site" / "m.safetensors")
    return tmp_path / "site"


def other_weights(path: Path) -> None:
    """Write other weights: same header, same size."""
    save_file(layers(1), path)


def one_other_layer(path: Path) -> None:
    """Write the same weights but for the last layer, as a fine-tuned model may have."""
    save_file(layers(0) | {"layers.9.weight": layers(1)["layers.9.weight"]}, path)


def names_exchanged(path: Path) -> None:
    """Exchange the names of two layers in the header; the weights stay where they are."""
    data = path.read_bytes()
    data = data.replace(b"layers.2.", b"layers.x.").replace(b"layers.7.", b"layers.2.")
    path.write_bytes(data.replace(b"layers.x.", b"layers.7."))


def at_request(number: int, change: Callable[[Path], None], path: Path) -> Callable[..., None]:
    """Change a file on the server when the request of this number arrives."""

    def changing(server: Server) -> None:
        if len(server.requests) == number:
            change(path)

    return changing


def requests_of(site: Path) -> tuple[int, int]:
    """The requests until the first layer is read, and until the last one was."""
    with serve(site, **SILENT) as server:
        seen: list[int] = []
        st.analyze(
            f"{server.url}/m.safetensors", progress=lambda *_: seen.append(len(server.requests))
        )
        return seen[0], seen[-1]


def check(source: Source) -> None:
    """Check all files of a source, as a run does at its end."""
    for file in source.files:
        file.check_path()


@pytest.mark.parametrize("change", [other_weights, names_exchanged])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_swapped_file_ends_the_run_with_rows_of_one_model(
    site: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    share: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = site / "m.safetensors"
    truth, size = st.analyze(path).table.set_index("name"), path.stat().st_size
    opening, measured = requests_of(site)
    moment = opening + 1 + int(share * (measured - opening - 1))
    with serve(site, on_request=at_request(moment, change, path), **SILENT) as server:
        command = ["analyze", f"{server.url}/m.safetensors", "--out", str(tmp_path / "run")]
        assert run(command) == 2
        message = capsys.readouterr().err.strip()
        assert path.stat().st_size == size
        assert "m.safetensors has changed since it was opened: open it again" in message
        assert message.count("\n") == 0
        journal = tmp_path / "run" / ".progress.jsonl"
        assert f"{journal} keeps the layers measured before" in message
        rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
        if change is other_weights:
            for row in rows:
                assert row["alpha"] == pytest.approx(truth.loc[row["name"], "alpha"], rel=1e-9)
        # What the journal holds is of the first model: the second does not go on with it.
        assert run(command) == 2
        assert "holds a run of another model" in capsys.readouterr().err


@pytest.mark.parametrize("change", [other_weights, names_exchanged, one_other_layer])
def test_a_file_swapped_after_the_last_layer_is_noticed(
    site: Path, change: Callable[[Path], None]
) -> None:
    def act(layer: object, done: int, total: int) -> None:
        if layer is None:
            change(site / "m.safetensors")

    with serve(site, **SILENT) as server, pytest.raises(st.SourceChangedError, match="has changed"):
        st.analyze(f"{server.url}/m.safetensors", progress=act)


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_is_watched(tmp_path: Path, form: str) -> None:
    """Read half of the layers, exchange bytes of the file, and read the rest or check."""
    (tmp_path / "m").mkdir()
    path = WRITERS[form](tmp_path / "m", state(rows=400))
    files = [file for file in (tmp_path / "m").rglob("*") if file.is_file()]
    with serve(tmp_path, **SILENT) as server:
        source = open_source(f"{server.url}/{path.relative_to(tmp_path)}")
        source.layers[0].read()
        for file in files:
            data = bytearray(file.read_bytes())
            data[len(data) // 3 :] = random.Random(0).randbytes(len(data) - len(data) // 3)
            file.write_bytes(data)
        with pytest.raises(st.SourceChangedError, match="has changed since it was opened"):
            check(source)


def test_a_header_longer_than_the_first_bytes_is_watched(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    filler = {f"norm.with.a.long.name.{i:05d}.weight": torch.ones(1) for i in range(3000)}
    save_file(filler | {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 64)}, path)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header > 2**17
    with serve(tmp_path, **SILENT) as server:
        source = open_source(f"{server.url}/m.safetensors")
        check(source)
        data = path.read_bytes()
        place = header - 2000
        path.write_bytes(data[:place] + data[place:header].swapcase() + data[header:])
        with pytest.raises(st.SourceChangedError):
            check(source)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_unchanged_file_is_read_as_before_at_little_cost(site: Path, ranges: bool) -> None:
    with serve(site, ranges=ranges) as server:
        expected = st.analyze(f"{server.url}/m.safetensors").table
        usual = server.sent
    with serve(site, ranges=ranges, **SILENT) as server:
        found = st.analyze(f"{server.url}/m.safetensors").table
        assert server.sent - usual < 2**20 + 1e5
    pd.testing.assert_frame_equal(
        found.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True
    )


def test_the_fingerprint_depends_on_the_weights_and_not_on_the_server(site: Path) -> None:
    path = site / "m.safetensors"
    with serve(site, **SILENT) as first, serve(site, **SILENT) as second:
        before = open_source(f"{first.url}/m.safetensors").fingerprint
        assert open_source(f"{second.url}/m.safetensors").fingerprint == before
        # The first 64 KiB stay as they are: they lie in the first layer.
        save_file(layers(1) | {"layers.0.weight": layers(0)["layers.0.weight"]}, path)
        assert open_source(f"{second.url}/m.safetensors").fingerprint != before


def test_another_process_opens_the_same_content_only(site: Path) -> None:
    path = site / "m.safetensors"
    with serve(site, **SILENT) as server:
        source = open_source(f"{server.url}/m.safetensors")
        sent = pickle.dumps(source.layers)
        pickle.loads(sent)
        save_file(layers(1) | {"layers.0.weight": layers(0)["layers.0.weight"]}, path)
        with pytest.raises(st.SourceChangedError, match="has changed"):
            pickle.loads(sent)
