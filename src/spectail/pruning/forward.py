"""Token ids through a whole model, without a cache, whatever kinds of input the model has besides text."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectail.errors import PruneError, SpectailError

_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)
"""What a model raises that does not run on text alone."""


def run_tokens(model: nn.Module, ids: Tensor, paths: Iterable[str]) -> None:
    """Send token ids (1, length) through the blocks that hold the parameters at ``paths``.

    The whole model is called. Where it refuses text without images, the outermost module around all
    these parameters that takes text is called in its place: the language model of BLIP-2 or
    Kosmos-2.

    Raises:
        PruneError: nothing runs on token ids alone; with the first line of the model's own words.

    """
    refusals: list[Exception] = []
    for module in _around(model, paths):
        try:
            with _without_cache(model):
                _call(module, ids)
            return
        except (SpectailError, torch.OutOfMemoryError):
            raise
        except _REFUSALS as error:
            refusals.append(error)
    lines = str(refusals[0]).strip().splitlines() or [type(refusals[0]).__name__]
    both = ", being an encoder-decoder" if is_encoder_decoder(model) else ""
    raise PruneError(
        f"{type(model).__name__} does not run on token ids alone{both} ({lines[0][:160]}), so calibration text says "
        "nothing about its layers: prune by magnitude"
    ) from refusals[0]


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model of transformers has an encoder and a decoder of its own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _around(model: nn.Module, paths: Iterable[str]) -> Iterator[nn.Module]:
    """The model, then the modules inside of it that hold all parameters at ``paths``, from the outermost inwards."""
    yield model
    if is_encoder_decoder(model):
        return  # half of it would run without the other
    for level in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        component = level[0]
        if len(set(level)) > 1:
            return
        inner = getattr(model, component)
        if isinstance(inner, nn.ModuleList):
            return
        model = inner
        yield model


def _call(module: nn.Module, ids: Tensor) -> None:
    """Call a module on token ids, without logits of all positions where it has a say in them."""
    takes = inspect.signature(module.forward).parameters
    spare = {"use_cache": False, "logits_to_keep": 1}
    options: dict[str, Any] = {name: value for name, value in spare.items() if name in takes}
    ids = ids.to(next(module.parameters()).device)
    if "input_ids" in takes:
        module(input_ids=ids, **options)
    else:
        module(ids, **options)


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Switch caches off in every configuration of the model: the text model of a multi-modal one has its own."""
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
