"""A model that is pruned again and again, and put back each time.

Perplexity of drawn token blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import spectail as st
from spectail.evaluation import Perplexity, batch_losses
from spectail.models.live.weights import Weight
from spectail.pruning.methods import as_method
from spectail.pruning.prune import prune_weight
from spectail.pruning.statistics import Squares, Statistic, site_of, watching
from spectail.pruning.weights_to_prune import make_targets

AT_ONCE = 4
"""Sequences in a forward pass."""


class Borrowed:
    """A language model that can be pruned and put back, and the weights that it had at first."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.weights: list[Weight] = [target.weight for target in make_targets(self.model, 0.0)]
        self.first = [weight.read().clone() for weight in self.weights]

    @contextmanager
    def borrowed(self) -> Iterator[nn.Module]:
        """The model to prune; afterwards its weights are as at first, bit for bit."""
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for weight, values in zip(self.weights, self.first, strict=True):
                    weight.write(values)


class Bench(Borrowed):
    """What is done with the model, on the device where it lies."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.device = next(self.model.parameters()).device

    def perplexity(self, tokens: Tensor) -> float:
        """Exp of the mean negative log-likelihood of blocks (n, length).

        Their first tokens are not scored.
        """
        with torch.inference_mode():
            losses = [
                loss
                for batch in torch.split(tokens, AT_ONCE)
                for loss in batch_losses(self.model, batch)
            ]
        return float(Perplexity(losses, seq_len=tokens.shape[1]))

    def statistics(self, tokens: Tensor) -> Mapping[Any, Statistic]:
        """Sums of squares of every layer's inputs in the dense model.

        They give Wanda's scores without going block by block.
        """
        with torch.inference_mode(), watching(self.weights, Squares) as seen:
            for batch in torch.split(tokens, AT_ONCE):
                self.model.base_model(batch.to(self.device), use_cache=False)
        return seen

    def prune_at_once(
        self,
        allocation: Mapping[str, float] | float,
        method: str,
        seen: Mapping[Any, Statistic] | None,
    ) -> None:
        """Prune every layer by the statistics of the dense model."""
        rule = as_method(method)
        with torch.no_grad():
            for target in make_targets(self.model, allocation):
                prune_weight(
                    target, rule, seen[site_of(target.weight)] if seen is not None else None
                )

    def prune(self, allocation: Mapping[str, float] | float, method: str, tokens: Tensor) -> float:
        """Prune as ``st.prune`` does, block by block; returns the ratio of zeros reached."""
        calibration = None if method == "magnitude" else tokens
        return float(
            st.prune(self.model, allocation, method=method, calibration=calibration).realised
        )
