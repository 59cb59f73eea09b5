"""``python -m experiments.images.controls``: TempBalance against its controls.

The controls give the same factors to the layers in other ways.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import spectail as st
from experiments.common import ROOT
from experiments.control_runs import options_of, run
from experiments.control_study import Candidate, Grid, Study, of_factors, rule_of
from experiments.controls import depth_order
from experiments.images.data import FASHION, Images, drawn, load
from experiments.images.networks import NETWORKS
from experiments.images.train import Recipe, accuracy, fit
from spectail.training.history import Update

SPECS = {
    "whole matrices": st.presets.TEMPBALANCE,
    "windows": st.Spec(window=16),
}
"""How alpha is measured, as in ``experiments.images``."""
RANGE = ("linear:0.5:1.5",)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; networks, data and training as in ``experiments.images``."""

    grids: dict[str, Grid] = field(
        default_factory=lambda: {"VGG-16": Grid((0.05,), RANGE, beside=(0.0375,))}
    )
    """By network, or by network and a name of ``SPECS`` after a comma.

    Whole matrices, which gained most in ``experiments.images``, need no name.
    """
    width: int = 16
    n_train: int = 5000
    n_validation: int = 2000
    epochs: int = 6
    batch: int = 64
    seeds: int = 6


RATES = {"VGG-16": (0.0125, 0.025, 0.05), "ResNet-18": (0.025, 0.05, 0.1)}
FULL = Settings(
    grids={
        f"{network}, {spec}": Grid(lrs, RANGE) for network, lrs in RATES.items() for spec in SPECS
    },
    n_train=10_000,
    n_validation=10_000,
    batch=128,
)
QUICK = Settings(
    grids={"toy": Grid((0.05,), RANGE)},
    n_train=64,
    n_validation=32,
    epochs=2,
    batch=32,
    seeds=2,
)


@dataclass(frozen=True)
class Training:
    """One run from scratch.

    The seed decides the first weights, the order of the images and the shuffles.
    """

    images: Images
    settings: Settings
    device: str

    def __call__(self, case: str, candidate: Candidate, seed: int) -> dict[str, Any]:
        """Train, and return accuracies in per cent and what the factors were."""
        network, _, spec = case.partition(", ")
        example = self.images.train[0][:2].to(self.device)
        torch.manual_seed(seed)
        model = NETWORKS[network](self.settings.width, example.shape[1], self.images.classes)
        model = model.to(self.device)
        by_alpha = st.TempBalance(
            map=candidate.map or RANGE[0], spec=SPECS[spec or "whole matrices"]
        )
        recipe = Recipe(
            epochs=self.settings.epochs,
            batch=self.settings.batch,
            lr=candidate.lr,
            seed=seed,
            device=self.device,
        )
        updates: list[Update] = []
        rule = rule_of(candidate, by_alpha, model, example, seed)
        found = fit(model, self.images, recipe, rule, None, updates.append)
        return {
            "validation": found["validation"],
            "test": accuracy(model, self.images.test),
            **of_factors(updates, depth_order(model, example)),
        }


def trainer(options: argparse.Namespace, settings: Settings) -> Training:
    """Load the images; each process that trains does so itself."""
    sizes = {"n_train": settings.n_train, "n_validation": settings.n_validation}
    images = drawn(settings.n_train) if options.quick else load(options.data, **sizes)
    return Training(images, settings, options.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 3 when ``--seconds`` ran out before."""
    parser = argparse.ArgumentParser(prog="python -m experiments.images.controls")
    parser.add_argument(
        "--data", type=Path, default=FASHION, help="folder of Fashion-MNIST's files"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="both networks, whole matrices and windows, three base rates: for a GPU",
    )
    page = ROOT / "docs" / "images-results.md"
    options = options_of(parser, arguments, Path(__file__).parent, page)
    settings = QUICK if options.quick else FULL if options.full else Settings()
    study = Study(settings.grids, settings.seeds, plain="one rate", best=max)
    return run(study, partial(trainer, options, settings), options, asdict(settings), digits=2)


if __name__ == "__main__":
    sys.exit(main())
