"""Read the text on which a language model is calibrated or evaluated.

A text is a UTF-8 file, or a column of a dataset of the Hugging Face hub.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from spectail.basics.addresses import without_secrets
from spectail.basics.files import local_path
from spectail.basics.texts import first_line
from spectail.errors import SourceError, SpectailError
from spectail.models.formats.hub import is_hub_id

COLUMN = "text"
"""The column of a dataset that is read unless another is named."""
HOW = "a UTF-8 file, or a hub dataset as org/name[:config[:split[:column]]]"


def read_text(given: str | os.PathLike[str]) -> str:
    """Return the text of a file, or the rows of a hub dataset joined by empty lines.

    A dataset is written ``org/name[:config[:split[:column]]]``, such as
    ``Salesforce/wikitext:wikitext-2-raw-v1:test``. The split defaults to ``test`` and the column to
    ``text``. Datasets need the package ``datasets``.

    Raises:
        SourceError: no such file, dataset or column, or a file that is no UTF-8 text.

    """
    text = os.fspath(given)
    path = local_path(text)
    # A path that exists wins over a hub id of the same spelling.
    if not path.is_file() and is_hub_id(text.split(":")[0]) and not path.exists():
        return "\n\n".join(_column(*text.split(":")))
    if not path.is_file():
        raise SourceError(f"no text file at {without_secrets(text)}; expected {HOW}")
    return read_utf8(path, SourceError)


def read_utf8(path: Path, error: type[SpectailError]) -> str:
    """Return the text of a UTF-8 file, without the mark of byte order that some editors put first.

    Raises:
        SpectailError: of the type ``error``: no such file, or no UTF-8 text.

    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{path} is no UTF-8 text") from None
    except OSError as found:
        raise error(f"cannot read {path}: {found.strerror or found}") from None


def _column(
    name: str, config: str = "", split: str = "test", column: str = COLUMN, *rest: str
) -> list[str]:
    """Return the rows of one column; the dataset is downloaded unless it is in the local cache."""
    if rest:
        raise SourceError(
            f"{':'.join([name, config, split, column, *rest])} has too many parts; expected {HOW}"
        )
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise SourceError(
            f"no file {name}, and a hub dataset needs datasets: pip install 'spectail[eval]'"
        ) from None
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "test")
    except Exception as error:  # the library raises errors of many kinds, its own among them
        reason = first_line(error)
        raise SourceError(f"dataset {name} cannot be loaded: {reason[:200]}") from error
    if column not in rows.column_names:
        raise SourceError(
            f"dataset {name} has no column {column!r}, but {', '.join(rows.column_names)}"
        )
    return [str(row) for row in rows[column]]
