"""``python -m benchmarks NAME [options]``: run one benchmark and keep its result as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import (
    agreement,
    balancer,
    checkpoint,
    command,
    device,
    fit,
    layers,
    precision,
    prune,
    scaling,
    solvers,
    training,
)
from experiments.common import environment, save_json

BENCHMARKS = {
    "layers": layers,
    "solvers": solvers,
    "precision": precision,
    "fit": fit,
    "command": command,
    "agreement": agreement,
    "checkpoint": checkpoint,
    "training": training,
    "balancer": balancer,
    "prune": prune,
    "scaling": scaling,
    "device": device,
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> Path:
    """Run the benchmark that the command line names.

    Returns the file of its result, which is printed too.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="|".join(BENCHMARKS))
    for name, module in BENCHMARKS.items():
        options = names.add_parser(
            name, description=module.__doc__, help=(module.__doc__ or "").splitlines()[0]
        )
        options.add_argument(
            "--quick", action="store_true", help="tiny sizes: does the script work?"
        )
        options.add_argument(
            "--result", type=Path, help="the JSON file to write (default: benchmarks/results/)"
        )
        module.add_options(options)
    chosen = parser.parse_args(arguments)
    started = environment()
    results = BENCHMARKS[chosen.name].run(chosen)
    path = chosen.result or RESULTS / f"{chosen.name}{'_quick' if chosen.quick else ''}.json"
    result = {
        "benchmark": chosen.name,
        "quick": chosen.quick,
        "environment": started,
        "results": results,
    }
    save_json(path, result)
    print(json.dumps(results, indent=1))
    return path


if __name__ == "__main__":
    main()
