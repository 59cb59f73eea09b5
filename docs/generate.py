"""Write the pages that follow from other files: references from the code, tutorials from notebooks.

mkdocs runs this file before it builds the site (see ``mkdocs.yml``).
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import nbformat
import typer
from nbconvert import MarkdownExporter
from plotly.offline import get_plotlyjs

import spectail
from spectail.cli import COMMANDS
from spectail.report.page import embed

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
PLOTLY = "assets/plotly.min.js"
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


def tutorial(path: Path) -> str:
    """Show a notebook as a page: text and code, with what the code printed and drew."""
    notebook = nbformat.read(path, as_version=4)
    figures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("application/vnd.plotly.v1+json")
            if picture:
                figures += 1
                output.data = {"text/html": _figure(f"figure-{figures}", picture)}
    page, _ = MarkdownExporter().from_notebook_node(notebook)
    link = f"This page is also a notebook: [{path.name}](../notebooks/{path.name}).\n"
    return f'<script src="../{PLOTLY}"></script>\n\n{page}\n\n{link}'


def _figure(name: str, picture: Any) -> str:
    """Draw a figure by the copy of plotly.js that lies on the site."""
    values = ", ".join(embed(picture[part]) for part in ("data", "layout"))
    draw = f'Plotly.newPlot("{name}", {values}, {{responsive: true, displayModeBar: false}})'
    return f'<div id="{name}"></div><script>{draw}</script>'


for path, page in (
    ("reference/commands.md", commands()),
    ("reference/python.md", python()),
    ("index.md", for_the_site((ROOT / "README.md").read_text(encoding="utf-8"))),
    *((f"tutorials/{path.stem}.md", tutorial(path)) for path in sorted(NOTEBOOKS.glob("*.ipynb"))),
    (PLOTLY, get_plotlyjs()),
    ("contributing.md", for_the_site((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))),
):
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(page)
