"""Every column of ``presets.WEIGHTWATCHER`` against WeightWatcher 0.7.7, on real models.

Each model is measured by both, WeightWatcher in an environment of its own, whose Python
``--weightwatcher`` names. Layers are paired by name; the largest relative difference of each column
is reported with the layer that has it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import spectail as st
from benchmarks.common import run_command
from experiments.stability.catalogue import CATALOGUE, find
from spectail.errors import SourceError
from spectail.models.naming.names import clean_names, layer_name

SCRIPT = Path(__file__).with_name("weightwatcher_table.py")
COLUMNS = {
    "alpha": "alpha",
    "xmin": "xmin",
    "D": "ks",
    "num_pl_spikes": "n_tail",
    "num_evals": "n_eigenvalues",
    "norm": "frobenius_norm_sq",
    "log_norm": "log_norm",
    "spectral_norm": "lambda_max",
    "log_spectral_norm": "log_spectral_norm",
    "alpha_weighted": "alpha_weighted",
    "log_alpha_norm": "log_alpha_norm",
    "stable_rank": "stable_rank",
    "rank_loss": "rank_loss",
    "matrix_rank": "matrix_rank",
    "entropy": "entropy",
}
"""WeightWatcher's columns and ours."""
MEANS = ("alpha", "alpha_weighted", "log_norm", "log_spectral_norm", "log_alpha_norm")
"""What WeightWatcher's ``get_summary`` averages."""
MODELS = ("SmolLM2-135M", "all-MiniLM-L6", "EfficientNet-Lite0", "CRAFT")
"""A language model, an encoder and two vision models, one with depth-wise convolutions."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--weightwatcher",
        metavar="PYTHON",
        help="a Python with weightwatcher, transformers and gguf",
    )
    parser.add_argument(
        "--packages",
        metavar="DIR",
        action="append",
        default=[],
        help="a folder of packages with models, beside those installed",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare all models, a quick run the encoder alone; nothing without WeightWatcher."""
    if not options.weightwatcher:
        return {"weightwatcher": "not measured"}
    result: dict[str, Any] = {}
    wanted = MODELS[1:2] if options.quick else MODELS
    for model in (model for model in CATALOGUE if model.name in wanted):
        path = find(model, options.packages)
        if path is None:
            raise SourceError(f"{model.name} is not installed; install {model.package}")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "table.json"
            run_command([options.weightwatcher, str(SCRIPT), str(path), str(out)])
            found = json.loads(out.read_text())
        analysis = st.analyze(path, spec=st.presets.WEIGHTWATCHER)
        rows = {layer.name: layer.row() for layer in analysis.layers}
        # Checkpoints of wrapped models have names such as ``module.conv``, which spectail cleans.
        names = clean_names([row["longname"] + ".weight" for row in found["rows"]])
        theirs = {layer_name(n): row for n, row in zip(names, found["rows"], strict=True)}
        result[model.name] = compare(theirs, rows)
        result[model.name]["means"] = {
            metric: [_mean(found["rows"], metric), analysis.summary()[metric].mean]
            for metric in MEANS
        }
        result["weightwatcher"] = found["versions"]
    return result


def compare(
    theirs: Mapping[str, Mapping[str, Any]], ours: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return how many layers both have, which one only, and the largest difference per column."""
    both = [name for name in theirs if name in ours and ours[name]["status"] == "ok"]
    columns = {}
    for their_column, our_column in COLUMNS.items():
        gaps = {name: _gap(theirs[name][their_column], ours[name][our_column]) for name in both}
        worst = max(gaps, key=lambda name: gaps[name])
        columns[our_column] = {"difference": gaps[worst], "layer": worst}
    return {
        "layers": len(both),
        "only in WeightWatcher": [name for name in theirs if name not in both],
        "only in spectail": [
            f"{name}: {row['reason']}" if row["status"] != "ok" else name
            for name, row in ours.items()
            if name not in theirs
        ],
        "columns": columns,
    }


def _gap(a: float | None, b: float) -> float:
    """Return the relative difference of two numbers; infinite if one of them is missing."""
    if a == b:
        return 0.0
    if a is None or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def _mean(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    """Return the plain mean of a column, as WeightWatcher's summary has it."""
    return float(sum(row[metric] for row in rows) / len(rows))
