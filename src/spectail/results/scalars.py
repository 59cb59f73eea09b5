"""Alphas and factors as named numbers, for loggers of training runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_INDEX = re.compile(r"\[(\d+)\]")


def scalars(
    alphas: Mapping[str, float], factors: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Name the numbers ``mean_alpha``, ``alpha/<layer>`` and ``factor/<layer>``, without NaN.

    ``mean_alpha`` is the plain mean over the layers.

    >>> scalars({"0": 2.0, "experts[1].up": 4.0}, {"0": 0.5})
    {'mean_alpha': 3.0, 'alpha/0': 2.0, 'alpha/experts.1.up': 4.0, 'factor/0': 0.5}
    """
    known = {_key("alpha", name): float(x) for name, x in alphas.items() if not math.isnan(x)}
    mean = {"mean_alpha": math.fsum(known.values()) / len(known)} if known else {}
    return mean | known | {_key("factor", name): float(x) for name, x in (factors or {}).items()}


def _key(what: str, layer: str) -> str:
    # MLflow refuses brackets in names.
    return what + "/" + _INDEX.sub(r".\1", layer)
