"""The command ``spectail export``: write the file that another tool reads of an allocation."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from spectail import export as tools
from spectail.allocation.allocation import Allocation
from spectail.basics.files import check_writable, write_text
from spectail.cli.options import Quiet, read_settings
from spectail.cli.terminal import Terminal
from spectail.errors import ExportError
from spectail.export import Tool, tool_names

_FLAGS = {
    "modules": "model", "parameters": "model", "method": "method", "group_size": "group-size"
}  # fmt: skip
"""Options of tools that have a flag of their own, with that flag."""


File: TypeAlias = Annotated[
    Path, typer.Argument(metavar="FILE", help="An allocation, as spectail allocate wrote it.")
]
Out: TypeAlias = Annotated[Path, typer.Option(help="The file to write.")]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The model's folder, from which names and order of modules and parameters are taken."
    ),
]
Method: TypeAlias = Annotated[
    str | None, typer.Option(help="For llm-compressor: wanda or sparsegpt; for bits rtn or gptq.")
]
GroupSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="How many weights share a scale; by default 32 for torchao, 128 for llm-compressor."
    ),
]
Option: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Another setting of the tool, as NAME=VALUE; can be given several times."),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def export(
    file: File,
    # Written out here, the help is made when the command runs: it names tools added at run time.
    to: Annotated[str, typer.Option(help=f"The tool: {', '.join(tool_names())}.")],
    out: Out,
    model: Model = None,
    method: Method = None,
    group_size: GroupSize = None,
    option: Option = None,
    force: Force = False,
    quiet: Quiet = False,
) -> int:
    """Write an allocation in the format of another tool."""
    if to not in tool_names():
        raise ExportError(f"--to must be one of {', '.join(tool_names())}, not {to!r}")
    check_writable(out)
    if out.is_dir():
        raise ExportError(f"--out must be a file, and {out} is a folder: give another name")
    if out.exists() and not force:
        raise ExportError(f"{out} exists, so it stays; give another name, or --force")
    allocation = Allocation.load(file)
    # The table is read now, since a tool may have been added after this module was imported.
    kind = next(tool for tool in tools.TOOLS if tool.name == to)
    others = read_settings(option, ExportError, known={"model": "model"} | _FLAGS)
    # Some tools address modules and some parameters; the flag is the same.
    names = "parameters" if "parameters" in kind.options_for(allocation) else "modules"
    flags = {names: model, "method": method, "group_size": group_size}
    given = {name: value for name, value in flags.items() if value is not None} | others
    _check_used(kind, allocation, given)
    # Imported here because it loads torch, which takes seconds and which most exports do not need.
    if model is not None:
        language = import_module("spectail.models.live.language")
        read = language.module_names if names == "modules" else language.parameter_names
        given[names] = read(model)
    tool = kind(**given)
    write_text(out, tool.text(allocation))
    console = Terminal(quiet=quiet, soft_wrap=True)
    if remark := tool.remark(allocation):
        console.print(remark)
    console.print(f"{to}: {out}")
    return 0


def _check_used(kind: type[Tool], allocation: Allocation, given: dict[str, Any]) -> None:
    """Refuse an option that would change nothing."""
    for name in given:
        if name not in kind.options_for(allocation):
            flag = _FLAGS.get(name, f"option {name}")
            raise ExportError(
                f"--{flag} has no effect on {kind.name} for this allocation: leave it out"
            )
