"""The local engine: the same bits however its layers and windows are spread over the cores."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

import spectail as st
from spectail.core.threads import cores, single_threaded, spread, spread_over
from spectail.measuring.engines import local
from spectail.measuring.layer import measure_layer
from spectail.measuring.planning import make_plan
from tests.conftest import weights


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SHAPES = [(300, 96), (700, 900), (1100, 1500), (2100, 1024), (128, 64, 3, 3)]
"""Gram matrices and products for the largest eigenvalue, tall and wide, and kernels."""


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("spec", [st.Spec(window=64), st.Spec(window="whole")], ids=str)
def test_the_numbers_do_not_depend_on_how_the_work_is_spread(
    spec: st.Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    state = {f"l{i}.weight": torch.randn(*shape, generator=draw) for i, shape in enumerate(SHAPES)}
    plan = make_plan(state, spec=spec, device="cpu")

    def rows(records: Any) -> list[dict[str, Any]]:
        found = [record.to_dict() | {"seconds": 0} for record in records]
        return sorted(found, key=lambda row: row["name"])

    with single_threaded():
        expected = rows([measure_layer(layer, plan) for layer in plan.layers])
    # Every layer alone on all cores, then all layers side by side.
    for together in (0, 2**40):
        monkeypatch.setattr(local, "TOGETHER", together)
        assert rows(local.measure(plan, plan.layers)) == expected
    torch.set_num_threads(1)
    assert rows(local.measure(plan, plan.layers)) == expected


@pytest.mark.usefixtures("two_threads")
def test_no_core_waits_beside_a_long_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan({f"l{i}.weight": torch.randn(70, 70) for i in range(9)}, spec=st.Spec())
    others_done = Event()
    arrived: list[str] = []

    def measured(layer: Any, plan: Any) -> Any:
        if layer.name == "l0":
            assert others_done.wait(20), "the other core waited for the first layer"
        return layer

    monkeypatch.setattr(local, "measure_layer", measured)
    for record in local.measure(plan, plan.layers):
        arrived.append(record.name)
        if len(arrived) == 8:
            others_done.set()
    assert arrived[-1] == "l0"
    assert sorted(arrived) == [layer.name for layer in plan.layers]


@pytest.mark.usefixtures("two_threads")
def test_spread_keeps_the_order_and_raises_what_a_thread_raises() -> None:
    assert spread(lambda number: number**2, range(20)) == [number**2 for number in range(20)]
    with spread_over(5):
        assert cores() == 5
        assert torch.get_num_threads() == 1
        assert spread(str, range(7)) == list("0123456")
    assert (cores(), torch.get_num_threads()) == (2, 2)
    with pytest.raises(ZeroDivisionError):
        spread(lambda number: 1 / number, [2, 1, 0])


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(st.SpecError, match="device must be auto, cpu or an accelerator"):
        st.analyze(checkpoint, device="abacus", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(st.SpecError, match="needs a source that other machines can open"):
        st.analyze(weights(), engine="ray")
