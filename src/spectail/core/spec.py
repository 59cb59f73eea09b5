"""Spec: every choice that a measurement depends on, checked when it is built. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from spectail.core.cutoffs import Cutoff, HistogramPeak, Median, parse_cutoff
from spectail.core.windows import Placement, Tile, parse_placement
from spectail.errors import SpecError

WINDOW_WORDS = ("common", "fit", "whole")
"""``common``: one size for the whole run; ``fit``: the largest that fits each layer; ``whole``: no
windows."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How to measure. Placement and cutoff may be given as their short text (``"grid:10"``, ``"top:0.1"``).

    ``window`` is the short side of the windows or one of WINDOW_WORDS. ``legacy`` reproduces the
    published FARMS code: ``window`` counts rows and ``aspect_ratio`` is columns / rows as stored,
    grids use the floor stride, numerical zeros stay in, the peak's lower bound is in log10,
    convolutions average alphas over divisions. ``tolerance`` takes the windows of a grid, step or
    random placement one after the other until the rest would move alpha by a smaller share.
    """

    aspect_ratio: float = 1.0
    window: int | str = "common"
    placement: Placement = field(default_factory=Tile)
    cutoff: Cutoff = field(default_factory=Median)
    seed: int = 0
    legacy: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.placement, str):
            object.__setattr__(self, "placement", parse_placement(self.placement))
        if isinstance(self.cutoff, str):
            object.__setattr__(self, "cutoff", parse_cutoff(self.cutoff))
        if not (math.isfinite(self.aspect_ratio) and self.aspect_ratio > 0):
            raise SpecError(
                f"aspect ratio must be a positive finite number, not {self.aspect_ratio!r}"
            )
        if isinstance(self.window, str) and self.window not in WINDOW_WORDS:
            raise SpecError(
                f"window must be a whole number, common, fit or whole, not {self.window!r}"
            )
        if not isinstance(self.window, str) and not (
            isinstance(self.window, int) and self.window >= 2
        ):
            raise SpecError(f"window must be a whole number of at least 2, not {self.window!r}")
        for name, types in (("placement", Placement), ("cutoff", Cutoff)):
            if not isinstance(getattr(self, name), types):
                raise SpecError(
                    f"{name} must be one of spectail's types or its short text, not {getattr(self, name)!r}"
                )
        if self.seed < 0:
            raise SpecError(f"seed must be a whole number of at least 0, not {self.seed!r}")
        self._check_tolerance()
        if (
            self.legacy
            and isinstance(self.cutoff, HistogramPeak)
            and not self.cutoff.legacy_lower_bound
        ):
            object.__setattr__(self, "cutoff", HistogramPeak(legacy_lower_bound=True))

    def _check_tolerance(self) -> None:
        if self.tolerance is None:
            return
        if not 0 < self.tolerance < 1:
            raise SpecError(
                f"tolerance must be a share of alpha above 0 and below 1, not {self.tolerance!r}"
            )
        if isinstance(self.placement, Tile) or self.window == "whole":
            placed = (
                "no windows at all"
                if self.window == "whole"
                else "no more windows than cover the matrix"
            )
            raise SpecError(
                f"tolerance needs grid:K, step:S or random:N: {self.placement} takes {placed}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values; ``Spec(**spec.to_dict())`` gives it back."""
        return {
            "aspect_ratio": self.aspect_ratio,
            "window": self.window,
            "placement": str(self.placement),
            "cutoff": str(self.cutoff),
            "seed": self.seed,
            "legacy": self.legacy,
            "tolerance": self.tolerance,
        }
