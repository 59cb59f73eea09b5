"""st.prune on tiny decoders of every architecture: zeros, what is not touched,
inputs, errors, interruption."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spectail as st
from spectail.allocation.allocation import LayerValue
from spectail.errors import PruneError
from spectail.models.live.walk import module_source
from spectail.models.live.weights import editable, owners
from spectail.pruning.methods import SparseGPT, Wanda, method_names
from spectail.pruning.prune import PruningInterrupted
from spectail.pruning.report import Note
from spectail.pruning.statistics import Gram, site_of, watching
from spectail.pruning.weights_to_prune import coverage_of, make_targets
from tests.pruning.models import CONFIGS, decoder, tokens
from tests.reference import plain_pruning as plain


def _matrices(model: Any) -> dict[str, Any]:
    places = owners(model)
    covered = {layer.name for layer in coverage_of(module_source(model)).layers}
    return {
        x.name: editable(x, places).read() for x in module_source(model).layers if x.name in covered
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", method_names())
def test_every_architecture_and_method_gives_the_zeros_asked_for_and_touches_nothing_else(
    name: str, method: Any
) -> None:
    model = decoder(name)
    before, matrices = copy.deepcopy(model.state_dict()), _matrices(model)
    report = st.prune(model, 0.6, method=method, calibration=tokens())
    total = sum(matrix.numel() for matrix in matrices.values())
    assert sum(layer.zeros for layer in report.layers) == round(0.6 * total)
    assert {layer.name for layer in report.layers} == set(matrices)
    pruned = _matrices(model)
    for layer in report.layers:
        zero = pruned[layer.name] == 0
        assert int(zero.sum()) == layer.zeros == round(layer.realised * layer.numel)
        assert abs(layer.zeros - 0.6 * layer.numel) < 1
        if method == "wanda":
            assert int(zero.sum(1).max() - zero.sum(1).min()) <= 1
        if method != "sparsegpt":
            assert torch.equal(pruned[layer.name][~zero], matrices[layer.name][~zero])
    _assert_only_matrices_changed(model, before, matrices)
    assert torch.isfinite(model(tokens(1)).logits).all()


def _assert_only_matrices_changed(model: Any, before: Any, matrices: Any) -> None:
    """Whatever is no covered matrix is bit for bit what it was."""
    places = owners(model)
    written = {editable(x, places).path for x in module_source(model).layers if x.name in matrices}
    for key, value in model.state_dict().items():
        assert key in written or torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "mixtral"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_two_of_four_along_the_input(name: str, method: str) -> None:
    model = decoder(name)
    report = st.prune(model, 0.5, method=method, calibration=tokens(), pattern="2:4")
    assert report.realised == 0.5
    assert report.pattern == "2:4"
    for matrix in _matrices(model).values():
        assert ((matrix.reshape(matrix.shape[0], -1, 4) == 0).sum(2) == 2).all()


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "gpt2", "neox", "mistral"])
def test_wanda_sees_what_plain_hooks_see_and_block_two_gets_what_pruned_block_one_gives(
    name: str,
) -> None:
    """The oracle runs the whole model for each block, with the blocks before it
    pruned, and hooks on its layers."""
    model, oracle, text = decoder(name), decoder(name), tokens()
    st.prune(model, 0.5, method="wanda", calibration=text)
    targets = make_targets(oracle, 0.5)
    for block in range(2):
        members = [target.weight for target in targets if f".{block}." in target.weight.path]
        inputs = _hooked(oracle, {weight.owner for weight in members}, text)
        for weight in members:
            matrix = weight.read()
            mask = plain.wanda_mask(matrix.numpy(), inputs[weight.owner], matrix.shape[1] // 2)
            weight.write(matrix.masked_fill(torch.from_numpy(mask), 0))
    for key, value in model.state_dict().items():
        assert torch.equal(value, oracle.state_dict()[key]), key


def _hooked(model: Any, modules: Any, text: torch.Tensor) -> dict[Any, Any]:
    """Inputs of modules, (tokens, features), over a text, in float64."""
    found: Any = {module: [] for module in modules}

    def see(module: Any, args: Any, output: Any) -> None:
        found[module].append(args[0].detach().double().reshape(-1, args[0].shape[-1]))

    hooks = [module.register_forward_hook(see) for module in modules]
    with torch.no_grad():
        for ids in text:
            model(ids[None])
    for hook in hooks:
        hook.remove()
    return {module: torch.cat(seen).numpy() for module, seen in found.items()}


def test_the_second_block_is_pruned_otherwise_after_a_dense_first_one() -> None:
    """That the test above can tell: with block one left dense, block two gets other zeros."""
    both, second = decoder("llama"), decoder("llama")
    ratios = dict.fromkeys(_matrices(both), 0.5)
    st.prune(both, ratios, method="wanda", calibration=tokens())
    st.prune(
        second,
        {n: r * (".1." in n) for n, r in ratios.items()},
        method="wanda",
        calibration=tokens(),
    )
    a, b = (m.state_dict()["model.layers.1.mlp.up_proj.weight"] for m in (both, second))
    assert not torch.equal(a == 0, b == 0)


def test_gram_matrices_are_those_of_plain_hooks() -> None:
    model, text = decoder("llama"), tokens()
    weights = [target.weight for target in make_targets(model, 0.5)]
    with watching(weights, Gram) as seen, torch.no_grad():
        for ids in text:
            model(ids[None])
    inputs = _hooked(model, {weight.owner for weight in weights}, text)
    for weight in weights:
        x = inputs[weight.owner]
        np.testing.assert_allclose(seen[site_of(weight)].total, x.T @ x, rtol=1e-4, atol=1e-4)
        assert seen[site_of(weight)].tokens == text.numel()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_each_expert_counts_the_tokens_that_are_sent_to_it() -> None:
    """Mixtral's experts share one parameter; the oracle routes by hand."""
    model, text = decoder("mixtral"), tokens()
    moe = model.model.layers[0].mlp
    before = model.config._experts_implementation
    weights = [
        target.weight
        for target in make_targets(model, 0.5)
        if ".layers.0.mlp.experts" in target.weight.name
    ]
    with watching(weights, Gram) as seen, torch.no_grad():
        for ids in text:
            model(ids[None])
    assert model.config._experts_implementation == before
    states = torch.from_numpy(_hooked(model, {moe}, text)[moe]).float()
    logits = states @ moe.gate.weight.T
    sent = logits.topk(model.config.num_experts_per_tok).indices
    for expert in range(4):
        mine = states[(sent == expert).any(1)]
        gate, up = (mine @ moe.experts.gate_up_proj[expert].T).chunk(2, 1)
        for part, x in (("gate_up_proj", mine), ("down_proj", nn.functional.silu(gate) * up)):
            (site,) = {site_of(w) for w in weights if w.expert == expert and part in w.path}
            assert seen[site].tokens == len(mine)
            torch.testing.assert_close(seen[site].total, x.T @ x, rtol=1e-3, atol=1e-3)


