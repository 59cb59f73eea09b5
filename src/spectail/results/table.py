"""Results as a pandas table with one row per layer, in the model's order."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from spectail.results.records import COLUMNS, LayerRecord, Results

if TYPE_CHECKING:
    import pandas as pd

_DTYPES = {
    "int": "int64",
    "float": "float64",
    "Count": "int64",
    # pandas' nullable integers would fit better, but wandb.Table refuses their missing value.
    "Count | None": "float64",
    **dict.fromkeys(("Finite", "NotNegative", "Exponent", "Share"), "float64"),
    "bool": "bool",
    "str": "str",
    "Status": "str",
}
"""pandas dtypes by the annotation of a column's field."""
COLUMN_DTYPES = {
    f.name: _DTYPES[str(f.type)] for f in dataclasses.fields(LayerRecord) if f.name in COLUMNS
}
"""pandas dtype of every column of the table; ``block`` is NaN for layers outside of blocks."""


def storable(text: str) -> str:
    """Replace characters that UTF-8 cannot encode (lone surrogates) by ``?``.

    CSV, Parquet and HTML files cannot store them.
    """
    # Lone surrogates come from file names and tensor names that are not valid UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def layer_table(results: Results) -> pd.DataFrame:
    """Return the table of all layers, skipped and failed ones too, with ``records.COLUMNS``."""
    import pandas as pd  # slow to import, and a run needs it only at its end

    rows = [layer.row() for layer in results.layers]
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    for name, dtype in COLUMN_DTYPES.items():
        # One such name would make to_csv and to_parquet fail after the run has been measured.
        if dtype == "str":
            columns[name] = [storable(text) for text in columns[name]]
    # Start from objects: pandas would turn a column of integers and None into floats.
    frame = pd.DataFrame(
        {name: pd.Series(values, dtype="object") for name, values in columns.items()}
    )
    return frame.astype(COLUMN_DTYPES)


def with_whole_blocks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with ``block`` as integers or missing, for files: a float is written 3.0."""
    return table.astype({"block": "Int64"})


_FORMULA = ("=", "+", "-", "@", "\t", "\n", *"\uff1d\uff0b\uff0d\uff20")
"""What a cell begins with that a spreadsheet takes for a formula. The last four are the wide signs
of East Asian keyboards (OWASP, CSV Injection)."""


def for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """Change texts that would do harm in a CSV file.

    Names of layers come from files. A spreadsheet runs a cell such as ``=HYPERLINK(...)``; an
    apostrophe before it makes it a text. A carriage return, which would end the row, is written as
    an escape. ``layers.parquet`` and ``analysis.json`` hold the texts as they are.
    """
    table = table.copy()
    for name, column in table.items():
        if column.dtype == "str" or column.dtype == object:
            table[name] = column.map(_cell)
    return table


def _cell(value: object) -> object:
    """Return what a cell of a CSV file holds for a value."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\\r")
    return f"'{text}" if text.startswith(_FORMULA) else text


def table_html(table: pd.DataFrame) -> str:
    """Return a table as HTML for notebooks, with four digits and at most 60 rows."""
    html: str = table.to_html(index=False, max_rows=60, float_format="{:.4g}".format, na_rep="")
    return html


def extremes(table: pd.DataFrame, n: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ``n`` layers of lowest and the ``n`` of highest alpha, most extreme first.

    Only rows that are ok, comparable and have an alpha take part, so only alphas of the run's own
    window are ranked.
    """
    ranked = table[(table["status"] == "ok") & table["comparable"] & table["alpha"].notna()]
    # A stable sort keeps equal alphas in the order of the model.
    ranked = ranked.sort_values("alpha", kind="stable")
    return ranked.head(n), ranked.tail(n).iloc[::-1]
