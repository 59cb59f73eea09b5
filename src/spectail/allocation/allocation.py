"""Allocation: one value per layer that meets a budget, with what it was made from. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from spectail.allocation.left_out import LeftOut, describe_left_out
from spectail.errors import AllocationError

_FORMAT = "spectail allocation"


@dataclass(frozen=True)
class LayerValue:
    """What one layer gets."""

    name: str
    value: float
    unit: str
    """The block (``model.layers.3``) or layer whose alpha the value was given by."""
    alpha: float | None
    """Of the unit; None where the value was not given by an alpha."""
    numel: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Allocation(Mapping[str, float]):
    """A mapping from the name of a layer to its value, immutable, over the layers that take part.

    The value is a ratio of zeros (target ``sparsity``), a whole number of bits (``bits``), a
    learning rate (``lr``) or a weight decay (``weight-decay``). Layers that are not in it stay as
    they are: dense, at full precision, at the base value.
    """

    target: str
    budget: float
    """What was asked: the mean of the values weighted by numel, or the base value."""
    settings: dict[str, Any]
    """The target's options: map, level, bounds and the like, as plain JSON values."""
    shares: tuple[LayerValue, ...]
    left_out: tuple[LeftOut, ...] = ()
    deviations: tuple[str, ...] = ()
    """Where the values differ from what the published rule gives, in sentences."""
    notes: tuple[str, ...] = ()
    """What to keep in mind about the alphas, in sentences."""
    source: str = ""
    fingerprint: str = ""
    """Of the model that was analysed."""
    spec: dict[str, Any] = field(default_factory=dict)
    """How its alphas were measured."""

    @cached_property
    def _values(self) -> dict[str, float]:
        return {share.name: share.value for share in self.shares}

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @cached_property
    def realised(self) -> float:
        """The mean of the values, weighted by numel."""
        total = sum(share.numel for share in self.shares)
        return math.fsum(share.value * share.numel for share in self.shares) / total

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer that takes part: name, value, unit, alpha (of the unit), numel."""
        names = [f.name for f in dataclasses.fields(LayerValue)]
        return pd.DataFrame([dataclasses.asdict(share) for share in self.shares], columns=names)

    def summary(self) -> str:
        """A few lines: what was asked and reached, the range, who takes part, who does not and why, remarks."""
        values = list(self.values())
        units = len({share.unit for share in self.shares})
        options = ", ".join(
            _option(name, value) for name, value in self.settings.items() if value is not False
        )
        lines = [
            f"{self.target} {self.budget:g} ({options})",
            f"{len(self)} layers in {units} units, {min(values):.6g} to {max(values):.6g}, "
            f"mean by number of weights {self.realised:.9g}",
        ]
        lines += describe_left_out(self.left_out)
        return "\n".join(
            [*lines, *(f"note: {remark}" for remark in (*self.deviations, *self.notes))]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``realised`` is there to read, and computed again when loaded."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {
            "shares": [dataclasses.asdict(share) for share in self.shares],
            "left_out": [layer.to_dict() for layer in self.left_out],
        }
        texts = {name: list(values[name]) for name in ("deviations", "notes")}
        return {"format": _FORMAT, **values, "realised": self.realised, **lists, **texts}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Allocation:
        """The inverse of ``to_dict``; AllocationError for anything else."""
        try:
            if stored.get("format") != _FORMAT:
                raise AllocationError("it is not an allocation")
            known = {
                key: value for key, value in stored.items() if key not in ("format", "realised")
            }
            known["shares"] = tuple(LayerValue(**share) for share in known["shares"])
            known["left_out"] = tuple(LeftOut.from_dict(layer) for layer in known["left_out"])
            known |= {name: tuple(known[name]) for name in ("deviations", "notes")}
            allocation = cls(**known)
        except (AttributeError, KeyError, TypeError) as error:
            raise AllocationError(
                f"it is not an allocation that this version can read ({error})"
            ) from error
        _check(allocation)
        return allocation

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all; a file that holds anything but an allocation is not replaced."""
        path = Path(path)
        if path.exists() and not _is_allocation(path):
            raise AllocationError(
                f"{path} exists and is no allocation, so it stays; give another name"
            )
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(text + "\n", encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Allocation:
        """Read what ``save`` wrote; AllocationError where there is no such file, or another one."""
        if not Path(path).is_file():
            raise AllocationError(
                f"no allocation at {path}: expected a file that spectail allocate has written"
            )
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, AllocationError) as error:
            raise AllocationError(f"{path} cannot be used: {error}") from error

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        html: str = self.table.to_html(
            index=False, max_rows=60, float_format="{:.4g}".format, na_rep=""
        )
        return html


def _option(name: str, value: Any) -> str:
    return name if value is True else f"{name} {_short(value)}"


def _short(value: Any) -> str:
    return (
        " to ".join(f"{x:g}" for x in value)
        if isinstance(value, list) and len(value) == 2
        else str(value)
    )


def _is_allocation(path: Path) -> bool:
    try:
        Allocation.load(path)
    except AllocationError:
        return False
    return True


def _check(allocation: Allocation) -> None:
    """Refuse what nothing could be pruned or trained by: no layers, one name twice, values that are no numbers."""
    if not allocation.shares:
        raise AllocationError("it has no layers")
    if len(allocation) < len(allocation.shares):
        raise AllocationError("it names a layer twice")
    for share in allocation.shares:
        if not (
            isinstance(share.value, int | float) and math.isfinite(share.value) and share.value >= 0
        ):
            raise AllocationError(
                f"the value of {share.name} must be a finite number of at least 0, not {share.value!r}"
            )
