"""Notice that the weights change although the Balancer's optimizer makes no step.

This happens if the optimizer was created again, was replaced (by ``prepare`` or an engine), or is
stepped in a way that no hook sees. The factors then have no effect, and the Balancer's own code
never runs. Only a hook on a gradient can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spectail.training.capture import is_captured

FIRST = 4
"""The number of backward passes without a step after which the weights are compared first; later
comparisons follow after twice as many passes each time.
"""
CHANGES = 3
"""The least number of changes that is reported; fewer may come from loading weights."""
VALUES = 16
"""How many numbers of the weight are compared."""
KEPT = 64
"""How many passes are remembered."""


class Watch:
    """Calls ``tell`` once if a parameter keeps changing while the optimizer makes no step.

    Two cases must not raise the alarm: gradients that are accumulated over many passes, and SAM,
    which moves the weights and moves them back in each step. So values that return to what they
    were do not count as changed.
    """

    _on: ClassVar[WeakTensorKeyDictionary] = WeakTensorKeyDictionary()
    """The watch on each parameter. A new one replaces an earlier one that was never removed."""

    def __init__(self, parameter: Tensor | None, tell: Callable[[int], None]) -> None:
        # A weak reference: otherwise the parameter's hook would keep alive a Balancer, and its
        # optimizer, that nobody uses any more.
        self._tell = WeakMethod(tell)
        self._passes = 0
        self._seen: list[Tensor] = []
        self._hook: Any = None
        if parameter is not None:
            # A Balancer that was dropped without remove() would otherwise warn as well.
            if parameter in self._on:
                self._on[parameter].remove()
            self._on[parameter] = self
            self._hook = parameter.register_post_accumulate_grad_hook(self._after_backward)

    def stepped(self) -> None:
        """Start over, because the optimizer has made a step."""
        self._passes = 0
        self._seen.clear()

    def remove(self) -> None:
        """Stop watching."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_backward(self, parameter: Tensor) -> None:
        tell = self._tell()
        # Its Balancer is gone.
        if tell is None:
            self.remove()
            return
        # A recorded pass changes nothing yet, and its values cannot be read.
        if is_captured():
            return
        self._passes += 1
        values = parameter.detach()
        # A piece of a sharded parameter shows a change as well as the whole.
        values = values.to_local() if hasattr(values, "to_local") else values
        self._seen = [*self._seen[1 - KEPT :], values.flatten()[:VALUES].clone()]
        # Reading the values makes an accelerator wait, so only after 4, 8, 16 ... passes.
        if (
            self._passes >= FIRST
            and self._passes & (self._passes - 1) == 0
            and changes(self._seen) >= CHANGES
        ):
            self.remove()
            tell(self._passes)


def changes(seen: Sequence[Tensor]) -> int:
    """Count how often values changed since they last returned to earlier values.

    >>> one, two, three = (torch.tensor([float(i)]) for i in range(3))
    >>> changes([one, one, two, three]), changes([one, two, one, three, one])
    (2, 0)
    """
    # In one tensor, so that an accelerator is asked once.
    rows = torch.stack([values.float() for values in seen]).cpu()
    # SAM subtracts what it has added, which gives the old values back up to rounding only.
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
