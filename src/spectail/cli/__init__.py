"""The command line: one file per sub-command. Only this package prints or exits."""

from __future__ import annotations

import errno
import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module, metadata
from itertools import pairwise
from types import ModuleType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from spectail.basics.addresses import message_without_secrets
from spectail.cli.signals import INTERRUPTED, Stops
from spectail.cli.streams import drop_unwritten, show_any_character, write_out
from spectail.cli.terminal import Terminal
from spectail.errors import SpecError, SpectailError

UsageProblem: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""The exception that typer raises for bad usage: click's class, or that of the copy of click which
newer versions of typer include."""

SUMMARY = (
    "Measure how heavy-tailed a model's weights are, layer by layer, comparable across shapes."
)
COMMANDS = {
    "analyze": "Measure the tail exponent alpha of all weight matrices; write a table and report.",
    "describe": "List the layers of a model and what analyze would do; nothing is measured.",
    "merge": "Join the parts of a run that analyze --shard measured into one table and report.",
    "compare": "Pair the layers of two analyses by name, show what moved most, and write a page.",
    "card": "Write a run as a block of Markdown for a model card.",
    "sensitivity": "Measure how much the loss grows with the error of each layer, for bit widths.",
    "allocate": "Share out a budget among the layers of an analysed model, by their alphas.",
    "prune": "Prune a language model by an allocation of sparsities and write it with a report.",
    "evaluate": "Measure a language model: token perplexity on a text, or tasks of lm-eval.",
    "export": "Write an allocation in the format of another tool.",
}
"""The sub-commands and the first line of their help. Each is a function in a module of the same
name, imported only when the command runs: torch and the drawing library take seconds to import,
which ``--help`` should not cost."""


class _Commands(TyperGroup):
    """The group of sub-commands, which are listed without being imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all sub-commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Describe a sub-command for the help text and for messages about unknown ones."""
        return (
            TyperCommand(name=cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the sub-command that was asked for."""
        name, command, rest = super().resolve_command(ctx, args)
        # A Typer app of one command builds the same command that a plain app would have.
        if name in COMMANDS:
            module = _imported(f"spectail.cli.{name}")
            own = typer.Typer(add_completion=False)
            own.command(name)(_stoppable(getattr(module, name)))
            command = typer.main.get_command(own)
        return name, command, rest


def _stoppable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Raise Ctrl-C within a command as ``typer.Abort``.

    Typer itself would end a command that raises KeyboardInterrupt with exit code 130 and no word.
    """

    @functools.wraps(command)
    def stoppable(*given: Any, **named: Any) -> Any:
        try:
            return command(*given, **named)
        except KeyboardInterrupt:
            raise typer.Abort from None

    return stoppable


def _imported(name: str) -> ModuleType:
    """Import a module of a sub-command, with Python's garbage collector out of the way.

    The libraries make 275,000 objects that live until the end. Looking through them again and
    again took 7 % of the processor time of ``spectail analyze demo``, so the collector waits until
    they are imported and then leaves them out (``gc.freeze``).
    """
    if name in sys.modules or not gc.isenabled():
        return import_module(name)
    gc.disable()
    try:
        module = import_module(name)
        gc.freeze()
    finally:
        gc.enable()
    return module


app = typer.Typer(
    name="spectail",
    cls=_Commands,
    help=SUMMARY,
    no_args_is_help=True,
    # An error that nobody foresaw keeps Python's traceback, which a bug report needs as it is.
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    """Print the version and exit if ``--version`` was given."""
    if asked:
        write_out(f"{metadata.version('spectail')}\n")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    """Measure how heavy-tailed a model's weights are, layer by layer, comparable across shapes."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    The code is 0 on success, 1 if some layer failed, and 2 for bad usage or an unreadable source.
    A command that a signal ended gives 128 and the signal's number.
    """
    show_any_character()
    stops = Stops()
    code = run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(stops.code if code == INTERRUPTED else code)


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code.

    Whatever the user can fix is printed as one line on standard error.
    """
    code, told = _outcome(arguments)
    # Standard error may lie on the disk that is full.
    with suppress(OSError):
        if told:
            # soft_wrap: a long message stays one line when it is redirected to a file.
            Terminal(stderr=True, soft_wrap=True).print(told)
    drop_unwritten(sys.stdout, sys.stderr)
    return code


def _outcome(arguments: list[str]) -> tuple[int, str]:
    """Run the command line; return its exit code, and a line for standard error or nothing."""
    # standalone_mode=False: typer returns or raises instead of exiting with messages of its own.
    try:
        _refuse_empty_out(arguments)
        result = typer.main.get_command(app).main(
            arguments, prog_name="spectail", standalone_mode=False
        )
        return result if isinstance(result, int) else 0, ""
    except typer.Exit as exit_:
        return exit_.exit_code, ""
    except (typer.Abort, KeyboardInterrupt):
        # Without --out nothing is stored.
        goes_on_with = arguments[:1] in (["analyze"], ["sensitivity"])
        stored = goes_on_with and any(x.startswith("--out") for x in arguments)
        goes_on = "; the same command goes on where it stopped" if stored else ""
        return INTERRUPTED, f"interrupted{goes_on}"
    except UsageProblem as error:
        problem = _usage_problem(error, arguments)
    except SpectailError as error:
        problem = str(error)
    # The run writes and reads in many places; a full disk or a missing permission may meet any.
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        hint = (
            "; free some space and run the same command again to go on"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ""
        )
        cause = os.strerror(error.errno) if error.errno else error
        problem = f"cannot read or write{where}: {cause}{hint}"
    except MemoryError as error:
        problem = f"this machine has not enough memory: {error or 'an allocation failed'}"
    except RuntimeError as error:
        # torch's type, by its name: the command line starts without importing torch.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        problem = f"{'. '.join(str(error).split('. ')[:2])}: use --device cpu or a smaller batch"
    # A call without a command has printed the help text; there is nothing to add.
    if not problem:
        return 2, ""
    # Messages may hold line breaks from libraries; one line is easier to read and to search.
    return 2, f"spectail: {message_without_secrets(' '.join(problem.split()))}"


def _refuse_empty_out(arguments: Sequence[str]) -> None:
    """Raise SpecError for ``--out ""``, which would mean the folder where the command runs."""
    if "" in _given(["--out"], arguments):
        raise SpecError("--out is empty: give a folder; a variable of the shell may be unset")


def _usage_problem(error: Any, arguments: Sequence[str]) -> str:
    """Return typer's message; newer versions say what they expect of a number, not what came."""
    problem: str = error.format_message()
    given = _given(getattr(getattr(error, "param", None), "opts", ()), arguments)
    return f"{problem}, not {given[-1]!r}" if given and "Input should be" in problem else problem


def _given(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the values of an option that goes by these names, as they stand on the command line.

    >>> _given(["--out"], ["analyze", "demo", "--out", "run", "--out=x"])
    ['run', 'x']
    """
    apart = [value for word, value in pairwise(arguments) if word in names]
    joined = [word.partition("=") for word in arguments]
    return apart + [value for name, sign, value in joined if sign and name in names]
