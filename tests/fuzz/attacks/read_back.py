"""Attacks by files that spectail writes and reads back: values that it would never write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from .. import builders as b
from .. import seeds

Change: TypeAlias = Callable[[Any], object]
"""Changes parsed JSON in place."""


def _row(**values: Any) -> Change:
    """Change the first layer of an analysis."""
    return lambda stored: stored["layers"][0].update(values)


def _run(**values: Any) -> Change:
    return lambda stored: stored["run"].update(values)


def _spectrum(**values: Any) -> Change:
    return lambda stored: stored["layers"][1]["spectrum"].update(values)


def _share(**values: Any) -> Change:
    """Change the first layer of an allocation."""
    return lambda stored: stored["shares"][0].update(values)


def _set(**values: Any) -> Change:
    return lambda stored: stored.update(values)


ROWS: dict[str, Change] = {
    "numel: 0": _row(numel=0),
    "numel: -1": _row(numel=-1),
    "numel: 2^63": _row(numel=2**63),
    "numel: 10^400": _row(numel=10**400),
    "rows: 1.5": _row(rows=1.5),
    "rows: true": _row(rows=True),
    "rows: a text": _row(rows="96"),
    "rows: nothing": _row(rows=None),
    "alpha: a text": _row(alpha="2"),
    "alpha: 1.7e308": _row(alpha=1.7e308),
    "alpha: -1.7e308": _row(alpha=-1.7e308, alpha_se=1e-320),
    "alpha: 10^400": _row(alpha=10**400),
    "alpha: a list": _row(alpha=[2.0]),
    "alpha: infinity": _row(alpha=float("inf")),
    "alpha: NaN": _row(alpha=float("nan")),
    "lambda_max: -1": _row(lambda_max=-1.0, frobenius_norm_sq=-5.0),
    "xmin: 0": _row(xmin=0.0),
    "seconds: -1e308": _row(seconds=-1e308),
    "alpha: 0.5": _row(alpha=0.5),
    "ks: 7": _row(ks=7.0),
    "alpha_se: -1": _row(alpha_se=-1.0),
    "n_tail: -1": _row(n_tail=-1),
    "kind: one that does not exist": _row(kind="\x1b[31mz"),
    "status: other": _row(status="fine"),
    "status: nothing": _row(status=None),
    "name: nothing": _row(name=None),
    "name: empty": _row(name=""),
    "name: a number": _row(name=3),
    "name: a dict": _row(name={"a": 1}),
    "name: NUL": _row(name="a\0b"),
    "name: half of a pair": _row(name="\ud800"),
    "name: another layer's": _row(name="model.layers.1.mlp.up_proj"),
    "kind: a dict": _row(kind={}),
    "block: -1": _row(block=-1),
    "block: 2^62": _row(block=2**62),
    "comparable: a text": _row(comparable="no"),
    "an unknown field": _row(other=1),
    "a field in a row that is a method": _row(to_dict=1),
    "no row": lambda stored: stored["layers"].clear(),
    "rows that are a dict": _set(layers={"a": 1}),
    "a row that is a list": lambda stored: stored["layers"].insert(0, [1]),
    "edges: one": _spectrum(edges=[1.0]),
    "edges: infinite": _spectrum(edges=[float("-inf"), 1.0]),
    "edges: turned round": _spectrum(edges=[5.0, -5.0]),
    "edges: 1e308": _spectrum(edges=[-1e308, 1e308]),
    "counts: none": _spectrum(counts=[]),
    "counts: a million": _spectrum(counts=[1] * 10**6),
    "counts: -1": _spectrum(counts=[-1] * 80),
    "top: none": _spectrum(top=[]),
    "top: rank 0": _spectrum(top=[[0, 1.0]]),
    "top: eigenvalue 0": _spectrum(top=[[1, 0.0]]),
    "top: triples": _spectrum(top=[[1, 2.0, 3.0]]),
    "top: texts": _spectrum(top=[["1", "2"]]),
    "a spectrum that is a text": _row(spectrum="x"),
    "rounding: pairs": _row(rounding=[["int4", 4.0]]),
    "rounding: bits of 0": _row(rounding=[["int4", 0.0, 0.0]]),
    "rounding: bits of -4": _row(rounding=[["int4", -4.0, -1.0]]),
    "a run that is a list": _set(run=[]),
    "no run": lambda stored: stored.pop("run"),
    "a run without a spec": lambda stored: stored["run"].pop("spec"),
    "spec: a list": _run(spec=[1]),
    "window: -1": _run(window=-1),
    "window: 10^400": _run(window=10**400),
    "include: a text": _run(include="abc"),
    "include: numbers": _run(include=[1, 2]),
    "versions: a list": _run(versions=["spectail"]),
    "versions: numbers": _run(versions={"spectail": 1}),
    "notes: dicts": _run(notes=[{}]),
    "source: nothing": _run(source=None),
    "n_vectors: -1": _run(n_vectors=-1),
    "placement: superscript": lambda stored: stored["run"]["spec"].update(placement="grid:²"),
    "placement: 5,000 digits": lambda s: s["run"]["spec"].update(placement="grid:" + "9" * 5000),
    "cutoff: top:nan": lambda stored: stored["run"]["spec"].update(cutoff="top:nan"),
    "cutoff: top:1e400": lambda stored: stored["run"]["spec"].update(cutoff="top:1e400"),
    "cutoff: a list": lambda stored: stored["run"]["spec"].update(cutoff=["median"]),
    "seed: -1": lambda stored: stored["run"]["spec"].update(seed=-1),
    "aspect ratio: 0": lambda stored: stored["run"]["spec"].update(aspect_ratio=0),
    "tolerance: 1e308": lambda stored: stored["run"]["spec"].update(tolerance=1e308),
}
"""Changes of an analysis. Those of layers are made to a journal, too."""

ALLOCATIONS: dict[str, Change] = {
    "numel: 0": _share(numel=0),
    "numel: all 0": lambda stored: [share.update(numel=0) for share in stored["shares"]],
    "numel: 10^400": _share(numel=10**400),
    "value: 1.7e308": lambda stored: [share.update(value=1.7e308) for share in stored["shares"]],
    "value: -0.5": _share(value=-0.5),
    "value: a sparsity of 2": _share(value=2.0),
    "value: infinity": _share(value=float("inf")),
    "value: a text": _share(value="0.5"),
    "value: true": _share(value=True),
    "alpha: a list": _share(alpha=[1]),
    "unit: nothing": _share(unit=None),
    "unit: superscript": _share(unit="model.layers.²"),
    "name: a list": _share(name=["a"]),
    "name: half of a pair": _share(name="\ud800"),
    "a name twice": lambda stored: stored["shares"].append(stored["shares"][0]),
    "no layers": _set(shares=[]),
    "layers that are a dict": _set(shares={"a": 1}),
    "settings: a list": _set(settings=[1]),
    "settings: by a number": _set(settings={"by": 3, "rule": None}),
    "settings: pairs of texts": _set(settings={"bounds": ["a", "b"]}),
    "settings: pairs of 10^400": _set(settings={"bounds": [10**400, 1]}),
    "settings: a map that is no name": _set(settings={"alpha": {"model.layers.0": "x"}}),
    "settings: deep": _set(settings={"a": b.inside("a", 900)}),
    "left_out: a number": _set(left_out=3),
    "left_out: an unknown code": _set(left_out=[{"name": "a", "code": "x", "reason": "y"}]),
    "left_out: a code that is a list": _set(left_out=[{"name": "a", "code": [], "reason": "y"}]),
    "left_out: a reason that is a dict": _set(left_out=[{"name": "a", "reason": {}}]),
    "notes: a number": _set(notes=3),
    "budget: a text": _set(budget="x"),
    "budget: 10^400": _set(budget=10**400),
    "target: unknown": _set(target="size"),
    "target: a list": _set(target=["sparsity"]),
    "format: a list": _set(format=["spectail allocation"]),
    "an unknown field": _set(other=1),
    "spec: a text": _set(spec="x"),
}

STATES: dict[str, Change] = {
    "steps: -1": _set(steps=-1),
    "steps: 10^400": _set(steps=10**400),
    "steps: a text": _set(steps="5"),
    "since: 1.5": _set(since=1.5),
    "window: 0.5": _set(window=0.5),
    "window: -1": _set(window=-1),
    "no start": _set(start={}),
    "a factor of NaN": lambda stored: stored["start"].update({"3": float("nan")}),
    "a factor of infinity": lambda stored: stored["goal"].update({"3": float("inf")}),
    "a factor of -1": lambda stored: stored["goal"].update({"3": -1.0}),
    "a factor that is a text": lambda stored: stored["goal"].update({"3": "x"}),
    "layers: a list": _set(layers=["3"]),
    "layers: shapes of texts": _set(layers={"3": "x"}),
    "rule: a list": _set(rule=[]),
    "rule: nothing": _set(rule=None),
    "waiting: a number": _set(waiting=3),
    "lacking: a list": _set(lacking=["3"]),
    "warned: numbers": _set(warned=[1, [2]]),
    "groups: a dict": _set(groups={"a": 1}),
    "groups: a rate that is a text": _set(
        groups=[{"place": [0, 0], "key": "lr", "shown": 0.1, "values": [["3", ["fast"]]]}]
    ),
    "groups: parameters": _set(
        groups=[{"place": [0, 0], "key": "params", "shown": [], "values": [["3", [[1]]]]}]
    ),
    "groups: a place of three": _set(
        groups=[{"place": [0, 0, 0], "key": "lr", "shown": 0.1, "values": []}]
    ),
    "groups: values that are pairs": _set(
        groups=[{"place": [0, 0], "key": "lr", "shown": 0.1, "values": [["3", [0.1, 0.2]]]}]
    ),
    "pending: a number": _set(pending=3),
    "pending: a record of nothing": _set(pending={"step": 1, "records": [{}]}),
    "pending: records of another model": _set(pending={"step": 1, "records": []}),
    "history: a list": _set(history=[]),
    "history: of something else": _set(history={"format": "x"}),
    "format: nothing": _set(format=None),
}

HISTORIES: dict[str, Change] = {
    "names: numbers": _set(names=[3]),
    "rule: a text": _set(rule="x"),
    "updates: a dict": _set(updates={}),
    "an update of nothing": _set(updates=[{}]),
    "a step of -1": lambda stored: stored["updates"][0].update(step=-1),
    "a step of 10^400": lambda stored: stored["updates"][0].update(step=10**400),
    "alphas: a list": lambda stored: stored["updates"][0].update(alphas=[2.0]),
    "an alpha of infinity": lambda stored: stored["updates"][0]["alphas"].update({"3": 1e999}),
    "layers: too few values": lambda stored: stored["updates"][0]["layers"].update({"3": [1]}),
    "layers: values of other types": lambda s: s["updates"][0]["layers"].update({"3": [[]] * 8}),
    "layers: a row that is a list": _set(layers=[[1]]),
    "run: a list": _set(run=[]),
}


def _changed(seed: seeds.Seed, change: Change) -> dict[str, bytes]:
    """The files of a seed whose one JSON file is changed."""
    (name,) = seed.damaged
    stored = json.loads(seed.files[name])
    change(stored)
    return seed.files | {name: json.dumps(stored).encode()}


def _journal(change: Change) -> dict[str, bytes]:
    """A journal whose run and records are changed as those of an analysis."""
    (seed,) = seeds.journals()
    head, *rows = map(json.loads, seed.files[".progress.jsonl"].decode().splitlines())
    stored = {"run": head["run"], "layers": rows}
    change(stored)
    lines = [head | {"run": stored.get("run")}, *stored["layers"]]
    return {".progress.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}


def files_of(target: str, change: Change) -> dict[str, bytes]:
    """The files of one attack on a target."""
    if target == "journal":
        return _journal(change)
    makers = {
        "analysis": seeds.analyses,
        "allocation": seeds.allocations,
        "balancer-state": seeds.states,
        "history": seeds.histories,
    }
    return _changed(next(makers[target]()), change)


def write(folder: Path, target: str, change: Change) -> None:
    """Write the files of one attack."""
    for name, content in files_of(target, change).items():
        b.put(folder, name, content)


READ_BACK: dict[str, dict[str, Change]] = {
    "analysis": ROWS,
    "journal": ROWS,
    "allocation": ALLOCATIONS,
    "balancer-state": STATES,
    "history": HISTORIES,
}
"""Attacks on each file that spectail reads back."""
