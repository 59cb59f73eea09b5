"""How programs name the pieces of adapters, mapped onto targets, forms and roles. No torch.

- peft writes ``<target>.lora_A.<adapter>.weight``.
- kohya's scripts and LyCORIS write ``lora_unet_<target>.lora_down.weight``.
- diffusers used to write ``<target>.lora.down.weight`` and ``processor.to_q_lora.down.weight``.
- MLX and torchtune write ``<target>.lora_a``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PIECES: dict[str, tuple[str, str]] = {
    "lora_A": ("lora", "down"),
    "lora_B": ("lora", "up"),
    "lora_E": ("lora", "singular"),
    "lora_down": ("lora", "down"),
    "lora_up": ("lora", "up"),
    "lora_mid": ("lora", "mid"),
    "lora_embedding_A": ("lora embedding", "down"),
    "lora_embedding_B": ("lora embedding", "up"),
    "lora_a": ("lora lower", "a"),
    "lora_b": ("lora lower", "b"),
    "lokr_w1": ("lokr", "w1"),
    "lokr_w2": ("lokr", "w2"),
    "lokr_w1_a": ("lokr", "w1_a"),
    "lokr_w1_b": ("lokr", "w1_b"),
    "lokr_w2_a": ("lokr", "w2_a"),
    "lokr_w2_b": ("lokr", "w2_b"),
    "lokr_t2": ("lokr", "t2"),
    "hada_w1_a": ("loha", "w1_a"),
    "hada_w1_b": ("loha", "w1_b"),
    "hada_w2_a": ("loha", "w2_a"),
    "hada_w2_b": ("loha", "w2_b"),
    "hada_t1": ("loha", "t1"),
    "hada_t2": ("loha", "t2"),
    "vera_A": ("vera", "A"),
    "vera_B": ("vera", "B"),
    "vera_lambda_b": ("vera", "b"),
    "vera_lambda_d": ("vera", "d"),
    "randlora_A": ("randlora", "A"),
    "randlora_B": ("randlora", "B"),
    "randlora_lambda": ("randlora", "lambda"),
    "randlora_gamma": ("randlora", "gamma"),
    "vblora_logits_A": ("vblora", "logits_A"),
    "vblora_logits_B": ("vblora", "logits_B"),
    "vblora_vector_bank": ("vblora", "bank"),
    "fourierft_spectrum": ("fourierft", "spectrum"),
    "hra_u": ("hra", "u"),
    "oft_R": ("oft", "R"),
    "hira_A": ("hira", "down"),
    "hira_B": ("hira", "up"),
    "delora_A": ("delora", "down"),
    "delora_B": ("delora", "up"),
    "delora_lambda": ("delora", "lambda"),
    "delora_w_norm": ("delora", "w_norm"),
}
"""Form and role of each piece. ``lora lower`` and ``lora embedding`` are LoRA in other
orientations."""

_BESIDE = {
    "alpha": "alpha",
    "lora_magnitude_vector": "magnitude",
    "dora_scale": "magnitude",
    "magnitude": "magnitude",
    "m": "magnitude",
}
"""Names that are pieces of an adapter only if its factors lie beside them."""

VECTORS = frozenset({"ia3_l", "beft_bias"})
"""Pieces that scale or shift the outputs of a layer: vectors, whatever shape they are stored in."""

_UNKNOWN: dict[str, tuple[str, ...]] = {
    "AdaMSS": ("adamss_A", "adamss_B", "adamss_newB"),
    "BOFT": ("boft_R", "boft_s"),
    "Bone": ("bone_block",),
    "C3A": ("c3a_kernel",),
    "Cartridge": ("cartridge_keys", "cartridge_values"),
    "DEFT": ("deft_P", "deft_R"),
    "FRoD": (
        "frod_U",
        "frod_V",
        "frod_lambda_l",
        "frod_lambda_s_values",
        "frod_s_indices",
        "frod_s_size",
    ),
    "GLoRA": ("glora_A", "glora_B", "glora_C", "glora_D", "glora_E"),
    "GraLoRA": ("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"),
    "HiRA": ("hira_embedding_A", "hira_embedding_B"),
    "Lily": ("lily_A", "lily_B", "lily_router"),
    "MiSS": ("miss_block",),
    "OFT": ("oft_embedding_R", "oft_blocks", "oft_diag"),
    "OSF": ("osf_svd_params",),
    "PEANuT": ("peanut_A", "peanut_B", "peanut_encoders", "peanut_decoders"),
    "Poly": ("poly_lora_A", "poly_lora_B", "poly_router"),
    "PSOFT": ("psoft_R", "psoft_alpha", "psoft_beta"),
    "PVeRA": ("pvera_A", "pvera_B", "pvera_lambda_b", "pvera_lambda_d"),
    "RoAd": ("road_theta", "road_alpha"),
    "SHiRA": ("shira_weight", "shira_indices"),
    "super tuning": (
        "supertuning_values",
        "supertuning_indices",
        "supertuning_lora_A",
        "supertuning_lora_B",
    ),
    "TinyLoRA": ("tinylora_v", "tinylora_A", "tinylora_B", "tinylora_P"),
    "trainable tokens": ("trainable_tokens_delta",),
    "UniLoRA": (
        "unilora_theta_d",
        "unilora_indices_A",
        "unilora_indices_B",
        "unilora_scales_A",
        "unilora_scales_B",
    ),
    "VB-LoRA (only its best vectors)": tuple(
        f"vblora_logits_{side}_topk_{what}" for side in "AB" for what in ("indices", "weights")
    ),
    "WaveFT": ("waveft_spectrum",),
}
"""Forms whose change of the weight is not computed from a file: what users call them, and their
pieces."""

_FORM_OF = {piece: form for form, pieces in _UNKNOWN.items() for piece in pieces}
"""Piece of an uncomputed form -> name of the form."""
_KNOWN_NAME = re.compile(
    r"^(?:(?P<target>.*)\.)?(?P<piece>"
    + "|".join(sorted(_PIECES, key=len, reverse=True))
    + r")(?:\.(?P<rest>.+))?$"
)
"""Names of pieces of computed forms."""
_BESIDE_NAME = re.compile(
    rf"^(?:(?P<target>.*)\.)?(?P<piece>{'|'.join(_BESIDE)})(?:\.(?P<rest>.+))?$"
)
"""Names of pieces that go with several forms."""
_UNKNOWN_NAME = re.compile(
    r"^(?:(?P<target>.*?)\.)?(?P<piece>"
    + "|".join(sorted(_FORM_OF, key=len, reverse=True))
    + r")(?:\.(?P<rest>.+))?$"
)
"""Names of pieces of forms that are not computed."""
_KOHYA = re.compile(
    r"^(?P<target>lora_(?:unet|te\d*|transformer|prior_unet)_\w+|lycoris_\w+"
    r"|diffusion_model\.[\w.]+)\.(?P<piece>\w+)$"
)
"""Names in the style of kohya's scripts, of LyCORIS and of ComfyUI."""
_PROMPTS = re.compile(
    r"(?:^|\.)(?:prompt_embeddings|prefix_task_\w+|adaption_prompt)(?:\.\w+)?$"
    # Not the prompt_encoder of SAM, whose convolutions and embeddings are weights.
    r"|^prompt_encoder\.[^.]+\.(?:embedding|transform|lstm_head|mlp_head)\."
)
"""Names of learned prompts, which are inputs of a model."""

