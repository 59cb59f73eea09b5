"""Allocations made by hand."""

from __future__ import annotations

from collections.abc import Mapping

from spectail.allocation.allocation import Allocation, LayerValue

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def allocation(
    values: Mapping[str, float], target: str = "sparsity", numel: dict[str, int] | None = None
) -> Allocation:
    """These values, every layer of 4096 weights unless ``numel`` says otherwise."""
    shares = tuple(
        LayerValue(name, value, name, 2.0, (numel or {}).get(name, 4096))
        for name, value in values.items()
    )
    return Allocation(target=target, budget=0.5, settings={}, shares=shares)


def llama_names(layers: int = 2) -> list[str]:
    """The linear layers of a Llama in the order in which a file lists them,
    which is not that of its modules.
    """
    return sorted(f"model.layers.{i}.{linear}" for i in range(layers) for linear in LINEARS)


def llama_ratios(layers: int = 2) -> dict[str, float]:
    """A different sparsity for each, with whole counts of zeros in the toy Llama's rows."""
    return {name: 0.25 + i / 32 for i, name in enumerate(llama_names(layers))}
