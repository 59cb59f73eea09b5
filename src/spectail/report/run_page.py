"""The report of a run: one HTML file that opens offline."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectail import presets
from spectail.basics.files import local_path
from spectail.basics.texts import plural
from spectail.models.naming.blocks import unit_of
from spectail.report import page
from spectail.report.curves import (
    FIT_POINTS,
    HIDDEN_SHARE,
    OTHERS,
    null_shape,
    null_shift,
    window_ratio,
)
from spectail.report.evidence import CLEAR, Run, sort_run
from spectail.report.heatmap import block_kind_heatmap
from spectail.report.page import Column, Page, Section
from spectail.report.plots import (
    alpha_by_depth,
    change_by_depth,
    farms_against_full,
)
from spectail.report.run_sections import BLOCKS, CHANGED, DEPTH, SHAPE_BIAS, spectrum_section
from spectail.report.spectrum_plot import part_name, spectrum_figure
from spectail.report.theme import TIMES
from spectail.report.words import titled_findings
from spectail.results.records import COLUMN_TABLE, COLUMNS, LayerRecord, Results, RunInfo, null_gap

EYEBROW = "Heavy-tailed spectra"
"""The line above the heading, by which ``page_mark`` recognises the page."""
FIRST = (
    "name",
    "alpha",
    "alpha_se",
    "null_z",
    "block",
    "kind",
    "shape",
    "stable_rank",
    "status",
    "reason",
)
"""The first columns of the page's table; the others follow in the order of the records."""
SHAPE = Column("shape", "Shape", "shape", help="rows and columns; sorts by the number of weights")
NOT_SHOWN = ("rows", "cols", "comparable")
"""Columns without cells of their own: the shape and the reason show them."""
_QUIET = ("Scope", "Reading", "Not comparable", "Not measured")
"""Topics of the paragraphs that stand beside the others."""


def report_html(results: Results) -> str:
    """Write the page of a run.

    It has words, key numbers, charts, the spectrum of any layer, and a table of all layers.
    """
    figures, sections = _charts(results)
    run = results.run
    payload = {
        "figures": figures,
        "table": {
            "columns": COLUMNS,
            "rows": [
                [record[name] for name in COLUMNS]
                for record in (x.to_dict() for x in results.layers)
            ],
            "view": [column.to_dict() for column in _view(run)],
        },
        "spectra": spectra_data(results),
        "units": [unit_of(layer.name) for layer in results.layers],
    }
    written = Page(
        title=model_name(run),
        eyebrow=EYEBROW,
        heading=model_name(run),
        settings=(("", spec_line(run)),),
        numbers=_key_numbers(results),
        sections=(_words(results), *sections),
        table_lead="Every layer, also those that could not be measured. "
        "Choose a row to see its spectrum.",
        command=command(run),
        origins=_origins(run),
    )
    return page.render(written, payload)


def _view(run: RunInfo) -> list[Column]:
    """List the page's columns.

    The tail verdict is a main column only if the cutoff claims a power law.
    """
    # The shape is one cell of two columns: "4096 x 11008" says more than two numbers apart.
    shown = {SHAPE.key: SHAPE}
    for column in COLUMN_TABLE:
        main = column.main or (column.name == "tail_verdict" and run.spec.cutoff.claims_power_law)
        # Meanings are written as Markdown for the documentation; the page shows plain text.
        meaning = column.meaning.replace("`", "").replace("*", "")
        # The reason stands below the name, where it is seen at every width.
        main = main and column.name != "reason"
        shown[column.name] = Column(column.name, column.label, column.cell, main, meaning)
    rest = [name for name in COLUMNS if name not in (*FIRST, *NOT_SHOWN)]
    return [shown[name] for name in (*FIRST, *rest)]


def model_name(run: RunInfo) -> str:
    """Return a short name of the source: the last part of its path."""
    # The run may come from Windows.
    return run.source.replace("\\", "/").rstrip("/").split("/")[-1] or run.source


def spec_line(run: RunInfo) -> list[tuple[str, str]]:
    """Return the settings of a run as (word, value) pairs that fit on one line."""
    spec = run.spec
    window = str(spec.window) if run.window is None else f"{run.window}"
    # A window asked for by a word, such as "smallest", became a number for this model: show both.
    if run.window is not None and isinstance(spec.window, str):
        window += f" ({spec.window})"
    parts = [
        ("aspect ratio", f"{spec.aspect_ratio:g}"),
        ("window", window),
        ("placement", str(spec.placement)),
        ("cutoff", str(spec.cutoff)),
    ]
    if spec.tolerance is not None:
        parts.append(("tolerance", f"{spec.tolerance:g}"))
    if spec.legacy:
        parts.append(("legacy", "on" if spec.legacy is True else str(spec.legacy)))
    if "spectail" in run.versions:
        parts.append(("spectail", run.versions["spectail"]))
    return parts


