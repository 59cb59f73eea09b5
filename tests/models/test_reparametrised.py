"""Weight norm is known by its two pieces, and spectral norm by the vectors that fit the weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

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


NORMED: dict[str, tuple[Any, int | None]] = {
    "transposed, as many outputs as inputs": (nn.ConvTranspose2d(16, 16, 3), None),
    "transposed": (nn.ConvTranspose1d(8, 16, 4), None),
    "as many outputs as kernel positions": (nn.Conv2d(8, 3, 3), None),
    "square, along the inputs": (nn.Linear(16, 16), 1),
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("case", NORMED)
def test_spectral_norm_finds_the_dimension_of_its_vectors(
    case: str, old: bool, tmp_path: Path
) -> None:
    module, dim = NORMED[case]
    norm = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    model: Any = nn.Sequential(norm(copy.deepcopy(module), n_power_iterations=3, dim=dim))
    inputs = torch.randn(2, module.weight.shape[isinstance(module, nn.Linear | nn.Conv2d)], 5, 5)
    if isinstance(module, nn.Linear):
        inputs = inputs[:, :, 0, 0]
    elif isinstance(module, nn.ConvTranspose1d):
        inputs = inputs[..., 0]
    model(inputs)
    model.eval()(inputs)
    expected = model[0].weight.detach()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for source in (model, tmp_path / "model.pt"):
        (layer,) = open_source(source).layers
        found = layer.read().movedim(0, -1).reshape(expected.shape)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Scaled(nn.Module):
    """A parametrisation with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * weight


CHAINS: dict[str, tuple[Callable[[nn.Module], nn.Module], ...]] = {
    "weight, then spectral norm": (parametrizations.weight_norm, parametrizations.spectral_norm),
    "spectral norm twice": (parametrizations.spectral_norm, parametrizations.spectral_norm),
    "weight norm, then one's own": (
        parametrizations.weight_norm,
        lambda module: parametrize.register_parametrization(module, "weight", Scaled()),
    ),
}


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("outer", [False, True])
def test_a_second_parametrisation_is_never_left_out_in_silence(
    case: str, outer: bool, tmp_path: Path
) -> None:
    inner: Any = nn.Linear(24, 16)
    for parametrise in CHAINS[case]:
        inner = parametrise(inner)
    once = parametrizations.weight_norm(nn.Linear(16, 16))
    model = nn.ModuleDict({"twice": inner, "once": once}) if outer else inner
    model.eval()
    live = {layer.name: layer for layer in open_source(model).layers}
    name = "twice" if outer else "weight"
    torch.testing.assert_close(live[name].read()[0], inner.weight.detach())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    stored = {layer.name: layer for layer in open_source(tmp_path / "model.pt").layers}
    assert stored.keys() == live.keys()
    assert "parametrised in a way that the file does not tell" in str(stored[name].problem)
    if outer:
        torch.testing.assert_close(stored["once"].read()[0], once.weight.detach())


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "a mask on the direction of weight norm": lambda module: prune.l1_unstructured(
        nn.utils.weight_norm(module), "weight_v", 0.5
    ),
    "a mask below spectral norm": lambda module: prune.l1_unstructured(
        nn.utils.spectral_norm(module), "weight_orig", 0.5
    ),
    "weight norm below a mask": lambda module: nn.utils.weight_norm(
        prune.l1_unstructured(module, "weight", 0.5), "weight_orig"
    ),
}


@pytest.mark.filterwarnings("ignore:.*_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("case", HOOKS)
def test_a_norm_over_a_mask_is_a_failed_row(case: str) -> None:
    module = nn.Linear(24, 16)
    HOOKS[case](module)
    for source in (module, module.state_dict()):
        problems = [layer.problem for layer in open_source(source).layers if layer.problem]
        assert len(problems) == 1
        assert "a norm or a mask of torch over another one" in problems[0]


def test_a_mask_on_projections_of_values_and_gates_is_read() -> None:
    state = {f"blk.attn.{name}_orig": torch.randn(16, 16) for name in ("W_v", "W_g")}
    mask = torch.ones(16, 16)
    masks = {f"blk.attn.{name}_mask": mask for name in ("W_v", "W_g")}
    layers = {layer.name: layer for layer in open_source(state | masks | BESIDE).layers}
    assert list(layers) == ["blk.attn.W_v", "blk.attn.W_g", "blk.attn.out"]
    assert not any(layer.problem for layer in layers.values())
