"""From numbers of healthy and changed layers to how well each number finds the changed one.

A layer is scored by its robust z: the distance from the median, in units of 1.4826 median
absolute deviations, either within its own kind of layer or over all layers of the model.
The area under the ROC curve (AUC) is the chance that a faulty layer scores higher than a
healthy one of the same model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.diagnosis.faults import CUTS
from experiments.diagnosis.numbers import NUMBERS, OF_WINDOWS, Number

Array: TypeAlias = NDArray[np.float64]
VIEWS = ("by kind", "all kinds")
SIDES = ("two-sided", "one-sided")
MIN_KIND = 5
"""A median over fewer layers of one kind says little: such layers are
left out of the view by kind."""
FOUND = (80, 95)
"""Shares of the faults, in per cent, at whose thresholds false alarms are counted."""
UNUSUAL = 1.5
"""A layer has an unusual shape if its aspect ratio differs from the model's
median by more than this factor."""
MAD_TO_SD = 1.4826
"""The standard deviation of a normal variable over its median absolute deviation."""


@dataclass(frozen=True)
class Measured:
    """What was measured on one model: numbers by state and layer (the index in ``names``)."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    healthy: Mapping[str, Array]
    """Number -> values of all healthy layers at the common window."""
    at_window: Mapping[int, Mapping[str, Array]]
    """Window -> number -> values of the healthy layers in the windows that a cut layer imposes."""
    states: Mapping[str, Mapping[int, Mapping[str, float]]]
    """Changed state -> layer -> number -> value."""
    cut_windows: Mapping[str, Mapping[int, int]]
    """State of CUTS -> layer -> the window of the run."""


def robust_z(values: Array, groups: Sequence[str] | NDArray[np.str_], least: int = 1) -> Array:
    """Distance from the median of the group, in median absolute deviations as standard deviations.

    NaN for values that are not finite and in groups of fewer than ``least`` finite values. Where
    more than half of a group are equal, every other value is infinitely far.
    """
    labels = np.asarray(groups)
    found = np.full(values.shape, math.nan)
    for label in np.unique(labels):
        chosen = np.flatnonzero((labels == label) & np.isfinite(values))
        if chosen.size < least:
            continue
        away = values[chosen] - np.median(values[chosen])
        scale = MAD_TO_SD * float(np.median(np.abs(away)))
        with np.errstate(divide="ignore", invalid="ignore"):
            found[chosen] = np.where(away == 0, 0.0, away / scale)
    return found


def sided(z: Array, number: Number) -> dict[str, Array]:
    """Scores that grow with suspicion: on both sides, and on the side that theory expects."""
    return {"two-sided": np.abs(z), "one-sided": number.worse * z}


def auc(bad: float, healthy: Array) -> float:
    """Share of the healthy scores below ``bad``, equal ones counted half.

    One half if there is no score.
    """
    known = healthy[~np.isnan(healthy)]
    if math.isnan(bad) or not known.size:
        return 0.5
    return float((known < bad).mean() + 0.5 * (known == bad).mean())


def view_groups(model: Measured, view: str) -> tuple[Sequence[str], int]:
    """The groups whose medians are compared with, and the least size of a group."""
    return (model.kinds, MIN_KIND) if view == "by kind" else ([""] * len(model.kinds), 1)


def scale_of(values: Array, number: Number) -> Array:
    """The values, or their decimal logarithms."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values) if number.log else values


def scores_of(model: Measured, view: str, base: Array, number: Number) -> dict[str, Array]:
    """Scores of all layers by side, from the layers' values ``base``."""
    groups, least = view_groups(model, view)
    return sided(robust_z(scale_of(base, number), groups, least), number)


def eligible(model: Measured, layer: int, view: str) -> bool:
    """Whether the layer's kind has enough layers for the view."""
    return view != "by kind" or Counter(model.kinds)[model.kinds[layer]] >= MIN_KIND


def planted_scores(
    model: Measured, state: str, view: str, name: str
) -> Iterator[tuple[int, dict[str, tuple[float, float]]]]:
    """Each changed layer with its score and its AUC by side.

    The medians see the changed layer, as a user's do.
    """
    number, (groups, least) = NUMBERS[name], view_groups(model, view)
    labels = np.asarray(groups)
    clean: dict[int, Array] = {}
    for layer, values in model.states[state].items():
        if not eligible(model, layer, view):
            continue
        cut = state in CUTS and name in OF_WINDOWS
        window = model.cut_windows[state][layer] if cut else 0
        base = scale_of(model.at_window.get(window, model.healthy)[name], number)
        if window not in clean:
            clean[window] = robust_z(base, groups, least)
        # Only the group of the changed layer has another median.
        mine = np.flatnonzero(labels == labels[layer])
        changed = base[mine]
        changed[mine == layer] = scale_of(np.array(values[name]), number)
        z = clean[window].copy()
        z[mine] = robust_z(changed, labels[mine])
        yield (
            layer,
            {
                side: (float(score[layer]), auc(float(score[layer]), np.delete(score, layer)))
                for side, score in sided(z, number).items()
            },
        )


