"""Several stored tensors that make up one weight: weight norm, spectral norm, pruning masks, scaled 8-bit floats.

Also here: what a checkpoint holds besides weights (running statistics, masks, the helpers of quantisers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from spectail.models.lazy_tensor import Index, LazyTensor, parameters_of, piece_of

FP8_BLOCK = 128
"""DeepSeek's block size, which a scale's shape alone does not give where it does not divide the weight's."""

_NOT_WEIGHTS = re.compile(
    r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked|position_ids|token_type_ids|inv_freq|masked_bias"
    r"|relative_coords_table|relative_position_index|attn_mask|causal_mask|_float_tensor|original_inv_freq)$"
)
_PACKED = (
    (re.compile(r"\.qweight$"), "packed integers (GPTQ or AWQ)"),
    (re.compile(r"\.weight_packed$"), "packed integers (compressed-tensors)"),
    (re.compile(r"_blocks$"), "packed 4-bit floats (MXFP4)"),
    (re.compile(r"(?:^|\.)weight$"), "integers of a quantiser"),
)
_HELPER = re.compile(
    r"(?:\.(?:scales|qzeros|g_idx|SCB|weight_\w+|input_scale|output_scale|activation_scale|bias_scale)|_scales"
    r"|\.weight\.\w+(?:\.\w+)?)$"
)


def combine(tensors: Iterable[LazyTensor], buffers: Iterable[LazyTensor] = ()) -> tuple[list[LazyTensor], list[str]]:
    """Put weights together from their pieces and drop what is none; returns the weights and notes for the user.

    ``buffers`` (the buffers of a live module) may be pieces of a weight and are never weights themselves.
    """
    tensors = list(tensors)
    known = {stored.name: stored for stored in (*buffers, *tensors)}
    result: list[LazyTensor] = []
    used: set[str] = set()
    notes: list[str] = []
    for stored in tensors:
        if stored.name in used or _is_no_weight(stored):
            continue
        made = next((made for rule in _RULES if (made := rule(stored, known))), None)
        if made is None:
            result.append(stored)
            continue
        weight, names, note = made
        used.update(names)
        pieces = (stored, *(known[name] for name in names if name in known))
        memory = weight.memory if weight.read is stored.read else None
        result.append(replace(weight, memory=memory, parameters=parameters_of(pieces)))
        if note:
            notes.append(note)
    packed = {stored.name for stored in result if stored.problem and not stored.is_floating}
    kept = [s for s in result if s.name not in used and _is_kept(s) and not _helps(s, packed)]
    return kept, sorted(set(notes))


Made = tuple[LazyTensor, set[str], str | None]
"""A weight, the names of the pieces it used up, and a note."""


def _is_no_weight(stored: LazyTensor) -> bool:
    """Known statistics, indices and masks (GPT-2's causal mask is called attn.bias and is 1 x 1 x n x n)."""
    mask = len(stored.shape) == 4 and stored.shape[:2] == (1, 1) and stored.name.endswith("bias")
    return mask or bool(_NOT_WEIGHTS.search(stored.name))


def _helps(stored: LazyTensor, packed: set[str]) -> bool:
    """Whether a tensor serves a quantiser to unpack one of these weights."""
    match = _HELPER.search(stored.name)
    return match is not None and (stored.name[: match.start()] or "weight") in packed


def _is_kept(stored: LazyTensor) -> bool:
    """Integers are no weights, unless they are the packed form of one."""
    return stored.problem is not None or stored.is_floating


def _weight_norm(stored: LazyTensor, known: Mapping[str, LazyTensor]) -> Made | None:
    """Old and new weight norm: g v / norm(v), the norm over the dimensions along which g has size one."""
    for end_g, end_v, plain in (
        ("parametrizations.{}.original0", "parametrizations.{}.original1", "{}"),
        ("{}_g", "{}_v", "{}"),
    ):
        for end in (end_g, end_v):
            match = re.search(r"(?:^|\.)" + re.escape(end).replace(r"\{\}", r"(\w+)") + "$", stored.name)
            if match is None:
                continue
            prefix = stored.name[: match.start(1)].removesuffix(end.partition("{}")[0])
            names = [prefix + pattern.format(match[1]) for pattern in (end_g, end_v)]
            g, v = known.get(names[0]), known.get(names[1])
            if g and v and _norms_fit(g.shape, v.shape):
                name = prefix + plain.format(match[1])
                identity = (g.identity, v.identity) if g.identity and v.identity else None
                return replace(v, name=name, read=partial(_read_weight_norm, g, v), identity=identity), set(names), None
    return None


