"""Which layers to train: the highest by alpha, in each kind, or by Spectrum's signal to noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from spectail.core.metrics import signal_to_noise
from spectail.errors import AllocationError
from tests.allocation.conftest import layer, results, transformer, unmeasured

KINDS = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")


def _model(rng: Any, blocks: int) -> list[Any]:
    """Layers of three kinds, of three sizes, with alphas and ratios that do not agree."""
    return [
        layer(f"model.layers.{b}.{kind}", float(rng.uniform(1, 5)), 64 * 64 * (1 + k),
              snr=float(rng.lognormal()))
        for b in range(blocks)
        for k, kind in enumerate(KINDS)
    ]  # fmt: skip


def _trained(allocation: st.Allocation) -> set[str]:
    assert set(allocation.values()) <= {0.0, 1.0}
    return {name for name, value in allocation.items() if value}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("blocks", [4, 7, 100])
def test_the_highest_alphas_of_all(blocks: int, share: float) -> None:
    layers = _model(np.random.default_rng(blocks), blocks)
    allocation = st.allocate(results(*layers), target="freeze", budget=share)
    count = math.floor(round(share * len(layers), 6))
    best = sorted(layers, key=lambda x: x.alpha)[len(layers) - count :]
    assert _trained(allocation) == {x.name for x in best}
    numel = {x.name: x.numel for x in layers}
    weights = sum(numel[n] for n in _trained(allocation)) / sum(numel.values())
    assert allocation.realised == pytest.approx(weights)
    assert allocation.deviations == (
        f"{count} of {len(layers)} layers are trained: {100 * weights:.3g} % of the weights that "
        "take part.",
    )


@pytest.mark.parametrize(("by", "key"), [("alpha-in-kind", "alpha"), ("snr", "snr")])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_highest_of_each_kind(by: str, key: str, share: float) -> None:
    blocks = 10
    layers = _model(np.random.default_rng(0), blocks)
    rule = st.targets.Freeze(by=by)
    found = _trained(st.allocate(results(*layers), target=rule, budget=share))
    expected = set()
    for kind in KINDS:
        own = [x for x in layers if x.name.endswith(kind)]
        own.sort(key=lambda x: getattr(x, key), reverse=True)
        expected |= {x.name for x in own[: int(share * blocks)]}
    assert found == expected


def test_spectrum_needs_no_alpha() -> None:
    layers = [unmeasured(f"layers.{i}.mlp.up_proj", snr=float(i)) for i in range(4)]
    rule = st.targets.Freeze(by="snr")
    allocation = st.allocate(results(*layers), target=rule, budget=0.5)
    assert _trained(allocation) == {"layers.2.mlp.up_proj", "layers.3.mlp.up_proj"}


def test_parts_of_one_parameter_are_chosen_together() -> None:
    layers = []
    for b, alphas in enumerate([(2, 2, 5), (3.5, 3.2, 3.5), (2, 2.5, 2.1), (1, 1, 1)]):
        layers += [
            layer(f"h.{b}.attn.c_attn.{part}", alpha)
            for part, alpha in zip("qkv", alphas, strict=True)
        ]
        layers += [layer(f"h.{b}.mlp.experts.up_proj[{i}]", 1 + b + i / 9) for i in range(3)]
    for by in ("alpha", "alpha-in-kind"):
        rule = st.targets.Freeze(by=by)
        allocation = st.allocate(results(*layers), target=rule, budget=0.25)
        names = {f"h.1.attn.c_attn.{part}" for part in "qkv"}
        names |= {f"h.3.mlp.experts.up_proj[{i}]" for i in range(3)}
        assert _trained(allocation) == names


def test_experts_that_a_file_stores_one_by_one_are_chosen_together() -> None:
    layers = [
        layer(f"model.layers.{b}.mlp.experts.{i}.{part}_proj", alpha + i / 9)
        for b in range(2)
        for part, alpha in (("gate", 2 + b), ("up", 3 - b), ("down", 4 - 2 * b))
        for i in range(3)
    ]
    allocation = st.allocate(results(*layers), target="freeze", budget=0.5)
    # Means: gate and up 2.61 in both blocks, of which the first is earlier; down 4.11 and 2.11.
    assert {name.split(".", 5)[2] for name in _trained(allocation)} == {"0"}
    assert len(_trained(allocation)) == 9


@pytest.mark.parametrize(("by", "key"), [("alpha", "alpha"), ("alpha-in-kind", "alpha"),
                                         ("snr", "snr")])  # fmt: skip
def test_whole_blocks_by_their_mean(by: str, key: str) -> None:
    layers = _model(np.random.default_rng(1), 8)
    rule = st.targets.Freeze(by=by, level="block")
    allocation = st.allocate(results(*layers), target=rule, budget=0.25)
    means = {b: np.mean([getattr(x, key) for x in layers if f".{b}." in x.name]) for b in range(8)}
    best = sorted(means, key=lambda b: -means[b])[:2]
    assert _trained(allocation) == {x.name for x in layers if any(f".{b}." in x.name for b in best)}
    assert allocation.deviations[0].startswith("2 of 8 blocks are trained: ")


def test_of_equals_the_earlier_is_trained() -> None:
    layers = [layer(f"layers.{i}.mlp.up_proj", 2.0) for i in range(4)]
    allocation = st.allocate(results(*layers), target="freeze", budget=0.5)
    assert _trained(allocation) == {"layers.0.mlp.up_proj", "layers.1.mlp.up_proj"}


def test_embeddings_head_and_what_lies_in_no_block_stay_frozen() -> None:
    allocation = st.allocate(transformer(), target="freeze", budget=1, exclude=["*.gate"])
    assert {x.name for x in allocation.left_out} >= {"model.embed_tokens", "lm_head"}
    assert all(name.startswith("model.layers.") for name in allocation)


@pytest.mark.parametrize("share", [0, -0.5, 1.01, 25, math.nan])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(AllocationError, match="the share of layers to train must be above 0 and"):
        st.allocate(transformer(), target="freeze", budget=share, exclude=["*.gate"])


def test_less_than_one_layer_is_an_error() -> None:
    with pytest.raises(AllocationError, match=r"0\.1 is less than one of the 8 layers: ask for"):
        st.allocate(transformer(), target="freeze", budget=0.1, exclude=["*.gate"])
    rule = st.targets.Freeze(by="alpha-in-kind")
    with pytest.raises(AllocationError, match=r"0\.2 is less than one of the layers of any kind"):
        st.allocate(transformer(), target=rule, budget=0.2, exclude=["*.gate"])


def test_what_the_analysis_does_not_have() -> None:
    rule = st.targets.Freeze(by="snr")
    with pytest.raises(AllocationError, match="run spectail analyze with --full-spectrum"):
        st.allocate(transformer(), target=rule, budget=0.5, exclude=["*.gate"])
    layers = [layer("layers.0.mlp.up_proj", snr=1.0), layer("layers.1.mlp.up_proj")]
    with pytest.raises(AllocationError, match=r"1 of 2 layers have no .*: layers\.1\.mlp\.up_proj"):
        st.allocate(results(*layers), target=rule, budget=0.5)
    with pytest.raises(AllocationError, match="by must be one of alpha, alpha-in-kind, snr for"):
        st.targets.Freeze(by="variance")
    with pytest.raises(AllocationError, match="level must be block or layer, not 'model'"):
        st.allocate(transformer(), target="freeze", budget=0.5, level="model")


def _published(weight: torch.Tensor) -> float:
    """Spectrum's ratio of one matrix, step by step."""
    values = torch.linalg.svdvals(weight.double())
    sigma = float(torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    short, long = sorted(weight.shape)
    edge = sigma * (1 + (short / long) ** 0.5)
    return float(values[values > edge].sum() / values[values <= edge].sum() / values.max())


@pytest.mark.parametrize("shape", [(96, 96), (96, 300), (300, 96)])
def test_the_ratio_is_that_of_the_paper(shape: tuple[int, int]) -> None:
    torch.manual_seed(shape[1])
    weight = torch.randn(shape) + 3 * torch.randn(shape[0], 4) @ torch.randn(4, shape[1])
    table = st.analyze({"layers.0.mlp.up_proj.weight": weight}, full_spectrum=True).table
    assert table["snr"][0] == pytest.approx(_published(weight), rel=1e-6)
    plain = st.analyze({"layers.0.mlp.up_proj.weight": weight}).table
    assert math.isnan(plain["snr"][0])


def test_zeros_are_noise_and_a_spectrum_without_noise_has_no_ratio() -> None:
    squares = np.array([1.0, 4.0, 9.0, 16.0, 100.0])
    with_zeros = signal_to_noise(squares, 2, (7, 7))
    # Singular values 0, 0, 1, 2, 3, 4, 10: quartiles 0.5 and 3.5, the edge at 4.4477.
    assert with_zeros == pytest.approx(10 / (1 + 2 + 3 + 4) / 10)
    assert math.isnan(signal_to_noise(np.ones(8), 0, (8, 8)))
    assert math.isnan(signal_to_noise(np.empty(0), 3, (8, 8)))
