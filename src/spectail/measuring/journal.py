"""The journal of a run: one line per measured layer, so a killed run loses only unfinished layers.

The first line identifies the run and the process that works on it. If the last line was cut off, it
is dropped and its layer is measured again. A finished folder counts as a journal that holds every
layer.

While a run goes on it holds a lock on its journal, so that two runs cannot mix their rows. The lock
ends with the process. The journal is deleted once the finished files are in place.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from spectail.analysis import ANALYSIS_FILE, FILES, Analysis, refuse_foreign_files
from spectail.basics.files import content_of, refuse_address, refuse_foreign
from spectail.basics.locks import open_locked
from spectail.basics.schema import parse_json
from spectail.errors import RunError
from spectail.measuring.layer import record_of
from spectail.models.formats.hub import advice_on_cache
from spectail.models.source import Layer
from spectail.results.records import LayerRecord, RunInfo

JOURNAL_FILE = ".progress.jsonl"
_HOLDER, _WIDTH = b'{"holder": ', 128
"""What a journal begins with, and the bytes that the description of the process takes. They are
written anew by each process, in place: JSON allows spaces behind it."""
SAME = ("kind", "block", "rows", "cols", "numel", "n_matrices", "part")
"""Fields of a stored record that must equal those of the layer for the record to be used."""


@dataclass
class Journal:
    """The records that a folder holds so far, and the locked file that receives further ones.

    It is a context manager: leaving it releases the lock and keeps the file.
    """

    path: Path
    _file: int
    """Descriptor of the open file."""
    records: dict[str, LayerRecord] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, run: RunInfo, *, fresh: bool = False) -> Journal:
        """Read what the folder holds of this run, and start the journal if there is none.

        Raises:
            RunError: The folder holds another run that ``fresh`` does not replace, a file that
                spectail did not write, or a run that another process works on.

        """
        refuse_address(folder)
        if folder.exists() and not folder.is_dir():
            raise RunError(
                f"the output must be a folder, and {folder} is a file; choose another --out"
            )
        path = folder / JOURNAL_FILE
        _refuse_foreign_journal(path)
        refuse_foreign_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        journal = cls(path, _locked(path))
        try:
            if fresh:
                journal._replace(run)
            else:
                journal._take_up(run)
        except BaseException:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Release the lock."""
        self.close()

    def known(self, layers: Iterable[Layer]) -> dict[str, LayerRecord]:
        """Return the stored records of these layers.

        A record counts only if the layer still has its shape, kind and place in the parameter.
        Failed layers are measured again, since memory or a disk may have been the cause.
        """
        now = {layer.name: record_of(layer) for layer in layers}
        return {
            name: record
            for name, record in self.records.items()
            if name in now
            and record.status != "failed"
            and all(getattr(record, key) == getattr(now[name], key) for key in SAME)
        }

    def add(self, record: LayerRecord) -> None:
        """Keep one record; it has been handed to the operating system when this returns."""
        self.records[record.name] = record
        self._write(json.dumps(record.to_dict(), allow_nan=False).encode())

    def finish(self, analysis: Analysis) -> None:
        """Write the finished files and delete the journal, which they replace.

        Raises:
            RunError: The folder was removed while the run went on, and another run works there or
                has left its results.

        """
        self._refuse_successor(analysis.run)
        analysis.save(self.path.parent)
        if os.name == "nt":  # Windows cannot delete an open file
            self.close()
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the lock; an empty journal, which nothing was written to, is deleted."""
        if self._file < 0:
            return
        empty = os.fstat(self._file).st_size == 0
        if empty and os.name != "nt" and self._in_place():
            self.path.unlink()
        os.close(self._file)
        self._file = -1

    def _in_place(self) -> bool:
        """Whether the path still leads to the file that was opened."""
        return self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file))

    def _refuse_successor(self, run: RunInfo) -> None:
        """Raise RunError if another run has taken the folder, which was removed meanwhile."""
        folder = self.path.parent
        if self._in_place():
            return
        if self.path.exists():
            raise RunError(
                f"{folder} was removed while this run went on, and {_holder(self.path)} has begun "
                "another run there; run the same command again with another --out"
            )
        if (folder / ANALYSIS_FILE).exists():
            _require_same(folder, Analysis.load(folder).run.to_dict(), run)

    def _replace(self, run: RunInfo) -> None:
        """Start anew, and delete the finished files of an earlier run."""
        os.ftruncate(self._file, 0)
        # The journal comes first: it shows that the files are spectail's if this is interrupted.
        self._begin(run)
        # The analysis is deleted before the files that it declares complete.
        for name in reversed(FILES):
            (self.path.parent / name).unlink(missing_ok=True)

    def _take_up(self, run: RunInfo) -> None:
        """Read the records of the journal and of a finished run in the same folder."""
        folder = self.path.parent
        has_journal = self._read(run)
        if (folder / ANALYSIS_FILE).exists():
            finished = Analysis.load(folder)
            if differences(finished.run.to_dict(), run) and has_journal:
                # Only a killed --fresh leaves the finished files of another run beside a journal.
                for name in reversed(FILES):
                    (folder / name).unlink(missing_ok=True)
            else:
                _require_same(folder, finished.run.to_dict(), run)
                self.records = {layer.name: layer for layer in finished.layers} | self.records
        if not has_journal:
            self._begin(run)
            return
        os.lseek(self._file, 0, os.SEEK_SET)
        if os.read(self._file, len(_HOLDER)) == _HOLDER:
            os.write(self._file, _this_process())

    def _begin(self, run: RunInfo) -> None:
        """Write the first line."""
        described = json.dumps(run.to_dict(), allow_nan=False).encode()
        self._write(_HOLDER + _this_process() + b', "run": ' + described + b"}")

    def _read(self, run: RunInfo) -> bool:
        """Read the journal file and drop a last line that was cut off; False if it is empty."""
        # Without a trailing newline the last element is a line that was cut off, else it is empty.
        content = content_of(self.path)
        lines = content.split(b"\n")
        # Drop the part of a line, so that the next record starts on a line of its own.
        if lines[-1]:
            os.ftruncate(self._file, len(content) - len(lines[-1]))
        if len(lines) < 2:
            return False
        try:
            head, *rows = (parse_json(line) for line in lines[:-1])
            _require_same(self.path.parent, head["run"], run)
            self.records = {row["name"]: LayerRecord.from_dict(row) for row in rows}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(
                f"{self.path} is damaged ({error}); start over with --fresh or choose another --out"
            ) from error
        return True

    def _write(self, line: bytes) -> None:
        """Append one line, or nothing."""
        size = os.lseek(self._file, 0, os.SEEK_END)
        rest = line + b"\n"
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None


def _refuse_foreign_journal(path: Path) -> None:
    """Raise RunError if the journal's name is taken by a file that spectail did not write."""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(_HOLDER))
        # A kill may leave a part of the first line.
        if _HOLDER.startswith(start):
            return
    refuse_foreign(path, b'"fingerprint"', RunError)