def command(run: RunInfo, sources: Sequence[str] = ()) -> str:
    """Return the command that repeats a run, or Python code if the command line lacks a setting.

    ``sources`` are those of several runs with the settings of this one.
    """
    spec = run.spec
    sources = sources or [run.given or run.source]
    # The command line has no options for legacy and seed, but presets by name.
    preset = next((name for name, known in presets.BY_NAME.items() if known == spec), None)
    if (spec.legacy and not preset) or spec.seed:
        return _in_python(run, sources)
    words = ["spectail", "analyze", *sources, "--out", "DIR"]
    if spec.legacy and preset:
        words += ["--preset", preset]
    else:
        words += ["--aspect-ratio", _exactly(spec.aspect_ratio), "--window", str(spec.window)]
        words += ["--placement", str(spec.placement), "--cutoff", str(spec.cutoff)]
    if spec.tolerance is not None:
        words += ["--tolerance", _exactly(spec.tolerance)]
    if run.base:
        words += ["--base", run.base]
    for option, globs in (
        ("--include", run.include),
        ("--exclude", run.exclude),
        ("--kind", run.kinds),
        ("--type", run.types),
    ):
        for glob in globs:
            words += [option, glob]
    if run.full_spectrum:
        words.append("--full-spectrum")
    words += ["--traps"] * run.traps + ["--erg"] * run.erg
    return shlex.join(words)


def _in_python(run: RunInfo, sources: Sequence[str]) -> str:
    """Return the code that repeats a run, or several runs with its settings."""
    given = ("base", "include", "exclude", "kinds", "types", "full_spectrum", "traps", "erg")
    options = [f"{name}={value!r}" for name in given if (value := getattr(run, name))]
    settings = ", ".join(f"{key}={value!r}" for key, value in run.spec.to_dict().items())
    rest = ", ".join([*options, f"spec=st.Spec({settings})"])
    calls = [f"st.analyze({source!r}, {rest})" for source in sources]
    return "\n".join(["import spectail as st", *calls])


def _exactly(number: float) -> str:
    """Write a number in few digits that give the same number again."""
    return short if float(short := f"{number:g}") == number else repr(number)


def spectra_data(results: Results) -> dict[str, Any]:
    """Return the spectra in few numbers, from which ``report.js`` draws the curves.

    Layers with windows of one ratio share the shape of their null, which is stored once.
    """
    cutoff = results.run.spec.cutoff
    shapes: dict[float, int] = {}
    layers: dict[int, dict[str, Any]] = {}
    for i, layer in enumerate(results.layers):
        # Failed rows may carry a spectrum without a fit; their reason says more than a picture.
        if layer.spectrum is None or layer.status != "ok":
            continue
        ratio = window_ratio(layer)
        layers[i] = {
            "edges": layer.spectrum.edges,
            "counts": layer.spectrum.counts,
            "ranks": [rank for rank, _ in layer.spectrum.top],
            "values": [_short(value) for _, value in layer.spectrum.top],
            # An index into the shapes: many layers share one.
            "shape": None if ratio is None else shapes.setdefault(ratio, len(shapes)),
            "shift": null_shift(layer),
        }
    curves = [
        {
            key: [_short(v) for v in values.tolist()]
            for key, values in null_shape(ratio)._asdict().items()
        }
        for ratio in shapes
    ]
    return {
        "layers": layers,
        "shapes": curves,
        "others": OTHERS,
        "part": part_name(cutoff),
        "power_law": cutoff.claims_power_law,
        "share": cutoff.share,
        "fit_points": FIT_POINTS,
        "hidden_share": HIDDEN_SHARE,
        "first": _first(results, layers),
    }


def _short(value: float) -> float:
    """Round to five digits, which are enough to draw and keep the page small."""
    return float(f"{value:.5g}")


def _first(results: Results, drawable: dict[int, dict[str, Any]]) -> int | None:
    """Choose the layer that is shown first: the heaviest tail among the comparable ones."""
    # A layer that is not comparable would open the page with a misleading number.
    ranked = sorted(
        drawable,
        key=lambda i: (not results.layers[i].comparable, _sortable(results.layers[i].alpha)),
    )
    return ranked[0] if ranked else None


def _sortable(alpha: float) -> float:
    """Return an alpha that sorts; NaN compares with nothing and goes last."""
    return alpha if math.isfinite(alpha) else math.inf


def _words(results: Results) -> Section:
    """Make the section of words: what stands out, and beside it how to read the numbers."""
    found = [page.Paragraph(*finding) for finding in titled_findings(results)]
    main = tuple(x for x in found if x.topic not in _QUIET)
    aside = tuple(x for x in found if x.topic in _QUIET)
    return Section(id="words", title="In words", words=main, aside=aside)


def _key_numbers(results: Results) -> list[tuple[str, str, str]]:
    """Return the large numbers at the top of the page as (what, number, note)."""
    run = sort_run(results)
    return [
        _measured_number(run),
        *_alpha_number(run),
        *_null_number(run),
        *_random_number(run),
        (
            "Weights read",
            _compact(sum(x.numel for x in run.ok)),
            _windows_note(run.ok, results.run),
        ),
    ]


