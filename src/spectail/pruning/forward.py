"""Run token ids through a whole model without a cache, even if it also takes images or audio."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectail.errors import PruneError, SpectailError

_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)
"""Errors that models raise which do not run on text alone."""


def run_tokens(model: nn.Module, ids: Tensor, paths: Iterable[str]) -> None:
    """Run token ids (1, length) through the blocks that hold the parameters at ``paths``.

    The whole model is called. If it refuses text without images, the outermost module around all
    these parameters that accepts text is called instead: the language model of BLIP-2 or Kosmos-2.

    Raises:
        PruneError: nothing runs on token ids alone; the message quotes the model's own error.

    """
    refusals: list[Exception] = []
    for module in _around(model, paths):
        try:
            with _without_cache(model):
                _call(module, ids)
            return
        # Our own errors, and a lack of memory, are not about the kind of input.
        except (SpectailError, torch.OutOfMemoryError):
            raise
        except _REFUSALS as error:
            refusals.append(error)
    # The first refusal is that of the whole model, which a user knows best.
    lines = str(refusals[0]).strip().splitlines() or [type(refusals[0]).__name__]
    both = ", being an encoder-decoder" if is_encoder_decoder(model) else ""
    raise PruneError(
        f"{type(model).__name__} does not run on token ids alone{both} ({lines[0][:160]}), so "
        "calibration text says nothing about its layers: prune by magnitude"
    ) from refusals[0]


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model of transformers is an encoder-decoder, by its configuration."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _around(model: nn.Module, paths: Iterable[str]) -> Iterator[nn.Module]:
    """Yield the model, then ever smaller modules that still hold all parameters at ``paths``."""
    yield model
    if is_encoder_decoder(model):
        return  # one half would run without the other, on inputs that it never gets
    # zip stops at the shortest path: one set of names per depth, from the root inwards.
    for level in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        component = level[0]
        if len(set(level)) > 1:
            return
        # Calls cannot go into a list of blocks; its owner was the innermost module to try.
        inner = getattr(model, component)
        if isinstance(inner, nn.ModuleList):
            return
        model = inner
        yield model


def _call(module: nn.Module, ids: Tensor) -> None:
    """Call a module on token ids; ask for the logits of the last position only, if it can."""
    takes = inspect.signature(module.forward).parameters
    # Logits of all positions would need samples x length x vocabulary numbers for nothing.
    spare = {"use_cache": False, "logits_to_keep": 1}
    options: dict[str, Any] = {name: value for name, value in spare.items() if name in takes}
    ids = ids.to(next(module.parameters()).device)
    if "input_ids" in takes:
        module(input_ids=ids, **options)
    else:
        module(ids, **options)


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Switch caches off in every configuration of the model while the context lasts."""
    # The language model inside a multi-modal model has a configuration of its own.
    configs = {
        id(config): config
        for module in model.modules()
        if (config := getattr(module, "config", None))
    }
    before = [
        (config, config.use_cache)
        for config in configs.values()
        if getattr(config, "use_cache", False) is True
    ]
    try:
        for config, _ in before:
            config.use_cache = False
        yield
    finally:
        for config, value in before:
            config.use_cache = value
