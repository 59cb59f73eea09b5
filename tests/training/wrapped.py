"""Optimizers around others as people have them, each restated in a few lines from its
documentation.

``WRAPPERS`` is part of the table of cases that ``test_wrappers`` and ``test_without_effect`` sweep;
the other part is in ``optimizers``.
"""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation: climb by rho along the gradient, then step from where it was
    with the new one.

    ``second_step`` steps the base optimizer alone: nothing calls ``step`` of this one.
    """

    def __init__(
        self,
        params: Any,
        base: type[torch.optim.Optimizer] = torch.optim.SGD,
        rho: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.link()

    def link(self) -> None:
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        held = [
            (p, group["rho"])
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        # Summed exactly: its value must not depend on the order of the groups.
        norm = math.sqrt(math.fsum(p.grad.double().square().sum().item() for p, _ in held)) + 1e-12
        for p, rho in held:
            self.state[p]["climbed"] = p.grad * (rho / norm)
            p.add_(self.state[p]["climbed"])

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if "climbed" in self.state[p]:
                    p.sub_(self.state[p].pop("climbed"))
        self.base_optimizer.step()

    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "it needs a closure"
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class SAMWithItsOwnList(SAM):
    """Two lists of the same dicts."""

    def link(self) -> None:
        pass


class SAMWithCopies(SAM):
    """The inner optimizer has groups of its own that hold the same parameters."""

    def __init__(
        self, params: Any, base: Any = torch.optim.SGD, rho: float = 0.05, **options: Any
    ) -> None:
        torch.optim.Optimizer.__init__(self, params, {"rho": rho, **options})
        self.base_optimizer = base([dict(group) for group in self.param_groups], **options)


class Lookahead(torch.optim.Optimizer):
    """Every k steps the weights go half the way back; it never calls its parent's ``__init__``."""

    def __init__(self, optimizer: Any, k: int = 2) -> None:
        self.optimizer, self.k = optimizer, k
        self.state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        for group in self.param_groups:
            group["counter"] = 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        for group in self.param_groups:
            group["counter"] += 1
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone())
                if group["counter"] % self.k == 0:
                    slow.lerp_(p, 0.5)
                    p.copy_(slow)
        return loss


class Hooked(Lookahead):
    """The same, with the hooks of steps and no others."""

    def __init__(self, optimizer: Any, k: int = 2) -> None:
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._patch_step_function()
        super().__init__(optimizer, k)


class Averaging:
    """What schedule-free does around another optimizer; it is no torch optimizer and has state per
    group.

    The weights hold y, between the steps z and their average x, which weighs a step by the largest
    rate so far.
    """

    def __init__(self, base: Any, momentum: float = 0.9, decay: float = 0.1) -> None:
        self.base, self.momentum, self.decay = base, momentum, decay

    @property
    def param_groups(self) -> Any:
        return self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        beta, state = self.momentum, self.base.state
        for group in self.param_groups:
            for p in group["params"]:
                z = state[p].setdefault("z", p.detach().clone())
                p.sub_(p, alpha=group["lr"] * self.decay)
                x = p.lerp(z, 1 - 1 / beta)
                p.copy_(z)
                state[p]["x"] = x
        self.base.step()
        for group in self.param_groups:
            group["lr_max"] = max(group["lr"], group.get("lr_max", 0.0))
            weight = group["lr_max"] ** 2
            group["weight_sum"] = group.get("weight_sum", 0.0) + weight
            for p in group["params"]:
                state[p]["z"].copy_(p)
                p.copy_(state[p].pop("x").lerp(p, weight / group["weight_sum"]).lerp(p, 1 - beta))


class DecaysItself(torch.optim.Optimizer):
    """It uses rate and decay of the groups itself before the inner optimizer steps."""

    def __init__(self, params: Any, base: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__(params, options)
        self.inner = base(self.param_groups, lr=options["lr"])
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * 0.5)
        return self.inner.step(closure)


