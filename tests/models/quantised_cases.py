"""Every form of storage of a quantised weight: tensors as its library writes
them, and what they stand for.

The expected weights are written from each format's documentation, number by number and apart
from the package's code; ``test_quantised_libraries`` holds the same forms against the libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ROWS, COLS = 64, 128
Q = "layers.0.q_proj"
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@dataclass(frozen=True)
class Case:
    """Tensors under their names below ``Q``, and the weight or the
    problem that its one row must have."""

    tensors: Mapping[str, Tensor]
    weight: Tensor | None = None
    problem: tuple[str, ...] = ()
    """Pieces of the text of a failed row."""
    shape: tuple[int, int] | None = None
    """Of a failed row, where the true shape can be known."""
    note: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    is_sub_byte: bool = False
    """Whether a file's reader gives the type no values."""
    names: tuple[str, ...] = (Q,)
    """Of the rows, where there is more than one."""


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def ints(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape or (ROWS, COLS), generator=_random()).to(dtype)


def floats(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_random()) + 0.5


def fp8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    return torch.randn(shape or (ROWS, COLS), generator=_random()).to(dtype)


def pack(values: Tensor, bits: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Put the integers of each row into one long number, lowest bits
    first, and cut that into words."""
    rows = []
    for row in values.reshape(-1, values.shape[-1]).tolist():
        number = sum(value << (bits * i) for i, value in enumerate(row))
        size = -(-len(row) * bits // 32) * 4
        rows.append(list(number.to_bytes(size, "little")))
    packed = torch.tensor(rows, dtype=torch.uint8).view(dtype)
    return packed.reshape(*values.shape[:-1], -1)


def by_group(values: Tensor, groups: Tensor, function: Any) -> Tensor:
    """Compute element by element with the parameters of each element's group of columns."""
    size = values.shape[-1] // groups.shape[-1]
    result = torch.empty(values.shape)
    for column in range(values.shape[-1]):
        result[..., column] = function(
            values[..., column].float(), groups[..., column // size].float()
        )
    return result


def times(values: Tensor, groups: Tensor) -> Tensor:
    return by_group(values, groups, lambda value, scale: value * scale)


def blocks(values: Tensor, scale: Tensor, size: int = 128) -> Tensor:
    result = torch.empty(values.shape)
    for row in range(values.shape[-2]):
        for column in range(values.shape[-1]):
            result[..., row, column] = (
                values[..., row, column].float() * scale[..., row // size, column // size]
            )
    return result


def block_config(size: int = 128) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "fp8", "weight_block_size": [size, size]}}


# 8-bit numbers with a scale


def scaled_cases() -> dict[str, Case]:
    weight, scalar, row = fp8(), torch.tensor(0.25), floats(ROWS)
    names = ["weight_scale", "weight_scale_inv", "scale", "scale_weight", "weight_quantizer.scale"]
    names += ["weight_quantizer._scale", "weights_scaling_factor", "scales", "weight.scale"]
    cases = {
        f"fp8 {name}": Case({"weight": weight, name: scalar}, weight.float() / 4) for name in names
    }
    by_row = weight.float() * row[:, None]
    exponents = ints(120, 134, ROWS, dtype=torch.uint8)
    powers = torch.tensor([2.0 ** (int(x) - 127) for x in exponents])[:, None]
    integers, zero = ints(-128, 128, dtype=torch.int8), ints(-5, 6, ROWS, 1, dtype=torch.int8)
    unsigned = ints(0, 256, dtype=torch.uint8)
    stacked, per_expert = fp8(3, ROWS, COLS), floats(3)
    experts = tuple(f"layers.0.experts.up_proj[{i}]" for i in range(3))
    return cases | {
        "fp8 scale of one": Case(
            {"weight": weight, "weight_scale": torch.tensor([0.25])}, weight.float() / 4
        ),
        "fp8 scale per row": Case({"weight": weight, "weight_scale": row}, by_row),
        "fp8 scale per row, a column": Case(
            {"weight": weight, "weight_scale": row[:, None]}, by_row
        ),
        "fp8 scale per column": Case(
            {"weight": weight, "weight_scale": floats(1, COLS)}, weight.float() * floats(1, COLS)
        ),
        "fp8 e5m2": Case(
            {"weight": fp8(dtype=torch.float8_e5m2), "weight_scale": row},
            fp8(dtype=torch.float8_e5m2).float() * row[:, None],
        ),
        "fp8 fnuz": Case(
            {"weight": fp8(dtype=torch.float8_e4m3fnuz), "weight_scale": row},
            fp8(dtype=torch.float8_e4m3fnuz).float() * row[:, None],
        ),
        "fp8 exponent": Case(
            {"weight": weight, "weight_scale": exponents}, weight.float() * powers
        ),
        "fp8 exponent of torch": Case(
            {"weight": weight, "weight_scale": exponents.view(torch.float8_e8m0fnu)},
            weight.float() * powers,
        ),
        "fp8 with scales of activations": Case(
            {
                "weight": weight,
                "weight_scale": scalar,
                "input_scale": scalar,
                "output_scale": scalar,
            },
            weight.float() / 4,
        ),
        "fp8 pre_quant_scale": Case(
            {"weight": weight, "weight_scale": scalar, "pre_quant_scale": floats(COLS)},
            weight.float() / 4,
            note="pre_quant_scale",
        ),
        "fp8 unscaled": Case(
            {"weight": weight}, weight.float(), note="8-bit floats without a scale"
        ),
        "fp8 unknown scale": Case(
            {"weight": weight, "weight_descale_table": floats(4)},
            problem=("q_proj.weight ", "weight_descale_table"),
        ),
        "fp8 second scale": Case(
            {"weight": weight, "weight_scale": row, "weight_scale_2": scalar},
            problem=("q_proj.weight ", "weight_scale_2"),
        ),
        "fp8 scale beside its module": Case(
            {"weight": weight, "../q_proj_scale": row},
            problem=("q_proj.weight ", "layers.0.q_proj_scale"),
        ),
        "fp8 scale behind a slash": Case(
            {"weight": weight, "weight/scale": row}, problem=("q_proj.weight ", "weight/scale")
        ),
        "fp8 scale by name parts": Case(
            {"weight": weight, "quantizer.weight_scales.0": row},
            problem=("q_proj.weight ", "weight_scales"),
        ),
        "scale of TensorRT-LLM": Case(
            {"weight": integers, "per_channel_scale": row},
            problem=("q_proj.weight ", "per_channel_scale"),
        ),
        "fp8 two scales": Case(
            {"weight": weight, "weight_scale": row, "scale": scalar},
            problem=("q_proj.weight ", "scale"),
        ),
        "fp8 scale that fits nowhere": Case(
            {"weight": weight, "weight_scale": floats(7)},
            problem=("q_proj.weight ", "q_proj.weight_scale"),
        ),
        "int8 per row": Case(
            {"weight": integers, "weight_scale": row[:, None]}, integers.float() * row[:, None]
        ),
        "int8 per tensor": Case({"weight": integers, "weight_scale": scalar}, integers.float() / 4),
        "int8 by groups": Case(
            {"weight": integers, "weight_scale": floats(ROWS, 4)}, times(integers, floats(ROWS, 4))
        ),
        "int8 zero point": Case(
            {"weight": integers, "weight_scale": row[:, None], "weight_zero_point": zero},
            (integers.float() - zero.float()) * row[:, None],
        ),
        "uint8 zero point": Case(
            {
                "weight": unsigned,
                "weight_scale": row[:, None],
                "weight_zero_point": ints(100, 156, ROWS, 1, dtype=torch.uint8),
            },
            (unsigned.float() - ints(100, 156, ROWS, 1).float()) * row[:, None],
        ),
        "int8 of bitsandbytes": Case(
            {"weight": integers, "SCB": row, "weight_format": torch.tensor(0, dtype=torch.uint8)},
            integers.float() * row[:, None] / 127,
        ),
        "int8 of bitsandbytes in tiles": Case(
            {"weight": integers, "SCB": row, "weight_format": torch.tensor(2, dtype=torch.uint8)},
            problem=("bitsandbytes", "weight_format"),
        ),
        "int8 of EETQ": Case(
            {"weight": integers, "weight_scales": floats(COLS)}, (integers.float() * floats(COLS)).T
        ),
        "int8 of quanto": Case(
            {"weight._data": integers, "weight._scale": row[:, None]},
            integers.float() * row[:, None],
        ),
        "fp8 of quanto": Case({"weight._data": weight, "weight._scale": row[:, None]}, by_row),
        "int8 of torchao": Case(
            {"_weight_qdata": integers, "_weight_scale": row[:, None], "_weight_zero_point": zero},
            (integers.float() - zero.float()) * row[:, None],
        ),
        "fp8 of torchao": Case({"_weight_qdata": weight, "_weight_scale": row[:, None]}, by_row),
        "fake quantiser of ModelOpt": Case(
            {
                "weight": floats(ROWS, COLS),
                "weight_quantizer._amax": floats(ROWS, 1),
                "input_quantizer._amax": scalar,
            },
            floats(ROWS, COLS),
            note="before rounding",
        ),
        "fake quantiser of torch": Case(
            {
                "weight": floats(ROWS, COLS),
                "weight_fake_quant.scale": row,
                "weight_fake_quant.zero_point": ints(0, 9, ROWS, dtype=torch.int32),
                "weight_fake_quant.activation_post_process.min_val": row,
            },
            floats(ROWS, COLS),
            note="before rounding",
        ),
        "int8 alone": Case({"weight": integers}, problem=("int8", "64x128", "dequantise it first")),
        "int8 unknown scale": Case(
            {"weight": integers, "dequant_scale": scalar},
            problem=("q_proj.weight ", "dequant_scale"),
        ),
        "uint8 with a scale and no zero point": Case(
            {"weight": unsigned, "weight_scale": row},
            problem=("q_proj.weight ", "q_proj.weight_scale"),
        ),
        "ChatGLM int4": Case(
            {"weight": integers, "weight_scale": row},
            problem=("ChatGLM",),
            config={"quantization_bit": 4},
        ),
        "fp8 experts": Case(
            {"../experts.up_proj": stacked, "../experts.up_proj_scale": per_expert},
            stacked.float() * per_expert[:, None, None],
            names=experts,
        ),
        "fp8 experts per row": Case(
            {"../experts.up_proj": stacked, "../experts.up_proj_scale": floats(3, ROWS)},
            stacked.float() * floats(3, ROWS)[:, :, None],
            names=experts,
        ),
        "fp8 experts per column": Case(
            {"../experts.up_proj": stacked, "../experts.up_proj_scale": floats(3, 1, COLS)},
            stacked.float() * floats(3, 1, COLS),
            names=experts,
        ),
        "fp8 experts by blocks": Case(
            {"../experts.up_proj": stacked, "../experts.up_proj_scale_inv": floats(3, 2, 4)},
            blocks(stacked, floats(3, 2, 4), 32),
            names=experts,
            config=block_config(32),
        ),
        "fp8 square experts": Case(
            {"../experts.up_proj": fp8(3, 32, 32), "../experts.up_proj_scale": floats(3, 32)},
            problem=("experts.up_proj ", "experts.up_proj_scale"),
            names=("layers.0.experts.up_proj",),
        ),
    }


def block_cases() -> dict[str, Case]:
    uneven, scale = fp8(192, 300), floats(2, 3)
    even, even_scale = fp8(256, 512), floats(2, 4)
    state = {"weight": uneven, "weight_scale_inv": scale}
    both = ("layers.0.q_proj.weight ", "layers.0.q_proj.weight_scale_inv")
    compressed = {
        "config_groups": {
            "group_0": {"weights": {"strategy": "block", "block_structure": [128, 128]}}
        }
    }
    exponents = ints(120, 134, 64, 4, dtype=torch.uint8)
    powers = torch.tensor([[2.0 ** (int(x) - 127) for x in line] for line in exponents])
    return {
        "blocks as configured": Case(state, blocks(uneven, scale), config=block_config()),
        "blocks as compressed-tensors configures": Case(
            state, blocks(uneven, scale), config={"quantization_config": compressed}
        ),
        "blocks as text configures": Case(
            state,
            blocks(uneven, scale),
            config={"text_config": {"quantization_config": {"weight_block_size": [128, 128]}}},
        ),
        "blocks that two sizes fit": Case(state, problem=both),
        "blocks that do not fit the configuration": Case(
            state, problem=(*both, "64x64"), config=block_config(64)
        ),
        "blocks that one size fits": Case(
            {"weight": even, "weight_scale_inv": even_scale}, blocks(even, even_scale)
        ),
        "blocks of ModelOpt": Case(
            {"weight": even, "weight_scale": even_scale.reshape(2, 1, 4, 1)},
            blocks(even, even_scale),
        ),
        "blocks transposed": Case(
            {"weight": even, "weight_scale_inv": even_scale.T.contiguous()},
            blocks(even, even_scale),
            config=block_config(),
        ),
        "blocks transposed or not": Case(
            {"weight": even, "weight_scale_inv": floats(4, 2)}, problem=both
        ),
        "MXFP8": Case({"weight": fp8(), "weight_scale": exponents}, times(fp8(), powers)),
    }


# 4-bit floats


def small_float_cases() -> dict[str, Case]:
    codes = ints(0, 16)
    values = torch.tensor([[E2M1[code] for code in row] for row in codes])
    packed = pack(codes, 4, torch.uint8)
    exponents = ints(120, 134, ROWS, 4, dtype=torch.uint8)
    mx = times(values, torch.tensor([[2.0 ** (int(x) - 127) for x in line] for line in exponents]))
    small, whole = floats(ROWS, 8).to(torch.float8_e4m3fn), torch.tensor(3.0)
    torch_exponents = exponents.view(torch.float8_e8m0fnu)
    shaped = (
        packed.reshape(1, ROWS, 4, 16).repeat(2, 1, 1, 1),
        exponents.reshape(1, ROWS, 4).repeat(2, 1, 1),
    )
    down = "layers.0.experts.down_proj"
    return {
        "MXFP4 of compressed-tensors": Case(
            {"weight_packed": packed, "weight_scale": exponents}, mx
        ),
        "MXFP4 of Quark": Case({"weight": packed, "weight_scale": exponents}, mx),
        "MXFP4 of DeepSeek": Case(
            {"weight": packed.view(torch.int8), "scale": torch_exponents}, mx
        ),
        "MXFP4 of MLX": Case({"weight": packed.view(torch.uint32), "scales": exponents}, mx),
        "MXFP4 experts": Case(
            {"../experts.down_proj_blocks": shaped[0], "../experts.down_proj_scales": shaped[1]},
            mx.T[None].repeat(2, 1, 1),
            names=(f"{down}[0]", f"{down}[1]"),
        ),
        "MXFP4 of OpenAI": Case(
            {
                "../experts.mlp2_weight.blocks": shaped[0],
                "../experts.mlp2_weight.scales": shaped[1],
            },
            mx[None].repeat(2, 1, 1),
            names=("layers.0.experts.mlp2_weight[0]", "layers.0.experts.mlp2_weight[1]"),
        ),
        "NVFP4 of compressed-tensors": Case(
            {
                "weight_packed": packed,
                "weight_scale": small,
                "weight_global_scale": whole,
                "input_global_scale": whole,
            },
            times(values, small.float() / 3),
        ),
        "NVFP4 of ModelOpt": Case(
            {
                "weight": packed,
                "weight_scale": small,
                "weight_scale_2": whole,
                "input_scale": whole,
            },
            times(values, small.float() * 3),
        ),
        "MXFP4 in torch's type": Case(
            {"weight": packed.view(torch.float4_e2m1fn_x2), "weight_scale": torch_exponents},
            mx,
            is_sub_byte=True,
        ),
        "4-bit floats alone": Case(
            {"weight": packed.view(torch.float4_e2m1fn_x2)}, problem=("4",), is_sub_byte=True
        ),
        "4-bit floats and a scale of another kind": Case(
            {"weight": packed.view(torch.float4_e2m1fn_x2), "weight_scale": small},
            problem=("4",),
            is_sub_byte=True,
        ),
        "NVFP4 of ComfyUI": Case(
            {
                "weight": packed,
                "weight_scale": small,
                "weight_scale_2": whole,
                "comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8),
            },
            problem=("NVFP4",),
        ),
        "NVFP4 in tiles": Case(
            {
                "weight": packed,
                "weight_scale": floats(128, 4).to(torch.float8_e4m3fn),
                "weight_scale_2": whole,
            },
            problem=("NVFP4",),
        ),
    } | bitsandbytes_cases(codes)


def bitsandbytes_cases(codes: Tensor) -> dict[str, Case]:
    table, magnitudes = torch.linspace(-1, 1, 16), floats(ROWS * COLS // 64)
    pairs = codes.reshape(-1, 2)
    packed = (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)[:, None]

    def said(**more: Any) -> Tensor:
        text = json.dumps(
            {
                "quant_type": "nf4",
                "blocksize": 64,
                "dtype": "bfloat16",
                "shape": [ROWS, COLS],
                **more,
            }
        )
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    flat = torch.tensor(
        [float(table[code]) * float(magnitudes[i // 64]) for i, code in enumerate(codes.flatten())]
    )
    nested_codes, nested_table, nested = (
        ints(0, 256, 128, dtype=torch.uint8),
        torch.linspace(-1, 1, 256),
        floats(2),
    )
    found = [
        float(nested_table[int(c)]) * float(nested[i // 64]) + 2.0
        for i, c in enumerate(nested_codes)
    ]
    twice = torch.tensor(
        [float(table[code]) * found[i // 64] for i, code in enumerate(codes.flatten())]
    )
    state = {"weight": packed, "weight.absmax": magnitudes, "weight.quant_map": table}
    return {
        "nf4": Case(
            {**state, "weight.quant_state.bitsandbytes__nf4": said()}, flat.reshape(ROWS, COLS)
        ),
        "fp4": Case(
            {**state, "weight.quant_state.bitsandbytes__fp4": said()}, flat.reshape(ROWS, COLS)
        ),
        # bnb_4bit_quant_storage: the same bytes as wider numbers, which FSDP can shard.
        **{
            f"nf4 stored as {str(kind)[6:]}": Case(
                {
                    **state,
                    "weight": packed.view(-1).view(kind)[:, None],
                    "weight.quant_state.bitsandbytes__nf4": said(),
                },
                flat.reshape(ROWS, COLS),
            )
            for kind in (torch.bfloat16, torch.float16, torch.float32, torch.int8)
        },
        "nf4 quantised twice": Case(
            {
                **state,
                "weight.absmax": nested_codes,
                "weight.nested_absmax": nested,
                "weight.nested_quant_map": nested_table,
                "weight.quant_state.bitsandbytes__nf4": said(
                    nested_blocksize=64, nested_offset=2.0
                ),
            },
            twice.reshape(ROWS, COLS),
        ),
        "nf4 without its state": Case(state, problem=("bitsandbytes", "quant_state")),
        **{
            f"nf4 with {name}": Case(
                {**state, "weight.quant_state.bitsandbytes__nf4": said(**more)},
                problem=("bitsandbytes", "quant_state", text),
            )
            for name, more, text in (
                ("blocks of -1", {"blocksize": -1}, "expected int >= 1 at blocksize"),
                ("blocks of 3.7", {"blocksize": 3.7}, "expected int, got float at blocksize"),
                ("blocks of 10^400", {"blocksize": 10**400}, "at blocksize"),
                (
                    "other blocks",
                    {"blocksize": 128},
                    "128 magnitudes for 8192 numbers in blocks of",
                ),
                (
                    "half of the rows",
                    {"shape": [ROWS // 2, COLS], "blocksize": 32},
                    f"a shape of {ROWS // 2}x{COLS} for {ROWS * COLS // 2} bytes",
                ),
                ("a shape of texts", {"shape": ["128", "64"]}, "expected int, got str at shape[0]"),
                ("a negative shape", {"shape": [-128, -64]}, "expected int >= 0 at shape[0]"),
                ("an offset that is a text", {"nested_offset": "2"}, "at nested_offset"),
            )
        },
        # A table or a text with one dimension more would broadcast, or be read as lists.
        "nf4 with its table and state in columns": Case(
            {
                **state,
                "weight.quant_map": table[:, None],
                "weight.quant_state.bitsandbytes__nf4": said()[:, None],
            },
            flat.reshape(ROWS, COLS),
        ),
        **{
            f"nf4 with a table of {count}": Case(
                {
                    **state,
                    "weight.quant_map": floats(count),
                    "weight.quant_state.bitsandbytes__nf4": said(),
                },
                problem=("bitsandbytes", f"a table of {count} numbers for 16 codes"),
            )
            for count in (1, 4, 15, 17)
        },
        "nf4 quantised twice without a table": Case(
            {
                **state,
                "weight.absmax": nested_codes,
                "weight.quant_state.bitsandbytes__nf4": said(nested_blocksize=64),
            },
            problem=("bitsandbytes", "quantised, and no table for them"),
        ),
        "nf4 without anything": Case(
            {"weight": packed}, problem=("uint8", "4096x1", "dequantise it first")
        ),
    }


# packed integers


def gptq_case(
    bits: int, version: int, *, ordered: bool = False, zeros: bool = True, config: bool = True
) -> Case:
    values, points, scales = ints(0, 2**bits), ints(1, 2**bits, ROWS, 4), floats(ROWS, 4)
    order = torch.arange(COLS) // 32
    if ordered:
        order = order[torch.randperm(COLS, generator=_random())]
    points = points if zeros else torch.full_like(points, 2 ** (bits - 1))
    state = {"qweight": pack(values, bits).T.contiguous(), "scales": scales.T.contiguous()}
    if zeros:
        state["qzeros"] = pack((points - (1 if version == 1 else 0)).T, bits)
    if ordered or not zeros:
        state["g_idx"] = order.to(torch.int32)
    expected = torch.empty(ROWS, COLS)
    for column, group in enumerate(order.tolist()):
        expected[:, column] = (values[:, column] - points[:, group]) * scales[:, group]
    said = {
        "quant_method": "gptq",
        "bits": bits,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    return Case(state, expected, config={"quantization_config": said} if config else {})


def awq_case() -> Case:
    values, points, scales = ints(0, 16), ints(0, 16, ROWS, 4), floats(ROWS, 4)

    def words(matrix: Tensor) -> Tensor:
        """Of each eight columns, the one that the order names goes to the n-th four bits."""
        interleaved = matrix.reshape(matrix.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return pack(interleaved.flatten(1), 4)

    state = {"qweight": words(values.T), "qzeros": words(points.T), "scales": scales.T.contiguous()}
    expected = times(values - points.repeat_interleave(32, 1), scales)
    return Case(
        state,
        expected,
        config={"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}},
    )


def compressed_case(
    bits: int, *, asymmetric: bool = False, ordered: bool = False, config: bool = False
) -> Case:
    values, scale = ints(0, 2**bits), floats(ROWS, 4)
    points = ints(0, 2**bits, ROWS, 4) if asymmetric else torch.full((ROWS, 4), 2 ** (bits - 1))
    state = {
        "weight_packed": pack(values, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([ROWS, COLS]),
    }
    if asymmetric:
        state["weight_zero_point"] = pack(points.T, bits).T.contiguous()
    order = torch.arange(COLS) // 32
    if ordered:
        order = order[torch.randperm(COLS, generator=_random())]
        state["weight_g_idx"] = order.to(torch.int32)
    expected = torch.empty(ROWS, COLS)
    for column, group in enumerate(order.tolist()):
        expected[:, column] = (values[:, column] - points[:, group]) * scale[:, group]
    said = {"config_groups": {"group_0": {"weights": {"num_bits": bits}}}}
    return Case(state, expected, config={"quantization_config": said} if config else {})


def mlx_case(bits: int, group: int, config: Mapping[str, Any], *, fails: bool = False) -> Case:
    values, scales, biases = (
        ints(0, 2**bits),
        floats(ROWS, COLS // group),
        floats(ROWS, COLS // group) - 2,
    )
    state = {"weight": pack(values, bits, torch.uint32), "scales": scales, "biases": biases}
    if fails:
        return Case(state, problem=("MLX", "bits and group size"), config=config)
    return Case(state, times(values, scales) + biases.repeat_interleave(group, 1), config=config)


def hqq_case() -> Case:
    values, scale, zero = ints(0, 16, 128, 64), floats(128, 1), floats(128, 1) * 8
    state = {
        "W_q": (values[:64] * 16 + values[64:]).to(torch.uint8),
        "scale": scale,
        "zero": zero,
        "shape": torch.tensor([ROWS, COLS]),
        "nbits": torch.tensor(4, dtype=torch.int32),
        "group_size": torch.tensor(64, dtype=torch.int32),
        "axis": torch.tensor(1, dtype=torch.int32),
        "packing": torch.tensor(list(b"4bit_u8"), dtype=torch.uint8),
    }
    return Case(state, ((values - zero) * scale).reshape(ROWS, COLS))


def bitnet_case(linear_class: str) -> Case:
    values = ints(-1, 2)
    parts = (values + 1).reshape(4, ROWS // 4, COLS)
    packed = sum(parts[i] * 4**i for i in range(4))
    said = {"quant_method": "bitnet", "linear_class": linear_class}
    scale = 4.0 if linear_class == "autobitlinear" else 0.25
    state = {"weight": torch.as_tensor(packed).to(torch.uint8), "weight_scale": torch.tensor([4.0])}
    return Case(state, values * scale, config={"quantization_config": said})


def packed_cases() -> dict[str, Case]:
    signed = ints(-8, 8)
    two_rows = ((signed[0::2] & 15) + 16 * (signed[1::2] & 15)).to(torch.uint8)
    codes, books, scales = (
        ints(-128, 128, 64, 16, 2, dtype=torch.int8),
        torch.randn(2, 256, 1, 8),
        floats(64, 1, 1, 1),
    )
    aqlm = torch.zeros(64, 128)
    for row in range(64):
        for group in range(16):
            vector = sum(books[c, int(codes[row, group, c]) % 256, 0] for c in range(2))
            aqlm[row, 8 * group : 8 * group + 8] = vector * scales[row, 0, 0, 0]
    override = {"quantization": {"bits": 4, "group_size": 64, Q: {"bits": 8, "group_size": 32}}}
    return {
        **{f"GPTQ {bits} bits": gptq_case(bits, 1) for bits in (2, 3, 4, 8)},
        "GPTQ version 2": gptq_case(4, 2),
        "GPTQ in its own order": gptq_case(4, 1, ordered=True),
        "GPTQ without configuration": gptq_case(4, 1, config=False),
        "GPTQ without zero points": gptq_case(4, 1, zeros=False),
        "AWQ": awq_case(),
        "GPTQ of another shape": Case(
            {
                "qweight": ints(0, 99, 16, 64, dtype=torch.int32),
                "scales": floats(3, 7),
                "qzeros": ints(0, 9, 3, 5, dtype=torch.int32),
            },
            problem=("GPTQ or AWQ", "16x64"),
        ),
        "compressed-tensors": compressed_case(4),
        "compressed-tensors 8 bits": compressed_case(8),
        "compressed-tensors 3 bits": compressed_case(3),
        "compressed-tensors zero points": compressed_case(4, asymmetric=True),
        "compressed-tensors in its own order": compressed_case(4, ordered=True),
        "compressed-tensors configured": compressed_case(4, config=True),
        "compressed-tensors without a scale": Case(
            {"weight_packed": pack(ints(0, 16), 4), "weight_shape": torch.tensor([ROWS, COLS])},
            problem=("compressed-tensors", "dequantise it first"),
        ),
        "MLX": mlx_case(4, 64, {"quantization": {"bits": 4, "group_size": 64}}),
        "MLX 3 bits": mlx_case(3, 32, {"quantization_config": {"bits": 3, "group_size": 32}}),
        "MLX of one module": mlx_case(8, 32, override),
        "MLX without configuration": mlx_case(4, 64, {}, fails=True),
        "MLX without configuration, one reading": mlx_case(5, 64, {}),
        "HQQ": hqq_case(),
        "BitNet": bitnet_case("bitlinear"),
        "BitNet scaled again": bitnet_case("autobitlinear"),
        "ModelOpt int4": Case(
            {"weight": two_rows, "weight_scale": floats(ROWS, 4)}, times(signed, floats(ROWS, 4))
        ),
        "AQLM": Case({"codes": codes, "codebooks": books, "scales": scales}, aqlm),
    }


# forms that are named, not unpacked


def unreadable_cases() -> dict[str, Case]:
    words, codes = ints(0, 99, 8, 128, dtype=torch.int32), ints(0, 99, dtype=torch.uint8)
    again = "dequantise it first"
    return {
        "Marlin": Case(
            {"B": words, "s": floats(1, 64), "workspace": ints(0, 1, 16, dtype=torch.int32)},
            problem=("Marlin", again),
            shape=(64, 128),
        ),
        "Marlin 2:4": Case(
            {
                "weight_packed": words,
                "scale_packed": floats(4, 64),
                "meta": ints(0, 99, 64, 4, dtype=torch.int16),
            },
            problem=("2:4", again),
        ),
        "VPTQ": Case(
            {
                "indices": ints(0, 99, 64, 16, dtype=torch.int16),
                "centroids.weight": floats(1, 2048),
                "weight_scale": floats(128),
                "weight_bias": floats(128),
                "perm": ints(0, 128, 128, dtype=torch.int16),
            },
            problem=("VPTQ", again),
        ),
        "SpQR": Case(
            {
                "dense_weights": ints(0, 99, 64, 32),
                "row_offsets": ints(0, 9, 65, dtype=torch.int32),
                "col_vals": ints(0, 9, 70, dtype=torch.int32),
                "in_perm": ints(0, 9, 128, dtype=torch.int16),
            },
            problem=("SpQR", again),
        ),
        "EXL2": Case(
            {
                "q_weight": words[:, :64],
                "q_scale": ints(0, 9, 4, 8, dtype=torch.int32),
                "q_scale_max": floats(4),
                "q_groups": ints(0, 9, 8, dtype=torch.int16),
                "q_invperm": torch.arange(128, dtype=torch.int32),
            },
            problem=("EXL2", again),
            shape=(64, 128),
        ),
        "EXL3": Case(
            {
                "trellis": ints(0, 99, 8, 4, 48, dtype=torch.int16),
                "suh": floats(128),
                "svh": floats(64),
            },
            problem=("EXL3", again),
            shape=(64, 128),
        ),
        "QuIP#": Case(
            {
                "Qidxs": ints(0, 99, 64, 16),
                "SU": floats(128),
                "SV": floats(64),
                "Wscale": floats(1),
            },
            problem=("QuIP#", again),
        ),
        "HIGGS": Case(
            {
                "weight": ints(0, 99, 64, 32, dtype=torch.int32),
                "scales": floats(64, 2),
                "tables": floats(256),
                "tables2": floats(256, 256, 2),
            },
            problem=("HIGGS", again),
        ),
        "SqueezeLLM": Case(
            {"qweight": words, "lookup_table": floats(128, 16)}, problem=("SqueezeLLM", again)
        ),
        "FP-Quant": Case(
            {
                "qweight": codes,
                "scales": codes[:, :4],
                "forward_hadamard_matrix": floats(32, 32),
                "backward_hadamard_matrix": floats(32, 32),
            },
            problem=("FP-Quant", again),
        ),
        "quanto of 4 bits": Case(
            {
                "weight._data._data": codes,
                "weight._scale": floats(128, 1),
                "weight._shift": floats(128, 1),
            },
            problem=("optimum-quanto", again),
        ),
        "torchao of 4 bits": Case(
            {
                "_weight_qdata": words,
                "_weight_scale": floats(4, 128),
                "_weight_zero_point": floats(4, 128),
            },
            problem=("torchao", again),
        ),
        "SINQ": Case(
            {"W_q": codes, "meta": ints(0, 9, 40, dtype=torch.uint8)}, problem=("SINQ", again)
        ),
        # Each would give a weight that is swollen by broadcasting.
        **{
            f"HQQ with {name} of shape {list(shape)}": Case(
                {
                    **hqq_case().tensors,
                    name: ints(0, 256, *shape, dtype=torch.uint8)
                    if name == "W_q"
                    else floats(*shape),
                },
                problem=("HQQ", "do not go together", again),
            )
            for name, shape in (
                ("scale", (128, 1, 1)),
                ("zero", (128, 1, 1)),
                ("zero", (1, 64)),
                ("scale", (64, 1)),
                ("scale", ()),
                # Part by part, other weights would be read from more rows than were packed.
                ("W_q", (65, 64)),
                ("W_q", (63, 64)),
            )
        },
        "HQQ with its packing in a column": Case(
            {**hqq_case().tensors, "packing": hqq_case().tensors["packing"][:, None]},
            hqq_case().weight,
        ),
        **{
            f"compressed-tensors with zero points of shape {list(shape)}": Case(
                {
                    **compressed_case(4, asymmetric=True).tensors,
                    "weight_zero_point": ints(0, 9, *shape, dtype=torch.int32),
                },
                problem=("compressed-tensors", "zero points", "do not go together", again),
            )
            for shape in ((2, 16), (8, 4, 1), (ROWS // 16, 4), (1, 4), (4,))
        },
        "compressed-tensors with its order in a column": Case(
            {
                **compressed_case(4, ordered=True).tensors,
                "weight_g_idx": compressed_case(4, ordered=True).tensors["weight_g_idx"][:, None],
            },
            compressed_case(4, ordered=True).weight,
        ),
        "compressed-tensors with an order of other inputs": Case(
            {
                **compressed_case(4, ordered=True).tensors,
                "weight_g_idx": ints(0, 4, COLS // 2, dtype=torch.int32),
            },
            problem=("packed integers (compressed-tensors)", again),
        ),
        "HQQ viewed as floats": Case(
            {**hqq_case().tensors, "W_q": floats(64, 32).half()},
            problem=("HQQ", "viewed as floats", again),
        ),
        "HQQ with a packing that is no name": Case(
            {
                **hqq_case().tensors,
                "packing": torch.tensor(list(b"\x1b[2J\n" * 9), dtype=torch.uint8),
            },
            problem=("HQQ", r"'\x1b[2J\n\x1b[2J\n", again),
        ),
        "HQQ in nested dicts": Case(
            {"W_q": codes, "meta.scale": floats(256, 1), "meta.zero": floats(256, 1)},
            problem=("HQQ", again),
        ),
        "Quark of 4 bits": Case(
            {
                "weight": words,
                "weight_scale": floats(64, 4),
                "weight_zero_point": ints(0, 9, 8, 4, dtype=torch.int32),
            },
            problem=("q_proj.weight ", again),
        ),
        "unknown codes": Case(
            {"codes_of_mine": codes, "codebook": floats(256, 8)},
            problem=("codes_of_mine", "codebook", again),
            names=(f"{Q}.codes_of_mine",),
        ),
        "unknown integers": Case(
            {"stuff": words},
            problem=("unknown kind", "int32", "8x128", again),
            names=(f"{Q}.stuff",),
        ),
        "indices of a codebook": Case(
            {"indices": codes, "codebook": floats(256, 8)},
            problem=("codebook", again),
            names=(f"{Q}.indices",),
        ),
        "64-bit integers": Case(
            {"stuff": ints(0, 99)}, problem=("unknown kind", "int64"), names=(f"{Q}.stuff",)
        ),
    }


CASES: dict[str, Case] = (
    scaled_cases() | block_cases() | small_float_cases() | packed_cases() | unreadable_cases()
)
