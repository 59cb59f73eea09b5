"""Maps: from the alphas of all units to one factor per unit.

Sparsities use the ratios of the factors; rates are multiplied by them. Every map is a frozen type
with a short text (``str(map)``, read by :func:`parse_map`). A higher alpha never gets a lower
factor, and units of equal alpha get equal factors. If all alphas are equal, every factor is 1, or
the bound of the map's range that is nearest to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from spectail import presets
from spectail.errors import AllocationError

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """A straight line from ``low`` at the smallest alpha to ``high`` at the largest.

    AlphaPruning's 1 - eps to 1 + eps (arXiv 2410.10912), ``tb_linear_map`` of TempBalance (arXiv
    2312.00359), AlphaDecay, LLR. Published code gives all units ``high``, or NaN, if all alphas are
    equal.

    >>> Linear(0.5, 1.5).factors(np.array([2.0, 3.0, 6.0]))
    array([0.5 , 0.75, 1.5 ])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range("linear", self.low, self.high)

    def factors(self, alphas: Array) -> Array:
        """One factor per alpha."""
        smallest, spread = alphas.min(), np.ptp(alphas)
        # "not >" also catches NaN.
        if not spread > 0:
            return _nobody_stands_out(self.low, self.high, alphas.size)
        place: Array = (alphas - smallest) / spread
        # low + (high - low) may exceed high by rounding.
        return np.minimum(self.low + (self.high - self.low) * place, self.high)

    def __str__(self) -> str:
        return f"linear:{self.low!r}:{self.high!r}"


@dataclass(frozen=True)
class SquareRoot:
    """sqrt(alpha) divided by its mean (``tb_sqrt`` of TempBalance).

    >>> SquareRoot().factors(np.array([1.0, 4.0])).round(3)
    array([0.667, 1.333])
    """

    def factors(self, alphas: Array) -> Array:
        """One factor per alpha."""
        if alphas.min() < 0:
            raise AllocationError(
                "map sqrt needs alphas of at least 0, "
                f"the smallest here is {alphas.min():g}; use linear"
            )
        roots = np.sqrt(alphas)
        return np.asarray(roots / roots.mean())

    def __str__(self) -> str:
        return "sqrt"


@dataclass(frozen=True)
class Log2:
    """log2(alpha) divided by its mean (``tb_log2`` of TempBalance).

    Alphas must be above 1, as those of every tail fit are.

    >>> Log2().factors(np.array([2.0, 8.0]))
    array([0.5, 1.5])
    """

    def factors(self, alphas: Array) -> Array:
        """One factor per alpha."""
        if alphas.min() <= 1:
            raise AllocationError(
                "map log2 needs alphas above 1, "
                f"the smallest here is {alphas.min():g}; use linear or sqrt"
            )
        logs = np.log2(alphas)
        return np.asarray(logs / logs.mean())

    def __str__(self) -> str:
        return "log2"


