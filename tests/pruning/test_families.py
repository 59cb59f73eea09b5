"""Multi-modal models, hybrids, encoders: what is pruned, what stays dense and
why, and inputs block by block."""

import copy
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.cli import main
from spectail.errors import PruneError
from spectail.models.live.walk import module_source
from spectail.pruning.blocks import find_blocks, start
from spectail.pruning.reached_layers import scope_of
from spectail.pruning.weights_to_prune import weights_of
from tests.language import tokenizer, words
from tests.pruning.families import CASES, FAMILIES, UNSEEN, model_of
from tests.pruning.models import tokens

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # transformers warns of kernels that are not installed


def text() -> Any:
    """Token ids below those that mean an image."""
    return tokens(4, 16) % 90 + 3


def expected(name: str, model: Any, *, by_text: bool = False) -> set[Any]:
    """Parameters to prune: each Linear's weight and each experts' in the family's
    blocks, but those named dense."""
    case = FAMILIES[name]
    found = set()
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{blocks}.") for blocks in case.blocks)
        dense = (*case.dense, *(case.unseen if by_text else ()))
        for key, parameter in module._parameters.items():
            matrix = isinstance(module, nn.Linear) and key == "weight"
            stacked = parameter is not None and parameter.ndim == 3 and len(parameter) > 1
            stacked = stacked and not isinstance(module, nn.Conv1d)
            whole = f"{path}.{key}"
            if (
                inside
                and (matrix or stacked)
                and not any(fnmatchcase(x, g) for g in dense for x in (path, whole))
            ):
                found.add(id(parameter))
    return found


def pruned(report: Any, model: Any) -> set[Any]:
    source = module_source(model, fingerprint=False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        id(parameters[w.path])
        for w in weights_of(model, source, {layer.name for layer in report.layers})
    }


def check_left_out(report: Any, patterns: Any) -> None:
    for glob, reason in patterns.items():
        found = [layer for layer in report.left_out if fnmatchcase(layer.name, glob)]
        assert found, glob
        assert all(layer.reason.startswith(reason) for layer in found), (glob, found)


@pytest.mark.parametrize("name", CASES)
def test_magnitude_prunes_the_blocks_of_the_language_model_and_says_what_stays(name: Any) -> None:
    model = model_of(name)
    before = copy.deepcopy(model.state_dict())
    report = st.prune(model, 0.5)
    assert pruned(report, model) == expected(name, model)
    check_left_out(report, FAMILIES[name].dense)
    assert sum(layer.zeros for layer in report.layers) == round(0.5 * report.numel)
    names = {layer.name for layer in report.layers} | {layer.name for layer in report.left_out}
    assert names == {layer.name for layer in module_source(model).layers}
    touched = expected(name, model)
    for key, parameter in model.named_parameters(remove_duplicate=False):
        assert (id(parameter) in touched) == (not torch.equal(parameter, before[key])), key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_calibration_text_finds_the_blocks_that_it_passes_or_is_refused_in_one_line(
    name: Any, method: str
) -> None:
    case, model = FAMILIES[name], model_of(name)
    before = copy.deepcopy(model.state_dict())
    if case.refused:
        with pytest.raises(PruneError, match=re.escape(case.refused)) as error:
            st.prune(model, 0.5, method=method, calibration=text())
        assert "\n" not in str(error.value)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        return
    report = st.prune(model, 0.5, method=method, calibration=text())
    assert pruned(report, model) == expected(name, model, by_text=True)
    check_left_out(report, {**case.dense, **dict.fromkeys(case.unseen, UNSEEN)})
    assert sum(layer.zeros for layer in report.layers) == round(0.5 * report.numel)
    if method == "wanda":
        source = module_source(model, fingerprint=False)
        for weight in weights_of(model, source, {layer.name for layer in report.layers}):
            zeros = (weight.read() == 0).sum(1)
            assert int(zeros.max() - zeros.min()) <= 1 or "magnitude" in str(report.notes), (
                weight.name
            )


@pytest.mark.parametrize(
    "name", [param for param in CASES if not FAMILIES[str(param.values[0])].refused]
)
def test_inputs_of_every_block_are_those_of_a_plain_forward_pass(name: Any) -> None:
    """Blocks of different kinds get different arguments; the model itself is the oracle."""
    model, ids = model_of(name), text()
    scope, source = scope_of(model, ids), module_source(model, fingerprint=False)
    weights = weights_of(model, source, {layer.name for layer in scope.cover(source).layers})
    blocks = [block for _, block in find_blocks(model, [weight.path for weight in weights])]
    with torch.no_grad():
        seen = _seen(model, blocks, ids, FAMILIES[name].blocks[0])
        stream = start(model, blocks, ids)
        for number, block in enumerate(blocks):
            for sample, states in enumerate(seen[number]):
                assert torch.equal(states, stream.hidden[sample]), (number, sample)
            stream.run(block, number, keep=True)
    assert sum(map(len, seen)) == len(ids) * (
        len(blocks) - ("*language_model.layers.1.*" in FAMILIES[name].unseen)
    )