def _measured_number(run: Run) -> tuple[str, str, str]:
    """Say how many layers were measured."""
    skipped, failed = run.count("skipped"), run.count("failed")
    rest = "none skipped, none failed"
    if skipped or failed:
        rest = f"{skipped:,} skipped, {failed:,} failed"
    return ("Layers measured", f"{len(run.ok):,}", f"of {len(run.results.layers):,}; {rest}")


def _alpha_number(run: Run) -> list[tuple[str, str, str]]:
    """Say where most alphas lie, if there are any."""
    alphas = np.array([layer.alpha for layer in run.ranked])
    if not alphas.size:
        return []
    low, high = np.quantile(alphas, [0.25, 0.75])
    return [("Median alpha", f"{np.median(alphas):.2f}", f"middle half {low:.2f} to {high:.2f}")]


def _null_number(run: Run) -> list[tuple[str, str, str]]:
    """Say what alpha a random matrix would have, if nulls were computed."""
    # Where no layer is comparable, each null belongs to a window of its own, and all count.
    nulls = [layer.alpha_null for layer in run.ranked or run.ok if math.isfinite(layer.alpha_null)]
    if not nulls:
        return []
    # Nulls of one window differ by rounding only: 5e-4 is half of the last digit that is shown.
    same = max(nulls) - min(nulls) < 5e-4
    note = "alpha of independent entries" if same else "median over the layers"
    return [("Random matrix", f"{np.median(nulls):.2f}", note)]


def _random_number(run: Run) -> list[tuple[str, str, str]]:
    """Say how many layers look random, if they have error bars."""
    gaps = [gap for gap in map(null_gap, run.ok) if math.isfinite(gap)]
    if not gaps:
        return []
    alike = sum(abs(gap) <= CLEAR for gap in gaps)
    note = f"of {len(gaps):,}: within {CLEAR:g} errors of the null"
    return [("Look random", f"{alike:,}", note)]


def _compact(count: int) -> str:
    """Write a count with three digits: ``1.24 B``."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _windows_note(layers: tuple[LayerRecord, ...], run: RunInfo) -> str:
    """Say how many windows were read, and their shape if they share one."""
    counted = plural(sum(layer.n_windows for layer in layers), "window")
    if run.window is None:
        return counted
    # Windows may lie across or along a matrix: their sides are sorted, for both have one spectrum.
    shapes = {tuple(sorted((x.window_rows, x.window_cols))) for x in layers if x.comparable}
    if len(shapes) != 1:
        return f"{counted}, short side {run.window:,}"
    short, long = shapes.pop()
    of = " of" if all(layer.comparable for layer in layers) else ", most of"
    return f"{counted}{of} {short:,}\u00a0{TIMES}\u00a0{long:,}"


def _charts(results: Results) -> tuple[dict[str, Any], list[Section]]:
    """Draw the figures for which this run has data, and list their sections in order."""
    run = sort_run(results)
    figures: dict[str, Any] = {}
    sections: list[Section] = []
    if run.ok:
        figures["depth"] = page.figure_data(alpha_by_depth(results))
        sections.append(DEPTH)
    if any(layer.spectrum is not None for layer in run.ok):
        # Empty: the script draws the layer that is chosen.
        figures["spectrum"] = page.figure_data(spectrum_figure({}, results.run.spec.cutoff))
        sections.append(spectrum_section(results.run.spec.cutoff))
    # A heat map of one block would be a single column.
    if len({layer.block for layer in run.ok if layer.block is not None}) > 1:
        figures["heatmap"] = page.figure_data(block_kind_heatmap(results))
        sections.append(BLOCKS)
    if any(math.isfinite(layer.relative_change) for layer in results.layers):
        figures["changed"] = page.figure_data(change_by_depth(results))
        sections.append(CHANGED)
    if any(math.isfinite(layer.alpha_full) for layer in run.ok):
        figures["full"] = page.figure_data(farms_against_full(results))
        sections.append(SHAPE_BIAS)
    return figures, sections


def full_path(run: RunInfo) -> str:
    """Return the full path of a source that lies on this machine, else its name."""
    path = local_path(run.given)
    # os.path.exists answers for names that are too long for a file system, too.
    return str(path.resolve()) if run.given and os.path.exists(path) else run.source


def _origins(run: RunInfo) -> list[tuple[str, str]]:
    """Return the origin of the numbers as (what, value) pairs."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return [
        ("Source", full_path(run)),
        ("Fingerprint", run.fingerprint),
        ("Device", run.device),
        ("Versions", versions),
        ("Include", ", ".join(run.include)),
        ("Kinds", ", ".join(run.kinds)),
        ("Types", ", ".join(run.types)),
        ("Exclude", ", ".join(run.exclude)),
        ("Notes", "; ".join(run.notes)),
    ]
