"""The forms in which weights are stored, as one table, and the assembly of the weights.

A new form is one function and one line in ``RECIPES``. The function receives the tensors that the
line's name patterns found (see ``pieces``) and returns the weight. It returns None if shapes or
types are not those of the form; the next recipes are then tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spectail.models.assembly import (
    eight_bit,
    factorised,
    four_bit_floats,
    hqq,
    packed_integers,
    reparametrised,
    vector_quantised,
)
from spectail.models.assembly.leftovers import is_no_weight, is_plain_weight, judge_the_rest
from spectail.models.assembly.pieces import Pieces, fill_in, match_name, may_match
from spectail.models.assembly.quantisation import Quantisation, quantisation_of
from spectail.models.assembly.unreadable import exl2_shape, exl3_shape, marlin_shape, packed_by
from spectail.models.lazy_tensor import LazyTensor


@dataclass(frozen=True)
class Recipe:
    """How the tensors of one storage form make up a weight."""

    name: str
    """What the form is called."""
    anchor: str
    """Name pattern of the tensor whose place the weight takes."""
    pieces: tuple[str, ...]
    """Name patterns of the other tensors that belong to it. A ``?`` at the end marks an optional
    one."""
    weight: str
    """Name pattern of the weight that they make up."""
    build: Callable[[Pieces], LazyTensor | None]
    """Describes the weight, or a weight that cannot be computed; None if the tensors have another
    form."""

    @property
    def required(self) -> tuple[str, ...]:
        """Name patterns of the tensors that must be there, the anchor first."""
        return (self.anchor, *(piece for piece in self.pieces if not piece.endswith("?")))


def _optional(*patterns: str) -> tuple[str, ...]:
    """Mark every pattern as optional."""
    return tuple(f"{pattern}?" for pattern in patterns)


_ZEROS = _optional(*eight_bit.ZERO_POINTS)
_PARAMETRIZED = "{}.parametrizations.*"
"""Where torch keeps the original parameters of a parametrised module."""
RECIPES: tuple[Recipe, ...] = (
    # Computed by torch. There are two generations: parametrisations, and the hooks of old torch.
    Recipe(
        "weight norm",
        f"{_PARAMETRIZED}.original1",
        (f"{_PARAMETRIZED}.original0",),
        "{}.*",
        reparametrised.weight_norm,
    ),
    Recipe("weight norm of old torch", "{}.*_v", ("{}.*_g",), "{}.*", reparametrised.weight_norm),
    Recipe(
        "spectral norm",
        f"{_PARAMETRIZED}.original",
        (f"{_PARAMETRIZED}.0._u", f"{_PARAMETRIZED}.0._v?"),
        "{}.*",
        reparametrised.spectral_norm,
    ),
    # Masks and old spectral norm both keep ``*_orig``; the piece beside it tells them apart.
    Recipe("pruning mask", "{}.*_orig", ("{}.*_mask",), "{}.*", reparametrised.pruned),
    Recipe(
        "spectral norm of old torch",
        "{}.*_orig",
        ("{}.*_u", "{}.*_v?"),
        "{}.*",
        reparametrised.spectral_norm,
    ),
    # Every parametrisation that is left is an unknown one.
    Recipe(
        "parametrisation",
        f"{_PARAMETRIZED}.original",
        (),
        "{}.*",
        reparametrised.unknown_parametrisation,
    ),
    Recipe(
        "parametrisation",
        f"{_PARAMETRIZED}.original0",
        (),
        "{}.*",
        reparametrised.unknown_parametrisation,
    ),
    *(
        Recipe("factors", *factorised.patterns(number), "{}.*", factorised.factorised)
        for number in ("factor_", "")
    ),
    # 4-bit floats. Forms with two scales are tried before those with one.
    Recipe("MXFP4 experts", "{}.*_blocks", ("{}.*_scales",), "{}.*", four_bit_floats.mxfp4_experts),
    Recipe("MXFP4 blocks", "{}.*.blocks", ("{}.*.scales",), "{}.*", four_bit_floats.mxfp4_blocks),
    Recipe(
        "NVFP4",
        "{}.*_packed",
        ("{}.*_scale", "{}.*_global_scale"),
        "{}.*",
        four_bit_floats.nvfp4_divided,
    ),
    Recipe("MXFP4", "{}.*_packed", ("{}.*_scale",), "{}.*", four_bit_floats.mxfp4),
    Recipe(
        "NVFP4 of ModelOpt",
        "{}.*",
        ("{}.*_scale", "{}.*_scale_2", "{}.comfy_quant?"),
        "{}.*",
        four_bit_floats.nvfp4_multiplied,
    ),
    Recipe("MXFP4 bytes", "{}.*", ("{}.*_scale",), "{}.*", four_bit_floats.mxfp4),
    Recipe("MXFP4 bytes", "{}.*", ("{}.*_scale_inv",), "{}.*", four_bit_floats.mxfp4),
    Recipe("MXFP4 bytes", "{}.weight", ("{}.scale",), "{}.weight", four_bit_floats.mxfp4),
    Recipe(
        "bitsandbytes 4-bit",
        "{}.*",
        (
            "{}.*.absmax",
            "{}.*.quant_map",
            *_optional("{}.*.nested_absmax", "{}.*.nested_quant_map"),
            *_optional("{}.*.quant_state.bitsandbytes__nf4", "{}.*.quant_state.bitsandbytes__fp4"),
        ),
        "{}.*",
        four_bit_floats.bitsandbytes_4bit,
    ),
    # Packed integers. Formats with a telling tensor come before those that share its other names.
    Recipe(
        "SqueezeLLM",
        "{}.qweight",
        ("{}.lookup_table",),
        "{}.weight",
        packed_by("packed integers (SqueezeLLM)"),
    ),
    Recipe(
        "FP-Quant",
        "{}.qweight",
        ("{}.forward_hadamard_matrix",),
        "{}.weight",
        packed_by("4-bit floats (FP-Quant)"),
    ),
    Recipe("AWQ", "{}.qweight", ("{}.scales", "{}.qzeros"), "{}.weight", packed_integers.awq),
    Recipe(
        "GPTQ",
        "{}.qweight",
        ("{}.scales", "{}.qzeros?", "{}.g_idx?"),
        "{}.weight",
        packed_integers.gptq,
    ),
    Recipe(
        "GPTQ or AWQ",
        "{}.qweight",
        (),
        "{}.weight",
        packed_by("packed integers (GPTQ or AWQ in an unknown order)"),
    ),
    Recipe(
        "Marlin 2:4",
        "{}.weight_packed",
        ("{}.scale_packed", "{}.meta"),
        "{}.weight",
        packed_by("packed integers (Marlin with 2:4 sparsity)"),
    ),
    Recipe(
        "compressed-tensors",
        "{}.*_packed",
        ("{}.*_scale", "{}.*_shape", "{}.*_zero_point?", "{}.*_g_idx?"),
        "{}.*",
        packed_integers.compressed_integers,
    ),
    Recipe(
        "compressed-tensors",
        "{}.*_packed",
        (),
        "{}.*",
        packed_by("packed integers (compressed-tensors)"),
    ),
    Recipe(
        "MLX",
        "{}.weight",
        ("{}.scales", *_optional("{}.biases", "{}.qbiases")),
        "{}.weight",
        packed_integers.mlx,
    ),
    Recipe(
        "HQQ",
        "{}.W_q",
        _optional(
            "{}.scale", "{}.zero", "{}.shape", "{}.packing", "{}.nbits", "{}.group_size", "{}.axis"
        ),
        "{}.weight",
        hqq.hqq,
    ),
    Recipe("HQQ or SINQ", "{}.W_q", (), "{}.weight", packed_by("packed integers (HQQ or SINQ)")),
    Recipe("BitNet", "{}.weight", ("{}.weight_scale",), "{}.weight", packed_integers.bitnet),
    Recipe(
        "ModelOpt int4",
        "{}.weight",
        ("{}.weight_scale",),
        "{}.weight",
        packed_integers.modelopt_int4,
    ),
    Recipe(
        "quanto bits",
        "{}.*._data._data",
        _optional("{}.*._scale", "{}.*._shift"),
        "{}.*",
        packed_by("packed integers (optimum-quanto)"),
    ),
    Recipe("AQLM", "{}.codes", ("{}.codebooks", "{}.scales"), "{}.weight", vector_quantised.aqlm),
    Recipe(
        "fake quantiser",
        "{}.weight",
        ("{}.weight_quantizer._amax",),
        "{}.weight",
        eight_bit.fake_quantised,
    ),
    Recipe(
        "fake quantiser of torch",
        "{}.weight",
        ("{}.weight_fake_quant.scale",),
        "{}.weight",
        eight_bit.fake_quantised,
    ),
    # 8-bit numbers of the weight's own shape, the general form last.
    Recipe(
        "bitsandbytes int8",
        "{}.weight",
        ("{}.SCB", "{}.weight_format?"),
        "{}.weight",
        eight_bit.bitsandbytes_int8,
    ),
    Recipe("EETQ", "{}.weight", ("{}.weight_scales",), "{}.weight", eight_bit.eetq),
    Recipe("torch", "{}._packed_params._packed_params.0", (), "{}.weight", eight_bit.torch_packed),
    Recipe("quanto", "{}.*._data", ("{}.*._scale",), "{}.*", eight_bit.quanto_bytes),
    Recipe(
        "torchao",
        "{}._*_qdata",
        ("{}._*_scale", "{}._*_zero_point?"),
        "{}.*",
        eight_bit.torchao_bytes,
    ),
    Recipe(
        "scaled weight",
        "{}.weight",
        (*_optional(*eight_bit.WEIGHT_SCALES), *_ZEROS, "{}.pre_quant_scale?"),
        "{}.weight",
        eight_bit.scaled_weight,
    ),
    Recipe("scaled", "{}.*", (*_optional(*eight_bit.SCALES), *_ZEROS), "{}.*", eight_bit.scaled),
    # Formats that only their own library can unpack.
    Recipe(
        "Marlin",
        "{}.B",
        ("{}.s",),
        "{}.weight",
        packed_by("packed integers (Marlin)", marlin_shape),
    ),
    Recipe("AQLM", "{}.codes", (), "{}.weight", packed_by("codes of vectors (AQLM)")),
    Recipe(
        "VPTQ",
        "{}.indices",
        ("{}.centroids.weight", "{}.res_centroids.weight?"),
        "{}.weight",
        packed_by("codes of vectors (VPTQ)"),
    ),
    Recipe("SpQR", "{}.dense_weights", (), "{}.weight", packed_by("packed integers (SpQR)")),
    Recipe(
        "EXL2",
        "{}.q_weight",
        ("{}.q_invperm?",),
        "{}.weight",
        packed_by("packed integers (EXL2)", exl2_shape),
    ),
    Recipe("EXL3", "{}.trellis", (), "{}.weight", packed_by("a trellis code (EXL3)", exl3_shape)),
    Recipe(
        "QuIP#",
        "{}.Qidxs",
        _optional("{}.SU", "{}.SV"),
        "{}.weight",
        packed_by("codes of vectors (QuIP#)"),
    ),
    Recipe(
        "HIGGS",
        "{}.weight",
        ("{}.tables", "{}.tables2?", "{}.scales?"),
        "{}.weight",
        packed_by("codes of vectors (HIGGS)"),
    ),
    Recipe("torchao", "{}._*_qdata", (), "{}.*", packed_by("packed integers (torchao)")),
    Recipe(
        "sparse bit mask",
        "{}.*.compressed",
        ("{}.*.bitmask",),
        "{}.*",
        packed_by("numbers under a bit mask (compressed-tensors)"),
    ),
)
"""Every storage form. They are tried in this order, and a tensor is used at most once."""


def assemble(
    tensors: Iterable[LazyTensor], config: Mapping[str, Any] | None = None
) -> list[LazyTensor]:
    """Assemble weights that are stored in several tensors; drop tensors that are not weights.

    The order of the tensors stays the same.

    Args:
        tensors: All tensors of a model. Buffers of a live module are used as pieces only.
        config: The model's configuration. Its ``quantization_config`` says what the shapes do not.

    """
    tensors = list(tensors)
    # Masks and statistics must not be taken for pieces of a weight.
    known = {stored.name: stored for stored in tensors if not is_no_weight(stored)}
    made, used, modules = _apply_recipes(known, quantisation_of(config or {}))
    reparametrised.refuse_further(made, known, used)
    judge_the_rest(known, made, used, modules)
    return [
        made.get(stored.name, stored)
        for stored in tensors
        if stored.name in made or is_plain_weight(stored, known, used, modules)
    ]


def _apply_recipes(
    known: Mapping[str, LazyTensor], quantisation: Quantisation
) -> tuple[dict[str, LazyTensor], set[str], set[str]]:
    """Try all recipes on all tensors.

    The results are the weights by the name of their anchor, the names of the tensors that were
    used, and the paths of the modules concerned.
    """
    made: dict[str, LazyTensor] = {}
    used: set[str] = set()
    modules: set[str] = set()
    # Most models have the tensors of few recipes; without this a tensor would be tried with all.
    ends = {name.rpartition(".")[2] for name in known}
    for recipe in RECIPES:
        if not all(may_match(pattern, ends) for pattern in recipe.required):
            continue
        for name, stored in known.items():
            # The first recipe that accepts a tensor keeps it.
            if name in used or not (match := match_name(recipe.anchor, name)):
                continue
            pieces = _pieces(recipe, stored, match, known, quantisation)
            weight = recipe.build(pieces) if pieces else None
            if pieces is None or weight is None:
                continue
            # Quantisers pack weight matrices only; in other forms, the parameter's owner knows.
            is_quantised = not stored.is_floating or eight_bit.is_float8(stored)
            # What a module says against a piece ("a list of factors is no Linear") does not hold
            # for the weight that the pieces make up.
            owner_says = stored.no_weight if weight.name == name or not stored.no_weight else None
            made[name] = replace(weight, no_weight="" if is_quantised else owner_says)
            used.update(piece.name for piece in pieces.all)
            modules.add(pieces.module)
    return made, used, modules


def _pieces(
    recipe: Recipe,
    anchor: LazyTensor,
    match: tuple[str, str],
    known: Mapping[str, LazyTensor],
    quantisation: Quantisation,
) -> Pieces | None:
    """Find the tensors of one weight; None if a required one is missing."""
    found = {}
    for marked in recipe.pieces:
        pattern = marked.removesuffix("?")
        # A tensor is no piece of itself, although ``{}.*`` also matches the names of scales.
        piece = known.get(fill_in(pattern, *match))
        if piece is not None and piece is not anchor:
            found[pattern] = piece
        elif pattern == marked:
            return None
    return Pieces(fill_in(recipe.weight, *match), match[0], anchor, found, quantisation)
