"""allocate as a user meets it: who takes part, what is missing, names and
never positions, and what it says."""

import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spectail as st
from spectail.core.spec import Spec
from spectail.errors import AllocationError
from spectail.results.records import LayerRecord
from tests.allocation.conftest import layer, results, transformer, unmeasured

TARGETS = {"sparsity": 0.5, "bits": 3.5, "lr": 0.1, "weight-decay": 0.1, "freeze": 0.5}


def _left_out(allocation: Any) -> dict[str, Any]:
    return {x.name: x.reason for x in allocation.left_out}


def test_every_target_is_swept() -> None:
    assert set(TARGETS) == set(st.targets.target_names())


@pytest.mark.parametrize("target", TARGETS)
def test_embeddings_head_and_routers_stay_out(target: str) -> None:
    allocation = st.allocate(transformer(2), target=target, budget=TARGETS[target])
    assert list(allocation) == [
        f"model.layers.{b}.{name}" for b in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
    ]
    assert _left_out(allocation) == {
        "model.embed_tokens": "an embedding",
        "model.layers.0.mlp.gate": "a router",
        "model.layers.1.mlp.gate": "a router",
        "lm_head": "the output head",
    }


@pytest.mark.parametrize("target", ["sparsity", "bits"])
def test_layers_in_no_block_stay_out_of_compression(target: str) -> None:
    analysis = results(
        layer("stem.conv", kind="conv"),
        layer("layers.0.a"),
        layer("layers.0.norm"),
        layer("x.lora"),
    )
    allocation = st.allocate(analysis, target=target, budget=TARGETS[target])
    assert set(allocation) == {"layers.0.a"}
    assert _left_out(allocation)["stem.conv"] == "in no block"
    assert _left_out(allocation)["layers.0.norm"] == "a norm"


@pytest.mark.parametrize("target", ["lr", "weight-decay"])
def test_layers_in_no_block_are_trained_by_their_alpha(target: str) -> None:
    analysis = results(
        layer("stem.conv", 3.0, kind="conv"), layer("layers.0.a"), layer("a.lora", kind="lora")
    )
    allocation = st.allocate(analysis, target=target, budget=0.1)
    assert set(allocation) == {"stem.conv", "layers.0.a"}
    assert _left_out(allocation) == {"a.lora": "a LoRA delta"}


def test_include_adds_and_exclude_leaves_out() -> None:
    allocation = st.allocate(
        transformer(2),
        target="sparsity",
        budget=0.5,
        include=["lm_head"],
        exclude=["*.0.*", "*.gate"],
    )
    assert set(allocation) == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "lm_head",
    }
    assert _left_out(allocation)["model.layers.0.mlp.up_proj"] == "excluded"
    assert allocation.table.set_index("name")["unit"]["lm_head"] == "lm_head"


def test_include_all() -> None:
    analysis = results(layer("model.embed_tokens"), layer("fc"), layer("layers.0.a"))
    assert len(st.allocate(analysis, target="sparsity", budget=0.5, include=["*"])) == 3
    assert (
        len(st.allocate(results(layer("layers.0.a")), target="sparsity", budget=0.5, include=["*"]))
        == 1
    )


def test_parts_of_fused_weights_are_matched_by_their_brackets() -> None:
    analysis = results(
        layer("layers.0.experts.down_proj[3]"), layer("layers.0.experts.down_proj[4]")
    )
    allocation = st.allocate(analysis, target="sparsity", budget=0.5, exclude=["*down_proj[3]"])
    assert set(allocation) == {"layers.0.experts.down_proj[4]"}


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        (
            {"include": ["x.*"]},
            r"include 'x\.\*' matches none of the 8 layers; names look like model\.embed_tokens, ",
        ),
        ({"exclude": ["x.*"]}, r"exclude 'x\.\*' matches none of the 8 layers"),
        (
            {"include": ["*q_proj"]},
            r"include '\*q_proj' matches only layers that take part anyway: include adds layers",
        ),
        (
            {"exclude": "lm_head"},
            r"exclude must be a list of globs, not the text 'lm_head': write \['lm_head'\]",
        ),
        (
            {"exclude": ["*"]},
            r"none of the 8 layers takes part: model\.embed_tokens \(excluded\), .*with include",
        ),
    ],
)
def test_globs_that_change_nothing_or_leave_nothing(globs: dict[str, Any], message: str) -> None:
    with pytest.raises(AllocationError, match=message):
        st.allocate(transformer(2), target="sparsity", budget=0.5, **globs)


