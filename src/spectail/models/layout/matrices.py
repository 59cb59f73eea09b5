"""How parameters are laid out, and which matrices they hold. The only file that knows layouts.

Conventions: a matrix is (output, input); a fused parameter is split into parts that are layers of their own.

- A convolution is stored as (out, in / groups, *kernel); every kernel position is one matrix, and all of them pool
  into one layer. The number of groups is not visible in a checkpoint, so live modules keep the stored shape too: a
  depth-wise convolution has one column. A transposed convolution, (in, out / groups, *kernel), cannot be told from a
  plain one in a checkpoint, so it keeps its stored orientation as well.
- An embedding keeps its stored orientation, (words, features).
- transformers' ``Conv1D`` is stored as (in, out) and transposed here; in a checkpoint it is known by GPT-2's names
  together with shapes that only fit the transposed reading.
- A complex spectral weight (in, out, *modes) has one (out, in) matrix per mode.
- Three-dimensional weights that are neither: see :func:`_is_kernel` and :func:`_stack`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from spectail.models.layout.arrange import (
    as_one,
    columns,
    every_second_column,
    every_second_row,
    headwise,
    kernel_slices,
    modes,
    transposed,
)
from spectail.models.layout.part import Arrange, Part
from spectail.models.lazy_tensor import Index, LazyTensor
from spectail.models.naming.blocks import kind_of
from spectail.models.naming.names import layer_name

LONGEST_KERNEL = 32
"""A last dimension up to this is a kernel of a one-dimensional convolution, whatever the other dimensions."""

_GPT2 = re.compile(r"(?:^|\.)(h\.\d+\.(?:attn|crossattention|mlp)\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")
_RNN = re.compile(r"(?:^|\.)weight_(ih|hh|hr)(_l\d+(?:_reverse)?)?$")
_GATES = {4: "ifgo", 3: "rzn"}
_FUSED_QKV = re.compile(r"(?:^|\.|_)(?:in_proj_weight|(?:qkv|qkv_proj|Wqkv|W_pack|to_qkv|c_attn)\.weight)$")
_MIXED_QKV = re.compile(r"(?:^|\.)(?:query_key_value\.weight|h\.\d+\.attn\.qkv_proj\.weight)$")
_HEADWISE_QKV = frozenset({"gpt_neox", "bloom"})
_EXPERTS = re.compile(r"(?:^|\.)(?:\w*experts|moe)\.|\.(?:input|output)_linear\.weight$")
_SPECTRAL = re.compile(r"(?:^|\.)(?:weight(?:\.\d+)?\.tensor|weights_?\d*)$|spectral|fourier", re.IGNORECASE)
_VISION = re.compile(r"(?:^|\.)(?:visual|vision\w*|image\w*)\.")


@dataclass(frozen=True)
class Heads:
    """What a model's configuration says about its attention; None where it does not."""

    model_type: str | None = None
    query: int | None = None
    key_value: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Heads:
        """Read a transformers configuration, whose text part is nested in multi-modal models."""
        inner = config.get("text_config")
        text = inner if isinstance(inner, Mapping) else config
        query = text.get("num_attention_heads", text.get("n_head", text.get("n_heads")))
        key_value = text.get("num_key_value_heads") or query
        ok = isinstance(query, int) and isinstance(key_value, int)
        return cls(text.get("model_type"), query if ok else None, key_value if ok else None)


@dataclass(frozen=True)
class _View:
    """A stored tensor with what surrounds it."""

    stored: LazyTensor
    shapes: Mapping[str, tuple[int, ...]]
    heads: Heads
    name: str
    shape: tuple[int, ...]
    lead: Index = ()
    """Leading dimensions of size one that were taken off."""

    def sibling(self, old: str, new: str) -> tuple[int, ...] | None:
        """Shape of the parameter whose name differs by this ending."""
        return self.shapes.get(self.name.removesuffix(old) + new)

    def matrix(
        self,
        suffix: str = "",
        kind: str | None = None,
        index: Index = (),
        *,
        size: tuple[int, ...] | None = None,
        arrange: Arrange = as_one,
    ) -> Part:
        """Describe one plain two-dimensional piece: the whole tensor, or some of its rows."""
        name = layer_name(self.name) + suffix
        rows, cols = size or self.shape[-2:]
        return Part(name, kind or kind_of(name), 1, rows, cols, (*self.lead, *index), arrange)


