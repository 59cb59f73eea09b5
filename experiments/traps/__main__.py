"""python -m experiments.traps [--quick]: traps and the ERG gap of a small network.

A network with two hidden layers is trained on a made-up task (classes by a random linear map of
Gaussian inputs) with true labels, and with labels at random, far past the minimum of the test loss.
Its layers are measured at the start, at that minimum, and at the end. All seeds count. It takes
about five minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spectail as st
from experiments.common import (
    WORK,
    Journal,
    environment,
    fill_page,
    markdown_table,
    mean_and_spread,
    run_steps,
    save_json,
)
from spectail.measuring.layer import TRAPS_OF_MEAN

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "concepts.md"
LABELS = ("true", "random")
RATES = (1e-3, 1e-2)
"""Learning rates of Adam; SETOL says that large ones make traps."""
STAGES = ("start", "least test loss", "end")
SPEC = st.Spec(window="whole", cutoff="ks")
"""Whole matrices and the KS tail, as in the papers."""


@dataclass(frozen=True)
class Settings:
    """The size of the experiment."""

    seeds: int = 5
    steps: int = 10_000
    width: int = 256
    inputs: int = 64
    classes: int = 10
    n_train: int = 1000
    n_test: int = 2000
    batch: int = 100
    every: int = 50
    """Steps between two looks at the test loss."""


QUICK = Settings(seeds=2, steps=100, width=48, inputs=32, n_train=100, n_test=100, batch=50)


def main(arguments: list[str] | None = None) -> None:
    """Train and measure all networks, write the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a toy; the docs stay as they are")
    parser.add_argument("--fresh", action="store_true", help="forget an earlier run")
    parser.add_argument("--out", type=Path, help="folder of the results; the docs stay")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else Settings()
    own = options.out or (WORK / "quick" if options.quick else None)
    journal_path = (own or WORK) / "traps.jsonl"
    journal_path.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(journal_path, asdict(settings), fresh=options.fresh)
    runs = [(x, rate, seed) for x in LABELS for rate in RATES for seed in range(settings.seeds)]
    run_steps(journal, [(_key(*run), partial(trained, settings, *run)) for run in runs])
    table = table_of(journal.done, settings.seeds)
    found = {"environment": environment(), "settings": asdict(settings), "runs": journal.done}
    save_json((own or HERE) / "results.json", found)
    if own is None:
        fill_page(PAGE, {"traps": table})
    print(table)


def _key(labels: str, rate: float, seed: int) -> str:
    """Return the name of one training run."""
    return f"{labels} labels, rate {rate:g}, seed {seed}"


def trained(settings: Settings, labels: str, rate: float, seed: int) -> dict[str, Any]:
    """Train one network and measure it at each of the STAGES."""
    torch.manual_seed(seed)
    task = made_up_task(settings, labels)
    net = network(settings)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    states = {"start": (0, deepcopy(net))}
    least = math.inf
    inputs, targets = task["train"]
    for step in range(1, settings.steps + 1):
        index = torch.randint(len(targets), (settings.batch,))
        loss = nn.functional.cross_entropy(net(inputs[index]), targets[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # The first look counts too: with random labels the test loss only rises.
        if step % settings.every == 0 and (now := scores(net, task["test"])["loss"]) < least:
            least = now
            states["least test loss"] = (step, deepcopy(net))
    states["end"] = (settings.steps, net)
    return {
        stage: {"step": step, **measured(state, task)} for stage, (step, state) in states.items()
    }


def network(settings: Settings) -> nn.Sequential:
    """Return a network with two hidden layers, as PyTorch initialises it."""
    return nn.Sequential(
        nn.Linear(settings.inputs, settings.width),
        nn.ReLU(),
        nn.Linear(settings.width, settings.width),
        nn.ReLU(),
        nn.Linear(settings.width, settings.classes),
    )


def made_up_task(settings: Settings, labels: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw inputs and their classes by a random linear map; ``random`` labels for training only."""
    teacher = torch.randn(settings.inputs, settings.classes)
    task = {}
    for part, n in (("train", settings.n_train), ("test", settings.n_test)):
        inputs = torch.randn(n, settings.inputs)
        task[part] = (inputs, (inputs @ teacher).argmax(dim=1))
    if labels == "random":
        task["train"] = (task["train"][0], torch.randint(settings.classes, (settings.n_train,)))
    return task


@torch.no_grad()
def scores(net: nn.Module, part: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return loss and accuracy on a part of the task."""
    inputs, targets = part
    outputs = net(inputs)
    return {
        "loss": float(nn.functional.cross_entropy(outputs, targets)),
        "accuracy": float((outputs.argmax(dim=1) == targets).float().mean()),
    }


def measured(net: nn.Module, task: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return the scores of a network and the measurements of its two hidden layers."""
    analysis = st.analyze(net, spec=SPEC, traps=True, erg=True, device="cpu", include=["0", "2"])
    columns = ["name", "alpha", "n_tail", "n_traps", "trap_ratio", "trap_p", "erg_n", "erg_gap"]
    columns.append("reason")
    layers = [{key: getattr(layer, key) for key in columns} for layer in analysis.layers]
    return {**{part: scores(net, values) for part, values in task.items()}, "layers": layers}


def table_of(runs: dict[str, Any], seeds: int) -> str:
    """Return the table of the docs: mean and standard deviation over the seeds."""
    header = ["labels, rate", "stage", "train / test accuracy", "test loss", "traps, layer 1"]
    header += ["traps, layer 2", "of the mean", "trap ratio, layer 2"]
    header += ["alpha, layer 2", "ERG gap, layer 2"]
    rows = []
    for labels in LABELS:
        for rate in RATES:
            for stage in STAGES:
                found = [runs[_key(labels, rate, seed)][stage] for seed in range(seeds)]
                rows.append([f"{labels}, {rate:g}", stage, *_cells(found)])
    return markdown_table(header, rows)


def _cells(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the numbers of one row."""
    accuracies = [
        mean_and_spread([run[part]["accuracy"] for run in found], 2) for part in ("train", "test")
    ]

    def of(layer: int, key: str, digits: int) -> str:
        # A layer without a fit has null in the journal.
        values = [run["layers"][layer][key] for run in found]
        return mean_and_spread([math.nan if x is None else x for x in values], digits)

    traps = [layer for run in found for layer in run["layers"] if layer["n_traps"]]
    of_mean = sum(TRAPS_OF_MEAN in layer["reason"] for layer in traps)
    return [
        " / ".join(accuracies),
        mean_and_spread([run["test"]["loss"] for run in found], 1),
        of(0, "n_traps", 1),
        of(1, "n_traps", 1),
        f"{of_mean} of {len(traps)}",
        of(1, "trap_ratio", 2),
        of(1, "alpha", 1),
        of(1, "erg_gap", 0),
    ]


if __name__ == "__main__":
    main()
