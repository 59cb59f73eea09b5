"""Sensitivities in an allocation of bits: the weighted optimum, pairing by name, files."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import spectail as st
from spectail.errors import AllocationError
from spectail.results.records import Rounding
from tests.allocation.conftest import layer, results, transformer

SETTINGS = {"samples": 2, "seq_len": 256, "tokens": "sha256:00", "noise": 0.05, "seed": 0}


def measured(
    values: dict[str, float | None], *, rows: int = 64, cols: int = 64, numel: int = 4096
) -> st.Sensitivities:
    """Sensitivities as a measurement gives them, of layers of one shape."""
    return st.Sensitivities(
        layers=tuple(
            st.LayerSensitivity(name, rows, cols, numel, value=v) for name, v in values.items()
        ),
        settings=SETTINGS,
        source="toy",
        fingerprint="sha256:01",
    )


def model(seed: int, n: int = 5) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        layer(f"layers.{i}.mlp.up", float(rng.uniform(1.5, 4)), int(numel), rows=numel // 64,
              group_range=float(rng.uniform(20, 60)))
        for i, numel in enumerate(rng.choice([4096, 8192, 64 * 100], n))
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_no_assignment_of_widths_has_a_smaller_weighted_error(seed: int) -> None:
    rng, layers, choices = np.random.default_rng(seed), model(seed), (2, 3, 4, 8)
    sensitive = {x.name: float(rng.lognormal(0, 2)) for x in layers}
    budget = float(rng.uniform(2.2, 5))
    found = st.allocate(results(*layers), target="bits", budget=budget, sensitivities=sensitive)

    def cost(widths: tuple[int, ...]) -> float:
        # t^2 of rounding to nearest: the mean squared step over 12, relative to the mean square.
        return math.fsum(
            sensitive[x.name] * x.group_range / (12 * (2.0**bits - 1) ** 2)
            for x, bits in zip(layers, widths, strict=True)
        )

    total = sum(x.numel for x in layers)
    allowed = [
        widths
        for widths in itertools.product(choices, repeat=len(layers))
        if sum(b * x.numel for b, x in zip(widths, layers, strict=True)) <= budget * total
    ]
    chosen = tuple(int(found[x.name]) for x in layers)
    assert found.realised <= budget
    assert cost(chosen) == pytest.approx(min(map(cost, allowed)), rel=1e-9)


def test_formats_are_weighted_too() -> None:
    formats = (Rounding("q3_k", 3.4375, 0.04), Rounding("q6_k", 6.5625, 0.0006))
    layers = [layer(f"layers.{i}.mlp.up", 2.0, rounding=formats) for i in range(4)]
    rule = st.targets.Bits(choices=("q3_k", "q6_k"))
    for chosen in range(4):
        weights = {x.name: 5.0 if i == chosen else 1.0 for i, x in enumerate(layers)}
        found = st.allocate(results(*layers), target=rule, budget=4.3, sensitivities=weights)
        assert [x.format for x in found.shares].index("q6_k") == chosen
        assert [x.format for x in found.shares].count("q6_k") == 1


def test_a_block_adds_up_the_weighted_errors_of_its_layers() -> None:
    layers = [layer(f"layers.{i}.mlp.{part}", 2.0) for i in range(2) for part in ("up", "down")]
    rule = st.targets.Bits(choices=(2, 4), level="block")
    for last, widths in ((5.5, [4.0, 4.0, 2.0, 2.0]), (6.5, [2.0, 2.0, 4.0, 4.0])):
        # 1 + 9 against 4 + 5.5 or 4 + 6.5, though 9 is the largest.
        weights = dict(zip((x.name for x in layers), (1.0, 9.0, 4.0, last), strict=True))
        found = st.allocate(results(*layers), target=rule, budget=3, sensitivities=weights)
        assert list(found.values()) == widths


def test_a_common_factor_does_not_matter_and_ones_are_the_default() -> None:
    layers = model(3, 12)
    plain = st.allocate(results(*layers), target="bits", budget=3.3)
    for factor in (1.0, 1e-6, 1e6):
        weights = {x.name: factor for x in layers}
        found = st.allocate(results(*layers), target="bits", budget=3.3, sensitivities=weights)
        assert dict(found) == dict(plain)
        assert found.settings == plain.settings | {"sensitivities": "given"}


def test_the_allocation_says_how_they_were_measured(tmp_path: Path) -> None:
    layers = model(0, 6)
    sensitive = measured({x.name: 1.0 + i for i, x in enumerate(layers)})
    layers = [layer(x.name, x.alpha) for x in layers]
    found = st.allocate(results(*layers), target="bits", budget=3, sensitivities=sensitive)
    assert found.settings["sensitivities"] == "2 x 256 tokens, noise 0.05, seed 0"
    assert "sensitivities 2 x 256 tokens, noise 0.05, seed 0" in found.summary()
    again = st.Allocation.load(found.save(tmp_path / "a.json"))
    assert again.settings == found.settings


def test_a_layer_that_text_does_not_reach_takes_the_least_of_its_kind_and_it_is_said() -> None:
    names = [f"layers.{i}.mlp.experts.{e}.{p}_proj"
             for i in range(2) for e in range(3) for p in ("up", "down")]  # fmt: skip
    layers = [layer(name, 2.0) for name in names]
    values = dict.fromkeys(names, 8.0)
    values |= {names[0]: 0.0, names[2]: 3.0, names[1]: 0.5}
    found = st.allocate(results(*layers), target="bits", budget=3, sensitivities=values)
    (note,) = found.deviations
    assert note == (
        "1 of 12 layers have sensitivity 0, because the text does not reach them or weights of "
        "zero hide them; they take the least sensitivity of their kind, else of all: "
        f"{names[0]}."
    )
    # As an up projection it counts 3 like the least of those, not 0.5 like a down projection.
    same = st.allocate(
        results(*layers), target="bits", budget=3, sensitivities=values | {names[0]: 3.0}
    )
    assert dict(found) == dict(same)
    assert same.deviations == ()


def test_names_of_a_live_model_pair_with_those_of_its_file() -> None:
    layers = [layer(f"model.layers.{i}.mlp.up_proj", 2.0) for i in range(3)]
    values = {f"layers.{i}.mlp.up_proj": float(10**i) for i in range(3)}
    found = st.allocate(
        results(*layers), target="bits", budget=3, sensitivities=measured(dict(values))
    )
    assert list(found.values()) == sorted(found.values())
    assert found["model.layers.2.mlp.up_proj"] > found["model.layers.0.mlp.up_proj"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (measured({"model.layers.0.mlp.up_proj": 1.0}),
         r"2 of 3 layers have no sensitivity: model\.layers\.1\.mlp\.up_proj, .*; the sensitivities"
         r" name model\.layers\.0\.mlp\.up_proj: measure them on the model that was analysed"),
        ({}, "3 of 3 layers have no sensitivity: .*; the sensitivities name none"),
        (measured({f"model.layers.{i}.mlp.up_proj": 1.0 for i in range(3)}, rows=32, cols=128),
         r"model\.layers\.0\.mlp\.up_proj is 64 x 64 \(4096 weights\) in the analysis and 32 x 128 "
         r"\(4096 weights\) in the sensitivities: they come from another model"),
        (measured({f"model.layers.{i}.mlp.up_proj": 1.0 for i in range(3)}, numel=8192),
         r"\(4096 weights\) in the analysis and 64 x 64 \(8192 weights\) in the sensitivities"),
        ({f"model.layers.{i}.mlp.up_proj": 0.0 for i in range(3)},
         "no sensitivity is above 0: the text reaches none of the layers"),
        (measured({"a": 1.0, "b": None}), "only 1 of 2 sensitivities are measured: finish them"),
        ({"a": -1.0}, r"the sensitivity of a must be a number from 0 to 1e\+30, not -1.0"),
        ({"a": float("nan")}, r"the sensitivity of a must be a number from 0 to 1e\+30, not nan"),
        ({"a": float("inf")}, r"the sensitivity of a must be a number from 0 to 1e\+30, not inf"),
        ({"a": 10**400}, r"the sensitivity of a must be a number from 0 to 1e\+30, not 1000"),
        ({"a": True}, r"the sensitivity of a must be a number from 0 to 1e\+30, not True"),
        ({1: 1.0}, "sensitivities are given by names of layers, not by 1"),
        ([1.0], r"sensitivities must map names of layers to numbers, .*, not \[1\.0\]"),
        (pd.Series({"a": 1.0}), r"sensitivities must map names of layers to numbers, .*, not a"),
    ],
    ids=range(14),
)  # fmt: skip
def test_what_does_not_fit_is_one_line(given: Any, message: str) -> None:
    layers = [layer(f"model.layers.{i}.mlp.up_proj", 2.0) for i in range(3)]
    with pytest.raises(AllocationError, match=message) as caught:
        st.allocate(results(*layers), target="bits", budget=3, sensitivities=given)
    assert "\n" not in str(caught.value)


def test_sensitivities_of_layers_that_take_no_part_do_not_matter() -> None:
    analysis = transformer()
    names = [x.name for x in analysis.layers if x.kind in {"q", "up"}]
    weights = dict.fromkeys([*names, "another.layer"], 2.0)
    found = st.allocate(
        analysis, target="bits", budget=3, exclude=["*.gate"], sensitivities=weights
    )
    assert set(found) == set(names)


def test_they_weigh_measured_errors_only() -> None:
    weights = {"layers.0.mlp.up": 1.0}
    with pytest.raises(AllocationError, match="sensitivities weigh relative errors, and error var"):
        st.targets.Bits(error="variance", sensitivities=weights)
    old = layer("layers.0.mlp.up", 2.0, group_range=float("nan"))
    with pytest.raises(AllocationError, match="made by a version that measures none: analyse the"):
        st.allocate(results(old), target="bits", budget=3, sensitivities=weights)


@pytest.mark.parametrize("target", ["sparsity", "lr", "weight-decay", "freeze"])
def test_other_targets_take_none(target: str) -> None:
    with pytest.raises(AllocationError, match=f"target {target} takes .*, but no sensitivities"):
        st.allocate(transformer(), target=target, budget=0.5, sensitivities={"a": 1.0})


def test_files_are_read_back_and_damaged_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    first = measured({"a": 0.25, "b": 0.0, "c": 1e-9})
    assert first.save(path) == path
    again = st.Sensitivities.load(path)
    assert again.to_dict() == first.to_dict()
    assert dict(again) == {"a": 0.25, "b": 0.0, "c": 1e-9}
    assert "noise in 1 layer changes no prediction" in again.summary()
    stored = json.loads(path.read_text())
    for damage in (
        {"format": "spectail allocation"},
        {"layers": [stored["layers"][0]] * 2},
        {"layers": [stored["layers"][0] | {"value": -1}]},
        {"layers": [stored["layers"][0] | {"numel": "many"}]},
        {"more": 1},
    ):
        path.write_text(json.dumps(stored | damage))
        with pytest.raises(AllocationError, match=r"s\.json holds no sensitivities that this ver"):
            st.Sensitivities.load(path)
    with pytest.raises(AllocationError, match=r"no sensitivities at .*none\.json: expected a file"):
        st.Sensitivities.load(tmp_path / "none.json")
