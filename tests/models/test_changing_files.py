"""Files that change while a model is open: the values stay those of the
fingerprint, or there is one clear error."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spectail as st
from spectail.errors import SourceChangedError, SourceError
from spectail.models.formats import folders
from spectail.models.formats.open_file import OpenFile
from spectail.models.open import open_source

from .format_cases import WRITERS, state, write_safetensors

IN_MEMORY = {"an ONNX model"}
"""Formats whose values are read when the model is opened: they stay what they were."""


def data_file(path: Path) -> Path:
    """The file that holds the numbers."""
    return next(path.parent.glob("*.distcp"), path)


def smaller(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def larger(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"0" * 4096)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-40] + bytes(40))


CHANGES = {"smaller": smaller, "larger": larger, "empty": emptied, "same size": overwritten}


def renamed_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:50])
    other.replace(path)


KEPT = {"deleted": os.unlink, "another file renamed over it": renamed_over}


def values_of(source: Any) -> list[Any]:
    return [layer.read()[0].numpy().copy() for layer in source.layers]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", WRITERS)
def test_a_file_that_is_written_in_place_is_refused(case: Any, change: str, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state())
    source = open_source(path)
    before = values_of(source)
    CHANGES[change](data_file(path))
    if case in IN_MEMORY:
        assert all(map(np.array_equal, values_of(source), before))
        return
    with pytest.raises(
        SourceChangedError, match="has changed since it was opened: open it again"
    ) as caught:
        values_of(source)
    assert str(data_file(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", KEPT)
@pytest.mark.parametrize("case", WRITERS)
def test_what_was_opened_stays_readable(case: Any, change: str, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state())
    source = open_source(path)
    before = values_of(source)
    KEPT[change](data_file(path))
    assert all(map(np.array_equal, values_of(source), before))


@pytest.mark.parametrize("case", WRITERS)
def test_python_survives_a_truncation(case: Any, tmp_path: Path) -> None:
    path = WRITERS[case](tmp_path, state(rows=4096))
    code = (
        "import os, sys\n"
        "from spectail.models.open import open_source\nfrom spectail.errors import SourceError\n"
        "source = open_source(sys.argv[1])\nos.truncate(sys.argv[2], 100)\n"
        "try:\n    for layer in source.layers: layer.read()\n"
        "except SourceError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, path, data_file(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("has changed since" in done.stdout) == (case not in IN_MEMORY)


def test_an_epoch_saved_over_the_last_never_mixes_values_and_fingerprints(tmp_path: Path) -> None:
    opened = []
    for epoch in range(5):
        path = write_safetensors(tmp_path, state(epoch))
        opened.append(open_source(path))
        assert np.array_equal(opened[-1].layers[0].read()[0], state(epoch)["layers.0.weight"])
    assert len({source.fingerprint for source in opened}) == 5
    for epoch, source in enumerate(opened[:-1]):
        try:
            found = source.layers[0].read()[0]
        except SourceChangedError:
            continue
        assert np.array_equal(
            found, state(epoch)["layers.0.weight"]
        )  # saved by renaming: the old file is still open


def test_fingerprint_and_header_come_from_one_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_safetensors(tmp_path, state())
    module: Any = folders
    original = module.fingerprint_files

    def late(files: Any) -> Any:
        overwritten(path)
        return original(files)

    monkeypatch.setattr(folders, "fingerprint_files", late)
    with pytest.raises(SourceChangedError, match="open it again"):
        open_source(path)


def test_a_run_stops_where_its_file_changes(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, state(rows=64))
    with pytest.raises(SourceChangedError, match="open it again"):
        st.analyze(path, progress=lambda layer, done, total: overwritten(path))


def test_a_layer_that_was_sent_elsewhere_refuses_another_content(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, state())
    sent = pickle.dumps(open_source(path).layers)
    overwritten(path)
    with pytest.raises(SourceChangedError, match="open it again"):
        pickle.loads(sent)
    path.unlink()
    with pytest.raises(SourceChangedError, match="open it again"):
        pickle.loads(sent)


def test_a_write_right_after_opening_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for _ in range(20):
        path.write_bytes(b"1" * 100)
        file = OpenFile(path)
        path.write_bytes(b"2" * 100)
        with pytest.raises(SourceChangedError):
            file.read(0, 10)


def test_an_old_file_is_opened_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    # Days, so that a new file is new on any machine.
    monkeypatch.setattr("spectail.models.formats.open_file._CLOCK_TICK", 10**15)
    monkeypatch.setattr("spectail.models.formats.open_file.time.sleep", pauses.append)
    path = tmp_path / "a"
    path.write_bytes(b"1")
    OpenFile(path)
    assert pauses == [10**6], "it was just written"
    os.utime(path, (1, 1))
    OpenFile(path)
    assert pauses == [10**6]


def test_files_are_closed_without_a_warning(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, state())
    source = open_source(path)
    held = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del source
        gc.collect()
    if held:
        open_files = [
            os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
        ]
        assert str(path) not in open_files


def test_a_stream_reads_as_a_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)))
    stream = OpenFile(path).stream(50, 100)
    assert stream.read(3) == bytes([50, 51, 52])
    assert stream.seek(-2, os.SEEK_END) == 98
    assert stream.read() == bytes([148, 149])
    with pytest.raises(SourceError, match="ends before byte 300"):
        OpenFile(path).read_into(100, memoryview(bytearray(200)))
