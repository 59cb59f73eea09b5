"""The logits of a language model, and the refusal of models that do not predict the next token."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from spectail.errors import EvaluationError

LOOKED_AT = 64
"""Tokens by which an encoder is told from a decoder."""
ROUNDING = 1e-4
"""Largest change of a decoder's predictions before the first other word, relative to that behind
it: rounding alone. Encoders, even with random weights, change ten times as much and more.
"""
NEXT_TOKEN = "predictions of the next token, which only a decoder with a head makes"


def logits_of(model: nn.Module, ids: Tensor, **options: Any) -> Any:
    """Return logits (batch, seq_len, vocabulary); of a model without a head, what it returns.

    ``options`` are further arguments of a model of transformers.
    """
    # use_cache=False: keys and values of earlier tokens are not needed and take memory.
    if not hasattr(model, "config"):
        output = _of_module(model, ids)
    elif "input_ids" not in inspect.signature(model.forward).parameters:
        output = model(ids, use_cache=False, **options)
    else:
        # By name: in some multi-modal models the first argument is an image.
        output = _of_text_alone(model, ids, **options)
    # A plain module returns the logits themselves.
    return getattr(output, "logits", output)


def _of_module(model: nn.Module, ids: Tensor) -> Any:
    """Call a plain module, which does not say how many words it knows."""
    try:
        return model(ids)
    except IndexError as error:
        raise EvaluationError(
            f"{type(model).__name__} does not know every token ({error}): is it the model's "
            "tokenizer?"
        ) from error


def _of_text_alone(model: nn.Module, ids: Tensor, **options: Any) -> Any:
    """Call a model of transformers that may need images or audio too, as BLIP-2 and Idefics do."""
    try:
        return model(input_ids=ids, use_cache=False, **options)
    except (TypeError, ValueError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # The first line only: the command line shows an error as one line.
        raise EvaluationError(
            f"{type(model).__name__} does not run on text alone: {lines[0][:200]}; if it holds a "
            "language model with a head of its own, name its layers with --include"
        ) from error


def checked_logits(
    logits: object, model: nn.Module, ids: Tensor, what: str, kept: int | None = None
) -> Tensor:
    """Return logits (samples, positions, vocabulary); refuse anything else.

    There are as many positions as tokens in ``ids``, or ``kept`` of them. ``what`` begins the
    reason: "perplexity is measured".
    """
    name, length = type(model).__name__, ids.shape[1]
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise EvaluationError(f"{name} gives no logits for tokens: {what} on {NEXT_TOKEN}")
    if logits.shape[1] not in {length, kept}:
        raise EvaluationError(
            f"{name} gives logits at {logits.shape[1]} positions for {length} tokens: "
            f"{what} on {NEXT_TOKEN}"
        )
    return logits


def check_causal(model: nn.Module, tokens: Tensor, what: str) -> None:
    """Refuse models that do not predict the next token of a text: encoders, or no head.

    An encoder is told by what it does, since configurations do not say: its predictions for the
    first half of a sample change with the second half. ``tokens`` is (samples, length).

    Raises:
        EvaluationError: the model is no decoder with a head; ``what`` begins the reason.

    """
    ids = tokens[:1, :LOOKED_AT].to(device_of(model))
    half = ids.shape[1] // 2
    # Other words in the second half, all of which the model knows.
    changed = torch.cat([ids[:, :half], ids[:, half:].flip(1) // 2], dim=1)
    with torch.inference_mode():
        one, other = (
            checked_logits(logits_of(model, each), model, each, what)[0].float()
            for each in (ids, changed)
        )
    moved = (one - other).abs().nan_to_num(0.0)
    # Experts get other batches of tokens, so that a decoder's predictions may differ by rounding.
    types = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.float32}
    rounding = max(ROUNDING, *(32 * torch.finfo(kind).eps for kind in types))
    if half and float(moved[:half].max()) > rounding * float(moved[half:].max()):
        raise EvaluationError(
            f"{type(model).__name__} is an encoder, whose predictions depend on later tokens: "
            f"{what} on {NEXT_TOKEN}"
        )


def device_of(model: nn.Module) -> torch.device:
    """Return the device for the token ids: that of the embedding.

    In a model that is spread over several devices, the first parameter may lie elsewhere.
    """
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    parameter = next((embedding or model).parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
