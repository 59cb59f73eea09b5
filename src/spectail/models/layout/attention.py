"""Fused projections of attention: query, key and value in one matrix.

The rows of the matrix come in one of several forms, here from top to bottom, for ``h`` query heads
and ``k`` key and value heads of ``s`` rows each:

- *in blocks*: all of the query (h s rows), then the key (k s), then the value (k s);
- *head by head*: query, key and value of the first head, then of the second, and so on (GPT-NeoX,
  Bloom);
- *group by group*: h/k query heads, then their key and their value head, for each of the k groups
  (InternLM2);
- CodeGen: four equal groups, each with its query, *value* and key.

A name alone does not tell the form, so the model's family (``model_type``) decides, and the numbers
come from the configuration. A matrix stays whole, with a note, if the numbers do not fit its rows
or the form is not known. Without a configuration, a matrix is cut only if it has three times as
many rows as columns (or as the output projection has columns) and a name that usually means blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from spectail.models.layout.configuration import Config, Heads, family_of, heads_of, number
from spectail.models.layout.cut import Cut, Segment, cut_columns, cut_rows, halves
from spectail.models.layout.part import Part
from spectail.models.layout.view import View

_IN_BLOCKS = r"in_proj_weight|qkv|qkv_proj|Wqkv|W_pack|to_qkv|c_attn|qkv_linear|attn_qkv|gqkv_proj"
"""Names that mean query above key above value, unless the family is listed with another form."""
_ANY_FORM = r"query_key_value|wqkv|linear_qkv"
"""Names whose form depends on the family."""
_FUSED = re.compile(rf"(?:^|[._])(?:(?P<blocks>{_IN_BLOCKS})|(?P<other>{_ANY_FORM}))$")
"""Any fused projection of query, key and value."""
_AMBIGUOUS = re.compile(r"(?:^|\.)(?:h\.\d+\.attn\.qkv_proj|attn_(?:block|grid)\.attn\.qkv)$")
"""CodeGen's layer and that of timm's MaxViT, which exists both in blocks and head by head."""
_KEY_VALUE = re.compile(r"(?:^|\.)(?:to_kv|kv|kv_proj|kv_linear|key_value)$")
"""Fused projections of key and value."""
_OUTPUT = (
    "proj",
    "out_proj",
    "o_proj",
    "to_out",
    "to_out.0",
    "wo",
    "Wo",
    "dense",
    "c_proj",
    "attn_output",
)
"""Names of the output projection beside a fused one."""
_CODEGEN_GROUPS = 4
"""CodeGen was trained on four cores per replica, and the checkpoint keeps the rows in that
order."""

Form: TypeAlias = "Callable[[Heads, Config], Cut | None]"
"""Computes the cut from the number of heads; None if that needs the size of a head and it is
unknown."""


def _segments(groups: int, query: int, key_value: int, order: str = "qkv") -> Cut:
    """Build a cut whose groups hold the given numbers of query, key and value rows."""
    sizes = {"q": query, "k": key_value, "v": key_value}
    return Cut(groups, tuple(Segment(kind, kind, sizes[kind]) for kind in order))


def in_blocks(heads: Heads, config: Config) -> Cut | None:
    """Cut the query above the key above the value."""
    if not heads.size:
        return None
    return _segments(1, heads.query * heads.size, heads.key_value * heads.size)


def head_by_head(heads: Heads, config: Config) -> Cut | None:
    """Cut query, key and value of each head together."""
    return _segments(heads.query, heads.size, heads.size) if heads.size else None


def group_by_group(heads: Heads, config: Config) -> Cut | None:
    """Cut groups of query heads, each above the key head and the value head that it shares."""
    if not heads.size or heads.query % heads.key_value:
        return None
    return _segments(heads.key_value, heads.query // heads.key_value * heads.size, heads.size)


def _codegen(heads: Heads, config: Config) -> Cut | None:
    """Cut four groups of query, value and key."""
    # An unknown size gives one row, which is no multiple of four and therefore yields no cut.
    rows = heads.query * heads.size if heads.size else 1
    if rows % _CODEGEN_GROUPS:
        return None
    return _segments(_CODEGEN_GROUPS, rows // 4, rows // 4, "qvk")


def _falcon(heads: Heads, config: Config) -> Cut | None:
    """Cut Falcon's projection, whose form depends on the version.

    The new decoder (40B, 180B, Falcon 2) goes group by group, the 7B model in blocks with one
    shared head, and the others head by head.
    """
    # The flag separates the checkpoints with grouped key and value heads from the older ones.
    if config.get("new_decoder_architecture"):
        return group_by_group(heads, config)
    return _one_shared_head(heads, config)


def _one_shared_head(heads: Heads, config: Config) -> Cut | None:
    """Cut in blocks if the configuration says that heads share key and value, else head by head."""
    shared = config.get("multi_query") or config.get("multi_query_attention")
    return in_blocks(heads, config) if shared else head_by_head(heads, config)


_FORMS: Mapping[str, Form] = {
    **dict.fromkeys(
        ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon", "fuyu", "deberta"), head_by_head
    ),
    **dict.fromkeys(("minimax", "minimax_text_01", "minimax_m1"), head_by_head),
    **dict.fromkeys(("internlm2", "phi3small", "RefinedWeb"), group_by_group),
    **dict.fromkeys(("codegen", "moss"), _codegen),
    **dict.fromkeys(("falcon", "RefinedWebModel"), _falcon),
    **dict.fromkeys(("gpt_bigcode", "chatglm"), _one_shared_head),
    **dict.fromkeys(("bailing_moe", "bailing_moe_v2", "glm"), in_blocks),
}
"""Families whose form differs from the one that the name suggests, or whose name
(``query_key_value``) is used for several forms."""


@dataclass(frozen=True)
class _Decision:
    """How to cut a fused matrix, or why it stays whole."""

    cut: Cut | None
    note: str = ""


def fused_attention(view: View) -> tuple[Part, ...] | None:
    """Cut query, key and value out of one matrix (out, in), or keep it whole and say why."""
    match = _FUSED.search(view.layer)
    if len(view.shape) != 2 or (match is None and not _is_in_projection(view)):
        return None
    known = match is not None and match["blocks"] is not None and not _AMBIGUOUS.search(view.layer)
    # The family goes before the name: the same name stands for several forms.
    decision = _decide(view, _FORMS.get(family_of(view.config), in_blocks if known else None))
    if decision.cut is None:
        return (view.matrix(kind="qkv", note=decision.note),)
    return cut_rows(view, decision.cut)


def _is_in_projection(view: View) -> bool:
    """Whether a layer called ``in_proj`` is a fused attention projection.

    State-space layers use the same name. DeBERTa's projection has biases of its own beside it, and
    Qwen-VL's lies in an attention module.
    """
    if view.last != "in_proj":
        return False
    in_attention = "attn" in view.layer.split(".")[-2:][0]
    return view.sibling("q_bias") is not None or (
        in_attention and view.shape[0] == 3 * view.shape[1]
    )


def _decide(view: View, form: Form | None) -> _Decision:
    """Find the cut that fits the rows, or the reason why there is none."""
    rows = view.shape[0]
    # LeViT's values are wider than its keys, so the general rules below would cut it wrongly.
    if (by_table := _with_attention_biases(view)) is not None:
        return _Decision(by_table)
    # torch's own MultiheadAttention: always three equal blocks.
    if view.last.endswith("in_proj_weight") and rows == 3 * view.shape[1]:
        return _Decision(halves(rows, "q", "k", "v"))
    if view.last.endswith("gqkv_proj"):
        return _Decision(_gated(view))
    # Nothing below applies if the order of the rows is unknown.
    family = family_of(view.config)
    if form is None:
        which = f"of model type {family!r}" if family else "without a configuration"
        return _Decision(
            None,
            f"query, key and value are fused in an order that is not known {which}: kept whole",
        )
    heads = _sized(heads_of(view.config, view.name), rows)
    cut = form(heads, view.config) if heads else None
    if cut is not None and cut.rows == rows:
        return _Decision(cut)
    # Numbers that do not fit may belong to another sub-model. Three equal blocks are then safe only
    # if their size is a width that this layer certainly has.
    equal = rows % 3 == 0 and rows // 3 in {view.shape[1], _output_columns(view)}
    # Heads that are grouped make key and value smaller than the query: no equal blocks.
    if form is in_blocks and equal and (heads is None or not heads.grouped):
        return _Decision(halves(rows, "q", "k", "v"))
    return _Decision(None, _why_not(rows, heads))


def _sized(heads: Heads | None, rows: int) -> Heads | None:
    """Fill in the size of a head from the number of rows if the configuration does not state it."""
    if heads is None or heads.size is not None:
        return heads
    size, rest = divmod(rows, heads.query + 2 * heads.key_value)
    return heads if rest else replace(heads, size=size)


def _output_columns(view: View) -> int:
    """Return the number of columns of the output projection beside a layer, or 0 without one.

    It equals the number of value rows if heads share no values.
    """
    output = view.sibling(*_OUTPUT)
    return output[1] if output and len(output) == 2 else 0


def _why_not(rows: int, heads: Heads | None) -> str:
    """Say why the heads of the configuration do not fit the rows."""
    if heads is None:
        return "query, key and value are fused, and no configuration tells the heads: kept whole"
    size = f"of {heads.size} rows" if heads.size else "of unknown size"
    return (
        f"query, key and value are fused, and {rows} rows are not the {heads.query} + 2 x "
        f"{heads.key_value} heads {size} that the configuration states: kept whole"
    )


def _gated(view: View) -> Cut | None:
    """Cut output gate, query, key and value in blocks (HRM); the gate is as tall as the query."""
    heads = heads_of(view.config, view.name)
    if heads is None or heads.size is None:
        return None
    query, shared = heads.query * heads.size, heads.key_value * heads.size
    names = (("gate", "linear", query), ("q", "q", query), ("k", "k", shared), ("v", "v", shared))
    cut = Cut(1, tuple(Segment(*segment) for segment in names))
    return cut if cut.rows == view.shape[0] else None


def _with_attention_biases(view: View) -> Cut | None:
    """Cut the projection of LeViT and its successors (TinyViT), or return None for other models.

    They go head by head, with values wider than keys. A table of attention biases beside the layer
    tells the number of heads.
    """
    table, columns = view.sibling("attention_biases"), _output_columns(view)
    if table is None or len(table) != 2 or columns % table[0] or view.shape[0] % table[0]:
        return None
    # The output projection reads all values; what is left of the rows is query and key.
    value = columns // table[0]
    key, odd = divmod(view.shape[0] // table[0] - value, 2)
    return None if odd or key < 1 else Cut(table[0], _unequal(key, key, value))


def _unequal(*rows: int) -> tuple[Segment, ...]:
    """Build the segments of query, key and value with the given numbers of rows."""
    return tuple(Segment(kind, kind, size) for kind, size in zip("qkv", rows, strict=True))


def fused_key_value(view: View) -> tuple[Part, ...] | None:
    """Cut key and value out of one matrix that lies beside a separate query.

    It is cut into halves if the query beside it has half as many rows, or if the heads of the
    configuration fill the halves. The compressed key and value of multi-head latent attention have
    other names and stay whole.
    """
    if len(view.shape) != 2 or not _KEY_VALUE.search(view.layer):
        return None
    rows, query = view.shape[0], view.sibling("q", "to_q", "q_proj", "q_linear", "query")
    heads = heads_of(view.config, view.name)
    fits = heads is not None and heads.size is not None and rows == 2 * heads.key_value * heads.size
    # Twice the rows of the query means one key and one value head for each query head.
    if (query and 2 * query[0] == rows) or (family_of(view.config) == "jetmoe" and fits):
        return cut_rows(view, halves(rows, "k", "v"))
    note = "a fused key and value whose halves nothing in the model confirms: kept whole"
    # DeepSeek-V4's kv_proj is one matrix that serves as both.
    return (view.matrix(kind="kv", note="" if family_of(view.config) == "deepseek_v4" else note),)


def linear_attention(view: View) -> tuple[Part, ...] | None:
    """Cut the input projections of gated delta nets (Qwen3-Next and Qwen3.5).

    Qwen3-Next goes by key head: ``in_proj_qkvz`` holds the query, key, values and output gates of
    each, ``in_proj_ba`` its gates b and a. ``in_proj_qkv`` of Qwen3.5 is in blocks.
    """
    if len(view.shape) != 2 or view.last not in {"in_proj_qkvz", "in_proj_ba", "in_proj_qkv"}:
        return None
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    sizes = [number(view.config, (f"linear_{name}",)) for name in names]
    kind = "linear" if view.last == "in_proj_ba" else "qkv"
    if None in sizes:
        return (
            view.matrix(kind=kind, note="fused, and no configuration tells its heads: kept whole"),
        )
    # ``None`` is excluded above; ``or 1`` only tells the type checker so.
    keys, values, key, value = (size or 1 for size in sizes)
    shared = values // keys
    cut = {
        "in_proj_qkv": Cut(1, _unequal(keys * key, keys * key, values * value)),
        "in_proj_qkvz": Cut(
            keys, (*_unequal(key, key, shared * value), Segment("z", "linear", shared * value))
        ),
        "in_proj_ba": Cut(keys, (Segment("b", "linear", shared), Segment("a", "linear", shared))),
    }[view.last]
    if cut.rows != view.shape[0]:
        note = (
            f"fused, and {view.shape[0]} rows are not the {cut.rows} that the configuration "
            "states: kept whole"
        )
        return (view.matrix(kind=kind, note=note),)
    return cut_rows(view, cut)


def conv1d_attention(view: View) -> tuple[Part, ...] | None:
    """Cut GPT-2's ``c_attn``, stored as (in, out): query, key and value in blocks.

    That of cross-attention holds key and value only.
    """
    inputs, outputs = view.shape
    # Cross-attention takes its query from q_attn, so its c_attn has two blocks, not three.
    if view.last != "c_attn" or outputs not in {2 * inputs, 3 * inputs}:
        return None
    return cut_columns(view, halves(outputs, *"qkv"[-(outputs // inputs) :]))