def _seen(model: Any, blocks: Any, ids: Any, stack: str) -> list[list[Any]]:
    """What goes into each block in plain calls of the model, or of its language
    model where it must have images."""
    runner = (
        model.get_submodule(stack.split(".")[0])
        if name_of(model) in {"Blip2", "Kosmos2"}
        else model
    )
    found: list[list[Any]] = [[] for _ in blocks]
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(
                (args[0] if args else kwargs["hidden_states"]).clone()
            ),
            with_kwargs=True,
        )
        for block, seen in zip(blocks, found, strict=True)
    ]
    for sample in ids:
        runner(input_ids=sample[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def name_of(model: Any) -> Any:
    return type(model).__name__.removesuffix("ForConditionalGeneration")


@pytest.mark.parametrize("name", CASES)
def test_an_allocation_of_the_saved_folder_prunes_the_same_weights_of_the_live_model(
    name: Any, tmp_path: Path
) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path)
    analysis = st.analyze(str(tmp_path), spec=st.presets.FULL)
    allocation = st.allocate(analysis, target="sparsity", budget=0.5, missing="mean")
    report = st.prune(model, allocation)
    assert pruned(report, model) == expected(name, model)
    check_left_out(
        report, {glob: reason.partition(":")[0] for glob, reason in FAMILIES[name].dense.items()}
    )


def test_half_of_an_encoder_decoder_at_a_time() -> None:
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        model = model_of("bart")
        report = st.prune(
            model, 0.5, method="wanda", calibration=text(), exclude=[f"model.{other}.*"]
        )
        assert report.realised == 0.5
        assert all(layer.name.startswith(f"model.{half}.layers") for layer in report.layers)


def test_a_tower_is_pruned_by_magnitude_where_it_is_named_and_never_by_text() -> None:
    glob = "model.vision_tower.encoder.layers.*"
    model = model_of("llava")
    report = st.prune(model, 0.5, include=[glob])
    assert sum(layer.name.startswith("model.vision_tower") for layer in report.layers) == 12
    message = (
        f"include '{glob}' names what calibration text cannot prune (its inputs are not "
        f"seen: no token"
    )
    with pytest.raises(PruneError, match=re.escape(message)):
        st.prune(model_of("llava"), 0.5, method="wanda", calibration=text(), include=[glob])
    report = st.prune(model_of("llava"), 0.5, include=[glob], exclude=["model.language_model.*"])
    assert all(layer.name.startswith("model.vision_tower") for layer in report.layers)


def test_inputs_of_weights_whose_module_is_never_called_are_seen_where_they_are_multiplied() -> (
    None
):
    """Mamba multiplies by dt_proj's weight; the oracle takes the same input from x_proj's
    output."""
    model, ids = model_of("mamba"), text()
    mixer = model.backbone.layers[0].mixer
    rows = []
    hook = mixer.x_proj.register_forward_hook(
        lambda _, args, out: rows.append(out[..., : mixer.time_step_rank])
    )
    with torch.no_grad():
        for sample in ids:
            model(sample[None])
    hook.remove()
    norm = torch.cat([x.reshape(-1, x.shape[-1]) for x in rows]).norm(dim=0)
    scores = (mixer.dt_proj.weight.abs() * norm).detach()
    st.prune(model, dict.fromkeys(_covered(model), 0.5), method="wanda", calibration=ids)
    half = mixer.dt_proj.weight.shape[1] // 2
    smallest = scores.argsort(1)[:, :half]
    assert torch.equal(
        mixer.dt_proj.weight == 0,
        torch.zeros_like(scores, dtype=torch.bool).scatter(1, smallest, True),
    )


def _covered(model: Any) -> list[Any]:
    return [layer.name for layer in scope_of(model, None).cover(module_source(model)).layers]


def test_the_command_prunes_a_multi_modal_folder_and_keeps_the_rest(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    model = model_of("llava")
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    (tmp_path / "text.txt").write_text(words(900))
    options = [
        "--sparsity",
        "0.5",
        "--allocation",
        "uniform",
        "--calibration",
        str(tmp_path / "text.txt"),
    ]
    options += ["--seq-len", "16", "--samples", "4", "--exclude", "*.1.mlp.*", "--quiet"]
    with pytest.raises(SystemExit) as done:
        main(["prune", str(folder), *options, "--out", str(out)])
    assert done.value.code == 0
    after, _ = st.open_language_model(out)
    assert type(after) is type(model)
    changed = {
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, after.state_dict()[key])
    }
    assert len(changed) == 11
    assert all(
        key.startswith("model.language_model.layers") and ".1.mlp." not in key for key in changed
    )
    assert (out / "preprocessor_config.json").exists()
    with pytest.raises(SystemExit) as done:
        main(
            [
                "evaluate",
                str(out),
                "--text",
                str(tmp_path / "text.txt"),
                "--seq-len",
                "16",
                "--quiet",
            ]
        )
    assert done.value.code == 0
