"""The texts of a pruning run: for calibration, for the choice of eps, and for the test.

They must not overlap; otherwise the result would be tested on text that it was made from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from spectail.errors import PruneError
from spectail.evaluation.texts import read_text

HELD_OUT = 0.1
"""The part at the end of a calibration text that eps is chosen by if no selection text is given. It
is not used for calibration then."""


@dataclass(frozen=True)
class Text:
    """A text and its name."""

    name: str
    text: str


@dataclass(frozen=True)
class Texts:
    """The texts of a run; each is None or empty if it is not needed."""

    calibration: Text | None = None
    selection: Text | None = None
    tests: tuple[Text, ...] = ()


def read_texts(
    *,
    calibration: str | None,
    selection: str | None,
    tests: Sequence[str] = (),
    choosing: bool = False,
) -> Texts:
    """Read the texts from files or datasets (see ``read_text``).

    If eps is chosen (``choosing``) and there is no selection text, the end of the calibration text
    is held out for it.

    Raises:
        PruneError: one text contains another; there is no text to choose eps by; or there is a
            selection text although eps is not chosen.
        SourceError: one of them cannot be read.

    """
    _check_selection(calibration, selection, choosing=choosing)
    named = [
        ("--calibration", calibration),
        ("--selection", selection),
        *(("--evaluate", path) for path in tests),
    ]
    found = [
        (option, Text(Path(given).name, read_text(given)))
        for option, given in named
        if given is not None
    ]
    # Before the split, whose two parts come from one file.
    _check_apart(found)
    by_option = dict(found)
    whole, chosen_by = by_option.get("--calibration"), by_option.get("--selection")
    if choosing and chosen_by is None and whole is not None:
        # The calibration text shrinks to what is not held out.
        first, last = hold_out(whole.text)
        whole, chosen_by = (
            Text(whole.name, first),
            Text(f"the last {HELD_OUT:.0%} of {whole.name}", last),
        )
    return Texts(whole, chosen_by, tuple(text for option, text in found if option == "--evaluate"))


def hold_out(text: str) -> tuple[str, str]:
    """Cut a text at white space into the first nine tenths, to calibrate, and the rest, to select.

    >>> hold_out("a b c d e f g h i j")
    ('a b c d e f g h i', ' j')
    """
    start = round((1 - HELD_OUT) * len(text))
    # At white space, so that no word is cut in two.
    space = re.compile(r"\s").search(text, start)
    cut = space.start() if space else start
    return text[:cut], text[cut:]


def _check_selection(calibration: str | None, selection: str | None, *, choosing: bool) -> None:
    """Refuse a selection text without a choice, and a choice without text."""
    if selection is not None and not choosing:
        raise PruneError("--selection goes with --eps auto: leave it out, or let eps be chosen")
    if choosing and selection is None and calibration is None:
        raise PruneError(
            "--eps auto needs text to choose by: give --selection FILE, or --calibration FILE, "
            f"of which the last {HELD_OUT:.0%} are then held out"
        )


def _check_apart(found: Sequence[tuple[str, Text]]) -> None:
    """Refuse two texts of which one contains the other."""
    for (option_a, a), (option_b, b) in combinations(found, 2):
        one, other = a.text.strip(), b.text.strip()
        # The same test text may be given twice; that harms nothing.
        if option_a != option_b and one and other and (one in other or other in one):
            raise PruneError(
                f"{option_a} {a.name} and {option_b} {b.name} share their text: give texts apart, "
                "so that nothing is chosen or tested by what it was made from"
            )
