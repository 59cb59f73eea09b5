"""Weight norm is known by its two pieces, and only where they can be a direction and its norms."""

from __future__ import annotations

import pytest
import torch

from spectail.models.open import open_source

BESIDE = {"blk.attn.out.weight": torch.randn(16, 16)}


@pytest.mark.parametrize("shape", [(16, 16), (1, 1, 16), (4, 16)])
@pytest.mark.parametrize("names", [("W_v", "W_g"), ("x_v", "x_g"), ("proj_v", "proj_g")])
def test_projections_of_values_and_gates_are_no_weight_norm(
    names: tuple[str, str], shape: tuple[int, ...]
) -> None:
    state = {f"blk.attn.{name}": torch.randn(shape) for name in names}
    layers = {layer.name: layer for layer in open_source(state | BESIDE).layers}
    assert list(layers) == [*state, "blk.attn.out"]
    for name, stored in state.items():
        if layers[name].part is not None:
            torch.testing.assert_close(layers[name].read()[0], stored)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_of_old_torch_under_any_name(dim: int | None) -> None:
    v = torch.randn(12, 20)
    over = None if dim is None else [d for d in (0, 1) if d != dim]
    norms = torch.linalg.vector_norm(v, dim=over, keepdim=dim is not None)
    g = norms * 1.5
    layers = {
        layer.name: layer
        for layer in open_source({"lin.proj_v": v, "lin.proj_g": g} | BESIDE).layers
    }
    assert list(layers) == ["lin.proj", "blk.attn.out"]
    torch.testing.assert_close(layers["lin.proj"].read()[0], v * 1.5)
