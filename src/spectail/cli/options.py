"""Options that several sub-commands share, and ``--option NAME=VALUE`` for all others."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Annotated, Any, TypeAlias

import typer

from spectail.basics.json_values import plain
from spectail.cli.streams import write_out
from spectail.cli.terminal import Terminal
from spectail.errors import SpectailError

Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Json: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the results as JSON on standard output; all else on standard error."
    ),
]
Exclude: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Leave out layers whose name matches this glob.")
]
Kind: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Only layers of these kinds: q, k, v, o, gate, up, down... as q,k."),
]
Type: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Only layers of these types: linear, conv, embedding, recurrent, spectral, lora."
    ),
]
Device: TypeAlias = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, auto...")]


def console_for(json_wanted: bool, *, quiet: bool) -> Terminal:
    """Return the console for texts: with ``--json`` standard output belongs to the JSON alone."""
    return Terminal(stderr=json_wanted, quiet=quiet, soft_wrap=True)


def only_json(wanted: bool) -> AbstractContextManager[object]:
    """With ``--json``, send what models and libraries print within the block to standard error."""
    return redirect_stdout(sys.stderr) if wanted else nullcontext()


def print_json(values: Any) -> None:
    """Print values as JSON on standard output, with null for numbers that are not finite."""
    write_out(json.dumps(plain(values), allow_nan=False) + "\n")


def read_settings(
    texts: Sequence[str] | None,
    problem: type[SpectailError],
    *,
    known: Sequence[str] | Mapping[str, str],
) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts; values are JSON (``0.5``, ``[2, 4]``, ``true``) or plain text.

    Raises:
        SpectailError: a text of another form, a name twice, or one that has a flag of its own
            (``known``, a mapping to the names of flags); of the type ``problem``.

    """
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (name.isidentifier() and equals):
            raise problem(f"--option must be NAME=VALUE, not {text!r}")
        if name in found or name in known:
            flag = known[name] if isinstance(known, Mapping) and name in known else name
            own = f"give it as --{flag.replace('_', '-')}" if name in known else "give it once"
            raise problem(f"--option {text!r}: {own}")
        # What is no JSON is text, so that names of formats need no quotes within the shell's.
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
