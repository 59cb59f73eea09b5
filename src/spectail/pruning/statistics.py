"""Statistics of what goes into a layer, gathered while calibration text runs through its block.

Inputs of a ``Linear`` (or of transformers' ``Conv1D``) are seen by a hook on the module. Experts
that share one three-dimensional parameter have no module of their own: their inputs are seen where
the parameter's slice is multiplied (``products``), so that each expert counts the tokens that were
sent to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from spectail.errors import PruneError
from spectail.models.live.weights import Weight
from spectail.pruning.products import Place, Products, Watched, place_of


class Statistic:
    """What is kept of the inputs (tokens, features) of a layer; float32, added up over all calibration tokens."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.tokens = 0
        self.total = self._start(features, device)

    def add(self, inputs: Tensor) -> None:
        """Take in inputs of shape (..., features)."""
        rows = inputs.detach().reshape(-1, self.total.shape[-1]).to(self.total)
        self.tokens += rows.shape[0]
        self._add(rows)

    def _start(self, features: int, device: torch.device) -> Tensor:
        raise NotImplementedError

    def _add(self, rows: Tensor) -> None:
        raise NotImplementedError

    @property
    def squares(self) -> Tensor:
        """Sum of squares of every feature, (features,)."""
        raise NotImplementedError


class Squares(Statistic):
    """Sums of squares, (features,): all that Wanda needs."""

    def _start(self, features: int, device: torch.device) -> Tensor:
        return torch.zeros(features, dtype=torch.float32, device=device)

    def _add(self, rows: Tensor) -> None:
        self.total += rows.square().sum(dim=0)

    @property
    def squares(self) -> Tensor:
        """Sum of squares of every feature, (features,)."""
        return self.total


class Gram(Statistic):
    """X X^T, (features, features): SparseGPT's Hessian up to a factor."""

    def _start(self, features: int, device: torch.device) -> Tensor:
        return torch.zeros(features, features, dtype=torch.float32, device=device)

    def _add(self, rows: Tensor) -> None:
        self.total.addmm_(rows.T, rows)

    @property
    def squares(self) -> Tensor:
        """Sum of squares of every feature, (features,)."""
        return self.total.diagonal()


class Count(Statistic):
    """Nothing but the number of tokens: shows which layers text reaches."""

    def _start(self, features: int, device: torch.device) -> Tensor:
        return torch.zeros(features, device=device)

    def _add(self, rows: Tensor) -> None:
        pass

    @property
    def squares(self) -> Tensor:
        """Zeros: nothing is summed."""
        return self.total


Site: TypeAlias = "tuple[str, int | None]"
"""Where inputs come in: a parameter and, where it holds experts, which. Parts of one weight (q, k,
v) share a site."""


def site_of(weight: Weight) -> Site:
    """The site of a weight."""
    return weight.path, weight.expert


@contextmanager
def watching(
    weights: Iterable[Weight], kind: type[Statistic]
) -> Iterator[Mapping[Site, Statistic]]:
    """Gather statistics of the inputs of these weights while the context lasts; nothing of the modules is replaced.

    Raises:
        PruneError: a weight sits in a module whose inputs cannot be seen.

    """
    found: dict[Site, Statistic] = {}
    places: dict[Place, Watched] = {}
    with ExitStack() as stack:
        for weight in weights:
            site = site_of(weight)
            if site in found:
                continue
            found[site] = kind(weight.cols, weight.tensor.device)
            expert = weight.expert
            places[place_of(weight.tensor if expert is None else weight.tensor[expert])] = Watched(
                found[site],
                weight.cols,
                weight.part.view(weight.tensor).stride(-1),
                by_module=expert is None,
            )
            if expert is not None:
                stack.enter_context(_one_by_one(weight.owner))
            elif takes_features(weight):
                hook = partial(_see, weight.name, found[site])
                stack.callback(
                    weight.owner.register_forward_pre_hook(hook, with_kwargs=True).remove
                )
            else:
                raise PruneError(
                    f"{weight.name} sits in a {type(weight.owner).__name__}, whose inputs cannot be seen: "
                    "leave it out of the allocation, or prune by magnitude"
                )
        stack.enter_context(Products(places))
        yield found


def takes_features(weight: Weight) -> bool:
    """Whether the module that holds a weight is called with the weight's input features in the last dimension."""
    return isinstance(weight.owner, nn.Linear) or weight.layout == "conv1d"


def check_seen(weights: Iterable[Weight], found: Mapping[Site, Statistic]) -> None:
    """Refuse inputs that are not numbers, and weights that work without their inputs being seen.

    Of experts, one must have been seen at work: the others may have got no token.
    """
    weights = list(weights)
    if lost := unseen_of(weights, found):
        name = next(iter(lost))
        raise PruneError(
            f"the inputs of {name} cannot be seen: leave it out of the allocation, or prune by magnitude"
        )
    for weight in weights:
        if not bool(torch.isfinite(found[site_of(weight)].total).all()):
            raise PruneError(
                f"NaN or infinite inputs reach {weight.name} on the calibration text: "
                "load the model in float32 or bfloat16, and check its weights"
            )


def unseen_of(weights: Iterable[Weight], found: Mapping[Site, Statistic]) -> dict[str, Weight]:
    """The weights that got no token, by name, unless another expert of the same layer got one."""
    weights = list(weights)
    at_work = {_team(weight) for weight in weights if found[site_of(weight)].tokens}
    return {weight.name: weight for weight in weights if _team(weight) not in at_work}


_EXPERT = re.compile(r"(experts?\.)\d+(?=\.)")


def _team(weight: Weight) -> str:
    """What a weight shares with the other experts of its layer; its own path where it is no expert."""
    return _EXPERT.sub(r"\1*", weight.path)


def _see(
    name: str,
    statistic: Statistic,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Take in the input of a module's call."""
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(inputs, Tensor) or inputs.shape[-1] != statistic.total.shape[-1]:
        raise PruneError(
            f"{name} is not called with inputs of {statistic.total.shape[-1]} features: prune by magnitude"
        )
    statistic.add(inputs)


@contextmanager
def _one_by_one(owner: nn.Module) -> Iterator[None]:
    """Have transformers multiply experts one by one where it offers grouped kernels, and switch back."""
    config: Any = getattr(owner, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before
