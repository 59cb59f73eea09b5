"""A run in words: what stands out and what it may mean, and no claim without evidence.

A difference below two combined standard errors is not called a difference. If the largest of many
differences is picked, it must be larger (Bonferroni's correction). Layer names stand between
backticks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spectail.basics.texts import coded, joined, plural, with_error
from spectail.core.goodness import LEVEL, two_sided
from spectail.report.evidence import (
    CLEAR,
    KindMean,
    Run,
    Trend,
    depth_trend,
    kind_means,
    odd_ones,
    sort_run,
    threshold,
)
from spectail.report.theme import TIMES
from spectail.results.depth import STRONG, rank_correlation
from spectail.results.records import LayerRecord, Results, null_gap

STANDS_OUT = ("Range", "Random matrix", "Power law", "Kinds", "Depth", "Change", "Odd ones")
"""Topics of the paragraphs that a summary repeats."""


class Finding(NamedTuple):
    """One paragraph and its topic."""

    topic: str
    text: str


def findings(results: Results) -> list[str]:
    """Describe a run in short paragraphs, from what was measured to what cannot be concluded."""
    return [f"{finding.topic}: {finding.text}" for finding in titled_findings(results)]


def standing_out(results: Results) -> list[str]:
    """Return one sentence or two on each thing that stands out, without Markdown."""
    found = {finding.topic: finding.text for finding in titled_findings(results)}
    # The paragraphs of the report without what can be said of every run.
    return [f"{topic}: {found[topic].replace('`', '')}" for topic in STANDS_OUT if topic in found]


def titled_findings(results: Results) -> list[Finding]:
    """Return the paragraphs of ``findings`` with topic and text apart."""
    run = sort_run(results)
    parts: list[Finding | None] = [_scope(run), _changed(run)]
    if run.ok:
        parts += [
            _range(run),
            _against_null(run),
            _power_law(run),
            _kinds(run),
            _depth(run),
            _odd(run),
            _full(run),
        ]
        parts += [_meaning(run), _not_comparable(run)]
    parts.append(_not_measured(run))
    return [part for part in parts if part is not None]


def listed(names: Sequence[str], most: int = 4) -> str:
    """List at most ``most`` names between backticks, and count the rest."""
    shown = [coded(name) for name in names[:most]]
    rest = len(names) - len(shown)
    if rest:
        shown.append(f"{rest:,} more")
    return joined(shown)


def _alpha(layer: LayerRecord) -> str:
    """Write a layer's name, alpha and error."""
    return f"{coded(layer.name)} ({with_error(layer.alpha, layer.alpha_se)})"


def _scope(run: Run) -> Finding:
    """Say how many layers were measured, and why the others were not."""
    layers = run.results.layers
    text = f"{len(run.ok):,} of {plural(len(layers), 'layer')} measured"
    for status, word in (("skipped", "skipped"), ("failed", "failed")):
        reasons: dict[str, int] = {}
        for layer in layers:
            if layer.status == status:
                reasons[layer.reason or "no reason given"] = (
                    reasons.get(layer.reason or "no reason given", 0) + 1
                )
        if reasons:
            # One reason is enough in words; the table has all of them.
            common = max(reasons, key=lambda reason: reasons[reason])
            why = common if len(reasons) == 1 else f"mostly: {common}"
            text += f"; {run.count(status):,} {word} ({why})"
    if run.results.run.n_vectors:
        vectors = plural(run.results.run.n_vectors, "parameter")
        text += f"; {vectors} with fewer than two dimensions have no row"
    return Finding("Scope", f"{text}.")


