"""Tensors that no recipe used: plain weights, quantised weights of unknown form, and helpers.

A recipe knows its form by the names of all its tensors. A tensor that no recipe used is judged by
its type, its name and the names of the scales around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import TypeAlias

from spectail.models.assembly.eight_bit import is_float8
from spectail.models.assembly.pieces import shape_text
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.naming.blocks import block_of

_NOT_WEIGHTS = re.compile(
    r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked|position_ids|token_type_ids|inv_freq"
    r"|masked_bias"
    r"|relative_coords_table|relative_position_index|attn_mask|causal_mask|_float_tensor"
    r"|original_inv_freq)$"
)
"""Statistics, indices and masks of common modules."""
_OF_QUANTISERS = re.compile(r"(?:^|[._])(?:quantizer|fake_quant)\.\w+$")
"""State of modules that observe or round a layer's weight, input or output."""
_SCALE = re.compile(
    r"(?<![a-z])(?:de|re|un)?scal(?:e|es|ing\w*)(?![a-z])|absmax|amax|(?<![a-z])q?zeros?(?![a-z])"
    r"|zero_?point|dequant"
    r"|codebook|centroid|look_?up|(?<![a-z])lut(?![a-z])|exponent|step_?size"
    r"|(?<![a-z])scb(?![a-z])|(?:^|[._])s$",
    re.IGNORECASE,
)
"""Words for scales, zero points and codebooks."""
_OF_OTHERS = re.compile(
    r"(?:^|[._])(?:input|output|act|activation|bias|logit|attn|pre_quant)s?(?=[._]|$)"
    r"|(?:^|[._])(?:[kvq]|kv)_(?:cache_)?(?:scale|zero|amax)",
    re.IGNORECASE,
)
"""Scales of a layer's input, output or bias, and of attention scores."""
_HELPER = re.compile(
    r"scale|zero|absmax|amax|quant|g_idx|(?:^|[._])(?:inv)?perm|SCB|scaling|codebook|centroid|lut"
    r"|lookup|workspace"
    r"|bitmask|hadamard|row_offsets|col_vals|(?:^|[._])meta|packing|group|nbits|axis"
    r"|^parametrizations\.|(?:^|[._])(?:s|su|sv)$"
)
"""Tensors that serve to unpack a quantised weight of the same module."""
_INDICES = re.compile(
    r"(?:^|[._])(?:"
    r"(?:position|token_type|token|input|cache|segment|modality|label|class|expert|node|edge"
    r"|ids?)_?ids?"
    r"|ids|\w*ind(?:ex|ices|exes)(?:_\w+)?(?:\.\w+)?|idx|idxs|positions?|coords?|coordinates|grid"
    r"|offsets?|\w*mask\w*|num_batches_tracked"
    r"|counts?|tokens?(?:_per_expert)?|steps?|lengths?|bins|buckets|vocab\w*|tid2eid|permutation"
    r"|lattice|lags"
    r")$"
)
"""Integer tensors that select or count: indices into tables, positions, masks, histories. They take
no part in products, except for codes that select vectors from a codebook beside them."""
_CODEBOOK = re.compile(r"codebook|centroid|look_?up|(?<![a-z])lut(?![a-z])")
"""Words for the codebooks of vector quantisation."""
_OF_WEIGHT = re.compile(r"weight|quant|scale|codebook|centroid")
"""Components of a name that lie below the module whose weight they describe."""


def is_plain_weight(
    stored: LazyTensor, known: Mapping[str, LazyTensor], used: set[str], modules: set[str]
) -> bool:
    """Whether a tensor becomes a layer (or a counted vector) without any computation.

    Args:
        stored: The tensor.
        known: All tensors that may be weights, by name.
        used: Names of the tensors that belong to another weight.
        modules: Paths of the modules whose weight is quantised or otherwise computed.

    """
    # Buffers of live modules matter only as pieces of a weight.
    if stored.buffer or stored.name in used or stored.name not in known:
        return False
    # Integers are no weights by themselves; a tensor that cannot be read keeps its row.
    if stored.problem is None and not stored.is_floating:
        return False
    # Scales in 8-bit floats and the state of quantisers would pass for weights by their type.
    if (stored.dtype.startswith("float8") and is_scale_name(stored.name)) or _OF_QUANTISERS.search(
        stored.name
    ):
        return False
    # Asked first, since the ancestors of a name take time that grows with the square of its length.
    return not modules or not any(
        module in modules and _is_helper(module, stored.name) for module in _ancestors(stored.name)
    )


