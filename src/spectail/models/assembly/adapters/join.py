"""Replace an adapter's pieces by the change of the weight that they make, ``<target>.lora``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spectail.basics.memory import too_large
from spectail.models.assembly.adapters.experts import expert_changes, fused_parameter, plain_target
from spectail.models.assembly.adapters.forms import FORMS, Form
from spectail.models.assembly.adapters.formulas import Facts
from spectail.models.assembly.adapters.groups import Group, add_alphas, grouped, turned
from spectail.models.assembly.adapters.known import NOTHING_KNOWN, Known, Scale
from spectail.models.assembly.adapters.spelling import VECTORS
from spectail.models.lazy_tensor import (
    MOST_EXPERTS,
    Index,
    LazyTensor,
    parameters_of,
    piece_of,
    unreadable,
)

ADVICE = "load the adapter with its base model and analyse the live model"
"""What to do about an adapter whose change cannot be computed from its file."""
SHARED_OWNER = "base_model"
"""Where peft keeps the pieces that all layers share."""
_SCALED = frozenset({"lora", "lora embedding", "loha", "lokr"})
"""Forms whose change is multiplied by a scale."""
_UNSCALED = (
    "the adapter's scaling is not stated (no adapter_config.json, no alpha): it is taken as 1, "
    "which moves norms and variances but not alpha"
)
"""Note for adapters with an unknown scale."""
_ALPHA_MAY_LACK = re.compile(
    r"(?:\.lora_up|[._]up|_layer\.up)(?:\.weight)?$|^lora_(?:unet|te\d*|transformer)_"
)
"""Names in the files of kohya and diffusers, where a missing alpha means a scale of 1."""


@dataclass(frozen=True)
class _Context:
    """What the changes of all adapters of a source have in common."""

    known: Known
    """What the source states about its adapters."""
    base_of: Callable[[str], LazyTensor | None]
    """From the target's name to the base weight; None if it is not available."""
    shared: Mapping[tuple[str, str], Mapping[str, LazyTensor]]
    """Pieces that all layers share, by form and adapter."""
    sizes: Mapping[str, tuple[int, int]]
    """Sizes (out, in) of LoRA's changes, by target."""


def join_adapters(
    tensors: Iterable[LazyTensor], stored: Mapping[str, LazyTensor], known: Known = NOTHING_KNOWN
) -> tuple[list[LazyTensor], list[str]]:
    """Replace the pieces of each adapter by one tensor that computes its change.

    The second result is a list of notes for the user.

    Args:
        tensors: All tensors that may be weights.
        stored: All tensors of the source, by name. Scalars, which are no weights, are found here.
        known: What the source states about its adapters.

    """
    order, groups = grouped(list(tensors), known)
    add_alphas(groups, stored)
    context = _context(order, groups, known)
    owned = {g.form for g in groups if not _is_shared(g)}
    adapters = _adapters_by_target(order, groups)
    result: list[LazyTensor] = []
    unscaled = 0
    for item in order:
        if isinstance(item, LazyTensor):
            result.append(_flat_vector(item))
        # Pieces that all layers share get a row only if no layer uses them.
        elif item.target != SHARED_OWNER or item.form not in owned:
            several = item.adapter and adapters[plain_target(item.target)] > 1
            facts = _facts(item, known)
            unscaled += facts.scale is None and item.form in _SCALED
            ending = f"lora.{item.adapter}" if several else "lora"
            result += _changes(item, ending, facts, context)
    return result, [_UNSCALED] if unscaled else []


def _is_shared(group: Group) -> bool:
    """Whether a group holds the pieces that all layers share, which peft keeps at the root."""
    return group.target in {SHARED_OWNER, ""}


def _context(order: list[LazyTensor | Group], groups: list[Group], known: Known) -> _Context:
    """Collect what the changes of all adapters have in common."""
    weights = {s.name: s for s in order if isinstance(s, LazyTensor)}
    sizes = {
        g.target: (g.pieces["up"].shape[0], g.pieces["down"].shape[-1])
        for g in groups
        if _has_factors(g)
    }
    shared = {(g.form, g.adapter): g.pieces for g in groups if _is_shared(g)}
    return _Context(known, partial(_base_of, weights, known), shared, sizes)


def _adapters_by_target(order: list[LazyTensor | Group], groups: list[Group]) -> Counter[str]:
    """Count the adapters of each weight: with several, rows need the adapter's name as well."""
    # Live modules of peft arrive as finished changes, ``<target>.lora.<adapter>``.
    finished = (
        s.name.partition(".lora.")
        for s in order
        if isinstance(s, LazyTensor) and s.layout == "lora"
    )
    return Counter(
        [
            *(plain_target(g.target) for g in groups),
            *(target for target, several, _ in finished if several),
        ]
    )


def _has_factors(group: Group) -> bool:
    """Whether both factors of a LoRA are there, as matrices."""
    return all(
        role in group.pieces and len(group.pieces[role].shape) > 1 for role in ("up", "down")
    )


