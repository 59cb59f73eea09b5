"""Freeze: which layers to train while all others keep their weights, for partial fine-tuning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import ClassVar

import numpy as np

from spectail.allocation.targets.base import Target
from spectail.allocation.units import Array, Units, check_level
from spectail.basics.texts import first_names
from spectail.errors import AllocationError
from spectail.models.naming.names import canonical_name
from spectail.models.naming.stored import stored_name

RULES = ("alpha", "alpha-in-kind", "snr")
"""What decides: alpha over all layers, alpha among the layers of each kind, or Spectrum's rule."""


_EXPERT = re.compile(r"^(.*\bexperts)\.\d+\.(\w+)$")
"""A projection of one expert."""


@dataclass(frozen=True, kw_only=True)
class Freeze(Target):
    """1 for every layer that is trained and 0 for the others; the budget is the share trained.

    By ``alpha``, the layers of highest alpha are trained: by heavy-tailed self-regularization they
    are the least trained ones, the same that get the largest rates. ``alpha-in-kind`` takes the
    share among the layers of each kind (q, up, down). ``snr`` is the rule of Spectrum (arXiv
    2406.06623): the layers of highest signal-to-noise ratio in each kind.

    The share counts parameters, and is rounded down in every group that is ranked, as in Spectrum.
    Parts of one parameter (q, k and v of a fused weight, the experts of a block) are chosen
    together, by the mean over the parts. Of equals the earlier one is trained.
    """

    name: ClassVar[str] = "freeze"
    meaning: ClassVar[str] = "1 for the layers to train, 0 for those to freeze"
    budget_meaning: ClassVar[str] = "share of the layers to train (`--top 25%`), met from below"
    inside_blocks: ClassVar[bool] = True

    by: str = "alpha"
    """One of ``RULES``."""
    level: str = "layer"
    """``block`` trains whole blocks, by the mean over their layers."""

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.by not in RULES:
            raise AllocationError(
                f"by must be one of {', '.join(RULES)} for target freeze, not {self.by!r}"
            )

    @property
    def needs_alpha(self) -> bool:
        """Whether alpha decides."""
        return self.by != "snr"

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return 1 for each unit that is trained and 0 for the others, and what that amounts to."""
        if not 0 < budget <= 1:
            raise AllocationError(
                f"the share of layers to train must be above 0 and at most 1, not {budget!r}"
            )
        scores, what = self._scores(units), f"{self.level}s"
        parameters: dict[str, list[int]] = {}
        for i, name in enumerate(units.names):
            parameters.setdefault(_parameter(name), []).append(i)
        groups = self._groups(units, parameters)
        values = np.zeros(len(units.names))
        trained = 0
        for group in groups:
            # The tolerance keeps 0.29 of 100 layers, 28.999... in floats, at 29.
            count = math.floor(budget * len(group) + 1e-9)
            ranked = sorted(group, key=lambda members: -float(np.mean(scores[members])))
            for members in ranked[:count]:
                values[members] = 1.0
            trained += count
        if not trained:
            where = f"{len(parameters)} {what}" if self.by == "alpha" else f"{what} of any kind"
            raise AllocationError(
                f"a share of {budget:.3g} is less than one of the {where}: ask for a larger one"
            )
        share = float(units.numel @ values / units.numel.sum())
        return values, (
            f"{trained} of {len(parameters)} {what} are trained: {100 * share:.3g} % of the "
            "weights that take part.",
        )

    def _scores(self, units: Units) -> Array:
        """Return what the units are ranked by, the highest first."""
        if self.by != "snr":
            return units.alpha
        # Only rows of an analysis have the ratio.
        found = [[getattr(x, "snr", math.nan) for x in members] for members in units.members]
        layers = [x for members in units.members for x in members]
        ratios = chain.from_iterable(found)
        lacking = [x.name for x, r in zip(layers, ratios, strict=True) if not math.isfinite(r)]
        if len(lacking) == len(layers):
            raise AllocationError(
                "the analysis has no signal-to-noise ratios: run spectail analyze with "
                "--full-spectrum"
            )
        if lacking:
            raise AllocationError(
                f"{len(lacking)} of {len(layers)} layers have no signal-to-noise ratio: "
                f"{first_names(lacking, 8)}; exclude them"
            )
        return np.array([fmean(own) for own in found])

    def _groups(self, units: Units, parameters: dict[str, list[int]]) -> list[list[list[int]]]:
        """Return the groups to rank: each a list of parameters, as the indices of their units."""
        if self.by == "alpha":
            return [list(parameters.values())]
        groups: dict[tuple[str, ...], list[list[int]]] = {}
        for members in parameters.values():
            kinds = {layer.kind for i in members for layer in units.members[i]}
            groups.setdefault(tuple(sorted(kinds)), []).append(members)
        return list(groups.values())


def _parameter(layer: str) -> str:
    """Return what is trained or frozen with a layer as a whole.

    Files store experts one by one, but transformers keeps those of a block in two tensors: one of
    gates and up projections, one of down projections.
    """
    match = _EXPERT.match(canonical_name(layer))
    if match is None:
        return stored_name(layer)
    return f"{match[1]}.{'gate_up' if match[2] in ('gate_proj', 'up_proj') else match[2]}"