def test_an_expert_without_tokens_is_pruned_by_magnitude_and_says_so() -> None:
    model: Any = decoder("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.fill_(1.0)
            layer.mlp.gate.weight[2] = layer.mlp.gate.weight[[0, 1, 3]].sum(0) * 0
            layer.mlp.gate.weight[[0, 1]] = torch.tensor([[9.0], [-9.0]]) * torch.ones(2, 32)
            layer.mlp.gate.weight[3] = layer.mlp.gate.weight[0] * 0.5
    report = st.prune(model, 0.5, method="sparsegpt", calibration=tokens(1, 2))
    unseen = [
        layer
        for layer in report.layers
        if layer.note == "no calibration token came here: pruned by magnitude"
    ]
    assert unseen
    more = f" and {len(unseen) - 1} more" if len(unseen) > 1 else ""
    assert report.notes == (Note(f"{unseen[0].name}{more}", unseen[0].note),)
    assert f"note: {report.notes[0]}" in report.summary()
    assert report.realised == 0.5


def test_an_allocation_of_the_saved_file_fits_the_live_model(tmp_path: Path) -> None:
    """Experts are fused in the live model and saved one by one; names of both sides meet."""
    model = decoder("mixtral")
    model.save_pretrained(tmp_path)
    analysis = st.analyze(str(tmp_path), spec=st.presets.FULL)
    allocation = st.allocate(analysis, target="sparsity", budget=0.5)
    report = st.prune(model, allocation)
    assert abs(report.realised - 0.5) < 1e-3
    assert abs(report.requested - 0.5) < 1e-9
    assert len(report.layers) == len(allocation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype: torch.dtype) -> None:
    model: Any = decoder("llama").to(dtype)
    for method in ("wanda", "sparsegpt"):
        report = st.prune(model, 0.5, method=method, calibration=tokens())
        assert report.realised >= 0.5
        assert model.model.layers[0].mlp.up_proj.weight.dtype == dtype


def test_training_mode_comes_back_and_progress_is_told() -> None:
    model = decoder("llama").train()
    told = []
    st.prune(model, 0.5, method="wanda", calibration=tokens(), progress=lambda *x: told.append(x))
    assert all(module.training for module in model.modules())
    total = told[-1][2]
    assert [name for name, _, _ in told] == [
        "calibration text",
        "model.layers.0",
        "model.layers.1",
        None,
    ]
    assert [done for _, done, _ in told] == [0, 0, total // 2, total]


def test_an_interruption_leaves_finished_blocks_pruned_and_says_how_far() -> None:
    model = decoder("llama")
    before = copy.deepcopy(model.state_dict())

    def interrupt(name: str | None, done: int, total: int) -> None:
        if name == "model.layers.1":
            raise KeyboardInterrupt

    with pytest.raises(PruningInterrupted) as stopped:
        st.prune(model, 0.5, method="wanda", calibration=tokens(), progress=interrupt)
    assert str(stopped.value) == (
        "interrupted after 7 of 14 layers, the last model.layers.0.mlp.down_proj; the others "
        "are as they were"
    )
    assert not stopped.value.report.complete
    assert stopped.value.report.realised == 0.5
    after = model.state_dict()
    assert (after["model.layers.0.mlp.up_proj.weight"] == 0).float().mean() == 0.5
    assert torch.equal(
        after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"]
    )


def test_the_report_is_a_table_and_json() -> None:
    report = st.prune(decoder("llama"), 0.5, method=SparseGPT(damping=0.1), calibration=tokens())
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["settings"] == {"block_size": 128, "damping": 0.1}
    assert stored["calibration"] == [5, 24]
    assert list(report.table["realised"]) == [layer["realised"] for layer in stored["layers"]]
    assert "sparsegpt: 14 layers" in report.summary()
    assert "Zeros alone make nothing smaller or faster" in report.summary()


def _allocation(values: Any, target: str = "sparsity") -> st.Allocation:
    shares = tuple(LayerValue(name, value, name, None, 1) for name, value in values.items())
    return st.Allocation(target=target, budget=0.5, settings={}, shares=shares)


def _without(model: Any, name: str) -> dict[str, float]:
    return {n: 0.5 for n in _matrices(model) if n != name}


def _tied_to_embedding(model: Any) -> Any:
    model.model.layers[0].mlp.table = nn.Embedding(48, 32)
    model.model.layers[0].mlp.table.weight = model.model.layers[0].mlp.up_proj.weight
    return model


def _with_unused(model: Any) -> Any:
    model.model.layers[0].mlp.unused = nn.Linear(32, 48)
    return model


def _poisoned(model: Any, where: Any) -> Any:
    with torch.no_grad():
        model.get_parameter(where).view(-1)[0] = torch.nan
    return model


UP = "model.layers.1.mlp.up_proj"
BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "one": (lambda m: (m, 1.0, {}), "a sparsity must be at least 0 and below 1, not 1.0"),
    "text": (
        lambda m: (m, "0.5", {}),
        "expected an allocation, a mapping from layer to ratio or one number, not '0.5'",
    ),
    "ratio": (
        lambda m: (m, dict.fromkeys(_matrices(m), 1.5), {}),
        "the ratio of model.layers.0.self_attn.q_proj must be a number from 0 to 1, not 1.5",
    ),
    "unknown": (
        lambda m: (m, {**_without(m, ""), "model.layers.9.up": 0.5}, {}),
        "the model has no model.layers.9.up; names look like model.layers.0.self_attn.q_proj, ",
    ),
    "missing": (
        lambda m: (m, _without(m, UP), {}),
        f"the allocation has no {UP}; give 0 to what should stay dense",
    ),
    "bits": (
        lambda m: (m, _allocation(_without(m, ""), "bits"), {}),
        "expected an allocation of sparsity, not of bits",
    ),
    "tied head": (
        lambda m: (decoder("smollm2"), {**_without(m, ""), "lm_head": 0.5}, {}),
        "the model has no lm_head of its own (it is tied to another layer)",
    ),
    "tied block": (
        lambda m: (_tied_to_embedding(m), 0.5, {}),
        (
            "model.layers.0.mlp.up_proj cannot be written alone: it is tied to "
            "model.layers.0.mlp.table.weight; leave it"
        ),
    ),
    "globs beside a mapping": (
        lambda m: (m, _without(m, ""), {"exclude": ["*up_proj"]}),
        (
            "include, exclude, kinds and types go with one ratio for all layers: "
            "an allocation names its layers"
        ),
    ),
    "allocate what text does not reach": (
        lambda m: (
            _with_unused(m),
            dict.fromkeys(_matrices(m), 0.5),
            {"method": "wanda", "calibration": tokens()},
        ),
        (
            "model.layers.0.mlp.unused cannot be pruned by calibration text, its inputs are not "
            "seen: no token of the"
        ),
    ),
    "nan weight": (
        lambda m: (_poisoned(m, UP + ".weight"), 0.5, {}),
        f"{UP} holds NaN or infinite weights: nothing can be ranked by them",
    ),
    "no calibration": (
        lambda m: (m, 0.5, {"method": "wanda"}),
        "wanda needs calibration: token ids (samples, length)",
    ),
    "floats": (
        lambda m: (m, 0.5, {"method": "wanda", "calibration": torch.rand(2, 4)}),
        "calibration must be token ids (samples, length), not a tensor of shape (2, 4)",
    ),
    "vocabulary": (
        lambda m: (m, 0.5, {"method": "wanda", "calibration": torch.full((2, 4), 100)}),
        "calibration holds token 100, the model knows 100: another tokenizer?",
    ),
    "positions": (
        lambda m: (m, 0.5, {"method": "wanda", "calibration": tokens(2, 65)}),
        "calibration sequences of 65 tokens exceed the model's 64 positions",
    ),
    "head by text": (
        lambda m: (
            m,
            {**_without(m, ""), "lm_head": 0.5},
            {"method": "wanda", "calibration": tokens()},
        ),
        (
            "lm_head.weight lies in no block, and only blocks are pruned by calibration text: "
            "leave it out"
        ),
    ),
    "nothing but an embedding": (
        lambda m: (nn.ModuleDict({"embed": nn.Embedding(8, 8)}), 0.5, {}),
        "ModuleDict has no weights to prune: none of the 1 layers takes part: embed (an embedding)",
    ),
    "pattern": (
        lambda m: (m, 0.6, {"pattern": "2:4"}),
        "pattern 2:4 is a sparsity of 0.5, the allocation's mean is 0.6: make them equal",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_pruned_is_one_clear_line_and_changes_nothing(case: str) -> None:
    make, message = BAD[case]
    model, allocation, options = make(decoder("llama"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruneError, match=re.escape(message)) as error:
        st.prune(model, allocation, **options)
    assert "\n" not in str(error.value)
    for key, value in model.state_dict().items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(before[key]))


def test_nan_activations_name_the_layer() -> None:
    model = _poisoned(decoder("llama"), "model.layers.0.post_attention_layernorm.weight")
    with pytest.raises(
        PruneError, match=re.escape("NaN or infinite inputs reach model.layers.0.mlp.gate_proj")
    ):
        st.prune(model, 0.5, method=Wanda(), calibration=tokens())
    assert not any((matrix == 0).any() for matrix in _matrices(model).values())


def test_quantised_weights_are_refused() -> None:
    model: Any = decoder("llama")
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(
        PruneError, match=r"up_proj cannot be written: stored as .* integers .*int8"
    ):
        st.prune(model, dict.fromkeys(_names(model), 0.5))


def _names(model: Any) -> list[Any]:
    return [layer.name for layer in coverage_of(module_source(model)).layers]


class _Swapped(nn.Module):
    """Runs its blocks in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))

    def forward(self, ids: Any) -> Any:
        return self.layers[0](self.layers[1](self.embed(ids)))


def test_blocks_that_do_not_follow_on_each_other_are_refused() -> None:
    message = "this _Swapped does not hand its hidden states from block to block in order"
    with pytest.raises(PruneError, match=re.escape(message)):
        st.prune(_Swapped(), 0.5, method="wanda", calibration=tokens())


class _Peeking(nn.Module):
    """Gives every block a second argument: of the tokens alone, or of
    what the blocks before have computed."""

    def __init__(self, *, of_tokens: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(100, 8)
        self.layers = nn.ModuleList(_Block() for _ in range(3))
        self.of_tokens = of_tokens

    def forward(self, ids: Any) -> Any:
        first = states = self.embed(ids)
        for layer in self.layers:
            states = layer(states, first.flip(1) if self.of_tokens else states.mean())
        return states


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 8)

    def forward(self, states: Any, other: Any) -> Any:
        return self.fc1(states + other)


def test_arguments_that_depend_on_other_blocks_are_refused() -> None:
    message = (
        "block 0 of this model takes arguments that depend on what other blocks compute, "
        "besides its hidden"
    )
    with pytest.raises(PruneError, match=re.escape(message.replace("block 0", "block 1"))):
        st.prune(_Peeking(of_tokens=False), 0.5, method="wanda", calibration=tokens())


def test_arguments_that_depend_on_the_tokens_follow_each_sample() -> None:
    """The oracle runs the whole model for each block, with the blocks before it pruned."""
    model, text = _Peeking(of_tokens=True), tokens()
    oracle: Any = _Peeking(of_tokens=True)
    st.prune(model, 0.5, method="wanda", calibration=text)
    for layer in oracle.layers:
        inputs = _hooked(oracle, {layer.fc1}, text)[layer.fc1]
        mask = plain.wanda_mask(layer.fc1.weight.detach().numpy(), inputs, 4)
        layer.fc1.weight.data.masked_fill_(torch.from_numpy(mask), 0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, oracle.state_dict()[key]), key


def test_blocks_that_share_a_weight_are_pruned_once_and_it_is_said() -> None:
    model: Any = decoder("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    report = st.prune(model, 0.5, method="wanda", calibration=tokens())
    assert [layer.name for layer in report.layers if "up_proj" in layer.name] == [
        "model.layers.0.mlp.up_proj"
    ]
    assert report.realised == 0.5
    # A note may hold a colon itself.
    shared = Note(
        "model.layers.0.mlp.up_proj", "shared by 2 modules: pruned by the inputs of the first"
    )
    assert report.notes == (shared,)
    assert report.to_dict()["notes"] == [f"{shared.subject}: {shared.text}"]


def test_left_out_layers_are_told_with_their_reasons() -> None:
    report = st.prune(decoder("mixtral"), 0.5, exclude=["*.0.*q_proj"])
    assert {layer.name: layer.reason for layer in report.left_out} == {
        "model.embed_tokens": "an embedding",
        "model.layers.0.self_attn.q_proj": "excluded",
        "model.layers.0.mlp.gate": "a router",
        "model.layers.1.mlp.gate": "a router",
        "lm_head": "the output head",
    }
    assert (
        "left out, a router: model.layers.0.mlp.gate, model.layers.1.mlp.gate" in report.summary()
    )
    assert report.to_dict()["left_out"][0] == {
        "name": "model.embed_tokens",
        "code": "embedding",
        "reason": "an embedding",
    }
