"""Gather statistics of the inputs of layers while calibration text runs through their block.

A hook on the module sees the inputs of a ``Linear`` (or of transformers' ``Conv1D``). Experts that
share one three-dimensional parameter have no module of their own; ``inputs_without_module`` sees
their inputs where the model multiplies by the parameter's slice. So each expert counts the tokens
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
from spectail.pruning.inputs_without_module import Place, Products, Watched, place_of


class Statistic:
    """A sum over the inputs (tokens, features) of a layer, in float32.

    A subclass says what is summed: the shape of the total, and what rows of inputs add to it.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.tokens = 0
        self.total = self._start(features, device)

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape (..., features)."""
        # Batch and positions do not matter: every token counts the same.
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
        # In place: features x features numbers are the largest statistic.
        self.total.addmm_(rows.T, rows)

    @property
    def squares(self) -> Tensor:
        """Sum of squares of every feature, (features,)."""
        return self.total.diagonal()


class Count(Statistic):
    """The number of tokens alone, which shows whether text reaches a layer."""

    def _start(self, features: int, device: torch.device) -> Tensor:
        return torch.zeros(features, device=device)

    def _add(self, rows: Tensor) -> None:
        pass

    @property
    def squares(self) -> Tensor:
        """Zeros: nothing is summed."""
        return self.total


Site: TypeAlias = "tuple[str, int | None]"
"""A place where inputs enter: a parameter's path and, if it holds experts, the expert's number.
Parts of one weight (q, k, v) share a site, because they share their inputs."""


def site_of(weight: Weight) -> Site:
    """Return the site of a weight."""
    return weight.path, weight.expert


@contextmanager
def watching(
    weights: Iterable[Weight], kind: type[Statistic]
) -> Iterator[Mapping[Site, Statistic]]:
    """Gather statistics of the inputs of these weights while the context lasts.

    Modules are only watched; none is changed or replaced.

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
            place, watched = _watched(weight, found[site])
            places[place] = watched
            stack.enter_context(_seen_by_module(weight, found[site]))
        stack.enter_context(Products(places))
        yield found


def _watched(weight: Weight, statistic: Statistic) -> tuple[Place, Watched]:
    """Describe a weight for ``Products``: its place in memory, and what tells its inputs."""
    expert = weight.expert
    place = place_of(weight.tensor if expert is None else weight.tensor[expert])
    stride = weight.part.view(weight.tensor).stride(-1)
    return place, Watched(statistic, weight.cols, stride, by_module=expert is None)


@contextmanager
def _seen_by_module(weight: Weight, statistic: Statistic) -> Iterator[None]:
    """Watch the calls of the module that holds a weight; of experts, make the products visible.

    Raises:
        PruneError: the module's inputs cannot be seen.

    """
    if weight.expert is not None:
        with _one_by_one(weight.owner):
            yield
        return
    if not takes_features(weight):
        raise PruneError(
            f"{weight.name} sits in a {type(weight.owner).__name__}, whose inputs cannot be seen: "
            "leave it out of the allocation, or prune by magnitude"
        )
    hook = partial(_see, weight.name, statistic)
    # A hook before the call sees the inputs even if the module changes them in place.
    handle = weight.owner.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def takes_features(weight: Weight) -> bool:
    """Whether the module that holds a weight is called with the weight's input features last."""
    return isinstance(weight.owner, nn.Linear) or weight.layout == "conv1d"


def check_seen(weights: Iterable[Weight], found: Mapping[Site, Statistic]) -> None:
    """Refuse inputs that hold NaN or infinity, and weights whose inputs were not seen.

    Of the experts of a layer at least one must have been seen; the others may have got no token.
    """
    weights = list(weights)
    if lost := unseen_of(weights, found):
        name = next(iter(lost))
        raise PruneError(
            f"the inputs of {name} cannot be seen: "
            "leave it out of the allocation, or prune by magnitude"
        )
    for weight in weights:
        # One NaN in the sums would spoil every score of the layer.
        if not bool(torch.isfinite(found[site_of(weight)].total).all()):
            raise PruneError(
                f"NaN or infinite inputs reach {weight.name} on the calibration text: "
                "load the model in float32 or bfloat16, and check its weights"
            )


def unseen_of(weights: Iterable[Weight], found: Mapping[Site, Statistic]) -> dict[str, Weight]:
    """Return the weights that got no token, unless another expert of their layer got one."""
    weights = list(weights)
    # An expert that the router never chose is not unreachable.
    at_work = {_team(weight) for weight in weights if found[site_of(weight)].tokens}
    return {weight.name: weight for weight in weights if _team(weight) not in at_work}


# Experts with modules of their own: ``mlp.experts.7.up_proj``.
_EXPERT = re.compile(r"(experts?\.)\d+(?=\.)")


def _team(weight: Weight) -> str:
    """Return a key that all experts of a layer share; for other weights it is their own path."""
    return _EXPERT.sub(r"\1*", weight.path)


def _see(
    name: str,
    statistic: Statistic,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Add the first argument of a module's call to a statistic."""
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(inputs, Tensor) or inputs.shape[-1] != statistic.total.shape[-1]:
        raise PruneError(
            f"{name} is not called with inputs of {statistic.total.shape[-1]} features: "
            "prune by magnitude"
        )
    statistic.add(inputs)


@contextmanager
def _one_by_one(owner: nn.Module) -> Iterator[None]:
    """Make transformers multiply experts one by one while the context lasts."""
    # Its grouped kernels take the whole parameter, so that no expert's own product can be seen.
    config: Any = getattr(owner, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is None:
        yield
        return
    # A private setting, which transformers reads at every call.
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before
