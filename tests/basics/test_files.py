import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from spectail.basics import files
from spectail.basics.files import (
    all_or_nothing,
    check_writable,
    content_of,
    refuse_foreign,
    write_text,
)
from spectail.errors import RunError


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


WRITE_FOR_EVER = """
import sys, time
from pathlib import Path
from spectail.basics.files import all_or_nothing
with all_or_nothing(Path(sys.argv[1])) as (part,):
    part.mkdir()
    (part / "inner").write_text("half")
    time.sleep(60)
"""


def test_a_folder_and_what_a_killed_run_left(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, tmp_path / "out"])
    while not (found := list(tmp_path.glob(".*.part/out/inner"))):
        time.sleep(0.01)
    with all_or_nothing(tmp_path / "other") as (part,):
        part.write_text("whole")
    assert found[0].exists(), "its process is alive"
    (tmp_path / "other").unlink()
    killed.kill()
    killed.wait()
    assert found[0].exists()
    with all_or_nothing(tmp_path / "out") as (part,):
        part.mkdir()
        (part / "model").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]


def test_one_that_is_missing_keeps_all_others_back(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")

    def write_two_of_three() -> None:
        with all_or_nothing(first, second, third) as (a, _, c):
            a.write_text("a")
            c.write_text("c")

    with pytest.raises(FileNotFoundError):
        write_two_of_three()
    assert not list(tmp_path.iterdir())


def test_names_are_given_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        given.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    with all_or_nothing(*(tmp_path / name for name in "cab")) as parts:
        for part in parts:
            part.touch()
    assert given == ["c", "a", "b"]


def test_a_failure_removes_the_folders_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), all_or_nothing(tmp_path / "a" / "b" / "c"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "file")
    write_text(link, "whole")
    assert link.is_symlink()
    assert link.read_text() == "whole"
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["file"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    with all_or_nothing(tmp_path / "a") as (first,), all_or_nothing(tmp_path / "a") as (second,):
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("content", [b"", b"begin MARK", bytes(10**6) + b"MARK"])
def test_own_and_empty_files_may_be_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    refuse_foreign(tmp_path / "a", b"MARK", RunError)
    refuse_foreign(tmp_path / "missing", b"MARK", RunError)


def test_everything_else_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10**6))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "folder", "pipe", "link"):
        with pytest.raises(RunError, match=f"{name} exists and spectail did not write it"):
            refuse_foreign(tmp_path / name, b"MARK", RunError)
    with pytest.raises(RunError, match="/dev/null exists"):
        refuse_foreign(Path(os.devnull), b"MARK", RunError)


def test_what_could_not_be_written_is_known_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        check_writable(tmp_path / "file" / "a")
    with pytest.raises(OSError):  # noqa: PT011 - the system's own error
        check_writable(Path("/proc/a"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_links_are_followed_before_the_work_as_they_are_after_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    to = {"under": "file/a", "nowhere": "b/a", "round": "round", "proc": "/proc/a/b"}
    for name, target in to.items():
        (tmp_path / name).symlink_to(target)
    check_writable(tmp_path / "nowhere")
    for path in ("under", "round", "proc", "nowhere/a", "round/a", "round/a/b", "n" * 300):
        for write in (check_writable, lambda path: write_text(path, "")):
            with pytest.raises(OSError):  # noqa: PT011 - the system's own error
                write(tmp_path / path)
    assert {p.name for p in tmp_path.iterdir()} == {"file", *to}
    assert (tmp_path / "round").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_on_a_disk_without_locks_nothing_of_another_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "as of Lustre that is mounted without flock")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with all_or_nothing(tmp_path / "a") as (part,):
        part.write_text("long work")
        check_writable(tmp_path / "b")
        write_text(tmp_path / "b", "short work")
    assert (tmp_path / "a").read_text() == "long work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space.*a\.txt"), all_or_nothing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="a thing without a number"), all_or_nothing(tmp_path / "a"):
        raise OSError("a thing without a number")
    if sys.platform == "linux":  # the kernel answers a read at 0 of this file with EIO
        with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
            content_of("/proc/self/mem")


def interrupted(number: int, path: Path) -> bool:
    """Write a file and press Ctrl-C at a line of the module; whether there are so many lines."""
    lines = Path(files.__file__).read_text().splitlines()
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != files.__file__:
            return None
        # Python looks for signals at calls and jumps: there are none in a line of ``try:`` alone.
        if event == "line" and lines[frame.f_lineno - 1].strip() not in ("try:", "finally:"):
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        write_text(path, "new")
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return count >= number


def test_an_interruption_at_any_moment_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    number = 0
    path.write_text("old")
    while interrupted(number := number + 1, path):
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"], number
        assert path.read_text() in ("old", "new")
    assert number > 50


def test_text_is_utf8_with_unix_lines_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and longer than the new one")
    assert write_text(path, "α\n") == path
    assert path.read_bytes() == b"\xce\xb1\n"
