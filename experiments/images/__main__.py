"""``python -m experiments.images``: train with every method at its best setting.

Every method has several seeds; a table and a plot are written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.ticker import MaxNLocator
from torch import nn

import spectail as st
from experiments.common import (
    Journal,
    markdown_table,
    mean_and_spread,
    on_device,
    publish,
    run_options,
    run_steps,
)
from experiments.drawing import COLOURS, panels, save
from experiments.images.data import FASHION, Images, drawn, load
from experiments.images.networks import NETWORKS
from experiments.images.train import Recipe, accuracy, fit, spread

SEARCH_SEED = 1000
"""The first of those that settings are chosen with."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; the defaults are narrow networks for a CPU."""

    networks: tuple[str, ...] = ("ResNet-18", "VGG-16")
    width: int = 16
    n_train: int = 5000
    n_validation: int = 2000
    epochs: int = 6
    batch: int = 64
    lrs: tuple[float, ...] = (0.05, 0.1)
    ranges: tuple[tuple[float, float], ...] = ((0.1, 1.9), (0.5, 1.5))
    search_seeds: int = 1
    """Each setting is scored by the mean of so many runs."""
    seeds: int = 3
    window: int = 16
    """Of the method and of the alphas that are reported; no larger than the narrowest layer."""
    aspect_ratios: tuple[float, ...] = (0.5, 0.75, 1.25, 1.5)
    windows: tuple[int, ...] = (8, 32)
    ablated: tuple[str, ...] = ("VGG-16",)
    """Networks on which other windows are tried."""


