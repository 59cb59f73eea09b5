"""Grouping of the pieces of adapters, by the weight that each adapter changes and by role."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from spectail.models.assembly.adapters.known import Known
from spectail.models.assembly.adapters.spelling import VECTORS, Piece, read_name, read_stray
from spectail.models.lazy_tensor import Index, LazyTensor, piece_of
from spectail.models.naming.kinds import kind_of


@dataclass
class Group:
    """The pieces of one adapter of one weight, by role."""

    target: str
    """Name of the weight that the adapter changes."""
    adapter: str
    """Name of the adapter; empty if it has none."""
    form: str
    """Key of ``forms.FORMS``, ``prompts`` or ``unknown``."""
    unknown: str = ""
    """Name of a form whose change is not computed, else empty."""
    pieces: dict[str, LazyTensor] = field(default_factory=dict)


def grouped(
    tensors: list[LazyTensor], known: Known
) -> tuple[list[LazyTensor | Group], list[Group]]:
    """Collect the pieces of each adapter, at the place of its first one.

    The first result keeps all other tensors in their places; the second lists the groups alone.
    """
    peft_type = str(known.config.get("peft_type", ""))
    read = [read_name(stored.name) or _of_new_form(stored, peft_type) for stored in tensors]
    # Names such as ``m`` or ``alpha`` are pieces only beside the factors of a known form.
    targets = {
        piece.target for piece in read if piece and piece.form not in {None, "unknown", "prompts"}
    }
    groups: dict[tuple[str, str, str], Group] = {}
    order: list[LazyTensor | Group] = []
    beside: list[tuple[LazyTensor, Piece]] = []
    for stored, piece in zip(tensors, read, strict=True):
        if piece is None or (piece.form is None and piece.target not in targets):
            order.append(stored)
        # A magnitude or an alpha fits several forms: decide once all groups are known.
        elif piece.form is None:
            beside.append((stored, piece))
        else:
            key = (piece.target, piece.adapter, piece.form)
            if key not in groups:
                groups[key] = Group(*key, piece.unknown)
                order.append(groups[key])
            # Later pieces join the group of the first.
            groups[key].pieces[piece.role] = stored
    by_adapter: dict[tuple[str, str], list[Group]] = {}
    for group in groups.values():
        # A piece without an adapter's name goes with every adapter of the weight.
        for adapter in {"", group.adapter}:
            by_adapter.setdefault((group.target, adapter), []).append(group)
    for stored, piece in beside:
        for group in by_adapter.get((piece.target, piece.adapter), ()):
            group.pieces[piece.role] = stored
    for group in groups.values():
        _settle(group)
    return _without_strays(order, groups.values()), list(groups.values())


def _without_strays(
    order: list[LazyTensor | Group], groups: Iterable[Group]
) -> list[LazyTensor | Group]:
    """Drop pieces of unknown variants of LoRA, such as LoRA-XS, and mark their adapters as unknown.

    With such a piece, the change is not s B A, so computing it would give wrong values.
    """
    by_target: dict[str, list[Group]] = {}
    for group in groups:
        by_target.setdefault(group.target, []).append(group)
    kept: list[LazyTensor | Group] = []
    for item in order:
        stray = read_stray(item.name) if isinstance(item, LazyTensor) else None
        concerned = by_target.get(stray[0], []) if stray else []
        for group in concerned:
            group.form, group.unknown = "unknown", f"LoRA with {stray[1]}" if stray else ""
        if not concerned:
            kept.append(item)
    return kept


def _of_new_form(stored: LazyTensor, peft_type: str) -> Piece | None:
    """Read a matrix of an adapter file that is no known piece and no weight that was saved whole.

    Such a name contains the method that the configuration states, or does not end in weight or
    bias.
    """
    # Without a peft_type the file is no adapter, and unknown names are ordinary weights.
    if not peft_type or len(stored.shape) < 2 or VECTORS & set(stored.name.split(".")):
        return None
    match = re.search(rf"(?:^|\.){re.escape(peft_type.lower())}_\w+", stored.name)
    if match is None and stored.name.endswith(("weight", "bias")):
        return None
    target = stored.name[: match.start()] if match else stored.name.rpartition(".")[0]
    return Piece(target, "", "unknown", stored.name, peft_type)


def _settle(group: Group) -> None:
    """Bring the factors of a group into LoRA's orientation, and tell AdaLoRA apart from LoRA."""
    if group.form == "lora lower":
        _orient(group)
    if group.form == "lora" and "singular" in group.pieces:
        group.form = "adalora"


def _orient(group: Group) -> None:
    """Decide which of ``lora_a`` and ``lora_b`` is applied first, and how each is oriented.

    torchtune stores modules: a.weight (r, in) and b.weight (out, r). MLX stores plain arrays: a
    (in, r) and b (r, out), and for the experts of a mixture (experts, r, in) and (experts, out, r).
    """
    a, b = group.pieces.pop("a", None), group.pieces.pop("b", None)
    group.form = "lora"
    if a is None or b is None:
        group.pieces.update({role: piece for role, piece in (("down", a), ("up", b)) if piece})
        return
    plain = not a.name.endswith(".weight")
    # The shared dimension is the rank. For in = out both readings fit, and the name tells.
    as_mlx, as_module = a.shape[-1:] == b.shape[:1], a.shape[:1] == b.shape[-1:]
    if len(a.shape) != 2 or len(b.shape) != 2 or not as_mlx or (as_module and not plain):
        group.pieces.update(down=a, up=b)
    elif kind_of(group.target) == "embedding":
        group.form = "lora embedding"
        group.pieces.update(down=turned(a), up=turned(b))
    else:
        group.pieces.update(down=turned(a), up=turned(b))


def turned(stored: LazyTensor) -> LazyTensor:
    """Describe the transpose of a matrix."""
    return replace(
        stored, shape=stored.shape[::-1], read=partial(_read_turned, stored), memory=None
    )


def _read_turned(stored: LazyTensor, index: Index) -> Tensor:
    """Read the indexed piece of a transpose."""
    return piece_of(stored.read(()).T, index)


def add_alphas(groups: Iterable[Group], stored: Mapping[str, LazyTensor]) -> None:
    """Add alphas that are no weights to their groups; they may be stored as integers."""
    by_target = {}
    for name, tensor in stored.items():
        piece = read_name(name)
        if piece and piece.role == "alpha":
            by_target[piece.target] = tensor
    for group in groups:
        if group.target in by_target:
            # An alpha that was collected as a piece already stays.
            group.pieces.setdefault("alpha", by_target[group.target])
