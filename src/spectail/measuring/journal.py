"""The journal of a run: one line per measured layer, so a killed run loses only unfinished layers.

The first line identifies the run. If the last line was cut off, it is dropped and its layer is
measured again. The journal is deleted once the finished files are in place. A finished folder
counts as a journal that holds every layer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectail.analysis import ANALYSIS_FILE, FILES, Analysis
from spectail.errors import RunError
from spectail.results.records import LayerRecord, RunInfo

JOURNAL_FILE = ".progress.jsonl"


@dataclass
class Journal:
    """The records that a folder holds so far, and the file that receives further ones."""

    path: Path
    records: dict[str, LayerRecord] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, run: RunInfo, *, fresh: bool = False) -> Journal:
        """Read what the folder holds of this run, and start the journal if there is none.

        RunError is raised if the folder holds another run, unless ``fresh`` replaces it.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(
                f"the output must be a folder, and {folder} is a file; choose another --out"
            )
        journal = cls(folder / JOURNAL_FILE)
        if fresh:
            for name in (JOURNAL_FILE, *FILES):
                (folder / name).unlink(missing_ok=True)
        elif (folder / ANALYSIS_FILE).exists():
            finished = Analysis.load(folder)
            _require_same(folder, finished.run.to_dict(), run)
            journal.records = {layer.name: layer for layer in finished.layers}
        elif journal.path.exists():
            journal._read(folder, run)
        folder.mkdir(parents=True, exist_ok=True)
        if not journal.path.exists():
            journal._write({"run": run.to_dict()})
        return journal

    def add(self, record: LayerRecord) -> None:
        """Keep one record; it has been handed to the operating system when this returns."""
        self.records[record.name] = record
        self._write(record.to_dict())

    def finish(self) -> None:
        """Delete the journal, which the finished files replace."""
        self.path.unlink(missing_ok=True)

    def _read(self, folder: Path, run: RunInfo) -> None:
        """Read the journal file and drop a last line that was cut off."""
        # Without a trailing newline the last element is a line that was cut off, else it is empty.
        lines = self.path.read_bytes().split(b"\n")
        whole = b"".join(line + b"\n" for line in lines[:-1])
        if len(lines) < 2:
            self.path.unlink()
            return
        try:
            head, *rows = (json.loads(line) for line in lines[:-1])
            _require_same(folder, head["run"], run)
            self.records = {row["name"]: LayerRecord.from_dict(row) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.path} is damaged ({error}); start over with --fresh or choose another --out"
            ) from error
        # Drop the part of a line, so that the next record starts on a line of its own.
        if lines[-1]:
            self.path.write_bytes(whole)

    def _write(self, values: dict[str, Any]) -> None:
        """Append one line of JSON."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")


def _require_same(folder: Path, stored: dict[str, Any], run: RunInfo) -> None:
    """Raise a RunError that names the differences if the folder's run is not this one."""
    wanted = run.to_dict()
    # Device, notes and library versions may differ: they do not change what is measured.
    keys = ("fingerprint", "spec", "window", "include", "exclude", "full_spectrum")
    # Through JSON, so that tuples compare equal to the lists that were stored.
    before, now = (json.loads(json.dumps(values)) for values in (stored, wanted))
    different = [key for key in keys if before.get(key) != now[key]]
    if before.get("versions", {}).get("spectail") != now["versions"].get("spectail"):
        different.append("spectail version")
    if not different:
        return
    what = (
        "another model"
        if "fingerprint" in different
        else "other settings (" + ", ".join(different) + ")"
    )
    raise RunError(
        f"{folder} holds a run of {what}: {before.get('source')} there, {run.source} now; "
        "choose another --out, or --fresh to replace it"
    )
