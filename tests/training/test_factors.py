"""Factors, computed again from the weights by the formulas of the papers;
resuming; transitions; history.
"""

import copy
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import spectail as st
from spectail.cli import run as cli
from spectail.measuring.engines import local
from spectail.training.rules import LLR, RULES, AlphaDecay, TBSigmoid, TempBalance, as_rule
from spectail.training.rules.base import Rule
from tests.reference.plain_allocation import (
    plain_linear,
    plain_log2,
    plain_sigmoid,
    plain_sqrt,
    plain_step,
)
from tests.reference.plain_farms import fit, pooled_eigenvalues
from tests.training.nets import UNITS, net, same, train, weights_of

CORNERS = {"3": [(0, 0), (32, 0)], "5": [(0, 0), (0, 32)], "7": [(0, 0)]}
"""Where windows of 64 x 64 lie in 96 x 64, 64 x 96 and 64 x 64."""


def alphas_by_hand(model: torch.nn.Sequential) -> NDArray[Any]:
    """Alpha of every layer that takes part, by SVDs of its windows."""
    found = []
    for name, corners in CORNERS.items():
        weight = model.get_parameter(f"{name}.weight").detach().numpy()
        found.append(fit(pooled_eigenvalues([weight], (64, 64), corners), "median").alpha)
    return np.array(found)


RULES_BY_HAND: dict[str, Any] = {
    "tempbalance": lambda a: plain_linear(a, 0.5, 1.5),
    "tempbalance:linear:0.1:1.9": lambda a: plain_linear(a, 0.1, 1.9),
    "tempbalance:sqrt": plain_sqrt,
    "tempbalance:log2": plain_log2,
    "tempbalance:step:0.5:1.5": lambda a: plain_step(a, 0.5, 1.5),
    "tb-sigmoid": lambda a: plain_sigmoid(a, 1.0, 1.0, 10.0),
    "tb-sigmoid:sigmoid:0.25": lambda a: plain_sigmoid(a, 0.25, 0.25, 10.0),
    "llr": lambda a: plain_linear(a, 1.0, 5.0),
    "alphadecay": lambda a: plain_linear(a, 0.666, 3.0),
}


def sgd(model: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def goal(balancer: st.Balancer) -> dict[str, float]:
    return balancer.history[-1].factors


@pytest.mark.parametrize("rule", RULES_BY_HAND)
def test_factors_are_those_of_the_papers(rule: str) -> None:
    model = net()
    balancer = st.Balancer(model, sgd(model), rule, every=4)
    train(model, balancer.optimizer, 8)
    alphas = alphas_by_hand(model)
    assert list(balancer.history[-1].alphas.values()) == pytest.approx(alphas, rel=1e-9)
    assert list(goal(balancer)) == list(UNITS)
    assert list(goal(balancer).values()) == pytest.approx(RULES_BY_HAND[rule](alphas), rel=1e-6)
    assert [update.step for update in balancer.history] == [4, 8]


def test_every_rule_is_computed_by_hand() -> None:
    assert {rule.partition(":")[0] for rule in RULES_BY_HAND} == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    ("rule", "target"), [("tempbalance", "lr"), ("alphadecay", "weight-decay")]
)
def test_factors_are_those_of_an_allocation(rule: str, target: str) -> None:
    model = net()
    balancer = st.Balancer(model, sgd(model), rule, every=None)
    balancer.update()
    how = str(balancer.rule.map)
    given = st.allocate(st.analyze(model), target=target, budget=1.0, map=how, exclude=["0", "8"])
    assert dict(given) == balancer.factors


def test_measuring_for_training_gives_the_alphas_of_analyze() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 96, 3), nn.Linear(96, 10)
    )
    balancer = st.Balancer(
        model, sgd(model), TempBalance(include_first_last=True, spec=st.presets.FARMS), every=None
    )
    balancer.update()
    table = st.analyze(model).table.set_index("name")
    mine = balancer.history.at(0).table.set_index("name")
    assert list(mine.index) == ["1", "2"]
    for column in (
        "alpha",
        "alpha_null",
        "xmin",
        "n_tail",
        "ks",
        "window_rows",
        "n_windows",
        "status",
    ):
        assert mine[column].equals(table[column][["1", "2"]]), column
    assert mine["alpha_se"].isna().all()
    assert mine["lambda_max"].isna().all()


