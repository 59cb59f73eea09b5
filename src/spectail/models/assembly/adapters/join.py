"""Replace the pieces of adapters by the change of the weight that they make, one tensor ``<target>.lora`` each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from spectail.models.assembly.adapters.formulas import Facts
from spectail.models.assembly.adapters.forms import FORMS, Form
from spectail.models.assembly.adapters.known import NOTHING_KNOWN, Known, Scale
from spectail.models.assembly.adapters.spelling import VECTORS, Piece, read_name
from spectail.models.lazy_tensor import Index, LazyTensor, parameters_of, piece_of, unreadable
from spectail.models.naming.blocks import kind_of

FindBase: TypeAlias = Callable[[], "LazyTensor | None"]
ADVICE = "load the adapter with its base model and analyse the live model"
SHARED_OWNER = "base_model"
"""Where peft keeps the pieces that all layers share."""


@dataclass
class _Group:
    """The pieces of one adapter of one weight, by role."""

    target: str
    adapter: str
    form: str
    unknown: str = ""
    pieces: dict[str, LazyTensor] = field(default_factory=dict)


def join_adapters(
    tensors: Iterable[LazyTensor], stored: Mapping[str, LazyTensor], known: Known = NOTHING_KNOWN
) -> tuple[list[LazyTensor], list[str]]:
    """Replace the pieces of each adapter by one tensor that computes its change; returns notes for the user too.

    ``stored`` holds the source's tensors by name: scalars that are no weights are looked up there.
    """
    order, groups = _grouped(list(tensors), known)
    if not groups:
        return [_flat_vector(item) for item in order if isinstance(item, LazyTensor)], []
    _add_alphas(groups, stored)
    base_of = partial(_base_of, {s.name: s for s in order if isinstance(s, LazyTensor)}, known)
    shared = {(g.form, g.adapter): g.pieces for g in groups if g.target in {SHARED_OWNER, ""}}
    owned = {g.form for g in groups if g.target not in {SHARED_OWNER, ""}}
    adapters = Counter(g.target for g in groups)
    result: list[LazyTensor] = []
    unscaled = 0
    for item in order:
        if isinstance(item, LazyTensor):
            result.append(_flat_vector(item))
            continue
        if item.target == SHARED_OWNER and item.form in owned:
            continue
        name = ".".join(filter(None, (item.target, "lora", item.adapter if adapters[item.target] > 1 else "")))
        facts = _facts(item, known)
        unscaled += facts.scale is None and item.form in _SCALED
        result += _changes(name, item, facts, partial(base_of, item.target), shared.get((item.form, item.adapter), {}))
    return result, [_UNSCALED] if unscaled else []


_SCALED = frozenset({"lora", "lora embedding", "lora experts", "loha", "lokr"})
_UNSCALED = "the adapter's scaling is not stated (no adapter_config.json, no alpha): it is taken as 1, which moves norms and variances but not alpha"


_ALPHA_MAY_LACK = re.compile(r"(?:\.lora_up|[._]up|_layer\.up)(?:\.weight)?$|^lora_(?:unet|te\d*|transformer)_")


def _grouped(tensors: list[LazyTensor], known: Known) -> tuple[list[LazyTensor | _Group], list[_Group]]:
    """Collect the pieces of each adapter at the place of the first; the rest stays where it is."""
    peft_type = str(known.config.get("peft_type", ""))
    read = [read_name(stored.name) or _of_new_form(stored, peft_type) for stored in tensors]
    targets = {piece.target for piece in read if piece and piece.form not in {None, "unknown"}}
    groups: dict[tuple[str, str, str], _Group] = {}
    order: list[LazyTensor | _Group] = []
    beside: list[tuple[LazyTensor, Piece]] = []
    for stored, piece in zip(tensors, read, strict=True):
        if piece is None or (piece.form is None and piece.target not in targets):
            order.append(stored)
        elif piece.form is None:
            beside.append((stored, piece))
        else:
            key = (piece.target, piece.adapter, piece.form)
            if key not in groups:
                groups[key] = _Group(*key, piece.unknown)
                order.append(groups[key])
            groups[key].pieces[piece.role] = stored
    for stored, piece in beside:
        for group in groups.values():
            if group.target == piece.target and piece.adapter in {"", group.adapter}:
                group.pieces[piece.role] = stored
    for group in groups.values():
        _settle(group)
    return order, list(groups.values())


def _of_new_form(stored: LazyTensor, peft_type: str) -> Piece | None:
    """Read a matrix of an adapter file that is neither a known piece nor a weight that was saved whole."""
    if not peft_type or len(stored.shape) < 2 or VECTORS & set(stored.name.split(".")):
        return None
    match = re.search(rf"(?:^|\.){re.escape(peft_type.lower())}_\w+", stored.name)
    if match is None and stored.name.endswith(("weight", "bias")):
        return None
    target = stored.name[: match.start()] if match else stored.name.rpartition(".")[0]
    return Piece(target, "", "unknown", stored.name, peft_type)


def _settle(group: _Group) -> None:
    """Turn factors of other orientations into those of LoRA, and tell AdaLoRA apart from it."""
    if group.form == "lora lower":
        _orient(group)
    if group.form == "lora" and "singular" in group.pieces:
        group.form = "adalora"


def _orient(group: _Group) -> None:
    """Decide which factor of ``lora_a``, ``lora_b`` is applied first, and which way round each is stored.

    torchtune stores modules: a.weight (r, in), b.weight (out, r). MLX stores plain arrays: a (in, r), b (r, out), and
    for the experts of a mixture (experts, r, in), (experts, out, r).
    """
    a, b = group.pieces.pop("a", None), group.pieces.pop("b", None)
    group.form = "lora"
    if a is None or b is None:
        group.pieces.update({role: piece for role, piece in (("down", a), ("up", b)) if piece})
        return
    plain = not a.name.endswith(".weight")
    as_mlx, as_module = a.shape[-1:] == b.shape[:1], a.shape[:1] == b.shape[-1:]
    if len(a.shape) != 2 or len(b.shape) != 2 or not as_mlx or (as_module and not plain):
        group.pieces.update(down=a, up=b)
    elif kind_of(group.target) == "embedding":
        group.form = "lora embedding"
        group.pieces.update(down=_turned(a), up=_turned(b))
    else:
        group.pieces.update(down=_turned(a), up=_turned(b))


def _turned(stored: LazyTensor) -> LazyTensor:
    """Describe the transpose of a matrix."""
    return replace(stored, shape=stored.shape[::-1], read=partial(_read_turned, stored), memory=None)


def _read_turned(stored: LazyTensor, index: Index) -> Tensor:
    """Read the indexed piece of a transpose."""
    return piece_of(stored.read(()).T, index)


def _add_alphas(groups: Iterable[_Group], stored: Mapping[str, LazyTensor]) -> None:
    """Add stored alphas that were taken for no weight, for they may be integers."""
    by_target = {}
    for name, tensor in stored.items():
        piece = read_name(name)
        if piece and piece.role == "alpha":
            by_target[piece.target] = tensor
    for group in groups:
        if group.target in by_target:
            group.pieces.setdefault("alpha", by_target[group.target])


def _flat_vector(stored: LazyTensor) -> LazyTensor:
    """Describe IA3's and its kin's vectors as what they are; they are stored as (1, n) or (n, 1)."""
    pieces = stored.name.split(".")
    if len(stored.shape) < 2 or not VECTORS & set(pieces[-2:]):
        return stored
    return replace(stored, shape=(stored.numel,), memory=None)


def _base_of(weights: Mapping[str, LazyTensor], known: Known, target: str) -> LazyTensor | None:
    """Find the weight that an adapter changes: in the same source, else in the base model that the source names."""
    own = weights.get(f"{target}.weight" if target else "weight")
    found = own or known.base_of(target)
    return None if found is None or found.problem or not found.is_floating else found


def _facts(group: _Group, known: Known) -> Facts:
    """Collect what is known about an adapter; a stored alpha goes before the configuration."""
    scale = known.scale_of(group.target, group.adapter)
    alpha, rank = group.pieces.pop("alpha", None), _stored_rank(group)
    if alpha is not None and alpha.numel == 1 and not alpha.problem:
        # LyCORIS stores an alpha beside a LoKr of two whole factors too, which have no rank: it is not used.
        factor = float(alpha.read(()).reshape(())) / rank if rank else 1.0
        scale = Scale(factor, None)
    elif scale.factor is None and any(_ALPHA_MAY_LACK.search(s.name) for s in group.pieces.values()):
        scale = Scale(1.0, None)  # kohya's and diffusers' meaning of an alpha that is left out
    return Facts(scale.factor, scale.rank, known.config, scale.note)


def _stored_rank(group: _Group) -> int | None:
    """The rank of an adapter by its factors' shapes; None where it has none."""
    p = group.pieces
    if group.form == "lokr":
        factor = p.get("w1_b") or p.get("w2_b")
        return factor.shape[0] if factor else None
    form = FORMS.get(group.form)
    piece = p.get(form.rank_of) if form and form.rank_of else None
    if piece is None or len(piece.shape) < 2:
        return None
    return p["t1"].shape[0] if "t1" in p else piece.shape[1]


