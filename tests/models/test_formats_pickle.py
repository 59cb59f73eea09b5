"""Pickles are read as data: torch's own reader is the oracle for tensors,
nothing that a file names ever runs."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spectail.errors import SourceError
from spectail.models.formats import pickled, unpickle
from spectail.models.formats.open_file import MemoryFile, OpenFile
from spectail.models.formats.torch_pickle import read_pickles
from spectail.models.open import open_source

FLAG = "spectail_ran"


class Runs:
    """An object whose pickle calls a function of the user."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return (set_flag, (3,))


def set_flag(value: Any) -> Any:
    setattr(sys, FLAG, value)
    return value


class Settings:
    """A class of the user with plain attributes."""

    def __init__(self) -> None:
        self.rate, self.names = 0.1, ["a"]


class Calls:
    """A pickle that calls a given function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.given = function, args

    def __reduce__(self) -> Any:
        return self.given


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(4, 6), "b.weight": torch.randn(3, 4)}


def kinds_of_tensors() -> dict[str, Any]:
    """Every way of storing a dense tensor that torch.load gives back with weights_only."""
    base = torch.randn(6, 8)
    return {
        "plain": base,
        "tied": base,
        "view": base[1:4, 2:],
        "transposed": torch.randn(5, 7).T,
        "strided": torch.randn(8, 9)[::2, ::3],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "parameter": nn.Parameter(torch.randn(4, 4)),
        "half": torch.randn(4, 6).half(),
        "bfloat16": torch.randn(4, 6).bfloat16(),
        "double": torch.randn(4, 6).double(),
        "complex": torch.randn(4, 6, dtype=torch.complex64),
        "float8": torch.randn(4, 6).to(torch.float8_e4m3fn),
        "int": torch.arange(12).reshape(3, 4),
        "bool": torch.ones(2, 3, dtype=torch.bool),
        "uint16": torch.ones(2, 3, dtype=torch.uint16),
        "vector": torch.randn(5),
        "scalar": torch.tensor(3.0),
        "no entries": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("old", [False, True])
def test_tensors_are_those_of_torch_load(old: bool, tmp_path: pathlib.Path) -> None:
    state = kinds_of_tensors()
    if old:
        del (
            state["uint16"],
            state["float8"],
        )  # torch cannot load its newer types from the older layout
    path = tmp_path / "m.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    expected = torch.load(path, weights_only=True)
    found = {tensor.name: tensor for tensor in read_pickles([OpenFile(path)]).tensors}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        values = tensor.read(())
        assert (values.dtype, values.shape) == (expected[name].dtype, expected[name].shape), name
        wide = torch.complex128 if values.is_complex() else torch.float64
        assert torch.equal(values.to(wide), expected[name].to(wide)), name
        assert tensor.dtype == str(expected[name].dtype).removeprefix("torch.")
    assert found["plain"].identity == found["tied"].identity is not None
    assert found["view"].identity != found["plain"].identity


def test_an_archive_that_was_packed_again_with_compression(tmp_path: pathlib.Path) -> None:
    state = weights()
    torch.save(state, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(tmp_path / "n.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert torch.equal(open_source(tmp_path / "n.pt").layers[0].read()[0], state["a.weight"])


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_that_torch_did_not_write(protocol: int, tmp_path: pathlib.Path) -> None:
    state: dict[str, Any] = weights() | {
        "c.weight": np.arange(12.0).reshape(3, 4),
        "d.weight": np.ones((2, 3), ">f4", order="F"),
    }
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": state}, protocol))
    layers = {layer.name: layer.read()[0] for layer in open_source(tmp_path / "m.pkl").layers}
    assert torch.equal(layers["a"], state["a.weight"])
    assert np.array_equal(layers["c"].numpy(), state["c.weight"])
    assert np.array_equal(layers["d"].numpy(), state["d.weight"])


HARMLESS = {
    "argparse": argparse.Namespace(rate=0.1, path=pathlib.Path("a/b")),
    "pathlib": pathlib.PurePosixPath("a/b"),
    "collections": collections.Counter(a=3),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2]),
    "datetime": datetime.datetime(2026, 1, 1),
    "numpy scalar": np.float64(3.0),
    "numpy dtype": np.dtype("f4"),
    "numpy array of objects": np.array([None, "a"], dtype=object),
    "random state": np.random.RandomState(0).get_state(),
    "torch things": [torch.float32, torch.device("cpu"), torch.Size([1]), torch.strided],
    "sets": {1, 2},
    "bytes": b"abc",
    "complex": 1j,
    "slice": slice(1, 2),
    "exception": ValueError("a"),
}


@pytest.mark.parametrize("case", HARMLESS)
@pytest.mark.parametrize("old", [False, True])
def test_harmless_objects_are_left_out_without_a_word(
    case: str, old: bool, tmp_path: pathlib.Path
) -> None:
    state = weights()
    torch.save(
        {"state_dict": state, "extra": HARMLESS[case]},
        tmp_path / "m.pt",
        _use_new_zipfile_serialization=not old,
    )
    source = open_source(tmp_path / "m.pt")
    assert [layer.name for layer in source.layers] == ["a", "b"]
    assert torch.equal(source.layers[0].read()[0], state["a.weight"])
    assert source.notes == ()


@pytest.mark.parametrize("place", ["in the state dict", "beside it", "as an attribute"])
def test_what_is_no_tensor_is_left_out_with_a_note(place: str, tmp_path: pathlib.Path) -> None:
    state: Any = collections.OrderedDict(weights())
    saved: dict[str, Any] = {"model": state}
    things: dict[str, Any] = {
        "settings": Settings(),
        "loss": partial(set_flag, 3),
        "runs": Runs(),
        "act": nn.functional.gelu,
    }
    if place == "in the state dict":
        state["_metadata"] = things
    elif place == "beside it":
        saved |= things
    else:
        state._metadata = things
    torch.save(saved, tmp_path / "m.pt")
    source = open_source(tmp_path / "m.pt")
    assert torch.equal(source.layers[1].read()[0], state["b.weight"])
    assert len(source.layers) == 2
    (note,) = source.notes
    assert "left out what is no tensor" in note
    assert f"{__name__}.Settings" in note
    assert f"{__name__}.set_flag" in note
    assert "1 more" in note  # the activation
    assert not hasattr(sys, FLAG)


REFUSED = {
    "a whole module": (nn.Sequential(nn.Linear(3, 4)), "torch.nn.modules.container.Sequential"),
    "a module under a usual key": (
        {"model": nn.Linear(3, 4), "epoch": 3},
        "torch.nn.modules.linear.Linear",
    ),
    "modules under other keys": (
        {"actor": nn.Linear(3, 4), "critic": nn.Linear(3, 4)},
        "torch.nn.modules.linear.Linear",
    ),
    "exec": ({"a": torch.ones(2, 2), "b": Calls(exec, "raise SystemExit")}, "builtins.exec"),
    "eval": (Calls(eval, "1"), "builtins.eval"),
    "a command": (
        {"a": torch.ones(2, 2), "b": Calls(subprocess.check_output, ["true"])},
        "subprocess.check_output",
    ),
    "os": (Calls(os.system, "true"), "posix.system"),
    "an import": (Calls(__import__, "antigravity"), "builtins.__import__"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_class(case: str, tmp_path: pathlib.Path) -> None:
    value, name = REFUSED[case]
    torch.save(value, tmp_path / "m.pt")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "m.pt")
    assert name in str(caught.value)
    assert "save the module's state_dict()" in str(caught.value)
    assert str(tmp_path / "m.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_imported(tmp_path: pathlib.Path) -> None:
    for name in ("antigravity", "turtle"):
        sys.modules.pop(name, None)
    (tmp_path / "m.pt").write_bytes(
        b"\x80\x02}(U\x01acantigravity\ngeohash\nU\x01bcturtle\nTurtle\nU\x01w"
        + array_bytes()
        + b"u."
    )
    source = open_source(tmp_path / "m.pt")
    assert [layer.name for layer in source.layers] == ["w"]
    assert "antigravity.geohash, turtle.Turtle" in source.notes[0]
    assert not {"antigravity", "turtle"} & sys.modules.keys()


def array_bytes() -> Any:
    """The opcodes of a 2 x 2 array, without frame and end."""
    return pickle.dumps(np.ones((2, 2)), 2)[2:-1]


ATTACKS = {
    "defaults of a function of ours": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}U\x0c__defaults__NstN\x86b."
    ),
    "attribute of a function of ours": b"ctorch._utils\n_rebuild_tensor_v2\n}U\x01aNsb.",
    "attribute of a class of ours": b"ccollections\nOrderedDict\n}U\x06__init__Nsb.",
    "attribute of a builtin": b"cbuiltins\ndict\n}U\x03getNsb.",
    "attribute of an inert class": b"cfoo\nbar\n}U\x08__init__Nsb.",
    "call of a number": b"I3\n)R.",
    "an instance of a function": b"ctorch._utils\n_rebuild_tensor_v2\n)\x81.",
    "an extension code": b"\x82\x01.",
}


def everything_of_ours() -> dict[str, dict[str, Any]]:
    """What the classes of the reader hold."""
    names = {**vars(unpickle), **vars(pickled)}
    return {name: dict(vars(value)) for name, value in names.items() if isinstance(value, type)}


@pytest.mark.parametrize("case", ATTACKS)
def test_a_pickle_changes_nothing_of_ours(case: str, tmp_path: pathlib.Path) -> None:
    before = everything_of_ours()
    (tmp_path / "m.pt").write_bytes(b"\x80\x02" + ATTACKS[case])
    with pytest.raises(SourceError):
        open_source(tmp_path / "m.pt")
    assert everything_of_ours() == before
    torch.save(weights(), tmp_path / "n.pt")
    assert len(open_source(tmp_path / "n.pt").layers) == 2


def test_quantised_tensors_of_torch_are_dequantised(tmp_path: pathlib.Path) -> None:
    values = torch.randn(6, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(values, 0.05, 3, torch.qint8)
        rows = torch.quantize_per_channel(
            values, torch.rand(6) + 0.01, torch.arange(6), 0, torch.quint8
        )
        torch.save({"a.weight": tensor, "b.weight": rows}, tmp_path / "m.pt")
    layers = {layer.name: layer.read()[0] for layer in open_source(tmp_path / "m.pt").layers}
    torch.testing.assert_close(layers["a"], tensor.dequantize())
    torch.testing.assert_close(layers["b"], rows.dequantize())


def test_tensors_without_readable_values_keep_a_row(tmp_path: pathlib.Path) -> None:
    state = {
        "a.weight": torch.eye(3).to_sparse(),
        "b.weight": torch.empty(3, 4, device="meta"),
        "c.weight": torch.randn(3, 4, dtype=torch.complex64).conj(),
        "d.weight": torch.ones(2, 3),
    }
    torch.save(state, tmp_path / "m.pt")
    problems = {layer.name: layer.problem for layer in open_source(tmp_path / "m.pt").layers}
    assert "sparse_coo" in str(problems["a"])
    assert "meta device" in str(problems["b"])
    assert "resolve_conj" in str(problems["c"])
    assert problems["d"] is None


def test_objects_with_tensors_inside_a_state_dict_keep_a_failed_row(tmp_path: pathlib.Path) -> None:
    packed: Any = Settings()
    packed.codes, packed.scale = torch.ones(4, 8, dtype=torch.uint8), torch.ones(4)
    torch.save({"a.weight": torch.ones(2, 3), "b.weight": packed}, tmp_path / "m.pt")
    layers = {layer.name: layer for layer in open_source(tmp_path / "m.pt").layers}
    assert (layers["b"].rows, layers["b"].cols) == (4, 8)
    assert f"class {__name__}.Settings" in str(layers["b"].problem)


def test_lists_of_tensors_are_state_dicts_too(tmp_path: pathlib.Path) -> None:
    torch.save({"params": [torch.ones(2, 3), torch.ones(4, 2)]}, tmp_path / "m.pt")
    assert [layer.name for layer in open_source(tmp_path / "m.pt").layers] == ["0", "1"]


@pytest.mark.parametrize(
    ("first", "shape", "strides"),
    [(0, (9, 4), (4, 1)), (10, (4, 4), (4, 1)), (-1, (2, 2), (4, 1)), (0, (4, 4), (-4, 1))],
)
def test_a_tensor_outside_of_its_storage_is_refused(
    first: int, shape: tuple[int, int], strides: tuple[int, int]
) -> None:
    storage = pickled.Storage(torch.float32, MemoryFile(pathlib.Path("a"), bytes(1000)), 40, 16 * 4)
    with pytest.raises(ValueError, match=r"an array at|does not fit into its storage"):
        pickled.TensorRef(shape, torch.float32, storage, first, strides).array()
    assert pickled.TensorRef((4, 4), torch.float32, storage, 0, (4, 1)).array().read().shape == (
        4,
        4,
    )