def parts_of(stored: LazyTensor, shapes: Mapping[str, tuple[int, ...]], heads: Heads) -> tuple[Part, ...]:
    """List the layers that a stored tensor holds; none where it has fewer than two dimensions.

    ``shapes`` are those of all tensors of the model by name: siblings tell what a shape alone does not.
    """
    if len(stored.shape) < 2:
        return ()
    shape = stored.shape
    lead: Index = ()
    if not stored.name.endswith("weight") and stored.layout is None:
        while len(shape) > 2 and shape[0] == 1:
            shape, lead = shape[1:], (*lead, 0)
    view = _View(stored, shapes, heads, stored.name, shape, lead)
    for rule in _RULES:
        if parts := rule(view):
            return parts
    return (view.matrix(),)


# Rules, tried in this order.


def _lora(view: _View) -> tuple[Part, ...] | None:
    """An adapter's delta: a matrix, or the slices of a convolution."""
    if view.stored.layout != "lora":
        return None
    if len(view.shape) == 2:
        return (view.matrix(kind="lora"),)
    return (_convolution(view, kind="lora"),)


def _spectral(view: _View) -> tuple[Part, ...] | None:
    """Complex weights of Fourier layers, stored as complex numbers or as pairs of real ones."""
    shape = view.shape
    real_view = not view.stored.is_complex and len(shape) >= 4 and shape[-1] == 2 and bool(_SPECTRAL.search(view.name))
    real_view = real_view and view.stored.layout is None
    if real_view:
        shape = shape[:-1]
    elif not view.stored.is_complex or len(shape) < 3:
        return None
    arrange = partial(modes, real_view=real_view)
    name = layer_name(view.name)
    return (Part(name, "spectral", math.prod(shape[2:]), shape[1], shape[0], view.lead, arrange),)


