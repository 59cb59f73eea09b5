"""Quantised weights that only their own library can unpack: one row each, with the format's name and the true shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from spectail.models.assembly.pieces import Pieces, shape_text
from spectail.models.assembly.scaled import is_float8
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.naming.blocks import block_of

Shape: TypeAlias = "Callable[[Pieces], tuple[int, ...]]"
"""Computes the true shape, (out, in), from the packed tensors; raises LookupError where it
cannot."""


def packed_by(what: str, shape: Shape | None = None) -> Callable[[Pieces], LazyTensor | None]:
    """Make the function of a recipe that can only say what it found; ``what`` is the name of the format."""
    return partial(_packed_by, what=what, shape=shape)


def _packed_by(pieces: Pieces, *, what: str, shape: Shape | None) -> LazyTensor | None:
    """Describe a weight of a known format that is not unpacked here."""
    stored = pieces.anchor
    if stored.is_floating or len(stored.shape) < 2:
        return None
    try:
        true_shape = shape(pieces) if shape else None
    except LookupError:
        true_shape = None
    text = (
        f"stored as {what}, {stored.dtype} of shape {shape_text(stored.shape)}: dequantise it first"
    )
    return pieces.failed(text, true_shape)


def marlin_shape(pieces: Pieces) -> tuple[int, ...]:
    """Marlin: tiles of 16 inputs, one column of scales for each output."""
    return pieces["{}.s"].shape[-1], pieces.anchor.shape[0] * 16


def exl2_shape(pieces: Pieces) -> tuple[int, ...]:
    """EXL2: a permutation as long as the inputs."""
    return pieces.anchor.shape[1], pieces["{}.q_invperm"].numel


def exl3_shape(pieces: Pieces) -> tuple[int, ...]:
    """EXL3: tiles of 16 x 16, (in / 16, out / 16, words)."""
    return 16 * pieces.anchor.shape[1], 16 * pieces.anchor.shape[0]


# What is left after all recipes.

_SCALE = re.compile(
    r"(?<![a-z])(?:de|re|un)?scal(?:e|es|ing\w*)(?![a-z])|absmax|amax|(?<![a-z])q?zeros?(?![a-z])|zero_?point|dequant"
    r"|codebook|centroid|look_?up|(?<![a-z])lut(?![a-z])|exponent|step_?size|(?<![a-z])scb(?![a-z])|(?:^|[._])s$",
    re.IGNORECASE,
)
_OF_OTHERS = re.compile(
    r"(?:^|[._])(?:input|output|act|activation|bias|logit|attn|pre_quant)s?(?=[._]|$)"
    r"|(?:^|[._])(?:[kvq]|kv)_(?:cache_)?(?:scale|zero|amax)",
    re.IGNORECASE,
)
"""Scales of what goes into or comes out of a layer, of its bias, or of attention scores."""
_HELPER = re.compile(
    r"scale|zero|absmax|amax|quant|g_idx|(?:^|[._])(?:inv)?perm|SCB|scaling|codebook|centroid|lut|lookup|workspace"
    r"|bitmask|hadamard|row_offsets|col_vals|(?:^|[._])meta|packing|group|nbits|axis|^parametrizations\.|(?:^|[._])(?:s|su|sv)$"
)
_INDICES = re.compile(
    r"(?:^|[._])(?:"
    r"(?:position|token_type|token|input|cache|segment|modality|label|class|expert|node|edge|ids?)_?ids?"
    r"|ids|\w*ind(?:ex|ices|exes)(?:_\w+)?(?:\.\w+)?|idx|idxs|positions?|coords?|coordinates|grid|offsets?|\w*mask\w*|num_batches_tracked"
    r"|counts?|tokens?(?:_per_expert)?|steps?|lengths?|bins|buckets|vocab\w*|tid2eid|permutation|lattice|lags"
    r")$"
)
"""Integer tensors that select or count: indices into tables, positions, masks, histories. None is
multiplied with, but for codes that choose among the vectors of a codebook beside them."""
_CODEBOOK = re.compile(r"codebook|centroid|look_?up|(?<![a-z])lut(?![a-z])")


def is_scale_name(name: str) -> bool:
    """Whether a tensor is called like a scale, zero point or codebook of a weight, not of activations.

    >>> is_scale_name("q_proj.weight_scale"), is_scale_name("q_proj.input_scale"), is_scale_name("q_proj.bias")
    (True, False, False)
    """
    first, tail = name.partition(".")[0], ".".join(name.rsplit(".", 2)[-2:])
    return bool(_SCALE.search(tail) or _SCALE.fullmatch(first)) and not _OF_OTHERS.search(
        name.rsplit(".", 1)[-1]
    )


def is_helper(module: str, name: str) -> bool:
    """Whether a tensor of a module with a quantised weight only serves to unpack it."""
    rest = name.removeprefix(f"{module}.") if module else name
    return bool(_HELPER.search(rest))


_OF_WEIGHT = re.compile(r"weight|quant|scale|codebook|centroid")
"""Parts of a name that lie below the module whose weight they are about."""


def ancestors(name: str) -> Iterator[str]:
    """List the paths of the modules that a tensor lies in, from the innermost to the root (the empty path)."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
    yield ""


