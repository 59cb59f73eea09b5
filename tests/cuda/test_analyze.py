"""A model measured on a GPU gives the table of the CPU."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

import spectail as st
from spectail import presets
from tests.conftest import weights
from tests.cuda.device import DEVICE, IS_GPU, compare, needs_device, needs_gpu
from tests.cuda.test_spectra import SPECS, draw

pytestmark = needs_device


class Net(nn.Module):
    """Layers of many kinds and shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(150, 96)
        self.wide = nn.Linear(96, 257)
        self.tall = nn.Linear(257, 80)
        self.conv = nn.Conv2d(80, 70, 3)
        self.flat = nn.Conv1d(64, 96, 2)
        self.up = nn.ConvTranspose2d(70, 66, 2)
        self.attention = nn.MultiheadAttention(96, 4)
        self.lstm = nn.LSTM(80, 64)
        self.small = nn.Linear(20, 18)
        self.tiny = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(80)


def both(source: Any, **options: Any) -> tuple[Any, Any]:
    """The tables of the device and of the CPU."""
    found, expected = (st.analyze(source, device=d, **options).table for d in (DEVICE, "cpu"))
    return found, expected


@pytest.mark.parametrize("name", SPECS)
def test_every_spec(name: str) -> None:
    spec = SPECS[name]
    # Windows as large as published fit none of these layers.
    spec = replace(spec, window=64) if isinstance(spec.window, int) else spec
    compare(*both(Net(), spec=spec))


@pytest.mark.parametrize("spec", [presets.FARMS, presets.FULL, presets.FARMS_TAIL], ids=str)
def test_everything_that_can_be_asked_for(spec: st.Spec) -> None:
    model = Net()
    with torch.no_grad():
        model.wide.weight[3, 5] = 20  # a trap
    options: dict[str, Any] = {
        "spec": spec, "traps": True, "erg": True, "full_spectrum": True, "quantization_errors": True
    }  # fmt: skip
    found, expected = (st.analyze(model, device=d, **options) for d in (DEVICE, "cpu"))
    compare(found.table, expected.table)
    for a, b in zip(found.layers, expected.layers, strict=True):
        assert [(r.format, r.bits) for r in a.rounding] == [(r.format, r.bits) for r in b.rounding]
        np.testing.assert_allclose(
            [r.error for r in a.rounding], [r.error for r in b.rounding], rtol=1e-4
        )


def odd_layers() -> dict[str, torch.Tensor]:
    orthogonal = torch.linalg.qr(draw(128, 128, dtype=torch.float64))[0]
    nan, infinite = draw(80, 90), draw(80, 90)
    nan[3, 4], infinite[70, 80] = torch.nan, torch.inf
    return {
        "zero": torch.zeros(90, 90),
        "nan": nan,
        "infinite": infinite,
        "constant": torch.full((90, 100), 0.25),
        "rank 3": draw(120, 3) @ draw(3, 100, seed=1),
        "half of it zero": torch.cat([draw(64, 128), torch.zeros(64, 128)]),
        "identity": torch.eye(96),
        "signs": draw(100, 100).sign(),
        "huge": draw(80, 80) * 1e30,
        "vanishing": draw(80, 80) * 1e-30,
        "too large": draw(80, 80, dtype=torch.float64) * 1e200,
        "too small": draw(80, 80, dtype=torch.float64) * 1e-200,
        "scaled columns": draw(100, 100) * torch.logspace(-6, 6, 100),
        "half": draw(90, 90).half(),
        "brain": draw(90, 90).bfloat16(),
        "double": draw(90, 90, dtype=torch.float64),
        "complex": draw(90, 90, dtype=torch.complex64),
        "orthogonal": orthogonal.float(),
        "one row": draw(1, 500),
        "long": draw(20, 3000),
    }


@pytest.mark.parametrize("spec", [st.Spec(window=64), presets.FULL, presets.TEMPBALANCE], ids=str)
def test_odd_layers(spec: st.Spec) -> None:
    found, expected = both(odd_layers(), spec=spec)
    # All eigenvalues of these are equal or zero up to rounding, which differs between solvers.
    rounding = ["orthogonal", "identity", "constant", "rank 3"]
    compare(*(table[~table.name.isin(rounding)] for table in (found, expected)))
    compare(
        *(table[table.name.isin(rounding)][["name", "rows", "status", "lambda_max",
          "frobenius_norm_sq", "n_windows"]] for table in (found, expected))
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn"])
def test_weights_that_are_on_the_gpu_already(dtype: str) -> None:
    model = Net().requires_grad_(False)
    kind = getattr(torch, dtype)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to(kind), requires_grad=False))
    moved = copy.deepcopy(model).to(DEVICE)
    expected = st.analyze(model, device="cpu").table
    compare(st.analyze(moved, device=DEVICE).table, expected)
    # And measured on the CPU, although they lie on the GPU.
    compare(st.analyze(moved, device="cpu").table, expected)


