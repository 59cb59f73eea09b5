"""A Spec refuses nonsense when it is built, and survives a trip through plain values."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, cast

import pytest

from spectail import presets
from spectail.core.cutoffs import Fixed, HistogramPeak, Median, TopFraction
from spectail.core.spec import Spec
from spectail.core.windows import Grid, Tile
from spectail.errors import SpecError

SPECS = [
    Spec(),
    Spec(window=64, placement="grid:10", cutoff="peak", legacy=True),
    Spec(window="fit", aspect_ratio=0.75, placement="random:5", seed=3),
    Spec(cutoff=TopFraction(1 / 3)),
    Spec(cutoff="fixed:1e-7"),
    *presets.BY_NAME.values(),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_survives_json(spec: Spec) -> None:
    assert Spec(**json.loads(json.dumps(spec.to_dict()))) == spec


def test_short_texts_become_types() -> None:
    spec = Spec(placement="grid:3", cutoff="top:0.2")
    assert spec.placement == Grid(3)
    assert spec.cutoff == TopFraction(0.2)
    assert (Spec().placement, Spec().cutoff) == (Tile(), Median())
    assert hash(spec) == hash(Spec(placement=Grid(3), cutoff=TopFraction(0.2)))


def test_legacy_brings_the_log_bound_and_only_to_the_peak() -> None:
    assert Spec(cutoff="peak", legacy=True).cutoff == HistogramPeak(legacy_lower_bound=True)
    assert Spec(cutoff="peak").cutoff == HistogramPeak()
    assert Spec(legacy=True).cutoff == Median()


def test_a_spec_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec().window = 3  # type: ignore[misc]


NONSENSE = [
    ({"aspect_ratio": 0}, "aspect ratio must be a positive finite number, not 0"),
    ({"aspect_ratio": -1.5}, "aspect ratio must be a positive finite number, not -1.5"),
    ({"aspect_ratio": math.nan}, "aspect ratio must be a positive finite number, not nan"),
    ({"aspect_ratio": math.inf}, "aspect ratio must be a positive finite number, not inf"),
    ({"aspect_ratio": "2"}, "aspect ratio must be a positive finite number, not '2'"),
    ({"seed": 1.5}, f"seed must be a whole number from 0 to {2**63 - 1}, not 1.5"),
    ({"seed": True}, f"seed must be a whole number from 0 to {2**63 - 1}, not True"),
    ({"tolerance": "1%"}, "tolerance must be a share of alpha above 0 and below 1, not '1%'"),
    ({"window": "all"}, "window must be a whole number, common, fit or whole, not 'all'"),
    ({"window": 1}, "window must be a whole number of at least 2, not 1"),
    ({"window": -64}, "window must be a whole number of at least 2, not -64"),
    (
        {"placement": "grid"},
        "placement must be tile, grid:K, step:S or random:N with a whole number, not 'grid'",
    ),
    ({"cutoff": "mode"}, "cutoff must be median, ks, peak, top:F or fixed:X, not 'mode'"),
]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Grid(cast("Any", 2.5)), "grid:K needs a whole number of at least 1, not 2.5"),
        (
            lambda: TopFraction(cast("Any", "0.1")),
            "top:F needs a fraction above 0 and at most 1, not '0.1'",
        ),
        (lambda: Fixed(cast("Any", "1")), "fixed:X needs a positive finite xmin, not '1'"),
    ],
)
def test_other_types_are_refused_when_a_setting_is_built(
    made: Callable[[], object], message: str
) -> None:
    with pytest.raises(SpecError) as error:
        made()
    assert str(error.value) == message


@pytest.mark.parametrize(("settings", "message"), NONSENSE)
def test_nonsense_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        Spec(**settings)
    assert str(error.value) == message