def scaled_modules(name: str) -> set[str]:
    """Give the paths of the modules whose weight a scale of this name may belong to.

    >>> sorted(scaled_modules("q_proj.weight_scale")), sorted(scaled_modules("attn.q_proj_scale"))
    (['q_proj', 'q_proj.weight'], ['attn', 'attn.q_proj'])
    """
    parent = name.rpartition(".")[0]
    match = _SCALE.search(name)
    stem = name[: match.start()].rstrip("._/:@-") if match else parent
    found = {parent, stem}
    for path in (parent, stem):
        while _OF_WEIGHT.search(path.rpartition(".")[2]):
            path = path.rpartition(".")[0]
            found.add(path)
    if stem == "":  # scales.layers.0.q_proj.weight
        rest = name[match.end() :].lstrip("._/:@-") if match else ""
        found |= {rest, rest.rpartition(".")[0]} - {""}
    return found


def left_over(stored: LazyTensor, near: list[str]) -> LazyTensor | None:
    """Judge a tensor that no recipe took: None where it is a plain weight, or nothing that can be one.

    ``near`` are scales that no recipe took and that may be the tensor's: see ``near_scales``. 8-bit
    floats and integers beside one fail; 8-bit floats without pass with a note; a matrix of integers
    that is no known index fails.
    """
    if len(stored.shape) < 2 or stored.problem:
        return None
    if stored.dtype.startswith("float4"):
        return replace(
            stored,
            problem=f"stored as {stored.dtype}, two numbers in a byte: dequantise it first",
            memory=None,
        )
    if is_scale_name(stored.name) and (is_float8(stored) or stored.dtype == "float8_e8m0fnu"):
        return None
    if is_float8(stored) and not near:
        return replace(stored, note="stored as 8-bit floats without a scale")
    if stored.dtype == "float8_e8m0fnu":
        problem = f"{stored.dtype} {stored.name} holds exponents whose weight was not found"
        return replace(stored, problem=problem, memory=None)
    if is_float8(stored) or (_is_integer(stored) and near and _may_be_weight(stored, near)):
        problem = (
            f"{stored.dtype} {stored.name} of shape {shape_text(stored.shape)} beside {near[0]}, which looks like its "
            "scale or codebook, in a form that is not known: dequantise it first"
        )
        return replace(stored, problem=problem, memory=None)
    if _is_integer(stored) and _may_be_weight(stored, near):
        what = f"packed or quantised integers of an unknown kind, {stored.dtype} of shape {shape_text(stored.shape)}"
        return replace(stored, problem=f"stored as {what}: dequantise it first", memory=None)
    return None


def second_scale(made: LazyTensor, anchor: LazyTensor, near: list[str]) -> LazyTensor | None:
    """Fail a quantised weight that has one more scale beside it than its recipe uses; None where there is no other."""
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
    """Whether an integer tensor can be a weight: two dimensions of more than one entry, and not called an index."""
    is_matrix = sum(size > 1 for size in stored.shape) >= 2 or stored.name.endswith("weight")
    if stored.dtype == "int64" and not near and block_of(stored.name) is None:
        return False  # torch's type of indices, and no packer's
    selects = _INDICES.search(stored.name) and not any(_CODEBOOK.search(name) for name in near)
    return is_matrix and not selects and not is_scale_name(stored.name)


def near_scales(stored: LazyTensor, scales: Mapping[str, list[str]]) -> list[str]:
    """Find scales that may belong to an 8-bit float or integer: of its module, and called after it or after nothing.

    ``scales`` are the names of scales that no recipe took, by the modules they may belong to.
    """
    if not (is_float8(stored) or _is_integer(stored)):
        return []
    module, _, own = stored.name.rpartition(".")
    names = [name for name in scales.get(module, []) if name != stored.name]
    if own == "weight":
        return names
    prefix = f"{module}." if module else ""
    return [name for name in names if _stem(name.removeprefix(prefix)) in {own, "weight", ""}]


def _stem(name: str) -> str:
    """Give what a scale is called after: ``up_proj`` for ``up_proj_scale_inv``, nothing for ``scales``."""
    match = _SCALE.search(name)
    return name[: match.start()].rstrip("._") if match else name
