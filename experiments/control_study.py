"""Training with a rule by alpha and with all its controls.

Candidates, the choice among them, and tables. Every candidate (an arrangement of the factors, a
base rate, a map) is trained with every seed, and each run keeps its validation and its test result.
The setting of a rule for one seed is the candidate that is best in the mean validation result of
all the *other* seeds: no run takes part in choosing itself, and test data choose nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor, nn

import spectail as st
from experiments.common import markdown_table, mean_and_spread
from experiments.controls import (
    Arrangement,
    ByDepth,
    ByKind,
    Constant,
    Shuffled,
    ShuffledOnce,
    control_of,
    depth_order,
)
from spectail.training.history import Update
from spectail.training.rules import Rule

ALPHA = "by alpha"
PLAIN = "plain"
"""One rate for all layers; each experiment shows it by a name of its own."""
KINDS = "mean factor of its kind"
RULES: dict[str, tuple[str, ...]] = {
    PLAIN: (PLAIN,),
    ALPHA: (ALPHA,),
    "by depth": ("rising with depth", "falling with depth"),
    "shuffled every round": ("shuffled every round",),
    "shuffled once": ("shuffled once",),
    "mean factor": ("mean factor",),
    KINDS: (KINDS,),
}
"""The arrangements that each rule may choose from; all have the same base rates and maps."""


CHOSEN = ("rule", "test", "less alpha's", "less one rate's", "settings chosen")
EVERY = (
    *("setting", "validation", "test", "less alpha's at the same rate and map"),
    *("mean factor", "alpha and depth"),
)


@dataclass(frozen=True)
class Candidate:
    """One setting of a rule."""

    arrangement: str
    lr: float
    map: str = ""
    """The map from alpha to factors; empty for one rate."""

    def __str__(self) -> str:
        return " | ".join(filter(None, (self.arrangement, f"{self.lr:g}", self.map)))


@dataclass(frozen=True)
class Grid:
    """What all rules of a case choose from."""

    lrs: tuple[float, ...]
    maps: tuple[str, ...]
    kinds: bool = False
    """Whether the network has several kinds of layers, so that there is a control of kinds."""
    beside: tuple[float, ...] = ()
    """Base rates that only one rate is trained with, for the table: no rule may choose them."""

    @property
    def rules(self) -> list[str]:
        """The rules that are compared."""
        return [rule for rule in RULES if self.kinds or rule != KINDS]

    def candidates(self, rule: str) -> list[Candidate]:
        """The settings of a rule."""
        maps = ("",) if rule == PLAIN else self.maps
        return [
            Candidate(arrangement, lr, how)
            for arrangement in RULES[rule]
            for lr in self.lrs
            for how in maps
        ]


Run: TypeAlias = tuple[str, Candidate, int]
"""A case, a candidate and a seed."""
Train: TypeAlias = Callable[[str, Candidate, int], dict[str, Any]]
"""Trains one run and returns its validation and its test result, and what the factors were."""


@dataclass(frozen=True)
class Study:
    """The cases (a network and a task), their grids, and how results compare."""

    grids: Mapping[str, Grid]
    seeds: int
    plain: str
    """How tables call one rate for all layers."""
    best: Callable[..., Candidate]
    """``max`` where results are accuracies, ``min`` where they are errors."""

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed over all cases, so that a study that is stopped is balanced."""
        for seed in range(self.seeds):
            for case, grid in self.grids.items():
                for rule in grid.rules:
                    for candidate in grid.candidates(rule):
                        yield case, candidate, seed
        for seed in range(self.seeds):
            for case, grid in self.grids.items():
                for lr in grid.beside:
                    yield case, Candidate(PLAIN, lr), seed

    def begun(self, done: Mapping[str, Any], case: str) -> list[str]:
        """The rules of a case that the first seed has been run with, with all their candidates."""
        grid = self.grids[case]
        return [
            rule
            for rule in grid.rules
            if all(key(case, candidate, 0) in done for candidate in grid.candidates(rule))
        ]

    def complete(self, done: Mapping[str, Any], case: str) -> int:
        """The number of seeds that have been run with all candidates of the rules begun."""
        rules = self.begun(done, case)
        every = [c for rule in rules for c in self.grids[case].candidates(rule)]
        missing = (
            seed
            for seed in range(self.seeds)
            if not all(key(case, candidate, seed) in done for candidate in every)
        )
        return next(missing, self.seeds) if every else 0

    def chosen(self, done: Mapping[str, Any], case: str, rule: str, seed: int) -> Candidate:
        """The candidate of the best mean validation result over all complete seeds but this one.

        A single seed chooses by its own validation result.
        """
        others = [other for other in range(self.complete(done, case)) if other != seed] or [seed]
        return self.best(
            self.grids[case].candidates(rule),
            key=lambda c: fmean(done[key(case, c, other)]["validation"] for other in others),
        )


def key(case: str, candidate: Candidate, seed: int) -> str:
    """The step of one run."""
    return f"{case} | {candidate} | {seed}"


