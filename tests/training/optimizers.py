"""Optimizers that keep something per group, cannot be split, or do not go by their rate.

``STATEFUL``, ``REFUSED`` and ``WITHOUT_EFFECT`` are, with ``WRAPPERS`` of ``wrapped``, the table of
cases: whatever a Balancer is built on, its factors have an effect, or something says that they have
none.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.training.wrapped import Lookahead


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD: the sum of weights and the largest rate are kept per group, and the
    mode is.
    """

    def __init__(
        self, params: Iterator[Any] | list[Any], lr: float = 0.1, beta: float = 0.9, warmup: int = 2
    ) -> None:
        options = {
            "lr": lr,
            "beta": beta,
            "warmup": warmup,
            "k": 0,
            "lr_max": -1.0,
            "weight_sum": 0.0,
        }
        super().__init__(params, {**options, "train_mode": False})

    def train(self) -> None:
        self._turn(True)

    def eval(self) -> None:
        self._turn(False)

    @torch.no_grad()
    def _turn(self, train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] != train:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(
                            self.state[p]["z"],
                            1 - group["beta"] if train else 1 - 1 / group["beta"],
                        )
                group["train_mode"] = train

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError("not in train mode")
        for group in self.param_groups:
            lr = group["lr"] * min(1.0, (group["k"] + 1) / group["warmup"])
            group["lr_max"] = max(lr, group["lr_max"])
            weight = group["lr_max"] ** 2
            group["weight_sum"] += weight
            share = weight / group["weight_sum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.detach().clone())
                p.lerp_(z, share)
                p.sub_(p.grad, alpha=lr * (1 - group["beta"] * (1 - share)))
                z.sub_(p.grad, alpha=lr)
            group["k"] += 1


class PerGroup(torch.optim.Optimizer):
    """SGD whose rate is divided by what ``count`` keeps in the group."""

    def __init__(
        self, params: Iterator[Any] | list[Any], lr: float | torch.Tensor | None = 0.1, **more: Any
    ) -> None:
        super().__init__(params, {"lr": lr, **more})

    def count(self, group: dict[str, Any]) -> Any:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            divisor = self.count(group)
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad * (group["lr"] / divisor))


class Travelled(PerGroup):
    """A number that depends on the rate."""

    def count(self, group: dict[str, Any]) -> float | torch.Tensor:
        group["travelled"] = group.get("travelled", 1.0) + group["lr"]
        result: float | torch.Tensor = group["travelled"]
        return result


class TravelledTensor(PerGroup):
    """A tensor, made in the first step and written in place."""

    def count(self, group: dict[str, Any]) -> torch.Tensor:
        group.setdefault("travelled", torch.ones(())).add_(float(group["lr"]))
        result: torch.Tensor = group["travelled"]
        return result


class Counted(PerGroup):
    """A tensor that counts steps, in place."""

    def count(self, group: dict[str, Any]) -> torch.Tensor:
        group.setdefault("step", torch.zeros(())).add_(1)
        result: torch.Tensor = group["step"]
        return result


class CountedByNorm(PerGroup):
    """A value that depends on the gradients of the group, in a list, and a new tensor each time."""

    def count(self, group: dict[str, Any]) -> torch.Tensor:
        norm = sum(p.grad.square().sum() for p in group["params"] if p.grad is not None)
        group["norms"] = [*group.get("norms", []), float(norm)][-3:]
        group["norm"] = group.get("norm", torch.tensor(1.0)) + norm
        result: torch.Tensor = group["norm"] + sum(group["norms"])
        return result


class Remembering(PerGroup):
    """A value of a kind that cannot be stored as text."""

    def count(self, group: dict[str, Any]) -> float:
        group["seen"] = {*group.get("seen", ()), group["lr"]}
        return float(len(group["seen"]))


class Switched(PerGroup):
    """A key that comes and goes."""

    def count(self, group: dict[str, Any]) -> float:
        if group["lr"] > 0.1 and "fast" not in group:
            group["fast"] = 2.0
        elif group["lr"] <= 0.1:
            group.pop("fast", None)
        return 1.0 + float(group.get("fast", 0.0))