def test_a_model_without_layers_to_compress_is_told_what_to_do() -> None:
    analysis = results(layer("embed"), layer("classifier"))
    with pytest.raises(
        AllocationError,
        match=r"none of the 2 layers takes part: embed \(an embedding\), .* with include",
    ):
        st.allocate(analysis, target="sparsity", budget=0.5)
    with pytest.raises(
        AllocationError, match="the analysis has no layers, so there is nothing to allocate"
    ):
        st.allocate(results(), target="lr", budget=0.5)


def _with_gaps() -> Any:
    return results(
        layer("layers.0.a", 2.0),
        layer("layers.0.b", 3.0, 8192),
        unmeasured("layers.0.c"),
        layer("layers.1.a", 4.0),
        layer(
            "layers.1.b",
            5.0,
            comparable=False,
            reason="not comparable: too small for the common window of 64",
        ),
        unmeasured("layers.2.a", "failed", "weights hold NaN"),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_layers_without_a_comparable_alpha_are_an_error_that_names_them(target: str) -> None:
    message = (
        r"3 of 6 layers have no comparable alpha: "
        r"layers\.0\.c \(skipped: short side 8 is below 16\), layers\.1\.b \(not "
        r"comparable: .* of 64\), layers\.2\.a \(failed: weights hold NaN\); exclude "
        r"them, or set missing to mean .* or leave"
    )
    with pytest.raises(AllocationError, match=message):
        st.allocate(_with_gaps(), target=target, budget=TARGETS[target])


def test_a_missing_alpha_takes_the_mean_of_its_block_else_of_all() -> None:
    allocation = st.allocate(_with_gaps(), target="lr", budget=1.0, map="sqrt", missing="mean")
    alphas = dict(zip(allocation.table["name"], allocation.table["alpha"], strict=True))
    assert alphas["layers.0.c"] == 2.5
    assert alphas["layers.1.b"] == 4.0
    assert alphas["layers.2.a"] == 3.0
    assert allocation.notes[0].startswith(
        "3 layers take the mean alpha of their block, else of all: layers.0.c (skipped"
    )


def test_a_missing_alpha_does_not_move_its_block() -> None:
    filled = st.allocate(
        _with_gaps(), target="sparsity", budget=0.5, missing="mean", exclude=["*.2.*"]
    )
    assert filled["layers.0.c"] == filled["layers.0.a"]
    assert set(filled.table["alpha"]) == {2.5, 4.0}
    assert abs(filled.realised - 0.5) < 1e-9


def test_layers_without_an_alpha_may_be_left() -> None:
    allocation = st.allocate(_with_gaps(), target="sparsity", budget=0.5, missing="leave")
    assert set(allocation) == {"layers.0.a", "layers.0.b", "layers.1.a"}
    assert _left_out(allocation)["layers.2.a"] == "no alpha: failed: weights hold NaN"
    assert abs(allocation.realised - 0.5) < 1e-9


@pytest.mark.parametrize("missing", ["mean", "leave"])
def test_no_alpha_at_all(missing: str) -> None:
    analysis = results(*(unmeasured(f"layers.{i}.a") for i in range(12)))
    with pytest.raises(
        AllocationError, match=r"not one of the 12 layers has a comparable alpha: .* and 4 more"
    ):
        st.allocate(analysis, target="sparsity", budget=0.5, missing=missing)


@pytest.mark.parametrize("level", ["block", "layer"])
@pytest.mark.parametrize("target", TARGETS)
def test_values_go_by_name_whatever_the_order(target: str, level: str) -> None:
    analysis = transformer(5)
    shuffled = [
        analysis.layers[i] for i in np.random.default_rng(0).permutation(len(analysis.layers))
    ]
    first, second = (
        st.allocate(x, target=target, budget=TARGETS[target], level=level)
        for x in (analysis, replace(analysis, layers=tuple(shuffled)))
    )
    assert list(first) != list(second)
    assert dict(first) == pytest.approx(dict(second), rel=1e-14)


def test_blocks_of_an_encoder_and_a_decoder_are_different_units() -> None:
    layers = [
        layer(f"{stack}.layers.{b}.fc1", 2.0 + b)
        for stack in ("encoder", "decoder")
        for b in (0, 1)
    ]
    allocation = st.allocate(results(*layers), target="sparsity", budget=0.5)
    assert allocation.table["unit"].nunique() == 4


def test_mixed_windows_are_flagged() -> None:
    layers = [
        layer(f"layers.{i}.a", 2.0 + i, window_rows=64 * (1 + i // 2), window_cols=64)
        for i in range(4)
    ]
    analysis = results(*layers, window=None, spec=Spec(window="whole"))
    assert st.allocate(analysis, target="sparsity", budget=0.5).notes == (
        "Alphas come from windows of 2 shapes (64 x 64 (2), 64 x 128 (2)): "
        "part of their differences is shape. One common window removes it.",
    )
    turned = [replace(x, window_rows=x.window_cols, window_cols=x.window_rows) for x in layers[2:]]
    assert st.allocate(results(*layers[2:], *turned[:0]), target="sparsity", budget=0.5).notes == ()
    assert st.allocate(results(layers[2], turned[1]), target="sparsity", budget=0.5).notes == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "size"},
            r"target must be one of sparsity, bits, lr, weight-decay, freeze, not 'size'",
        ),
        ({"target": 3}, r"target must be one of spectail\.targets or its name, not 3"),
        ({"level": "model"}, r"level must be block or layer, not 'model'"),
        ({"missing": "zero"}, r"missing must be one of error, mean, leave, not 'zero'"),
        ({"map": "cubic"}, r"map must be one of linear:EPS, .*, not 'cubic'"),
        ({"budget": "half"}, r"the budget must be a number, not 'half'"),
        (
            {"target": "bits", "map": "sqrt"},
            r"target bits takes choices, error, gamma, level, sensitivities, but no map",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AllocationError, match=message):
        st.allocate(transformer(), **{"target": "sparsity", "budget": 0.5, **options})


def test_what_is_no_analysis() -> None:
    with pytest.raises(
        AllocationError, match=r"expected an analysis, as st\.analyze or .* gives it, not 'run'"
    ):
        st.allocate("run", target="sparsity", budget=0.5)  # type: ignore[arg-type]


def test_the_summary_says_what_was_reached_and_who_was_left_out() -> None:
    text = st.allocate(transformer(4), target="sparsity", budget=0.9, map="linear:0.6").summary()
    assert (
        text.splitlines()[0]
        == "sparsity 0.9 (map linear:0.4:1.6, level block, bounds 0 to 0.998, by alpha)"
    )
    assert "8 layers in 4 units, " in text
    assert "to 0.998, mean by number of weights 0.9" in text
    assert (
        "left out, a router: model.layers.0.mlp.gate, model.layers.1.mlp.gate, "
        "model.layers.2.mlp.gate and 1 more"
    ) in text
    assert "note: 2 of 4 units would lie outside 0 to 0.998" in text


@pytest.mark.parametrize("target", TARGETS)
def test_saved_and_loaded_it_is_the_same(target: str, tmp_path: Path) -> None:
    allocation = st.allocate(transformer(), target=target, budget=TARGETS[target])
    again = st.Allocation.load(allocation.save(tmp_path / "new" / "a.json"))
    assert again == allocation
    assert again.to_dict() == allocation.to_dict()
    assert again.settings == allocation.settings
    assert (again.left_out, again.deviations, again.spec) == (
        allocation.left_out,
        allocation.deviations,
        Spec().to_dict(),
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert pickle.loads(pickle.dumps(allocation)) == allocation


def test_an_allocation_is_a_mapping_that_nothing_changes() -> None:
    allocation = st.allocate(transformer(), target="sparsity", budget=0.5)
    assert (
        allocation["model.layers.0.mlp.up_proj"] == dict(allocation)["model.layers.0.mlp.up_proj"]
    )
    assert "lm_head" not in allocation
    assert list(allocation.table.columns) == ["name", "value", "unit", "alpha", "numel", "format"]
    assert "model.layers.0.mlp.up_proj" in allocation._repr_html_()
    with pytest.raises(AttributeError):
        allocation.budget = 0.6  # type: ignore[misc]
    with pytest.raises(TypeError):
        allocation["x"] = 0.5  # type: ignore[index]


def test_an_existing_allocation_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    allocation = st.allocate(transformer(), target="sparsity", budget=0.5)
    path = allocation.save(tmp_path / "a.json")
    allocation.save(path)
    for name, content in (
        ("weights.safetensors", b"\x00\xff"),
        ("analysis.json", b'{"run": 1}'),
        ("list.json", b"[1]"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            AllocationError,
            match=rf"{name} exists and is no allocation, so it stays; give another name",
        ):
            allocation.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def _stored(**changes: Any) -> dict[str, Any]:
    return {**st.allocate(transformer(), target="sparsity", budget=0.5).to_dict(), **changes}


SHARE = {"name": "a", "value": 0.5, "unit": "a", "alpha": 2.0, "numel": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "cannot be used: it is no JSON: Expecting value"),
        ("[]", "it is not an allocation that this version can read"),
        ('{"run": {}}', "it is not an allocation"),
        (json.dumps(_stored(extra=1)), "it is not an allocation that this version can read"),
        (json.dumps(_stored(shares=[])), "it has no layers"),
        (json.dumps(_stored(shares=[SHARE, SHARE])), "it names a layer twice"),
        (
            json.dumps(_stored(shares=[{**SHARE, "value": math.nan}])),
            "cannot be used: it is no JSON: NaN is not a number of JSON",
        ),
        (
            json.dumps(_stored(shares=[{**SHARE, "value": -1}])),
            "the value of a must be a finite number of at least 0, not -1",
        ),
        (
            json.dumps(_stored(shares=[{**SHARE, "value": "x"}])),
            "shares: entry 0: value: expected float, got str",
        ),
    ],
)
def test_a_file_that_is_no_allocation(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(AllocationError, match=message):
        st.Allocation.load(tmp_path / "a.json")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        AllocationError,
        match=r"no allocation at .*none\.json: expected a file that spectail allocate",
    ):
        st.Allocation.load(tmp_path / "none.json")


def test_importing_a_module_of_the_package_first_does_not_hide_the_function() -> None:
    code = (
        "import sys, spectail.allocation.maps, spectail; assert callable(spectail.allocate); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _depthwise(name: str, channels: int = 64) -> LayerRecord:
    return LayerRecord(
        name=name,
        block=0,
        kind="conv",
        rows=channels,
        cols=1,
        numel=4 * channels,
        n_matrices=4,
        status="skipped",
    )


@pytest.mark.parametrize("target", ["sparsity", "bits"])
def test_depth_wise_convolutions_and_complex_weights_are_not_compressed(target: str) -> None:
    short = layer("layers.0.mixer.ssm_conv1d", rows=64, cols=4)
    analysis = results(
        _depthwise("layers.0.mixer.conv1d"),
        short,
        layer("layers.0.a"),
        layer("layers.0.fno", kind="spectral"),
    )
    allocation = st.allocate(analysis, target=target, budget=TARGETS[target])
    assert set(allocation) == {"layers.0.a"}
    reasons = {name: reason[:26] for name, reason in _left_out(allocation).items()}
    assert reasons == {
        "layers.0.mixer.conv1d": "a depth-wise convolution o",
        "layers.0.mixer.ssm_conv1d": "a depth-wise convolution o",
        "layers.0.fno": "complex weights of a Fouri",
    }


def test_layers_that_are_trained_are_not_left_out_for_their_shape_or_their_tower() -> None:
    analysis = results(
        layer("visual.blocks.0.fc1"),
        layer("model.layers.0.a"),
        layer("lm_head"),
        layer("model.layers.0.f", kind="spectral"),
    )
    allocation = st.allocate(analysis, target="lr", budget=0.1)
    assert set(allocation) == {"visual.blocks.0.fc1", "model.layers.0.a", "model.layers.0.f"}


TOWERS = {
    "llava, live": (
        ["model.language_model.layers"],
        ["model.vision_tower.encoder.layers"],
        ["lm_head"],
    ),
    "llava, file": (
        ["language_model.model.layers"],
        ["vision_tower.vision_model.encoder.layers"],
        [],
    ),
    "first llava": (
        ["model.layers"],
        ["model.vision_tower.vision_tower.vision_model.encoder.layers"],
        ["lm_head"],
    ),
    "qwen2-vl, tied": (["model.layers"], ["visual.blocks"], ["model.embed_tokens"]),
    "internvl": (["language_model.model.layers"], ["vision_model.encoder.layers"], []),
    "minicpm-v": (
        ["llm.model.layers"],
        ["vpm.encoder.layers", "apm.layers", "resampler.layers"],
        [],
    ),
    "phi-4": (
        ["model.layers"],
        ["model.embed_tokens_extend.image_embed.img_processor.encoder.layers"],
        ["lm_head"],
    ),
    "qwen2.5-omni": (
        ["thinker.model.layers"],
        ["thinker.visual.blocks", "talker.model.layers"],
        ["thinker.lm_head"],
    ),
    "granite speech": (
        ["language_model.model.layers"],
        ["encoder.layers", "projector.qformer.encoder.layer"],
        [],
    ),
    "t5gemma 2": (
        ["model.encoder.text_model.layers", "model.decoder.layers"],
        ["model.encoder.vision_tower.encoder.layers"],
        [],
    ),
    "blip": (["text_decoder.bert.encoder.layer"], ["vision_model.encoder.layers"], []),
    "clip": (
        ["text_model.encoder.layers", "vision_model.encoder.layers"],
        [],
        ["text_model.token_embedding"],
    ),
    "first clip": (
        ["transformer.resblocks", "visual.transformer.resblocks"],
        [],
        ["token_embedding"],
    ),
    "sam 3": (
        ["text_encoder.text_model.encoder.layers", "vision_encoder.layers", "detr_decoder.layers"],
        [],
        [],
    ),
    "visual bert": (["visual_bert.encoder.layer"], [], ["visual_bert.embeddings.word_embeddings"]),
    "siglip": (["vision_model.encoder.layers"], [], []),
    "resnet": (["layer1", "layer2"], [], ["fc"]),
    "whisper": (
        ["model.encoder.layers", "model.decoder.layers"],
        [],
        ["model.decoder.embed_tokens"],
    ),
    "llama": (["model.layers"], [], ["lm_head"]),
}
"""Stacks of blocks that take part, stacks that stay dense, and layers outside of blocks."""


@pytest.mark.parametrize("case", TOWERS)
def test_the_language_model_of_a_multi_modal_model_takes_part_and_its_towers_do_not(
    case: str,
) -> None:
    text, towers, outside = TOWERS[case]
    names = [f"{stack}.{i}.mlp.up" for stack in (*text, *towers) for i in (0, 1)]
    allocation = st.allocate(
        results(*map(layer, (*names, *outside))), target="sparsity", budget=0.5
    )
    assert set(allocation) == {name for name in names if name.rsplit(".", 3)[0] in text}
    for stack in towers:
        reason = _left_out(allocation)[f"{stack}.0.mlp.up"]
        assert reason.endswith(f": name it with --include '{stack}.*' to prune it")
        named = st.allocate(
            results(*map(layer, (*names, *outside))),
            target="sparsity",
            budget=0.5,
            include=[f"{stack}.*"],
        )
        assert f"{stack}.1.mlp.up" in named
