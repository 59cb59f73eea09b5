"""The condition of the exact renormalisation group (ERG) in SETOL, Martin and Hinrichs 2025.

SETOL (arXiv 2507.17912) says that in an ideally trained layer the eigenvalues of the tail have a
product of 1, if all eigenvalues are rescaled to a mean of 1. The number of largest eigenvalues
whose product is still at least 1 is compared with the number of eigenvalues in the tail.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def erg_count(eigenvalues: Array, total: int) -> int:
    """Return the largest k such that the product of the k largest eigenvalues is at least 1.

    The eigenvalues are first rescaled to the sum ``total``, their number with those that are left
    out of ``eigenvalues`` as zeros. Products are sums of logarithms, so none overflows. At least
    one eigenvalue must be above zero. (The largest rescaled one is at least 1, so k is at least 1.)

    >>> erg_count(np.array([0.1, 0.4, 0.5, 3.0]), 4)
    2
    """
    with np.errstate(divide="ignore"):
        logs = np.log(np.sort(eigenvalues)[::-1] / eigenvalues.sum() * total)
    # Equal eigenvalues are all 1 after rescaling; their logarithms may sum to just below 0.
    enough = np.cumsum(logs) >= -1e-12 * total
    return int(np.flatnonzero(enough)[-1]) + 1
