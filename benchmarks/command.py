"""The whole command on the demo model, against WeightWatcher 0.7.7 on the same weights.

Both run in turn, as fresh processes. spectail: ``spectail analyze demo`` with its defaults, from
start to written report. WeightWatcher: its whole process (transformers loads the same GGUF file),
and its ``analyze()`` alone, timed inside once the model is loaded. WeightWatcher lives in an
environment of its own, whose Python ``--weightwatcher`` names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Run, paired, run_command
from spectail.errors import SourceError
from spectail.models.formats.demo import DEMO_COMMAND, DEMO_PACKAGE

SCRIPT = Path(__file__).with_name("weightwatcher_side.py")
SPECTAIL = (sys.executable, "-c", "from spectail.cli import main; main()")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--weightwatcher",
        metavar="PYTHON",
        help="a Python with weightwatcher, transformers and gguf",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cutoff", default="median", help="of spectail; ks is WeightWatcher's")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; a quick run measures the first block's queries alone, once."""
    found = importlib.util.find_spec(DEMO_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SourceError(f"the demo model is not installed; install it with: {DEMO_COMMAND}")
    folder = found.submodule_search_locations[0]
    own, other, inside = [], [], []
    for i in range(1 if options.quick else options.rounds):
        turns = ["spectail", "weightwatcher"] if options.weightwatcher else ["spectail"]
        for turn in turns[:: -1 if i % 2 else 1]:
            if turn == "spectail":
                own.append(
                    _spectail(options.cutoff, only="*layers.0.*q_proj" if options.quick else None)
                )
            else:
                other.append(run_command([options.weightwatcher, str(SCRIPT), folder]))
                inside.append(
                    json.loads(
                        [line for line in other[-1].output.splitlines() if line.startswith("{")][-1]
                    )
                )
    result: dict[str, Any] = {
        "cutoff": options.cutoff,
        "spectail": _summary(own),
        "weightwatcher": "not measured",
    }
    if not other:
        return result
    alone = [turn["analyze_seconds"] for turn in inside]
    seconds = [turn.seconds for turn in own]
    result["weightwatcher"] = _summary(other) | {
        "analyze_seconds": alone,
        "load_seconds": [turn["load_seconds"] for turn in inside],
        "layers": inside[-1]["layers"],
        "versions": inside[-1]["versions"],
    }
    result["ratios"] = {
        "weightwatcher's analyze() alone / spectail's whole process": paired(alone, seconds),
        "weightwatcher's whole process / spectail's": paired(
            [turn.seconds for turn in other], seconds
        ),
        "processor time: weightwatcher's whole process / spectail's": paired(
            [turn.processor_seconds for turn in other], [turn.processor_seconds for turn in own]
        ),
        "peak memory: weightwatcher / spectail": paired(
            [turn.peak_megabytes for turn in other], [turn.peak_megabytes for turn in own]
        ),
    }
    return result


def _spectail(cutoff: str, only: str | None) -> Run:
    """One fresh ``spectail analyze demo``."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = ["--include", only] if only else []
        command = [
            *SPECTAIL,
            "analyze",
            "demo",
            "--out",
            f"{folder}/out",
            "--cutoff",
            cutoff,
            "--quiet",
            *chosen,
        ]
        return run_command(command)


def _summary(runs: list[Run]) -> dict[str, Any]:
    return {
        "seconds": [round(run.seconds, 2) for run in runs],
        "processor_seconds": [round(run.processor_seconds, 2) for run in runs],
        "peak_megabytes": [run.peak_megabytes for run in runs],
    }