def _range(run: Run) -> Finding | None:
    """Give the lowest and the highest alpha, and say whether they differ beyond their errors."""
    if not run.ranked:
        return None
    low, high = run.ranked[0], run.ranked[-1]
    if len(run.ranked) == 1:
        return Finding("Range", f"the only comparable layer is {_alpha(low)}.")
    middle = float(np.median([layer.alpha for layer in run.ranked]))
    text = f"alpha runs from {low.alpha:.3f} to {high.alpha:.3f}, with a median of {middle:.3f}. "
    n = len(run.ranked)
    # NaN if one of the two has no error bar.
    error = math.hypot(low.alpha_se, high.alpha_se)
    if not math.isfinite(error):
        return Finding(
            "Range",
            f"{text}The lowest is {_alpha(low)}, the highest {_alpha(high)}; "
            "without error bars on both it is open whether they differ.",
        )
    gap = (high.alpha - low.alpha) / error if error > 0 else math.inf
    # Lowest and highest are the most different of all pairs.
    if gap > threshold(n * (n - 1) // 2):
        text += f"The heaviest tail is that of {_alpha(low)}, the lightest that of {_alpha(high)}: "
        text += f"{gap:.0f} combined standard errors apart."
    else:
        text += f"Lowest is {_alpha(low)}, highest {_alpha(high)}, but picked from {n:,} layers "
        text += f"a gap of {gap:.1f} combined standard errors is no more than chance gives: "
        text += "do not rank single layers."
    return Finding("Range", text)


def _against_null(run: Run) -> Finding | None:
    """Count the layers that differ from independent entries of equal variance."""
    known = [layer for layer in run.ok if math.isfinite(layer.alpha_null)]
    if not known:
        return Finding(
            "Random matrix",
            "no null was computed, so nothing is said about which layers look random.",
        )
    nulls = [layer.alpha_null for layer in known]
    # Nulls of one window differ by rounding only: 5e-4 is half of the last digit that is shown.
    same = max(nulls) - min(nulls) < 5e-4
    level = f"{nulls[0]:.3f}" if same else f"{min(nulls):.3f} to {max(nulls):.3f}"
    opening = f"a matrix of independent entries would give {level}. "
    weighed = [(layer, null_gap(layer)) for layer in known if math.isfinite(null_gap(layer))]
    if not weighed:
        return Finding(
            "Random matrix", f"{opening}Without error bars it is open which layers differ from it."
        )
    closing = f" (clearly = more than {CLEAR:g} standard errors; "
    closing += "about 5 % of random layers would pass that bar too)."
    return Finding("Random matrix", opening + _sentence(_sides_of_null(weighed)) + closing)


def _sides_of_null(weighed: Sequence[tuple[LayerRecord, float]]) -> str:
    """Count the layers below, above and at their null, by their distance in standard errors."""
    alike = [layer.name for layer, gap in weighed if abs(gap) <= CLEAR]
    below, above = (sum(side * gap > CLEAR for _, gap in weighed) for side in (-1, 1))
    counts = []
    of = f" of {plural(len(weighed), 'layer')} lie"
    if below:
        counts.append(f"{below:,}{of} clearly below it (heavier tails)")
    if above:
        counts.append(f"{above:,}{'' if below else of} clearly above it (lighter tails)")
    if alike:
        names = f": {listed(alike)}" if len(alike) < len(weighed) else ""
        counts.append(
            f"{plural(len(alike), 'layer')} cannot be told from a random matrix by alpha{names}"
        )
    return "; ".join(counts)


def _power_law(run: Run) -> Finding | None:
    """Count the tails that may be power laws; None if the cutoff claims no power law."""
    if not run.results.run.spec.cutoff.claims_power_law:
        return None
    judged = [layer for layer in run.ok if math.isfinite(layer.ks_p)]
    if not judged:
        return Finding("Power law", "no tail was large enough to say whether it is a power law.")
    text = f"{len(judged):,} of {plural(len(run.ok), 'tail')} could be judged. "
    out = sum(layer.ks_p <= LEVEL for layer in judged)
    text += f"A power law is ruled out in {out:,} and not ruled out in {len(judged) - out:,}"
    # Below zero the other law fits better; the p-value says whether that may be chance.
    for name, ratios in (
        ("lognormal", [layer.lognormal_ratio for layer in judged]),
        ("exponential", [layer.exponential_ratio for layer in judged]),
    ):
        better = sum(ratio < 0 and two_sided(ratio) <= LEVEL for ratio in ratios)
        text += f"; {'an' if name[0] == 'e' else 'a'} {name} fits better in {better:,}"
    text += ". Not ruled out is weak: xmin was chosen to make the fit close, "
    text += "and the p-values are upper bounds."
    return Finding("Power law", text)


def _kinds(run: Run) -> Finding | None:
    """Name the kinds of layer with the lowest and the highest mean alpha, if they differ."""
    means = kind_means(run.ranked)
    if len(means) < 2:
        return None
    low, high = means[0], means[-1]
    error = math.hypot(low.error, high.error)
    gap = (high.mean - low.mean) / error if error > 0 else math.inf
    # As many comparisons as there are pairs of kinds, of which this is the most different.
    if gap <= threshold(len(means) * (len(means) - 1) // 2):
        text = f"the means of the {len(means)} kinds with at least three layers "
        text += "do not differ beyond their errors."
        return Finding("Kinds", text)
    # All kinds that cannot be told from the lowest share its group, and likewise the highest.
    heavy = [x for x in means if x.mean - low.mean <= CLEAR * math.hypot(x.error, low.error)]
    light = [
        x for x in reversed(means) if high.mean - x.mean <= CLEAR * math.hypot(x.error, high.error)
    ]
    # With large errors the groups overlap; a kind is named once.
    light = [x for x in light if x not in heavy]
    text = f"on average the tails are heaviest in {_mean_texts(heavy)}, "
    text += f"and lightest in {_mean_texts(light)}"
    between = [x for x in means if x not in heavy and x not in light]
    if between:
        text += f"; between them {_mean_texts(between)}"
    return Finding("Kinds", f"{text}. Kinds in one group are not told apart.")


def _mean_texts(means: Sequence[KindMean]) -> str:
    """List kinds with their means."""
    texts = [f"{x.kind} ({x.mean:.3f} ± {x.error:.3f}, n = {x.n})" for x in means]
    return joined(texts)


def _depth(run: Run) -> Finding | None:
    """Say whether alpha rises or falls from the first block to the last."""
    trend = depth_trend(run.ranked)
    if trend is None:
        return None
    found = trend.correlation
    text = found.with_depth("alpha").removesuffix(".") + "; each kind's mean is taken out."
    if not found.clear:
        return Finding("Depth", text)
    text += f" {_thirds(run, trend)}"
    if abs(found.rho) >= STRONG:
        text += " So a decision that goes by alpha goes by position for the greater part."
    return Finding("Depth", text)


def _thirds(run: Run, trend: Trend) -> str:
    """Compare the last third of the blocks with the first, in one sentence."""
    side = "above" if trend.change > 0 else "below"
    text = f"The last third of the blocks lies {abs(trend.change):.3f} {side} the first"
    errors = [
        layer.alpha_se
        for layer in run.ranked
        if layer.block is not None and math.isfinite(layer.alpha_se)
    ]
    # Means over about three layers per block have this error.
    error = float(np.median(errors)) / math.sqrt(3) if errors else 0.0
    if abs(trend.change) < CLEAR * error:
        return f"{text}, which is within the errors of alpha."
    # A few blocks far from the others can turn the means against the ranks.
    if trend.change * trend.correlation.rho < 0:
        return f"{text} all the same."
    return f"{text}: tails get {'lighter' if trend.change > 0 else 'heavier'} with depth."


def _changed(run: Run) -> Finding | None:
    """Say which layers changed most and least against the base, and which did not change."""
    known = [x for x in run.results.layers if math.isfinite(x.relative_change)]
    moved = sorted((x for x in known if x.relative_change), key=lambda x: -x.relative_change)
    if not known:
        return None
    text = f"{len(moved):,} of {plural(len(known), 'layer')} differ from the base"
    if moved:
        sizes = np.array([x.relative_change for x in moved])
        text += f", by {np.median(sizes):.3g} of their norm in the median; most "
        text += f"{coded(moved[0].name)} ({sizes[0]:.3g}), "
        text += f"least {coded(moved[-1].name)} ({sizes[-1]:.3g})"
    return Finding("Change", f"{text}.")


def _odd(run: Run) -> Finding | None:
    """Name the layers that are unlike the others of their kind."""
    odd = odd_ones(run.ranked)
    if not odd:
        return None
    named = "; ".join(
        f"{_alpha(layer)}, median of {layer.kind} {middle:.3f}" for layer, middle in odd[:4]
    )
    more = f"; and {len(odd) - 4:,} more" if len(odd) > 4 else ""
    return Finding(
        "Odd ones", f"{plural(len(odd), 'layer')} far from the rest of their kind: {named}{more}."
    )


def _full(run: Run) -> Finding | None:
    """Say how alphas over windows differ from those of full spectra, where both exist."""
    both = [layer for layer in run.ok if math.isfinite(layer.alpha_full)]
    if not both:
        return None
    change = np.array([layer.alpha_full - layer.alpha for layer in both])
    text = f"without windows (full spectrum) alpha differs by {np.median(np.abs(change)):.3f} "
    text += f"in the median layer and by up to {np.abs(change).max():.3f}. "
    # Ranks of fewer than eight layers, or of equal shapes, would show nothing.
    shape = np.array([math.log(max(x.rows, x.cols) / max(1, min(x.rows, x.cols))) for x in both])
    if len(both) >= 8 and np.ptp(shape) > 0 and np.ptp(change) > 0:
        found = rank_correlation(shape, change)
        rho = found.rho if found else 0.0
        verdict = (
            "goes with how elongated the matrix is"
            if abs(rho) >= 0.6
            else "follows the shape only loosely or not"
        )
        text += f"The difference {verdict} (Spearman {rho:+.2f} with the log of long / short side)."
    return Finding("Shape bias", text)


def _meaning(run: Run) -> Finding:
    """Say what alpha measures under this cutoff, and which hypothesis relates it to training."""
    theory = (
        " Heavy-tailed self-regularisation theory reads a lower alpha as a better trained layer "
        "and a higher one as less trained. "
        "That is a hypothesis: nothing here measured training or accuracy."
    )
    return Finding("Reading", run.results.run.spec.cutoff.meaning + theory)


def _not_comparable(run: Run) -> Finding | None:
    """Name the layers whose window is not that of the run."""
    apart = run.not_comparable
    if not apart:
        return None
    shapes = sorted({f"{layer.window_rows} {TIMES} {layer.window_cols}" for layer in apart})
    windows = f"windows of {', '.join(shapes)}" if len(shapes) <= 3 else "other windows"
    text = (
        f"{listed([layer.name for layer in apart])} had {windows} and not the window of the run; "
    )
    return Finding(
        "Not comparable",
        f"{text}no ranking, mean or trend above includes {'it' if len(apart) == 1 else 'them'}.",
    )


def _not_measured(run: Run) -> Finding:
    """Say what was not measured, and what these numbers cannot show."""
    gaps = []
    if run.without_error:
        n = len(run.without_error)
        who = (
            f"{n:,} of {plural(len(run.ok), 'measured layer')}"
            if n < len(run.ok)
            else "no measured layer"
        )
        gaps.append(
            f"{who} {'has an' if n == len(run.ok) else 'has no' if n == 1 else 'have no'} error bar"
        )
    if run.ok and all(math.isnan(layer.alpha_full) for layer in run.ok):
        gaps.append("alphas of the full spectrum were not asked for")
    if run.ok and all(math.isnan(layer.entropy) for layer in run.ok):
        gaps.append("entropy was not computed")
    # A spectrum that is mostly zeros belongs to a matrix of low rank or a pruned one.
    poor = [
        layer for layer in run.ok if layer.n_eigenvalues and layer.n_zero > layer.n_eigenvalues / 2
    ]
    if poor:
        gaps.append(
            f"over half of the eigenvalues are numerical zeros in {listed([x.name for x in poor])}"
        )
    gaps.append(
        "only the weights were read: no data, loss or accuracy took part, "
        "and one model shows no cause"
    )
    return Finding("Not measured", f"{_sentence('; '.join(gaps))}.")


def _sentence(text: str) -> str:
    """Start a text with a capital."""
    return text[:1].upper() + text[1:]
