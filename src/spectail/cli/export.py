"""spectail export: from the file of an allocation to what another tool reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import spectail
from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export import llama_cpp, llm_compressor, torch_pruning, torchao

TOOLS = ("llm-compressor", "torchao", "llama.cpp", "torch-pruning")


def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An allocation, as spectail allocate wrote it.")
    ],
    to: Annotated[str, typer.Option(help=f"{', '.join(TOOLS)}.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model's folder, for llm-compressor: the order and names of its modules."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="llm-compressor: wanda or sparsegpt, for bits rtn or gptq.")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale: 32 for torchao, 128 for llm-compressor."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Write an allocation in the words of another tool."""
    if to not in TOOLS:
        raise ExportError(f"--to must be one of {', '.join(TOOLS)}, not {to!r}")
    if out.exists() and not force:
        raise ExportError(f"{out} exists, so it stays; give another name, or --force")
    allocation = Allocation.load(file)
    pruned = to == "llm-compressor" and allocation.target == "sparsity"
    _check_used(to, model=(model, to == "llm-compressor"), method=(method, to == "llm-compressor"))
    _check_used(to, group_size=(group_size, to in {"llm-compressor", "torchao"} and not pruned))
    text = _text(to, allocation, model, method, group_size)
    part = out.with_name(f".{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text, encoding="utf-8")
    os.replace(part, out)
    console = Console(quiet=quiet, soft_wrap=True)
    if to == "llm-compressor" and model is None:
        console.print(
            "names are not checked against the model's modules: give --model for that",
            highlight=False,
        )
    console.print(f"{to}: {out}", highlight=False, markup=False)
    return 0


def _text(
    to: str, allocation: Allocation, model: str | None, method: str | None, group_size: int | None
) -> str:
    """What the file is to hold."""
    if to == "llama.cpp":
        return "\n".join(llama_cpp.tensor_types(allocation)) + "\n"
    if to == "torch-pruning":
        return json.dumps(torch_pruning.channel_ratios(allocation), indent=1) + "\n"
    if to == "torchao":
        return (
            json.dumps(
                torchao.widths(allocation, group_size=32 if group_size is None else group_size),
                indent=1,
            )
            + "\n"
        )
    if allocation.target != "sparsity":
        size = 128 if group_size is None else group_size
        modules = None if model is None else spectail.module_names(model)
        return llm_compressor.quantization_recipe(
            allocation, modules, method=method or "rtn", group_size=size
        )
    if model is None:
        raise ExportError(
            "llm-compressor pairs ratios with modules by position: give the model's folder with --model"
        )
    return llm_compressor.pruning_recipe(
        allocation, spectail.module_names(model), method=method or "wanda"
    )


def _check_used(to: str, **options: tuple[object, bool]) -> None:
    """Refuse an option that would change nothing."""
    for name, (value, used) in options.items():
        if value is not None and not used:
            raise ExportError(
                f"--{name.replace('_', '-')} says nothing to {to} for this allocation: leave it out"
            )
