"""Digests of what a result on a live model depends on besides its weights.

A run that was killed compares them with those it kept, and goes on only if they are equal.
"""

from __future__ import annotations

import json

from torch import Tensor, nn

from spectail.models.formats.fingerprint import digest_of
from spectail.models.live.walk import config_of

_NOT_COMPUTED_WITH = {"transformers_version", "name_or_path"}
"""Entries of a transformers configuration that change no prediction."""


def tokens_digest(tokens: Tensor) -> str:
    """Return the digest of token ids, on any device and of any integer type."""
    return digest_of(tokens.cpu().long().contiguous().numpy().tobytes())


def configuration_digest(model: nn.Module) -> str:
    """Return the digest of a model's configuration, which decides what its weights compute.

    A module without one, as those that are not of transformers, has the digest of an empty one.
    """
    config = {
        str(key): value
        for key, value in config_of(model).items()
        if not str(key).startswith("_") and key not in _NOT_COMPUTED_WITH
    }
    return digest_of(json.dumps(config, sort_keys=True, default=str).encode())
