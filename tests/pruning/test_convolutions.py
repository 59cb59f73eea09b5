"""Magnitude on convolutions as (out, in x kernel), recurrent gates and complex
weights; depth-wise ones stay dense."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.errors import PruneError
from spectail.models.live.walk import module_source
from spectail.pruning.weights_to_prune import weights_of

DEPTHWISE = (
    "a depth-wise convolution or one of a single channel: each output has only its "
    "kernel's few weights"
)


class Net(nn.Module):
    """Blocks of given modules, which are never called."""

    def __init__(self, **modules: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict(modules)])


CONVOLUTIONS: dict[str, Any] = {
    "1d": lambda: nn.Conv1d(6, 8, 5),
    "2d": lambda: nn.Conv2d(6, 8, 3),
    "3d": lambda: nn.Conv3d(4, 6, (2, 3, 3)),
    "1 x 1": lambda: nn.Conv2d(6, 8, 1),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "transposed 1d": lambda: nn.ConvTranspose1d(6, 8, 4),
    "transposed 2d": lambda: nn.ConvTranspose2d(6, 4, (2, 3)),
    "transposed grouped": lambda: nn.ConvTranspose2d(8, 12, 3, groups=2),
    "channels last": lambda: nn.utils.convert_conv2d_weight_memory_format(
        nn.Conv2d(6, 8, 3), torch.channels_last
    ),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.77])
def test_the_smallest_of_all_weights_go_and_no_other_changes(kind: str, ratio: float) -> None:
    torch.manual_seed(0)
    model: Any = Net(a=CONVOLUTIONS[kind](), b=nn.Linear(5, 7))
    before = copy.deepcopy(model.state_dict())
    report = st.prune(model, ratio)
    weight, dense = model.blocks[0]["a"].weight, before["blocks.0.a.weight"]
    (layer,) = [layer for layer in report.layers if layer.name == "blocks.0.a"]
    zeros = weight == 0
    assert int(zeros.sum()) == layer.zeros
    assert layer.numel == weight.numel()
    assert abs(layer.zeros - ratio * weight.numel()) < 1
    assert sum(layer.zeros for layer in report.layers) == round(ratio * report.numel)
    assert dense[zeros].abs().max() <= dense[~zeros].abs().min()
    assert torch.equal(weight[~zeros], dense[~zeros])
    assert torch.equal(model.blocks[0]["a"].bias, before["blocks.0.a.bias"])


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_row_holds_the_weights_of_one_output_channel(kind: str) -> None:
    """The oracle asks the module: which weights have a gradient when one output channel is
    summed."""
    torch.manual_seed(0)
    module = CONVOLUTIONS[kind]()
    model = Net(a=module)
    (weight,) = weights_of(model, module_source(model), {"blocks.0.a"})
    inputs = torch.rand(1, module.in_channels, *[9] * (module.weight.ndim - 2))
    for channel in range(module.out_channels):
        (gradient,) = torch.autograd.grad(module(inputs)[:, channel].sum(), module.weight)
        marks = torch.zeros(weight.rows, weight.cols)
        marks[channel] = 1
        kept = module.weight.detach().clone()
        weight.write(marks)
        assert torch.equal(module.weight != 0, gradient != 0)
        assert torch.equal(weight.read(), marks)
        with torch.no_grad():
            module.weight.copy_(kept)


def test_two_of_four_along_the_inputs_of_each_output() -> None:
    torch.manual_seed(0)
    model: Any = Net(a=nn.Conv2d(8, 4, 3), b=nn.ConvTranspose2d(8, 4, 3))
    report = st.prune(model, 0.5, pattern="2:4")
    assert report.realised == 0.5
    for weight in weights_of(model, module_source(model), {"blocks.0.a", "blocks.0.b"}):
        assert ((weight.read().reshape(weight.rows, -1, 4) == 0).sum(2) == 2).all()
    groups = model.blocks[0]["a"].weight.flatten(1).reshape(4, -1, 4)
    assert ((groups == 0).sum(2) == 2).all()


def test_depth_wise_convolutions_stay_dense_in_every_dimension_unless_they_are_named() -> None:
    torch.manual_seed(0)
    modules = {
        "one": nn.Conv1d(8, 8, 4, groups=8), "two": nn.Conv2d(8, 8, 3, groups=8),
        "doubled": nn.Conv2d(8, 16, 3, groups=8), "transposed": nn.ConvTranspose2d(8, 8, 3,
                                                                                   groups=8),
        "pointwise": nn.Conv2d(8, 8, 1),
    }  # fmt: skip
    report = st.prune(Net(**modules), 0.5)
    assert [layer.name for layer in report.layers] == ["blocks.0.pointwise"]
    assert {layer.reason for layer in report.left_out} == {DEPTHWISE}
    named = st.prune(Net(**modules), 0.5, include=["*.two"])
    assert {layer.name for layer in named.layers} == {"blocks.0.two", "blocks.0.pointwise"}


def test_gates_of_an_lstm_are_pruned_as_matrices() -> None:
    torch.manual_seed(0)
    model: Any = Net(a=nn.LSTM(6, 8))
    report = st.prune(model, 0.5)
    assert len(report.layers) == 8
    for gate in model.blocks[0]["a"].weight_hh_l0.reshape(4, 8, 8):
        assert int((gate == 0).sum()) == 32


class Spectral(nn.Module):
    """A layer with complex weights, (in, out, modes)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 5, dtype=torch.complex64))


