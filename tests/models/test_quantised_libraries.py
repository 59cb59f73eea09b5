"""What quantisers really write: each library packs a matrix, and gives back what it computes with.

Each test is skipped where its library is not installed; ``test_quantised``
checks the same forms without any.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectail.models.build import build_source
from spectail.models.lazy_tensor import in_memory
from spectail.models.open import open_source

NAME = "model.layers.0.mlp.up_proj"
# bitsandbytes and HQQ compute in float32 here, the others in the type of their scales.
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 1e-6}
CLOSE_HALF: dict[str, Any] = {"rtol": 4e-3, "atol": 2e-3}


def matrix(rows: int = 64, cols: int = 256) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(3)) * 0.1


def only_layer(state: Any, config: Any = None) -> Any:
    source = build_source(
        "test", "", [in_memory(name, tensor) for name, tensor in state.items()], config=config
    )
    assert [layer.name for layer in source.layers] == [NAME], [
        layer.name for layer in source.layers
    ]
    assert source.layers[0].problem is None, source.layers[0].problem
    return source.layers[0]


def named(state: Any, prefix: str = NAME) -> dict[str, Any]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def in_decoder(layer: Any) -> nn.Module:
    """Put a module where ``NAME`` says."""
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([nn.Module()])
    model.model.layers[0].mlp = nn.Module()
    model.model.layers[0].mlp.up_proj = layer
    return model


def live_layer(layer: Any) -> Any:
    source = open_source(in_decoder(layer))
    assert [found.name for found in source.layers] == [NAME], [
        found.name for found in source.layers
    ]
    assert source.layers[0].problem is None, source.layers[0].problem
    assert source.layers[0].tensor.memory is None
    return source.layers[0]


# bitsandbytes


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4bit(kind: str, nested: bool) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(
        256, 64, bias=False, quant_type=kind, compress_statistics=nested
    )
    layer.weight.data = matrix()
    layer = layer.to("cpu")
    expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(live_layer(layer).read()[0], expected.float(), **CLOSE)
    stored = only_layer(named(layer.state_dict()))
    assert (stored.rows, stored.cols) == (64, 256)
    torch.testing.assert_close(stored.read()[0], expected.float(), **CLOSE)


def test_bitsandbytes_8bit() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(256, 64, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": matrix()})
    layer = layer.to("cpu")
    before = live_layer(layer).read()[0]
    expected = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    torch.testing.assert_close(before, expected, **CLOSE)
    layer(torch.randn(2, 256))
    torch.testing.assert_close(live_layer(layer).read()[0], expected, **CLOSE)
    torch.testing.assert_close(only_layer(named(layer.state_dict())).read()[0], expected, **CLOSE)
    torch.testing.assert_close(expected, matrix(), rtol=0, atol=0.01)


# HQQ


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_hqq(bits: int, axis: int) -> None:
    quantize = pytest.importorskip("hqq.core.quantize")
    config = quantize.BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
    linear = nn.Linear(256, 64, bias=False)
    linear.weight.data = matrix()
    layer = quantize.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
    expected = layer.dequantize()
    torch.testing.assert_close(live_layer(layer).read()[0], expected, **CLOSE)
    torch.testing.assert_close(only_layer(named(layer.state_dict())).read()[0], expected, **CLOSE)


# optimum-quanto


@pytest.mark.parametrize("kind", ["qint8", "qfloat8_e4m3fn", "qfloat8_e5m2", "qint4", "qint2"])
def test_quanto(kind: str) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    layer: Any = nn.Sequential(nn.Linear(256, 64, bias=False))
    layer[0].weight.data = matrix()
    quanto.quantize(layer, weights=getattr(quanto, kind))
    quanto.freeze(layer)
    expected = layer[0].weight.dequantize()
    torch.testing.assert_close(live_layer(layer[0]).read()[0], expected, **CLOSE)
    state = named(layer[0].state_dict())
    if kind in {"qint4", "qint2"}:
        (row,) = build_source("test", "", [in_memory(n, t) for n, t in state.items()]).layers
        assert row.name == NAME
        assert "optimum-quanto" in str(row.problem)
        return
    torch.testing.assert_close(only_layer(state).read()[0], expected, **CLOSE)


# torchao


@pytest.mark.parametrize(
    "kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig"]
)
def test_torchao(kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    options = {"weight_dtype": getattr(torch, "int4")} if kind.startswith("Intx") else {}
    model = in_decoder(nn.Linear(256, 64, bias=False).to(torch.bfloat16))
    quantization.quantize_(model, getattr(quantization, kind)(**options))
    weight: Any = model.get_submodule(NAME).weight
    (layer,) = open_source(model).layers
    assert layer.name == NAME
    assert layer.tensor.memory is None
    torch.testing.assert_close(layer.read()[0], weight.dequantize().float(), **CLOSE)
    (layer,) = open_source(model.state_dict()).layers
    torch.testing.assert_close(layer.read()[0], weight.dequantize().float(), **CLOSE)


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_in_safetensors(kind: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    model: Any = in_decoder(nn.Linear(256, 64, bias=False).to(torch.bfloat16))
    quantization.quantize_(model, getattr(quantization, kind)())
    state, metadata = support.flatten_tensor_state_dict(model.state_dict())
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        tmp_path / "model.safetensors",
        metadata,
    )
    (layer,) = open_source(tmp_path / "model.safetensors").layers
    expected = model.get_submodule(NAME).weight.dequantize().float()
    assert layer.name == NAME
    torch.testing.assert_close(layer.read()[0], expected, **CLOSE_HALF)


def test_torchao_nf4() -> None:
    nf4 = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    weight = nf4.to_nf4(matrix(64, 256).to(torch.bfloat16), 64, 64)
    layer = nn.Linear(256, 64, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    torch.testing.assert_close(
        live_layer(layer).read()[0], weight.get_original_weight().float(), **CLOSE
    )


# compressed-tensors


def compressed(scheme_args: Any, compressor: Any, *, asymmetric: bool = False) -> tuple[Any, Any]:
    """Quantise and compress with the library; returns state and the
    weight that it decompresses to."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    lifecycle = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    args = quantization.QuantizationArgs(**scheme_args, symmetric=not asymmetric)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    weight = matrix()
    groups = {
        "channel": 1,
        "group": 256 // (scheme_args.get("group_size") or 256),
        "tensor_group": 16,
    }
    count = groups[scheme_args.get("strategy", "channel")]
    spans = weight.reshape(64, count, -1)
    low, high = spans.amin(-1), spans.amax(-1)
    bits = scheme_args["num_bits"]
    scale = (
        (high - low) / (2**bits - 1) if asymmetric else spans.abs().amax(-1) / (2 ** (bits - 1) - 1)
    )
    zero = (-(2 ** (bits - 1)) - (low / scale).round()).to(torch.int8) if asymmetric else None
    state = {"weight": weight, "weight_scale": scale}
    if zero is not None:
        state["weight_zero_point"] = zero
    quantised = lifecycle.quantize(weight, scale, zero, args, dtype=torch.int8)
    expected = lifecycle.dequantize(quantised, scale, zero, args)
    return getattr(compressors, compressor).compress(state, scheme), expected


