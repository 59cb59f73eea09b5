"""The ERG condition beside a plain loop over its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectail as st
from spectail.core.erg import erg_count
from tests.reference.plain_traps import plain_erg_count


@pytest.mark.parametrize("law", ["gaussian", "pareto", "uniform"])
@pytest.mark.parametrize("n", [2, 9, 100])
def test_the_count_is_that_of_the_definition(law: str, n: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng((3, n, seed))
        eigenvalues = {
            "gaussian": rng.standard_normal(n) ** 2,
            "pareto": rng.pareto(1.5, n) + 1e-3,
            "uniform": rng.uniform(0.01, 1, n),
        }[law]
        assert erg_count(eigenvalues, n) == plain_erg_count(eigenvalues)
        assert erg_count(7e-9 * eigenvalues, n) == plain_erg_count(eigenvalues)
        zeros = np.concatenate([np.zeros(5), eigenvalues])
        assert erg_count(eigenvalues, n + 5) == plain_erg_count(zeros)
        assert erg_count(zeros, n + 5) == plain_erg_count(zeros)


def test_equal_eigenvalues_all_count() -> None:
    assert erg_count(np.full(1000, 0.1), 1000) == 1000


def test_products_beyond_the_range_of_floats() -> None:
    """Half of the eigenvalues are 1.9 and half 0.1: the product of the first half is 1.9^5000."""
    eigenvalues = np.repeat([0.1, 1.9], 5000)
    expected = 5000 + int(5000 * np.log(1.9) / np.log(10))
    assert erg_count(eigenvalues, 10000) == expected


def test_whole_matrices_have_the_count_of_their_eigenvalues() -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    squares = np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2
    spec = st.Spec(window="whole", cutoff="ks")
    row = st.analyze({"a.weight": weight}, spec=spec, erg=True).table.iloc[0]
    assert row["erg_n"] == plain_erg_count(squares)
    assert row["erg_gap"] == plain_erg_count(squares) - row["n_tail"]


def test_pooled_windows_count_their_zeros() -> None:
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(2))
    weight[64:, 32:] = 0
    squares = np.concatenate(
        [np.linalg.svd(w.double().numpy(), compute_uv=False) ** 2 for w in weight.split(64)]
    )
    squares[squares < 1e-9] = 0
    row = st.analyze({"a.weight": weight}, spec=st.Spec(window=64), erg=True).table.iloc[0]
    assert row["n_zero"] == 32
    assert row["erg_n"] == plain_erg_count(squares)


@pytest.mark.parametrize("shape", [(96, 64), (40, 30, 3, 3)])
def test_the_preset_counts_as_weightwatcher_does(shape: tuple[int, ...]) -> None:
    """Its detX_num is the number of eigenvalues when the product first falls below 1."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    flat = weight.double().flatten(2).movedim(-1, 0) if len(shape) == 4 else weight.double()[None]
    squares = np.linalg.svd(flat.numpy(), compute_uv=False).ravel() ** 2
    rescaled = np.sort(squares / squares.sum() * squares.size)[::-1]
    first_below = int(np.argmax(np.cumprod(rescaled) < 1)) + 1
    spec = st.presets.WEIGHTWATCHER
    row = st.analyze({"a.weight": weight}, spec=spec, erg=True).table.iloc[0]
    assert row["erg_n"] == first_below
    assert row["erg_gap"] == first_below - row["n_tail"]
