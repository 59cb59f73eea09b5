"""The picture and the tables of the docs page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from scipy.stats import spearmanr

from experiments.common import markdown_table
from experiments.diagnosis.faults import CONTROLS, CUTS
from experiments.diagnosis.numbers import NUMBERS
from experiments.diagnosis.scores import FOUND, SIDES, VIEWS
from experiments.drawing import COLOURS, INK, MARKERS, QUIET, panels, save

GROUPS = ("usual shape", "unusual shape", *CUTS)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Four panels, a row per number, a mark per model, a bar at the mean over models."""
    models, shown = results["models"], results["faults"]
    fig, axes = panels(1, 4, size=(12, 4.4), share_y=True)
    columns: dict[str, Callable[[Any, str], float | None]] = {
        "faults, within the kind": lambda model, name: fault_auc(model, "by kind", name, shown),
        "faults, over all kinds": lambda model, name: fault_auc(model, "all kinds", name, shown),
        "cut healthy layers, all kinds": lambda model, name: average(
            [model["aucs"]["all kinds"]["two-sided"][name].get(cut) for cut in CUTS]
        ),
    }
    for ax, (title, value) in zip(axes, columns.items(), strict=False):
        _panel(ax, {key: [value(model, name) for name in NUMBERS] for key, model in models.items()})
        ax.set_title(title)
    _panel(
        axes[3],
        {
            seed: [run["slow"]["aucs"]["by kind"]["two-sided"][name] for name in NUMBERS]
            for seed, run in results["trained"].items()
        },
        quiet=True,
    )
    axes[3].set_title("slow layers, within the kind")
    axes[0].set_yticks(range(len(NUMBERS)), list(NUMBERS))
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5)
    save(fig, path)