def is_no_weight(stored: LazyTensor) -> bool:
    """Whether a tensor is known to be a statistic, an index or a mask."""
    # GPT-2 calls its causal mask, (1, 1, n, n), attn.bias.
    mask = len(stored.shape) == 4 and stored.shape[:2] == (1, 1) and stored.name.endswith("bias")
    return mask or bool(_NOT_WEIGHTS.search(stored.name))


def judge_the_rest(
    known: Mapping[str, LazyTensor], made: dict[str, LazyTensor], used: set[str], modules: set[str]
) -> None:
    """Add rows for tensors that no recipe used and that are no plain weights.

    A weight that has one more scale beside it than its recipe uses fails, because the recipe would
    compute wrong values.

    Args:
        known: All tensors that may be weights, by name.
        made: Weights so far, by the name of their anchor. New rows are added here.
        used: Names of the tensors that belong to another weight. Scales of failed rows are added.
        modules: Paths of modules with a computed weight. Those of failed rows are added.

    """
    scales = _unused_scales(known, made.keys() | used)
    weights = {weight.name for weight in made.values()}
    for name, stored in known.items():
        near = _near_scales(stored, scales)
        weight = _second_scale(made[name], stored, near) if name in made else None
        # Integers in a module whose weight is known serve to unpack it.
        if name not in used and (stored.is_floating or _whole_weight(name) not in weights):
            weight = _left_over(stored, near)
        if weight is not None:
            made[name] = weight
        if (weight is not None and weight.problem) or (stored.problem and not _is_float(stored)):
            modules.add(name.rpartition(".")[0])
            used.update(near)


_Scales: TypeAlias = dict[str, dict[str, list[str]]]
"""Names of scales, by the module that they may belong to and by what they are named after."""


def _unused_scales(known: Mapping[str, LazyTensor], used: Set[str]) -> _Scales:
    """List the scales that no weight has used and that lie in a module of a quantised weight."""
    quantised = (name for name, stored in known.items() if _may_have_scale(stored))
    scales: _Scales = {name.rpartition(".")[0]: {} for name in quantised}
    for name in known:
        if name not in used and is_scale_name(name):
            for module in {path for path in _scaled_modules(name) if path in scales}:
                stem = _stem(name.removeprefix(f"{module}.") if module else name)
                scales[module].setdefault(stem, []).append(name)
    return scales


def is_scale_name(name: str) -> bool:
    """Whether a name is that of a scale, zero point or codebook of a weight, not of activations.

    >>> is_scale_name("q_proj.weight_scale"), is_scale_name("q_proj.input_scale")
    (True, False)
    >>> is_scale_name("q_proj.bias")
    False
    """
    # Files of some quantisers put all scales under one root, ``scales.layers.0...``.
    first, tail = name.partition(".")[0], ".".join(name.rsplit(".", 2)[-2:])
    return bool(_SCALE.search(tail) or _SCALE.fullmatch(first)) and not _OF_OTHERS.search(
        name.rsplit(".", 1)[-1]
    )


def _is_helper(module: str, name: str) -> bool:
    """Whether a tensor of a module with a quantised weight only serves to unpack it."""
    rest = name.removeprefix(f"{module}.") if module else name
    return bool(_HELPER.search(rest))


