"""Fourier weights in factors, separable and joint ones: measured as the tensor
that the layer computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectail.models.open import open_source

SHAPE = (3, 5, 4, 2)
"""Inputs, outputs and modes."""


def einsum_of(form: str, core: Any, factors: Any) -> torch.Tensor:
    """The definition: one sum over all ranks."""
    order = len(factors)
    sizes, ranks = "abcde"[:order], "uvwxyz"[: order + 1]
    if form == "Tucker":
        terms = [ranks[:order], *(s + r for s, r in zip(sizes, ranks, strict=False))]
        return torch.einsum(f"{','.join(terms)}->{sizes}", core, *factors)
    if form == "CP":
        return torch.einsum(f"z,{','.join(s + 'z' for s in sizes)}->{sizes}", core, *factors)
    terms = [ranks[i] + sizes[i] + ranks[i + 1] for i in range(order)]
    return torch.einsum(f"{','.join(terms)}->{sizes}", *factors)


def factors_of(
    form: str, shape: tuple[int, ...], ranks: Any = (2, 3, 4, 2, 3)
) -> tuple[Any, list[Any]] | tuple[None, list[Any]]:
    """Random factors of a form, as tensorly-torch shapes them; the core or the weights first."""

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.complex64)

    if form == "Tucker":
        return random(*ranks[: len(shape)]), [
            random(n, r) for n, r in zip(shape, ranks, strict=False)
        ]
    if form == "CP":
        return random(6), [random(n, 6) for n in shape]
    ends = [1, *ranks[: len(shape) - 1], 1]
    return None, [random(ends[i], n, ends[i + 1]) for i, n in enumerate(shape)]


def state_of(
    form: str,
    shape: tuple[int, ...],
    *,
    stem: str = "fno_blocks.convs.0.weight",
    number: int | str = "factor_",
    pairs: bool = False,
) -> tuple[dict[str, Any], torch.Tensor]:
    """A state dict in a form, and the dense weight by its definition."""
    core, factors = factors_of(form, shape)
    named = {f"{stem}.factors.{number}{i}": factor for i, factor in enumerate(factors)}
    if core is not None:
        named[f"{stem}.{'core' if form == 'Tucker' else 'weights'}"] = core
    stored = {
        name: torch.view_as_real(tensor) if pairs else tensor for name, tensor in named.items()
    }
    return stored, einsum_of(form, core, factors)


class Tree(nn.Module):
    """A module with these parameters, as the state dict's names nest them."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for component in path:
                if component not in owner._modules:
                    owner.add_module(component, nn.Module())
                owner = owner.get_submodule(component)
            owner.register_parameter(last, nn.Parameter(tensor))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("number", ["factor_", ""])
@pytest.mark.parametrize("form", ["Tucker", "CP", "TT"])
def test_factors_make_up_one_weight(form: str, number: str, pairs: bool, tmp_path: Path) -> None:
    state, dense = state_of(form, SHAPE, number=number, pairs=pairs)
    # A live module knows the owners of its parameters, and a list of factors is no Linear.
    state["lifting.weight"] = torch.randn(4, 2)
    torch.save(state, tmp_path / "model.pt")
    for source in (state, tmp_path / "model.pt", Tree(state)):
        opened = open_source(source)
        layer, _ = sorted(opened.layers, key=lambda layer: layer.name)
        assert (layer.name, layer.kind, layer.n_matrices, layer.rows, layer.cols) == (
            "fno_blocks.convs.0",
            "spectral",
            8,
            5,
            3,
        )
        assert opened.n_vectors == 0
        torch.testing.assert_close(layer.read()[3], dense[:, :, 1, 1].T)


@pytest.mark.parametrize("form", ["Tucker", "CP", "TT"])
def test_one_dimension_and_three(form: str) -> None:
    for shape in ((3, 5, 4), (3, 5, 4, 2, 3)):
        state, dense = state_of(form, shape)
        (layer,) = open_source(state).layers
        torch.testing.assert_close(layer.read(), dense.flatten(2).permute(2, 1, 0))


@pytest.mark.parametrize("form", ["Tucker", "CP", "TT"])
def test_a_joint_weight_holds_several_layers(form: str) -> None:
    state, dense = state_of(form, (6, *SHAPE), stem="convs.weight", pairs=True)
    state["convs.bias"] = torch.zeros(2, 5, 1, 1)
    layers = {layer.name: layer for layer in open_source(state).layers}
    assert list(layers) == [f"convs[{i}]" for i in range(6)]
    layer = layers["convs[4]"]
    assert (layer.n_matrices, layer.rows, layer.cols) == (8, 5, 3)
    torch.testing.assert_close(layer.read(), dense[4].flatten(2).permute(2, 1, 0))


@pytest.mark.parametrize("form", ["dense", "Tucker", "CP", "TT"])
def test_a_separable_weight_keeps_channels_apart(form: str) -> None:
    shape = (5, 4, 3)
    if form == "dense":
        dense = torch.randn(shape, dtype=torch.complex64)
        state = {"convs.0.weight.tensor": dense}
    else:
        state, dense = state_of(form, shape, stem="convs.0.weight")
    state["convs.0.bias"] = torch.zeros(5, 1, 1)
    (layer,) = open_source(state).layers
    assert (layer.kind, layer.n_matrices, layer.rows, layer.cols) == ("spectral", 12, 5, 1)
    torch.testing.assert_close(layer.read()[:, :, 0], dense.flatten(1).T)


def test_a_separable_weight_of_one_dimension() -> None:
    dense = torch.randn(5, 4, dtype=torch.complex64)
    (layer,) = open_source(
        {"convs.0.weight.tensor": dense, "convs.0.bias": torch.zeros(5, 1)}
    ).layers
    assert torch.equal(layer.read()[:, :, 0], dense.T)


def test_a_spherical_weight_has_a_matrix_for_each_degree() -> None:
    dense = torch.randn(5, 5, 4, dtype=torch.complex64)
    (layer,) = open_source(
        {"convs.0.weight.tensor": dense, "convs.0.bias": torch.zeros(5, 1, 1)}
    ).layers
    assert torch.equal(layer.read()[2], dense[:, :, 2].T)
    assert "separable" in layer.note


def test_a_list_of_factorised_weights() -> None:
    state, dense = state_of("Tucker", SHAPE, stem="convs.weight.1")
    state |= state_of("Tucker", SHAPE, stem="convs.weight.0")[0]
    state["convs.bias"] = torch.zeros(2, 5, 1, 1)
    layers = {layer.name: layer for layer in open_source(state).layers}
    assert set(layers) == {"convs.weight.0", "convs.weight.1"}
    torch.testing.assert_close(layers["convs.weight.1"].read()[0], dense[:, :, 0, 0].T)


def test_real_factors_and_factors_that_do_not_fit_are_failed_rows() -> None:
    state, _ = state_of("Tucker", SHAPE)
    real = {name: tensor.real.clone() for name, tensor in state.items()}
    (layer,) = open_source(real).layers
    assert "a real weight in Tucker form" in str(layer.problem)
    del state["fno_blocks.convs.0.weight.factors.factor_3"]
    (layer,) = open_source(state).layers
    assert "do not fit each other" in str(layer.problem)
