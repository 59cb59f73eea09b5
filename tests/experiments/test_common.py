"""What every experiment shares: JSON that is whole or not there, runs that go
on, pages that are filled in."""

import json
import math
import os
import socket
from functools import partial
from pathlib import Path

import pytest

from experiments.common import (
    Journal,
    Workers,
    environment,
    fill_page,
    markdown_table,
    on_device,
    run_steps,
    save_json,
    steps_in,
)


def test_environment_tells_versions_and_no_host() -> None:
    found = environment()
    assert {"python", "spectail", "torch", "numpy"} <= set(found["versions"])
    assert found["cores"] >= 1
    text = json.dumps(found)
    assert socket.gethostname() not in text
    assert str(Path.home()) + "/" not in text


def test_saved_json_comes_back_with_nan_as_null_and_flat_lists_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    save_json(path, {"x": [1.5, math.nan, "a b"], "y": {"z": [[1, 2], [3]]}, 3: (), "empty": []})
    assert json.loads(path.read_text()) == {
        "x": [1.5, None, "a b"],
        "y": {"z": [[1, 2], [3]]},
        "3": [],
        "empty": [],
    }
    assert '"x": [1.5, null, "a b"]' in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        save_json(tmp_path / "a.json", [object()])
    assert (tmp_path / "a.json").read_text() == "[1]\n"


def test_a_journal_goes_on_after_a_line_that_a_kill_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    journal = Journal.open(path, {"seed": 1})
    journal.add("a", {"alpha": (1.0, math.inf)})
    journal.add("b", 2)
    path.write_text(path.read_text()[:-3])
    again = Journal.open(path, {"seed": 1})
    assert again.done == {"a": {"alpha": [1.0, None]}}
    again.add("b", 3)
    assert Journal.open(path, {"seed": 1}).done == {"a": {"alpha": [1.0, None]}, "b": 3}
    assert Journal.open(path, {"seed": 1}, fresh=True).done == {}


def test_a_line_that_is_being_written_is_no_step(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "run.jsonl", {})
    journal.add("a", 1)
    with journal.path.open("a") as file:
        file.write('["b", ')
    assert steps_in(journal.path) == {"a": 1}


def test_a_journal_refuses_other_settings(tmp_path: Path) -> None:
    Journal.open(tmp_path / "run.jsonl", {"seed": 1})
    with pytest.raises(
        ValueError,
        match="holds a run with other settings; go on with those, or start anew with --fre",
    ):
        Journal.open(tmp_path / "run.jsonl", {"seed": 2})


def test_results_of_a_gpu_never_go_on_with_those_of_the_cpu(tmp_path: Path) -> None:
    Journal.open(tmp_path / "run.jsonl", {"seed": 1} | on_device("cpu"))
    Journal.open(tmp_path / "run.jsonl", {"seed": 1})
    with pytest.raises(ValueError, match="other settings"):
        Journal.open(tmp_path / "run.jsonl", {"seed": 1} | on_device("cuda"))


def test_steps_are_done_once_and_stop_when_time_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal.open(tmp_path / "run.jsonl", {})
    calls = []
    steps = [(name, lambda name=name: calls.append(name)) for name in "abc"]
    assert not run_steps(journal, steps, seconds=-1)
    assert (
        "stopped after -1 s with 0 of 3 steps done; run again to go on" in capsys.readouterr().out
    )
    journal.add("b", None)
    assert run_steps(journal, steps)
    assert run_steps(journal, steps)
    assert calls == ["a", "c"]
    assert "[3/3] c: 0.0 s" in capsys.readouterr().out


class Sums:
    """An experiment whose second step needs what the first has found."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def first(self, number: int) -> dict[str, int]:
        return {"number": number, "process": os.getpid()}

    def second(self, number: int) -> int:
        return int(self.journal.done[f"first | {number}"]["number"]) + 1


def test_workers_do_the_steps_that_are_missing(tmp_path: Path) -> None:
    sums = Sums(Journal.open(tmp_path / "run.jsonl", {}))
    sums.journal.add("first | 0", {"number": 10, "process": 0})
    with Workers(2, partial(Sums, sums.journal)) as workers:
        for method in (sums.first, sums.second):
            steps = [(f"{method.__name__} | {i}", partial(method, i)) for i in range(4)]
            assert run_steps(sums.journal, steps, workers=workers)
    done = Journal.open(tmp_path / "run.jsonl", {}).done
    assert [done[f"second | {i}"] for i in range(4)] == [11, 2, 3, 4]
    processes = {done[f"first | {i}"]["process"] for i in range(1, 4)}
    assert os.getpid() not in processes
    with (
        Workers(2, partial(Sums, sums.journal)) as workers,
        pytest.raises(TypeError, match="step x"),
    ):
        run_steps(sums.journal, [("x", lambda: 1)], workers=workers)


def test_tables_and_pages(tmp_path: Path) -> None:
    table = markdown_table(["", "alpha"], [["q", "2.1"]])
    assert table.splitlines() == ["|  | alpha |", "| --- | ---: |", "| q | 2.1 |"]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- t -->\nold\n<!-- /t -->\nafter\n")
    fill_page(page, {"t": r"new \1"})
    fill_page(page, {"t": r"new \1"})
    assert page.read_text() == "before\n<!-- t -->\n\nnew \\1\n\n<!-- /t -->\nafter\n"
    with pytest.raises(
        ValueError, match=r"page.md has no place for 'u': expected <!-- u --> and <!-- /u -->"
    ):
        fill_page(page, {"u": ""})
