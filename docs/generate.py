"""Write the pages that follow from the code: commands, Python names, and the start page.

mkdocs runs this file before it builds the site (see ``mkdocs.yml``).
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer

import spectail
from spectail.cli import COMMANDS

ROOT = Path(__file__).parent.parent
REPOSITORY_ONLY = re.compile(
    r"\]\((?:\.\./)*((?:experiments|benchmarks|src|tests)/[^)]*|LICENSE|CHANGELOG\.md|pyproject\.toml)\)"
)


def commands() -> str:
    """Describe every sub-command with its arguments and options, as the command line has them."""
    pages = ["# Commands", ""]
    for name in COMMANDS:
        own = typer.Typer(add_completion=False)
        own.command(name)(getattr(importlib.import_module(f"spectail.cli.{name}"), name))
        command: Any = typer.main.get_command(own)
        pages += [f"## spectail {name}", "", command.help, ""]
        pages += ["| argument or option | meaning | default |", "|---|---|---|"]
        pages += [_row(parameter) for parameter in command.params if parameter.name != "help"]
        pages.append("")
    return "\n".join(pages)


def _row(parameter: Any) -> str:
    """Describe one argument or option in a row of a table."""
    argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if argument else ", ".join(parameter.opts)
    default = parameter.default
    shown = (
        "required"
        if parameter.required
        else ""
        if default in (None, False, ()) or callable(default)
        else default
    )
    meaning = (getattr(parameter, "help", None) or "").replace("|", "&#124;")
    return f"| `{name}` | {meaning} | {shown} |"


def python() -> str:
    """List all public names with their docstrings."""
    lines = ["# Python", "", "Everything is importable as `import spectail as st`.", ""]
    for name in spectail.__all__:
        value = getattr(spectail, name)
        where = (
            value.__name__
            if inspect.ismodule(value)
            else f"{value.__module__}.{value.__qualname__}"
        )
        lines += [
            f"## st.{name}",
            "",
            f"::: {where}",
            "    options:",
            "      show_root_heading: false",
            "",
        ]
    return "\n".join(lines)


def for_the_site(text: str) -> str:
    """Turn links into the repository into plain text, and other links into those of the site."""
    text = (
        REPOSITORY_ONLY.sub("]", text)
        .replace("](docs/", "](")
        .replace("](CONTRIBUTING.md)", "](contributing.md)")
    )
    return re.sub(r"(?<!!)\[([^\]]+)\](?!\(|:)", r"\1", text)


for path, page in (
    ("reference/commands.md", commands()),
    ("reference/python.md", python()),
    ("index.md", for_the_site((ROOT / "README.md").read_text(encoding="utf-8"))),
    ("contributing.md", for_the_site((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))),
):
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(page)