def test_weights_that_are_computed_from_others_on_the_gpu() -> None:
    def net() -> nn.Module:
        torch.manual_seed(1)
        return nn.ModuleDict(
            {
                "normed": parametrizations.weight_norm(nn.Linear(90, 100)),
                "spectral": parametrizations.spectral_norm(nn.Linear(90, 100)),
                "orthogonal": parametrizations.orthogonal(nn.Linear(64, 200)),
                "plain": nn.Linear(80, 80),
            }
        )

    compare(
        st.analyze(net().to(DEVICE), device=DEVICE).table[lambda t: t.name != "orthogonal"],
        st.analyze(net(), device="cpu").table[lambda t: t.name != "orthogonal"],
        least=1e-5,
    )


def test_the_change_from_a_base_on_the_other_device() -> None:
    base, tuned = Net(), Net()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    expected = st.analyze(tuned, base=base, device="cpu").table
    moved, moved_base = (copy.deepcopy(model).to(DEVICE) for model in (tuned, base))
    for ours, theirs in ((moved, base), (tuned, moved_base), (moved, moved_base)):
        for device in (DEVICE, "cpu"):
            table = st.analyze(ours, base=theirs, device=device).table
            assert set(table.status) == set(expected.status)
            compare(table, expected)


def test_adapters_on_the_gpu() -> None:
    peft = pytest.importorskip("peft")

    def net() -> Any:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 96))
        config = peft.LoraConfig(r=8, target_modules=["0", "2"], init_lora_weights=False)
        return peft.get_peft_model(model, config)

    compare(
        st.analyze(net().to(DEVICE), device=DEVICE).table, st.analyze(net(), device="cpu").table
    )


def test_a_file_and_auto(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_file(weights(), path)
    found, automatic, expected = (st.analyze(path, device=d) for d in (DEVICE, "auto", "cpu"))
    compare(found.table, expected.table)
    if IS_GPU:
        compare(automatic.table, found.table)
        assert automatic.run.device == "cuda"


def test_a_run_of_the_cpu_goes_on_here(tmp_path: Path) -> None:
    def stop(layer: Any, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    state = weights()
    with pytest.raises(KeyboardInterrupt):
        st.analyze(state, device="cpu", out=tmp_path / "run", progress=stop)
    found = st.analyze(state, device=DEVICE, out=tmp_path / "run")
    compare(found.table, st.analyze(state, device="cpu").table)


def test_two_runs_are_equal_bit_for_bit() -> None:
    first, second = (st.analyze(Net(), device=DEVICE, traps=True).table for _ in range(2))
    first, second = (t.drop(columns="seconds").set_index("name") for t in (first, second))
    assert first.sort_index().equals(second.sort_index())


def test_threads_of_the_process_stay_as_they_are() -> None:
    from threadpoolctl import threadpool_info

    def threads() -> list[int]:
        return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]

    before = threads()
    st.analyze({f"l{i}": draw(300, 300, seed=i) for i in range(12)}, device=DEVICE, traps=True)
    assert threads() == before


@needs_gpu
def test_measuring_waits_for_the_last_step_and_the_next_step_for_measuring() -> None:
    """Weights that are still being computed are measured as they will be."""
    torch.manual_seed(0)
    layers = [nn.Linear(700, 700, bias=False) for _ in range(6)]
    model: Any = nn.Sequential(*layers).to(DEVICE).requires_grad_(False)
    mix = torch.linalg.qr(draw(700, 700, dtype=torch.float64))[0].to(DEVICE)

    def work() -> None:
        for layer in model:
            values = layer.weight.double()
            for _ in range(60):
                values = mix @ values.sort(dim=1).values
            layer.weight.copy_(values)

    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            torch.cuda.synchronize()
            work()
            found = st.analyze(model, device=DEVICE).table
            copied = copy.deepcopy(model)
            for layer in model:
                layer.weight.zero_()
        torch.cuda.synchronize()
        # Alpha near 1.3 magnifies: these tails lie close together.
        compare(found, st.analyze(copied.cpu(), device="cpu").table, least=1e-6)
        model.load_state_dict(copied.state_dict())


@needs_gpu
def test_nothing_stays_in_the_memory_of_the_gpu() -> None:
    state = {f"l{i}": draw(500, 600, seed=i) for i in range(4)}
    for _ in range(3):
        st.analyze(state, device=DEVICE, traps=True, full_spectrum=True)
    before = torch.cuda.memory_allocated()
    for _ in range(4):
        st.analyze(state, device=DEVICE, traps=True, full_spectrum=True)
    # cuBLAS has work space of 32 MB for each pair of a stream and a thread's handle.
    assert torch.cuda.memory_allocated() <= before + 2 * 40 * 2**20