@pytest.mark.parametrize("bits", [4, 8, 3, 2])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_compressed_tensors_packed(bits: int, asymmetric: bool) -> None:
    args = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 64}
    state, expected = compressed(args, "PackedQuantizationCompressor", asymmetric=asymmetric)
    torch.testing.assert_close(only_layer(named(state)).read()[0], expected.float(), **CLOSE)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_compressed_tensors_plain_integers(asymmetric: bool) -> None:
    args = {"num_bits": 8, "type": "int", "strategy": "channel"}
    state, expected = compressed(args, "IntQuantizationCompressor", asymmetric=asymmetric)
    torch.testing.assert_close(only_layer(named(state)).read()[0], expected.float(), **CLOSE)


def test_compressed_tensors_nvfp4() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    codes = torch.randint(0, 16, (64, 256), generator=torch.Generator().manual_seed(0))
    table = torch.tensor(
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
    )
    values = table[codes]
    scale, whole = (torch.rand(64, 16) + 0.5).to(torch.float8_e4m3fn), torch.tensor([7.0])
    state = {
        "weight_packed": helpers.pack_fp4_to_uint8(values),
        "weight_scale": scale,
        "weight_global_scale": whole,
        "input_global_scale": torch.ones(1),
    }
    expected = values * (scale.float() / whole).repeat_interleave(16, 1)
    torch.testing.assert_close(only_layer(named(state)).read()[0], expected, **CLOSE)