def _recurrent(view: _View) -> tuple[Part, ...] | None:
    """Gates of an LSTM (i, f, g, o) or a GRU (r, z, n), told by the size of the hidden state."""
    match = _RNN.search(view.name)
    if match is None or len(view.shape) != 2:
        return None
    rows = view.shape[0]
    layer = match[2] or ""
    hidden_to_hidden = view.sibling(f"{match[1]}{layer}", f"hh{layer}")
    projection = view.sibling(f"{match[1]}{layer}", f"hr{layer}")
    hidden = projection[1] if projection else hidden_to_hidden[1] if hidden_to_hidden else 0
    gates = _GATES.get(rows // hidden, "") if hidden and rows % hidden == 0 and match[1] != "hr" else ""
    if not gates:
        return (view.matrix(kind="recurrent"),)
    return tuple(_row_parts(view, [(f".{gate}", "recurrent", rows // len(gates)) for gate in gates]))


def _row_parts(view: _View, pieces: list[tuple[str, str, int]], index: Index = ()) -> list[Part]:
    """Split consecutive rows into named parts of the given sizes."""
    parts, start = [], 0
    for suffix, kind, size in pieces:
        rows = (*index, slice(start, start + size))
        parts.append(view.matrix(suffix, kind, rows, size=(size, view.shape[-1])))
        start += size
    return parts


def _fused_experts(view: _View) -> tuple[Part, ...] | None:
    """Experts of a mixture in one tensor (experts, ., .): every expert's projection is a part."""
    if len(view.shape) != 3 or not (_EXPERTS.search(view.name) or view.stored.layout in _EXPERT_HINTS):
        return None
    last = layer_name(view.name).rsplit(".", 1)[-1]
    inward, interleaved = _expert_layout(view, last)
    parts: list[Part] = []
    for expert in range(view.shape[0]):
        if last in {"gate_up_proj", "input_linear"}:
            parts += _gate_and_up(view, expert, inward=inward, interleaved=interleaved)
        else:
            kind = {"output_linear": "down"}.get(last) or kind_of(f"experts.{expert}.{last}")
            size = view.shape[1:][::-1] if inward else view.shape[1:]
            arrange = transposed if inward else as_one
            parts.append(view.matrix(f"[{expert}]", kind, (expert,), size=size, arrange=arrange))
    return tuple(parts)


_EXPERT_HINTS = {
    "experts": (False, False),
    "experts transposed": (True, False),
    "experts interleaved": (False, True),
    "experts transposed interleaved": (True, True),
}


def expert_layout(*, is_transposed: bool, is_concatenated: bool) -> str:
    """Put into words what transformers' expert modules say about themselves."""
    return "experts" + " transposed" * is_transposed + " interleaved" * (not is_concatenated)


def _expert_layout(view: _View, last: str) -> tuple[bool, bool]:
    """Whether (experts, in, out) is stored, and whether gate and up alternate.

    The module says it, else the shapes of gate_up and down together (they fit one reading only). gpt-oss alternates;
    its experts are the ones that have biases.
    """
    if view.stored.layout in _EXPERT_HINTS:
        return _EXPERT_HINTS[view.stored.layout]
    pair = {"gate_up_proj": "down_proj", "down_proj": "gate_up_proj"}.get(last)
    if pair is None:
        return False, False
    name = view.name.removesuffix(".weight")
    other = view.shapes.get(name.removesuffix(last) + pair + view.name.removeprefix(name))
    gate_up, down = (view.shape, other) if last == "gate_up_proj" else (other, view.shape)
    if gate_up is None or down is None:
        return False, False
    inward = gate_up[2] == 2 * down[1] and gate_up[1] == down[2]
    biased = name.removesuffix(last) + "gate_up_proj_bias" in view.shapes
    return inward, inward and (view.heads.model_type == "gpt_oss" or (biased and view.heads.model_type is None))


def _gate_and_up(view: _View, expert: int, *, inward: bool, interleaved: bool) -> list[Part]:
    """The two halves of an expert's fused projection."""
    outputs, inputs = (view.shape[2], view.shape[1]) if inward else (view.shape[1], view.shape[2])
    half = outputs // 2
    parts = []
    for which, kind in enumerate(("gate", "up")):
        index: Index = (expert,)
        arrange: Arrange = as_one
        if interleaved:
            arrange = partial(every_second_column if inward else every_second_row, start=which)
        elif inward:
            arrange = partial(columns, start=which * half, stop=(which + 1) * half)
        else:
            index = (expert, slice(which * half, (which + 1) * half))
        parts.append(view.matrix(f"[{expert}].{kind}", kind, index, size=(half, inputs), arrange=arrange))
    return parts


def _gpt2(view: _View) -> tuple[Part, ...] | None:
    """Transformers' Conv1D, (in, out), with c_attn split; Linear layers of those names (nanoGPT) are not."""
    if len(view.shape) != 2 or not (view.stored.layout == "conv1d" or _looks_like_conv1d(view)):
        return None
    inputs, outputs = view.shape
    if not view.name.endswith("c_attn.weight") or outputs not in {2 * inputs, 3 * inputs}:
        return (view.matrix(size=(outputs, inputs), arrange=transposed),)
    return tuple(
        view.matrix(
            f".{kind}", kind, size=(inputs, inputs), arrange=partial(columns, start=i * inputs, stop=(i + 1) * inputs)
        )
        for i, kind in enumerate("qkv"[-(outputs // inputs) :])
    )


def _looks_like_conv1d(view: _View) -> bool:
    """Whether name, shape and siblings say (in, out): c_attn and c_fc widen, c_proj of the MLP narrows."""
    match = _GPT2.search(view.name)
    if match is None or view.stored.layout is not None:
        return False
    wide = view.shape[1] - view.shape[0]
    if wide:
        narrows = match[2] == "c_proj" and match[1].endswith("mlp.")
        return wide < 0 if narrows else wide > 0
    fused = view.sibling(f"{match[2]}.weight", "c_attn.weight")
    return fused is not None and len(fused) == 2 and fused[1] > fused[0]


def _fused_qkv(view: _View) -> tuple[Part, ...] | None:
    """Query, key and value in one matrix, one below the other; head by head in GPT-NeoX and Bloom.

    Where the number of heads is not known, rows must be three times the columns, else the matrix stays whole.
    """
    if len(view.shape) != 2:
        return None
    rows, heads = view.shape[0], view.heads
    if _MIXED_QKV.search(view.name):
        if heads.model_type not in _HEADWISE_QKV or not heads.query or rows % (3 * heads.query):
            return (view.matrix(kind="qkv"),)
        size = (rows // 3, view.shape[1])
        arranges = [partial(headwise, heads=heads.query, which=which) for which in range(3)]
        return tuple(
            view.matrix(f".{k}", k, size=size, arrange=arrange) for k, arrange in zip("qkv", arranges, strict=True)
        )
    if not _FUSED_QKV.search(view.name):
        return None
    shares = (1, 1, 1)
    if heads.query and heads.key_value and not _VISION.search(view.name):
        shares = (heads.query, heads.key_value, heads.key_value)
    elif rows != 3 * view.shape[1]:
        return (view.matrix(kind="qkv"),)
    if rows % sum(shares):
        return (view.matrix(kind="qkv"),)
    unit = rows // sum(shares)
    return tuple(_row_parts(view, [(f".{k}", k, unit * share) for k, share in zip("qkv", shares, strict=True)]))


def _fused_gate_up(view: _View) -> tuple[Part, ...] | None:
    """Gate above up in one matrix (Phi-3, GLM-4)."""
    if len(view.shape) != 2 or not view.name.endswith("gate_up_proj.weight") or view.shape[0] % 2:
        return None
    half = view.shape[0] // 2
    return tuple(_row_parts(view, [(".gate", "gate", half), (".up", "up", half)]))


def _convolution_or_stack(view: _View) -> tuple[Part, ...] | None:
    """Three and more dimensions: a convolution, or independent matrices one behind the other."""
    if len(view.shape) < 3:
        return None
    if view.stored.layout == "conv" or len(view.shape) > 3 or _is_kernel(view):
        return (_convolution(view),)
    return _stack(view)


def _is_kernel(view: _View) -> bool:
    """Whether (a, b, c) is a one-dimensional convolution: the last dimension is short.

    A convolution's parameter is always called weight; there, one input channel (raw audio) or more outputs than
    kernel positions (the positional convolution of wav2vec 2.0, 768 x 48 x 128) is a convolution too.
    """
    outputs, inputs, positions = view.shape
    called_weight = view.name.endswith("weight")
    return positions <= LONGEST_KERNEL or (called_weight and (inputs == 1 or outputs >= positions))


def _convolution(view: _View, kind: str = "conv") -> Part:
    """All kernel positions of a convolution, pooled."""
    positions = math.prod(view.shape[2:])
    return Part(layer_name(view.name), kind, positions, view.shape[0], view.shape[1], view.lead, kernel_slices)


def _stack(view: _View) -> tuple[Part, ...]:
    """Independent matrices (n, ., .), as in home-made mixtures: each is a part ``[i]`` in stored orientation."""
    kind = kind_of(layer_name(view.name))
    return tuple(view.matrix(f"[{i}]", kind, (i,)) for i in range(view.shape[0]))


def _embedding(view: _View) -> tuple[Part, ...] | None:
    """What a module says is an embedding."""
    return (view.matrix(kind="embedding"),) if view.stored.layout == "embedding" and len(view.shape) == 2 else None


_RULES: tuple[Callable[[_View], tuple[Part, ...] | None], ...] = (
    _lora,
    _spectral,
    _embedding,
    _recurrent,
    _fused_experts,
    _gpt2,
    _fused_qkv,
    _fused_gate_up,
    _convolution_or_stack,
)
