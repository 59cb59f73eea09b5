"""``sensitivities``: measure the sensitivity of every layer of a language model with noise.

HIGGS (arXiv 2411.17525) adds Gaussian noise of a known relative size to one layer at a time. The
growth of the loss, divided by the relative squared size t^2 of the noise, is the layer's a_l. Here
the growth is the divergence of the predictions (see ``predictions``), on a few samples of text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from spectail.allocation.coverage import Coverage, cover
from spectail.allocation.sensitivities import LayerSensitivity, Sensitivities
from spectail.basics.checks import MOST_SEED, check_seed
from spectail.errors import EvaluationError, RunError
from spectail.models.live.eval_mode import evaluating
from spectail.models.live.identity import configuration_digest, tokens_digest
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight, editable, owners
from spectail.models.naming.select import KindFilter
from spectail.models.source import Layer, Source
from spectail.pruning.calibration import as_tokens
from spectail.sensitivity.noise import noisy
from spectail.sensitivity.predictions import Predictions, check_decoder

NOISE = 0.05
"""Relative squared size of the noise: about the error of rounding to 3 bits (docs/bits-results.md).
"""
LEAST, LEAST_IN_HALF = 1e-4, 1e-2
"""The smallest noise, for models in float32 or wider and in half precision. Of smaller noise the
result is the rounding of the predictions, which moves them by 4e-8 nats in float32 and by 1.5e-3 in
bfloat16, divided by the size of the noise.
"""
SAVED_EVERY = 2.0
"""Seconds of work that a killed measurement loses at most, besides the layer in hand."""
_SPREAD = 100_003
"""Distance between the first seeds of two runs, so that their layers share no draw."""


class LayersProgress(Protocol):
    """A function that ``sensitivities`` calls before each layer, and once at the end."""

    def __call__(self, name: str | None, done: int, total: int) -> None:
        """Show the progress: ``done`` of ``total`` layers; ``name`` comes next, None at the end."""


def sensitivities(
    model: nn.Module,
    tokens: Tensor | Sequence[Tensor],
    *,
    noise: float = NOISE,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: str | Sequence[str] = (),
    types: str | Sequence[str] = (),
    out: str | Path | None = None,
    fresh: bool = False,
    progress: LayersProgress | None = None,
) -> Sensitivities:
    """Measure how much the loss grows with the error of each layer, for ``st.allocate``.

    Each layer in turn gets Gaussian noise, and then its own weights back, bit for bit. The cost is
    one forward pass for each layer and one without noise.

    Args:
        model: a language model of transformers that predicts the next token, or a module that
            gives logits (samples, length, vocabulary). It is unchanged afterwards, also after an
            error or Ctrl-C.
        tokens: token ids (samples, length), as ``st.calibration_tokens`` draws them. 2 x 256
            were enough in ``experiments/bits``.
        noise: squared norm of the noise, relative to that of the weights: 1e-4 to 1, and at least
            0.01 for a model in half precision.
        seed: seed of the noise.
        include: globs of layers to measure that would keep full precision by default.
        exclude: globs of layers not to measure.
        kinds: kinds of layers to measure, as ``"q,k"``.
        types: types of layers to measure, as ``"linear"``.
        out: file that the sensitivities are written to while they are measured. The same call goes
            on with what it holds.
        fresh: forget what ``out`` holds.
        progress: called with the layer that comes next and the numbers of layers.

    Returns:
        A mapping from layers to sensitivities, in nats per token per relative squared error. 0
        means that no prediction changed: the text does not reach the layer, or weights of zero
        hide it.

    Raises:
        EvaluationError: the model makes no predictions of a next token, or they are not finite.
        PruneError: the tokens do not fit the model.
        AllocationError: no layer is left, a glob changes nothing, or ``out`` holds something else.
        SourceError: a layer cannot be written, such as a quantised one.
        RunError: ``out`` holds the sensitivities of another model, or of other settings.

    """
    check_seed(EvaluationError, seed)
    check_noise(noise, model)
    ids = as_tokens(tokens, model, "sensitivities")
    source = module_source(model)
    chosen = cover(
        source.layers, inside_blocks=True, include=include, exclude=exclude,
        of=KindFilter.of(kinds, types),
    )  # fmt: skip
    places = owners(model)
    weights = [editable(layer, places) for layer in chosen.layers]
    with evaluating(model):
        check_decoder(model, ids)
    store = _Store(
        _planned(model, source, chosen, ids, noise, seed), None if out is None else Path(out)
    )
    store.start(fresh=fresh)
    try:
        with evaluating(model):
            _measure(model, ids, weights, store, progress)
    finally:
        store.write()
    if progress:
        progress(None, len(weights), len(weights))
    return store.found()


def sensitivity_of(weight: Weight, dense: Predictions, *, noise: float, seed: int) -> float:
    """Return the sensitivity of one layer; ``dense`` are the predictions without noise.

    Raises:
        EvaluationError: the predictions with noise are not finite.

    """
    with noisy(weight, noise, seed):
        growth = dense.divergence()
    if not math.isfinite(growth):
        raise EvaluationError(
            f"with noise in {weight.name} the predictions are not finite: load the model in "
            "float32 or bfloat16, and check the weights of this layer"
        )
    return growth / noise


def check_noise(noise: object, model: nn.Module | None = None) -> None:
    """Refuse a size of noise that is no number in its range, or too small for a model's numbers."""
    if isinstance(noise, bool) or not isinstance(noise, Real) or not LEAST <= float(noise) <= 1:
        raise EvaluationError(f"noise must be a number from {LEAST:g} to 1, not {noise!r}")
    types = {p.dtype for p in model.parameters()} if model else set()
    if noise < LEAST_IN_HALF and types & {torch.float16, torch.bfloat16}:
        raise EvaluationError(
            f"noise of {noise:g} is lost in the rounding of a model in half precision: give at "
            f"least {LEAST_IN_HALF:g}, or load the model in float32"
        )