@dataclass(frozen=True)
class Step:
    """low + (high - low) rank / n, with ranks from 0 (``tb_step`` of TempBalance).

    Steps are even, whatever the distances between alphas. As published, no unit reaches ``high``.
    Units of equal alpha share the mean of their ranks; published code gives them different steps by
    their position.

    >>> Step(0.5, 1.5).factors(np.array([9.0, 2.0, 3.0, 4.0]))
    array([1.25, 0.5 , 0.75, 1.  ])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range("step", self.low, self.high)

    def factors(self, alphas: Array) -> Array:
        """One factor per alpha."""
        if not np.ptp(alphas) > 0:
            return _nobody_stands_out(self.low, self.high, alphas.size)
        from scipy.stats import rankdata  # slow to import, and only this map ranks

        # rankdata counts from 1 and gives ties the mean of their ranks.
        ranks: Array = rankdata(alphas) - 1
        return self.low + (self.high - self.low) * ranks / alphas.size

    def __str__(self) -> str:
        return f"step:{self.low!r}:{self.high!r}"


@dataclass(frozen=True)
class Sigmoid:
    """10 ** (s (1 / (1 + exp(-tau (alpha - mean))) - 1/2)).

    s is ``down`` for alphas below the mean and ``up`` above it. TB_Sigmoid of ModelBalancing (arXiv
    2410.12178): factors lie between 10 ** (-down / 2) and 10 ** (up / 2).

    >>> Sigmoid(1.0, 1.0).factors(np.array([1.0, 3.0])).round(3)
    array([0.316, 3.162])
    """

    down: float
    up: float
    tau: float = 10.0

    def __post_init__(self) -> None:
        numbers = self.down, self.up, self.tau
        if not all(math.isfinite(x) and x >= 0 for x in numbers):
            raise AllocationError(
                f"sigmoid:DOWN:UP:TAU needs finite numbers of at least 0, not {_join(numbers)}"
            )
        # The factor 10 ** 50 is far beyond any use, and still far from overflowing a float.
        if max(self.down, self.up) > 100:
            raise AllocationError(
                f"sigmoid:DOWN:UP scales by 10 ** (UP / 2): at most 100, not {_join(numbers[:2])}"
            )

    def factors(self, alphas: Array) -> Array:
        """One factor per alpha."""
        away = alphas - alphas.mean()
        # expit is 1 / (1 + exp(-x)) and does not overflow.
        power: Array = np.where(away > 0, self.up, self.down) * (expit(self.tau * away) - 0.5)
        return np.asarray(10.0**power)

    def __str__(self) -> str:
        return f"sigmoid:{self.down!r}:{self.up!r}:{self.tau!r}"


Map: TypeAlias = Linear | SquareRoot | Log2 | Step | Sigmoid

_FORMS = (
    "linear:EPS, linear:LOW:HIGH, sqrt, log2, step:LOW:HIGH, sigmoid:SCALE, sigmoid:DOWN:UP:TAU"
)


def parse_map(text: str) -> Map:
    """Read a map from its text, or from the name of a published one (``presets.MAPS``).

    A single number after ``linear`` or ``step`` is eps: the range is 1 - eps to 1 + eps. A single
    number after ``sigmoid`` is both scales.

    Raises:
        AllocationError: no map is written like this.

    >>> parse_map("linear:0.25"), parse_map("llr")
    (Linear(low=0.75, high=1.25), Linear(low=1.0, high=5.0))

    """
    # A published name stands for the text of a map.
    kind, *words = presets.MAPS.get(text.strip(), text.strip()).split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        kind, numbers = "", []
    # Maps without numbers.
    plain: dict[str, Map] = {"sqrt": SquareRoot(), "log2": Log2()}
    if kind in plain and not numbers:
        return plain[kind]
    if kind in ("linear", "step") and len(numbers) in (1, 2):
        low, high = numbers if len(numbers) == 2 else (1 - numbers[0], 1 + numbers[0])
        return Linear(low, high) if kind == "linear" else Step(low, high)
    if kind == "sigmoid" and len(numbers) in (1, 2, 3):
        # One number is the scale on both sides of the mean.
        return Sigmoid(*(numbers * 2 if len(numbers) == 1 else numbers))
    raise AllocationError(
        f"map must be one of {_FORMS}, or {', '.join(presets.MAPS)}, not {text!r}"
    )


def as_map(given: Map | str) -> Map:
    """Return a map that is given as itself or as its text."""
    if isinstance(given, str):
        return parse_map(given)
    if isinstance(given, Map):
        return given
    raise AllocationError(f"map must be one of spectail.maps or its short text, not {given!r}")


def _check_range(kind: str, low: float, high: float) -> None:
    """Refuse a range that is no 0 <= low <= high with a positive high."""
    if not (math.isfinite(high) and 0 <= low <= high and high > 0):
        raise AllocationError(
            f"{kind}:LOW:HIGH needs 0 <= LOW <= HIGH (so EPS from 0 to 1), not {low!r} and {high!r}"
        )


def _nobody_stands_out(low: float, high: float, n: int) -> Array:
    """Return the factors of n units of equal alpha: 1, moved into the range."""
    # A factor of 1 keeps the budget or the base value, whatever the range.
    return np.full(n, min(max(1.0, low), high))


def _join(numbers: Sequence[float]) -> str:
    """List numbers for an error."""
    return ", ".join(f"{x!r}" for x in numbers)