class Decaying(PerGroup):
    """It lowers its own rate."""

    def count(self, group: dict[str, Any]) -> float:
        group["lr"] *= 0.9
        return 1.0


class ByName(torch.optim.Optimizer):
    """It goes by the names of its parameters, which are in the groups."""

    def __init__(self, params: Iterator[Any], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p, name in zip(group["params"], group["param_names"], strict=True):
                p.sub_(p.grad * (group["lr"] * (0.5 if name.endswith("bias") else 1.0)))


STATEFUL: dict[str, Callable[[Any], Any]] = {
    "schedule-free": ScheduleFree,
    "travelled": Travelled,
    "travelled, tensor": TravelledTensor,
    "travelled, tensor rate": lambda ps: Travelled(ps, torch.tensor(0.1)),
    "counted": Counted,
    "norm": CountedByNorm,
    "switched": Switched,
    "decaying": Decaying,
    "decaying tensor": lambda ps: Decaying(ps, torch.tensor(0.1)),
}


class ListOfStates(PerGroup):
    """A state for each group, in a list."""

    def __init__(self, params: Iterator[Any], lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.counts = [0] * len(self.param_groups)

    def step(self, closure: Any = None) -> Any:
        for i, _ in enumerate(self.param_groups):
            self.counts[i] += 1
        super().step()

    def count(self, group: dict[str, Any]) -> float:
        return 1.0


class Paired(ListOfStates):
    """It goes through its groups and their states side by side, and stops where one of them
    ends."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group, _ in zip(self.param_groups, self.counts, strict=False):
            for p in group["params"]:
                p.sub_(p.grad * group["lr"])


class OneRate(PerGroup):
    """It estimates one rate from all groups, and refuses groups that
    differ in it (as D-Adaptation does).
    """

    def step(self, closure: Any = None) -> Any:
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("different rates are not supported")
        super().step()

    def count(self, group: dict[str, Any]) -> float:
        return 1.0


class FirstRate(PerGroup):
    """It takes the first group's rate for all."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * self.param_groups[0]["lr"])


class Absolute(PerGroup):
    """It sets the rate by the number of steps."""

    def count(self, group: dict[str, Any]) -> float:
        group["k"] = group.get("k", 0) + 1
        group["lr"] = 0.1 / group["k"]
        return 1.0


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "one rate": (
        OneRate,
        "OneRate cannot be balanced by 'lr': .* step\\(\\) raises RuntimeError: different rates",
    ),
    "first rate": (
        FirstRate,
        "FirstRate cannot be balanced by 'lr': it takes the lr of one group for all of them",
    ),
    "absolute rate": (Absolute, "Absolute writes 'lr' into its groups during step\\(\\)"),
    "list of states": (
        ListOfStates,
        "ListOfStates cannot be balanced by 'lr': .* raises IndexError",
    ),
    "side by side": (
        Paired,
        "Paired cannot be balanced by 'lr': split into groups by layer, it steps only some of them",
    ),
    "one rate inside": (lambda ps: Lookahead(OneRate(ps)), "different rates are not supported"),
    "no rate": (
        lambda ps: PerGroup(ps, None),
        "group 0 of PerGroup has 'lr' None, where a number is needed",
    ),
    "lbfgs inside": (
        lambda ps: Lookahead(torch.optim.LBFGS(ps)),
        "LBFGS takes one step along all parameters",
    ),
}


class Deaf(torch.optim.Optimizer):
    """It goes by the rate that it was made with."""

    def __init__(self, params: Iterator[Any], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.lr = lr

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * self.lr)


class Anew(torch.optim.SGD):
    """It gives out its groups as copies, so that nobody can change them."""

    def __init__(self, params: Iterator[Any], lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.kept = self.__dict__.pop("param_groups")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [dict(group) for group in self.__dict__.get("kept", [])] or self.__dict__[
            "param_groups"
        ]

    @param_groups.setter
    def param_groups(self, groups: list[Any]) -> None:
        self.__dict__["param_groups"] = groups


WITHOUT_EFFECT: dict[str, Callable[[Any], Any]] = {
    "deaf": Deaf,
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=0.01),
    "deaf inside": lambda ps: Lookahead(Deaf(ps)),
}