def test_complex_weights_stay_dense_unless_they_are_named_and_then_go_by_modulus() -> None:
    torch.manual_seed(0)
    model: Any = Net(a=Spectral(), b=nn.Linear(5, 7))
    report = st.prune(model, 0.5)
    assert [layer.name for layer in report.layers] == ["blocks.0.b"]
    assert "complex weights of a Fourier layer" in report.left_out[0].reason
    dense = model.blocks[0]["a"].weight.detach().clone()
    st.prune(model, 0.5, include=["*.a"], exclude=["*.b"])
    weight = model.blocks[0]["a"].weight
    zeros = weight == 0
    assert int(zeros.sum()) == 60
    assert dense[zeros].abs().max() <= dense[~zeros].abs().min()
    assert torch.equal(weight[~zeros], dense[~zeros])


def _resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2]}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes)).eval()


def test_a_resnet_is_pruned_exactly_and_an_allocation_of_its_file_fits(tmp_path: Path) -> None:
    model = _resnet()
    covered = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and ".stages." in f".{name}"
    }
    report = st.prune(copy.deepcopy(model), 0.5)
    assert {layer.name for layer in report.layers} == covered
    assert sum(layer.zeros for layer in report.layers) == round(0.5 * report.numel)
    assert {layer.name: layer.reason for layer in report.left_out} == {
        "resnet.embedder.embedder.convolution": "in no block",
        "classifier.1": "the output head",
    }
    model.save_pretrained(tmp_path)
    allocation = st.allocate(
        st.analyze(str(tmp_path), spec=st.presets.FULL), target="sparsity", budget=0.6
    )
    assert set(allocation) == covered
    assert len(set(allocation.values())) > 1
    report = st.prune(model, allocation)
    assert sum(layer.zeros for layer in report.layers) == round(
        sum(x.value * x.numel for x in allocation.shares)
    )
    for layer in report.layers:
        assert abs(layer.zeros - allocation[layer.name] * layer.numel) < 1


def test_a_pattern_says_what_it_cannot_do_to_a_stem_of_three_channels() -> None:
    """27 weights per output hold six whole groups; the rest stays, and the total is told."""
    report = st.prune(Net(a=nn.Conv2d(3, 8, 3)), 0.5, pattern="2:4")
    assert report.layers[0].zeros == 8 * 12
    assert report.realised == pytest.approx(96 / 216)


def test_calibration_text_does_not_prune_convolutions() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv1d(8, 8, 1), nn.Linear(8, 8)

        def forward(self, states: Any) -> Any:
            return self.fc(self.conv(states.mT).mT)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layers = nn.Embedding(100, 8), nn.ModuleList([Block(), Block()])

        def forward(self, ids: Any) -> Any:
            states = self.embed(ids)
            for layer in self.layers:
                states = layer(states)
            return states

    ids = torch.randint(100, (3, 12))
    report = st.prune(Model(), 0.5, method="wanda", calibration=ids)
    assert [layer.name for layer in report.layers] == ["layers.0.fc", "layers.1.fc"]
    assert {layer.reason for layer in report.left_out if "conv" in layer.name} == {
        "its inputs are not seen: it sits in a Conv1d"
    }
    ratios = {f"layers.{i}.{name}": 0.5 for i in (0, 1) for name in ("conv", "fc")}
    message = (
        "layers.0.conv and 1 more cannot be pruned by calibration text, its inputs are "
        "not seen: it sits in a Conv1d"
    )
    with pytest.raises(PruneError, match=re.escape(message)):
        st.prune(Model(), ratios, method="wanda", calibration=ids)
