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
SUBJECTS = {
    "measuring": (
        "Measuring and comparing",
        ("measuring", "analysis", "results", "core", "presets", "models"),
    ),
    "allocating": ("Allocating", ("allocation", "sensitivity")),
    "pruning": ("Pruning and evaluating", ("pruning", "evaluation")),
    "training": ("Training", ("training",)),
    "errors": ("Errors", ("errors",)),
}
"""The pages of the Python reference: file name, title, and the packages whose names they hold."""
REPOSITORY_ONLY = re.compile(
    r"\]\((?:\.\./)*((?:experiments|benchmarks|src|tests)/[^)]*|LICENSE|pyproject\.toml)\)"
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
    name = (parameter.metavar or parameter.name).upper() if argument else ", ".join(parameter.opts)
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


def python_pages() -> dict[str, str]:
    """Document all public names, on one page for each subject and a page that lists them."""
    subjects = {package: page for page, (_, packages) in SUBJECTS.items() for package in packages}
    names: dict[str, list[str]] = {page: [] for page in SUBJECTS}
    for name in sorted(spectail.__all__, key=lambda name: (not name[0].islower(), name)):
        names[subjects[_path(name).split(".")[1]]].append(name)
    contents = ["# Python", "", "Every name is available from `import spectail as st`."]
    pages = {}
    for page, (title, _) in SUBJECTS.items():
        contents += ["", f"## {title}", "", "| name | what it is |", "|---|---|"]
        contents += [f"| [`st.{n}`][{_path(n)}] | {_summary(n)} |" for n in names[page]]
        pages[page] = "\n".join(
            [f"# {title}", "", *(line for n in names[page] for line in _name(n))]
        )
    return {"python": "\n".join(contents), **pages}


def _path(name: str) -> str:
    """Return the full path of a public name: that of its definition."""
    value = getattr(spectail, name)
    return value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{value.__qualname__}"


def _summary(name: str) -> str:
    """Return the first line of a public name's docstring, as a cell of a table."""
    first = (inspect.getdoc(getattr(spectail, name)) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`").replace("|", "&#124;")


def _name(name: str) -> list[str]:
    """Return the section of one public name, which mkdocstrings fills from its docstring."""
    return [f"::: {_path(name)}", "    options:", f"      heading: st.{name}", ""]


def for_the_site(text: str) -> str:
    """Turn links into the repository into plain text, and other links into those of the site."""
    text = (
        REPOSITORY_ONLY.sub("]", text)
        .replace("](docs/", "](")
        .replace("](CONTRIBUTING.md)", "](contributing.md)")
        .replace("](CHANGELOG.md)", "](changelog.md)")
    )
    return re.sub(r"(?<!!)\[([^\]]+)\](?!\(|:)", r"\1", text)


def tutorial(path: Path) -> str:
    """Show a notebook as a page: text and code, with what the code printed and drew."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # the exporter marks code by it
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


def from_root(file: str) -> str:
    """Turn a page in the repository's root into one of the site."""
    return for_the_site((ROOT / file).read_text(encoding="utf-8"))


for path, page in (
    ("reference/commands.md", commands()),
    *((f"reference/{name}.md", page) for name, page in python_pages().items()),
    ("index.md", from_root("README.md")),
    *((f"tutorials/{path.stem}.md", tutorial(path)) for path in sorted(NOTEBOOKS.glob("*.ipynb"))),
    (PLOTLY, get_plotlyjs()),
    ("contributing.md", from_root("CONTRIBUTING.md")),
    ("changelog.md", from_root("CHANGELOG.md")),
):
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(page)
