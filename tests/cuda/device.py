"""The device that these tests compare with the CPU, and how tables are compared.

``SPECTAIL_TEST_DEVICE=cpu`` runs them without a GPU, which tests the tests themselves.
"""

import os
from typing import Any

import numpy as np
import pytest
import torch

DEVICE = os.environ.get("SPECTAIL_TEST_DEVICE", "cuda")
IS_GPU = torch.device(DEVICE).type == "cuda"

needs_device = pytest.mark.skipif(
    IS_GPU and not torch.cuda.is_available(), reason="torch finds no GPU here"
)
needs_gpu = pytest.mark.skipif(
    not (IS_GPU and torch.cuda.is_available()), reason="needs a GPU: its streams, memory or graphs"
)

EXACT = 1e-9
"""Relative difference of numbers that come from eigenvalues in float64."""
TOLERANCES: dict[str, float] = {
    **dict.fromkeys(
        ("lambda_max", "stable_rank", "alpha_weighted", "log_spectral_norm", "trap_ratio"), 1e-6
    ),
    "relative_change": 1e-6,
    **dict.fromkeys(("ks_p", "lognormal_ratio", "exponential_ratio", "trap_p", "null_z"), 1e-6),
    **dict.fromkeys(("alpha_se", "ks", "log_norm", "weight_var", "entropy", "snr"), 1e-8),
}
"""The largest eigenvalue is found by an iteration in float32, to about 1e-7. Goodness of fit, error
bars and logarithms near 0 magnify differences of eigenvalues."""


def compare(
    found: Any, expected: Any, *, without: tuple[str, ...] = (), least: float = 0.0
) -> None:
    """Compare two tables, and list every number that differs by more than it may.

    ``least`` is allowed for every number: for weights that torch computes in float32.
    """
    left, right = (table.set_index("name").sort_index() for table in (found, expected))
    assert list(left.index) == list(right.index)
    wrong = []
    for column in right.columns.difference(["seconds", *without]):
        tolerance = max(least, TOLERANCES.get(column, EXACT))
        for name, a, b in zip(left.index, left[column], right[column], strict=True):
            if not _agree(a, b, tolerance):
                wrong.append(f"{name} {column}: {a!r}, on the CPU {b!r}")
    assert not wrong, "\n" + "\n".join(wrong)


def _agree(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(b, float | np.floating):
        return bool(np.isclose(a, b, rtol=tolerance, atol=1e-12, equal_nan=True))
    return bool(a == b)
