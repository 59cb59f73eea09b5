"""A language model whose layers are rounded again and again, and its perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectail.core.quantisers import Integers
from spectail.evaluation import Perplexity, batch_losses
from spectail.models.live.weights import Weight
from spectail.pruning.weights_to_prune import make_targets


class Subject:
    """Weights in float32 as they were, and the model in the type that it is evaluated in."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        weights = {t.weight.name: t.weight.read() for t in make_targets(model.float(), 0.0)}
        self.model = model.to(dtype).eval()
        self.weights: list[Weight] = [t.weight for t in make_targets(self.model, 0.0)]
        self.first = [weights[weight.name] for weight in self.weights]
        self.dtype = dtype
        self._rounded: dict[tuple[str, int], Tensor] = {}

    def restore(self) -> None:
        """Put the weights back as they were."""
        for weight, values in zip(self.weights, self.first, strict=True):
            self._write(weight, values)

    def round_weights(self, chosen: Mapping[str, int]) -> None:
        """Round every layer to its width, from the float32 weights."""
        for weight, values in zip(self.weights, self.first, strict=True):
            key = weight.name, chosen[weight.name]
            if key not in self._rounded:
                self._rounded[key] = Integers(key[1]).dequantised(values).to(self.dtype)
            self._write(weight, self._rounded[key])

    def perplexity(self, tokens: Tensor) -> float:
        """Exp of the mean negative log-likelihood of sequences (n, length), first tokens apart."""
        with torch.inference_mode():
            losses = [loss for batch in tokens for loss in batch_losses(self.model, batch[None])]
        return float(Perplexity(losses, seq_len=tokens.shape[1]))

    def _write(self, weight: Weight, values: Tensor) -> None:
        with torch.no_grad():
            weight.write(values.to(self.dtype))