FULL = Settings(
    width=64, n_train=50_000, n_validation=10_000, epochs=200, batch=128, window=64,
    windows=(32, 128),
    ablated=("ResNet-18", "VGG-16"),
    ranges=tuple((round(x, 1), round(2 - x, 1)) for x in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
)  # fmt: skip
QUICK = Settings(
    networks=("toy",), width=16, n_train=64, n_validation=32, epochs=1, batch=32, lrs=(0.05,),
    ranges=((0.5, 1.5),),
    seeds=2, aspect_ratios=(0.5,), windows=(), ablated=("toy",),
)  # fmt: skip


def specs(settings: Settings) -> dict[str, st.Spec | None]:
    """The methods: how each measures alpha; None for one rate for all."""
    return {
        "one rate": None,
        "TempBalance, whole matrices": st.presets.TEMPBALANCE,
        "TempBalance, windows": st.Spec(window=settings.window),
    }


def ablations(settings: Settings) -> dict[str, st.Spec]:
    """Other windows, at the setting that was chosen for the windows of the comparison."""
    base = st.Spec(window=settings.window)
    ratios = {f"ratio {q:g}": replace(base, aspect_ratio=q) for q in settings.aspect_ratios}
    return ratios | {f"windows of {w}": replace(base, window=w) for w in settings.windows}


class Experiment:
    """The steps over all networks and methods."""

    def __init__(self, images: Images, settings: Settings, journal: Journal, device: str) -> None:
        self.images, self.settings, self.journal, self.device = images, settings, journal, device

    def steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The comparison first, then other windows."""
        yield from self.comparison()
        for network in self.settings.ablated:
            for name, spec in ablations(self.settings).items():
                for seed in range(self.settings.seeds):
                    key = f"ablation | {network} | {name} | {seed}"
                    yield key, partial(self.final, network, "TempBalance, windows", spec, seed)

    def comparison(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Search settings on validation images with a seed of their own, then run every seed."""
        for network in self.settings.networks:
            for method, spec in specs(self.settings).items():
                for lr, limits in self.tried(method):
                    for seed in range(self.settings.search_seeds):
                        key = search_key(network, method, lr, limits, seed)
                        yield key, partial(self.search, network, spec, lr, limits, seed)
            for seed in range(self.settings.seeds):
                for method, spec in specs(self.settings).items():
                    yield (
                        f"final | {network} | {method} | {seed}",
                        partial(self.final, network, method, spec, seed),
                    )

    def tried(self, method: str) -> list[tuple[float, tuple[float, float] | None]]:
        """The same base rates for all, and the same ranges for all that have one."""
        ranges = (None,) if method == "one rate" else self.settings.ranges
        return [(lr, limits) for lr in self.settings.lrs for limits in ranges]

    def chosen(self, network: str, method: str) -> tuple[float, tuple[float, float] | None]:
        """The setting of the best validation accuracy, in the mean of the seeds."""
        seeds, done = range(self.settings.search_seeds), self.journal.done

        def score(tried: tuple[float, tuple[float, float] | None]) -> float:
            return fmean(
                done[search_key(network, method, *tried, seed)]["validation"] for seed in seeds
            )

        return max(self.tried(method), key=score)

    def final(self, network: str, method: str, spec: st.Spec | None, seed: int) -> dict[str, Any]:
        """One seed at the chosen setting."""
        lr, limits = self.chosen(network, method)
        model, found = self.train(network, spec, (lr, limits), seed)
        return found | {"test": accuracy(model, self.images.test), "lr": lr, "range": limits}

    def search(
        self,
        network: str,
        spec: st.Spec | None,
        lr: float,
        limits: tuple[float, float] | None,
        seed: int,
    ) -> dict[str, Any]:
        """One setting, without a look at the test images."""
        return self.train(network, spec, (lr, limits), SEARCH_SEED + seed)[1]

    def train(
        self,
        network: str,
        spec: st.Spec | None,
        tried: tuple[float, tuple[float, float] | None],
        seed: int,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train from scratch; the seed decides the first weights and the order of the images."""
        lr, limits = tried
        torch.manual_seed(seed)
        model = NETWORKS[network](
            self.settings.width, self.images.train[0].shape[1], self.images.classes
        )
        recipe = Recipe(
            epochs=self.settings.epochs,
            batch=self.settings.batch,
            lr=lr,
            seed=seed,
            device=self.device,
        )
        rule = (
            st.TempBalance(map=f"linear:{limits[0]:g}:{limits[1]:g}", spec=spec)
            if spec and limits
            else None
        )
        return model, fit(model, self.images, recipe, rule, st.Spec(window=self.settings.window))


def search_key(
    network: str, method: str, lr: float, limits: tuple[float, float] | None, seed: int
) -> str:
    """The step that scores a setting."""
    shown = "" if limits is None else f"{limits[0]:g}:{limits[1]:g}"
    return f"search | {network} | {method} | {lr:g} | {shown} | {seed}"


def tables(done: dict[str, Any], settings: Settings) -> dict[str, str]:
    """Test accuracy and the spread of alpha across layers, mean and spread over seeds.

    Other windows are shown where all their runs are complete.
    """
    rows = []
    for network in settings.networks:
        for kind, names in (("final", specs(settings)), ("ablation", ablations(settings))):
            for name in names:
                keys = [f"{kind} | {network} | {name} | {seed}" for seed in range(settings.seeds)]
                if kind == "ablation" and not all(key in done for key in keys):
                    continue
                runs = [done[key] for key in keys]
                lr, limits = runs[0]["lr"], runs[0]["range"]
                shown = f"{lr:g}" + (f", {limits[0]:g} to {limits[1]:g}" if limits else "")
                rows.append(
                    [
                        f"{network}: {name}",
                        mean_and_spread([run["test"] for run in runs], 2),
                        mean_and_spread([spread(run["alphas"]) for run in runs], 3),
                        shown,
                    ]
                )
    head = [
        "network: method",
        "test accuracy, %",
        "standard deviation of alpha across layers",
        "base rate, range",
    ]
    return {"results": markdown_table(head, rows)}


def draw(done: dict[str, Any], settings: Settings, path: Path) -> None:
    """Alpha over depth, before and after training, first seed."""
    fig, axes = panels(
        1, len(settings.networks), size=(5.0 * len(settings.networks), 3.4), share_y=True
    )
    for axis, network in zip(axes, settings.networks, strict=True):
        for i, method in enumerate(specs(settings)):
            run = done[f"final | {network} | {method} | 0"]
            if i == 0:
                axis.plot(
                    list(run["alphas before"].values()),
                    ":",
                    color=COLOURS[-1],
                    label="before training",
                )
            axis.plot(
                list(run["alphas"].values()), "o-", color=COLOURS[i], markersize=3, label=method
            )
        axis.set_title(network)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("layer, in the order of the network")
    axes[0].set_ylabel("alpha")
    axes[0].legend(fontsize=7)
    save(fig, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 3 when ``--seconds`` ran out before.

    Results are written as soon as the comparison is complete, without windows that
    were not tried with all seeds.
    """
    options = _options(arguments)
    settings = QUICK if options.quick else FULL if options.full else Settings()
    sizes = {"n_train": settings.n_train, "n_validation": settings.n_validation}
    images = drawn(settings.n_train) if options.quick else load(options.data, **sizes)
    kept = asdict(settings) | {"classes": images.classes, "shape": list(images.train[0].shape[1:])}
    kept |= on_device(options.device)
    journal = Journal.open(options.work / "images.jsonl", kept, fresh=options.fresh)
    experiment = Experiment(images, settings, journal, options.device)
    finished = run_steps(journal, experiment.steps(), seconds=options.seconds)
    if not all(key in journal.done for key, _ in experiment.comparison()):
        return 3
    parts = tables(journal.done, settings)
    publish(options, {"settings": kept, "runs": journal.done}, parts)
    draw(journal.done, settings, options.image)
    return 0 if finished else 3


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.images", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=FASHION, help="folder of Fashion-MNIST's or CIFAR's files"
    )
    parser.add_argument("--full", action="store_true", help="full widths, 200 epochs: for a GPU")
    return run_options(parser, arguments, "images")


if __name__ == "__main__":
    sys.exit(main())
