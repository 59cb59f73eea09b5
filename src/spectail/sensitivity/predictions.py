"""The predictions of a language model on a few tokens, and how far it moves from them.

The distance is the Kullback-Leibler divergence, in nats per predicted token, from the model as it
was. It is the expected growth of the loss where that model is right, and needs far fewer tokens
than the loss itself, whose noise is the entropy of the text.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectail.errors import EvaluationError
from spectail.evaluation.logits import (
    NEXT_TOKEN,
    check_causal,
    checked_logits,
    device_of,
    logits_of,
)
from spectail.pruning.forward import is_encoder_decoder

STRIDE = 4
"""Predictions count at every fourth position. Neighbours say much the same, and the head of a small
model costs as much as many blocks."""
BATCH = 2048
"""Tokens in one forward pass, unless a single sample is longer."""
_WHAT = "sensitivities are measured"


class Predictions:
    """Log-probabilities of the next token, (positions, vocabulary), of a model as it is now.

    They stay in memory, in float32: a quarter of the tokens times the vocabulary.
    """

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self.model = model
        samples, length = tokens.shape
        self._batches = tokens.split(max(1, BATCH // length))
        self._positions = torch.arange(min(STRIDE, length) - 1, length, STRIDE)
        self._dense = [self._log_probabilities(batch) for batch in self._batches]
        self._count = samples * len(self._positions)
        if any(bool(rows.isnan().any()) for rows in self._dense):
            raise EvaluationError(
                "the model gives NaN on the calibration text: load it in float32 or bfloat16, and "
                "check its weights"
            )

    def divergence(self) -> float:
        """Return the mean divergence of the model as it is now from what it was, at least 0."""
        total = 0.0
        for batch, dense in zip(self._batches, self._dense, strict=True):
            apart = dense - self._log_probabilities(batch)
            # A token that the model rules out has -inf in both, whose difference is NaN.
            apart.masked_fill_(dense.isneginf(), 0.0)
            total += float((dense.exp() * apart).sum(dtype=torch.float64))
        # Rounding may leave a sum of 0 slightly below it.
        return max(total / self._count, 0.0) if total == total else total

    def _log_probabilities(self, batch: Tensor) -> Tensor:
        """Run one batch of samples."""
        with torch.inference_mode():
            logits = self._logits(batch.to(device_of(self.model)))
            return functional.log_softmax(logits.float().flatten(0, 1), dim=-1)

    def _logits(self, ids: Tensor) -> Tensor:
        """Return logits at the positions that count; those of the others are not computed."""
        options = {}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            # The positions stay on the CPU, from where they index tensors of any device.
            options["logits_to_keep"] = self._positions
        found = logits_of(self.model, ids, **options)
        logits = checked_logits(found, self.model, ids, _WHAT, len(self._positions))
        # Not every module that has the option goes by it.
        return logits[:, self._positions] if logits.shape[1] == ids.shape[1] else logits


def check_decoder(model: nn.Module, tokens: Tensor) -> None:
    """Refuse models that do not predict the next token of a text: encoders, or no head.

    Raises:
        EvaluationError: the model is no decoder with a head.

    """
    if is_encoder_decoder(model):
        raise EvaluationError(
            f"{type(model).__name__} is an encoder-decoder: {_WHAT} on {NEXT_TOKEN}"
        )
    check_causal(model, tokens, _WHAT)
