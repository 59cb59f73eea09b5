"""SparseGPT against optimal brain surgeon with explicit inverses, and on
a real layer against the others."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from spectail.errors import PruneError
from spectail.pruning.methods import Magnitude, SparseGPT, Wanda
from spectail.pruning.methods.sparsegpt import sparsegpt
from spectail.pruning.quotas import Pattern, Zeros
from spectail.pruning.statistics import Gram
from tests.goldens.published import matrix
from tests.reference import plain_pruning as plain


def _case(seed: int = 0, rows: int = 7, cols: int = 24, tokens: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((cols, cols))
    return rng.standard_normal((rows, cols)), rng.standard_normal((tokens, cols)) @ mixing


def _smallest(costs: Any, count: int) -> Any:
    mask = np.zeros(costs.size, dtype=bool)
    mask[np.argsort(costs, axis=None, kind="stable")[:count]] = True
    return mask.reshape(costs.shape)


@pytest.mark.parametrize("block_size", [24, 8, 7, 1])
@pytest.mark.parametrize("ratio", [0.25, 0.6])
def test_unstructured_is_brain_surgeon_with_explicit_inverses(
    block_size: int, ratio: float
) -> None:
    weights, inputs = _case()
    count = round(ratio * weights.size)

    def choose(costs: Any, left: int, right: int) -> Any:
        return _smallest(costs, count * right // 24 - count * left // 24)

    expected, mask = plain.brain_surgeon(
        weights, inputs, choose, damping=0.01, block_size=block_size
    )
    gram = torch.from_numpy(inputs.T @ inputs)
    found = sparsegpt(torch.from_numpy(weights), gram, Zeros(count), block_size=block_size)
    assert (found.mask.numpy() == mask).all()
    np.testing.assert_allclose(found.weights.numpy(), expected, atol=1e-9)
    assert int((found.weights == 0).sum()) == count


@pytest.mark.parametrize(("n", "m", "cols"), [(2, 4, 24), (1, 2, 24), (4, 8, 24), (2, 5, 24)])
def test_patterns_are_brain_surgeon_group_by_group(n: int, m: int, cols: int) -> None:
    weights, inputs = _case(cols=cols)
    whole = cols // m * m

    def choose(costs: Any, left: int, right: int) -> Any:
        return (
            plain.pattern_mask(costs, n, m)
            if right - left == m
            else np.zeros(costs.shape, dtype=bool)
        )

    expected, mask = plain.brain_surgeon(weights, inputs, choose, damping=0.01, block_size=m)
    gram = torch.from_numpy(inputs.T @ inputs)
    found = sparsegpt(torch.from_numpy(weights), gram, Pattern(n, m), block_size=12)
    assert (found.mask.numpy() == mask).all()
    np.testing.assert_allclose(found.weights.numpy(), expected, atol=1e-9)
    assert not found.mask[:, whole:].any()


def test_input_and_gram_stay_as_they_are() -> None:
    weights, inputs = (torch.from_numpy(x) for x in _case())
    gram = inputs.T @ inputs
    before = weights.clone(), gram.clone()
    sparsegpt(weights, gram, Zeros(50))
    assert torch.equal(weights, before[0])
    assert torch.equal(gram, before[1])


def test_dead_inputs_go_first_and_those_that_stay_are_not_written() -> None:
    weights, inputs = _case()
    inputs[:, [3, 4]] = 0
    gram = torch.from_numpy(inputs.T @ inputs)
    few = sparsegpt(torch.from_numpy(weights), gram, Zeros(10))
    assert few.mask[:, [3, 4]].sum() == 10
    kept = ~few.mask
    np.testing.assert_array_equal(few.weights[kept].numpy(), weights[kept.numpy()])
    many = sparsegpt(torch.from_numpy(weights), gram, Zeros(100))
    assert many.mask[:, [3, 4]].all()
    assert int(many.mask.sum()) == 100


def test_a_hessian_that_is_not_positive_definite_gets_more_damping_and_says_so() -> None:
    weights, _ = _case()
    gram = torch.eye(24, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = 1.5
    seen = Gram(24, torch.device("cpu"))
    seen.tokens, seen.total = 1, gram
    outcome = SparseGPT().apply(torch.from_numpy(weights), Zeros(80), seen)
    assert outcome.note == "the Hessian is not positive definite: damping raised from 0.01 to 1"
    assert int(outcome.mask.sum()) == 80


def test_a_hessian_that_no_damping_mends_is_an_error() -> None:
    weights, _ = _case()
    gram = torch.full((24, 24), 1e6, dtype=torch.float64)
    gram.fill_diagonal_(1.0)
    with pytest.raises(
        PruneError,
        match=re.escape("the Hessian is not positive definite, not even with damping 100"),
    ):
        sparsegpt(torch.from_numpy(weights), -gram, Zeros(80))


@pytest.mark.parametrize(
    "quota", [Zeros(576 * 576 // 2), Zeros(576 * 576 * 7 // 10), Pattern(2, 4)], ids=str
)
def test_on_a_real_layer_sparsegpt_loses_least_then_wanda_then_magnitude(quota: Any) -> None:
    """The first layer of SmolLM2, whose inputs are normed embeddings,
    here of drawn words: 2,048 tokens."""
    weights = torch.from_numpy(matrix("smollm2/model.layers.0.self_attn.q_proj"))
    inputs = _first_inputs()
    seen = Gram(576, torch.device("cpu"))
    seen.add(inputs)
    losses = []
    for method in (SparseGPT(), Wanda(), Magnitude()):
        outcome = method.apply(weights, quota, seen)
        pruned = (weights if outcome.weights is None else outcome.weights).masked_fill(
            outcome.mask, 0
        )
        losses.append(
            float(
                ((pruned - weights) @ inputs.T).square().sum() / (weights @ inputs.T).square().sum()
            )
        )
    assert losses[0] < 0.8 * losses[1]
    assert losses[1] < 0.9 * losses[2]


def _first_inputs() -> torch.Tensor:
    gguf = pytest.importorskip("gguf")
    from tests.goldens.published import _gguf_tensors

    tensors = _gguf_tensors()
    words = np.minimum(np.random.default_rng(0).zipf(1.3, 2048), 49151)
    embedding, norm = tensors["token_embd.weight"], tensors["blk.0.attn_norm.weight"]
    states = torch.from_numpy(gguf.dequantize(embedding.data[words], embedding.tensor_type).copy())
    states = states / (states.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return states * torch.from_numpy(gguf.dequantize(norm.data, norm.tensor_type).copy())
