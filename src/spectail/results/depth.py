"""How far numbers follow depth: rank correlations over the blocks of a model.

Depth is the number of a block in its own stack, so that an encoder and a decoder each start at 0.
Numbered stages of one network (``layer1``, ``layer2`` of a ResNet) continue each other. Layers that
lie in no block have no depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectail.models.naming.blocks import u_shaped, unit_of
from spectail.results.records import LayerRecord

Array: TypeAlias = NDArray[np.float64]

FEWEST = 4
"""Fewer blocks have no correlation: three are in order by chance one time in three."""
STRONG = 0.8
"""From here on a straight line over depth puts blocks in much the same order."""
SAME = 0.95
"""From here on values count as made from what was measured and nothing else."""
_UNIT = re.compile(r"(.*?)(?:(\d+)\.)?(\d+)")
"""The name of a block: its stack, the number of its stage if it has one, and its own number."""


def depths(units: Iterable[str]) -> dict[str, int]:
    """Return the depth of blocks that are given by their full names.

    >>> depths(["encoder.layer.0", "encoder.layer.1", "decoder.layer.0"])
    {'encoder.layer.0': 0, 'encoder.layer.1': 1, 'decoder.layer.0': 0}
    >>> depths(["layer1.0", "layer1.1", "layer2.0"])
    {'layer1.0': 0, 'layer1.1': 1, 'layer2.0': 2}
    """
    places = {unit: place for unit in units if (place := place_of(unit))}
    sizes: dict[tuple[str, int], int] = {}
    for stack, stage, number in places.values():
        sizes[stack, stage] = max(sizes.get((stack, stage), 0), number + 1)
    # Blocks of all earlier stages of a stack lie before a block.
    before = {
        (stack, stage): sum(size for (s, i), size in sizes.items() if s == stack and i < stage)
        for stack, stage in sizes
    }
    return {unit: before[stack, stage] + n for unit, (stack, stage, n) in places.items()}


def place_of(unit: str) -> tuple[str, int, int] | None:
    """Split the name of a block into its stack, the number of its stage and its own number."""
    if place := u_shaped(unit):
        return place
    match = _UNIT.fullmatch(unit)
    return (match[1], int(match[2] or 0), int(match[3])) if match else None


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation over blocks, or a partial one, with its uncertainty."""

    rho: float
    n_blocks: int
    n_given: int = 0
    """How many other quantities are held fixed; 0 for a plain correlation."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return a confidence interval, by Fisher's z transformation.

        The standard error of z is sqrt((1 + rho^2 / 2) / (n - 3)) (Bonett and Wright 2000,
        Psychometrika 65); every quantity held fixed counts as one block less.
        """
        n = self.n_blocks - self.n_given
        # A perfect order has an infinite z. It counts as halfway between 1 and the next smaller
        # value of rho, where two neighbours change places, so that 4 blocks in order prove nothing.
        most = 1 - 6 / (n * (n**2 - 1))
        rho = min(max(self.rho, -most), most)
        z = math.atanh(rho)
        half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
        return min(math.tanh(z - half), self.rho), max(math.tanh(z + half), self.rho)

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval leaves out 0."""
        low, high = self.interval()
        return low > 0 or high < 0

    def __str__(self) -> str:
        """Write the number with its uncertainty."""
        low, high = self.interval()
        numbers = f"95 % interval {low:.2f} to {high:.2f}, {self.n_blocks} blocks"
        return f"{'partial ' * self.n_given}rank correlation {self.rho:.2f} ({numbers})"

    def with_depth(self, subject: str, *, plural: bool = False) -> str:
        """Say in one sentence how ``subject`` goes with depth.

        >>> RankCorrelation(0.9, 24).with_depth("alpha")
        'Alpha rises with depth: rank correlation 0.90 (95 % interval 0.75 to 0.96, 24 blocks).'
        >>> RankCorrelation(0.3, 6).with_depth("alpha").partition(": ")[0]
        'It is open whether alpha follows depth'
        """
        ending = "" if plural else "s"
        if not self.clear:
            return f"It is open whether {subject} follow{ending} depth: {self}."
        verb = "rise" if self.rho > 0 else "fall"
        return f"{_sentence(subject)} {verb}{ending} with depth: {self}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        low, high = self.interval()
        return {"rho": self.rho, "low": low, "high": high, "n_blocks": self.n_blocks}


def rank_correlation(
    x: ArrayLike, y: ArrayLike, *, given: ArrayLike | None = None
) -> RankCorrelation | None:
    """Return Spearman's correlation of two arrays; ties share their mean rank.

    ``given`` makes it partial: the correlation of what is left of the ranks of ``x`` and ``y`` when
    a straight line over the ranks of ``given`` is taken off. The result is None for too few blocks
    (``FEWEST``, one more for a partial correlation) and where an array, or what is left of it, has
    no spread.
    """
    arrays = [x, y] if given is None else [x, y, given]
    ranks = [_ranks(values) for values in arrays]
    n, n_given = ranks[0].size, len(ranks) - 2
    if n < FEWEST + n_given or any(np.ptp(rank) == 0 for rank in ranks):
        return None
    r = np.asarray(np.corrcoef(np.stack(ranks)))
    rho = float(r[0, 1])
    if given is not None:
        # The textbook formula of a partial correlation, here of ranks.
        left = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
        # Where one follows the given one exactly, only rounding is left to be correlated.
        if left < 1e-9:
            return None
        rho = float((r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt(left))
    return RankCorrelation(min(1.0, max(-1.0, rho)), n, n_given)


def block_alphas(layers: Iterable[LayerRecord]) -> dict[str, float]:
    """Return the mean alpha of every block, after the mean of each kind of layer is taken off.

    Only comparable layers with an alpha count. Kinds differ in alpha, and without this a block that
    holds other kinds than its neighbours would stand out.
    """
    inside = [
        (unit, layer)
        for layer in layers
        if layer.status == "ok" and layer.comparable and math.isfinite(layer.alpha)
        if (unit := unit_of(layer.name)) is not None
    ]
    import pandas as pd  # slow to import, and not every caller needs it

    alphas = pd.DataFrame(
        {
            "unit": [unit for unit, _ in inside],
            "kind": [layer.kind for _, layer in inside],
            "alpha": [layer.alpha for _, layer in inside],
        }
    )
    rest = alphas["alpha"] - alphas.groupby("kind")["alpha"].transform("mean")
    return {str(unit): float(mean) for unit, mean in rest.groupby(alphas["unit"]).mean().items()}


def alpha_with_depth(layers: Iterable[LayerRecord]) -> RankCorrelation | None:
    """Return the rank correlation of the blocks' alphas with depth (see ``block_alphas``)."""
    alphas = block_alphas(layers)
    depth = depths(alphas)
    return rank_correlation([depth[unit] for unit in alphas], list(alphas.values()))


