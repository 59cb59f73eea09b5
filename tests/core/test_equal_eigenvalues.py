"""Equal eigenvalues have no exponent, and ties at xmin let alpha move with rounding."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import spectail as st
from spectail.core.tails import fit_from, why_no_exponent
from tests.training.nets import net


def orthogonal(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, cols, dtype=torch.float64, generator=generator)
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    product: torch.Tensor = left @ right
    return product


TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SPECS = {"median": st.presets.FARMS, **{c: st.Spec(cutoff=c) for c in ("ks", "top:0.1", "peak")}}
SPECS |= {"fixed": st.Spec(cutoff="fixed:0.9"), "whole": st.presets.FULL}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "cols", "seed"), [(64, 64, 1), (96, 300, 2), (257, 128, 3)])
def test_orthogonal_weights_have_no_exponent(
    rows: int, cols: int, seed: int, dtype: torch.dtype, spec: str
) -> None:
    weight = orthogonal(rows, cols, seed).to(dtype)
    fit = st.tail_fit(weight.to(torch.float64), st.Spec(window="whole", cutoff=SPECS[spec].cutoff))
    assert fit.status == "failed"
    assert "all eigenvalues equal up to rounding: no exponent" in fit.reason
    assert np.isnan([fit.alpha, fit.alpha_se]).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_tail_of_equal_eigenvalues_has_no_exponent_either(dtype: torch.dtype) -> None:
    scales = torch.cat([torch.ones(80), torch.linspace(0.1, 0.9, 48)]).double()
    weight = (orthogonal(128, 128) * scales @ orthogonal(128, 128, 1)).to(dtype)
    fit = st.tail_fit(weight.to(torch.float64))
    assert fit.status == "failed"
    assert "all eigenvalues of the tail equal up to rounding" in fit.reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_windows_of_an_orthogonal_matrix_have_none_whatever_tail_is_chosen(
    seed: int, dtype: torch.dtype
) -> None:
    # A window of 2/3 of the sides has half of its singular values at 1 (CS decomposition); a search
    # over xmin finds the few of them that rounding has made fit best.
    weight = orthogonal(96, 96, seed).to(dtype)
    fit = st.tail_fit(weight, st.Spec(window=64, cutoff="ks"))
    assert (fit.status, fit.alpha < 100) in (("failed", False), ("ok", True))
    if fit.status == "failed":
        assert "all eigenvalues of the tail equal up to rounding" in fit.reason


@pytest.mark.parametrize("spread", [0.05, 0.2, 1.0])
def test_eigenvalues_that_differ_have_one(spread: float) -> None:
    scales = torch.linspace(1, 1 + spread, 128, dtype=torch.float64).sqrt()
    fit = st.tail_fit(orthogonal(128, 128) * scales @ orthogonal(128, 128, 1))
    values = np.linspace(1, 1 + spread, 128)[64:]
    assert fit.alpha == pytest.approx(1 + 64 / np.log(values / values[0]).sum(), rel=1e-6)


def test_few_of_many_eigenvalues_may_be_close() -> None:
    values = np.append(np.linspace(1, 4, 1000), 4 + np.linspace(0.01, 0.05, 10))
    tail = fit_from(values, 1000)
    assert values[-1] / tail.xmin < 1.02
    assert why_no_exponent(values, tail) == ""
    assert "of the tail equal" in why_no_exponent(values[-30:], fit_from(values[-30:], 20))


def test_an_orthogonal_layer_does_not_pin_the_others_of_a_balancer() -> None:
    def factors(layers: int) -> dict[str, float]:
        model = net()
        with torch.no_grad():
            for i in range(layers):
                linear = [m for m in model if isinstance(m, nn.Linear)][i + 1]
                linear.weight.copy_(orthogonal(*linear.weight.shape))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        balancer = st.Balancer(model, optimizer, "tempbalance", every=None)
        if layers:
            with pytest.warns(UserWarning, match="equal up to rounding"):
                balancer.update()
        else:
            balancer.update()
        return {**balancer.factors, **balancer.left_out}  # type: ignore[dict-item]

    found, usual = factors(1), factors(0)
    [lacking] = [name for name, value in found.items() if "equal up to rounding" in str(value)]
    others = [name for name in usual if name != lacking and isinstance(usual[name], float)]
    assert max(found[name] for name in others) - min(found[name] for name in others) > 0.5


def blocks(*pieces: torch.Tensor) -> torch.Tensor:
    joined: torch.Tensor = torch.block_diag(*pieces).double()
    return joined


def signed_permutation(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    return torch.eye(n)[torch.randperm(n, generator=generator)] * signs


def gaussian(n: int, scale: float, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed))


def sparse_ternary(n: int, share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(n, n, generator=generator) < share) * gaussian(n, 1, 4).sign()


TIED = {
    "permutation above": blocks(signed_permutation(96, 0), gaussian(64, 3)),
    "permutation below": blocks(signed_permutation(96, 1), gaussian(32, 3), gaussian(32, 0.01)),
    "ternary": blocks(sparse_ternary(400, 0.002), gaussian(80, 5)),
    "quantised": blocks(*[torch.diag(torch.randint(1, 4, (16,)) * 0.25) for _ in range(8)]),
}


@pytest.mark.parametrize("case", TIED)
def test_ties_at_xmin_say_how_far_alpha_moves(case: str) -> None:
    weight = TIED[case]
    fit = st.tail_fit(weight)
    match = re.search(
        r"(\d+) eigenvalues are equal to xmin up to rounding: "
        r"alpha moves with rounding, from ([\d.e+]+) to ([\d.e+]+)",
        fit.reason,
    )
    assert match, fit.reason
    low, high = float(match[2]), float(match[3])
    values = torch.linalg.svdvals(weight).numpy() ** 2
    assert int(match[1]) == np.isclose(values, fit.xmin, rtol=1e-9).sum()
    assert low * 0.995 <= fit.alpha <= high * 1.005
    # The same weights in another order of rows and columns: only rounding differs.
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        rows, cols = (torch.randperm(n, generator=generator) for n in weight.shape)
        again = st.tail_fit(weight[rows][:, cols])
        assert low * 0.995 <= again.alpha <= high * 1.005


@pytest.mark.parametrize("cutoff", ["median", "ks", "top:0.1"])
def test_ordinary_weights_have_no_ties(cutoff: str) -> None:
    for seed in range(4):
        fit = st.tail_fit(gaussian(192, 1, seed).double(), st.Spec(cutoff=cutoff))
        assert "rounding" not in fit.reason
    integers = torch.randint(-1, 2, (192, 192), generator=torch.Generator().manual_seed(0))
    assert "rounding" not in st.tail_fit(integers.double(), st.Spec(cutoff=cutoff)).reason