def _norms_fit(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Whether g can hold the norms of v."""
    return len(v) >= 2 and (
        g in {(), (1,)} or (len(g) == len(v) and all(a in {1, b} for a, b in zip(g, v, strict=True)))
    )


def _read_weight_norm(g: LazyTensor, v: LazyTensor, index: Index) -> Tensor:
    """Compute the weight that a weight-normed layer uses."""
    norms, direction = wide(g.read(())), wide(v.read(()))
    over = [d for d in range(direction.ndim) if norms.ndim != direction.ndim or norms.shape[d] == 1]
    scale = torch.linalg.vector_norm(direction, dim=over or None, keepdim=True) if over else direction.abs()
    return piece_of(direction * (norms / scale), index)


def wide(tensor: Tensor) -> Tensor:
    """Convert to at least float32 for computing."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def _reparametrised(stored: LazyTensor, known: Mapping[str, LazyTensor]) -> Made | None:
    """Spectral norm (old and new), pruning masks, and parametrisations that only the live module can compute."""
    match = re.search(r"(?:^|\.)parametrizations\.(\w+)\.original$", stored.name)
    if match:
        stem = stored.name.removesuffix("original") + "0."
        name = stored.name[: match.start()] + ("." if stored.name[match.start()] == "." else "") + match[1]
        pieces = [stem + "_u", stem + "_v"]
        unknown = f"{name} is parametrised in a way that the file does not tell; its stored parameter is measured"
    elif stored.name.endswith("_orig"):
        name, unknown = stored.name.removesuffix("_orig"), None
        pieces = [name + "_u", name + "_v"]
        if mask := known.get(name + "_mask"):
            return replace(stored, name=name, read=partial(_read_masked, stored, mask)), {stored.name, mask.name}, None
        if pieces[0] not in known:
            return None
    else:
        return None
    u, v = (known.get(piece) for piece in pieces)
    read: Callable[[Index], Tensor] = stored.read
    if u:
        read, unknown = partial(_read_spectral_norm, stored, u, v), None
    return replace(stored, name=name, read=read), {stored.name, *pieces}, unknown


def _read_masked(weight: LazyTensor, mask: LazyTensor, index: Index) -> Tensor:
    """Apply the mask of torch.nn.utils.prune."""
    return piece_of(weight.read(()) * mask.read(()), index)


def _read_spectral_norm(weight: LazyTensor, u: LazyTensor, v: LazyTensor | None, index: Index) -> Tensor:
    """Divide by the largest singular value that the stored vectors give, as the layer does in eval mode."""
    tensor, left = wide(weight.read(())), wide(u.read(()))
    out = next((d for d in range(tensor.ndim) if tensor.shape[d] == left.numel()), 0)
    matrix = tensor.movedim(out, 0).flatten(1)
    sigma = left @ (matrix @ wide(v.read(()))) if v else torch.linalg.vector_norm(left @ matrix)
    return piece_of(tensor / sigma, index)


def _packed(stored: LazyTensor, known: Mapping[str, LazyTensor]) -> Made | None:
    """Weights that only their quantiser can unpack: a row that says so, without its helpers."""
    if stored.is_floating or len(stored.shape) < 2 or stored.problem:
        return None
    for pattern, what in _PACKED:
        if pattern.search(stored.name) is None:
            continue
        name = pattern.sub("", stored.name)
        if what.startswith("packed 4-bit") and name + "_scales" not in known:
            continue
        problem = f"stored as {what}, {stored.dtype} of shape {'x'.join(map(str, stored.shape))}: dequantise it first"
        return replace(stored, name=name or "weight", problem=problem), set(), None
    return None


def _scaled(stored: LazyTensor, known: Mapping[str, LazyTensor]) -> Made | None:
    """8-bit floats with a scale for the tensor, for each row or for each block (DeepSeek)."""
    if not stored.dtype.startswith("float8") or len(stored.shape) < 2:
        return None
    helpers = {
        stored.name.removesuffix("weight") + end for end in ("input_scale", "output_scale", "activation_scale")
    } & set(known)
    for end in ("_scale_inv", "_scale"):
        scale = known.get(stored.name + end)
        if scale is None:
            continue
        if not _scale_fits(stored.shape, scale.shape):
            shapes = f"weight {stored.shape}, scale {scale.shape}"
            return (
                replace(stored, problem=f"8-bit floats whose scale does not fit: {shapes}"),
                {scale.name, *helpers},
                None,
            )
        return replace(stored, read=partial(_read_scaled, stored, scale)), {scale.name, *helpers}, None
    return None


def _scale_fits(weight: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    """Whether every dimension of the scale divides the weight into blocks."""
    if len(scale) <= 1:
        return scale in {(), (1,), weight[:1]}
    return len(scale) == len(weight) and all(1 <= blocks <= size for size, blocks in zip(weight, scale, strict=True))


def _read_scaled(weight: LazyTensor, scale: LazyTensor, index: Index) -> Tensor:
    """Multiply by the scale, spread over its blocks; one expert at a time where each has its own."""
    factor = scale.read(())
    expert = index[0] if index and isinstance(index[0], int) and factor.ndim == len(weight.shape) else None
    whole = weight.read(() if expert is None else (expert,)).to(torch.float32)
    shape = weight.shape
    factor = factor.to(torch.float32).reshape(factor.shape if factor.ndim > 1 else (-1,) + (1,) * (len(shape) - 1))
    if expert is not None:
        factor, index, shape = factor[expert if factor.shape[0] > 1 else 0], index[1:], shape[1:]
    for dim, size in enumerate(shape):
        blocks = factor.shape[dim]
        if blocks not in {1, size}:
            width = FP8_BLOCK if -(-size // FP8_BLOCK) == blocks else -(-size // blocks)
            factor = factor.repeat_interleave(width, dim=dim).narrow(dim, 0, size)
    return piece_of(whole * factor, index)


_RULES: tuple[Callable[[LazyTensor, Mapping[str, LazyTensor]], Made | None], ...] = (
    _weight_norm,
    _reparametrised,
    _packed,
    _scaled,
)
