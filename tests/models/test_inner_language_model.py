"""The language model inside of a larger one is found by the layers that globs name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from spectail.errors import SourceError
from spectail.models.live.inner import inner_language_model

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def blip() -> Any:
    return Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=SMALL | {"intermediate_size": 64, "image_size": 32, "patch_size": 8},
            qformer_config=SMALL | {"intermediate_size": 64, "encoder_hidden_size": 32},
            text_config=SMALL
            | {"model_type": "opt", "ffn_dim": 64, "vocab_size": 64, "word_embed_proj_dim": 32},
            num_query_tokens=4,
        )
    )


def test_without_globs_it_is_the_whole_model(blip: Any) -> None:
    assert inner_language_model(blip) is blip


@pytest.mark.parametrize(
    "globs",
    [
        {"include": ["language_model.*"]},
        {"include": ["*language_model*layers.1.*"]},
        {"include": ["*language_model*layers.1.*.weight"]},
        {"exclude": ["vision_model.*", "qformer.*", "query_tokens", "language_projection.*"]},
    ],
)
def test_the_named_layers_choose_the_language_model(blip: Any, globs: dict[str, list[str]]) -> None:
    names = {name.partition(".")[0] for name, _ in blip.named_parameters()}
    if "exclude" in globs:
        kept = [g for g in globs["exclude"] if g.partition(".")[0] in names]
        globs = {"exclude": kept + [f"{n}*" for n in names - {"language_model"} if "norm" in n]}
    assert inner_language_model(blip, **globs) is blip.language_model


def test_a_model_with_one_head_at_the_top_stays_whole() -> None:
    text = {"model_type": "llama", "vocab_size": 64, "intermediate_size": 64} | SMALL
    vision = {"intermediate_size": 64, "image_size": 32, "patch_size": 8} | SMALL
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
    model = LlavaForConditionalGeneration(config)
    assert inner_language_model(model, ["*language_model.layers.*"]) is model
    with pytest.raises(SourceError, match=r"name no language model of this model.* whole model"):
        inner_language_model(model, ["*vision_tower*"])


def test_a_glob_that_matches_nothing_is_named(blip: Any) -> None:
    with pytest.raises(SourceError, match=r"^--include 'decoder\.\*' matches none of the \d+ par"):
        inner_language_model(blip, ["decoder.*"])
    with pytest.raises(SourceError, match=r"^--exclude 'decoder\.\*' matches none .* look like .+"):
        inner_language_model(blip, ["language_model.*"], ["decoder.*"])
    with pytest.raises(SourceError, match=r"name no language model.*language_model"):
        inner_language_model(blip, ["qformer.*"])
