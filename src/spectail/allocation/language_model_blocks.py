"""Which blocks of a multi-modal model belong to its language model, by the names of its layers.

A vision tower, an audio encoder and what connects them sit beside the language model in stacks of
blocks of their own. Files and live models differ in their prefixes, but both call these parts by
the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spectail.models.naming.blocks import unit_of

_LANGUAGE = frozenset(
    {
        "language_model",
        "text_model",
        "text_encoder",
        "text_decoder",
        "language_decoder",
        "language_backbone",
        "llm",
        "lm",
    }
)
"""Names of components that hold the part of a model that processes text."""

_SIGHT = "visual vision image img video vit siglip sam vpm vqmodel vqvae vq pixel"
_SOUND = "audio speech sound acoustic apm whisper mimi codec vocoder talker token2wav code2wav t2u"
_BETWEEN = "projector connector merger resampler perceiver qformer bridge aligner"
_WORDS = {
    **dict.fromkeys(_SIGHT.split(), "the vision tower"),
    **dict.fromkeys(_SOUND.split(), "the audio tower"),
    **dict.fromkeys(_BETWEEN.split(), "the connector"),
    "protein": "the protein encoder",
}
"""Words in the name of a component other than the language model, and what messages call it."""

_GENERATES = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|tok_embeddings|embed_in|lm_head|output|output_layer|embed_out)$"
)
"""Names of token embeddings and output layers, which language models have and other models lack."""


def beside_language_model(names: Sequence[str]) -> dict[str, str]:
    """Return the layers beside the language model of a multi-modal model, each with a reason.

    Empty for models of one kind of input (a language model, a vision transformer, a ResNet), for
    encoders side by side (CLIP), and where no name tells what an encoder encodes (Whisper, TrOCR):
    all blocks take part then.

    >>> beside_language_model(["visual.blocks.0.fc1", "model.layers.0.mlp.up_proj", "lm_head"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'visual.blocks.0.fc1': "in the vision tower: name it with --include 'visual.blocks.*' to prune
    it"}
    """
    stack_of = {name: unit.rpartition(".")[0] for name in names if (unit := unit_of(name))}
    stacks = tuple(dict.fromkeys(stack_of.values()))
    text = _language_stacks(stacks, names)
    if not text:
        return {}
    # By stack and not by layer: all blocks of a stack belong to one component.
    reasons = {stack: _reason(stack) for stack in stacks if stack not in text}
    return {name: reasons[stack] for name, stack in stack_of.items() if stack in reasons}


def _language_stacks(stacks: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the stacks of blocks that process text; empty unless the model is a language model."""
    free = {stack for stack in stacks if not _other(stack)}
    within = {stack for stack in free if not _LANGUAGE.isdisjoint(stack.split("."))}
    # A component says that it is for language: its stacks, and decoders beside it, process text.
    if within:
        if all(_is_encoder(stack) for stack in within):
            return set()
        return within | {stack for stack in free if "decoder" in stack.split(".")}
    # No name speaks of language: the model generates text if it has what only such models have.
    generates = any(_GENERATES.search(name) and not _other(name) for name in names)
    return free if generates else set()


def _other(path: str) -> str:
    """Name the component that a path lies in, by its first known word; empty if it has none."""
    for component in path.split("."):
        # "vision_tower", "audio_encoder", "projectors": a single word of the component is enough.
        for word in component.lower().split("_"):
            if place := _WORDS.get(word) or _WORDS.get(word.removesuffix("s")):
                return place
    return ""


def _is_encoder(stack: str) -> bool:
    """Whether the name of a stack in a text component is that of an encoder, as in CLIP."""
    components = stack.split(".")
    first = next(i for i, component in enumerate(components) if component in _LANGUAGE)
    # Words before the component for text say nothing about it: "encoder.text_model.layers".
    words = {word for component in components[first:] for word in component.split("_")}
    return "encoder" in words and "decoder" not in words


def _reason(stack: str) -> str:
    """Say where the layers of a stack lie, and the glob that lets them take part."""
    other = _other(stack)
    place = f"in {other}" if other else "beside the language model"
    return f"{place}: name it with --include '{stack}.*' to prune it"
