"""Allocation: one value per layer that meets a budget, with everything it was made from.

Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec

from spectail.allocation.by_name import ByName
from spectail.allocation.left_out import LeftOut, describe_left_out
from spectail.allocation.scores import KEPT
from spectail.basics.files import content_of, write_text
from spectail.basics.schema import Finite, SchemaError, build, checked, each, parse_json
from spectail.basics.texts import plural
from spectail.errors import AllocationError
from spectail.models.naming.blocks import unit_of
from spectail.results.depth import DepthCorrelations, depth_correlations, depths
from spectail.results.table import storable, table_html

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "spectail allocation"
_VALUES = {
    "sparsity": "the ratios",
    "bits": "the bit widths",
    "lr": "the learning rates",
    "weight-decay": "the weight decays",
    "freeze": "the trained layers",
}
"""What the values of a target are called in sentences."""
_MOST = {"sparsity": 1, "bits": 64, "freeze": 1}
"""The largest value of a layer under targets that have one."""


Weights: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""How many weights a layer has."""
LARGEST = 1e30
"""The largest value of a layer; sums over weights of larger ones would overflow."""
Value: TypeAlias = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
"""A value of a layer."""


@dataclass(frozen=True)
class LayerValue:
    """The value of one layer."""

    name: str
    value: Value
    unit: str
    """The block (``model.layers.3``) or layer whose alpha determined the value."""
    alpha: Finite | None
    """The unit's alpha; None if the value does not come from an alpha."""
    numel: Weights
    """Number of weights of the layer."""
    format: str = ""
    """Name of the format that the layer gets; empty unless formats were chosen."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Allocation(ByName):
    """An immutable mapping from the name of every layer that takes part to its value.

    The value is a ratio of zeros (target ``sparsity``), a whole number of bits (``bits``), a
    learning rate (``lr``), a weight decay (``weight-decay``), or 1 for a layer that is trained and
    0 for one that is frozen (``freeze``). Layers that are not in it do not change: they stay dense,
    at full precision, at the base value, frozen.
    """

    target: str
    budget: Finite
    """The requested mean of the values, weighted by numel, or the requested base value."""
    settings: dict[str, Any]
    """The target's options: map, level, bounds and the like, as plain JSON values."""
    shares: tuple[LayerValue, ...]
    left_out: tuple[LeftOut, ...] = ()
    deviations: tuple[str, ...] = ()
    """Sentences on where the values differ from what the published rule gives."""
    notes: tuple[str, ...] = ()
    """Sentences on what to keep in mind about the alphas."""
    source: str = ""
    """The model that was analysed."""
    fingerprint: str = ""
    """Identifies the content of that model."""
    spec: dict[str, Any] = field(default_factory=dict)
    """How the alphas were measured: the fields of ``Spec``."""

    # The dataclass is frozen; cached_property writes to __dict__ and so still works.
    @cached_property
    def _values(self) -> dict[str, float]:
        """The mapping itself."""
        return {share.name: share.value for share in self.shares}

    @cached_property
    def realised(self) -> float:
        """The mean of the values, weighted by numel."""
        return _mean(self.shares, self._values)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer that takes part: name, value, unit, alpha (of the unit), numel."""
        import pandas as pd  # slow to import, and the command line needs no table

        names = [f.name for f in dataclasses.fields(LayerValue)]
        rows = [
            # pandas cannot hold lone surrogates, which names may have.
            {
                k: storable(v) if isinstance(v, str) else v
                for k, v in dataclasses.asdict(share).items()
            }
            for share in self.shares
        ]
        return pd.DataFrame(rows, columns=names)

    @cached_property
    def depth_correlations(self) -> DepthCorrelations | None:
        """Rank correlations of the values with depth and with what was measured, over the blocks.

        What was measured is alpha, or a setting with a number per unit (OWL's
        ``outlier_percent``). A block has the means of its layers, weighted by numel. The result is
        None for fewer than four blocks, if all blocks have one value, and for a rule that goes by
        depth alone, where the number would say nothing.
        """
        if _by_depth_alone(self.settings):
            return None
        blocks: dict[str, list[LayerValue]] = {}
        for share in self.shares:
            # Layers in no block have no depth.
            if (block := unit_of(share.name)) is not None:
                blocks.setdefault(block, []).append(share)
        depth = depths(blocks)
        name, numbers = _measured(self.settings, blocks)
        return depth_correlations(
            [depth[block] for block in blocks],
            [_mean(group, self._values) for group in blocks.values()],
            numbers,
            name=name,
        )

    def describe_depth(self) -> list[str]:
        """Say in one or two lines how much of the allocation is position; none if unknown."""
        found = self.depth_correlations
        return found.describe(_VALUES.get(self.target, "the values")) if found else []

    def summary(self) -> str:
        """Return a few lines of text for people.

        They hold the target and budget, the number of layers, the range and mean of the values,
        how far these follow depth, the layers that are left out with their reasons, and notes.
        """
        values = list(self.values())
        units = len({share.unit for share in self.shares})
        lines = [
            f"{self.target} {self.budget:g} ({describe_settings(self.settings)})",
            f"{len(self)} layers in {units} units, {min(values):.6g} to {max(values):.6g}, "
            f"mean by number of weights {self.realised:.9g}",
        ]
        lines += self.describe_depth()
        lines += describe_left_out(self.left_out)
        return "\n".join(
            [*lines, *(f"note: {remark}" for remark in (*self.deviations, *self.notes))]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``realised`` is for readers and is recomputed on loading."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {
            "shares": [dataclasses.asdict(share) for share in self.shares],
            "left_out": [layer.to_dict() for layer in self.left_out],
        }
        texts = {name: list(values[name]) for name in ("deviations", "notes")}
        return {"format": _FORMAT, **values, "realised": self.realised, **lists, **texts}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Allocation:
        """Invert ``to_dict``.

        Raises:
            AllocationError: the values are no allocation, or one of another version.

        """
        try:
            # Any JSON may be given, such as that of an analysis.
            fields = checked(dict[str, Any], stored)
            if fields.pop("format", None) != _FORMAT:
                raise AllocationError("it is not an allocation")
            # realised follows from the values, and is computed rather than believed.
            fields.pop("realised", None)
            allocation = build(cls, fields, shares=_SHARES, left_out=_LEFT_OUT)
        except SchemaError as error:
            raise AllocationError(
                f"it is not an allocation that this version can read ({error})"
            ) from error
        _check(allocation)
        return allocation

    def save(self, path: str | Path) -> Path:
        """Write JSON, completely or not at all.

        Raises:
            AllocationError: the file exists and holds something other than an allocation.

        """
        path = Path(path)
        # A mistyped path must not cost the user another file.
        if path.exists() and not _is_allocation(path):
            raise AllocationError(
                f"{path} exists and is no allocation, so it stays; give another name"
            )
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        return write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Allocation:
        """Read what ``save`` wrote.

        Raises:
            AllocationError: there is no such file, or it holds no allocation.

        """
        if not Path(path).is_file():
            raise AllocationError(
                f"no allocation at {path}: expected a file that spectail allocate has written"
            )
        try:
            return cls.from_dict(parse_json(content_of(path)))
        except (ValueError, AllocationError) as error:
            raise AllocationError(f"{path} cannot be used: {error}") from error

    def __repr__(self) -> str:
        """Describe the allocation in two lines."""
        values, units = list(self.values()), len({share.unit for share in self.shares})
        return (
            f"Allocation of {self.target} {self.budget:g}: {plural(len(self), 'layer')} in "
            f"{plural(units, 'unit')}, "
            f"{min(values):.4g} to {max(values):.4g}; {len(self.left_out)} layers left out\n"
            "more: .summary(), .table, .save(path)"
        )

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        return table_html(self.table)


_SHARES = partial(each, partial(build, LayerValue))
_LEFT_OUT = partial(each, LeftOut.from_dict)


def _mean(shares: Sequence[LayerValue], numbers: Mapping[str, float]) -> float:
    """Return the mean over layers of ``numbers``, given by name, weighted by numel."""
    total = sum(share.numel for share in shares)
    # fsum adds without rounding: budgets are met, and tested, to 1e-9.
    return math.fsum(numbers[share.name] * share.numel for share in shares) / total


def _measured(
    settings: Mapping[str, Any], blocks: Mapping[str, Sequence[LayerValue]]
) -> tuple[str, list[float] | None]:
    """Return the name of what the values come from and its mean in every block, or None."""
    shares = [share for group in blocks.values() for share in group]
    given: dict[str, Mapping[str, Any]] = {"alpha": {x.unit: x.alpha for x in shares}}
    given |= {name: found for name, found in settings.items() if isinstance(found, Mapping)}
    for name, found in given.items():
        numbers = {x.name: found[x.unit] for x in shares if _is_number(found.get(x.unit))}
        if len(numbers) == len(shares):
            return name.replace("_", " "), [_mean(group, numbers) for group in blocks.values()]
    return "", None


def _by_depth_alone(settings: Mapping[str, Any]) -> bool:
    """Whether values go by nothing but depth, as by ``depth-kind`` or ``first+depth:rising``."""
    parts = str(settings.get("rule", settings.get("by", ""))).split("+")
    return all(part.startswith("depth") or part in KEPT for part in parts)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    # A comparison takes whole numbers of any size; isfinite does not.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Write the options of a target in one line; options that are False are not mentioned.

    >>> describe_settings({"map": "sqrt", "bounds": [0, 0.9], "normalize": False})
    'map sqrt, bounds 0 to 0.9'
    """
    return ", ".join(_option(name, value) for name, value in settings.items() if value is not False)


def _option(name: str, value: Any) -> str:
    """Write one option; a flag that is set is its name alone."""
    return name if value is True else f"{name} {_short(value)}"


def _short(value: Any) -> str:
    """Write a value; a pair is a range."""
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return " to ".join(f"{x:g}" for x in value)
    return str(value)


def _is_allocation(path: Path) -> bool:
    """Whether a file holds an allocation."""
    try:
        Allocation.load(path)
    except AllocationError:
        return False
    return True


def _check(allocation: Allocation) -> None:
    """Refuse allocations without layers, with a name twice, or with values that are no numbers."""
    if not allocation.shares:
        raise AllocationError("it has no layers")
    # The mapping keeps one value per name; a second one would be lost without a word.
    if len(allocation) < len(allocation.shares):
        raise AllocationError("it names a layer twice")
    for share in allocation.shares:
        if not (_is_number(share.value) and share.value >= 0):
            raise AllocationError(
                f"the value of {share.name} must be a finite number of at least 0, "
                f"not {share.value!r}"
            )
        most = _MOST.get(allocation.target, math.inf)
        if share.value > most:
            raise AllocationError(
                f"{allocation.target} of {share.name} must be at most {most:g}, not {share.value!r}"
            )
