"""Statistics of what goes into a layer, gathered while calibration text runs through its block.

Inputs of a ``Linear`` (or of transformers' ``Conv1D``) are seen by a hook on the module. Experts that share one
three-dimensional parameter have no module of their own: their inputs are seen where the parameter's slice is
multiplied, so that each expert counts the tokens that were sent to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spectail.errors import PruneError
from spectail.models.live.weights import Weight


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


Site: TypeAlias = "tuple[str, int | None]"
"""Where inputs come in: a parameter and, where it holds experts, which. Parts of one weight (q, k, v) share a site."""

Place: TypeAlias = "tuple[int, int]"
"""Address and offset of a tensor's memory: what tells an expert's slice of a parameter."""


def site_of(weight: Weight) -> Site:
    """The site of a weight."""
    return weight.path, weight.expert


@contextmanager
def watching(weights: Iterable[Weight], kind: type[Statistic]) -> Iterator[Mapping[Site, Statistic]]:
    """Gather statistics of the inputs of these weights while the context lasts; nothing of the modules is replaced.

    Raises:
        PruneError: a weight sits in a module whose inputs cannot be seen.

    """
    found: dict[Site, Statistic] = {}
    experts: dict[Place, Statistic] = {}
    with ExitStack() as stack:
        for weight in weights:
            site = site_of(weight)
            if site in found:
                continue
            found[site] = kind(weight.cols, weight.tensor.device)
            if weight.expert is not None:
                experts[_place(weight.tensor[weight.expert])] = found[site]
                stack.enter_context(_one_by_one(weight.owner))
            elif isinstance(weight.owner, nn.Linear) or weight.layout == "conv1d":
                hook = partial(_see, weight.name, found[site])
                stack.callback(weight.owner.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                raise PruneError(
                    f"{weight.name} sits in a {type(weight.owner).__name__}, whose inputs cannot be seen: "
                    "leave it out of the allocation, or prune by magnitude"
                )
        if experts:
            stack.enter_context(_ExpertInputs(experts))
        yield found


def check_seen(weights: Iterable[Weight], found: Mapping[Site, Statistic]) -> None:
    """Refuse inputs that are not numbers, and experts in one parameter of which not a single one was seen at work."""
    weights = list(weights)
    at_work = {weight.path for weight in weights if found[site_of(weight)].tokens}
    for weight in weights:
        statistic = found[site_of(weight)]
        if weight.expert is not None and weight.path not in at_work:
            raise PruneError(
                f"the inputs of the experts in {weight.path} cannot be seen: "
                "leave them out of the allocation, or prune by magnitude"
            )
        if not bool(torch.isfinite(statistic.total).all()):
            raise PruneError(
                f"NaN or infinite inputs reach {weight.name} on the calibration text: "
                "load the model in float32 or bfloat16, and check its weights"
            )


def _see(name: str, statistic: Statistic, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Take in the input of a module's call."""
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(inputs, Tensor) or inputs.shape[-1] != statistic.total.shape[-1]:
        raise PruneError(
            f"{name} is not called with inputs of {statistic.total.shape[-1]} features: prune by magnitude"
        )
    statistic.add(inputs)


def _place(tensor: Tensor) -> Place:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


_PRODUCTS: tuple[Callable[..., Any], ...] = (
    F.linear,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.mm,
    Tensor.mm,
)


class _ExpertInputs(TorchFunctionMode):
    """Sees the products of any tensor with an expert's slice of a parameter."""

    def __init__(self, experts: Mapping[Place, Statistic]) -> None:
        super().__init__()
        self.experts = experts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and len(args) > 1 and type(args[1]) in (Tensor, nn.Parameter):
            statistic = self.experts.get(_place(args[1]))
            if statistic is not None:
                statistic.add(args[0])
        return func(*args, **(kwargs or {}))


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
