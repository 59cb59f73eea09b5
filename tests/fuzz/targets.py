"""What is fuzzed: the seeds of each kind of file, and what spectail does with one."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import torch

from spectail.allocation.allocate import allocate
from spectail.allocation.allocation import Allocation
from spectail.allocation.sensitivities import Sensitivities
from spectail.analysis import Analysis, compare
from spectail.errors import SpectailError
from spectail.measuring.journal import Journal
from spectail.measuring.run import analyze
from spectail.measuring.shards import merge
from spectail.pruning.kept_scores import KeptScores
from spectail.pruning.setting import Setting
from spectail.training.balancer import Balancer
from spectail.training.history import History
from tests.training.nets import loss_of, net

from . import seeds
from .seeds import Seed


def measure(path: Path) -> None:
    """Open a model, measure every layer and sometimes make the table."""
    analysis = analyze(path)
    # The table takes as long as all the rest; it is made for one input in eight.
    if zlib.crc32(analysis.run.fingerprint.encode()) % 8 == 0:
        _ = analysis.table
    for layer in analysis.layers:
        # A row may fail for a reason that is known beforehand, not because something was tried and
        # ran out of memory or raised an error of another library.
        if "not enough memory" in layer.reason or "cannot be measured" in layer.reason:
            raise ValueError(layer.reason)


def use(analysis: Analysis, folder: Path) -> None:
    """Do what the commands do with an analysis: a table, a page, a comparison, allocations."""
    _ = analysis.table
    # The page takes ten times as long as all the rest; it is made for one input in eight.
    if zlib.crc32(repr(analysis).encode("utf-8", "replace")) % 8 == 0:
        analysis.save(folder)
    compare(analysis, analysis)
    for target, budget in (("sparsity", 0.5), ("bits", 4), ("lr", 1e-3)):
        try:
            allocate(analysis, target=target, budget=budget).summary()
        except SpectailError:
            continue


def load_analysis(path: Path) -> None:
    """Load an analysis and use it."""
    use(Analysis.load(path), path / "again")


def read_journal(path: Path) -> None:
    """Take back the records of a journal, as a run that goes on does."""
    run = seeds.run_of_journal()
    journal = Journal.open(path, run)
    journal.close()
    use(Analysis(run, tuple(journal.records.values())), path / "done")


def merge_parts(path: Path) -> None:
    """Merge the parts of a run."""
    _ = merge(path).table


def load_allocation(path: Path) -> None:
    """Load an allocation and use it."""
    allocation = Allocation.load(path)
    allocation.summary()
    _ = allocation.table
    allocation.save(path)
    if dict(Allocation.load(path)) != dict(allocation):
        raise ValueError("saved and loaded again, the allocation is another one")


def load_sensitivities(path: Path) -> None:
    """Load sensitivities, finished or not, and allocate bits by them."""
    found = Sensitivities.load(path, unfinished=True)
    found.summary()
    found.save(path)
    if Sensitivities.load(path, unfinished=True) != found:
        raise ValueError("saved and loaded again, the sensitivities are others")
    made = allocate(seeds.analysis(), target="bits", budget=4, missing="mean", sensitivities=found)
    made.summary()


def take_up_choice(path: Path) -> None:
    """Take up an interrupted choice of eps, and go on."""
    kept = KeptScores.open(path, seeds.RUN_OF_CHOICE)
    for eps in (0.1, 0.4, 0.5):
        kept.add(Setting(eps), kept.get(Setting(eps)) or math.nan)
    again = KeptScores.open(path, seeds.RUN_OF_CHOICE)
    if repr(again.scores) != repr(kept.scores):
        raise ValueError("saved and loaded again, the scores are others")


def load_state(path: Path) -> None:
    """Load the state of a Balancer and train on."""
    state = json.loads(path.read_text("utf-8", "surrogatepass"))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    balancer = Balancer(model, optimizer, "tempbalance", every=2)
    before = json.dumps(balancer.state_dict())
    try:
        balancer.load_state_dict(state)
    except SpectailError:
        if json.dumps(balancer.state_dict()) != before:
            raise ValueError("a state that was refused has changed the Balancer") from None
        raise
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    balancer.summary()
    balancer.state_dict()


def load_history(path: Path) -> None:
    """Load the history of a training and use it."""
    history = History.load(path)
    _ = history.table
    history.plot()
    for update in history[:2]:
        history.at(update.step)
    history.save(path / "again")


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    name: str
    make: Callable[[], Iterator[Seed]]
    run: Callable[[Path], None] = measure

    def case(self, number: int, seed: int) -> tuple[dict[str, bytes], str]:
        """The files of one damaged input, and which of them is opened."""
        good = _seeds(self.make)
        rng = Random(f"{self.name} {seed} {number}")
        start = good[number % len(good)]
        name = rng.choice(sorted(start.damaged))
        return start.files | {name: start.damaged[name](rng, start.files[name])}, start.entry

    def good(self) -> Seed:
        """The first good input."""
        return _seeds(self.make)[0]


@cache
def _seeds(make: Callable[[], Iterator[Seed]]) -> list[Seed]:
    return list(make())


TARGETS = {
    target.name: target
    for target in (
        Target("safetensors", seeds.safetensors),
        Target("quantised", seeds.quantised),
        Target("config.json", seeds.config_json),
        Target("index", seeds.index),
        Target("folders", seeds.folders),
        Target("adapters", seeds.adapters),
        Target("gguf", seeds.gguf_files),
        Target("torch", seeds.torch_files),
        Target("pickle", seeds.pickles),
        Target("distcp", seeds.distcp),
        Target("numpy", seeds.npy),
        Target("hdf5", seeds.hdf5),
        Target("flax", seeds.flax),
        Target("onnx", seeds.onnx_files),
        Target("analysis", seeds.analyses, load_analysis),
        Target("journal", seeds.journals, read_journal),
        Target("shards", seeds.shards, merge_parts),
        Target("allocation", seeds.allocations, load_allocation),
        Target("sensitivities", seeds.sensitivities, load_sensitivities),
        Target("choice", seeds.choices, take_up_choice),
        Target("balancer-state", seeds.states, load_state),
        Target("history", seeds.histories, load_history),
    )
}