def _changes(
    name: str, group: _Group, facts: Facts, find_base: FindBase, shared: Mapping[str, LazyTensor]
) -> list[LazyTensor]:
    """Describe the change that one adapter makes, or say why it cannot be computed."""
    form = FORMS.get(group.form)
    if form is None:
        problem = f"an adapter of {group.unknown}, whose change of the weight is not computed from a file: {ADVICE}"
        return [_failed(name, find_base(), problem)]
    pieces = {**{role: shared[role] for role in form.shared if role in shared}, **group.pieces}
    problem = _missing(form, pieces) or next((p.problem for p in pieces.values() if p.problem), None)
    base = find_base() if _wants_base(group, form, pieces) else None
    if not problem and form.base in {"shape", "weight"} and base is None:
        what = "its shape" if form.base == "shape" else "its values"
        problem = f"{form.name} changes the base weight by {what}, and the base model is not at hand: {ADVICE}"
    if problem:
        return [_failed(name, base, problem)]
    if group.form == "lora" and _holds_experts(pieces, facts):
        return _expert_changes(name, pieces, facts)
    return [_change(name, group, form, pieces, facts, base)]


def _missing(form: Form, pieces: Mapping[str, LazyTensor]) -> str | None:
    """Say which piece an adapter lacks, by the name that peft gives it."""
    lacking = [roles for roles in form.needs if not any(role in pieces for role in roles.split("|"))]
    if not lacking:
        return None
    names = {"down": "lora_A", "up": "lora_B"} if form.name == "LoRA" else {}
    return f"the {form.name} factor {names.get(lacking[0], lacking[0])} is missing"


