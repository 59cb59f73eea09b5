"""Quantised weights: each form of storage gives the weight that the model uses,
or one row that says why not."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import spectail as st
from spectail.models.build import build_source
from spectail.models.lazy_tensor import in_memory
from spectail.models.open import open_source

from .quantised_cases import CASES, Case, Q

OTHERS = {"layers.0.norm.weight": torch.ones(8), "layers.0.o_proj.weight": torch.ones(16, 24)}


def state_of(case: Case) -> dict[str, Tensor]:
    """The tensors under full names; ``../`` leaves the module ``q_proj``."""
    own = {
        name.replace("../", "layers.0.") if name.startswith("../") else f"{Q}.{name}": tensor
        for name, tensor in case.tensors.items()
    }
    return {**own, **OTHERS}


def check(case: Case, source: Any) -> None:
    """Exactly the rows of the case, and the values or the text that it expects."""
    rows = {layer.name: layer for layer in source.layers}
    assert set(rows) == {*case.names, "layers.0.o_proj"}
    found = [rows[name] for name in case.names]
    assert all(
        layer.tensor.memory is None for layer in found if layer.part is None or not case.note
    )
    if case.weight is None:
        (layer,) = found
        assert layer.problem is not None
        assert all(piece in layer.problem for piece in case.problem), layer.problem
        assert "\n" not in layer.problem
        assert case.shape is None or (layer.rows, layer.cols) == case.shape
        return
    assert [layer.problem for layer in found] == [None] * len(found)
    assert all(case.note in layer.note for layer in found)
    expected = case.weight if case.weight.ndim > 2 else case.weight[None]
    for layer, matrix in zip(found, expected, strict=True):
        torch.testing.assert_close(layer.read()[0], matrix.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_tensors_in_memory(name: Any) -> None:
    case = CASES[name]
    tensors = [in_memory(full, tensor) for full, tensor in state_of(case).items()]
    check(case, build_source("test", "", tensors, config=case.config))


@pytest.mark.parametrize("name", CASES)
def test_a_folder(name: Any, tmp_path: Path) -> None:
    case = CASES[name]
    save_file(
        {full: tensor.clone().contiguous() for full, tensor in state_of(case).items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    source = open_source(tmp_path)
    if case.is_sub_byte:  # a file's reader has no values of that type
        assert [layer.name for layer in source.layers if layer.problem] == [Q]
        assert len(source.layers) == 2
        return
    check(case, source)
    check(case, pickle.loads(pickle.dumps(source)))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}),
        (
            "hf_quant_config.json",
            {"producer": {"name": "x"}, "quantization": {"checkpoint_format": "gptq_v2"}},
        ),
        ("config.json", {"quantization_config": {"checkpoint_format": "gptq_v2"}}),
        ("config.json", {"text_config": {"quantization_config": {"checkpoint_format": "gptq_v2"}}}),
    ],
)
def test_the_quantisers_own_file_is_read(
    file: str, content: dict[str, Any], tmp_path: Path
) -> None:
    case = CASES["GPTQ version 2"]
    save_file(state_of(case), tmp_path / "model.safetensors")
    before = open_source(tmp_path)
    if file != "config.json":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / file).write_text(json.dumps(content))
    source = open_source(tmp_path)
    check(case, source)
    assert not torch.equal(source.layers[1].read(), before.layers[1].read())
    assert source.fingerprint != before.fingerprint, (
        "a run would go on with the numbers of the other reading"
    )


def with_buffers(state: dict[str, Tensor]) -> nn.Module:
    """A module that keeps everything in buffers, as quantised layers do."""
    model = nn.Module()
    for full, tensor in state.items():
        *path, name = full.split(".")
        owner: nn.Module = model
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if full in OTHERS:
            owner.register_parameter(name, nn.Parameter(tensor))
        else:
            owner.register_buffer(name, tensor)
    return model


def is_one_module(case: Case) -> bool:
    """Whether no tensor is called like a part of another (``weight`` and ``weight.absmax``)."""
    return not any(other.startswith(f"{name}.") for name in case.tensors for other in case.tensors)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if is_one_module(case)])
def test_buffers_of_a_live_module(name: Any) -> None:
    case = CASES[name]
    model: Any = with_buffers(state_of(case))
    model.config = dict(case.config)
    check(case, open_source(model))


def test_one_expert_is_unpacked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = torch.zeros(5, 8, 2, 16, dtype=torch.uint8)
    state = {
        "experts.down_proj_blocks": blocks,
        "experts.down_proj_scales": torch.zeros(5, 8, 2, dtype=torch.uint8),
    }
    read: list[Any] = []
    tensors = [in_memory(name, tensor) for name, tensor in state.items()]
    original = Tensor.__getitem__

    def spy(tensor: Tensor, index: Any) -> Tensor:
        read.append((tensor.shape, index))
        return original(tensor, index)

    monkeypatch.setattr(Tensor, "__getitem__", spy)
    build_source("test", "", tensors).layers[3].read()
    assert (blocks.shape, (3,)) in read


def test_helpers_never_set_the_common_window() -> None:
    state = {f"layers.{i}.o_proj.weight": torch.randn(96, 96) for i in range(2)}
    state |= {f"{Q}.B": torch.zeros(66, 70, dtype=torch.int32), f"{Q}.s": torch.ones(65, 68)}
    state |= {f"layers.1.q_proj.{n}": t for n, t in CASES["GPTQ 4 bits"].tensors.items()}
    table = st.analyze(state).table.set_index("name")
    assert set(table.index) == {"layers.0.o_proj", "layers.1.o_proj", Q, "layers.1.q_proj"}
    assert table.loc[Q, "status"] == "failed"
    assert (
        table.loc["layers.0.o_proj", "window_rows"] == 64
    )  # the unpacked weight has 64 rows and takes part


def test_what_selects_or_counts_leaves_no_row() -> None:
    state = {
        "layers.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
        "layers.0.attn.bias": torch.ones(1, 1, 9, 9, dtype=torch.uint8),
        "layers.0.attn.causal_mask": torch.ones(9, 9, dtype=torch.int32),
        "layers.0.attn.mask": torch.ones(9, 9, dtype=torch.bool),
        "layers.0.expert_ids": torch.zeros(4, 5, dtype=torch.int64),
        "position_ids": torch.arange(9)[None],
        "table": torch.zeros(3, 3, dtype=torch.int64),
        **OTHERS,
    }
    assert [layer.name for layer in open_source(state).layers] == ["layers.0.o_proj"]


def test_two_modules_do_not_take_each_others_scales() -> None:
    weight, scale = torch.randn(16, 32).to(torch.float8_e4m3fn), torch.rand(16)
    state = {f"layers.0.{name}.weight": weight for name in ("a", "b")} | {
        "layers.0.a.weight_scale": scale
    }
    first, second = open_source(state).layers
    assert torch.equal(first.read()[0], weight.float() * scale[:, None])
    assert (first.note, second.note) == ("", "stored as 8-bit floats without a scale")
    assert torch.equal(second.read()[0], weight.float())


def test_scales_in_a_part_of_their_own() -> None:
    weight = torch.randn(16, 32).to(torch.float8_e4m3fn)
    state = {"layers.0.a.weight": weight, "scales.layers.0.a.weight": torch.rand(16)}
    (layer,) = open_source(state).layers
    assert "layers.0.a.weight " in str(layer.problem)
    assert "scales.layers.0.a.weight" in str(layer.problem)


@pytest.mark.parametrize(
    "name", [n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype)]
)
def test_every_type_of_torch_opens(name: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.empty(8, 16, dtype=getattr(torch, name))
    source = open_source({"layers.0.a.weight": tensor})
    (layer,) = source.layers or (None,)
    if layer is None:
        assert name == "bool"
        return
    floating = tensor.is_floating_point() or tensor.is_complex()
    assert (layer.problem is None) == (
        tensor.is_quantized or (floating and name not in {"float4_e2m1fn_x2", "float8_e8m0fnu"})
    )
    assert floating or tensor.is_quantized or "dequantise it first" in str(layer.problem)


def test_one_of_two_experts_without_its_scale_fails() -> None:
    state = {
        "layers.0.experts.up_proj": torch.randn(2, 16, 32).to(torch.float8_e4m3fn),
        "layers.0.experts.down_proj": torch.randn(2, 32, 16).to(torch.float8_e4m3fn),
        "layers.0.experts.up_proj_scale": torch.rand(2),
        "layers.0.experts.down_proj_descale": torch.rand(2),
    }
    rows = {layer.name: layer for layer in open_source(state).layers}
    assert set(rows) == {
        "layers.0.experts.up_proj[0]",
        "layers.0.experts.up_proj[1]",
        "layers.0.experts.down_proj",
    }
    assert "down_proj_descale" in str(rows["layers.0.experts.down_proj"].problem)


def test_tied_quantised_weights_appear_once() -> None:
    state = {
        f"{name}.{key}": t
        for name in ("embed_tokens", "lm_head")
        for key, t in CASES["AWQ"].tensors.items()
    }
    assert [layer.name for layer in open_source(state).layers] == ["embed_tokens"]


def test_torch_quantised_modules_are_dequantised(tmp_path: Path) -> None:
    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no quantised kernels")
    plain = nn.ModuleDict({"fc": nn.Linear(24, 16), "lstm": nn.LSTM(16, 20)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear, nn.LSTM}, inplace=False)
        quantised = torch.quantize_per_channel(
            torch.randn(6, 8), torch.rand(6), torch.zeros(6), 0, torch.qint8
        )
        expected = {layer.name: layer for layer in open_source(plain).layers}
        rows = {layer.name: layer for layer in open_source(model).layers}
        assert set(rows) == set(expected)
        for name, layer in rows.items():
            assert (layer.read() - expected[name].read()).abs().max() < 0.01, name
        assert torch.equal(rows["fc"].read()[0], model["fc"].weight().dequantize())
        (layer,) = open_source({"a.weight": quantised}).layers
        assert torch.equal(layer.read()[0], quantised.dequantize())
        torch.save(
            {name: value for name, value in model.state_dict().items() if name.startswith("fc.")},
            tmp_path / "m.pt",
        )
        (layer,) = open_source(tmp_path / "m.pt").layers
        assert layer.name == "fc"
        assert torch.equal(layer.read(), rows["fc"].read())


def test_buffers_that_a_kernel_has_reordered_fail() -> None:
    class MarlinQuantLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out_features, self.in_features = 64, 128
            for name, tensor in CASES["GPTQ 4 bits"].tensors.items():
                self.register_buffer(name, tensor)

    (layer,) = open_source(nn.Sequential(MarlinQuantLinear())).layers
    assert (layer.name, layer.rows, layer.cols) == ("0", 64, 128)
    assert "MarlinQuantLinear" in str(layer.problem)


def test_scales_on_the_meta_device_say_so() -> None:
    with torch.device("meta"):
        state = {
            f"a.{name}": torch.empty_like(t, device="meta")
            for name, t in CASES["AWQ"].tensors.items()
        }
    (layer,) = open_source(state).layers
    assert (layer.rows, layer.cols) == (64, 128)
    assert "meta device" in str(layer.problem)
