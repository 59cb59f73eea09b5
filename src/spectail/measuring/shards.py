"""Shards: one run split over processes that share nothing but a folder, and merged afterwards.

Every process plans the whole run, with its common window, and measures the layers of its own shard.
The plan depends on the model and the settings only, so all processes agree on the split without
talking to each other. Shard 2 of 4 keeps its results in the folder ``part-2-of-4`` of the run's
folder: a run of its own that goes on after a kill, beside a file that says which layers it holds.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectail.analysis import ANALYSIS_FILE, Analysis
from spectail.basics.addresses import unfolded, without_secrets
from spectail.basics.files import content_of, refuse_foreign, write_text
from spectail.basics.schema import Count, SchemaError, checked, parse_json
from spectail.basics.texts import first_names, joined, plural
from spectail.errors import RunError, SpecError
from spectail.measuring.cost import plan_seconds
from spectail.measuring.journal import JOURNAL_FILE, Journal, differences, why_other_model
from spectail.measuring.layer import Plan
from spectail.results.records import LayerRecord, RunInfo

SHARD_FILE = "shard.json"
"""The file in a part's folder that says which layers of which run the part holds."""
MOST_NAMES = 20
"""Missing parts and unfinished layers that a message names; further ones are counted."""
MOST_SHARDS = 100_000
_FORM = re.compile(r"(\d{1,9})/(\d{1,9})")
"""I/N; Python does not read numbers of thousands of digits."""


@dataclass(frozen=True)
class Shard:
    """One of ``count`` shards of a run; ``number`` counts from 1, as in ``--shard 1/4``."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_SHARDS:
            raise SpecError(
                f"a run has 1 to {MOST_SHARDS:,} shards: expected I/N such as 1/4, not {self}"
            )
        if not 1 <= self.number <= self.count:
            raise SpecError(
                f"shards are counted from 1: 1/{self.count} to {self.count}/{self.count}, "
                f"not {self}; add 1 to a rank that counts from 0"
            )

    @classmethod
    def of(cls, given: Shard | str | tuple[int, int]) -> Shard:
        """Return the shard of a text such as ``2/4`` or of a pair of numbers."""
        if isinstance(given, Shard):
            return given
        if isinstance(given, str):
            if not (match := _FORM.fullmatch(given.strip())):
                raise SpecError(f"shard must be I/N, such as 1/4 for the first of 4, not {given!r}")
            given = int(match[1]), int(match[2])
        return cls(*given)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """Name of the folder that holds the part, within the run's folder."""
        return f"part-{self.number}-of-{self.count}"

    @property
    def words(self) -> str:
        """The shard in a sentence."""
        return f"part {self.number} of {self.count}"


def split(seconds: Sequence[float], count: int) -> list[list[int]]:
    """Split layers of these costs into ``count`` shards of about equal total cost.

    The costliest layer that is left goes to the shard with the least cost so far (Graham 1969: the
    largest total is at most 4/3 of the best one). Returns the layers' indices, ascending, by shard.

    >>> split([5.0, 1.0, 1.0, 3.0], 2)
    [[0], [1, 2, 3]]
    """
    shards: list[list[int]] = [[] for _ in range(count)]
    # Ties go to the first layer and to the first shard, so that every machine finds the same split.
    loads = [(0.0, number) for number in range(count)]
    for index in sorted(range(len(seconds)), key=lambda i: (-seconds[i], i)):
        load, number = loads[0]
        shards[number].append(index)
        heapq.heapreplace(loads, (load + seconds[index], number))
    return [sorted(shard) for shard in shards]


def part_of(plan: Plan, shard: Shard | None) -> Plan:
    """Return the plan with the layers of one shard only; without a shard the plan itself."""
    if shard is None:
        return plan
    return replace(plan, layers=tuple(plan.layers[place] for place in _places(plan, shard)))


@contextmanager
def open_run(
    folder: Path, plan: Plan, shard: Shard | None = None, *, fresh: bool = False
) -> Iterator[Journal]:
    """Open the journal of a run, or of one shard of it, in the folder of the run.

    Raises:
        RunError: The folder holds another run, or parts of another run or of another split.

    """
    if shard is None:
        with Journal.open(folder, plan.run, fresh=fresh) as journal:
            yield journal
        return
    refuse_foreign(folder / shard.folder / SHARD_FILE, b'"shard": [', RunError)
    if not fresh:
        _refuse_other_parts(folder, plan.run, shard)
    with Journal.open(folder / shard.folder, plan.run, fresh=fresh) as journal:
        described = {
            "shard": [shard.number, shard.count],
            "run": plan.run.to_dict(),
            "total": len(plan.layers),
            "layers": [(place, plan.layers[place].name) for place in _places(plan, shard)],
        }
        write_text(folder / shard.folder / SHARD_FILE, json.dumps(described, allow_nan=False))
        yield journal


def _places(plan: Plan, shard: Shard) -> list[int]:
    """Return the places of a shard's layers in the plan."""
    return split(plan_seconds(plan), shard.count)[shard.number - 1]