@dataclass(frozen=True, kw_only=True)
class DepthCorrelations:
    """How the values of an allocation go with depth, and with what they are made from."""

    values_depth: RankCorrelation
    measured: str | None = None
    """The name of what was measured, such as ``alpha``; None if nothing was, or it is constant."""
    measured_depth: RankCorrelation | None = None
    values_measured: RankCorrelation | None = None
    values_measured_given_depth: RankCorrelation | None = None
    """None for fewer than 5 blocks, or if values or measured numbers are in order of depth."""
    values_depth_given_measured: RankCorrelation | None = None
    """None for fewer than 5 blocks, or if values or depths are in order of the measured numbers."""

    def describe(self, values: str = "the values") -> list[str]:
        """Say in one or two lines how much of the values is position."""
        line = self.values_depth.with_depth(values, plural=True)
        if self.values_depth.clear and abs(self.values_depth.rho) >= STRONG:
            line += (
                " A straight line over depth, which reads no weights, "
                "would put the blocks in much the same order."
            )
        if self.measured_depth is None or self.values_measured is None:
            return [line]
        name = self.measured or "what was measured"
        same = self.values_measured.rho
        if abs(same) >= SAME:
            # What alpha explains of ratios that are made from it is no news, whatever is given.
            order = f"{'nearly ' * (abs(same) < 0.9995)}in the {'reverse ' * (same < 0)}order"
            return [
                line,
                f"They are {order} of {name}, whose rank correlation with depth is "
                f"{self.measured_depth.rho:.2f}. Whether {name} tells more than depth, only a "
                "comparison with a rule of depth alone can show.",
            ]
        second = self.measured_depth.with_depth(name)
        if self.values_depth.n_blocks > FEWEST:
            second += _explained(name, "depth", self.values_measured_given_depth)
            second += _explained("depth", name, self.values_depth_given_measured)
        return [line, second]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            name: value.to_dict() if isinstance(value, RankCorrelation) else value
            for name, value in vars(self).items()
        }


def depth_correlations(
    depth: Sequence[float],
    values: Sequence[float],
    measured: Sequence[float] | None = None,
    *,
    name: str = "alpha",
) -> DepthCorrelations | None:
    """Correlate depth, values and measured numbers of the same blocks.

    The result is None for fewer than ``FEWEST`` blocks, and for values or depths without spread.
    """
    along = rank_correlation(values, depth)
    if along is None:
        return None
    both = rank_correlation(values, measured) if measured is not None else None
    if measured is None or both is None:
        return DepthCorrelations(values_depth=along)
    return DepthCorrelations(
        values_depth=along,
        measured=name,
        measured_depth=rank_correlation(measured, depth),
        values_measured=both,
        values_measured_given_depth=rank_correlation(values, measured, given=depth),
        values_depth_given_measured=rank_correlation(values, depth, given=measured),
    )


def _ranks(values: ArrayLike) -> Array:
    """Return ranks from 1, ties with their mean rank."""
    import pandas as pd  # slow to import, and not every caller needs it

    array = np.asarray(values, dtype=np.float64)
    # Means of equal numbers differ by rounding, and ranks of rounding errors would be noise.
    scale = np.abs(array).max(initial=0.0) or 1.0
    return np.asarray(pd.Series(np.round(array / scale, 10)).rank(), dtype=np.float64)


def _explained(one: str, given: str, partial: RankCorrelation | None) -> str:
    """Say what one quantity explains of the order of the values when another one is known."""
    if partial is None:
        return f" Given {given}, {one} can explain nothing more."
    low, high = partial.interval()
    numbers = f"(partial rank correlation {partial.rho:.2f}, 95 % interval {low:.2f} to {high:.2f})"
    if not partial.clear:
        return f" Given {given}, {one} explains no clear part of what is left {numbers}."
    share = f"{100 * partial.rho**2:.0f} %"
    return f" Given {given}, {one} explains {share} of the rest of their order {numbers}."


def _sentence(text: str) -> str:
    """Start a text with a capital."""
    return text[:1].upper() + text[1:]