def _planned(
    model: nn.Module,
    source: Source,
    chosen: Coverage[Layer],
    ids: Tensor,
    noise: float,
    seed: int,
) -> Sensitivities:
    """Describe a measurement before any layer is measured."""
    return Sensitivities(
        layers=tuple(
            LayerSensitivity(x.name, x.rows, x.cols, x.numel, saved_as=x.saved_as)
            for x in chosen.layers
        ),
        settings={
            "samples": ids.shape[0],
            "seq_len": ids.shape[1],
            "tokens": tokens_digest(ids),
            "configuration": configuration_digest(model),
            "noise": float(noise),
            "seed": seed,
        },
        source=source.label,
        fingerprint=source.fingerprint,
        left_out=chosen.left_out,
    )


def _measure(
    model: nn.Module,
    ids: Tensor,
    weights: Sequence[Weight],
    store: _Store,
    progress: LayersProgress | None,
) -> None:
    """Measure the layers that the store lacks."""
    settings = store.plan.settings
    dense: Predictions | None = None
    for number, weight in enumerate(weights):
        if weight.name in store.values:
            continue
        if progress:
            progress(weight.name, number, len(weights))
        dense = dense or Predictions(model, ids)
        # By its number, so that a run that goes on draws the same noise.
        own = (settings["seed"] * _SPREAD + number) % (MOST_SEED + 1)
        store.add(weight.name, sensitivity_of(weight, dense, noise=settings["noise"], seed=own))


@dataclass
class _Store:
    """What is measured so far, and the file that receives it now and then."""

    plan: Sensitivities
    path: Path | None
    values: dict[str, float] = field(default_factory=dict)
    _written: float = 0.0

    def start(self, *, fresh: bool) -> None:
        """Take up what the file holds, and show that it can be written.

        Raises:
            RunError: the file holds the sensitivities of another model, or of other settings.

        """
        if self.path is None:
            return
        if not fresh and self.path.is_file() and self.path.stat().st_size:
            stored = Sensitivities.load(self.path, unfinished=True)
            if different := _differences(stored, self.plan):
                raise RunError(
                    f"{self.path} holds sensitivities of another {different}: choose another file, "
                    "or --fresh to replace it"
                )
            self.values = dict(stored)
        self.write()

    def add(self, name: str, value: float) -> None:
        """Keep the sensitivity of a layer."""
        self.values[name] = value
        if time.monotonic() - self._written > SAVED_EVERY:
            self.write()

    def write(self) -> None:
        """Write the file, if there is one."""
        if self.path is not None:
            self.found().save(self.path)
            self._written = time.monotonic()

    def found(self) -> Sensitivities:
        """Return the sensitivities with what is measured so far."""
        layers = (replace(x, value=self.values.get(x.name)) for x in self.plan.layers)
        return replace(self.plan, layers=tuple(layers))


def _differences(stored: Sensitivities, plan: Sensitivities) -> str:
    """Say in which way a stored measurement is another one; empty if it is not."""
    if stored.fingerprint != plan.fingerprint:
        return "model"
    if [x.name for x in stored.layers] != [x.name for x in plan.layers]:
        return "choice of layers"
    keys = [k for k, value in plan.settings.items() if stored.settings.get(k) != value]
    return f"setting ({', '.join(keys)})" if keys else ""