def _locked(path: Path) -> int:
    """Open and lock a journal; RunError names the process that holds it."""
    descriptor = open_locked(path)
    if descriptor is None:
        raise RunError(
            f"{path.parent} is in use by {_holder(path)}; "
            "wait until it has finished, or choose another --out"
        )
    return descriptor


def _this_process() -> bytes:
    """Describe this process for others, in _WIDTH bytes."""
    described = json.dumps({"pid": os.getpid(), "host": socket.gethostname()[:64]}).encode()
    return described.ljust(_WIDTH)[:_WIDTH]


def _holder(path: Path) -> str:
    """Name the process that has opened a journal last."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(content_of(path)[len(_HOLDER) :][:_WIDTH])
        return f"process {found['pid']} on {found['host']}"
    return "another process"


def _require_same(folder: Path, stored: dict[str, Any], run: RunInfo) -> None:
    """Raise a RunError that names the differences if the folder's run is not this one."""
    different = differences(stored, run)
    if not different:
        return
    what = (
        "another model"
        if "fingerprint" in different
        else "other settings (" + ", ".join(different) + ")"
    )
    raise RunError(
        f"{folder} holds a run of {what}: {stored.get('source')} there, {run.source} now; "
        f"choose another --out, or --fresh to replace it{why_other_model(different, stored, run)}"
    )


def why_other_model(different: Sequence[str], stored: Mapping[str, Any], run: RunInfo) -> str:
    """Return why one name may have two fingerprints; empty if that is not what differs."""
    one_name = "fingerprint" in different and stored.get("source") == run.source
    return advice_on_cache(run.source) if one_name else ""


def differences(stored: dict[str, Any], run: RunInfo) -> list[str]:
    """List the settings in which a stored run differs from this one."""
    # Device, notes and library versions may differ: they do not change what is measured.
    keys = ["fingerprint", "spec", "window", "include", "exclude", "kinds", "types"]
    keys += ["full_spectrum", "traps", "erg"]
    # Through JSON, so that tuples compare equal to the lists that were stored.
    before, now = (json.loads(json.dumps(values)) for values in (stored, run.to_dict()))
    # A run of an earlier version lacks settings that were added since, which were off then.
    different = [key for key in keys if (before.get(key) or None) != (now[key] or None)]
    if before.get("versions", {}).get("spectail") != now["versions"].get("spectail"):
        different.append("spectail version")
    return different
