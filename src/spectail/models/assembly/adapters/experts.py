"""LoRA of parameters that hold every expert of a mixture: one change for each expert, ``<parameter>[i].lora``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectail.models.lazy_tensor import Index, LazyTensor, parameters_of, piece_of

_LEVEL = ".base_layer"


def plain_target(target: str) -> str:
    """Name a target without the levels that peft nests adapters of one module in."""
    while target.endswith(_LEVEL):
        target = target.removesuffix(_LEVEL)
    return target


@dataclass(frozen=True)
class Fused:
    """What one adapter of a fused parameter changes: its name, or why that cannot be told."""

    parameter: str
    problem: str | None = None


def fused_parameter(
    target: str,
    sizes: Mapping[str, tuple[int, int]],
    config: Mapping[str, Any],
    base_of: Callable[[str], Any],
) -> Fused | None:
    """Find the parameter that peft's ``target_parameters`` adapt by way of a module; None for an adapter of a module.

    Adapters of two parameters of one module are told apart only by the order in which peft nested
    them (``experts.lora_A``, ``experts.base_layer.lora_A``), which is that of the module's
    parameters. The sizes (out, in) of the changes, ``sizes`` by target, tell which is which:
    against the base model, else between gate_up and down.
    """
    module = plain_target(target)
    named = config.get("target_parameters")
    paths = [str(path).rpartition(".")[::2] for path in named] if isinstance(named, list) else []
    names = sorted({name for path, name in paths if f".{module}".endswith(f".{path}")})
    if len(names) > 1:
        names = (
            _by_base(names, module, sizes[target], base_of)
            or _by_other(names, target, module, sizes)
            or names
        )
    if not names:
        return None
    if len(names) > 1:
        return Fused(
            module, f"the file does not tell which of {' and '.join(names)} this adapter changes"
        )
    return Fused(".".join(filter(None, (module, "" if names[0] == "weight" else names[0]))))


def _by_base(
    names: list[str], module: str, size: tuple[int, int], base_of: Callable[[str], Any]
) -> list[str]:
    """The parameters of the base model whose matrices have this size, whichever way round they are stored."""
    found = {name: base_of(f"{module}.{name}") for name in names}
    return [
        name
        for name, base in found.items()
        if base is not None and sorted(base.shape[-2:]) == sorted(size)
    ]


def _by_other(
    names: list[str], target: str, module: str, sizes: Mapping[str, tuple[int, int]]
) -> list[str]:
    """Tell a fused gate and up, (2 x inner, hidden), from the way down, (hidden, inner)."""
    others = [
        size
        for name, size in sizes.items()
        if name != target and name.replace(_LEVEL, "") == module
    ]
    if names != ["down_proj", "gate_up_proj"] or len(others) != 1:
        return []
    (rows, columns), (other_rows, other_columns) = sizes[target], others[0]
    is_gate_up = rows == 2 * other_columns and columns == other_rows
    is_down = other_rows == 2 * columns and other_columns == rows
    return [["down_proj"], ["gate_up_proj"]][is_gate_up] if is_gate_up != is_down else []


def expert_changes(
    parameter: str,
    ending: str,
    down: LazyTensor,
    up: LazyTensor,
    experts: int,
    *,
    factor: float,
    note: str = "",
) -> list[LazyTensor]:
    """Describe the change of every expert; of a parameter with one matrix, ``<parameter>.lora``.

    Factors are (experts, r, in) and (experts, out, r) as in MLX, or peft's (experts * r, in) and
    (out, r * experts).
    """
    read = _read_stacked if len(down.shape) == 3 else _read_interleaved
    return [
        LazyTensor(
            f"{parameter}[{expert}].{ending}" if experts > 1 else f"{parameter}.{ending}",
            (up.shape[-2], down.shape[-1]),
            "float64",
            partial(read, down, up, factor, expert, experts),
            "lora",
            note=note,
            parameters=parameters_of((down, up)),
        )
        for expert in range(experts)
    ]


def _read_stacked(
    down: LazyTensor, up: LazyTensor, factor: float, expert: int, experts: int, index: Index
) -> Tensor:
    """Compute s B A of one expert whose factors are stacked."""
    a, b = (piece.read((expert,)).to(torch.float64) for piece in (down, up))
    return piece_of((b @ a) * factor, index)


def _read_interleaved(
    down: LazyTensor, up: LazyTensor, factor: float, expert: int, experts: int, index: Index
) -> Tensor:
    """Compute s B A of one expert: its rows of A lie together, its columns of B in steps of the number of experts."""
    rank = down.shape[0] // experts
    a = down.read((slice(expert * rank, (expert + 1) * rank),)).to(torch.float64)
    b = up.read(())[:, expert::experts].to(torch.float64)
    return piece_of((b @ a) * factor, index)