class ByNumber(torch.optim.Optimizer):
    """A gain per group, by its number, that multiplies the rate for the
    time of a step (as AdaScale has).
    """

    def __init__(self, params: Any, base: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__(params, options)
        self._optimizer = base(self.param_groups, **options)
        self.param_groups = self._optimizer.param_groups
        self.gains = [1.0 + 0.0 * i for i in range(len(self.param_groups))]

    def step(self, closure: Any = None) -> Any:
        before = [group["lr"] for group in self.param_groups]
        for i, group in enumerate(self.param_groups):
            group["lr"] = group["lr"] * self.gains[i]
        self._optimizer.step()
        for rate, group in zip(before, self.param_groups, strict=True):
            group["lr"] = rate


class HandsOn(torch.optim.Optimizer):
    """It copies what its groups hold into those of the inner one, by number (as
    ZeRO's outer optimizer does).
    """

    def __init__(self, params: Any, base: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__(params, options)
        self.optim = base(
            [{"params": list(group["params"])} for group in self.param_groups], **options
        )

    def step(self, closure: Any = None) -> Any:
        for mine, inner in zip(self.param_groups, self.optim.param_groups, strict=False):
            inner.update({key: value for key, value in mine.items() if key != "params"})
        return self.optim.step(closure)


class CopiesEachTime(torch.optim.Optimizer):
    """It makes its inner optimizer's groups anew in every step."""

    def __init__(self, params: Any, base: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__(params, options)
        self.inner = base([dict(group) for group in self.param_groups], **options)

    def step(self, closure: Any = None) -> Any:
        self.inner.param_groups = [{**self.inner.defaults, **group} for group in self.param_groups]
        return self.inner.step(closure)


class Bare:
    """SGD with weight decay that has nothing of torch's optimizers but groups and ``step``."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        params = list(params)
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        self.param_groups = [{"lr": lr, **group} for group in groups]

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad + 0.01 * p, alpha=group["lr"])


class Uninitialised(torch.optim.Optimizer):
    """It never calls its parent's ``__init__``, and holds no other optimizer."""

    __init__ = Bare.__init__
    step = Bare.step  # type: ignore[assignment]


class Hiding(torch.optim.Optimizer):
    """Its inner optimizer is in no attribute."""

    def __init__(
        self, params: Any, copied: Any, base: Any = torch.optim.SGD, **options: Any
    ) -> None:
        super().__init__(params, options)
        inner = base(
            [dict(group) for group in self.param_groups] if copied else self.param_groups, **options
        )
        self.hidden: Callable[[], Any] = lambda: inner

    def step(self, closure: Any = None) -> Any:
        return self.hidden().step(closure)


class Slotted:
    """A wrapper without a ``__dict__``."""

    __slots__ = ("hidden",)

    def __init__(self, inner: Any) -> None:
        self.hidden = inner

    @property
    def param_groups(self) -> Any:
        return self.hidden.param_groups

    def step(self) -> Any:
        return self.hidden.step()


class Several(torch.optim.Optimizer):
    """One optimizer for matrices and one for vectors, with the groups of both."""

    def __init__(
        self,
        groups: list[Any],
        matrices: type[torch.optim.Optimizer] = torch.optim.SGD,
        vectors: type[torch.optim.Optimizer] = torch.optim.AdamW,
        **options: Any,
    ) -> None:
        groups = [
            {"params": group}
            for group in ([groups] if isinstance(groups[0], torch.Tensor) else groups)
        ]
        self.parts = {
            name: kind(
                [
                    {"params": [p for p in g["params"] if (p.ndim > 1) == (name == "matrices")]}
                    for g in groups
                ],
                **options,
            )
            for name, kind in (("matrices", matrices), ("vectors", vectors))
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        for part in self.parts.values():
            part.step()


@dataclass
class Case:
    """An optimizer to balance, how a user steps it, and the groups that say at which rate."""

    given: Any
    groups: list[dict[str, Any]]
    call: str = "step"
    outer: Any = None

    def step(self, closure: Callable[..., Any]) -> None:
        if self.call == "two calls":
            self.given.first_step()
            closure()
            self.given.second_step()
        elif self.call == "base of two calls":
            self.outer.first_step()
            closure()
            self.outer.second_step()
        elif self.call == "closure":
            self.given.step(closure)
        else:
            self.given.step()


Maker: TypeAlias = Callable[[Any], Case]


def sgd(params: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def _sam(kind: type[SAM], call: str, base: type[torch.optim.Optimizer] = torch.optim.SGD) -> Maker:
    def make(params: Any) -> Case:
        sam = kind(params, base, lr=0.05)
        return Case(sam, sam.base_optimizer.param_groups, call)

    return make


def _base_of_sam(params: Any) -> Case:
    sam = SAM(params, torch.optim.AdamW, lr=0.01)
    return Case(sam.base_optimizer, sam.param_groups, "base of two calls", sam)


def _around(wrap: Callable[[Any], Any]) -> Maker:
    def make(params: Any) -> Case:
        base = sgd(params)
        return Case(wrap(base), base.param_groups)

    return make


def _direct(
    kind: Callable[..., Any], groups: Callable[[Any], Any] = lambda made: made.param_groups
) -> Maker:
    def make(params: Any) -> Case:
        made = kind(params, lr=0.1)
        return Case(made, groups(made))

    return make


WRAPPERS: dict[str, Maker] = {
    "sam, closure": _sam(SAM, "closure"),
    "sam, two calls": _sam(SAM, "two calls"),
    "sam, two calls, adam": _sam(SAM, "two calls", torch.optim.AdamW),
    "sam, its own list, closure": _sam(SAMWithItsOwnList, "closure"),
    "sam, its own list, two calls": _sam(SAMWithItsOwnList, "two calls"),
    "sam, copies, closure": _sam(SAMWithCopies, "closure"),
    "sam, copies, two calls": _sam(SAMWithCopies, "two calls"),
    "base of sam": _base_of_sam,
    "lookahead": _around(Lookahead),
    "lookahead with hooks": _around(Hooked),
    "lookahead of sam": lambda ps: (lambda sam: Case(Lookahead(sam), sam.param_groups, "closure"))(
        SAM(ps, lr=0.05)
    ),
    "twice lookahead": _around(lambda base: Lookahead(Hooked(base, k=3))),
    "slots": _around(Slotted),
    "schedule-free around": _around(Averaging),
    "schedule-free around, in lookahead": _around(lambda base: Lookahead(Averaging(base))),
    "decays itself": _direct(DecaysItself),
    "by number": _direct(ByNumber),
    "hands on": _direct(HandsOn, lambda made: made.param_groups),
    "copies each time": _direct(CopiesEachTime),
    "bare": _direct(Bare),
    "uninitialised": _direct(Uninitialised),
    "hidden, same groups": _direct(lambda ps, **more: Hiding(ps, copied=False, **more)),
    "hidden, copied groups": _direct(
        lambda ps, **more: Hiding(ps, copied=True, **more), lambda made: made.hidden().param_groups
    ),
    "several": lambda ps: (lambda made: Case(made, made.param_groups))(
        Several(_plain(ps), lr=0.01)
    ),
}


def _plain(params: Any) -> list[Any]:
    params = list(params)
    return [group["params"] for group in params] if isinstance(params[0], dict) else params
