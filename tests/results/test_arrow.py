"""An analysis goes into libraries of tables: Arrow's stream interface, and plain columns."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import spectail as st
from spectail.results.records import COLUMNS
from tests.conftest import weights


@pytest.fixture(scope="module")
def analysis() -> st.Analysis:
    return st.analyze(weights())


def test_arrow_takes_an_analysis(analysis: st.Analysis) -> None:
    table = pa.table(analysis)
    assert tuple(table.column_names) == COLUMNS
    assert table["name"].to_pylist() == [layer.name for layer in analysis.layers]
    assert table["block"].type == pa.int64()
    assert table["block"].to_pylist() == [layer.block for layer in analysis.layers]
    alphas = [None if np.isnan(layer.alpha) else layer.alpha for layer in analysis.layers]
    assert None in alphas
    assert table["alpha"].to_pylist() == alphas
    assert table["comparable"].to_pylist() == [layer.comparable for layer in analysis.layers]


def test_a_reader_may_ask_for_other_types(analysis: st.Analysis) -> None:
    wanted = pa.table(analysis).schema.remove_metadata()
    wanted = wanted.set(COLUMNS.index("block"), pa.field("block", pa.float64()))
    reader = pa.RecordBatchReader.from_stream(analysis, schema=wanted)
    assert reader.read_all()["block"].type == pa.float64()


def test_the_table_has_values_that_every_logger_reads(analysis: st.Analysis) -> None:
    # wandb.Table reads column.values[row] and knows NumPy's numbers, texts and truth values.
    table = analysis.table
    for name in COLUMNS:
        for value in table[name].values:
            assert isinstance(value, np.generic | str | bool | int | float), (name, value)
    expected = [np.nan if x.block is None else x.block for x in analysis.layers]
    assert np.array_equal(table["block"].to_numpy(), expected, equal_nan=True)


def test_files_hold_blocks_as_integers(analysis: st.Analysis, tmp_path: Path) -> None:
    analysis.save(tmp_path)
    stored = pq.read_table(tmp_path / "layers.parquet")
    assert stored["block"].type == pa.int64()
    assert stored["block"].to_pylist() == [x.block for x in analysis.layers]
    cells = pd.read_csv(tmp_path / "layers.csv", dtype=str, keep_default_na=False)["block"]
    assert cells.tolist() == ["" if x.block is None else str(x.block) for x in analysis.layers]


def test_the_other_tables_too(analysis: st.Analysis) -> None:
    comparison = st.compare(analysis, analysis)
    for table in (comparison.table, st.describe(weights()).table):
        assert str(table["block"].dtype) == "float64"
    blocks = {row["name"]: row["block"] for row in comparison.to_dict()["rows"]}
    assert blocks == {x.name: x.block for x in analysis.layers}
    assert {type(block) for block in blocks.values()} == {int, type(None)}