# MLX


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_mlx(bits: int, group: int, tmp_path: Path) -> None:
    mlx = pytest.importorskip("mlx.core")
    words, scales, biases = mlx.quantize(mlx.array(matrix().numpy()), group_size=group, bits=bits)
    expected = torch.tensor(
        mlx.dequantize(words, scales, biases, group_size=group, bits=bits).tolist()
    )
    state = {f"{NAME}.weight": words, f"{NAME}.scales": scales, f"{NAME}.biases": biases}
    mlx.save_safetensors(str(tmp_path / "model.safetensors"), state)
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization": {"group_size": group, "bits": bits}})
    )
    (layer,) = open_source(tmp_path).layers
    assert layer.name == NAME
    torch.testing.assert_close(layer.read()[0], expected, **CLOSE)


def test_mlx_mxfp4(tmp_path: Path) -> None:
    mlx = pytest.importorskip("mlx.core")
    words, scales = mlx.quantize(mlx.array(matrix().numpy()), group_size=32, bits=4, mode="mxfp4")
    expected = torch.tensor(
        mlx.dequantize(words, scales, group_size=32, bits=4, mode="mxfp4").tolist()
    )
    mlx.save_safetensors(
        str(tmp_path / "model.safetensors"), {f"{NAME}.weight": words, f"{NAME}.scales": scales}
    )
    (layer,) = open_source(tmp_path).layers
    torch.testing.assert_close(layer.read()[0], expected, **CLOSE_HALF)


# transformers' own


def test_mxfp4_of_transformers() -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 64, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(120, 130, (3, 64, 2), dtype=torch.uint8, generator=generator)
    expected = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    down = torch.randint(0, 256, (3, 64, 1, 16), dtype=torch.uint8, generator=generator)
    state = {
        "mlp.experts.gate_up_proj_blocks": blocks,
        "mlp.experts.gate_up_proj_scales": scales,
        "mlp.experts.gate_up_proj_bias": torch.zeros(3, 64),
        "mlp.experts.down_proj_blocks": down,
        "mlp.experts.down_proj_scales": torch.full((3, 64, 1), 127, dtype=torch.uint8),
    }
    found = {layer.name: layer for layer in open_source(state).layers}
    assert len(found) == 9
    assert torch.equal(found["mlp.experts.gate_up_proj[1].up"].read()[0], expected[1, :, 1::2].T)


def test_fp8_of_transformers() -> None:
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    layer = fp8.FP8Linear(256, 192, block_size=(128, 128))
    layer.weight.data = torch.randn(192, 256).to(torch.float8_e4m3fn)
    layer.weight_scale_inv.data = torch.rand(2, 2)
    model: Any = in_decoder(layer)
    model.config = {"quantization_config": {"weight_block_size": [128, 128]}}
    (found,) = open_source(model).layers
    scale = layer.weight_scale_inv.repeat_interleave(128, 0)[:192].repeat_interleave(128, 1)
    assert torch.equal(found.read()[0], layer.weight.float() * scale)