@dataclass(frozen=True)
class _Stored:
    """The schema of SHARD_FILE."""

    shard: tuple[Count, Count]
    run: dict[str, Any]
    total: Count
    """Number of layers of the whole run."""
    layers: tuple[tuple[Count, str], ...]
    """The layers of the part: their places in the run's table and their names."""


@dataclass(frozen=True)
class _Part:
    """What one shard of a run has measured so far."""

    folder: Path
    shard: Shard
    run: RunInfo
    total: int
    """Number of layers of the whole run."""
    layers: dict[int, str]
    """The layers of the part: their places in the run's table and their names."""

    @classmethod
    def read(cls, folder: Path) -> _Part:
        """Read the description of a part; RunError if it is damaged."""
        path = folder / SHARD_FILE
        try:
            stored = checked(_Stored, parse_json(content_of(path)))
            return cls(
                folder,
                Shard.of(stored.shard),
                RunInfo.from_dict(stored.run),
                stored.total,
                dict(stored.layers),
            )
        except (SchemaError, SpecError) as error:
            raise RunError(
                f"{path} is damaged ({error}); remove {folder} and measure this part again"
            ) from error

    def records(self) -> dict[str, LayerRecord]:
        """Return the records of a finished part; of an unfinished one there are none."""
        if not (self.folder / ANALYSIS_FILE).exists():
            return {}
        try:
            finished = Analysis.load(self.folder)
        except RunError as error:
            raise RunError(
                f"{self.folder / ANALYSIS_FILE} is damaged ({error.__cause__ or error}); "
                f"remove {self.folder} and measure this part again with --shard {self.shard}"
            ) from error
        _require_same(self.folder, finished.run.to_dict(), self.run)
        return {layer.name: layer for layer in finished.layers}

    def unfinished(self) -> str:
        """Return a phrase that says what the part lacks; empty if it is finished."""
        finished = (self.folder / ANALYSIS_FILE).exists()
        done = set(self.records()) if finished else _in_journal(self.folder / JOURNAL_FILE)
        if names := [name for name in self.layers.values() if name not in done]:
            return f"lacks {plural(len(names), 'layer')}: {first_names(names, MOST_NAMES)}"
        return "" if finished else "was stopped before its tables were written"


def _refuse_other_parts(folder: Path, run: RunInfo, shard: Shard) -> None:
    """Raise RunError if the folder holds parts of another run, or of a split into other shards."""
    if (folder / ANALYSIS_FILE).exists():
        _require_same(folder, Analysis.load(folder).run.to_dict(), run)
    for part in _parts_in(folder):
        _require_same(part.folder, part.run.to_dict(), run)
        if part.shard.count != shard.count:
            raise RunError(
                f"{folder} holds {part.shard.words}, and this is {shard.words}: a run has one "
                "number of shards; use the same, choose another --out, or remove the old parts"
            )


def merge(*folders: str | Path, out: str | Path | None = None, fresh: bool = False) -> Analysis:
    """Merge the parts of a run into the table and report of the whole run.

    ``folders`` hold the parts that ``analyze(shard=...)`` wrote, or are parts themselves. The
    result is written to ``out``, or to the folder if there is only one; ``fresh`` replaces another
    run there. The parts stay.

    Raises:
        RunError: There are no parts, parts or layers are missing (the message names them), or the
            parts are of several runs.

    """
    analysis, target = joined_parts(folders, out)
    with Journal.open(target, analysis.run, fresh=fresh) as journal:
        journal.finish(analysis)
    return analysis


def joined_parts(folders: Sequence[str | Path], out: str | Path | None) -> tuple[Analysis, Path]:
    """Read the parts of a run; return the whole run and the folder that ``merge`` writes it to.

    Raises:
        RunError: As ``merge``.

    """
    parts = [part for folder in folders for part in _parts_in(Path(folder))]
    if not parts:
        names = joined([without_secrets(unfolded(str(folder))) for folder in folders])
        raise RunError(
            f"no parts of a run in {names}: expected folders such as part-1-of-4, "
            "as spectail analyze --shard 1/4 writes them"
        )
    target = _target([Path(folder) for folder in folders], out)
    if (target / SHARD_FILE).exists():
        raise RunError(f"{target} holds a part: give --out another folder for the whole run")
    _require_one_run(parts)
    _require_complete(parts)
    found = [(part, part.records()) for part in parts]
    _require_same_errors(found)
    by_place = _by_place(found)
    run = replace(parts[0].run, device=", ".join(sorted({part.run.device for part in parts})))
    return Analysis(run, tuple(by_place[index] for index in range(parts[0].total))), target


