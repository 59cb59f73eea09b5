"""Sensitivities: how much the loss of a model grows with the error of each of its layers.

HIGGS (arXiv 2411.17525, linearity theorem): the loss of a quantised model grows by about the sum of
a_l t_l^2, where t_l^2 = ||Q(W_l) - W_l||^2 / ||W_l||^2 is the relative error of layer l and a_l its
sensitivity. ``spectail.sensitivity`` measures a_l; here it is stored, and paired with the layers of
an analysis. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeAlias

import msgspec

from spectail.allocation.by_name import ByName
from spectail.allocation.left_out import LeftOut, describe_left_out
from spectail.allocation.units import SHOWN, Measured
from spectail.basics.files import content_of, refuse_foreign, write_text
from spectail.basics.schema import Count, SchemaError, build, checked, each, parse_json
from spectail.basics.texts import first_names, plural
from spectail.errors import AllocationError
from spectail.models.naming.pairing import Pairing, pair_names

_FORMAT = "spectail sensitivities"
_MARK = f'"format": "{_FORMAT}"'.encode()
"""What every file of sensitivities begins with."""

_MOST = 1e30
"""The largest sensitivity; sums of products with larger numbers would overflow."""
Growth: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=_MOST)]
"""A sensitivity: nats per relative squared error."""


@dataclass(frozen=True)
class LayerSensitivity:
    """The sensitivity of one layer."""

    name: str
    rows: Count
    """Output size of each matrix."""
    cols: Count
    """Input size of each matrix."""
    numel: Count
    """Number of weights."""
    value: Growth | None = None
    """Growth of the loss, in nats per token, per relative squared error; None until measured."""
    saved_as: str = ""
    """The layer's name in the file of the model, if it differs."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sensitivities(ByName):
    """An immutable mapping from the name of a layer to its sensitivity a_l.

    A layer of sensitivity 0 does not change the predictions at all: the text does not reach it, or
    weights of zero hide it.
    """

    layers: tuple[LayerSensitivity, ...]
    settings: dict[str, Any]
    """How they were measured, as plain JSON values: number and length of the samples, hashes of
    their tokens and of the model's configuration, relative squared size of the noise, seed."""
    source: str = ""
    """The model."""
    fingerprint: str = ""
    """Identifies the content of the model in memory."""
    left_out: tuple[LeftOut, ...] = ()

    @cached_property
    def _values(self) -> dict[str, float]:
        """The mapping itself."""
        return {x.name: x.value for x in self.layers if x.value is not None}

    @property
    def complete(self) -> bool:
        """Whether all layers are measured."""
        return len(self) == len(self.layers)

    def describe(self) -> str:
        """Say in one phrase how they were measured.

        >>> Sensitivities(layers=(), settings={"samples": 2, "seq_len": 256, "noise": 0.05,
        ...     "seed": 0}).describe()
        '2 x 256 tokens, noise 0.05, seed 0'
        """
        told = self.settings
        return (
            f"{told.get('samples')} x {told.get('seq_len')} tokens, "
            f"noise {told.get('noise')}, seed {told.get('seed')}"
        )

    def summary(self) -> str:
        """Return a few lines of text for people: the range, the extremes, and what was left out."""
        ranked = sorted(self, key=lambda name: -self[name])
        lines = [f"sensitivities of {len(self)} layers ({self.describe()})"]
        if ranked:
            low, high = self[ranked[-1]], self[ranked[0]]
            lines.append(f"{low:.3g} to {high:.3g}, median {median(self.values()):.3g}")
            most = ", ".join(f"{name} {self[name]:.3g}" for name in ranked[:5])
            lines.append(f"most sensitive: {most}")
        if dead := [name for name in self if not self[name] > 0]:
            lines.append(
                f"note: noise in {plural(len(dead), 'layer')} changes no prediction: "
                f"{first_names(dead, SHOWN)}; either the text does not reach them (more text may), "
                "or weights of zero, theirs or others, hide them"
            )
        return "\n".join([*lines, *describe_left_out(self.left_out)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": _FORMAT,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "left_out": [layer.to_dict() for layer in self.left_out],
        }

    def save(self, path: str | Path) -> Path:
        """Write JSON, completely or not at all.

        Raises:
            AllocationError: the file exists and holds something other than sensitivities.

        """
        path = Path(path)
        check_free(path)
        return write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path, *, unfinished: bool = False) -> Sensitivities:
        """Read what ``save`` wrote; with ``unfinished`` also a measurement that is not finished.

        Raises:
            AllocationError: there is no such file, it holds no sensitivities, or not yet all.

        """
        path = Path(path)
        if not path.is_file():
            raise AllocationError(
                f"no sensitivities at {path}: expected a file that spectail sensitivity has written"
            )
        try:
            found = _from_dict(parse_json(content_of(path)))
        except ValueError as error:
            raise AllocationError(
                f"{path} holds no sensitivities that this version can read ({error})"
            ) from error
        if not (found.complete or unfinished):
            raise AllocationError(
                f"{path} holds {len(found)} of {len(found.layers)} sensitivities: run the same "
                "spectail sensitivity command again, which measures the others"
            )
        return found


