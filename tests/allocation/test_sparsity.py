"""Sparsity: the published ratios where the published rule holds, the budget where it does not."""

import math
from typing import Any

import numpy as np
import pytest

import spectail as st
from spectail.errors import AllocationError
from tests.allocation.conftest import layer, llama, results, transformer
from tests.goldens.published import load
from tests.reference.plain_allocation import filled, published_ratios, standardized_by_kind

GOLDENS = load("published_allocations.json.gz")["pruning"]
TOLERANCE = 1e-6
"""The published code scales in float32."""


def _analysis(case: Any) -> Any:
    """The golden's network as an analysis: blocks of a few layers, shapes repeated."""
    sizes = [rows * cols for rows, cols in case["layer_shapes"]]
    alphas = iter(case["alphas"])
    return results(
        *(
            layer(f"model.layers.{b}.linear{i}", next(alphas), size)
            for b in range(case["n_blocks"])
            for i, size in enumerate(sizes)
        )
    )


def _allocate(case: Any) -> st.Allocation:
    rule = st.targets.Sparsity(
        map=f"linear:{case['epsilon']}", bounds=(0.0, _cut(case["sparsity_ratio"]))
    )
    return st.allocate(_analysis(case), target=rule, budget=case["sparsity_ratio"])


def _cut(sparsity: float) -> float:
    """Where the published code cuts ratios off."""
    return 0.99999 if sparsity == 0.7 else 0.998


def _id(case: Any) -> str:
    return f"{case['case']}-{case['sparsity_ratio']}-{case['epsilon']}"


PLAIN = [case for case in GOLDENS if "n_clipped" in case and not case["n_clipped"]]
CLIPPED = [case for case in GOLDENS if case.get("n_clipped")]
DEGENERATE = [case for case in GOLDENS if "n_clipped" not in case]


def test_every_golden_is_in_one_of_the_tests() -> None:
    assert (len(PLAIN), len(CLIPPED), len(DEGENERATE)) == (23, 18, 24)


@pytest.mark.parametrize("case", PLAIN, ids=_id)
def test_published_ratios_come_back(case: Any) -> None:
    allocation = _allocate(case)
    np.testing.assert_allclose(list(allocation.values()), case["ratios"], rtol=TOLERANCE)
    assert allocation.deviations == ()
    assert abs(allocation.realised - case["sparsity_ratio"]) < 1e-9


@pytest.mark.parametrize("case", CLIPPED, ids=_id)
def test_where_published_code_cuts_off_the_budget_holds_and_the_departure_is_told(
    case: Any,
) -> None:
    allocation = _allocate(case)
    published = np.array(case["ratios"])
    assert abs(allocation.realised - case["sparsity_ratio"]) < 1e-9
    assert case["overall_sparsity"] < case["sparsity_ratio"] - 1e-5
    assert max(allocation.values()) <= _cut(case["sparsity_ratio"])
    below = published < _cut(case["sparsity_ratio"])
    assert (np.array(list(allocation.values()))[below] >= published[below] - TOLERANCE).all()
    (told,) = allocation.deviations
    assert f"in published code, the sparsity would be {case['overall_sparsity']:.4f}." in told