def test_block_level_and_normalisation() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 64)
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)}) for _ in "123"
            )
            self.last = nn.Linear(64, 4)

    torch.manual_seed(1)
    model = Blocks()
    balancer = st.Balancer(model, sgd(model), TBSigmoid(level="block"), every=None)
    balancer.update()
    values = balancer.factors
    alphas = balancer.history[-1].alphas
    means = np.array([(alphas[f"blocks.{i}.a"] + alphas[f"blocks.{i}.b"]) / 2 for i in range(3)])
    assert [values[f"blocks.{i}.a"] for i in range(3)] == [
        values[f"blocks.{i}.b"] for i in range(3)
    ]
    assert [values[f"blocks.{i}.a"] for i in range(3)] == pytest.approx(
        plain_sigmoid(means.tolist(), 1.0, 1.0, 10.0)
    )
    model = net()
    balancer = st.Balancer(model, sgd(model), TempBalance(normalize=True), every=None)
    balancer.update()
    sizes = np.array([96 * 64, 64 * 96, 64 * 64])
    assert np.average(list(balancer.factors.values()), weights=sizes) == pytest.approx(
        1.0, abs=1e-12
    )


def test_the_transition_is_even_and_starts_where_it_is() -> None:
    model = net()
    balancer = st.Balancer(model, sgd(model), LLR(transition=4), every=6)
    seen = []
    train(
        model, balancer.optimizer, 14, before=lambda _: seen.append(list(balancer.factors.values()))
    )
    first, second = (np.array(list(update.factors.values())) for update in balancer.history)
    ones = np.ones(3)
    assert np.array(seen[:6]) == pytest.approx(np.ones((6, 3)))
    for i in range(4):
        assert seen[6 + i] == pytest.approx(ones + (first - ones) * (i + 1) / 4)
        assert seen[12 + i if i < 2 else 13] == pytest.approx(
            first + (second - first) * (min(i, 1) + 1) / 4
        )
    assert seen[10] == pytest.approx(first)
    assert all(factor >= 1 for row in seen for factor in row)
    balancer.update()
    assert balancer._ramp.start == tuple(first + (second - first) * 3 / 4), (
        "from where it is, not from the goal"
    )


def run(
    steps: int,
    *,
    stops: tuple[()] | list[int] = (),
    rule: Rule | str = "tempbalance",
    background: bool = False,
    through: str = "torch",
) -> tuple[torch.nn.Sequential, list[Any], st.Balancer]:
    """Train for ``steps``, stopped and resumed from stored states at each of ``stops``."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    balancer = st.Balancer(model, optimizer, rule, every=3, background=background)
    factors, start = [], 0
    for stop in (*stops, steps):
        train(
            model,
            optimizer,
            stop - start,
            start=start,
            before=lambda _, b=balancer: factors.append(b.factors),
            after=lambda _, s=scheduler: s.step(),
        )
        start = stop
        if stop == steps:
            break
        pieces = model, optimizer, scheduler, balancer
        states = [copy.deepcopy(piece.state_dict()) for piece in pieces]
        states[3] = through_a_file(states[3], through)
        model = net(seed=99)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        balancer = st.Balancer(model, optimizer, rule, every=3, background=background)
        made: tuple[Any, ...] = (model, optimizer, scheduler, balancer)
        for piece, state in zip(made, states, strict=True):
            piece.load_state_dict(state)
    return model, factors, balancer


def through_a_file(state: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "json":
        plain: dict[str, Any] = json.loads(json.dumps(state, allow_nan=False, sort_keys=True))
        return plain
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("background", [False, True], ids=["waiting", "background"])
@pytest.mark.parametrize("rule", ["tempbalance", "llr:linear:1.0:5.0"])
def test_a_resumed_run_is_the_same_bit_by_bit(rule: str, background: bool) -> None:
    steps = 14
    made = as_rule(rule) if rule == "tempbalance" else LLR(transition=4)
    model, factors, balancer = run(steps, rule=made, background=background)
    assert factors[0] != factors[-1]
    rng = random.Random(0)
    for through in ("torch", "json", "torch"):
        stops = sorted(rng.sample(range(1, steps), 2))
        again, same_factors, other = run(
            steps, stops=stops, rule=made, background=background, through=through
        )
        assert same_factors == factors, stops
        assert same(weights_of(model), weights_of(again)), stops
        assert other.history.table.equals(balancer.history.table), stops


def test_the_window_stays_that_of_the_run_and_changes_with_the_spec_alone() -> None:
    def model(*more: torch.nn.Linear) -> torch.nn.Sequential:
        return nn.Sequential(*[nn.Linear(96, 96) for _ in range(4)], nn.Linear(96, 4), *more)

    def balancer(
        model: torch.nn.Sequential, rule: str | st.TempBalance = "tempbalance"
    ) -> st.Balancer:
        return st.Balancer(model, sgd(model), rule, every=None)

    first = balancer(model())
    grown = balancer(model(nn.Linear(70, 70)))
    grown.load_state_dict(first.state_dict())
    grown.update()
    assert set(grown.history.at(0).table["window_rows"]) == {96}
    other = balancer(model(), TempBalance(spec=st.Spec(window=64)))
    with pytest.warns(UserWarning, match="saved with other settings"):
        other.load_state_dict(first.state_dict())
    other.update()
    assert set(other.history.at(0).table["window_rows"]) == {64}


def test_background_factors_are_those_of_one_period_before() -> None:
    _, factors, balancer = run(11, background=True)
    _, _, waiting = run(11)
    assert [(u.step, u.applied) for u in balancer.history] == [(3, 6), (6, 9)]
    assert factors[5] == dict.fromkeys(UNITS, 1.0)
    assert factors[6] == waiting.history[0].factors, (
        "the weights of step 3 were measured, whatever came after"
    )
    assert factors[9] != factors[8]


def test_measuring_in_the_background_sets_no_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(
        nn.Linear(64, 512), nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, 64)
    )
    table = st.analyze(model).table.set_index("name")
    balancer = st.Balancer(model, sgd(model), "tempbalance", every=None, background=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    told: list[Any] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    assert balancer.update() is None
    update = balancer.update()
    balancer.state_dict()
    assert update is not None
    assert update.step == 0
    assert not told
    assert update.alphas == pytest.approx(dict(table["alpha"][["1", "2"]]), rel=1e-9)


def test_a_weight_that_gets_other_memory_is_measured_as_it_is() -> None:
    model = net()
    balancer = st.Balancer(model, sgd(model), "tempbalance", every=None)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    balancer.update()
    assert list(balancer.history[-1].alphas.values()) == pytest.approx(
        alphas_by_hand(model), rel=1e-6
    )


def test_measurements_keep_the_order_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads finish layers in any order."""
    measure = local.measure
    monkeypatch.setattr(local, "measure", lambda *given: reversed(list(measure(*given))))
    model = net()
    update = st.Balancer(model, sgd(model), "tempbalance", every=None).update()
    assert update is not None
    assert list(update.layers) == list(UNITS)


