"""Values of configurations that cannot be right are refused, and those not used are ignored."""

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spectail.errors import SourceError
from spectail.models.formats.settings import check_adapter_settings, check_model_settings
from spectail.models.open import open_source
from tests.fuzz import builders

HUGE = 10**400
NO_COUNT = [-2, 0, HUGE, 1.5, True, "4", [2, -1], [2, "x"], {"a": 1}]
NO_COUNT_OR_0 = [x for x in NO_COUNT if x != 0 or isinstance(x, bool)]
NO_FACTOR = [HUGE, "8", True, [1], float("nan"), float("inf")]
NO_FLAG = [1, "true", [True], 0.0]
NO_TEXT = [3, ["phi3"], {"a": 1}, True]
NO_OBJECT = ["gptq", [1], 4, True]
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}

CONFIG: dict[str, list[Any]] = {
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "num_heads",
            "num_key_value_heads",
            "num_kv_heads",
            "multi_query_group_num",
            "hidden_size",
            "n_embd",
            "d_model",
            "text_config.num_attention_heads",
            "vision_config.num_heads",
            "vision_config.encoder.hidden_size",
        ),
        NO_COUNT,
    ),
    **dict.fromkeys(
        (
            "head_dim",
            "num_experts",
            "num_local_experts",
            "attn_config.kv_n_heads",
            "ffn_config.moe_num_experts",
        ),
        NO_COUNT_OR_0,
    ),
    "linear_num_key_heads": [*NO_COUNT_OR_0, [2]],
    "quantization_bit": [*NO_COUNT_OR_0, [4]],
    "multi_query": NO_FLAG,
    "new_decoder_architecture": NO_FLAG,
    "tie_word_embeddings": NO_FLAG,
    "model_type": NO_TEXT,
    "architectures": [3, [3], {"a": 1}],
    "attn_config": NO_OBJECT,
    "text_config": NO_OBJECT,
    "quantization_config": NO_OBJECT,
    "quantization_config.quant_method": NO_TEXT,
    "quantization_config.bits": [-1, 0, 3.7, HUGE, "4", True, [4], 65],
    "quantization.bits": [-1, 0, 3.7, HUGE],
    "text_config.quantization_config.bits": [-1, 0],
    "quantization_config.group_size": [-2, HUGE, 1.5, True, "128", [128]],
    "quantization_config.weight_block_size": [
        *([0, 128], [128], [-1, -1], ["128", None], 128, "x"),
        *("1x" + "9" * 5000, "0x128", "128x0", "0x0"),
    ],
    "quantization_config.config_groups.group_0.weights.block_structure": [[0, 128], "1x0", 128],
    "quantization_config.checkpoint_format": NO_TEXT,
}
ADAPTER: dict[str, list[Any]] = {
    "r": [*NO_COUNT_OR_0, [4]],
    "lora_alpha": NO_FACTOR,
    "alpha": NO_FACTOR,
    "use_rslora": NO_FLAG,
    "fan_in_fan_out": NO_FLAG,
    "peft_type": NO_TEXT,
    "base_model_name_or_path": NO_TEXT,
    "rank_pattern": [["q_proj"], {"q_proj": -1}, {"q_proj": 0}, {"q_proj": HUGE}, {"q_proj": "4"}],
    "alpha_pattern": ["q_proj", {"q_proj": "x"}, {"q_proj": HUGE}, {"q_proj": None}],
    "target_parameters": ["experts", [3]],
    "lora_parameters": NO_OBJECT,
    "lora_parameters.rank": [-1, 0, HUGE, 1.5],
    "lora_parameters.scale": [HUGE, "20", True],
    "randlora_alpha": [HUGE, "x"],
    "topk": [-1, 0, 1.5],
    "random_loc_seed": [-1, 1.5, "x", 2**63],
}


def _nested(key: str, value: Any) -> dict[str, Any]:
    """A JSON object with a value under keys that are separated by dots."""
    for part in reversed(key.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found


def _model(folder: Path, config: Any, name: str = "config.json") -> Path:
    save_file({"layers.0.attn.qkv_proj.weight": torch.randn(48, 16)}, folder / "model.safetensors")
    (folder / name).write_text(json.dumps(config))
    return folder


def _adapter(folder: Path, config: Any) -> Path:
    return builders.adapter(folder, builders.LORA, config)


CASES = [
    *[(_model, "config.json", key, value) for key, values in CONFIG.items() for value in values],
    *[
        (_adapter, "adapter_config.json", key, value)
        for key, values in ADAPTER.items()
        for value in values
    ],
]


@pytest.mark.parametrize(
    ("write", "name", "key", "value"), CASES, ids=[f"{c[2]}={str(c[3])[:20]}" for c in CASES]
)
def test_nonsense_is_one_line_that_names_file_key_and_value(
    tmp_path: Path, write: Callable[[Path, Any], Path], name: str, key: str, value: Any
) -> None:
    write(tmp_path, _nested(key, value))
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path)
    text = str(caught.value)
    assert str(tmp_path / name) in text
    assert "\n" not in text
    assert len(text) < 400
    if isinstance(value, float) and not math.isfinite(value):
        return  # refused with the whole file, which is no JSON
    assert f"{key} must be " in text
    assert f"not {repr(value)[:30]}" in text