_RESPELLED: tuple[tuple[re.Pattern[str], str], ...] = (
    # XLabs' adapters of Flux: the first pair belongs to the image stream, the second to the text
    # stream.
    (re.compile(r"\.processor\.(qkv|proj)_lora1\.(down|up)(?=\.|$)"), r".img_attn.\1.lora_\2"),
    (re.compile(r"\.processor\.(qkv|proj)_lora2\.(down|up)(?=\.|$)"), r".txt_attn.\1.lora_\2"),
    # diffusers before peft. Text encoders come first: their projections have other names than those
    # of a UNet.
    (re.compile(r"(self_attn)\.to_([qkv])_lora\.(down|up|alpha)(?=\.|$)"), r"\1.\2_proj.lora_\3"),
    (re.compile(r"(self_attn)\.to_out_lora\.(down|up|alpha)(?=\.|$)"), r"\1.out_proj.lora_\2"),
    (re.compile(r"(?:\.processor)?\.to_out_lora\.(down|up|alpha)(?=\.|$)"), r".to_out.0.lora_\1"),
    (re.compile(r"(?:\.processor)?\.(\w+)_lora\.(down|up|alpha)(?=\.|$)"), r".\1.lora_\2"),
    (
        re.compile(r"\.(?:lora|lora_linear_layer|lora_conv_layer)\.(down|up|mid|alpha)(?=\.|$)"),
        r".lora_\1",
    ),
    (re.compile(r"\.lora_alpha$"), ".alpha"),
    # llama.cpp's adapters, with factors in peft's orientation.
    (re.compile(r"\.weight\.lora_a$"), ".lora_A"),
    (re.compile(r"\.weight\.lora_b$"), ".lora_B"),
)
"""Older spellings, each with its replacement in the style of peft. All are tried in this order."""


