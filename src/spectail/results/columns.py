"""A column of the table of layers, declared together with the field of the record that holds it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """One column of the table of layers.

    The record, the DataFrame, the report and the documentation follow from it.
    """

    name: str
    """Its name in the DataFrame, in the files and as a field of the record."""
    label: str
    """Its heading in the report."""
    cell: str
    """How the report formats a value: the name of a cell type in ``report.js``."""
    meaning: str
    """One phrase for the documentation and for the tooltip of the heading in the report."""
    main: bool = False
    """Whether the report shows it before the reader asks for all columns."""


def column(
    label: str, cell: str, meaning: str, default: Any = dataclasses.MISSING, *, main: bool = False
) -> Any:
    """Declare a field of the record together with the label and the meaning of its column."""
    # dataclass fields carry arbitrary metadata, so one declaration serves record and table.
    about = {"label": label, "cell": cell, "meaning": meaning, "main": main}
    return (
        field(metadata=about)
        if default is dataclasses.MISSING
        else field(default=default, metadata=about)
    )
