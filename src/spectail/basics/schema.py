"""Check what is read from JSON against the types that it must have, with the library msgspec.

Each file that spectail reads back has one schema: a dataclass or a ``msgspec.Struct`` whose
annotations say what every field may be. ``checked`` builds it from parsed JSON or says in one line
what is wrong and where.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, NoReturn, TypeAlias, TypeVar, get_type_hints

import msgspec

T = TypeVar("T")

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A whole number of at least 0 that fits into 64 bits, as tables need it."""
Finite: TypeAlias = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""A number that is neither NaN nor infinite."""

NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
"""A finite number of at least 0."""
Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
"""A finite number above 0."""
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A number from 0 to 1."""


class SchemaError(ValueError):
    """Parsed JSON is not what its schema says; the message is one line."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; what Python's own parser reads beyond the standard is refused.

    That is NaN, Infinity and numbers too large for a float.

    Raises:
        SchemaError: The text is no JSON, or is nested deeper than Python can walk through.

    """
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        # Names of layers may hold lone surrogates, which only Python's parser reads.
        return _parse_slowly(text)


def _parse_slowly(text: str | bytes) -> Any:
    """Parse JSON by Python's parser, which also gives the better messages."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise SchemaError("it is nested too deep") from None
    except ValueError as error:  # also of numbers with more than 4,300 digits
        raise SchemaError(f"it is no JSON: {error}") from None


def _finite(digits: str) -> float:
    """Read a number; refuse one that is too large for a float."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return number


def checked(kind: type[T], value: Any) -> T:
    """Build a value of ``kind`` from parsed JSON.

    >>> checked(dict[str, Count], {"a": 3})
    {'a': 3}

    Raises:
        SchemaError: The value has another type, lacks a field or has a number out of range.

    """
    try:
        return msgspec.convert(value, kind)
    except RecursionError:
        raise SchemaError("it is nested too deep") from None
    except ValueError as error:  # msgspec's ValidationError
        raise SchemaError(_in_words(str(error))) from None


def build(kind: type[T], stored: Any, **own: Callable[[Any], Any]) -> T:
    """Build a dataclass from its stored fields.

    ``own`` has a function for each field that is stored in another form than its annotation says.

    Raises:
        SchemaError: A field is missing, unknown to this version or of another type.

    """
    made_of: Any = kind
    hints, made = _hints(made_of), {}
    for name, value in checked(dict[str, Any], stored).items():
        if name not in hints:
            raise SchemaError(f"this version does not know its field {name!r}")
        try:
            made[name] = own[name](value) if name in own else checked(hints[name], value)
        except SchemaError as error:
            raise SchemaError(f"{name}: {error}") from None
    for field in fields(made_of):
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if field.init and field.name not in made and not has_default:
            raise SchemaError(f"its field {field.name!r} is missing")
    return kind(**made)


def each(make: Callable[[Any], T], stored: Any) -> tuple[T, ...]:
    """Build the entries of a list by ``make``; a SchemaError names the entry."""
    made = []
    for number, entry in enumerate(checked(list[Any], stored)):
        try:
            made.append(make(entry))
        except SchemaError as error:
            raise SchemaError(f"entry {number}: {error}") from None
    return tuple(made)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with their limits."""
    return get_type_hints(kind, include_extras=True)


def _refuse(constant: str) -> NoReturn:
    """Refuse a constant that is not part of JSON."""
    raise ValueError(f"{constant} is not a number of JSON")


def _in_words(message: str) -> str:
    """Write msgspec's message as a part of a sentence.

    >>> _in_words("Expected `int`, got `str` - at `$.layers[3].rows`")
    'expected int, got str at layers[3].rows'
    """
    words = message.replace("`", "").replace(" - at $.", " at ").replace(" - at $", " at ")
    words = re.sub(r"float [<>]= -?1\.79\d+e\+308", "a finite number", words)
    return words[:1].lower() + words[1:]
