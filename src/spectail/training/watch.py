"""Noticing that the weights change although the optimizer that a Balancer is on makes no step.

So it is where the optimizer was made anew, replaced (by ``prepare`` or an engine) or is stepped in a way that no hook
sees: the factors then have no effect, and nothing of the Balancer runs that could say so, but for a hook on a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

FIRST = 4
"""Backward passes without a step after which something is told at the earliest."""
VALUES = 16
"""How many numbers of the weight are looked at."""


class Watch:
    """Calls ``tell``, once, when a parameter's values have changed twice since the last step.

    They are looked at after 2, 4, 8 ... backward passes, so that gradients may be accumulated; one change alone may be
    weights that were loaded.
    """

    _on: ClassVar[WeakTensorKeyDictionary] = WeakTensorKeyDictionary()
    """The one on each parameter: a new one takes the place of an earlier one that was never removed."""

    def __init__(self, parameter: Tensor | None, tell: Callable[[int], None]) -> None:
        # Weak, so that the parameter keeps neither a Balancer nor its optimizer alive that nobody uses any more.
        self._tell = WeakMethod(tell)
        self._passes = 0
        self._before: Tensor | None = None
        self._changed: list[Tensor] = []
        self._hook: Any = None
        if parameter is not None:
            if parameter in self._on:
                self._on[parameter].remove()
            self._on[parameter] = self
            self._hook = parameter.register_post_accumulate_grad_hook(self._after_backward)  # type: ignore[no-untyped-call]

    def stepped(self) -> None:
        """The optimizer has made a step, so that all is well."""
        self._passes, self._before = 0, None
        self._changed.clear()

    def remove(self) -> None:
        """Look no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_backward(self, parameter: Tensor) -> None:
        tell = self._tell()
        if tell is None:
            self.remove()
            return
        self._passes += 1
        values = parameter.detach()
        values = (values.to_local() if hasattr(values, "to_local") else values).flatten()[:VALUES].clone()
        if self._before is None:
            self._before = values
        elif self._passes & (self._passes - 1) == 0:
            self._changed.append((values != self._before).any())
            self._before = values
            # To read them makes an accelerator wait, so that is done after 4, 8, 16 ... passes.
            if self._passes >= FIRST and sum(map(bool, self._changed)) >= 2:
                self.remove()
                tell(self._passes)
