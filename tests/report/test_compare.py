"""Two runs side by side: pairs by name only, changes weighed by their errors, a page of its own."""

import dataclasses
import json
import math
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from spectail.core.spec import Spec
from spectail.errors import RunError
from spectail.report.compare_page import compare_html
from spectail.report.evidence import threshold
from spectail.results.compare import pair_layers
from spectail.results.records import Results

from .conftest import build_transformer, missing, ok_layer, run_of


def renamed(results: Any, change: Callable[..., Any]) -> Any:
    return dataclasses.replace(
        results, layers=tuple(dataclasses.replace(x, name=change(x.name)) for x in results.layers)
    )


def shifted(results: Any, by: Any) -> Any:
    """The same run with other weights: alpha moved by ``by(i)``."""
    layers = [dataclasses.replace(x, alpha=x.alpha + by(i)) for i, x in enumerate(results.layers)]
    return run_of(layers, fingerprint="sha256:other")


def pairs(comparison: Any) -> dict[str, Any]:
    both = comparison.table[(comparison.table["name_a"] != "") & (comparison.table["name_b"] != "")]
    return dict(zip(both["name_a"], both["name_b"], strict=True))


def test_pairs_by_name_and_never_by_position() -> None:
    a = build_transformer(4)
    mixed = list(a.layers)
    random.Random(0).shuffle(mixed)
    comparison = pair_layers(a, run_of(mixed))
    assert all(x == y for x, y in pairs(comparison).items())
    assert (comparison.table["alpha_change"].dropna() == 0).all()
    assert comparison.table["name"].tolist() == [layer.name for layer in a.layers]


@pytest.mark.parametrize(
    "prefix", ["model.", "base_model.model.", "transformer.", "base_model.model.model."]
)
def test_a_leading_prefix_does_not_part_a_pair(prefix: str) -> None:
    a = run_of([ok_layer(f"layers.{i}.q", i, "q") for i in range(3)])
    b = renamed(a, lambda name: prefix + name)
    assert pairs(pair_layers(a, b)) == {x.name: prefix + x.name for x in a.layers}
    assert pairs(pair_layers(b, a)) == {prefix + x.name: x.name for x in a.layers}


def test_an_ambiguous_prefix_pairs_nothing() -> None:
    a = run_of([ok_layer("head", None, "head"), ok_layer("w", None, "linear")])
    b = run_of([ok_layer(x, None, "linear") for x in ("model.w", "transformer.w", "head")])
    comparison = pair_layers(a, b)
    assert pairs(comparison) == {"head": "head"}
    status = dict(zip(comparison.table["name"], comparison.table["status"], strict=True))
    assert status == {
        "head": "paired",
        "w": "only in A",
        "model.w": "only in B",
        "transformer.w": "only in B",
    }


def test_an_exact_name_goes_before_a_prefix() -> None:
    a = run_of([ok_layer(x, None, "linear") for x in ("w", "model.w")])
    assert pairs(pair_layers(a, a)) == {"w": "w", "model.w": "model.w"}


def test_fused_experts_pair_with_separate_ones() -> None:
    a = run_of([ok_layer("model.layers.0.mlp.experts.gate_up_proj[3].gate", 0, "gate")])
    b = run_of([ok_layer("model.layers.0.mlp.experts.3.gate_proj", 0, "gate")])
    assert pairs(pair_layers(a, b)) == {a.layers[0].name: b.layers[0].name}


def test_change_and_z_are_b_minus_a_over_the_combined_error() -> None:
    a = run_of([ok_layer("w", None, "linear", alpha=2.0, alpha_se=0.03)])
    b = run_of(
        [ok_layer("w", None, "linear", alpha=1.9, alpha_se=0.04)], fingerprint="sha256:other"
    )
    [row] = pair_layers(a, b).table.to_dict("records")
    assert row["alpha_change"] == pytest.approx(-0.1)
    assert row["z"] == pytest.approx(-2.0)
    assert row["weight_var_a"] == a.layers[0].weight_var
    assert row["stable_rank_b"] == b.layers[0].stable_rank