def _wants_base(group: _Group, form: Form, pieces: Mapping[str, LazyTensor]) -> bool:
    """Whether the base weight changes the result: for DoRA and for convolutions that are stored flat, if only useful."""
    if form.base == "useful":
        return "magnitude" in pieces or _is_flat(group, pieces)
    return form.base != "none"


def _failed(name: str, base: LazyTensor | None, problem: str) -> LazyTensor:
    """Describe an adapter whose change cannot be computed, by its weight's shape where that is known."""
    return unreadable(name, base.shape if base else (0, 0), "float64", problem, layout="lora")


def _change(
    name: str, group: _Group, form: Form, pieces: dict[str, LazyTensor], facts: Facts, base: LazyTensor | None
) -> LazyTensor:
    """Describe the change of one weight; its shape is found by computing it without values."""
    note = facts.note
    if base is not None:
        pieces["base"] = _turned(base) if facts.config.get("fan_in_fan_out") and len(base.shape) == 2 else base
    elif "magnitude" in pieces:
        note = "DoRA without its magnitude, which needs the base model: only the change by the factors is measured"
    read = partial(_read_change, group.form, pieces, facts)
    fused = pieces.get("down")
    problem = None
    shape: tuple[int, ...] = base.shape if base else (0, 0)
    try:
        shape = tuple(_compute(group.form, {r: _without_values(s) for r, s in pieces.items()}, facts).shape)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError):
        shapes = " and ".join(str(piece.shape) for role, piece in pieces.items() if role != "base")
        problem = f"{form.name} factors of shapes {shapes} do not multiply"
    if not problem and group.form == "lora" and facts.rank is not None and fused and fused.shape[0] != facts.rank:
        stated = f"its factors have rank {fused.shape[0]}, its configuration says {facts.rank}"
        problem = f"adapter of a fused parameter: {stated}"
    if not problem and base is None and _is_flat(group, pieces) and "conv" in group.target.rsplit(".", 1)[-1]:
        problem = f"{form.name} of a convolution whose kernel the file does not state: {ADVICE}"
    parameters = parameters_of(pieces.values())
    return LazyTensor(name, shape, "float64", read, "lora", problem, note=note, parameters=parameters)


def _is_flat(group: _Group, pieces: Mapping[str, LazyTensor]) -> bool:
    """Whether a form stores a convolution's change as one matrix (out, in x kernel)."""
    return group.form in {"adalora", "loha", "lokr"} and all(len(p.shape) <= 2 for p in pieces.values())


def _holds_experts(pieces: Mapping[str, LazyTensor], facts: Facts) -> bool:
    """Whether matrices are stored for every expert of a mixture (MLX)."""
    return len(pieces["down"].shape) == 3 == len(pieces["up"].shape) and pieces["down"].shape[0] == pieces["up"].shape[0]


def _expert_changes(name: str, pieces: Mapping[str, LazyTensor], facts: Facts) -> list[LazyTensor]:
    """Describe the change of every expert, ``<target>[i].lora``, of factors (experts, r, in) and (experts, out, r)."""
    down, up = pieces["down"], pieces["up"]
    target = name.removesuffix("lora").removesuffix(".")
    return [
        LazyTensor(
            f"{target}[{expert}].lora",
            (up.shape[1], down.shape[2]),
            "float64",
            partial(_read_expert, down, up, facts.factor, expert),
            "lora",
            note=facts.note,
            parameters=parameters_of(pieces.values()),
        )
        for expert in range(down.shape[0])
    ]


def _read_expert(down: LazyTensor, up: LazyTensor, factor: float, expert: int, index: Index) -> Tensor:
    """Compute s B A of one expert in float64."""
    change = up.read((expert,)).to(torch.float64) @ down.read((expert,)).to(torch.float64)
    return piece_of(change * factor, index)


def _without_values(stored: LazyTensor) -> Tensor:
    """A tensor of the same shape without values, for finding out shapes."""
    return torch.empty(stored.shape, dtype=torch.float64, device="meta")


def _compute(form: str, pieces: Mapping[str, Tensor], facts: Facts) -> Tensor:
    """Compute the change of one form."""
    return FORMS[form].formula(pieces, facts)


def _read_change(form: str, pieces: Mapping[str, LazyTensor], facts: Facts, index: Index) -> Tensor:
    """Compute a change in float64."""
    with torch.no_grad():
        values = {role: stored.read(()).detach().to(torch.float64) for role, stored in pieces.items()}
        return piece_of(_compute(form, values, facts), index)