@dataclass(frozen=True)
class Piece:
    """What the name of a tensor says about the adapter that it belongs to."""

    target: str
    """Name of the weight that the adapter changes, or of its module."""
    adapter: str
    """Name of the adapter; empty if it has none."""
    form: str | None
    """Key of ``forms.FORMS``, ``lora lower`` for factors of either orientation, ``prompts`` or
    ``unknown``; None for pieces that go with any form."""
    role: str
    """Role of the piece in the form."""
    unknown: str = ""
    """Name of a form whose change is not computed, else empty."""


def read_name(name: str) -> Piece | None:
    """Read the name of a tensor; None if it is no piece of an adapter.

    >>> read_name("layers.0.q_proj.lora_A.default.weight")
    Piece(target='layers.0.q_proj', adapter='default', form='lora', role='down', unknown='')
    >>> read_name("unet.attn1.processor.to_q_lora.up.weight").target
    'unet.attn1.to_q'
    """
    # Most names are peft's already and pass unchanged.
    for pattern, replacement in _RESPELLED:
        name = pattern.sub(replacement, name)
    if match := _KNOWN_NAME.match(name):
        adapter = _adapter(match["rest"])
        # A bias of a factor is no part of the change of the weight.
        if adapter != "bias" and not adapter.endswith(".bias"):
            return Piece(match["target"] or "", adapter, *_PIECES[match["piece"]])
        return None
    if match := _BESIDE_NAME.match(name):
        return Piece(match["target"] or "", _adapter(match["rest"]), None, _BESIDE[match["piece"]])
    if _PROMPTS.search(name):
        return Piece(name, "", "prompts", name)
    if match := _UNKNOWN_NAME.match(name):
        target = (match["target"] or "").removesuffix(".token_adapter")
        return Piece(target, "", "unknown", name, _FORM_OF[match["piece"]])
    return _lycoris(name)


_STRAY = re.compile(r"^(?:(?P<target>.*)\.)?(?P<piece>\w*lora_\w+)(?:\..+)?$", re.IGNORECASE)
"""A piece of LoRA, known or not."""


def read_stray(name: str) -> tuple[str, str] | None:
    """Read target and piece of a tensor that is named like a piece of LoRA but is not a known one.

    >>> read_stray("layers.0.q_proj.default_lora_latent_mapping.weight")
    ('layers.0.q_proj', 'default_lora_latent_mapping')
    >>> read_stray("layers.0.q_proj.lora_B.bias")
    """
    match = _STRAY.match(name)
    if match is None or match["piece"] in _PIECES or read_name(name) is not None:
        return None
    return match["target"] or "", match["piece"]


def is_piece(name: str) -> bool:
    """Whether a name is that of a piece that only adapters have."""
    piece = read_name(name)
    return piece is not None and piece.form is not None


def _lycoris(name: str) -> Piece | None:
    """Read what LyCORIS stores besides factors: a full difference, or a form that is not known."""
    # Differences of biases and norms are vectors, which are counted as such.
    match = _KOHYA.match(name.removesuffix(".weight"))
    if match is None or match["piece"] in {"diff_b", "w_norm", "b_norm", "bias"}:
        return None
    if match["piece"] == "diff":
        return Piece(match["target"], "", "diff", "diff")
    # In ComfyUI's style, other names below this prefix are those of ordinary weights.
    if match["target"].startswith("diffusion_model."):
        return None
    return Piece(
        match["target"], "", "unknown", name, f"a form with pieces called {match['piece']}"
    )


def _adapter(rest: str | None) -> str:
    """Return the adapter's name from what follows the piece (``default.weight``: ``default``)."""
    return re.sub(r"(?:^|\.)weight$", "", rest or "")
