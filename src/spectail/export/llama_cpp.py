"""llama.cpp: the types of tensors, for ``llama-quantize --tensor-type`` or a file of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.formats import has_formats, is_k_quant, refuse
from spectail.export.parts import check_target, grouped, grouped_formats
from spectail.export.tool import Tool
from spectail.models.formats.gguf_names import FAMILIES
from spectail.models.naming.names import canonical_name

# "K" types have super-blocks of 256 weights, with scales in two levels (llama.cpp's ggml-quants.c).
TYPES = {2: "q2_K", 3: "q3_K", 4: "q4_K", 5: "q5_K", 6: "q6_K", 8: "q8_0", 16: "f16", 32: "f32"}
"""The plain type of each width in bits.

The scales of the quantised types add 0.4 to 0.6 bits per weight.
"""

_ROOT = r"^(?:model\.|transformer\.|bert\.|(?:model\.)?language_model\.(?:model\.)?)?"
"""What Hugging Face's names may have before the part that llama.cpp's names correspond to."""
_PARTS = re.compile(r"\.(?:q|k|v|gate|up)$")


@dataclass(frozen=True)
class LlamaCpp(Tool):
    """The file of ``llama-quantize --tensor-type-file``: one pattern and type per line."""

    name: ClassVar[str] = "llama.cpp"
    takes: ClassVar[str] = "bits"
    tried: ClassVar[str] = (
        "the llama.cpp in llama-cpp-python 0.3.36: `llama-quantize` gives every tensor of a small "
        "Llama its type, and `llama-bench` runs the file"
    )

    def text(self, allocation: Allocation) -> str:
        """Return one pattern and type per line: see ``tensor_types``."""
        return "\n".join(tensor_types(allocation)) + "\n"


def tensor_types(allocation: Allocation) -> tuple[str, ...]:
    r"""Return one ``pattern=type`` per tensor, such as ``^blk\.3\.attn_q\.weight$=q4_K``.

    A width without a type of its own gets the next wider type. The experts of a block lie in one
    tensor, which gets the largest width or format in use that is not above their mean. Each pattern
    matches one tensor, so their order does not matter.

    Raises:
        ExportError: not an allocation of bits, or layers for which llama.cpp's name is not known.

    """
    check_target(allocation, "bits", "llama.cpp")
    problem = "llama.cpp's names of these layers are not known"
    if has_formats(allocation):
        formats = grouped_formats(allocation, gguf_tensor, problem)
        types = {tensor: format_type(own) for tensor, own in formats.items()}
    else:
        widths = grouped(allocation, gguf_tensor, problem)
        types = {tensor: tensor_type(width) for tensor, width in widths.items()}
    return tuple(f"^{tensor.replace('.', chr(92) + '.')}$={kind}" for tensor, kind in types.items())


def format_type(name: str) -> str:
    """Return llama.cpp's type for a format."""
    # llama-quantize has an NVFP4 too, without the scale of the tensor that its error was measured
    # with: its maintainers advise against it (pull request 22858).
    if not is_k_quant(name):
        raise refuse("llama.cpp", name, "q2_k, q3_k, q4_k, q5_k, q6_k")
    return name.replace("_k", "_K")


def tensor_type(width: float) -> str:
    """Return llama.cpp's type for a number of bits: the narrowest of at least that width."""
    if width > max(TYPES):
        raise ExportError(f"llama.cpp has no type of {width:g} bits")
    # Wider and not nearer: a narrower type would lose more than the allocation allows for.
    return TYPES[min(bits for bits in TYPES if bits >= width)]


def gguf_tensor(layer: str) -> str | None:
    """Return llama.cpp's name for the tensor that holds a layer of a Hugging Face model.

    None if the name is not known.

    >>> gguf_tensor("model.layers.3.self_attn.q_proj")
    'blk.3.attn_q.weight'
    >>> gguf_tensor("model.layers.0.mlp.experts.7.up_proj")
    'blk.0.ffn_up_exps.weight'
    """
    name = canonical_name(layer)
    # As it is first: "q" at the end may be a layer's own name. Then as a part of a fused weight.
    for form in dict.fromkeys((name, layer, _PARTS.sub("", name))):
        for pattern, tensor in _TABLE:
            if match := pattern.match(form):
                return tensor.format(*match.groups())
    return None


def _table() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Pair patterns of Hugging Face's names, of all architectures, with llama.cpp's names."""
    rows = {}
    for family in FAMILIES.values():
        # The root is optional in names of layers: see _ROOT.
        blocks = re.sub(r"^(?:model|transformer)\.", "", family.blocks)
        for stem, inside in family.inside.items():
            within = re.escape(inside).replace(r"\{\}", r"\d+")
            rows[f"{_ROOT}{re.escape(blocks)}(\\d+)\\.{within}$"] = f"blk.{{}}.{stem}.weight"
        for stem, top in family.top.items():
            rows[f"{_ROOT}{re.escape(re.sub(r'^(?:model|transformer)[.]', '', top))}$"] = (
                f"{stem}.weight"
            )
    return tuple((re.compile(pattern), tensor) for pattern, tensor in rows.items())


_TABLE = _table()