@pytest.mark.parametrize(
    ("name", "config", "key"),
    [
        ("hf_quant_config.json", {"quantization": {"bits": -1}}, "quantization.bits"),
        ("hf_quant_config.json", {"quantization": [1]}, "quantization"),
        ("quantize_config.json", {"bits": 0}, "bits"),
        ("quant_config.json", {"group_size": -2}, "group_size"),
    ],
)
def test_quantisers_own_files_are_checked(tmp_path: Path, name: str, config: Any, key: str) -> None:
    _model(tmp_path, config, name)
    with pytest.raises(SourceError, match=rf"{name}: {re.escape(key)} must be "):
        open_source(tmp_path)


ODD = {
    "num_attention_heads": None,
    "num_key_value_heads": [4, 0, None],
    "head_dim": 0,
    "num_experts": 0,
    "rope_scaling": {"factor": float("inf")},
    "time_step_limit": [0.0, float("inf")],
    "sliding_window": -1,
    "vocab_size": -5,
    "max_position_embeddings": "many",
    "rope_config": {"num_heads": -1},
    "vision_config": None,
    "audio_config": "a path",
    "quantization": "int8",
    "text_config": {"hidden_size": [64, 128], "torch_dtype": 3},
    "architectures": None,
}
"""Odd values that files of real models hold, or that nothing uses."""


def test_what_is_not_used_is_not_checked(tmp_path: Path) -> None:
    assert open_source(_model(tmp_path, ODD)).layers


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "exl2", "bits": 3.7},
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "damp_percent": "x"},
        {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": None},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": 8}}},
        },
        {"group_size": 64, "bits": 4, "mode": "affine", "layers.0": False},
        {"quant_method": "bitsandbytes", "bits": None, "load_in_4bit": True},
        None,
    ],
    ids=str,
)
def test_real_settings_of_quantisers_pass(tmp_path: Path, said: Any) -> None:
    assert open_source(_model(tmp_path, {"quantization_config": said})).layers


@pytest.mark.parametrize(
    "config",
    [
        {"r": None, "lora_alpha": 16.5, "rank_pattern": {}, "alpha_pattern": None},
        {"r": 0, "peft_type": "OFT", "lora_dropout": "x", "task_type": 3},
        {"peft_type": "ADALORA", "rank_pattern": {"q_proj": [True, False]}, "init_r": 12},
        {"lora_parameters": {"rank": 4, "scale": 20.0, "dropout": "x"}, "num_layers": -1},
    ],
    ids=str,
)
def test_real_settings_of_adapters_pass(tmp_path: Path, config: Any) -> None:
    assert open_source(_adapter(tmp_path, config)).layers


def test_a_whole_model_does_not_use_the_adapter_beside_it(tmp_path: Path) -> None:
    _model(tmp_path, {"r": -1}, "adapter_config.json")
    assert open_source(tmp_path).layers


def _entry(key: str, code: str, kind: int, value: Any) -> bytes:
    return builders.text(key) + struct.pack(f"<I{code}", kind, value)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (_entry("llama.attention.head_count", "i", 5, -2), "must be a whole number .*, not -2"),
        (_entry("llama.attention.head_count", "f", 6, 1.5), "must be a whole number .*, not 1.5"),
        (_entry("llama.attention.head_count", "?", 7, True), "must be a whole number .*, not True"),
        (_entry("llama.attention.head_count_kv", "I", 4, 2**31), "not 2147483648"),
        (
            builders.text("llama.attention.head_count_kv") + struct.pack("<IIQii", 9, 5, 2, 4, -4),
            r"not \[4, -4\]",
        ),
        (
            builders.text("llama.attention.head_count") + struct.pack("<I", 8) + builders.text("4"),
            "not '4'",
        ),
        (_entry("adapter.lora.alpha", "f", 6, float("nan")), "must be a number .*, not nan"),
        (_entry("general.type", "I", 4, 1), "must be a text, not 1"),
    ],
)
def test_nonsense_in_a_gguf_header_is_refused(tmp_path: Path, entry: bytes, text: str) -> None:
    content = builders.gguf([("blk.0.attn_q.weight", (16, 16), 0, 0)], bytes(1024), entry, 2)
    builders.put(tmp_path, "model.gguf", content)
    with pytest.raises(SourceError, match=text) as caught:
        open_source(tmp_path / "model.gguf")
    assert "model.gguf: " in str(caught.value)


@pytest.mark.slow
def test_all_configurations_of_transformers_and_peft_pass() -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    checked = 0
    for kind in transformers.CONFIG_MAPPING.values():
        try:
            text = kind().to_json_string(use_diff=False)
        except Exception:  # noqa: BLE001 - some have no defaults
            continue
        check_model_settings(Path(kind.__name__), json.loads(text))
        checked += 1
    assert checked > 200
    for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.values():
        try:
            stated = kind().to_dict()
        except Exception:  # noqa: BLE001 - as above
            continue
        check_adapter_settings(Path(kind.__name__), json.loads(json.dumps(stated, default=str)))
