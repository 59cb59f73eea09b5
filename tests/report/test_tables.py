"""The table: the contract's columns, honest types, and what counts as most and least
heavy-tailed."""

import math

import pandas as pd
import pytest

from spectail.results.records import COLUMNS, Results
from spectail.results.table import extremes, layer_table


def test_columns_and_types(transformer: Results) -> None:
    table = layer_table(transformer)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == len(transformer.layers)
    text = "str" if int(pd.__version__.split(".")[0]) >= 3 else "object"
    kinds = {
        "name": text,
        "block": "float64",
        "rows": "int64",
        "alpha": "float64",
        "comparable": "bool",
        "reason": text,
    }
    assert {name: str(table[name].dtype) for name in kinds} == kinds


def test_values_are_those_of_the_records(transformer: Results) -> None:
    table = layer_table(transformer)
    for i in (0, 5, len(table) - 1):
        record = transformer.layers[i]
        assert table.loc[i, "name"] == record.name
        assert table.loc[i, "alpha"] == pytest.approx(record.alpha, nan_ok=True, rel=0)
        block = table["block"].tolist()[i]
        assert math.isnan(block) if record.block is None else block == record.block


@pytest.mark.parametrize("case", ["cnn", "single", "failed", "hostile", "huge"])
def test_every_shape_of_run_has_a_table(case: str, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue(case)
    names = [layer.name.replace("\udc80", "?") for layer in results.layers]
    assert [*layer_table(results)["name"]] == names


def test_extremes_rank_only_ok_and_comparable_rows(transformer: Results) -> None:
    table = layer_table(transformer)
    heavy, light = extremes(table, 3)
    ranked = sorted(x.alpha for x in transformer.layers if x.status == "ok" and x.comparable)
    assert heavy["alpha"].tolist() == ranked[:3]
    assert light["alpha"].tolist() == ranked[::-1][:3]
    everyone, _ = extremes(table, 10_000)
    assert "model.head.conv2" not in set(everyone["name"])
    assert set(everyone["status"]) == {"ok"}


def test_extremes_of_a_run_without_measured_layers(failed: Results) -> None:
    heavy, light = extremes(layer_table(failed))
    assert len(heavy) == len(light) == 0