def _flat_vector(stored: LazyTensor) -> LazyTensor:
    """Describe vectors such as IA3's with one dimension; they are stored as (1, n) or (n, 1)."""
    if len(stored.shape) < 2 or not VECTORS & set(stored.name.split(".")[-2:]):
        return stored
    return LazyTensor(
        stored.name, (stored.numel,), stored.dtype, stored.read, parameters=stored.parameters
    )


def _base_of(weights: Mapping[str, LazyTensor], known: Known, target: str) -> LazyTensor | None:
    """Find the weight that an adapter changes, in the same source or in the base model it names."""
    # A merged file holds the base weights beside the adapter.
    own = weights.get(f"{target}.weight" if target else "weight")
    found = own or known.base_of(target)
    return None if found is None or found.problem or not found.is_floating else found


def _facts(group: Group, known: Known) -> Facts:
    """Collect what is known about an adapter; a stored alpha goes before the configuration."""
    scale = known.scale_of(group.target, group.adapter)
    alpha, rank = group.pieces.pop("alpha", None), _stored_rank(group)
    if alpha is not None and alpha.numel == 1 and not alpha.problem:
        # LyCORIS stores an alpha even with a LoKr of two whole factors. Those have no rank, and the
        # alpha is not used.
        scale = Scale(float(alpha.read(()).reshape(())) / rank if rank else 1.0)
    elif scale.factor is None and any(
        _ALPHA_MAY_LACK.search(s.name) for s in group.pieces.values()
    ):
        scale = Scale(1.0)
    return Facts(scale.factor, scale.rank, known.config, scale.note)


def _stored_rank(group: Group) -> int | None:
    """Return the rank that the shapes of the factors show; None if there is none."""
    p = group.pieces
    if group.form == "lokr":
        factor = p.get("w1_b") or p.get("w2_b")
        return factor.shape[0] if factor else None
    form = FORMS.get(group.form)
    piece = p.get(form.rank_of) if form and form.rank_of else None
    if piece is None or len(piece.shape) < 2:
        return None
    # With a Tucker core, the factors are stored the other way round.
    return p["t1"].shape[0] if "t1" in p else piece.shape[1]


def _changes(group: Group, ending: str, facts: Facts, context: _Context) -> list[LazyTensor]:
    """Describe the change that one adapter makes, or say why it cannot be computed."""
    name = ".".join(filter(None, (plain_target(group.target), ending)))
    form = FORMS.get(group.form)
    if group.form == "prompts":
        return [
            replace(s, no_weight="prompts are inputs of the model") for s in group.pieces.values()
        ]
    if form is None:
        unknown = (
            f"an adapter of {group.unknown}, whose change of the weight is not computed from a "
            f"file: {ADVICE}"
        )
        return [_failed(name, context.base_of(group.target), unknown)]
    shared = context.shared.get((group.form, group.adapter), {})
    # A layer's own pieces go before the shared ones.
    pieces = {**{role: shared[role] for role in form.shared if role in shared}, **group.pieces}
    problem: str | None = _missing(form, pieces) or next(
        (p.problem for p in pieces.values() if p.problem), None
    )
    base = context.base_of(group.target) if _wants_base(group, form, pieces) else None
    if not problem and form.base in {"shape", "weight"} and base is None:
        problem = (
            f"{form.name} needs the {form.base} of the base weight, which is not at hand: {ADVICE}"
        )
    problem = problem or _variant(form, facts)
    if problem:
        return [_failed(name, base, problem)]
    if group.form == "lora" and (rows := _expert_rows(group, ending, pieces, facts, context)):
        return rows
    return [_change(name, group, form, pieces, facts, base)]


def _missing(form: Form, pieces: Mapping[str, LazyTensor]) -> str | None:
    """Say which piece an adapter lacks, by peft's name; None if it lacks none."""
    lacking = [
        roles for roles in form.needs if not any(role in pieces for role in roles.split("|"))
    ]
    if not lacking:
        return None
    names = {"down": "lora_A", "up": "lora_B"} if form.name == "LoRA" else {}
    return f"the {form.name} factor {names.get(lacking[0], lacking[0])} is missing"


_VARIANTS = (
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
)
"""Settings of peft's LoRA under which the change is not s B A."""


def _variant(form: Form, facts: Facts) -> str | None:
    """Say which variant of LoRA an adapter is if that is not computed; None for the known ones."""
    used = [key for key in _VARIANTS if facts.config.get(key)] if form.name == "LoRA" else []
    return (
        f"LoRA with {used[0]}, whose change of the weight is not computed from a file: {ADVICE}"
        if used
        else None
    )


def _wants_base(group: Group, form: Form, pieces: Mapping[str, LazyTensor]) -> bool:
    """Whether the base weight changes the result.

    A weight that is only useful matters for DoRA and for convolutions stored as a matrix.
    """
    if form.base == "useful":
        return "magnitude" in pieces or _is_flat(group, pieces)
    return form.base != "none"


