"""Tensor subclasses: read through their own method, or one failed row that
names the class; never a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectail as st
from spectail.errors import SourceError
from spectail.models.formats.fingerprint import fingerprint_tensors
from spectail.models.lazy_tensor import in_memory
from spectail.models.live.weights import editable, owners
from spectail.models.open import open_source


class Wrapper(Tensor):
    """A subclass that holds another tensor, as torchao's and quanto's do,
    and computes with nothing else."""

    @staticmethod
    def __new__(cls: Any, inner: Any, scale: float) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    inner: Any
    scale: float

    def __init__(self, inner: Any, scale: float) -> None:
        self.inner, self.scale = inner, scale

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner, args[0].scale)
        raise NotImplementedError(f"{cls.__name__} does not compute")


class Quantised(Wrapper):
    """One that can be dequantised and flattened."""

    def dequantize(self) -> Any:
        return self.inner.to(torch.float32) * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None


class Nested(Wrapper):
    """One whose method gives another subclass."""

    def dequantize(self) -> Quantised:
        return Quantised(self.inner, self.scale)


class Broken(Wrapper):
    """One whose method fails."""

    def dequantize(self) -> Tensor:
        raise RuntimeError("no kernel for this device\nand a second line")


class Functions(Tensor):
    """A subclass with a storage of its own that gives torch's functions another meaning."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        parent: Any = super()
        return parent.__torch_function__(function, types, args, kwargs or {})


class Marked(Tensor):
    """A subclass that changes nothing."""


def wrapped(kind: Any) -> tuple[Any, torch.Tensor]:
    values = torch.randint(-8, 8, (24, 32), generator=torch.Generator().manual_seed(0)).to(
        torch.int8
    )
    return kind(values, 0.25), values.float() * 0.25


def model_of(weight: torch.Tensor) -> Any:
    model = nn.Sequential(nn.Linear(32, 24, bias=False), nn.Linear(24, 20, bias=False))
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.parametrize("kind", [Quantised, Nested])
def test_one_that_dequantises_is_read_by_its_own_method(kind: Any) -> None:
    weight, expected = wrapped(kind)
    for source in (
        open_source(model_of(weight)),
        open_source({"0.weight": weight, "1.weight": torch.ones(20, 24)}),
    ):
        layer, other = source.layers
        assert (layer.name, layer.rows, layer.cols, layer.problem) == ("0", 24, 32, None)
        assert torch.equal(layer.read()[0], expected)
        assert layer.tensor.memory is None
        with pytest.raises(SourceError, match="cannot be written"):
            layer.write(expected[None])
        assert other.problem is None


@pytest.mark.parametrize("kind", [Wrapper, Functions])
def test_one_of_an_unknown_class_is_a_failed_row_that_names_it(kind: Any) -> None:
    weight = wrapped(kind)[0] if kind is Wrapper else torch.randn(24, 32).as_subclass(Functions)
    layer, other = open_source({"0.weight": weight, "1.weight": torch.ones(20, 24)}).layers
    assert (layer.rows, layer.cols, other.problem) == (24, 32, None)
    assert kind.__name__ in str(layer.problem)
    assert "dequantise it first" in str(layer.problem)


def test_a_method_that_fails_is_one_line_of_its_row() -> None:
    weight, _ = wrapped(Broken)
    (layer, _) = open_source(model_of(weight)).layers
    with pytest.raises(SourceError) as caught:
        layer.read()
    assert "Broken cannot be dequantised: no kernel for this device" in str(caught.value)
    assert "\n" not in str(caught.value)
    table = st.analyze(model_of(weight)).table.set_index("name")
    assert table.loc["0", "status"] == "failed"
    assert "no kernel for this device" in str(table.loc["0", "reason"])


def test_a_class_that_changes_nothing_is_read_as_it_is() -> None:
    weight = torch.randn(24, 32)
    (layer,) = open_source({"a.weight": weight.as_subclass(Marked)}).layers
    assert torch.equal(layer.read()[0], weight)
    assert type(layer.tensor.memory) is Tensor


def test_fingerprints_tell_values_apart_and_never_fail() -> None:
    one, same, other = (
        wrapped(Quantised)[0],
        wrapped(Quantised)[0],
        Quantised(torch.ones(24, 32), 1.0),
    )
    prints = [fingerprint_tensors([in_memory("a", tensor)]) for tensor in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert fingerprint_tensors([in_memory("a", wrapped(Broken)[0])])
    assert fingerprint_tensors([in_memory("a", wrapped(Wrapper)[0])])


def test_tied_subclasses_are_one_layer() -> None:
    weight, _ = wrapped(Quantised)
    model = nn.ModuleDict({"a": nn.Linear(32, 24, bias=False), "b": nn.Linear(32, 24, bias=False)})
    model["a"].weight = model["b"].weight = nn.Parameter(weight, requires_grad=False)
    assert [layer.name for layer in open_source(model).layers] == ["a"]
    state = {"a.weight": weight.detach(), "b.weight": weight.detach()}
    assert [layer.name for layer in open_source(state).layers] == ["a"]


def test_a_quantised_weight_is_never_edited() -> None:
    model = model_of(wrapped(Quantised)[0])
    layer = open_source(model).layers[0]
    with pytest.raises(SourceError, match="quantised or computed"):
        editable(layer, owners(model))


def test_a_distributed_tensor_is_gathered() -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        weight = torch.randn(24, 32)
        model = model_of(distribute_tensor(weight, mesh))
        layer = open_source(model).layers[0]
        assert torch.equal(layer.read()[0], weight)
        assert layer.tensor.memory is None
    finally:
        distributed.destroy_process_group()
