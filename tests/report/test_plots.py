"""The figures: each draws the numbers of its records and nothing else."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate

from spectail.core.cutoffs.base import Cutoff
from spectail.core.cutoffs.ks import KSMinimum
from spectail.core.cutoffs.median import Median
from spectail.core.cutoffs.top import TopFraction
from spectail.core.null import marchenko_pastur_alpha
from spectail.core.tails import fit_from
from spectail.errors import SpectailError
from spectail.report.curves import null_shape, spectrum_curves
from spectail.report.depth import depth_of
from spectail.report.heatmap import block_kind_heatmap
from spectail.report.plots import (
    alpha_by_depth,
    farms_against_full,
)
from spectail.report.spectrum_plot import layer_spectrum
from spectail.report.theme import kind_styles
from spectail.results.records import Results, Spectrum

from .conftest import HOSTILE, NULL, ok_layer, run_of, spectrum_of


def traces(fig: Any, meta: Any) -> list[Any]:
    return [trace for trace in fig.data if trace.meta == meta]


def test_depth_draws_every_measured_layer_once_at_its_block(transformer: Results) -> None:
    fig = alpha_by_depth(transformer)
    drawn = [
        (i, x, y)
        for t in traces(fig, "layers") + traces(fig, "not comparable")
        for i, x, y in zip(t.customdata, t.x, t.y)
    ]
    measured = [i for i, layer in enumerate(transformer.layers) if layer.status == "ok"]
    assert sorted(i for i, _, _ in drawn) == measured
    for i, x, y in drawn:
        layer = transformer.layers[i]
        assert y == layer.alpha
        assert x == layer.block if layer.block is not None else x in (-1, 12, 13, 14, 15)


def test_depth_error_bars_are_the_standard_errors_and_missing_ones_are_none(
    transformer: Results,
) -> None:
    fig = alpha_by_depth(transformer)
    [q] = [t for t in traces(fig, "layers") if t.name == "q"]
    assert list(q.error_y.array) == [0.02] * 12
    [opened] = traces(fig, "not comparable")
    assert list(opened.error_y.array) == [None]
    assert opened.marker.symbol.endswith("-open")
    assert "not comparable" in opened.hovertext[0]


def test_depth_null_is_a_band_of_two_standard_deviations(transformer: Results) -> None:
    low, high, middle = [t for t in alpha_by_depth(transformer).data if t.legendgroup == "null"]
    assert np.allclose(middle.y, NULL)
    assert np.allclose(low.y, NULL - 0.016)
    assert np.allclose(high.y, NULL + 0.016)
    assert list(low.x) == list(high.x) == list(middle.x)
    assert (low.x[0], low.x[-1]) == (-1.5, 15.5)
    assert len(low.x) == len(low.y)


def test_depth_null_without_a_spread_is_a_line(single: Results) -> None:
    bare = run_of([dataclasses.replace(single.layers[0], alpha_null_sd=math.nan)])
    assert len([t for t in alpha_by_depth(bare).data if t.legendgroup == "null"]) == 1


def test_depth_joins_means_where_a_block_holds_several_of_a_kind(huge: Results) -> None:
    fig = alpha_by_depth(huge)
    [line] = [t for t in fig.data if t.legendgroup == "gate" and t.mode == "lines"]
    alphas = [x.alpha for x in huge.layers if x.kind == "gate" and x.block == 3]
    assert line.y[3] == pytest.approx(np.mean(alphas))


@pytest.mark.parametrize("figure", [alpha_by_depth, block_kind_heatmap, farms_against_full])
def test_nothing_to_draw_is_said(figure: Any, failed: Results) -> None:
    fig = figure(failed)
    assert not fig.data
    assert fig.layout.annotations[0].text.startswith("no ")


def test_heatmap_cells_are_means_over_block_and_kind(huge: Results) -> None:
    fig = block_kind_heatmap(huge)
    z = np.array(fig.data[0].z, dtype=float)
    kinds = list(fig.layout.yaxis.ticktext)
    assert z.shape == (7, 40)
    alphas = [x.alpha for x in huge.layers if x.kind == "up" and x.block == 11]
    assert z[kinds.index("up"), 11] == pytest.approx(np.mean(alphas))
    assert "mean alpha" in fig.data[0].hovertext[kinds.index("up")][11]


def test_heatmap_leaves_cells_open_that_are_not_comparable() -> None:
    layers = [
        ok_layer(f"layers.{b}.{k}", b, k, comparable=k == "q") for b in range(2) for k in ("q", "v")
    ]
    fig = block_kind_heatmap(run_of(layers))
    assert [[v is None for v in row] for row in fig.data[0].z] == [[False, False], [True, True]]
    assert list(zip(fig.data[1].x, fig.data[1].y)) == [(0, 1), (1, 1)]


def test_full_against_windows(transformer: Results) -> None:
    fig = farms_against_full(transformer)
    for trace in traces(fig, "layers"):
        for i, x, y in zip(trace.customdata, trace.x, trace.y):
            assert (x, y) == (transformer.layers[i].alpha_full, transformer.layers[i].alpha)


def test_a_power_law_is_drawn_from_xmin_to_the_largest(transformer: Results) -> None:
    layer = transformer.layers[1]
    assert layer.spectrum is not None
    curves = spectrum_curves(layer, layer.spectrum, KSMinimum())
    edges, density = curves["histogram"]
    assert np.sum(density[:-1] * np.diff(np.log10(edges))) == pytest.approx(1)
    fit = curves["fit"]
    tail = integrate.trapezoid(fit.y, np.log10(fit.x))
    expected = (
        layer.n_tail
        / sum(layer.spectrum.counts)
        * (1 - (fit.x[-1] / layer.xmin) ** (1 - layer.alpha))
    )
    assert tail == pytest.approx(expected, rel=2e-3)
    assert curves["fit survival"].y[0] == pytest.approx(layer.n_tail / sum(layer.spectrum.counts))
    assert curves["survival"].x[0] == layer.spectrum.top[0][1]
    assert curves["xmin"].x.tolist() == [layer.xmin, layer.xmin]
    assert curves["null slope survival"].x.size == 0


@pytest.mark.parametrize(("cutoff", "share"), [(Median(), 0.5), (TopFraction(0.25), 0.25)])
def test_a_cutoff_without_a_power_law_shows_its_part_and_its_slope(
    cutoff: Cutoff, share: float
) -> None:
    rng = np.random.default_rng(1)
    eigenvalues = np.sort(rng.lognormal(0, 1, 800))
    fit = fit_from(eigenvalues, round(800 * (1 - share)))
    layer = ok_layer(
        "w", None, "linear", spectrum=spectrum_of(eigenvalues), alpha=fit.alpha, xmin=fit.xmin,
        n_tail=fit.n_tail, n_eigenvalues=800,
        alpha_null=marchenko_pastur_alpha(1.0, fraction=share),
    )  # fmt: skip
    assert layer.spectrum is not None
    curves = spectrum_curves(layer, layer.spectrum, cutoff)
    assert curves["fit"].x.size == 0
    # From xmin to the geometric mean of the part, which is what alpha says.
    mean = math.exp(np.log(eigenvalues[-fit.n_tail :]).mean())
    assert curves["fit survival"].x == pytest.approx([fit.xmin, mean])
    assert curves["fit survival"].y == pytest.approx([share, share / math.e])
    part, histogram = curves["part"], curves["histogram"]
    area = np.sum(part.y[:-1] * np.diff(np.log10(part.x)))
    assert area == pytest.approx(share, abs=0.02)
    assert part.x[-1] == histogram.x[-1]
    # The null starts at its own quantile of the same share.
    null = curves["null slope survival"]
    at = np.interp(null.x[0], curves["null survival"].x, curves["null survival"].y)
    assert at == pytest.approx(share, abs=0.02)
    slope = np.diff(np.log(null.y)) / np.diff(np.log(null.x))
    assert 1 - slope[0] == pytest.approx(layer.alpha_null)


def test_null_curve_fits_the_histogram_of_a_random_layer() -> None:
    layer = ok_layer("w", None, "linear", 0.0, seed=3)
    assert layer.spectrum is not None
    curves = spectrum_curves(layer, layer.spectrum, Median())
    at = np.array([rank for rank, _ in layer.spectrum.top]) / 576
    below_null = np.interp(
        curves["survival"].x, curves["null survival"].x, curves["null survival"].y
    )
    assert np.max(np.abs(below_null - at)) < 0.03


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1])
def test_null_shape_is_a_density_whose_survival_matches(ratio: float) -> None:
    shape = null_shape(ratio)
    steps = (shape.density[1:] + shape.density[:-1]) / 2 * np.diff(shape.log10)
    assert steps.sum() == pytest.approx(1, abs=0.01)
    assert np.allclose(1 - np.cumsum(steps), shape.survival[1:], atol=0.01)
    median = np.interp(-0.5, -shape.survival, shape.log10)
    above = shape.log10 >= median
    mean_log = (
        integrate.trapezoid((shape.density * (shape.log10 - median))[above], shape.log10[above])
        * math.log(10)
        / 0.5
    )
    assert 1 + 1 / mean_log == pytest.approx(marchenko_pastur_alpha(ratio, fraction=0.5), rel=0.02)


def test_layer_spectrum_says_what_is_missing(transformer: Results) -> None:
    with pytest.raises(SpectailError, match=r"no layer is called 'lm_hed'; did you mean lm_head\?"):
        layer_spectrum(transformer, "lm_hed")
    with pytest.raises(
        SpectailError, match=r"has no spectrum to draw \(status skipped: short side 8 is below 16\)"
    ):
        layer_spectrum(transformer, "model.layers.0.router")


def test_degenerate_spectra_draw() -> None:
    one = Spectrum((0.0, 0.0), (5,), ((1, 1.0),))
    layer = ok_layer(
        "w", None, "linear", spectrum=one, alpha=math.nan, xmin=math.nan, weight_var=0.0
    )
    curves = spectrum_curves(layer, one, Median())
    assert curves["fit"].x.size == curves["null"].x.size == 0
    assert np.isfinite(curves["histogram"].y).all()
    layer_spectrum(run_of([layer]), "w")


def test_hostile_names_are_text_in_every_figure(hostile: Results) -> None:
    for fig in (alpha_by_depth(hostile), layer_spectrum(hostile, HOSTILE[0])):
        text = fig.to_json()
        for tag in ("<script", "</script", "<img", "<b>bold"):
            assert tag not in text.replace("\\u003c", "<")


def test_stacks_with_equal_indices_are_different_places() -> None:
    depth = depth_of(
        [
            ("encoder.block.0.q", 0),
            ("encoder.block.1.q", 1),
            ("decoder.block.0.q", 0),
            ("head", None),
        ]
    )
    assert depth.places == (0, 1, 2, 3)
    assert depth.labels == {0: "block.0", 1: "block.1", 2: "block.0", 3: "head"}
    assert depth.ticks()[0] == [0, 1, 2]
    assert depth.names() == [(3, "head")]


def test_one_stack_keeps_its_indices_and_what_is_outside_goes_around_it() -> None:
    depth = depth_of(
        [("embed", None), ("layers.4.q", 4), ("layers.6.q", 6), ("layers.6.k", 6), ("head", None)]
    )
    assert depth.places == (3, 4, 6, 6, 7)
    assert depth.ticks()[0] == [4, 6]


def test_known_kinds_look_the_same_everywhere_and_all_differ() -> None:
    few, many = (
        kind_styles(["v", "conv"]),
        kind_styles(["conv", "q", "k", "v", "o", "gate", "up", "down", "head"]),
    )
    assert few["v"] == many["v"]
    assert list(many) == ["q", "k", "v", "o", "gate", "up", "down", "conv", "head"]
    assert len(set(many.values())) == 9