def _ancestors(name: str) -> Iterator[str]:
    """List the paths of the modules that a tensor lies in, from the innermost to the root ('')."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
    yield ""


def _scaled_modules(name: str) -> Iterator[str]:
    """List the paths of the modules whose weight a scale of this name may belong to.

    >>> sorted({*_scaled_modules("q_proj.weight_scale")}), [*_scaled_modules("attn.q_proj_scale")]
    (['q_proj', 'q_proj.weight'], ['attn', 'attn.q_proj'])
    """
    parent = name.rpartition(".")[0]
    match = _SCALE.search(name)
    stem = name[: match.start()].rstrip("._/:@-") if match else parent
    for path in (parent, stem):
        yield path
        # Climb from ``q_proj.weight.quantizer`` to the module ``q_proj``.
        while _OF_WEIGHT.search(path.rpartition(".")[2]):
            path = path.rpartition(".")[0]
            yield path
    # Some files put the word first: scales.layers.0.q_proj.weight.
    if stem == "":
        rest = name[match.end() :].lstrip("._/:@-") if match else ""
        yield from {rest, rest.rpartition(".")[0]} - {""}


def _left_over(stored: LazyTensor, near: list[str]) -> LazyTensor | None:
    """Judge a tensor that no recipe used; None if it is a plain weight, or cannot be a weight.

    8-bit floats and integers with a scale beside them fail. 8-bit floats without a scale pass with
    a note. A matrix of integers fails unless it is a known kind of index. ``near`` are the unused
    scales that may belong to the tensor: see :func:`_near_scales`.
    """
    if len(stored.shape) < 2 or stored.problem:
        return None
    if is_scale_name(stored.name) and stored.dtype.startswith("float8"):
        return None
    # Some models simply cast their weights to 8 bits.
    if is_float8(stored) and not near:
        return replace(stored, note="stored as 8-bit floats without a scale")
    problem = _why_unreadable(stored, near)
    return replace(stored, problem=problem, memory=None) if problem else None


def _why_unreadable(stored: LazyTensor, near: list[str]) -> str | None:
    """Return why the values of a tensor cannot be known, or None if it is no quantised weight."""
    if stored.dtype.startswith("float4"):
        return f"stored as {stored.dtype}, two numbers in a byte: dequantise it first"
    if stored.dtype == "float8_e8m0fnu":
        return f"{stored.dtype} {stored.name} holds exponents whose weight was not found"
    if not is_float8(stored) and not (_is_integer(stored) and _may_be_weight(stored, near)):
        return None
    size = shape_text(stored.shape)
    if near:
        return (
            f"{stored.dtype} {stored.name} of shape {size} beside {near[0]}, which looks like its "
            "scale or codebook, in a form that is not known: dequantise it first"
        )
    return (
        f"stored as packed or quantised integers of an unknown kind, {stored.dtype} of shape {size}"
        ": dequantise it first"
    )


def _second_scale(made: LazyTensor, anchor: LazyTensor, near: list[str]) -> LazyTensor | None:
    """Fail a weight with more scales beside it than its recipe uses, else return None."""
    # amax is the largest magnitude that a quantiser saw; it does not change the weight.
    others = [name for name in near if "amax" not in name]
    if made.problem or not others:
        return None
    problem = (
        f"{anchor.dtype} {anchor.name} has a second scale, {others[0]}, in a form that is not known"
    )
    return replace(made, problem=f"{problem}: dequantise it first")


def _is_integer(stored: LazyTensor) -> bool:
    """Whether a tensor holds integers; booleans are masks."""
    return not stored.is_floating and stored.dtype != "bool"


def _may_be_weight(stored: LazyTensor, near: list[str]) -> bool:
    """Whether an integer tensor can be a weight: a matrix that is not called an index."""
    # Some quantisers pack into (n, 1); the name ``weight`` is then enough.
    is_matrix = sum(size > 1 for size in stored.shape) >= 2 or stored.name.endswith("weight")
    # int64 is torch's type for indices, and no quantiser packs into it.
    if stored.dtype == "int64" and not near and block_of(stored.name) is None:
        return False
    # Codes are called indices too; a codebook beside them tells.
    selects = _INDICES.search(stored.name) and not any(_CODEBOOK.search(name) for name in near)
    return is_matrix and not selects and not is_scale_name(stored.name)


def _may_have_scale(stored: LazyTensor) -> bool:
    """Whether a tensor holds 8-bit floats or integers."""
    return is_float8(stored) or _is_integer(stored)


def _near_scales(stored: LazyTensor, scales: _Scales) -> list[str]:
    """Find the scales that may belong to a tensor of 8-bit floats or integers.

    They lie in the same module, and are named after the tensor or after nothing.
    """
    if not _may_have_scale(stored):
        return []
    module, _, own = stored.name.rpartition(".")
    by_stem = scales.get(module, {})
    # Every scale of a module may belong to its only weight.
    stems = by_stem.keys() if own == "weight" else dict.fromkeys((own, "weight", ""))
    return [name for stem in stems for name in by_stem.get(stem, ()) if name != stored.name]


def _stem(name: str) -> str:
    """Return what a scale is named after: ``up_proj`` for ``up_proj_scale_inv``."""
    match = _SCALE.search(name)
    return name[: match.start()].rstrip("._") if match else name


def _is_float(stored: LazyTensor) -> bool:
    """Whether a type is one of plain floating-point numbers, even if the values cannot be read."""
    return stored.dtype.startswith(("float", "bfloat", "complex"))


def _whole_weight(name: str) -> str:
    """Return the name that the weight of a tensor's module has."""
    return name.rpartition(".")[0] + ".weight" if "." in name else "weight"
