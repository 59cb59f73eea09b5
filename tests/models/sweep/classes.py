"""Every model class in the tables of the auto classes of transformers, built on the meta device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .shrink import shrunk, sub_configs

COMPASS_ROPE = {
    kind: {"rope_type": "default", "rope_theta": 1e4}
    for kind in ("full_attention", "sliding_attention")
}

QWEN4_INDEXER = {
    "indexer_budget": 128,
    "indexer_compress_ratio": 4,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 64,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 4, "context_length": 8},
    "informer": {"prediction_length": 4, "context_length": 8},
    "time_series_transformer": {"prediction_length": 4, "context_length": 8},
    "aya_vision": {"vision_config.num_attention_heads": 16},
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "emu3": {"vocabulary_map": {"<image>": 1}},
    "convnext": {"hidden_sizes": [96, 192, 384, 768]},
    "convnextv2": {"hidden_sizes": [96, 192, 384, 768]},
    "focalnet": {"hidden_sizes": [192, 384, 768, 768]},
    "vitmatte": {"fusion_hidden_sizes": [256, 128, 64, 32]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config.head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "num_hidden_layers": 2,
        "num_dense_layers": 1,
    },
    "qwen4_exp_text": QWEN4_INDEXER,
    "perceiver": {"num_self_attention_heads": 1, "num_cross_attention_heads": 1},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "granite4_vision": {"deepstack_layer_map": [(0, 0), (1, 1)], "downsample_rate": "4/8"},
    "cohere_compass_text": {"rope_parameters": COMPASS_ROPE},
    "cohere_compass": {"text_config.rope_parameters": COMPASS_ROPE},
    "qwen4_exp": {f"text_config.{key}": value for key, value in QWEN4_INDEXER.items()},
    "dbrx": {"attn_config.rope_theta": 1e4},
    "diffusion_gemma": {"text_config.num_experts": 4, "text_config.moe_intermediate_size": 64},
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense"] + ["sparse"] * 3},
    "gemma4_assistant": {"text_config.hidden_size_per_layer_input": 0},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "sapiens2": {
        "head_config.upsample_out_channels": [64, 64],
        "head_config.upsample_kernel_sizes": [4, 4],
        "head_config.conv_out_channels": [64],
        "head_config.conv_kernel_sizes": [1],
    },
}
"""What a default configuration lacks or gets wrong, by model type."""

CLASS_SETTINGS: dict[str, dict[str, Any]] = {
    "BeitForSemanticSegmentation": {"out_indices": [1, 2, 3, 4]},
    "ReformerModelWithLMHead": {"is_decoder": True},
    "T5GemmaEncoderModel": {"is_encoder_decoder": False},
    "HieraForPreTraining": {"decoder_hidden_size": 64, "decoder_depth": 1, "decoder_num_heads": 4},
}

NOT_BUILT: dict[str, str] = {
    "VoxtralRealtimeTextModel": "transformers lists it and does not export it",
    "PPOCRV5ServerDetForObjectDetection": "its default configuration has no head",
    "PPOCRV6MediumDetForObjectDetection": "its default configuration has no head",
    "PPOCRV6MediumDetModel": "its default configuration has no head",
    "Gemma4AssistantForCausalLM": "its default text configuration is refused by its own check",
    "Gemma4UnifiedAssistantForCausalLM": "its default layer types are refused by its own check",
    "Qwen3OmniMoeForConditionalGeneration": "the talker's default configuration lacks a size",
    "PerceptionLMModel": "its default configuration has no vision tower",
    "PerceptionLMForConditionalGeneration": "its default configuration has no vision tower",
    "T5Gemma2Encoder": "its default configuration lacks a dropout rate",
}
"""Classes that no default configuration builds, and why."""

LIBRARIES = ("timm", "natten", "detectron2", "torchaudio")
"""What some classes need; they are swept where it is installed."""


@dataclass(frozen=True)
class Case:
    """One model class with one type of configuration."""

    class_name: str
    model_type: str
    tables: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.class_name}-{self.model_type}"


def cases() -> list[Case]:
    """All of them, in order of their names."""
    import transformers.models.auto.modeling_auto as auto

    found: dict[tuple[str, str], list[str]] = {}
    for table in sorted(dir(auto)):
        if not table.startswith("MODEL") or not table.endswith("_NAMES"):
            continue
        for model_type, names in getattr(auto, table).items():
            for name in names if isinstance(names, list | tuple) else [names]:
                found.setdefault((name, model_type), []).append(table)
    return [Case(*key, tuple(tables)) for key, tables in sorted(found.items())]


def build(case: Case) -> nn.Module:
    """The model on the meta device, few layers and default sizes."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    model_class = getattr(transformers, case.class_name)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        result: nn.Module = model_class(_config(case, model_class))
        return result


def _config(case: Case, model_class: Any) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[case.model_type]()
    wanted = model_class.config_class
    if wanted is not None and not isinstance(config, wanted):
        inner = [part for part in sub_configs(config) if isinstance(part, wanted)]
        config = inner[0] if inner else wanted()
    settings = SETTINGS.get(config.model_type, {}) | CLASS_SETTINGS.get(case.class_name, {})
    shrunk(config)
    for path, value in settings.items():
        owner = config
        *parents, last = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, value)
    return config


def built() -> Iterator[tuple[Case, nn.Module]]:
    """Every class that can be built."""
    for case in cases():
        if case.class_name not in NOT_BUILT:
            yield case, build(case)
