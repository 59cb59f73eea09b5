"""Parts of one-line messages: the first of many names, and the first line of an error."""

from __future__ import annotations

from collections.abc import Iterable


def first_names(names: Iterable[str], most: int = 1) -> str:
    """List the first ``most`` names and count the rest.

    >>> first_names(["q", "k", "v"], 2)
    'q, k and 1 more'
    """
    names = list(names)
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
