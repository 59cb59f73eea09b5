"""Texts: files, and datasets of the hub as the datasets library gives them."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spectail.errors import SourceError
from spectail.evaluation.texts import read_text


class Rows:
    column_names = ("text", "title")

    def __getitem__(self, column: str) -> Any:
        return {"text": ["one", "two"], "title": ["a", "b"]}[column]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the library: notes what is asked for."""
    calls = []

    def load_dataset(name: str, config: Any, *, split: Any) -> Rows:
        calls.append((name, config, split))
        if name == "no/such":
            raise FileNotFoundError("not on the hub\nand more")
        return Rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("á\n\nb", encoding="utf-8")
    assert read_text(path) == read_text(str(path)) == "á\n\nb"


@pytest.mark.parametrize(
    ("given", "call", "text"),
    [
        ("org/name", ("org/name", None, "test"), "one\n\ntwo"),
        ("org/name:raw", ("org/name", "raw", "test"), "one\n\ntwo"),
        ("org/name::train", ("org/name", None, "train"), "one\n\ntwo"),
        ("org/name:raw:train:title", ("org/name", "raw", "train"), "a\n\nb"),
    ],
)
def test_a_dataset_is_joined_by_empty_lines(
    asked: list[Any], given: str, call: tuple[str, str | None, str], text: str
) -> None:
    assert read_text(given) == text
    assert asked == [call]


def test_a_file_of_a_datasets_name_wins(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("mine")
    assert read_text("org/name") == "mine"
    assert not asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no/such", r"dataset no/such cannot be loaded: not on the hub$"),
        ("org/name:a:b:words", r"dataset org/name has no column 'words', but text, title$"),
        (
            "org/name:a:b:c:d",
            r"org/name:a:b:c:d has too many parts; expected a UTF-8 file, or a hub dataset",
        ),
        ("none.txt", r"no text file at none.txt; expected a UTF-8 file, or a hub dataset"),
        ("~nobody_at_all/x.txt", r"no text file at ~nobody_at_all/x.txt; expected a UTF-8 file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    asked: list[Any], given: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read_text(given)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        SourceError, match=r"no file org/name, and a hub dataset needs datasets: pip install"
    ):
        read_text("org/name")


def test_bytes_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SourceError, match="b is no UTF-8 text"):
        read_text(tmp_path / "b")


def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "notepad.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read_text(tmp_path / "notepad.txt") == "one\ntwo"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux has such a file")
def test_a_file_that_cannot_be_read_is_one_line() -> None:
    with pytest.raises(SourceError, match=r"^cannot read /proc/self/mem: Input/output error$"):
        read_text("/proc/self/mem")