@pytest.mark.parametrize("case", CLIPPED, ids=_id)
def test_the_published_rule_with_its_cut_is_the_rule_that_is_departed_from(case: Any) -> None:
    analysis = _analysis(case)
    size = sum(rows * cols for rows, cols in case["layer_shapes"])
    n = len(case["layer_shapes"])
    means = np.array([x.alpha for x in analysis.layers]).reshape(-1, n).mean(axis=1)
    plain = published_ratios(
        list(means), [size] * len(means), sparsity=case["sparsity_ratio"], epsilon=case["epsilon"]
    )
    ours = np.repeat([_cut(case["sparsity_ratio"]) if ratio > 1 else ratio for ratio in plain], n)
    np.testing.assert_allclose(ours, case["ratios"], rtol=TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("case", DEGENERATE, ids=_id)
def test_one_alpha_for_all_gives_the_budget_where_published_code_gives_nan(case: Any) -> None:
    assert set(case["ratios"]) == {"nan"}
    allocation = _allocate(case)
    np.testing.assert_allclose(list(allocation.values()), case["sparsity_ratio"], rtol=1e-15)
    assert allocation.deviations == (
        "All units have one alpha and get the budget; the published rule divides by zero there.",
    )


@pytest.mark.parametrize(
    ("sparsity", "eps", "cut"), [(0.7, 0.6, (5, 0.6883)), (0.85, 0.2, (2, 0.8486))]
)
def test_llama_7b_gets_back_what_the_farms_scripts_lost(
    sparsity: float, eps: float, cut: tuple[int, float]
) -> None:
    rule = st.targets.Sparsity(map=st.maps.Linear(1 - eps, 1 + eps), bounds=(0.0, _cut(sparsity)))
    allocation = st.allocate(llama("llama-7b", "alpha_farms_10x10"), target=rule, budget=sparsity)
    blocks, realised = cut
    assert len(allocation) == 224
    assert abs(allocation.realised - sparsity) < 1e-9
    assert allocation.deviations[0].startswith(
        f"{blocks} of 32 units would lie outside 0 to {_cut(sparsity):g};"
    )
    assert allocation.deviations[0].endswith(f"the sparsity would be {realised}.")


@pytest.mark.parametrize("level", ["block", "layer"])
@pytest.mark.parametrize("model", ["llama-7b", "llama-13b"])
def test_ratios_of_real_alphas_against_the_oracle_and_in_order(model: str, level: str) -> None:
    analysis = llama(model, "alpha_farms_15x15" if model == "llama-7b" else "alpha_full")
    allocation = st.allocate(
        analysis, target="sparsity", budget=0.85, map="linear:0.5", level=level
    )
    units = allocation.table.groupby("unit", sort=False).agg(
        {"alpha": "first", "numel": "sum", "value": "first"}
    )
    assert allocation.table.groupby("unit")["value"].nunique().max() == 1
    alphas = units["alpha"].to_numpy()
    factors = np.interp(alphas, [alphas.min(), alphas.max()], [0.5, 1.5]).tolist()
    expected = filled(factors, list(units["numel"]), budget=0.85, bounds=(0.0, 0.998))
    np.testing.assert_allclose(units["value"], expected, rtol=1e-9)
    assert (np.diff(units.sort_values("alpha")["value"]) >= 0).all()


def test_thousands_of_random_models_meet_the_budget() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        layers = [
            layer(f"layers.{b}.linear{i}", float(rng.uniform(1.1, 8)), int(rng.integers(1, 10**7)))
            for b in range(rng.integers(1, 12))
            for i in range(rng.integers(1, 8))
        ]
        budget, how = (
            float(rng.uniform(0, 0.998)),
            rng.choice(["linear:1", "sqrt", "log2", "step:0.9", "sigmoid:2"]),
        )
        allocation = st.allocate(results(*layers), target="sparsity", budget=budget, map=str(how))
        assert abs(allocation.realised - budget) < 1e-9
        assert 0 <= min(allocation.values()) <= max(allocation.values()) <= 0.998
        table = allocation.table.sort_values("alpha")
        assert (np.diff(table["value"]) >= -1e-15).all()


def test_within_kinds_against_the_plain_loop() -> None:
    analysis = llama("llama-7b", "alpha_farms_15x15")
    allocation = st.allocate(
        analysis, target="sparsity", budget=0.7, map="linear:0.4", standardize_by_kind=True
    )
    scores = standardized_by_kind(
        [x.kind for x in analysis.layers], [x.alpha for x in analysis.layers]
    )
    blocks: dict[Any, list[tuple[float, int]]] = {}
    for x, score in zip(analysis.layers, scores, strict=True):
        blocks.setdefault(x.block, []).append((score, x.numel))
    means = [sum(score for score, _ in of_block) / len(of_block) for of_block in blocks.values()]
    sizes = [sum(numel for _, numel in of_block) for of_block in blocks.values()]
    expected = published_ratios(means, sizes, sparsity=0.7, epsilon=0.4)
    found = allocation.table.groupby("unit", sort=False)["value"].first()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    plain = st.allocate(analysis, target="sparsity", budget=0.7, map="linear:0.4").table
    assert not np.allclose(found, plain.groupby("unit", sort=False)["value"].first())
    assert "bounds 0 to 0.998, standardize_by_kind, by alpha)" in allocation.summary()
    assert allocation.settings["standardize_by_kind"] is True


def test_within_kinds_a_kind_counts_alike_however_low_or_spread_its_alphas_are() -> None:
    rng = np.random.default_rng(3)
    alphas = {
        name: rng.uniform(1.5, 3, 6)
        for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    }

    def ratios(q_scale: Any, q_shift: Any) -> list[Any]:
        moved = {**alphas, "self_attn.q_proj": alphas["self_attn.q_proj"] * q_scale + q_shift}
        layers = [
            layer(f"model.layers.{b}.{name}", float(moved[name][b]))
            for b in range(6)
            for name in moved
        ]
        return list(
            st.allocate(
                results(*layers), target="sparsity", budget=0.5, standardize_by_kind=True
            ).values()
        )

    np.testing.assert_allclose(ratios(0.2, 1.1), ratios(1, 0), rtol=1e-9)


def test_within_kinds_one_alpha_in_a_kind_or_in_all() -> None:
    alphas = {"self_attn.q_proj": (2.0, 2.0, 2.0), "mlp.up_proj": (1.5, 3.0, 2.0)}
    layers = [
        layer(f"model.layers.{b}.{name}", alphas[name][b]) for b in range(3) for name in alphas
    ]
    one, alone = (
        st.allocate(results(*chosen), target="sparsity", budget=0.5, standardize_by_kind=True)
        for chosen in (layers, [x for x in layers if x.kind == "up"])
    )
    np.testing.assert_allclose(list(one.values())[::2], list(alone.values()), rtol=1e-12)
    same = st.allocate(
        results(*layers[::2]), target="sparsity", budget=0.5, standardize_by_kind=True
    )
    assert set(same.values()) == {0.5}


def test_within_kinds_is_for_sparsity_and_for_maps_that_take_any_number() -> None:
    layers = [layer(f"model.layers.{b}.mlp.up_proj", 1.0 + 99 * (b == 0)) for b in range(9)]
    layers += [layer(f"model.layers.{b}.mlp.down_proj", 100 - 99 * (b == 0)) for b in range(9)]
    with pytest.raises(
        AllocationError, match="map sqrt needs alphas of at least 0, the smallest here is -"
    ):
        st.allocate(
            results(*layers),
            target="sparsity",
            budget=0.5,
            map="sqrt",
            level="layer",
            standardize_by_kind=True,
        )
    with pytest.raises(AllocationError, match=r"target bits takes .*, but no standardize_by_kind"):
        st.allocate(results(*layers), target="bits", budget=3, standardize_by_kind=True)


def test_stages_that_count_anew_are_different_blocks() -> None:
    layers = [
        layer(f"layer{s}.{b}.conv1", 2.0 + s + b / 3, 1000, kind="conv")
        for s in (1, 2)
        for b in (0, 1)
    ]
    allocation = st.allocate(results(*layers), target="sparsity", budget=0.5)
    assert list(allocation.table["unit"]) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert len(set(allocation.values())) == 4


def test_bounds_hold_from_below_too() -> None:
    rule = st.targets.Sparsity(map="linear:1", bounds=(0.4, 0.8))
    allocation = st.allocate(transformer(6), target=rule, budget=0.6, exclude=["*.gate"])
    assert math.isclose(min(allocation.values()), 0.4)
    assert abs(allocation.realised - 0.6) < 1e-9


@pytest.mark.parametrize("budget", [-0.1, 1.0, 1.7, math.nan])
def test_a_sparsity_outside_0_to_1(budget: float) -> None:
    with pytest.raises(
        AllocationError, match=rf"a sparsity must be at least 0 and below 1, not {budget!r}"
    ):
        st.allocate(transformer(), target="sparsity", budget=budget, exclude=["*.gate"])


def test_a_budget_beyond_the_bounds() -> None:
    with pytest.raises(
        AllocationError,
        match=r"values from 0 to 0\.998 cannot have the mean 0\.999: widen the bounds",
    ):
        st.allocate(transformer(), target="sparsity", budget=0.999, exclude=["*.gate"])


@pytest.mark.parametrize("bounds", [(-0.1, 0.5), (0.6, 0.5), (0.0, 1.1), (0.5,), 0.5])
def test_bounds_that_make_no_sense(bounds: tuple[float, ...] | float) -> None:
    with pytest.raises(
        AllocationError,
        match=r"bounds of sparsity must be \(LOW, HIGH\), 0 <= LOW <= HIGH <= 1, not ",
    ):
        st.targets.Sparsity(bounds=bounds)  # type: ignore[arg-type]
