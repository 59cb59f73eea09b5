"""The pictures and tables of the docs page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.axes import Axes

from experiments.aspect_ratio.laws import LAWS
from experiments.aspect_ratio.measure import CUTOFFS
from experiments.common import markdown_table
from experiments.drawing import COLOURS, INK, MARKERS, QUIET, panels, save
from spectail.core.null import marchenko_pastur_alpha

Results: TypeAlias = Mapping[str, Any]
FRACTIONS = {"median": 0.5, "top:0.1": 0.1}
"""Part of the spectrum above xmin, for the cutoffs that have a Marchenko-Pastur value."""


def draw_shapes(results: Results, path: Path) -> None:
    """A panel per law: median alpha against the ratio, in windows and of the whole matrix."""
    fig, axes = panels(2, 3, size=(11, 6.2))
    window = results["settings"]["window"]
    for ax, (law, shapes) in zip(axes, results["alphas"]["shapes"].items(), strict=True):
        for i, (short, points) in enumerate(_by_short(shapes, "whole").items()):
            label = f"whole matrix, short side {short}"
            _line(ax, points, colour=COLOURS[i + 1], marker=MARKERS[i + 1], label=label)
        for short, points in _by_short(shapes, "windows").items():
            once = (
                f"windows of {window}, every short side"
                if short == results["settings"]["shorts"][0]
                else None
            )
            _line(ax, points, colour=COLOURS[0], marker="o", label=once)
        ax.set_title(law if LAWS[law].one else f"{law} (not one law)")
        ax.set_xscale("log", base=2)
        ratios = results["settings"]["ratios"]
        ax.set_xticks(ratios, [f"1:{ratio}" for ratio in ratios])
        ax.set_xlabel("shape of the matrix")
        ax.set_ylabel("alpha, median cutoff")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3)
    save(fig, path)


def draw_sizes(results: Results, path: Path) -> None:
    """Left: Gaussian windows against the Marchenko-Pastur value; right: every law and layer."""
    fig, axes = panels(1, 2, size=(11, 4.4))
    sizes = results["alphas"]["sizes"]
    left, right = axes
    for i, (cutoff, fraction) in enumerate(FRACTIONS.items()):
        limit = marchenko_pastur_alpha(1.0, fraction=fraction)
        points = {
            n: [(alpha - 1) / (limit - 1) for alpha in found]
            for n, found in _by_size(sizes["Gaussian"], cutoff)
        }
        _line(left, points, colour=COLOURS[i], marker=MARKERS[i], label=f"Gaussian, {cutoff}")
    ns = sorted(int(n) for n in sizes["Gaussian"]["0"])
    left.plot(
        ns, [1 - 0.5 / n for n in ns], color=INK, linestyle="--", linewidth=1, label="1 - 1 / (2n)"
    )
    left.axhline(1, color=QUIET, linewidth=1)
    left.set_title("against the Marchenko-Pastur value")
    left.set_ylabel("(alpha - 1) / (limit - 1)")
    for i, (name, seeds) in enumerate(sizes.items()):
        points = dict(_by_size(seeds, "median"))
        style = {"linestyle": "-" if name in LAWS else "--"}
        _line(right, points, colour=COLOURS[i % 10], marker=MARKERS[i % 10], label=name, **style)
    right.set_title("median alpha of each law and layer")
    right.set_ylabel("alpha, median cutoff")
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(ns, [str(n) for n in ns])
        ax.set_xlabel("side of the window")
    left.legend(loc="lower right")
    save(fig, path)


def tables(results: Results) -> dict[str, str]:
    """The tables by name: shapes, pieces, sizes."""
    found = results["alphas"]
    missing = "\n".join(f"- not installed, left out: {line}" for line in results["not installed"])
    return {
        "shapes": _shape_table(found["shapes"]),
        "pieces": _shape_table(found.get("pieces", {})),
        "limits": _limit_table(found["sizes"]["Gaussian"], found["alone"]["Gaussian"]),
        "sizes": _size_table(found["sizes"]),
        "missing": missing or "Every layer of the list was measured.",
    }


def _shape_table(groups: Mapping[str, Any]) -> str:
    """For each law or layer, the range of median alphas over shapes.

    Beside it, how far apart each cutoff's alphas are.
    """
    rows = []
    for name, shapes in groups.items():
        windows = {cutoff: _means(shapes, "windows", cutoff) for cutoff in CUTOFFS}
        whole = _means(shapes, "whole", "median")
        noise = _noise(shapes)
        rows.append(
            [
                name if name not in LAWS or LAWS[name].one else f"{name} (not one law)",
                f"{min(windows['median']):.3f} to {max(windows['median']):.3f}",
                f"{min(whole):.2f} to {max(whole):.2f}",
                *(f"{_apart(values):.1f}" for values in windows.values()),
                f"{noise:.1f}",
            ]
        )
    header = ["", "windows", "whole", *(f"{cutoff}, %" for cutoff in CUTOFFS), "seed, %"]
    return markdown_table(header, rows)


def _limit_table(seeds: Mapping[str, Any], alone: Mapping[str, Any]) -> str:
    """Gaussian windows by size, pooled and by themselves, in Marchenko-Pastur units.

    Tails have m = n / 2 values.
    """
    rows = []
    limits = {
        cutoff: marchenko_pastur_alpha(1.0, fraction=fraction)
        for cutoff, fraction in FRACTIONS.items()
    }
    columns = {cutoff: dict(_by_size(seeds, cutoff)) for cutoff in FRACTIONS}
    single = dict(_by_size(alone, "median"))

    def ratio(alphas: list[float], cutoff: str) -> str:
        return f"{(statistics.fmean(alphas) - 1) / (limits[cutoff] - 1):.4f}"

    for n in columns["median"]:
        pooled = [ratio(columns[cutoff][n], cutoff) for cutoff in FRACTIONS]
        theory = [f"{value:.4f}" for value in (1 - 0.5 / n, (n // 2) / (n // 2 - 1))]
        rows.append([str(n), *pooled, theory[0], ratio(single[n], "median"), *theory[1:]])
    header = ["side n", "median", "top:0.1", "1 - 1/(2n)", "median, one window", "m/(m - 1)"]
    return markdown_table(header, rows)


def _size_table(groups: Mapping[str, Any]) -> str:
    """Median alphas by window size."""
    columns = {name: dict(_by_size(seeds, "median")) for name, seeds in groups.items()}
    sizes = sorted({n for column in columns.values() for n in column})
    rows = [
        [name, *(f"{statistics.fmean(column[n]):.3f}" if n in column else "–" for n in sizes)]
        for name, column in columns.items()
    ]
    return markdown_table(["window", *map(str, sizes)], rows)


def _by_short(shapes: Mapping[str, Any], what: str) -> dict[int, dict[float, list[float]]]:
    """Short side -> ratio -> median alphas of the seeds."""
    found: dict[int, dict[float, list[float]]] = {}
    for shape, seeds in shapes.items():
        short, long = sorted(map(int, shape.split("x")))
        alphas = [seed[what]["median"] for seed in seeds.values() if what in seed]
        if alphas:
            found.setdefault(short, {})[long / short] = alphas
    return found


def _by_size(seeds: Mapping[str, Any], cutoff: str) -> list[tuple[int, list[float]]]:
    """(Window side, alphas of the seeds), by side."""
    sizes = sorted({int(n) for seed in seeds.values() for n in seed})
    return [(n, [seed[str(n)][cutoff] for seed in seeds.values()]) for n in sizes]


def _line(
    ax: Axes,
    points: Mapping[Any, list[float]],
    *,
    colour: str,
    marker: str,
    label: str | None,
    linestyle: str = "-",
) -> None:
    """Means over seeds as a line, their range as bars."""
    xs = sorted(points)
    centre = [statistics.fmean(points[x]) for x in xs]
    below = [mean - min(points[x]) for x, mean in zip(xs, centre, strict=True)]
    above = [max(points[x]) - mean for x, mean in zip(xs, centre, strict=True)]
    style: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "markersize": 4,
        "linewidth": 1.2,
        "capsize": 2,
    }
    ax.errorbar(xs, centre, yerr=[below, above], label=label, linestyle=linestyle, **style)


def _means(shapes: Mapping[str, Any], what: str, cutoff: str) -> list[float]:
    """Mean alpha over the seeds, for each shape that has one."""
    lists = (
        [seed[what][cutoff] for seed in seeds.values() if what in seed] for seeds in shapes.values()
    )
    return [statistics.fmean(alphas) for alphas in lists if alphas]


def _apart(values: Iterable[float]) -> float:
    """How far the greatest lies above the least, in percent."""
    values = list(values)
    return 100 * (max(values) / min(values) - 1)


def _noise(shapes: Mapping[str, Any]) -> float:
    """Largest standard deviation of the median alpha over the seeds of one shape.

    In percent of it.
    """
    lists: list[list[float]] = [
        [seed["windows"]["median"] for seed in seeds.values()] for seeds in shapes.values()
    ]
    return max(
        100.0 * statistics.stdev(alphas) / statistics.fmean(alphas)
        for alphas in lists
        if len(alphas) > 1
    )
