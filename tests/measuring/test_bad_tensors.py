"""One bad tensor among good ones: its row says why, and all others are measured."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.measuring import layer as measuring
from spectail.models.formats.folders import LONGEST_NAME
from spectail.models.formats.open_file import OpenFile
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.naming.names import natural_key


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def halves(size: float) -> torch.Tensor:
    """Positive in the first piece that moments are computed of, negative in the second."""
    return torch.cat([torch.full((1024, 1024), size), torch.full((1024, 1024), -size)])


def nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pieces = [drawn(96, 96), drawn(64, 96)]
        return torch.nested.nested_tensor(pieces, layout=layout)


class Refusing(torch.Tensor):
    """A tensor of a class that lets torch do nothing with it."""

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise LookupError("ask me\nnothing")


def refusing() -> torch.Tensor:
    return torch.Tensor._make_subclass(Refusing, torch.ones(96, 96))


TOO_LARGE = "the squares of the weights do not fit into float64: scale them down"
FAILING: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    **{
        f"1e{power}": (lambda power=power: drawn(96, 96) * 10.0**power, TOO_LARGE)  # type: ignore[misc]
        for power in (155, 160, 200, 250, 305)
    },
    "one of 1e200": (
        lambda: drawn(96, 96).index_put((torch.tensor(5),), torch.tensor(1e200).double()),
        "weights are NaN or infinite",
    ),
    "one whose square just fits": (
        lambda: (
            torch.ones(96, 96)
            .double()
            .index_put(
                (torch.tensor(5), torch.tensor(7)), torch.tensor(1.34078e154, dtype=torch.float64)
            )
        ),
        TOO_LARGE,
    ),
    "two halves": (lambda: halves(1e38).double() * 1e162, TOO_LARGE),
    "largest": (lambda: torch.full((96, 96), 1.7e308, dtype=torch.float64), TOO_LARGE),
    "1e-200": (lambda: drawn(96, 96) * 1e-200, "vanish in float64: scale them up"),
    "nested": (lambda: nested(torch.strided), "a nested tensor, which is no matrix"),
    "jagged": (lambda: nested(torch.jagged), "a nested tensor, which is no matrix"),
    "of a class that refuses": (
        refusing,
        "a Refusing that cannot be described (LookupError: ask me)",
    ),
    "complex NaN": (
        lambda: torch.full((96, 96), complex(float("nan"), 1), dtype=torch.complex64).conj(),
        "9216 of 9216 weights are NaN or infinite",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_bad_tensor_is_one_failed_row(case: str) -> None:
    make, words = FAILING[case]
    analysis = st.analyze({"bad.weight": make(), "good.weight": drawn(96, 80)})
    bad, good = analysis.layers
    assert (bad.status, good.status) == ("failed", "ok")
    assert words in bad.reason
    assert analysis.table["alpha"].isna().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugate_views_are_measured_with_their_values(dtype: torch.dtype) -> None:
    values = drawn(96, 96, dtype=dtype)
    views = {"a.weight": values.conj(), "b.weight": values.mH, "c.weight": values.conj().imag}
    now = {name: view.resolve_conj().resolve_neg().clone() for name, view in views.items()}
    found, expected = st.analyze(views, full_spectrum=True), st.analyze(now, full_spectrum=True)
    assert (found.table["status"] == "ok").all()
    assert found.table["alpha"].tolist() == pytest.approx(expected.table["alpha"].tolist())


NAMES = ("²", "x²", "③", "٣", "𝟛", "½", "9" * 40, "9" * 5000, "0" * 5000, "\udcff", "a\x00b")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_digits_of_any_script_in_names(name: str, tmp_path: Path) -> None:
    state = {f"layers.{name}.fc.weight": drawn(96, 96), "layers.2.fc.weight": drawn(96, 80)}
    analysis = st.analyze(state, out=tmp_path)
    assert [layer.name for layer in analysis.layers] == [f"layers.{name}.fc", "layers.2.fc"]
    assert (analysis.table["status"] == "ok").all()
    if name.isprintable() and len(name) < LONGEST_NAME - 20:
        save_file(state, tmp_path / "m.safetensors")
        stored = st.analyze(tmp_path / "m.safetensors")
        assert {layer.name for layer in stored.layers} == {f"layers.{name}.fc", "layers.2.fc"}


def test_natural_order_is_that_of_the_numbers() -> None:
    names = ["a.2", "a.10", "a.010", "a.9", "a.²", "a.", "a.007", "a." + "1" * 5000, "a.b"]
    found = sorted(names, key=natural_key)
    numbers = [name for name in found if name[2:].isdecimal() and name.isascii()]
    assert [int(name[2:8]) for name in numbers[:5]] == [2, 7, 9, 10, 10]
    assert numbers[-1] == "a." + "1" * 5000


ERRORS: dict[str, tuple[Exception, str]] = {
    "torch": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "this machine has not enough memory for this layer",
    ),
    "numpy": (MemoryError("Unable to allocate 3.2 GiB"), "has not enough memory for this layer"),
    "reading": (st.SourceError("a cannot be read: Input/output error"), "Input/output error"),
    "anything": (ZeroDivisionError("by zero"), "cannot be measured (ZeroDivisionError: by zero)"),
}


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("case", ERRORS)
def test_whatever_a_layer_raises_is_its_row(
    case: str, rounding: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, words = ERRORS[case]
    reads: dict[str, int] = {}
    inner = OpenFile.read_into

    def failing(self: Any, offset: int, target: memoryview) -> None:
        if len(target) == 96 * 96 * 4:
            reads["bad"] = reads.get("bad", 0) + 1
            # With rounding the second reading fails, which comes after all layers are measured.
            if reads["bad"] > rounding:
                raise error
        inner(self, offset, target)

    state = {"bad.weight": drawn(96, 96).float(), "good.weight": drawn(96, 80).float()}
    save_file(state, tmp_path / "m.safetensors")
    monkeypatch.setattr(OpenFile, "read_into", failing)
    analysis = st.analyze(tmp_path / "m.safetensors", quantization_errors=rounding)
    bad, good = sorted(analysis.layers, key=lambda layer: layer.name)
    assert (bad.status, good.status) == ("failed", "ok")
    assert words in bad.reason
    assert bool(good.rounding) == rounding


LIMITED = """
import resource, sys
import torch, spectail as st
from spectail.cli import run
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 900 * 2**20,) * 2)
# Without --traps it would be read in bands, which the memory holds.
sys.exit(run(["analyze", sys.argv[1], "--traps", "--out", sys.argv[2]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is on the address space")
def test_a_layer_larger_than_the_memory_is_a_failed_row(tmp_path: Path) -> None:
    state = {"large.weight": torch.ones(16000, 16000), "small.weight": drawn(96, 80).float()}
    save_file(state, tmp_path / "m.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "m.safetensors", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    words = "failed: large: this machine has not enough memory for this layer"
    assert words in " ".join(done.stdout.split())
    table = st.Analysis.load(tmp_path / "run").table.set_index("name")
    assert table["status"].to_dict() == {"large": "failed", "small": "ok"}


def test_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(
        {"bad.weight": drawn(96, 96) * 1e200, "good.weight": drawn(96, 80)},
        tmp_path / "m.safetensors",
    )
    assert run(["analyze", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "run")]) == 1
    assert f"failed: bad: {TOO_LARGE}" in " ".join(capsys.readouterr().out.split())


def test_an_interrupt_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        st.analyze({"a.weight": drawn(96, 96)})


def test_a_tensor_that_cannot_be_hashed_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, index: Any) -> torch.Tensor:
        raise RuntimeError("no kernel")

    from spectail.models.formats import state_dict

    inner = state_dict.state_tensors

    def with_one_broken(state: Any) -> list[LazyTensor]:
        first, *others = inner(state)
        object.__setattr__(first, "read", broken.__get__(first))
        return [first, *others]

    monkeypatch.setattr("spectail.models.open.state_tensors", with_one_broken)
    bad, good = st.analyze({"bad.weight": drawn(96, 96), "good.weight": drawn(96, 80)}).layers
    assert (bad.status, good.status) == ("failed", "ok")
    assert "RuntimeError: no kernel" in bad.reason
