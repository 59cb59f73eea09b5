"""Which parameters of a transformers model are weight matrices, decided
by the module that owns them.

Written down class by class, independently of the rules under test, which go by names.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

MODULES = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    Conv1D,
)
"""The weights of these are weight matrices."""

MATRICES = {
    "QuantLinear": ("weight",),  # I-BERT's linear layer
    "QuantEmbedding": ("weight",),  # I-BERT's embedding
    "CsmCodebooksHead": ("weight",),  # one output head per codebook, (codebooks, in, out)
    "AMSoftmaxLoss": ("weight",),  # the classifier of speaker verification, (in, out)
    "DbrxExpertGLU": ("w1", "v1", "w2"),  # experts one below the other, (experts * out, in)
    "JetMoeParallelExperts": ("weight",),  # (experts, out, in)
    "Gemma3MultiModalProjector": ("mm_input_projection_weight",),  # x @ weight, (in, out)
    "T5Gemma2MultiModalProjector": ("mm_input_projection_weight",),
    "ZambaMambaMixer": (
        "x_proj_weight",
        "dt_proj_weight",
    ),  # one linear layer per Mamba head, (heads, out, in)
    "RecurrentGemmaRglru": (
        "input_gate_weight",
        "recurrent_gate_weight",
    ),  # block-diagonal linear layers
    "XLNetRelativeAttention": ("q", "k", "v", "o", "r"),  # (d_model, heads, d_head)
    "FunnelRelMultiheadAttention": ("r_kernel",),  # (d_model, heads, d_head)
    "OmDetTurboLanguageBackbone": ("text_projection",),  # x @ weight
    "XCLIPModel": ("prompts_visual_projection",),  # x @ weight
    "Glm5NextTextIndexer": ("index_kpool_compress_gate",),  # F.linear(x, weight)
}
"""Modules that multiply by parameters of their own: what they are."""


def is_weight(owner: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether a module's parameter of two dimensions or more is a weight matrix."""
    kind = type(owner).__name__
    if isinstance(owner, MODULES):
        return "weight" in name
    if isinstance(owner, nn.utils.parametrize.ParametrizationList):
        return name == "original1"  # the direction of a weight norm, which takes the weight's place
    if kind.endswith("Experts") and parameter.ndim == 3:
        return True
    return (kind.endswith("Router") and name == "weight") or name in MATRICES.get(kind, ())


def parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Full name, owner, own name and value of every parameter, tied ones at each place."""
    for path, owner in model.named_modules(remove_duplicate=False):
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, owner, name, parameter
