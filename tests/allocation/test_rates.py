"""Learning rates and weight decays: published numbers, the base value, and what normalising
keeps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spectail as st
from spectail.errors import AllocationError
from tests.allocation.conftest import layer, results, transformer
from tests.goldens.published import load

GOLDENS = load("published_allocations.json.gz")
TEMPS, RUNS = GOLDENS["temps"], GOLDENS["tempbalance_cnn"]
FUNCTIONS = {
    "tb_linear_map": "linear",
    "tb_step": "step",
    "tbr": "step",
    "tb_sqrt": "sqrt",
    "tb_log2": "log2",
}


def _map(case: Any) -> Any:
    kind = FUNCTIONS[case["func"]]
    low = case["lr_min_ratio"]
    high = case.get("lr_max_ratio", low + case.get("lr_slope", 0))
    return f"{kind}:{low}:{high}" if kind in ("linear", "step") else kind


def _rates(alphas: Any, how: str, budget: float = 0.1, **more: Any) -> st.Allocation:
    layers = [layer(f"linear{i}", alpha, 1000 * (i + 1)) for i, alpha in enumerate(alphas)]
    return st.allocate(results(*layers), target="lr", budget=budget, map=how, **more)


def _kind(case: Any) -> str:
    """Whether the published answer is one to give back."""
    scores = case["scores"]
    if any(isinstance(score, str) for score in scores):
        return "not finite"
    if case["func"] == "tb_log2" and min(scores) <= 1:
        return "log2 of 1 or less"
    if FUNCTIONS[case["func"]] in ("linear", "step") and len(set(scores)) == 1:
        return "one alpha"
    return (
        "ties"
        if FUNCTIONS[case["func"]] == "step" and len(set(scores)) < len(scores)
        else "published"
    )


def _cases(kind: str) -> list[Any]:
    return [
        pytest.param(case, id=f"{i}-{case['func']}")
        for i, case in enumerate(TEMPS)
        if _kind(case) == kind
    ]


@pytest.mark.parametrize("case", _cases("published"))
def test_published_learning_rates_come_back(case: Any) -> None:
    allocation = _rates(case["scores"], _map(case), case["untuned_lr"])
    np.testing.assert_allclose(list(allocation.values()), case["temps"], rtol=1e-9)
    assert allocation.deviations == ()


@pytest.mark.parametrize("case", _cases("ties"))
def test_ties_share_a_step(case: Any) -> None:
    allocation = _rates(case["scores"], _map(case), case["untuned_lr"])
    scores, published = np.array(case["scores"]), np.array(case["temps"])
    expected = [published[scores == score].mean() for score in scores]
    np.testing.assert_allclose(list(allocation.values()), expected, rtol=1e-9)
    assert allocation.deviations == (
        "Units of equal alpha share a step; published code gives them different ones by position.",
    )


@pytest.mark.parametrize("case", _cases("one alpha"))
def test_one_alpha_for_all_keeps_the_base(case: Any) -> None:
    allocation = _rates(case["scores"], _map(case), case["untuned_lr"])
    assert set(allocation.values()) == {case["untuned_lr"]}
    assert "keep the base value" in allocation.deviations[0]


@pytest.mark.parametrize("case", _cases("log2 of 1 or less"))
def test_negative_learning_rates_are_refused(case: Any) -> None:
    with pytest.raises(AllocationError, match="map log2 needs alphas above 1"):
        _rates(case["scores"], _map(case), case["untuned_lr"])


@pytest.mark.parametrize("case", _cases("not finite"))
def test_alphas_that_are_not_finite_are_named(case: Any) -> None:
    with pytest.raises(
        AllocationError,
        match=r"1 of 3 layers have no comparable alpha: linear1 \(alpha is (nan|inf)\)",
    ):
        _rates([float(score) for score in case["scores"]], _map(case), case["untuned_lr"])


def test_no_published_case_is_left_out() -> None:
    kinds = [_kind(case) for case in TEMPS]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "published": 26,
        "ties": 3,
        "one alpha": 13,
        "log2 of 1 or less": 3,
        "not finite": 18,
    }


@pytest.mark.parametrize(
    "run", RUNS, ids=lambda r: f"{r['assign_func']}-{r['pl_fitting']}-{r['use_sliding_window']}"
)
def test_the_published_network_gets_its_learning_rates(run: Any) -> None:
    """Published code leaves out the first and the last layer by position;
    here they are excluded by name."""
    alphas = zip(run["longname"], run["alpha"], strict=True)
    analysis = results(*(layer(name, alpha, kind="linear") for name, alpha in alphas))
    published = {group["n_params"]: group["lr"] for group in run["groups"]}
    kind = FUNCTIONS[run["assign_func"]]
    how = f"{kind}:0.5:1.5" if kind in ("linear", "step") else kind
    rates = st.allocate(analysis, target="lr", budget=0.1, map=how, exclude=["conv1", "fc3"])
    expected = {
        "conv2": published[4608],
        "conv3": published[2048],
        "fc1": published[8320],
        "fc2": published[12384],
    }
    assert dict(rates) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("target", ["lr", "weight-decay"])
@pytest.mark.parametrize("how", ["linear:0.5", "sqrt", "log2", "step:0.5", "sigmoid:1", "llr"])
def test_normalised_values_keep_the_ratios_and_the_mean(target: str, how: str) -> None:
    kind = st.targets.LearningRate if target == "lr" else st.targets.WeightDecay
    plain = st.allocate(transformer(), target=kind(map=how), budget=0.02)
    kept = st.allocate(transformer(), target=kind(map=how, normalize=True), budget=0.02)
    ratios = np.array(list(kept.values())) / np.array(list(plain.values()))
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-12)
    assert abs(kept.realised - 0.02) < 1e-11
    assert kept.deviations == (
        f"Normalised: the mean {kind.quantity} is the base, the published map's is not.",
    )


def test_defaults_are_the_published_maps() -> None:
    analysis = transformer()
    rates = st.allocate(analysis, target="lr", budget=0.1)
    assert (min(rates.values()), max(rates.values())) == pytest.approx((0.05, 0.15))
    decays = st.allocate(analysis, target="weight-decay", budget=0.1)
    assert (min(decays.values()), max(decays.values())) == pytest.approx((0.0666, 0.3))


def test_a_block_shares_one_rate() -> None:
    rates = st.allocate(transformer(), target="lr", budget=0.1, map="sigmoid:1", level="block")
    assert rates.table.groupby("unit")["value"].nunique().max() == 1


@pytest.mark.parametrize("budget", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize(
    ("target", "word"), [("lr", "learning rate"), ("weight-decay", "weight decay")]
)
def test_a_base_value_that_makes_no_sense(budget: float, target: str, word: str) -> None:
    with pytest.raises(
        AllocationError,
        match=rf"a base {word} must be a finite number of at least 0, not {budget!r}",
    ):
        st.allocate(transformer(), target=target, budget=budget)


@pytest.mark.parametrize("options", [{"budget": 1e308}, {"budget": 1.0, "map": "sigmoid:100"}])
@pytest.mark.parametrize("target", ["lr", "weight-decay"])
def test_rates_that_no_file_would_give_back_are_refused(
    target: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(AllocationError, match=r"the largest .* would be \S+, above 1e\+30: lower"):
        st.allocate(transformer(), target=target, **options)
    most = st.allocate(transformer(), target=target, budget=1e29)
    assert dict(st.Allocation.load(most.save(tmp_path / "a.json"))) == dict(most)
