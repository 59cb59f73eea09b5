"""The scores of a choice in a file, so that a run that was killed goes on with those it has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from spectail.basics.files import content_of, refuse_foreign, write_text
from spectail.basics.schema import SchemaError, checked, parse_json
from spectail.errors import PruneError
from spectail.pruning.setting import Setting

FORMAT = "spectail-choice-1"
_MARK = f'"format": "{FORMAT}"'.encode()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """What the file holds."""

    format: Literal["spectail-choice-1"]
    run: dict[str, Any]
    scores: dict[str, float | Literal["inf", "-inf", "nan"]]


def scores_beside(out: Path) -> Path:
    """Return the file beside the folder of a pruned model that keeps scores until it is written."""
    return out.absolute().with_name(f"{out.absolute().name}.choice.json")


def check_ours(path: Path) -> None:
    """Refuse a path that is taken by something other than scores; PruneError."""
    refuse_foreign(path, _MARK, PruneError)


def discard(path: Path) -> None:
    """Delete the file of a choice whose model is written; a file of another program stays."""
    with suppress(PruneError):
        check_ours(path)
        path.unlink(missing_ok=True)


@dataclass
class KeptScores:
    """The scores of the settings that are done, by setting, and the file that receives each."""

    path: Path | None
    """Where they are kept; None for nowhere."""
    run: Mapping[str, Any]
    """What the scores depend on, as plain JSON values by a short name."""
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, run: Mapping[str, Any]) -> KeptScores:
        """Take up what the file holds of this run; there need not be one.

        Raises:
            PruneError: It holds scores of another run, is damaged, or is no file of spectail.

        """
        if path is None:
            return cls(path, run)
        check_ours(path)
        if not path.exists() or not path.stat().st_size:
            return cls(path, run)
        try:
            stored = checked(_File, parse_json(content_of(path)))
        except SchemaError as error:
            raise PruneError(f"{path} is damaged ({error}): delete it to start over") from None
        different = [name for name in run if stored.run.get(name) != run[name]]
        if different:
            raise PruneError(
                f"{path} holds the scores of a run with another {', '.join(different)}: "
                "choose another --out, or delete the file"
            )
        return cls(path, run, {key: float(score) for key, score in stored.scores.items()})

    def get(self, setting: Setting) -> float | None:
        """Return the score of a setting; None if it is not known yet."""
        return self.scores.get(setting.key)

    def add(self, setting: Setting, score: float) -> None:
        """Keep a score; it is in the file when this returns."""
        self.scores[setting.key] = score
        if self.path is None:
            return
        # JSON has no numbers that are not finite.
        scores = {k: v if math.isfinite(v) else str(v) for k, v in self.scores.items()}
        content = {"format": FORMAT, "run": dict(self.run), "scores": scores}
        write_text(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")
