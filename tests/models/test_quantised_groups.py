"""Packed integers whose groups do not divide the inputs, or which only the configuration tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spectail.errors import SourceError
from spectail.models.assembly.recipes import assemble
from spectail.models.lazy_tensor import LazyTensor, in_memory

from .quantised_cases import compressed_case, gptq_case, pack

ROWS = 16


def draw(*shape: int, low: int = 0, high: int = 16) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(41))


def scales(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(42)) + 0.5


def weight_of(state: dict[str, Tensor], quantisation: dict[str, Any]) -> LazyTensor:
    tensors = [in_memory(f"q_proj.{name}", tensor) for name, tensor in state.items()]
    return next(
        made
        for made in assemble(tensors, {"quantization_config": quantisation})
        if made.name == "q_proj.weight"
    )


def by_group(values: Tensor, points: Tensor, factors: Tensor, length: int) -> Tensor:
    """(value - zero point) * scale, column by column."""
    expected = torch.empty(values.shape)
    for column in range(values.shape[1]):
        group = column // length
        expected[:, column] = (values[:, column] - points[:, group]) * factors[:, group]
    return expected


def gptq(inputs: int, length: int, bits: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    groups = -(-inputs // length)
    values, factors = draw(ROWS, inputs, high=2**bits), scales(ROWS, groups)
    points = draw(ROWS, groups, low=1, high=2**bits)
    state = {
        "qweight": pack(values, bits).T.contiguous(),
        "qzeros": pack((points - 1).T, bits),
        "scales": factors.T.contiguous(),
    }
    return state, by_group(values, points, factors, length)


@pytest.mark.parametrize(
    ("inputs", "length", "said"),
    [
        (320, 128, {"group_size": 128}),
        (320, 128, {}),
        (288, 128, {"group_size": 128, "bits": 4}),
        (288, 128, {"group_size": -1, "dynamic": {"+:q_proj": {"group_size": 128}}}),
        (296, 100, {"group_size": 100}),
        (64, 128, {"group_size": 128}),
    ],
)
@pytest.mark.parametrize("order", ["none", "empty", "stated"])
def test_a_last_group_of_gptq_is_shorter_than_the_others(
    inputs: int, length: int, said: dict[str, Any], order: str
) -> None:
    state, expected = gptq(inputs, length)
    if order == "empty":
        state["g_idx"] = torch.empty(0, dtype=torch.int32)
    if order == "stated":
        state["g_idx"] = (torch.arange(inputs) // length).to(torch.int32)
    torch.testing.assert_close(weight_of(state, said).read(()), expected)


def test_gptq_with_desc_act_is_refused_without_its_order() -> None:
    problem = weight_of(gptq(256, 64)[0], {"group_size": 64, "desc_act": True}).problem
    assert problem is not None
    assert "which of 256 inputs share one of 4 scales is not stated" in problem
    # In a single group every order is the same.
    state, expected = gptq(256, 256)
    torch.testing.assert_close(
        weight_of(state, {"group_size": -1, "desc_act": True}).read(()), expected
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_of_one_module_are_those_that_go_with_the_group_size(bits: int) -> None:
    said = {"bits": 4, "group_size": 32, "dynamic": {"+:q_proj": {"bits": bits}}}
    values, factors = draw(ROWS, 128, high=2**bits), scales(ROWS, 4)
    state = {"qweight": pack(values, bits).T.contiguous(), "scales": factors.T.contiguous()}
    middle = torch.full((ROWS, 4), 2 ** (bits - 1))
    torch.testing.assert_close(
        weight_of(state, said).read(()), by_group(values, middle, factors, 32)
    )
    said["group_size"] = 48
    problem = weight_of(state, said).problem
    assert problem is not None
    assert "GPTQ" in problem


def awq(groups: int) -> dict[str, Tensor]:
    words = torch.zeros(288, ROWS // 8, dtype=torch.int32)
    return {"qweight": words, "qzeros": words[:groups], "scales": torch.ones(groups, ROWS)}


UNCLEAR = {
    "GPTQ": gptq(288, 128)[0],
    "AWQ": awq(3),
    "compressed-tensors": {
        "weight_packed": pack(draw(ROWS, 288), 4),
        "weight_scale": scales(ROWS, 3),
        "weight_shape": torch.tensor([ROWS, 288]),
    },
    "ModelOpt int4": {
        "weight": torch.zeros(ROWS // 2, 288, dtype=torch.uint8),
        "weight_scale": scales(ROWS, 3),
    },
}


@pytest.mark.parametrize("form", UNCLEAR)
def test_several_group_sizes_that_fit_are_refused(form: str) -> None:
    weight = weight_of(UNCLEAR[form], {})
    assert weight.problem is not None
    assert f"({form}), and which of 288 inputs share one of 3 scales" in weight.problem
    assert "group_size" in weight.problem
    assert weight.shape == (ROWS, 288)
    assert weight_of(UNCLEAR[form], {"group_size": 96}).problem is None


def compressed(values: Tensor, bits: int, scale: Tensor, **more: Tensor) -> dict[str, Tensor]:
    packed = {"weight_packed": pack(values, bits), "weight_scale": scale}
    return {**packed, "weight_shape": torch.tensor(values.shape), **more}


def test_one_scale_for_a_whole_tensor_of_compressed_tensors() -> None:
    values, scale = draw(ROWS, 96), torch.tensor([0.375])
    read = weight_of(compressed(values, 4, scale), {}).read(())
    torch.testing.assert_close(read, (values - 8) * 0.375)
    zero = torch.tensor([3], dtype=torch.int8)
    read = weight_of(compressed(values, 4, scale, weight_zero_point=zero), {}).read(())
    torch.testing.assert_close(read, (values - 11) * 0.375)


def test_the_bits_of_activations_are_not_those_of_the_weight() -> None:
    # 7 integers of 5, 6, 7 or 8 bits fill two words.
    values, scale = draw(ROWS, 7, high=32), scales(ROWS, 1)
    group = {"weights": {"num_bits": 5}, "input_activations": {"num_bits": 8}}
    read = weight_of(compressed(values, 5, scale), {"config_groups": {"a": group}}).read(())
    torch.testing.assert_close(read, (values - 16) * scale)


def test_zero_points_of_few_rows_fill_one_word() -> None:
    values, scale, points = draw(7, 96, high=8), scales(7, 3), draw(7, 3, high=8)
    zeros = pack(points.T, 3).reshape(1, 3)
    assert zeros.stride() == (3, 1), "as a file's reader returns it"
    state = compressed(values, 3, scale, weight_zero_point=zeros)
    torch.testing.assert_close(weight_of(state, {}).read(()), by_group(values, points, scale, 32))


@pytest.mark.parametrize("wrong", [-1, 4, 2**30, -(2**31)])
@pytest.mark.parametrize("form", ["gptq", "compressed"])
def test_an_order_that_names_no_group_is_refused(form: str, wrong: int) -> None:
    case = gptq_case(4, 1, ordered=True) if form == "gptq" else compressed_case(4, ordered=True)
    name = "g_idx" if form == "gptq" else "weight_g_idx"
    order = case.tensors[name].clone()
    order[5] = wrong
    made = weight_of(
        {**case.tensors, name: order}, dict(case.config).get("quantization_config", {})
    )
    assert made.problem is None
    with pytest.raises(SourceError, match=r"names groups from -?\d+ to \d+, and there are 4"):
        made.read(())
