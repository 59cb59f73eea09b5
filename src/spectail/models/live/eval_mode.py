"""Put a model into evaluation mode for the length of a ``with`` block.

In evaluation mode dropout is off, and a parametrisation such as spectral norm does not update its
state each time the weight is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards every module back into the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Not ``model.train()``, which would also switch modules that the user froze in eval mode.
        for module, training in modes:
            module.training = training
