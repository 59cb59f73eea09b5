"""Looking at the steps of all torch optimizers, known or not, for a while.

torch's hooks for all optimizers are one dict, which must not change while another thread, or an
optimizer around this one, goes through it. So one hook is registered once and stays.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

Look = Callable[[Any], None]

_LOOKS: list[tuple[int, Look]] = []
_HOOKS: list[Any] = []


def look_at_steps(look: Look) -> Callable[[], None]:
    """Call ``look`` with every torch optimizer that begins a step in this thread.

    Gives a function that ends it.
    """
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_pre_hook(_pass_on))
    entry = get_ident(), look
    _LOOKS.append(entry)

    def end() -> None:
        if entry in _LOOKS:
            _LOOKS.remove(entry)

    return end


def _pass_on(optimizer: Any, args: Any, kwargs: Any) -> None:
    if _LOOKS:  # so little that a compiled step of another optimizer takes it in
        _call_looks(optimizer)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _call_looks(optimizer: Any) -> None:
    for thread, look in tuple(_LOOKS):
        if thread == get_ident():
            look(optimizer)