def rule_of(
    candidate: Candidate,
    rule: st.TempBalance | st.TBSigmoid,
    network: nn.Module,
    example: Tensor,
    seed: int,
) -> Rule | None:
    """Return the rule of a candidate; ``rule`` goes by alpha with the map of the candidate.

    None for one rate.
    """
    if candidate.arrangement == PLAIN:
        return None
    if candidate.arrangement == ALPHA:
        return rule
    order = depth_order(network, example)
    arrangements: dict[str, Arrangement] = {
        "rising with depth": ByDepth(order, rising=True),
        "falling with depth": ByDepth(order, rising=False),
        "shuffled every round": Shuffled(seed),
        "shuffled once": ShuffledOnce(seed),
        "mean factor": Constant(),
        KINDS: ByKind(),
    }
    return control_of(rule, arrangements[candidate.arrangement])


def of_factors(updates: Sequence[Update], order: Sequence[str]) -> dict[str, float]:
    """Return, in the mean over rounds, the mean factor and alpha's rank correlation with depth."""
    if not updates:
        return {}
    depths = [
        spearmanr([order.index(name) for name in update.alphas], list(update.alphas.values()))
        for update in updates
    ]
    return {
        "mean factor": fmean(fmean(update.factors.values()) for update in updates),
        "alpha and depth": float(np.mean([found.statistic for found in depths])),
    }


def tables(done: Mapping[str, Any], study: Study, digits: int) -> dict[str, str]:
    """Return the tables of the chosen settings and of every setting, one of each per case.

    A case takes part once one rate and alpha have been run with a seed.
    """
    parts: dict[str, list[str]] = {"controls": [], "every setting": []}
    for case in study.grids:
        seeds = study.complete(done, case)
        if not {PLAIN, ALPHA} <= set(study.begun(done, case)):
            continue
        heading = f"**{case}** ({seeds} {'seed' if seeds == 1 else 'seeds'})"
        chosen = markdown_table(CHOSEN, _chosen_rows(done, study, case, digits))
        every = markdown_table(EVERY, _every_row(done, study, case, digits))
        parts["controls"].append(f"{heading}\n\n{chosen}")
        parts["every setting"].append(f"{heading}\n\n{every}")
    return {name: "\n\n".join(texts) for name, texts in parts.items()}


def _chosen_rows(
    done: Mapping[str, Any], study: Study, case: str, digits: int
) -> Iterator[list[str]]:
    """One row per rule: mean and spread over seeds, and of the differences seed by seed."""
    seeds, rules = range(study.complete(done, case)), study.begun(done, case)
    chosen = {rule: [study.chosen(done, case, rule, seed) for seed in seeds] for rule in rules}
    tests = {rule: _tests(done, case, found) for rule, found in chosen.items()}
    for rule, found in tests.items():
        settings = Counter(str(c).removeprefix(f"{rule} | ") for c in chosen[rule])
        shown = "; ".join(f"{setting} ({n})" for setting, n in settings.items())
        yield [
            study.plain if rule == PLAIN else rule,
            mean_and_spread(found, digits),
            *("" if rule == b else _less(found, tests[b], digits) for b in (ALPHA, PLAIN)),
            shown.replace(" | ", ", "),
        ]


def _every_row(
    done: Mapping[str, Any], study: Study, case: str, digits: int
) -> Iterator[list[str]]:
    """One row per candidate: mean and spread over seeds."""
    seeds, grid = range(study.complete(done, case)), study.grids[case]
    candidates = [c for rule in grid.rules for c in grid.candidates(rule)]
    beside = [Candidate(PLAIN, lr) for lr in grid.beside]
    # One rate has no map, so it compares only where alpha has a single one.
    map_of_plain = grid.maps[0] if len(grid.maps) == 1 else None
    for candidate in (*beside, *candidates):
        if not all(key(case, candidate, seed) in done for seed in seeds):
            continue
        runs = [done[key(case, candidate, seed)] for seed in seeds]
        tests = [run["test"] for run in runs]
        plain = candidate.arrangement == PLAIN
        alpha = Candidate(ALPHA, candidate.lr, (map_of_plain if plain else candidate.map) or "")
        comparable = alpha in candidates and alpha != candidate
        yield [
            str(candidate).replace(PLAIN, study.plain).replace(" | ", ", "),
            mean_and_spread([run["validation"] for run in runs], digits),
            mean_and_spread(tests, digits),
            _less(tests, _tests(done, case, [alpha] * len(seeds)), digits) if comparable else "",
            *(
                "" if plain else mean_and_spread([run[w] for run in runs], 2)
                for w in ("mean factor", "alpha and depth")
            ),
        ]


def _tests(done: Mapping[str, Any], case: str, by_seed: Sequence[Candidate]) -> list[float]:
    """Test results, seed by seed, of the candidate of each seed."""
    return [done[key(case, candidate, seed)]["test"] for seed, candidate in enumerate(by_seed)]


def _less(found: Sequence[float], base: Sequence[float], digits: int) -> str:
    """Mean and spread of the differences seed by seed."""
    return mean_and_spread([a - b for a, b in zip(found, base, strict=True)], digits, "+")
