"""LoRA of parameters that hold all experts of a mixture.

Every expert gets a change of its own, called ``<parameter>[i].lora``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectail.models.lazy_tensor import Index, LazyTensor, parameters_of, piece_of

_LEVEL = ".base_layer"
"""Name of the levels in which peft nests several adapters of one module."""


def plain_target(target: str) -> str:
    """Return a target's name without the levels in which peft nests adapters of one module."""
    while target.endswith(_LEVEL):
        target = target.removesuffix(_LEVEL)
    return target


@dataclass(frozen=True)
class Fused:
    """The parameter that one adapter of a fused parameter changes, or why it cannot be told."""

    parameter: str
    """Name of the parameter; that of the module if the parameter is unknown."""
    problem: str | None = None


def fused_parameter(
    target: str,
    sizes: Mapping[str, tuple[int, int]],
    config: Mapping[str, Any],
    base_of: Callable[[str], Any],
) -> Fused | None:
    """Find the parameter that an adapter changes under peft's ``target_parameters``.

    The result is None for an ordinary adapter, which changes the weight of a module. Adapters of
    two parameters of one module differ only in the level at which peft nested them
    (``experts.lora_A``, ``experts.base_layer.lora_A``), and that follows the order of the module's
    parameters. The sizes of the changes tell which is which: compared with the base model, or else
    with each other.

    Args:
        target: The module that the adapter is attached to, with peft's nesting.
        sizes: Sizes (out, in) of the changes, by target.
        config: The adapter's configuration.
        base_of: Returns the base model's weight of a target, or None.

    """
    module = plain_target(target)
    named = config.get("target_parameters")
    # ("mlp.experts", "gate_up_proj") for "mlp.experts.gate_up_proj".
    paths = [str(path).rpartition(".")[::2] for path in named] if isinstance(named, list) else []
    # The configuration may state only the end of the path.
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
    """List the parameters of the base model whose matrices have this size, transposed or not."""
    found = {name: base_of(f"{module}.{name}") for name in names}
    return [
        name
        for name, base in found.items()
        if base is not None and sorted(base.shape[-2:]) == sorted(size)
    ]


def _by_other(
    names: list[str], target: str, module: str, sizes: Mapping[str, tuple[int, int]]
) -> list[str]:
    """Tell a fused gate and up, (2 x inner, hidden), from the down projection, (hidden, inner)."""
    others = [
        size
        for name, size in sizes.items()
        if name != target and name.replace(_LEVEL, "") == module
    ]
    if names != ["down_proj", "gate_up_proj"] or len(others) != 1:
        return []
    (rows, columns), (other_rows, other_columns) = sizes[target], others[0]
    # Equal sizes may fit both readings; then the adapter stays undecided.
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
    """Describe the change of every expert of a parameter.

    Factors are (experts, r, in) and (experts, out, r) in MLX; in peft they are (experts * r, in)
    and (out, r * experts). A parameter with one matrix gets one change, ``<parameter>.lora``.
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
    """Compute s B A of one expert whose factors share one matrix with those of the others."""
    rank = down.shape[0] // experts
    a = down.read((slice(expert * rank, (expert + 1) * rank),)).to(torch.float64)
    # An expert's rows of A are consecutive, but its columns of B lie ``experts`` apart.
    b = up.read(())[:, expert::experts].to(torch.float64)
    return piece_of((b @ a) * factor, index)
