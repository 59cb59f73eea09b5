"""Parts of one-line messages: the first of many names, and the first line of an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def visible(text: str, but: str = "") -> str:
    r"""Write characters that cannot be seen as escapes: control characters, marks of direction.

    ``but`` holds those that stay as they are.

    >>> visible("a\x1b[31m"), visible("né")
    ('a\\x1b[31m', 'né')
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in but else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def coded(name: str) -> str:
    r"""Write a name between backticks, as code; a backtick in it would end the code.

    >>> coded("a`b")
    '`a\\x60b`'
    """
    return f"`{visible(name.replace('`', chr(92) + 'x60'))}`"


def first_names(names: Iterable[str], most: int = 1) -> str:
    """List the first ``most`` names and count the rest.

    >>> first_names(["q", "k", "v"], 2)
    'q, k and 1 more'
    """
    names = [visible(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: Exception) -> str:
    r"""Return the first line of an error's text, or the name of its type if it has no text.

    >>> first_line(ValueError("no such file\n(while opening)")), first_line(ValueError())
    ('no such file', 'ValueError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def type_and_line(error: Exception) -> str:
    """Return the type of an error and the first line of its text.

    Foreign errors need the type: the text of a KeyError is a bare key.

    >>> type_and_line(KeyError("weight")), type_and_line(KeyError())
    ("KeyError: 'weight'", 'KeyError')
    """
    kind, line = type(error).__name__, first_line(error)
    return f"{kind}: {line}" if str(error).strip() else kind


def joined(texts: Sequence[str]) -> str:
    """Join texts by commas, the last one by ``and``.

    >>> joined(["q"]), joined(["q", "k", "v"])
    ('q', 'q, k and v')
    """
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def plural(n: int, word: str) -> str:
    """Write a count with its noun: ``1 layer``, ``2,000 layers``."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def with_error(value: float, error: float) -> str:
    """Write a number with its error, or alone if the error is not known.

    >>> with_error(3.21, 0.0123), with_error(3.21, math.nan)
    ('3.210 ± 0.012', '3.210')
    """
    return f"{value:.3f} ± {error:.3f}" if math.isfinite(error) else f"{value:.3f}"