def _from_dict(stored: Any) -> Sensitivities:
    """Invert ``Sensitivities.to_dict``; SchemaError or AllocationError if it cannot be."""
    fields = checked(dict[str, Any], stored)
    if fields.pop("format", None) != _FORMAT:
        raise SchemaError("it is another kind of file")
    layers = partial(each, partial(build, LayerSensitivity))
    left_out = partial(each, LeftOut.from_dict)
    found = build(Sensitivities, fields, layers=layers, left_out=left_out)
    if len({layer.name for layer in found.layers}) < len(found.layers):
        raise SchemaError("it names a layer twice")
    return found


def check_free(path: Path) -> None:
    """Refuse a path that is taken by something other than sensitivities; AllocationError."""
    refuse_foreign(path, _MARK, AllocationError)


def check_sensitivities(given: object) -> None:
    """Refuse what is no mapping from names to numbers that are not negative."""
    if not isinstance(given, Mapping):
        raise AllocationError(
            "sensitivities must map names of layers to numbers, as st.sensitivities does, "
            f"not {' '.join(repr(given).split())[:80]}"
        )
    if isinstance(given, Sensitivities) and not given.complete:
        raise AllocationError(
            f"only {len(given)} of {len(given.layers)} sensitivities are measured: finish them"
        )
    for name, value in given.items():
        if not isinstance(name, str):
            raise AllocationError(f"sensitivities are given by names of layers, not by {name!r}")
        right = isinstance(value, Real) and not isinstance(value, bool)
        if not (right and 0 <= value <= _MOST):
            raise AllocationError(
                f"the sensitivity of {name} must be a number from 0 to {_MOST:g}, not {value!r}"
            )


def sensitivities_of(
    layers: Sequence[Measured], given: Mapping[str, float]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the sensitivity of each layer of an analysis, and notes on replaced zeros.

    Names are paired as for pruning, so that those of a live model and of its file both do. A layer
    that the text did not reach has sensitivity 0; it takes the least positive one of its kind, or
    else of all, because another text would reach it.

    Raises:
        AllocationError: layers without a sensitivity, or of another shape: another model; or no
            sensitivity above 0.

    """
    measured = {x.name: x for x in given.layers} if isinstance(given, Sensitivities) else {}
    saved = {name: x.saved_as for name, x in measured.items() if x.saved_as}
    pairing = pair_names(list(given), [layer.name for layer in layers], left_saved=saved)
    partner = {right: left for left, right in pairing.pairs.items()}
    _check_partners(layers, given, pairing)
    for layer in layers:
        if (own := measured.get(partner[layer.name])) is not None:
            _check_shape(layer, own)
    return _without_zeros(layers, {x.name: float(given[partner[x.name]]) for x in layers})


def _check_partners(
    layers: Sequence[Measured], given: Mapping[str, float], pairing: Pairing
) -> None:
    """Refuse layers without a sensitivity."""
    found = set(pairing.pairs.values())
    lacking = [layer.name for layer in layers if layer.name not in found]
    if lacking:
        named = first_names(list(given), 2) if given else "none"
        raise AllocationError(
            f"{len(lacking)} of {len(layers)} layers have no sensitivity: "
            f"{first_names(lacking, SHOWN)}; the sensitivities name {named}: measure them on the "
            "model that was analysed, or exclude these layers"
        )


def _check_shape(layer: Measured, own: LayerSensitivity) -> None:
    """Refuse a sensitivity of a layer with another shape."""
    # Only rows of an analysis have sides. Some files store a matrix transposed: the same layer.
    sides = getattr(layer, "rows", own.rows), getattr(layer, "cols", own.cols)
    if layer.numel != own.numel or sorted(sides) != sorted((own.rows, own.cols)):
        raise AllocationError(
            f"{layer.name} is {sides[0]} x {sides[1]} ({layer.numel} weights) in the analysis and "
            f"{own.rows} x {own.cols} ({own.numel} weights) in the sensitivities: they come from "
            "another model; measure them on the one that was analysed"
        )


def _without_zeros(
    layers: Sequence[Measured], found: dict[str, float]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Replace zeros by the least positive sensitivity of the kind, or else of all; say so."""
    zeros = [layer for layer in layers if not found[layer.name] > 0]
    if len(zeros) == len(layers):
        raise AllocationError("no sensitivity is above 0: the text reaches none of the layers")
    least: dict[str, float] = {}
    for layer in layers:
        if (value := found[layer.name]) > 0:
            least[layer.kind] = min(value, least.get(layer.kind, value))
    filled = {layer.name: least.get(layer.kind, min(least.values())) for layer in zeros}
    if not zeros:
        return found, ()
    names = first_names(list(filled), SHOWN)
    note = (
        f"{len(zeros)} of {len(layers)} layers have sensitivity 0, because the text does not reach "
        "them or weights of zero hide them; they take the least sensitivity of their kind, else of "
        f"all: {names}."
    )
    return found | filled, (note,)