def test_bitnet_of_transformers() -> None:
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    weight = torch.randint(-1, 2, (64, 32), generator=torch.Generator().manual_seed(0)).float()
    layer = bitnet.BitLinear(32, 64, bias=False, dtype=torch.float32)
    layer.weight = bitnet.pack_weights(weight.clone())
    layer.weight_scale = torch.tensor([4.0])
    model: Any = in_decoder(layer)
    model.config = {"quantization_config": {"quant_method": "bitnet", "linear_class": "bitlinear"}}
    (found,) = open_source(model).layers
    assert found.name == NAME
    assert torch.equal(found.read()[0], weight / 4)


# GPTQ and AWQ


def grouped_scales(weight: torch.Tensor, groups: Any, bits: int) -> tuple[Any, Any]:
    """Scales and zero points, (out, groups), of an asymmetric quantiser."""
    spans = weight.reshape(weight.shape[0], groups, -1)
    low, high = spans.amin(-1).clamp(max=0), spans.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, (-low / scales).round().clamp(1, 2**bits - 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptqmodel(bits: int, ordered: bool) -> None:
    qlinear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    layer = qlinear.TorchLinear(
        bits=bits,
        group_size=64,
        sym=False,
        desc_act=ordered,
        in_features=256,
        out_features=64,
        register_buffers=True,
    )
    linear = nn.Linear(256, 64, bias=False)
    linear.weight.data = matrix()
    scales, zeros = grouped_scales(matrix(), 4, bits)
    order = torch.arange(256) // 64
    if ordered:
        order = order[torch.randperm(256, generator=torch.Generator().manual_seed(1))]
    layer.pack(linear, scales, zeros, order.to(torch.int32))
    layer.eval()
    expected = layer.dequantize_weight().T.float()
    torch.testing.assert_close(live_layer(layer).read()[0], expected, **CLOSE_HALF)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    config = {"quantization_config": {"bits": bits, "checkpoint_format": "gptq_v2"}}
    torch.testing.assert_close(only_layer(named(state), config).read()[0], expected, **CLOSE_HALF)
    if bits != 3:  # zero points of the first version are stored less one
        state["qzeros"] = state["qzeros"] - int.from_bytes(
            bytes([sum(1 << i for i in range(0, 8, bits))] * 4), "little", signed=True
        )
        config = {"quantization_config": {"bits": bits, "checkpoint_format": "gptq"}}
        torch.testing.assert_close(
            only_layer(named(state), config).read()[0], expected, **CLOSE_HALF
        )


def test_awq_of_gptqmodel() -> None:
    qlinear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch_awq")
    packing = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils")
    layer = qlinear.AwqTorchLinear(
        bits=4,
        group_size=64,
        sym=False,
        desc_act=False,
        in_features=256,
        out_features=64,
        register_buffers=True,
    )
    linear = nn.Linear(256, 64, bias=False)
    linear.weight.data = matrix()
    layer.pack(linear, *grouped_scales(matrix(), 4, 4))
    expected = packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, 64).T.float()
    assert (expected - matrix()).abs().mean() < 0.02
    torch.testing.assert_close(live_layer(layer).read()[0], expected, **CLOSE_HALF)
    torch.testing.assert_close(
        only_layer(named(layer.state_dict())).read()[0], expected, **CLOSE_HALF
    )


def test_aqlm() -> None:
    utils = pytest.importorskip("aqlm.utils")
    codes = torch.randint(-128, 128, (16, 8, 2), dtype=torch.int8)
    books, scales = torch.randn(2, 256, 1, 8), torch.rand(16, 1, 1, 1)
    expected = utils._dequantize_weight(codes.to(torch.int64) % 256, books, scales)
    state = {"codes": codes, "codebooks": books, "scales": scales}
    torch.testing.assert_close(only_layer(named(state)).read()[0], expected, **CLOSE)
