"""What users may write, as type checkers see it: mypy reads this file, and the tests run it.

A ``type: ignore`` that mypy does not need is an error, which holds what must be refused.
"""

from __future__ import annotations

from typing import assert_type

import pytest
from torch import nn, optim

import spectail as st
from spectail.core.cutoffs import Cutoff, Median, TopFraction
from spectail.core.windows import Grid, Placement, Tile


def test_a_spec_takes_text_or_types_and_has_types() -> None:
    spec = st.Spec(cutoff="top:0.1", placement="grid:10", window="fit")
    assert_type(spec.cutoff, Cutoff)
    assert_type(spec.placement, Placement)
    assert spec == st.Spec(cutoff=TopFraction(0.1), placement=Grid(10), window="fit")
    assert st.Spec(cutoff=Median(), placement=Tile(), window=64, tolerance=None).window == 64


def test_a_spec_refuses_other_types() -> None:
    with pytest.raises(st.SpecError):
        st.Spec(cutoff=0.1)  # type: ignore[arg-type]
    with pytest.raises(st.SpecError):
        st.Spec(placement=10)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        st.Spec(window_size=64)  # type: ignore[call-arg]


def test_rules_and_targets_take_the_text_of_a_map_and_lists_of_globs() -> None:
    rule = st.TempBalance(map="sqrt", include=["fc*"], exclude=("head",))
    assert (str(rule.map), rule.include, rule.exclude) == ("sqrt", ("fc*",), ("head",))
    assert str(st.targets.LearningRate(map="log2").map) == "log2"
    with pytest.raises(st.TrainingError):
        st.TempBalance(transition="0")  # type: ignore[arg-type]


def test_a_balancer_takes_the_name_of_a_rule() -> None:
    model = nn.Sequential(*[nn.Linear(96, 96) for _ in range(3)])
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=None)
    assert_type(balancer.history, st.History)
