"""The command line: one file per sub-command, and the only place that prints or exits."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module, metadata
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from spectail.errors import SpectailError

UsageProblem: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""What typer raises for bad usage: click's class, or that of the copy of click that newer typers
carry."""

SUMMARY = (
    "How heavy-tailed the weights of a model are, layer by layer, compared fairly across shapes."
)
COMMANDS = {
    "analyze": "Measure the tail exponent alpha of every weight matrix of SOURCE and write a table and a report.",
    "compare": "Pair the layers of two analyses by name, show what moved most, and write a page.",
    "allocate": "LayerValue out a budget among the layers of an analysed model, by their alphas.",
    "prune": "Prune a language model by an allocation of sparsities and write it as a transformers folder with "
    "a report.",
    "evaluate": "Measure a language model: token perplexity on a text, or tasks of lm-eval.",
    "export": "Write an allocation in the words of another tool.",
}
"""The sub-commands and the first line of their help. Each is a function of its name in a module of
its name, which is imported only when the command runs: torch and the drawing library take seconds
that ``--help`` should not cost."""


class _Commands(TyperGroup):
    """The sub-commands, listed without being imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name all sub-commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Describe a sub-command for the help text and for messages about unknown ones."""
        return (
            TyperCommand(name=cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the sub-command that was asked for."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            module = import_module(f"spectail.cli.{name}")
            own = typer.Typer(add_completion=False)
            own.command(name)(getattr(module, name))
            command = typer.main.get_command(own)
        return name, command, rest


app = typer.Typer(
    name="spectail",
    cls=_Commands,
    help=SUMMARY,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(metadata.version("spectail"))
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
    """How heavy-tailed the weights of a model are, layer by layer, compared fairly across shapes."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done but some layer failed, 2 bad usage or unreadable source."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; whatever the user can mend is one line on standard error."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        result = typer.main.get_command(app).main(
            arguments, prog_name="spectail", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except typer.Exit as exit_:
        return exit_.exit_code
    except (typer.Abort, KeyboardInterrupt):
        goes_on = (
            "; the same command goes on where it stopped" if arguments[:1] == ["analyze"] else ""
        )
        errors.print(f"interrupted{goes_on}", markup=False)
        return 130
    except UsageProblem as error:
        problem = error.format_message()
    except SpectailError as error:
        problem = str(error)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        hint = (
            "; free some space and run the same command again to go on"
            if error.errno == errno.ENOSPC
            else ""
        )
        problem = f"cannot read or write{where}: {os.strerror(error.errno) if error.errno else error}{hint}"
    errors.print(f"spectail: {' '.join(problem.split())}", markup=False)
    return 2
