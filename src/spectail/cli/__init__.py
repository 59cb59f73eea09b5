"""The command line: one file per sub-command, and the only place that prints or exits."""

from __future__ import annotations

import errno
import os
import sys
from importlib import metadata
from typing import Any

import typer
from rich.console import Console

from spectail.cli.allocate import allocate
from spectail.cli.analyze import analyze
from spectail.cli.compare import compare
from spectail.cli.evaluate import evaluate
from spectail.cli.export import export
from spectail.cli.prune import prune
from spectail.errors import SpectailError

UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for bad usage: click's class, or that of the copy of click that newer typers carry."""

app = typer.Typer(
    name="spectail",
    help="How heavy-tailed the weights of a model are, layer by layer, compared fairly across shapes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(analyze)
app.command()(compare)
app.command()(allocate)
app.command()(prune)
app.command()(evaluate)
app.command()(export)


def _print_version(asked: bool) -> None:
    if asked:
        print(metadata.version("spectail"))
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """How heavy-tailed the weights of a model are, layer by layer, compared fairly across shapes."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done but some layer failed, 2 bad usage or unreadable source."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; whatever the user can mend is one line on standard error."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="spectail", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as exit_:
        return exit_.exit_code
    except (typer.Abort, KeyboardInterrupt):
        goes_on = "; the same command goes on where it stopped" if arguments[:1] == ["analyze"] else ""
        errors.print(f"interrupted{goes_on}", markup=False)
        return 130
    except UsageProblem as error:
        problem = error.format_message()
    except SpectailError as error:
        problem = str(error)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        hint = "; free some space and run the same command again to go on" if error.errno == errno.ENOSPC else ""
        problem = f"cannot read or write{where}: {os.strerror(error.errno) if error.errno else error}{hint}"
    errors.print(f"spectail: {' '.join(problem.split())}", markup=False)
    return 2