def _panel(ax: Axes, values: Mapping[str, Sequence[float | None]], *, quiet: bool = False) -> None:
    for i, (label, row) in enumerate(values.items()):
        offset = (i - (len(values) - 1) / 2) * 0.07
        points = [(x, y + offset) for y, x in enumerate(row) if x is not None]
        xs, ys = zip(*points, strict=True) if points else ((), ())
        style: dict[str, Any] = {
            "color": QUIET if quiet else COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        ax.plot(xs, ys, linestyle="", markersize=4.5, label=label, **style)
    for y in range(len(NUMBERS)):
        centre = average([row[y] for row in values.values()])
        if centre is not None:
            ax.plot([centre, centre], [y - 0.38, y + 0.38], color=INK, linewidth=1.6)
    ax.axvline(0.5, color=QUIET, linestyle=":", linewidth=1.2)
    ax.set_xlim(0, 1.03)
    ax.set_xlabel("area under the ROC curve")


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name."""
    models, faults = results["models"], results["faults"]
    return {
        "summary": _summary_table(models, faults),
        "faults": _fault_table(models, faults, "by kind"),
        "faults all kinds": _fault_table(models, faults, "all kinds"),
        "faults one-sided": _fault_table(models, faults, "by kind", "one-sided"),
        "models": _model_table(models, faults),
        "kinds": _kind_table(models),
        "controls": _control_table(models),
        "alarms all kinds": _alarm_table(models, "all kinds"),
        "alarms by kind": _alarm_table(models, "by kind"),
        "slow": _slow_table(results["trained"]),
        "subjects": _subject_table(results),
    }


def average(values: Sequence[float | None]) -> float | None:
    """The mean of the numbers among the values; None where there is none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def fault_auc(
    model: Mapping[str, Any], view: str, name: str, faults: Sequence[str], side: str = "two-sided"
) -> float | None:
    """A number's mean AUC over the faults of one model; None where no kind has enough layers."""
    found = model["aucs"][view][side][name]
    return average([found.get(fault) for fault in faults])


def _summary_table(models: Mapping[str, Any], faults: Sequence[str]) -> str:
    header = ["number", *(f"{view}, {side}" for view in VIEWS for side in SIDES)]
    return markdown_table(
        header,
        [
            [
                name,
                *(
                    _with_spread(
                        [fault_auc(model, view, name, faults, side) for model in models.values()]
                    )
                    for view in VIEWS
                    for side in SIDES
                ),
            ]
            for name in NUMBERS
        ],
    )


def _fault_table(
    models: Mapping[str, Any], faults: Sequence[str], view: str, side: str = "two-sided"
) -> str:
    """Mean over models: a row per fault, a column per number."""

    def cell(fault: str, name: str) -> str:
        areas = [model["aucs"][view][side][name].get(fault) for model in models.values()]
        return _number(average(areas))

    return markdown_table(
        ["fault", *NUMBERS], [[fault, *(cell(fault, name) for name in NUMBERS)] for fault in faults]
    )


def _model_table(models: Mapping[str, Any], faults: Sequence[str]) -> str:
    return markdown_table(
        ["model", *NUMBERS],
        [
            [key, *(_number(fault_auc(model, "by kind", name, faults)) for name in NUMBERS)]
            for key, model in models.items()
        ],
    )


def _kind_table(models: Mapping[str, Any]) -> str:
    """Mean over the models that have the kind, two-sided within the kind."""
    found = [model["kinds"]["by kind"]["two-sided"] for model in models.values()]
    kinds = dict.fromkeys(kind for areas in found for kind in next(iter(areas.values())))
    return markdown_table(
        ["kind", *NUMBERS],
        [
            [
                kind,
                *(_number(average([areas[name].get(kind) for areas in found])) for name in NUMBERS),
            ]
            for kind in kinds
        ],
    )


def _control_table(models: Mapping[str, Any]) -> str:
    states = (*(state.name for state in CONTROLS), *CUTS)

    def cell(name: str, view: str, state: str) -> str:
        areas = [model["aucs"][view]["two-sided"][name].get(state) for model in models.values()]
        return _number(average(areas))

    return markdown_table(
        ["number", *states, *(f"{cut}, all kinds" for cut in CUTS)],
        [
            [
                name,
                *(cell(name, "by kind", state) for state in states),
                *(cell(name, "all kinds", cut) for cut in CUTS),
            ]
            for name in NUMBERS
        ],
    )


def _alarm_table(models: Mapping[str, Any], view: str) -> str:
    """Per cent of healthy layers flagged, mean over models.

    The last column says how the number follows the aspect ratio.
    """

    def cell(name: str, share: int, group: str) -> str:
        found = average(
            [
                model["alarms"][view]["two-sided"][name][str(share)].get(group)
                for model in models.values()
            ]
        )
        return "–" if found is None else f"{100 * found:.0f}"

    return markdown_table(
        [
            "number",
            *(f"{group}, {share} % found" for share in FOUND for group in GROUPS),
            "correlation with aspect ratio",
        ],
        [
            [
                name,
                *(cell(name, share, group) for share in FOUND for group in GROUPS),
                _number(average([shape_correlation(model, name) for model in models.values()])),
            ]
            for name in NUMBERS
        ],
    )


def shape_correlation(model: Mapping[str, Any], name: str) -> float | None:
    """Size of the rank correlation between a number and the aspect ratio.

    It is taken over the healthy layers.
    """
    sides = [[int(side) for side in shape.split("x")] for shape in model["shapes"]]
    ratios = [max(pair) / min(pair) for pair in sides]
    found = float(spearmanr(ratios, model["healthy"][name]).statistic)
    return abs(found) if found == found else None


def _slow_table(trained: Mapping[str, Any]) -> str:
    def cell(name: str, run: str, view: str, side: str) -> str:
        return _with_spread([seed[run]["aucs"][view][side][name] for seed in trained.values()])

    columns = {
        **{f"slow, {view}, {side}": ("slow", view, side) for view in VIEWS for side in SIDES},
        "full rate, by kind, two-sided": ("full rate", "by kind", "two-sided"),
    }
    return markdown_table(
        ["number", *columns],
        [[name, *(cell(name, *column) for column in columns.values())] for name in NUMBERS],
    )


def _subject_table(results: Mapping[str, Any]) -> str:
    rows = []
    for key, model in results["models"].items():
        counts = {kind: model["kinds by layer"].count(kind) for kind in model["kinds by layer"]}
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        lacking = ", ".join(f"{name} {count}" for name, count in model["unmeasured"].items())
        rows.append(
            [
                key,
                str(len(model["layers"])),
                str(model["planted"]),
                str(model["window"]),
                kinds,
                lacking or "none",
            ]
        )
    table = markdown_table(
        ["model", "layers", "with faults", "window", "kinds", "not measurable"], rows
    )
    lines = [
        f"- {seed}: validation loss {run['full rate']['loss']:.3f} nats a byte; "
        f"{run['slow']['loss']:.3f} with slow layers"
        for seed, run in results["trained"].items()
    ]
    lines += [f"- left out: {line}" for line in results["left out"]]
    return table + "\n\n" + "\n".join(lines)


def _with_spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation."""
    known = [value for value in values if value is not None]
    spread = f" ± {stdev(known):.2f}" if len(known) > 1 else ""
    return f"{_number(average(known))}{spread}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
