from pathlib import Path

import pytest

from spectail.basics.files import all_or_nothing, write_text


def test_a_file_gets_its_name_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with all_or_nothing(path) as (part,):
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_keeps_what_was_there_and_leaves_nothing_else(tmp_path: Path) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "folder"
    old.write_text("old")

    def fail() -> None:
        with all_or_nothing(old, new) as (file, folder):
            file.write_text("half")
            folder.mkdir()
            (folder / "inner").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert old.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]


def test_a_folder_and_what_a_killed_run_left(tmp_path: Path) -> None:
    stale = tmp_path / ".out.part"
    stale.mkdir()
    (stale / "leftover").write_text("from a killed run")
    with all_or_nothing(tmp_path / "out") as (part,):
        part.mkdir()
        (part / "model").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]


def test_names_are_given_in_order_and_a_missing_one_stops_there(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")

    def write_two_of_three() -> None:
        with all_or_nothing(first, second, third) as (a, _, c):
            a.write_text("a")
            c.write_text("c")

    with pytest.raises(FileNotFoundError):
        write_two_of_three()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_text_is_utf8_with_unix_lines_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and longer than the new one")
    assert write_text(path, "α\n") == path
    assert path.read_bytes() == b"\xce\xb1\n"
