"""Torch-Pruning: ratios of channels that remove the ratio of weights."""

import itertools

import pytest
import torch

from spectail.errors import ExportError
from spectail.export.torch_pruning import channel_ratio, channel_ratios, pruning_ratio_dict
from tests.export.conftest import allocation


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.998])
def test_channels_removed_on_both_sides_remove_the_weights(sparsity: float) -> None:
    c = channel_ratio(sparsity)
    assert 1 - (1 - c) ** 2 == pytest.approx(sparsity, abs=1e-12)


def test_names_become_modules() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    ratios = channel_ratios(allocation({"1": 0.75, "0": 0.36}))
    assert ratios == {"1": 0.5, "0": pytest.approx(0.2)}
    assert pruning_ratio_dict(ratios, model) == {model[1]: 0.5, model[0]: pytest.approx(0.2)}
    with pytest.raises(
        ExportError, match="the model has no module 2: give the model that was analysed"
    ):
        pruning_ratio_dict({"2": 0.5}, model)
    with pytest.raises(
        ExportError, match="Torch-Pruning takes an allocation of sparsity, but this one is of bits"
    ):
        channel_ratios(allocation({"a": 4}, "bits"))


@pytest.mark.filterwarnings("ignore")
def test_torch_pruning_cuts_every_layer_by_its_ratio() -> None:
    tp = pytest.importorskip("torch_pruning")
    sizes = (8, 64, 64, 64, 5)
    model = torch.nn.Sequential(*itertools.starmap(torch.nn.Linear, itertools.pairwise(sizes)))
    ratios = channel_ratios(allocation({"0": 0.4375, "1": 0.75, "2": 0.4375}))
    pruner = tp.pruner.BasePruner(
        model, torch.zeros(1, 8), importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio_dict=pruning_ratio_dict(ratios, model), ignored_layers=[model[3]],
    )  # fmt: skip
    pruner.step()
    assert [layer.out_features for layer in model] == [48, 32, 48, 5]