def test_history_is_kept_saved_plotted_and_compared(tmp_path: Path) -> None:
    told: list[Any] = []
    model = net()
    balancer = st.Balancer(model, sgd(model), "tempbalance", every=2, on_update=told.append)
    train(model, balancer.optimizer, 6)
    history = balancer.history
    assert told == list(history)
    assert list(history.table.columns) == ["step", "applied", "name", "alpha", "factor"]
    assert history.table["step"].tolist() == [2, 2, 2, 4, 4, 4, 6, 6, 6]
    assert [trace.name for trace in history.plot().data] == list(UNITS)
    assert (
        list(history.plot("factor").data[0].y)
        == history.table[history.table["name"] == "3"]["factor"].tolist()
    )
    history.save(tmp_path)
    again = type(history).load(tmp_path)
    assert again.table.equals(history.table)
    assert again.at(4).table.equals(history.at(4).table)
    assert {path.name for path in tmp_path.iterdir()} == {
        "history.json", "history.csv", "step_2.json", "step_4.json", "step_6.json"
    }  # fmt: skip
    moved = st.compare(tmp_path / "step_2.json", history.at(6))
    assert moved.table["alpha_change"].notna().all()
    assert not any("same weights" in warning for warning in moved.warnings)
    assert cli(["compare", str(tmp_path / "step_2.json"), str(tmp_path / "step_6.json")]) == 0
    assert (tmp_path / "compare.html").is_file()
    history.at(-1).save(tmp_path / "last")
    with pytest.raises(
        st.RunError, match="nothing was measured at step 3; there are measurements at 2, 4, 6"
    ):
        history.at(3)
    with pytest.raises(st.RunError, match="a history plots alpha or factor, not 'beta'"):
        history.plot("beta")
    with pytest.raises(st.RunError, match="no history at"):
        type(history).load(tmp_path / "nowhere")


def test_rules_from_text_and_their_settings() -> None:
    assert as_rule("tempbalance") == TempBalance()
    assert as_rule("llr:linear:1:3").map == st.maps.Linear(1.0, 3.0)
    assert (LLR().transition, TempBalance().transition, AlphaDecay().option) == (
        50,
        0,
        "weight_decay",
    )
    kinds: Any = RULES
    for rule in kinds:
        json.dumps(rule().settings(), allow_nan=False)
    sigmoid: Any = TBSigmoid().map
    assert math.isclose(float(np.max(sigmoid.factors(np.array([1.0, 9.0])))), 10**0.5)