def test_no_error_bar_gives_a_change_without_z() -> None:
    a = run_of([ok_layer("w", None, "linear", alpha=2.0, alpha_se=math.nan)])
    [row] = pair_layers(a, shifted(a, lambda i: 0.1)).table.to_dict("records")
    assert row["alpha_change"] == pytest.approx(0.1)
    assert math.isnan(row["z"])


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"rows": 100}, "shapes differ", "192 x 192 in A, 100 x 192 in B"),
        (
            {"window_rows": 32, "window_cols": 32},
            "not comparable",
            "windows of 64 x 64 in A, 32 x 32 in B",
        ),
        (
            {"status": "failed", "reason": "NaN", "alpha": math.nan},
            "not comparable",
            "failed in B: NaN",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(change: dict[str, Any], status: str, reason: str) -> None:
    a = run_of([ok_layer("w", None, "linear")])
    b = run_of([dataclasses.replace(a.layers[0], **change)], fingerprint="sha256:other")
    comparison = pair_layers(a, b)
    [row] = comparison.table.to_dict("records")
    assert (row["status"], row["reason"]) == (status, reason)
    assert math.isnan(row["alpha_change"])
    assert math.isnan(row["z"])
    assert len(comparison.moved(5)) == 0
    assert f"1 {status}" in comparison.warnings[-1]


def test_alphas_of_two_cutoffs_are_never_subtracted() -> None:
    a = run_of([ok_layer("w", None, "linear")])
    b = run_of(list(a.layers), spec=Spec(cutoff="ks"), fingerprint="sha256:other")
    comparison = pair_layers(a, b)
    assert comparison.table.loc[0, "status"] == "not comparable"
    assert comparison.table.loc[0, "reason"] == "cutoff median in A, ks in B: different quantities"
    assert "The runs differ in cutoff: median in A, ks in B." in comparison.warnings


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_weights_and_their_change_from_a_base_are_never_subtracted(named: bool, swap: bool) -> None:
    a = run_of([ok_layer("w", None, "linear")])
    # A base that was given as an object has no text: the column alone tells.
    layer = dataclasses.replace(a.layers[0], relative_change=math.nan if named else 0.1)
    b = run_of([layer], base="base" if named else "", fingerprint="sha256:other")
    runs = (b, a) if swap else (a, b)
    comparison = pair_layers(*runs)
    [row] = comparison.table.to_dict("records")
    of = ("the change from a base", "the weights")
    before, now = of if swap else of[::-1]
    assert row["status"] == "not comparable"
    assert row["reason"] == f"{before} in A, {now} in B: different quantities"
    assert math.isnan(row["alpha_change"])
    assert not comparison.moved(5).size


def test_changes_from_several_bases_and_runs_of_several_versions_are_told() -> None:
    layer = ok_layer("w", None, "linear", relative_change=0.1)
    a, b = (
        run_of([layer], base=base, fingerprint=base, versions={"spectail": version, "torch": base})
        for base, version in (("one", "0.1"), ("two", "0.2"))
    )
    comparison = pair_layers(a, b)
    assert comparison.table["status"].tolist() == ["paired"]
    assert comparison.warnings == (
        "The runs measured the change from different bases: one in A, two in B.",
        "The runs are of different versions of spectail: 0.1 in A, 0.2 in B.",
    )


def test_warnings_name_every_difference() -> None:
    a = run_of([ok_layer("w", None, "linear"), ok_layer("only", None, "linear")])
    b = run_of([ok_layer("w", None, "linear")], spec=Spec(placement="grid:3"), window=32)
    text = " ".join(pair_layers(a, b).warnings)
    for words in (
        "placement: tile in A, grid:3 in B",
        "(64 in A, 32 in B)",
        "the same weights",
        "1 only in A",
    ):
        assert words in text
    assert pair_layers(a, shifted(a, lambda i: 0.1)).warnings == ()


def test_moved_is_sorted_by_size_and_leaves_out_what_did_not_move() -> None:
    a = build_transformer(2)
    b = shifted(a, lambda i: (0.0, 0.3, -0.5)[i % 3])
    moved = pair_layers(a, b).moved(1000)
    sizes = moved["alpha_change"].abs().tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0.2
    assert len(pair_layers(a, b).moved(3)) == 3
    assert len(pair_layers(a, a).moved(3)) == 0


def test_no_shared_layer_is_one_clear_error() -> None:
    a, b = (run_of([ok_layer(name, None, "linear")]) for name in ("x", "y"))
    with pytest.raises(
        RunError, match=r"the two analyses share no layer: A has 'x' and others, B has 'y'"
    ) as caught:
        pair_layers(a, b)
    assert "\n" not in str(caught.value)


def page_data(page: Any) -> Any:
    return json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])


def test_the_page_holds_the_table_and_says_what_moved() -> None:
    a = build_transformer(3)
    b = shifted(a, lambda i: 0.5 if i == 4 else 0.001)
    comparison = pair_layers(a, b)
    page = compare_html(comparison, a, b)
    table = page_data(page)["table"]
    assert table["columns"] == list(comparison.table.columns)
    assert [row[0] for row in table["rows"]] == comparison.table["name"].tolist()
    assert "0 have a clearly heavier tail in B and 1 a clearly lighter one" in page
    assert (
        f"more than {threshold(len(comparison.table.dropna(subset=['z']))):.1f} combined errors"
        in page
    )
    assert f"<code>{a.layers[4].name}</code> (+0.500)" in page


def test_the_page_of_two_runs_that_share_only_failures() -> None:
    a = run_of([missing("w", 0, "linear", "failed", "NaN")])
    page = compare_html(pair_layers(a, a), a, a)
    assert "no layer was measured in the same window in both runs" in page


def test_hostile_names_stay_text(hostile: Results) -> None:
    page = compare_html(pair_layers(hostile, hostile), hostile, hostile)
    assert page.count("</script>") == 3
    assert "<img" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