def score_model(model: Measured, faults: Sequence[str]) -> dict[str, Any]:
    """All that the tables need of one model: AUCs by state and by kind, and false alarms.

    ``aucs``: view -> side -> number -> state -> mean over planted layers. ``kinds``: the same
    with kinds, mean over faults and layers. ``alarms``: view -> side -> number -> share of
    faults found -> group of healthy layers -> share flagged, mean over the faults.
    """
    found: dict[str, Any] = {"aucs": {}, "kinds": {}, "alarms": {}}
    for view in VIEWS:
        for what in found.values():
            what[view] = {side: {} for side in SIDES}
        for name in NUMBERS:
            planted = {s: dict(planted_scores(model, s, view, name)) for s in model.states}
            clean = scores_of(model, view, model.healthy[name], NUMBERS[name])
            for side in SIDES:
                layers = {
                    state: {i: score[side] for i, score in rows.items()}
                    for state, rows in planted.items()
                    if rows
                }
                found["aucs"][view][side][name] = {
                    state: mean([area for _, area in rows.values()])
                    for state, rows in layers.items()
                }
                found["kinds"][view][side][name] = _by_kind(model, layers, faults)
                found["alarms"][view][side][name] = _alarms(model, layers, clean[side], faults)
    return found


def threshold(scores: Sequence[float], share: int) -> float:
    """The highest score that at least ``share`` per cent of the faults reach.

    A fault without a score reaches none.
    """
    ranked = sorted((-math.inf if math.isnan(score) else score for score in scores), reverse=True)
    return ranked[math.ceil(len(ranked) * share / 100) - 1]


def unusual(model: Measured) -> NDArray[np.bool_]:
    """Which layers have an unusual aspect ratio.

    More than UNUSUAL times the median one, or less than one in so many.
    """
    ratios = np.array([max(shape) / min(shape) for shape in model.shapes])
    away = ratios / np.median(ratios)
    odd: NDArray[np.bool_] = np.maximum(away, 1 / away) > UNUSUAL
    return odd


def mean(values: Sequence[float]) -> float | None:
    """The mean, to four decimals; None of nothing."""
    return round(float(np.mean(values)), 4) if values else None


Layers: TypeAlias = Mapping[str, Mapping[int, tuple[float, float]]]
"""State -> layer -> score and AUC."""


def _by_kind(model: Measured, layers: Layers, faults: Sequence[str]) -> dict[str, float | None]:
    areas: dict[str, list[float]] = {}
    for state in faults:
        for i, (_, area) in layers.get(state, {}).items():
            areas.setdefault(model.kinds[i], []).append(area)
    return {kind: mean(values) for kind, values in areas.items()}


def _alarms(
    model: Measured, layers: Layers, clean: Array, faults: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Shares of healthy layers flagged at each fault's threshold, mean over the faults."""
    odd = unusual(model)
    known = ~np.isnan(clean)
    groups = {"usual shape": clean[known & ~odd], "unusual shape": clean[known & odd]}
    groups |= {cut: np.array([score for score, _ in layers.get(cut, {}).values()]) for cut in CUTS}
    found: dict[str, dict[str, float | None]] = {}
    for share in FOUND:
        limits = [
            threshold([score for score, _ in layers[state].values()], share)
            for state in faults
            if state in layers
        ]
        found[str(share)] = {
            group: mean([float((scores >= limit).mean()) for limit in limits])
            for group, scores in groups.items()
            if scores.size
        }
    return found


def trained_aucs(
    rows: Mapping[str, Mapping[str, float]], kinds: Sequence[str], slow: Sequence[str]
) -> dict[str, Any]:
    """View -> side -> number -> AUC of the layers in ``slow``.

    They are compared with the others of the same run.
    """
    names = list(rows)
    bad = [names.index(name) for name in slow]
    model = Measured(tuple(names), tuple(kinds), (), {}, {}, {}, {})
    found: dict[str, Any] = {}
    for view in VIEWS:
        found[view] = {side: {} for side in SIDES}
        for name, number in NUMBERS.items():
            values = np.array([_number(rows[layer][name]) for layer in names])
            for side, score in scores_of(model, view, values, number).items():
                rest = np.delete(score, bad)
                areas = [auc(float(score[i]), rest) for i in bad if eligible(model, i, view)]
                found[view][side][name] = mean(areas)
    return found


def _number(value: float | None) -> float:
    """JSON has no NaN: it comes back as None."""
    return math.nan if value is None else value