def _failed(name: str, base: LazyTensor | None, problem: str) -> LazyTensor:
    """Describe an adapter whose change cannot be computed, with its weight's shape if known."""
    return unreadable(name, base.shape if base else (0, 0), "float64", problem, layout="lora")


def _expert_rows(
    group: Group, ending: str, pieces: Mapping[str, LazyTensor], facts: Facts, context: _Context
) -> list[LazyTensor]:
    """Describe the changes of all experts of a fused parameter; empty for any other adapter."""
    down, up = pieces["down"], pieces["up"]
    if (
        len(down.shape) == 3 == len(up.shape)
        and down.shape[0] == up.shape[0] <= MOST_EXPERTS
        and down.shape[1] == up.shape[2]
    ):
        return expert_changes(
            group.target, ending, down, up, down.shape[0], factor=facts.factor, note=facts.note
        )
    if group.target not in context.sizes:
        return []
    fused = fused_parameter(group.target, context.sizes, facts.config, context.base_of)
    if fused is None:
        return []
    # peft joins the factors of all experts along the rank.
    experts, rest = divmod(down.shape[0], facts.rank or down.shape[0])
    problem: str | None = fused.problem
    if experts > MOST_EXPERTS:
        problem = f"{experts:,} experts, more than {MOST_EXPERTS:,}: the adapter is damaged"
    if rest or down.shape[0] != up.shape[1]:
        problem = (
            f"factors of shapes {up.shape} and {down.shape} are not {facts.rank} times a number "
            "of experts"
        )
    if problem:
        name, size = f"{group.target}.{ending}", context.sizes[group.target]
        return [unreadable(name, size, "float64", problem, layout="lora")]
    return expert_changes(
        fused.parameter, ending, down, up, experts, factor=facts.factor, note=facts.note
    )


def _change(
    name: str,
    group: Group,
    form: Form,
    pieces: dict[str, LazyTensor],
    facts: Facts,
    base: LazyTensor | None,
) -> LazyTensor:
    """Describe the change of one weight; a computation without values gives its shape."""
    note = facts.note
    # fan_in_fan_out marks GPT-2's Conv1D, whose weight is stored as (in, out).
    if base is not None:
        pieces["base"] = (
            turned(base) if facts.config.get("fan_in_fan_out") and len(base.shape) == 2 else base
        )
    elif "magnitude" in pieces:
        note = (
            "DoRA without its magnitude, which needs the base model: only the change by the "
            "factors is measured"
        )
    shape, problem = _shape_of(form, pieces, facts)
    problem = problem or _misfit(group, form, pieces, facts) or too_large(shape, 8)
    read = partial(_read_change, group.form, pieces, facts)
    parameters = parameters_of(pieces.values())
    return LazyTensor(
        name, shape, "float64", read, "lora", problem, note=note, parameters=parameters
    )


def _shape_of(
    form: Form, pieces: Mapping[str, LazyTensor], facts: Facts
) -> tuple[tuple[int, ...], str | None]:
    """Return the shape of a change, and None or the reason why the pieces make no change.

    The formula runs on the meta device, which computes shapes without values.
    """
    empty = {r: torch.empty(s.shape, dtype=torch.float64, device="meta") for r, s in pieces.items()}
    try:
        return tuple(form.formula(empty, facts).shape), None
    # Shapes that do not fit raise whatever torch raises in the formula.
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError):
        shapes = " and ".join(str(piece.shape) for role, piece in pieces.items() if role != "base")
        base = pieces.get("base")
        shape = base.shape if base else (0, 0)
        return shape, f"{form.name} factors of shapes {shapes} do not multiply"


def _misfit(group: Group, form: Form, pieces: Mapping[str, LazyTensor], facts: Facts) -> str | None:
    """Say why pieces that multiply are no change of the weight; None if they are."""
    down = pieces.get("down")
    # Experts that the configuration does not name show up as a multiple of the rank.
    if group.form == "lora" and facts.rank is not None and down and down.shape[0] != facts.rank:
        stated = f"its factors have rank {down.shape[0]}, its configuration says {facts.rank}"
        return f"adapter of a fused parameter: {stated}"
    if (
        "base" not in pieces
        and _is_flat(group, pieces)
        and "conv" in group.target.rsplit(".", 1)[-1]
    ):
        return f"{form.name} of a convolution whose kernel the file does not state: {ADVICE}"
    return None


def _is_flat(group: Group, pieces: Mapping[str, LazyTensor]) -> bool:
    """Whether a form stores a convolution's change as one matrix (out, in x kernel)."""
    return group.form in {"adalora", "loha", "lokr"} and all(
        len(p.shape) <= 2 for p in pieces.values()
    )


def _read_change(form: str, pieces: Mapping[str, LazyTensor], facts: Facts, index: Index) -> Tensor:
    """Compute a change in float64."""
    with torch.no_grad():
        # float64, because DoRA, OFT and HRA subtract nearly equal matrices.
        values = {
            role: stored.read(()).detach().to(torch.float64) for role, stored in pieces.items()
        }
        return piece_of(FORMS[form].formula(values, facts), index)
