"""Spec: every choice that a measurement depends on, checked when it is built. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from spectail.basics.checks import check_seed
from spectail.core.cutoffs import Cutoff, HistogramPeak, Median, parse_cutoff
from spectail.core.windows import Placement, Tile, parse_placement
from spectail.errors import SpecError

WINDOW_WORDS = ("common", "fit", "whole")
"""``common``: one window size for the whole run; ``fit``: the largest that fits each layer;
``whole``: the whole matrix, no windows."""
LEGACIES = (False, True, "weightwatcher")
"""Whose code is reproduced: nobody's, that of the FARMS paper (which TempBalance and AlphaPruning
share), or WeightWatcher's."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The settings of a measurement.

    Placement and cutoff may also be given as text, such as ``"grid:10"`` or ``"top:0.1"``.
    ``window`` is the short side of the windows or one of WINDOW_WORDS. ``aspect_ratio`` is the
    window's side along the matrix's longer side divided by its other side. ``tolerance`` measures
    windows one after the other until the remaining ones would move alpha by a smaller share.
    ``seed`` is for random placements and simulated nulls.

    ``legacy`` reproduces the published FARMS code: ``window`` counts rows, ``aspect_ratio`` is
    columns / rows as stored, grids use the floor stride, numerical zeros are kept, the lower bound
    of ``peak`` is in log10, and convolutions average alphas over divisions. ``"weightwatcher"``
    reproduces WeightWatcher: see ``core.weightwatcher``.
    """

    aspect_ratio: float = 1.0
    window: int | str = "common"
    placement: Placement = field(default_factory=Tile)
    cutoff: Cutoff = field(default_factory=Median)
    seed: int = 0
    legacy: bool | str = False
    tolerance: float | None = None

    if TYPE_CHECKING:
        # A field is read as an object, but may be given as text: only a signature can say both.
        def __init__(
            self,
            *,
            aspect_ratio: float = ...,
            window: int | str = ...,
            placement: Placement | str = ...,
            cutoff: Cutoff | str = ...,
            seed: int = ...,
            legacy: bool | str = ...,
            tolerance: float | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        # The dataclass is frozen, so text is replaced by what it means past its own __setattr__.
        if isinstance(self.placement, str):
            object.__setattr__(self, "placement", parse_placement(self.placement))
        if isinstance(self.cutoff, str):
            object.__setattr__(self, "cutoff", parse_cutoff(self.cutoff))
        if not (isinstance(self.aspect_ratio, Real) and 0 < self.aspect_ratio < math.inf):
            raise SpecError(
                f"aspect ratio must be a positive finite number, not {self.aspect_ratio!r}"
            )
        if isinstance(self.window, str) and self.window not in WINDOW_WORDS:
            raise SpecError(
                f"window must be a whole number, common, fit or whole, not {self.window!r}"
            )
        # Floats are refused even if they are whole numbers, because positions must be integers.
        if not isinstance(self.window, str) and not (
            isinstance(self.window, int) and self.window >= 2
        ):
            raise SpecError(f"window must be a whole number of at least 2, not {self.window!r}")
        for name, types in (("placement", Placement), ("cutoff", Cutoff)):
            if not isinstance(getattr(self, name), types):
                raise SpecError(
                    f"{name} must be one of spectail's types or its short text, "
                    f"not {getattr(self, name)!r}"
                )
        check_seed(SpecError, self.seed)
        self._check_legacy()
        self._check_tolerance()
        # The published code's peak has its own lower bound, so that a preset need not repeat it.
        if (
            self.legacy is True
            and isinstance(self.cutoff, HistogramPeak)
            and not self.cutoff.legacy_lower_bound
        ):
            object.__setattr__(self, "cutoff", HistogramPeak(legacy_lower_bound=True))

    def _check_legacy(self) -> None:
        """Raise SpecError if the code to reproduce is unknown."""
        # 1 equals True, but would be written to a file as a number.
        if not (isinstance(self.legacy, bool | str) and self.legacy in LEGACIES):
            raise SpecError(f"legacy must be True, False or 'weightwatcher', not {self.legacy!r}")

    def _check_tolerance(self) -> None:
        """Raise SpecError if the tolerance is out of range or there are no windows."""
        if self.tolerance is None:
            return
        if not (isinstance(self.tolerance, Real) and 0 < self.tolerance < 1):
            raise SpecError(
                f"tolerance must be a share of alpha above 0 and below 1, not {self.tolerance!r}"
            )
        if self.window == "whole":
            raise SpecError("tolerance needs windows: window whole takes the whole matrix at once")

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON values; ``Spec(**spec.to_dict())`` restores it."""
        # Text instead of objects: __post_init__ parses it back.
        return {
            "aspect_ratio": self.aspect_ratio,
            "window": self.window,
            "placement": str(self.placement),
            "cutoff": str(self.cutoff),
            "seed": self.seed,
            "legacy": self.legacy,
            "tolerance": self.tolerance,
        }