def _by_place(found: Sequence[tuple[_Part, dict[str, LayerRecord]]]) -> dict[int, LayerRecord]:
    """Return the records of all parts by their places in the run's table.

    A part may be there twice, from two machines. What one of them could not measure is taken from
    the other.

    Raises:
        RunError: Two parts have different results of one layer, or different layers in one place.

    """
    by_place: dict[int, LayerRecord] = {}
    for part, records in found:
        for place, name in part.layers.items():
            if (record := records.get(name)) is None:  # finished in another folder
                continue
            before = by_place.setdefault(place, record)
            if before.name == name and "failed" in (before.status, record.status):
                by_place[place] = before if record.status == "failed" else record
            elif replace(before, seconds=0.0).to_dict() != replace(record, seconds=0.0).to_dict():
                raise RunError(
                    f"{part.folder} and another part have different results for layer {place} of "
                    f"the run ({first_names(list(dict.fromkeys([before.name, name])), 2)}): remove "
                    "the part that does not belong, or measure it again with --fresh"
                )
    return by_place


def _target(folders: list[Path], out: str | Path | None) -> Path:
    """Return the folder of the merged run."""
    if out is not None:
        return Path(out)
    if len(folders) > 1 or (folders[0] / SHARD_FILE).exists():
        raise RunError("several folders, or a part alone, need --out: the folder of the merged run")
    return folders[0]


def _parts_in(folder: Path) -> list[_Part]:
    """Return the parts within a folder in their order, or the folder itself if it is a part."""
    if (folder / SHARD_FILE).is_file():
        return [_Part.read(folder)]
    found = [
        _Part.read(path.parent)
        for path in folder.glob(f"part-*-of-*/{SHARD_FILE}")
        if path.is_file()  # a pipe would wait for ever
    ]
    return sorted(found, key=lambda part: (part.shard.count, part.shard.number))


def _require_one_run(parts: Sequence[_Part]) -> None:
    """Raise RunError unless all parts are of one run and one split."""
    first = parts[0]
    for part in parts:
        if different := differences(part.run.to_dict(), first.run):
            what = "models" if "fingerprint" in different else "settings"
            raise RunError(
                f"{first.folder} and {part.folder} are parts of runs of different {what} "
                f"({joined(different)}): measure one of them again, or remove it"
                f"{why_other_model(different, part.run.to_dict(), first.run)}"
            )
        if (part.shard.count, part.total) != (first.shard.count, first.total):
            raise RunError(
                f"{first.folder} and {part.folder} are parts of different splits of the run: "
                "remove the parts that do not belong"
            )


def _require_complete(parts: Sequence[_Part]) -> None:
    """Raise RunError that names the parts and layers that are missing."""
    count = parts[0].shard.count
    present = {part.shard.number for part in parts}
    problems = []
    if missing := [number for number in range(1, count + 1) if number not in present]:
        numbers = first_names([str(number) for number in missing], MOST_NAMES)
        word = "part" if len(missing) == 1 else "parts"
        problems.append(f"{word} {numbers} of {count} missing")
    lacks = [(part.shard.number, part.unfinished()) for part in parts]
    finished = {number for number, lack in lacks if not lack}
    open_parts = {number: lack for number, lack in lacks if number not in finished}
    problems += [f"part {number} of {count} {lack}" for number, lack in open_parts.items()]
    if problems:
        shards = [f"--shard {number}/{count}" for number in (*missing, *open_parts)]
        again = first_names(shards, MOST_NAMES)
        raise RunError(
            f"the run is not complete: {'; '.join(problems)}. "
            f"Run spectail analyze again with {again}; a part goes on where it stopped"
        )
    places = {index for part in parts for index in part.layers}
    # No range is made of the total, which a damaged file may put at any number.
    if len(places) != parts[0].total or max(places, default=-1) >= parts[0].total:
        raise RunError(
            f"the parts hold {len(places)} of the run's {parts[0].total} layers: they were "
            "split by different versions; measure all of them again with --fresh"
        )


def _require_same_errors(found: Sequence[tuple[_Part, dict[str, LayerRecord]]]) -> None:
    """Raise RunError if some parts have quantization errors, which are no setting, and some not."""
    folders: dict[bool, Path] = {}
    for part, records in found:
        measured = [layer for layer in records.values() if layer.status == "ok"]
        if measured:
            folders[any(layer.rounding for layer in measured)] = part.folder
    if len(folders) == 2:
        raise RunError(
            f"{folders[True]} holds quantization errors and {folders[False]} none: measure the "
            "parts without them again with --quantization-errors, which adds them"
        )


def _require_same(folder: Path, stored: dict[str, Any], run: RunInfo) -> None:
    """Raise RunError if what a folder holds is of another run."""
    if different := differences(stored, run):
        what = "another model" if "fingerprint" in different else "other settings"
        raise RunError(
            f"{folder} holds results of {what} ({joined(different)}): {stored.get('source')} "
            f"there, {run.source} now; choose another --out, or --fresh to replace it"
            f"{why_other_model(different, stored, run)}"
        )


def _in_journal(path: Path) -> set[str]:
    """Return the names of the layers in a part's journal, which may still be written to."""
    if not path.is_file():
        return set()
    names = set()
    # A last line that is not complete is a record that is being written, or that a kill cut off.
    for line in content_of(path).split(b"\n")[:-1]:
        try:
            row = checked(dict[str, Any], parse_json(line))
        except SchemaError:
            continue
        names.add(str(row.get("name")))
    return names
