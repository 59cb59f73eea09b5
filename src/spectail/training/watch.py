"""Noticing that the weights change although the optimizer that a Balancer is on makes no step.

So it is where the optimizer was made anew, replaced (by ``prepare`` or an engine) or is stepped in
a way that no hook sees: the factors then have no effect, and nothing of the Balancer runs that
could say so, but for a hook on a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

FIRST = 4
"""Backward passes without a step after which the weights are looked at; then after twice as many
each time.
"""
CHANGES = 3
"""After so many changes something is told; fewer may be weights that were loaded."""
VALUES = 16
"""How many numbers of the weight are looked at."""
KEPT = 64
"""How many passes are remembered."""


class Watch:
    """Calls ``tell``, once, when a parameter keeps on changing though the optimizer makes no step.

    Gradients may be accumulated over many passes without a step, and SAM moves the weights and puts
    them back in each: values that come back are no change.
    """

    _on: ClassVar[WeakTensorKeyDictionary] = WeakTensorKeyDictionary()
    """The one on each parameter: a new one takes the place of an earlier one that was never
    removed.
    """

    def __init__(self, parameter: Tensor | None, tell: Callable[[int], None]) -> None:
        # Weak, so that the parameter keeps neither a Balancer nor its optimizer alive that nobody
        # uses any more.
        self._tell = WeakMethod(tell)
        self._passes = 0
        self._seen: list[Tensor] = []
        self._hook: Any = None
        if parameter is not None:
            if parameter in self._on:
                self._on[parameter].remove()
            self._on[parameter] = self
            self._hook = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                self._after_backward
            )

    def stepped(self) -> None:
        """The optimizer has made a step, so that all is well."""
        self._passes = 0
        self._seen.clear()

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
        values = values.to_local() if hasattr(values, "to_local") else values
        self._seen = [*self._seen[1 - KEPT :], values.flatten()[:VALUES].clone()]
        # To read them makes an accelerator wait, so that is done after 4, 8, 16 ... passes.
        if (
            self._passes >= FIRST
            and self._passes & (self._passes - 1) == 0
            and changes(self._seen) >= CHANGES
        ):
            self.remove()
            tell(self._passes)


def changes(seen: Sequence[Tensor]) -> int:
    """How often values changed since they last came back to what they were before.

    >>> one, two, three = (torch.tensor([float(i)]) for i in range(3))
    >>> changes([one, one, two, three]), changes([one, two, one, three, one])
    (2, 0)
    """
    rows = torch.stack([values.float() for values in seen]).cpu()
    close = 4 * torch.finfo(seen[0].dtype).eps
    distinct = [rows[0]]
    for row in rows[1:]:
        again = [
            i
            for i, before in enumerate(distinct)
            if torch.allclose(row, before, rtol=close, atol=0)
        ]
        if again:
            del distinct[again[-1] + 1 :]
        else:
            distinct.append(row)
    return len(distinct) - 1
