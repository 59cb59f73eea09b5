"""``python -m benchmarks.report``: fill the tables of the docs from the results that are there.

They are in docs/speed.md, docs/large-models.md and docs/past-one-machine.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.common import ROOT, fill_page, markdown_table

RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "speed.md"
LARGE_PAGE = ROOT / "docs" / "large-models.md"
SCALING_PAGE = ROOT / "docs" / "past-one-machine.md"
KEYS = {"fit": "rates", "workers": "workers", "models": "computed"}
"""Which part of the result of ``scaling`` each table of its page needs."""
MISSING = "Not measured yet."


def main() -> None:
    """Fill every table; one whose result is missing says so."""
    tables = {
        "command": _command,
        "layers": _layers,
        "fit": _fit,
        "checkpoint": _checkpoint,
        "training": _training,
    }
    tables |= {"solvers": _solvers, "balancer": _balancer, "prune": _prune}
    fill_page(
        PAGE,
        {
            name: table(_read(name)) if _path(name).exists() else MISSING
            for name, table in tables.items()
        },
    )
    scaling = _read("scaling") if _path("scaling").exists() else {}
    tables = {"fit": _scaling_fit, "workers": _scaling_workers, "models": _scaling_models}
    fill_page(
        SCALING_PAGE,
        {
            f"scaling-{name}": table(scaling) if scaling.get(KEYS[name]) else MISSING
            for name, table in tables.items()
        },
    )
    large = _large(_read("checkpoint")) if _path("checkpoint").exists() else MISSING
    fill_page(LARGE_PAGE, {"large": large})


def _read(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(_path(name).read_text())["results"]
    return results


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _ratio(found: dict[str, Any]) -> str:
    """Median and range of a paired ratio."""
    if found["rounds"] == 1:
        return f"{found['median']:.3g}"
    return f"{found['median']:.3g} ({found['least']:.3g} to {found['most']:.3g})"


def _command(results: dict[str, Any]) -> str:
    return markdown_table(
        ["ratio", "median (range)"], [[k, _ratio(v)] for k, v in results["ratios"].items()]
    )


def _layers(results: dict[str, Any]) -> str:
    rows = []
    for case, found in results.items():
        label = "together" if "together" in found["ratios"] else "layer"
        ratios = found["ratios"][label]
        for name in (
            "eigenvalues: plain float32 / spectail",
            "with fit ks: plain float32 / spectail",
            "eigenvalues: spectail / numpy float64 alone",
            "eigenvalues: spectail / torch float64 alone",
        ):
            if name in ratios:
                rows.append([f"{case.replace('_', ', ')}: {name}", _ratio(ratios[name])])
    return markdown_table(["windows: ratio", "median (range)"], rows)


def _fit(results: dict[str, Any]) -> str:
    rows = []
    for case, found in results.items():
        seconds = found["sides"]["spectail"]["seconds"]
        ratios = (
            _ratio(found["ratios"][f"{cutoff}: plain / spectail"]) for cutoff in ("ks", "peak")
        )
        rows.append(
            [
                case,
                *(f"{1000 * seconds[cutoff]:.3g}" for cutoff in ("median", "peak", "ks")),
                *ratios,
            ]
        )
    head = [
        "spectrum, eigenvalues",
        "median, ms",
        "peak, ms",
        "ks, ms",
        "plain / ours, ks",
        "plain / ours, peak",
    ]
    return markdown_table(head, rows)


def _checkpoint(results: dict[str, Any]) -> str:
    found = results["analyze"]
    rows = [
        ["layers, windows", f"{found['layers']}, {found['windows']:,}"],
        ["minutes", f"{found['seconds'] / 60:.1f}"],
        ["peak resident memory", f"{found['peak_megabytes'] / 1024:.2f} GiB"],
        [
            "of that without pages of the checkpoint's own files",
            f"{found['peak_anonymous_megabytes'] / 1024:.2f} GiB",
        ],
        ["size of the checkpoint", f"{results['megabytes'] / 1024:.1f} GiB"],
    ]
    return markdown_table([f"LLaMA-7B's shape, {results['blocks']} blocks", ""], rows)


def _large(results: dict[str, Any]) -> str:
    """Few windows beside all of them, and the samples of a larger model."""
    few = [results["tolerance"], results["tolerance, smaller window"]]
    runs = [results["analyze"], *few]
    rows = [
        ["windows", *(f"{run['windows']:,}" for run in runs)],
        ["minutes", *(f"{run['seconds'] / 60:.1f}" for run in runs)],
        ["peak resident memory", *(f"{run['peak_megabytes'] / 1024:.2f} GiB" for run in runs)],
        ["layers with alpha within 1 %", "", *(f"{run['within_1_percent']:.1%}" for run in few)],
        ["change of alpha, 90th percentile", "", *(f"{run['change']['90 %']:.2%}" for run in few)],
        ["rank correlation of alpha", "", *(f"{run['rank_correlation']:.3f}" for run in few)],
    ]
    head = [f"7B, {results['blocks']} blocks", "all windows", "tolerance 1 %", "windows of 512"]
    return "\n\n".join([markdown_table(head, rows), *map(_sampled, results.get("70b", []))])


def _sampled(results: dict[str, Any]) -> str:
    """A sample of a model, with what follows for the whole."""
    run, computed = results["measured"], results["computed"]
    rows = [
        ["layers", str(results["layers"])],
        ["size", f"{results['gigabytes']:.0f} GB"],
        ["opened, every header read", f"{results['seconds_to_open']:.1f} s"],
        [
            f"{len(results['blocks_measured'])} blocks, measured",
            f"{run['seconds'] / 60:.1f} minutes",
        ],
        ["peak resident memory", f"{run['peak_megabytes'] / 1024:.2f} GiB"],
        ["all blocks, computed", f"{computed['minutes']:.0f} minutes"],
        ["read from disk, computed", f"{computed['gigabytes_read']:.0f} GB"],
        ["fetched if it is remote, computed", f"{computed['gigabytes_fetched']:.0f} GB"],
    ]
    options = " ".join(run["options"][: run["options"].index("--include")])
    return markdown_table([f"70B, {results['blocks']} blocks, `{options}`", ""], rows)


def _scaling_fit(results: dict[str, Any]) -> str:
    """The rates, and how far the estimate is from layers that took no part in the fit."""
    rates, error = results["rates"], results["error of the fit"]
    rows = [
        ["milliseconds per layer", f"{1e3 * rates['layer']:.2g}"],
        ["nanoseconds per weight", f"{1e9 * rates['weight']:.2g}"],
        [
            "nanoseconds per weight and step for the largest eigenvalue",
            f"{1e9 * rates['reread']:.2g}",
        ],
        ["microseconds per window", f"{1e6 * rates['window']:.2g}"],
        ["nanoseconds per squared side of a window", f"{1e9 * rates['tridiagonal']:.2g}"],
        [
            "GFLOP per second, Gram matrices and reduction to tridiagonal form",
            _speed(rates["flop"]),
        ],
        ["layers timed", str(error["layers"])],
        [
            "error of the estimate: median, 90th percentile",
            f"{error['median']:.0%}, {error['90 %']:.0%}",
        ],
    ]
    return markdown_table(["one core", ""], rows)


def _speed(seconds: float) -> str:
    """Operations per second, in 1e9; a rate of zero could not be told from the others."""
    return f"{1e-9 / seconds:.0f}" if seconds else "-"


def _scaling_workers(results: dict[str, Any]) -> str:
    """Processor time of the busiest worker against the number of workers."""
    rows = []
    for name, run in results["workers"].items():
        kind = name.split(",")[0]
        alone = results["workers"][f"{kind}, 1"]["busiest"]
        rows.append(
            [name, f"{run['busiest']:.1f}", f"{alone / run['busiest']:.2f}", f"{run['all']:.1f}"]
        )
    head = ["workers of one thread", "seconds of the busiest", "times as fast as one", "all"]
    return markdown_table(head, rows)


def _scaling_models(results: dict[str, Any]) -> str:
    """Computed: time and bytes of large models."""
    rows = []
    for name, model in results["computed"].items():
        for settings in ("tiles", "tolerance 1 %"):
            run = model[settings]
            minutes = run["minutes by nodes"]
            rows.append(
                [
                    f"{name}, {settings}",
                    f"{model['layers']:,}",
                    f"{run['windows']:,}",
                    f"{run['gigabytes read']:,}",
                    f"{run['core hours']:.3g}",
                    *(f"{minutes[nodes]:.2g}" for nodes in minutes),
                ]
            )
    nodes = list(next(iter(results["computed"].values()))["tiles"]["minutes by nodes"])
    head = ["computed", "layers", "windows", "GB read", "core hours"]
    return markdown_table([*head, *(f"minutes, {n} nodes" for n in nodes)], rows)


def _training(results: dict[str, Any]) -> str:
    side = results["sides"]["spectail"]
    rows = [
        ["seconds a measurement, median", f"{side['seconds']['measurement']:.2f}"],
        ["slowest", f"{results['slowest_seconds']:.2f}"],
        ["plain SVDs / spectail", _ratio(results["ratios"]["plain / spectail"])],
    ]
    return markdown_table(
        [f"ResNet-18, {side['weights']:,} weights, {side['windows']:,} windows", ""], rows
    )


def _balancer(results: dict[str, Any]) -> str:
    facts = results["sides"]["balanced"]
    shares = results["overhead_per_epoch"]
    rows = [
        ["measured between epochs", f"{shares['balanced']:.2%}"],
        ["measured on a copy, in the background", f"{shares['background']:.2%}"],
    ]
    return markdown_table(
        [
            (
                f"ResNet-18, {facts['layers']} layers, on a {facts['device'].upper()}: share of "
                f"an epoch"
            ),
            "",
        ],
        rows,
    )


def _prune(results: dict[str, Any]) -> str:
    rows = [
        ["loading alone, every weight read once", f"{results['loading_alone']['peak']:.0f}"],
        [f"loading and pruning, {results['method']}", f"{results['peak_megabytes']:.0f}"],
        *([f"of that: {name}", f"{size:.0f}"] for name, size in results["parts_megabytes"].items()),
    ]
    samples, length = results["calibration"]
    return markdown_table(
        [f"SmolLM2-135M, {samples} x {length} calibration tokens: peak memory", "MB"], rows
    )


def _solvers(results: dict[str, Any]) -> str:
    ways = list(next(iter(results.values())))
    rows = [
        [
            way,
            *(
                f"{found[way]['time / ours']['median']:.2f}" if way in found else "-"
                for found in results.values()
            ),
        ]
        for way in ways
    ]
    return markdown_table(["time / ours", *(f"{side} x {side}" for side in results)], rows)


if __name__ == "__main__":
    main()
