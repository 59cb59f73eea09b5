"""A language model whose layers are rounded again and again, and its perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

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

    def sensitivity(self, tokens: Tensor, dense: Tensor, index: int, t2: float) -> float:
        """Return the growth of the loss per t^2 of one layer, with Gaussian noise of error t^2.

        The growth is the Kullback-Leibler divergence from the dense predictions, which is the
        expected growth of the loss where the dense model is right, and needs far fewer tokens.
        """
        weight, values = self.weights[index], self.first[index]
        draw = torch.Generator().manual_seed(index)
        noise = torch.randn(values.shape, generator=draw)
        noise *= (t2 * values.square().sum() / noise.square().sum()).sqrt()
        try:
            self._write(weight, values + noise)
            noisy = self.log_probabilities(tokens)
        finally:
            self._write(weight, values)
        found = functional.kl_div(noisy, dense, log_target=True, reduction="sum")
        return float(found) / dense.shape[0] / t2

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """Return the predictions (positions, vocabulary) at every fourth position."""
        with torch.inference_mode():
            hidden = self.model.base_model(tokens, use_cache=False).last_hidden_state[:, 3::4]
            logits = self.model.get_output_embeddings()(hidden.flatten(0, 1))
        return functional.log_softmax(logits.float(), dim=-1)

    def _write(self, weight: Weight, values: Tensor) -> None:
        with torch.no_grad():
            weight.write(values.to(self.dtype))
