"""The words: what stands out is named, what the errors do not carry is not claimed."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from spectail.core.spec import Spec
from spectail.report.evidence import (
    depth_trend,
    kind_means,
    odd_ones,
    sort_run,
    threshold,
)
from spectail.report.words import findings, listed, titled_findings
from spectail.results.records import Results, null_gap

from .conftest import NULL, build_transformer, ok_layer, run_of


def by_topic(results: Any) -> dict[str, Any]:
    return {finding.topic: finding.text for finding in titled_findings(results)}


def test_scope_counts_measured_skipped_and_failed(transformer: Results) -> None:
    text = by_topic(transformer)["Scope"]
    assert "89 of 102 layers measured" in text
    assert "12 skipped (short side 8 is below 16)" in text
    assert "1 failed (weights hold NaN)" in text
    assert "25 parameters with fewer than two dimensions" in text


def test_range_names_the_extremes_with_their_errors(transformer: Results) -> None:
    text = by_topic(transformer)["Range"]
    ranked = sort_run(transformer).ranked
    for layer in (ranked[0], ranked[-1]):
        assert f"`{layer.name}` ({layer.alpha:.3f} ± 0.020)" in text
    assert "combined standard errors apart" in text


def test_a_random_model_is_called_random_and_nothing_else(random_model: Results) -> None:
    topics = by_topic(random_model)
    assert "40 layers cannot be told from a random matrix" in topics["Random matrix"]
    assert "clearly below" not in topics["Random matrix"]
    assert "do not rank single layers" in topics["Range"]
    assert "do not differ beyond their errors" in topics["Kinds"]
    assert "open whether alpha follows depth" in topics["Depth"]
    assert "Odd ones" not in topics


@pytest.mark.parametrize(("gap", "alike"), [(0.039, True), (0.05, False), (-0.05, False)])
def test_the_bar_against_the_null_is_two_combined_errors(gap: float, alike: bool) -> None:
    layer = ok_layer("w", None, "linear", alpha=NULL + gap, alpha_se=0.02, alpha_null_sd=0.0)
    text = by_topic(run_of([layer]))["Random matrix"]
    assert ("cannot be told from a random matrix" in text) == alike
    assert ("lie clearly below" in text) == (gap < -0.04)
    assert ("clearly above" in text) == (gap > 0.04)
    assert null_gap(layer) == pytest.approx(gap / 0.02)


def test_kinds_are_grouped_by_what_their_errors_tell_apart(transformer: Results) -> None:
    text = by_topic(transformer)["Kinds"]
    heavy, light = text.split("lightest in")
    means = {x.kind: x for x in kind_means(sort_run(transformer).ranked)}
    assert f"k ({means['k'].mean:.3f}" in heavy
    assert f"q ({means['q'].mean:.3f}" in heavy
    assert f"down ({means['down'].mean:.3f}" in light
    assert "conv" not in means


def test_depth_trend_is_that_of_the_blocks(transformer: Results) -> None:
    trend = depth_trend(sort_run(transformer).ranked)
    assert trend is not None
    assert trend.correlation.rho < -0.8
    assert trend.correlation.n_blocks == 12
    assert "heavier with depth" in by_topic(transformer)["Depth"]
    assert depth_trend(build_transformer(3).layers[:20]) is None


def test_an_odd_layer_is_named_and_ordinary_ones_are_not() -> None:
    alphas = [1.80 + 0.01 * math.sin(i) for i in range(20)]
    layers = [
        ok_layer(f"layers.{i}.q", i, "q", alpha=alpha, alpha_se=0.01)
        for i, alpha in enumerate(alphas)
    ]
    assert odd_ones(layers) == []
    layers[7] = dataclasses.replace(layers[7], alpha=1.4)
    [(odd, middle)] = odd_ones(layers)
    assert odd.name == "layers.7.q"
    assert middle == pytest.approx(1.8, abs=0.01)
    assert "`layers.7.q` (1.400 ± 0.010), median of q 1.799" in by_topic(run_of(layers))["Odd ones"]


def test_without_error_bars_nothing_is_called_different(cnn: Results) -> None:
    bare = run_of([dataclasses.replace(x, alpha_se=math.nan) for x in cnn.layers])
    topics = by_topic(bare)
    assert "it is open whether they differ" in topics["Range"]
    assert "it is open which layers differ" in topics["Random matrix"]
    assert "No measured layer has an error bar" in topics["Not measured"]
    assert "Depth" not in topics


@pytest.mark.parametrize(
    ("cutoff", "words"),
    [
        (
            "median",
            (
                "no claim of a power law. WeightWatcher's thresholds of 2 and 6 belong to "
                "another cutoff"
            ),
        ),
        ("peak", "no claim of a power law"),
        ("ks", "only where the tail verdict in the table supports a power law"),
        ("top:0.1", "whether it is a power law was not tested"),
        ("fixed:1.0", "whether it is a power law was not tested"),
    ],
)
def test_the_reading_follows_the_cutoff(cutoff: str, words: str, single: Results) -> None:
    run = dataclasses.replace(single.run, spec=Spec(cutoff=cutoff))
    text = by_topic(dataclasses.replace(single, run=run))["Reading"]
    assert words in text
    assert "hypothesis" in text


def ks_run(*judged: Any) -> Any:
    names = ("ks_p", "lognormal_ratio", "exponential_ratio")
    layers = [
        ok_layer(f"w{i}", None, "linear", **dict(zip(names, x, strict=True)))
        for i, x in enumerate(judged)
    ]
    return run_of([*layers, ok_layer("few", None, "linear")], spec=Spec(cutoff="ks"))


def test_power_laws_are_counted_where_the_cutoff_asks(single: Results) -> None:
    text = by_topic(ks_run((0.3, -1.0, 4.0), (0.1, -3.0, 0.5), (1e-9, -9.0, -1.7)))["Power law"]
    assert text.startswith(
        "3 of 4 tails could be judged. A power law is ruled out in 2 and not ruled out in 1; "
        "a lognormal fits better in 2; an exponential fits better in 1."
    )
    assert "no tail was large enough" in by_topic(ks_run())["Power law"]
    assert "Power law" not in by_topic(single)


def test_not_comparable_layers_are_named(transformer: Results) -> None:
    text = by_topic(transformer)["Not comparable"]
    assert "`model.head.conv2` had windows of 32 × 32" in text


def test_shape_bias_says_how_far_the_full_spectrum_is(transformer: Results) -> None:
    both = [x for x in transformer.layers if math.isfinite(x.alpha_full)]
    largest = max(abs(x.alpha_full - x.alpha) for x in both)
    text = by_topic(transformer)["Shape bias"]
    assert f"up to {largest:.3f}" in text
    assert "goes with how elongated the matrix is" in text
    assert "Shape bias" not in by_topic(build_transformer(2))


def test_all_failed_has_scope_and_limits_only(failed: Results) -> None:
    assert [*by_topic(failed)] == ["Scope", "Not measured"]
    assert findings(failed)[0].startswith(
        "Scope: 0 of 3 layers measured; 3 failed (weights hold Inf)"
    )


@pytest.mark.parametrize("case", ["single", "cnn", "hostile", "huge"])
def test_every_shape_of_run_gives_finite_words(case: str, request: pytest.FixtureRequest) -> None:
    text = " ".join(findings(request.getfixturevalue(case)))
    assert "nan" not in text
    assert "inf" not in text.split()


def test_rank_deficient_layers_are_named(single: Results) -> None:
    layer = dataclasses.replace(single.layers[0], n_zero=400)
    assert "numerical zeros in `weight`" in by_topic(run_of([layer]))["Not measured"]


def test_the_bar_rises_with_the_number_of_comparisons() -> None:
    bars = [threshold(n) for n in (1, 10, 1000, 100_000)]
    assert bars[0] == 2
    assert np.all(np.diff(bars) > 0)
    assert bars[1] == pytest.approx(2.807, abs=1e-3)


def test_listed_names_a_few_and_counts_the_rest() -> None:
    assert listed(["a"]) == "`a`"
    assert listed(["a", "b"]) == "`a` and `b`"
    assert listed([*"abcdef"]) == "`a`, `b`, `c`, `d` and 2 more"


def trend_of(alphas: Any, error: float = 0.01) -> Any:
    """The words on depth of blocks with these alphas."""
    layers = [
        ok_layer(f"layers.{i}.q", i, "q", alpha=alpha, alpha_se=error)
        for i, alpha in enumerate(alphas)
    ]
    return by_topic(run_of(layers)).get("Depth")


@pytest.mark.parametrize(
    ("alphas", "error", "says", "never"),
    [
        ([2.0 + 0.1 * i for i in range(12)], 0.01,
         ("Alpha rises", "0.800 above", "lighter", "goes by position"), "open"),
        ([2.0 - 0.1 * i for i in range(12)], 0.01,
         ("Alpha falls", "0.800 below", "heavier", "goes by position"), "open"),
        ([2.0 + 0.001 * i for i in range(12)], 0.1,
         ("Alpha rises", "within the errors"), "lighter"),
        # In order of rank, and one early block far above all others.
        ([2.0, 9.0, *(2.0 + 0.01 * i for i in range(2, 14))], 0.01,
         ("Alpha rises", "below the first all the same"), "heavier"),
        ([2.0, 2.4, 2.1, 2.3, 2.2, 2.05, 2.35, 2.0], 0.01,
         ("It is open whether alpha follows depth",), "third"),
        ([2.0, 2.1, 2.2, 2.3], 0.01, ("It is open", "rank correlation 1.00", "4 blocks"), "third"),
    ],
)  # fmt: skip
def test_depth_is_told_with_its_interval_and_its_size(
    alphas: list[Any], error: float, says: tuple[str, ...], never: str
) -> None:
    text = trend_of(alphas, error)
    for words in says:
        assert words in text, text
    assert never not in text


@pytest.mark.parametrize("alphas", [[2.0, 2.1, 2.2], [2.0] * 8])
def test_too_few_or_equal_blocks_have_no_words_on_depth(alphas: Any) -> None:
    assert trend_of(alphas) is None
