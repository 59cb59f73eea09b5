"""Recipes for llm-compressor: one sparsity per module, or weights of several widths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from spectail.allocation.allocation import Allocation
from spectail.basics.checks import is_whole
from spectail.errors import ExportError
from spectail.export.formats import Integers, has_formats, integers_of, refuse
from spectail.export.parts import (
    Modules,
    V,
    check_target,
    grouped,
    grouped_formats,
    kept,
    module_namer,
    placed,
    shown,
)
from spectail.export.tool import Tool

PRUNERS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
QUANTISERS = {"rtn": "QuantizationModifier", "gptq": "GPTQModifier"}

# The name of an expert that is a module of its own in some models and part of a tensor in others.
_EXPERT = re.compile(r"^(.+\.experts)\.\d+\.")
_TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("w1", "w3"),
)
"""Modules that vLLM runs as one layer."""
_FULL = frozenset(map(str, range(16, 33)))
"""Widths at which a layer is not quantised."""
_LINEARISE = (
    "linearise them first, with llmcompressor.modeling.moe.linearize.load_quantizable_moe() "
    "around from_pretrained, and give the names of that model's modules"
)


@dataclass(frozen=True)
class LLMCompressor(Tool):
    """A recipe in YAML, for ``oneshot``."""

    name: ClassVar[str] = "llm-compressor"
    takes: ClassVar[str] = "sparsity (`wanda`, `sparsegpt`), bits (`rtn`, `gptq`)"
    tried: ClassVar[str] = (
        "0.14.0.1 on a small Llama: ratios, widths and formats come back, module by module, also "
        "after saving and loading"
    )

    modules: Modules | None = None
    """Names of the model's modules; a recipe of sparsities needs them."""
    method: str | None = None
    """By default ``wanda`` for sparsities and ``rtn`` for bits."""
    group_size: int = 128
    """Weights along a row that share a scale, for widths."""
    activations: bool = False
    """Whether inputs of modules in fp8 and nvfp4 become fp8 and nvfp4 too."""

    @classmethod
    def options_for(cls, allocation: Allocation) -> list[str]:
        """Return the names of its options; only widths have groups that can be chosen."""
        if allocation.target == "sparsity":
            return ["modules", "method"]
        return ["modules", "method", "activations" if has_formats(allocation) else "group_size"]

    def text(self, allocation: Allocation) -> str:
        """Return a pruning recipe for sparsities, else a quantisation recipe."""
        if allocation.target != "sparsity":
            return quantization_recipe(
                allocation,
                self.modules,
                method=self.method or "rtn",
                group_size=self.group_size,
                activations=self.activations,
            )
        if self.modules is None:
            raise ExportError(
                "llm-compressor pairs ratios with modules by position: "
                "give the model's folder with --model"
            )
        return pruning_recipe(allocation, self.modules, method=self.method or "wanda")

    def remark(self, allocation: Allocation) -> str:
        """Remark on names that nobody has checked."""
        if self.modules is not None:
            return ""
        return "names are not checked against the model's modules: give --model for that"


def pruning_recipe(allocation: Allocation, modules: Modules, *, method: str = "wanda") -> str:
    """Return YAML with one modifier: a list of targets, and a list of their sparsities.

    llm-compressor pairs the sparsities with the modules by position, in the order of
    ``model.named_modules()`` and not in that of the targets; a checkpoint stores its layers in yet
    another order. So ``modules`` must be those names, as ``[name for name, _ in
    model.named_modules()]`` or ``models.live.language.module_names(folder)`` gives them. The latter
    also gives their names in the file, which an allocation made from the file may use.

    Raises:
        ExportError: not an allocation of sparsity, an unknown method, or a layer that is no module.

    """
    check_target(allocation, "sparsity", "a pruning recipe")
    modifier = _modifier(PRUNERS, method)
    modules = kept(modules)
    ratios = _placed(_by_module(allocation, modules), modules)
    settings = {
        "sparsity": list(map(float, ratios.values())),
        # llm-compressor's name for unstructured sparsity.
        "mask_structure": "0:0",
        "targets": list(ratios),
    }
    return _stage("pruning", modifier, settings)


def quantization_recipe(
    allocation: Allocation,
    modules: Modules | None = None,
    *,
    method: str = "rtn",
    group_size: int = 128,
    activations: bool = False,
) -> str:
    """Return YAML with one modifier and one ``config_groups`` entry per width or format.

    Widths become symmetric integers with one scale per group; from 16 bits on a module is not
    quantised. Modules that vLLM runs as one layer
    (q, k and v; gate and up; the experts of a block) share a format, the one of most bits in use
    that has no more than their mean. llm-compressor silently ignores a
    target that is no module, so give the model's ``modules``, as for ``pruning_recipe``; without
    them names are not checked.

    Args:
        allocation: An allocation of bits.
        modules: Names of the model's modules.
        method: ``rtn`` or ``gptq``.
        group_size: Number of weights along a row that share a scale, for widths; it must divide the
            columns of every layer.
        activations: Whether the inputs of modules in fp8 (by token, while the model runs) and nvfp4
            (with calibration data) are quantised too; otherwise only weights are.

    Raises:
        ExportError: not an allocation of bits, an unknown method, a format that llm-compressor does
            not have, or a layer that is no module.

    """
    check_target(allocation, "bits", "a quantisation recipe")
    modifier = _modifier(QUANTISERS, method)
    check_group_size(group_size)
    modules = None if modules is None else kept(modules)
    schemes = _schemes(allocation, modules, activations)
    # Formats go by name, so that the order of modules does not matter here.
    if modules is not None:
        schemes = _placed(schemes, modules)
    # As integers of 16 bits they would be rounded; what is in no group keeps its own type.
    schemes = {name: own for name, own in schemes.items() if own not in _FULL}
    if not schemes:
        raise ExportError(f"every layer has {min(_FULL)} bits or more: nothing is quantised")
    groups = {
        f"bits_{name}" if name.isdecimal() else name: {
            **_scheme(name, group_size, activations),
            "targets": [module for module, own in schemes.items() if own == name],
        }
        for name in sorted(set(schemes.values()))
    }
    return _stage("quantization", modifier, {"config_groups": groups})


def _schemes(allocation: Allocation, modules: Modules | None, activations: bool) -> dict[str, str]:
    """Return the format of every module, or its width as a text."""
    if has_formats(allocation):
        named = module_namer(allocation, modules)
        formats = grouped_formats(
            allocation, lambda name: _run_as(named(name)), _no_modules(allocation)
        )
        names = dict.fromkeys(filter(None, map(named, allocation)))
        return {name: formats[_run_as(name) or name] for name in names}
    if activations:
        raise ExportError("activations go with formats: widths are of weights alone")
    return {name: str(int(width)) for name, width in _by_module(allocation, modules).items()}


def _run_as(module: str | None) -> str | None:
    """Return the layer of vLLM that holds a module; None for None.

    vLLM runs q, k and v, or gate and up, as one layer, and all experts of a block too. Such a layer
    has one format; llm-compressor itself refuses others beside nvfp4.
    """
    if module is None:
        return None
    if experts := _EXPERT.match(module):
        return experts[1]
    parent, _, own = module.rpartition(".")
    for together in _TOGETHER:
        if own in together:
            return f"{parent}.{'+'.join(together)}"
    return module


def _scheme(name: str, group_size: int, activations: bool) -> dict[str, Any]:
    """Return the arguments of a width or format, as compressed-tensors calls them."""
    integers = Integers(int(name), group_size, True) if name.isdecimal() else integers_of(name)
    if integers:
        kind = {"num_bits": integers.bits, "type": "int", "symmetric": integers.symmetric}
        return {"weights": {**kind, "strategy": "group", "group_size": integers.group}}
    if name == "fp8":
        kind = {"num_bits": 8, "type": "float", "symmetric": True}
        inputs = {**kind, "strategy": "token", "dynamic": True}
        weights = {**kind, "strategy": "channel"}
    elif name == "nvfp4":
        scales = "torch.float8_e4m3fn"
        kind = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group"}
        weights = {**kind, "group_size": 16, "scale_dtype": scales, "zp_dtype": scales}
        inputs = {**weights, "dynamic": "local", "observer": "static_minmax"}
    else:
        raise refuse("llm-compressor", name, "int2 to int8, w4a16, w8a16, fp8, nvfp4")
    return {"weights": weights, **({"input_activations": inputs} if activations else {})}


def _by_module(allocation: Allocation, modules: Modules | None) -> dict[str, float]:
    """Return one value per module."""
    return grouped(allocation, module_namer(allocation, modules), _no_modules(allocation))


def _no_modules(allocation: Allocation) -> str:
    """Return the error about layers that are no modules; for fused experts it says what to do."""
    how = f" ({_LINEARISE})" if any("[" in name for name in allocation) else ""
    return f"llm-compressor addresses modules by name, and these layers are none{how}"


def _placed(values: Mapping[str, V], modules: Modules) -> dict[str, V]:
    """Return the values under the names of the model's modules; refuse names that are none."""
    found, lost = placed(values, modules)
    if not lost:
        return found
    # Fused experts get an error of their own: the user must load the model in another way.
    known = set(modules)
    fused = [name for name in lost if (match := _EXPERT.match(name)) and match[1] in known]
    if fused:
        raise ExportError(
            f"the model has no module {shown(fused)}, for its experts are one tensor: {_LINEARISE}"
        )
    raise ExportError(
        f"the model has no module {shown(lost)}: give the names of the model that was analysed, "
        "or make the allocation without them, with exclude"
    )


def check_group_size(size: int) -> None:
    """Refuse a group size that is no whole number of weights."""
    if not is_whole(size):
        raise ExportError(f"group_size must be a whole number of weights, not {size!r}")


def _modifier(known: dict[str, str], method: str) -> str:
    """Return llm-compressor's class for a method."""
    if method not in known:
        raise ExportError(f"method must be one of {', '.join(known)}, not {method!r}")
    return known[method]


def _stage(kind: str, modifier: str, settings: dict[str, Any]) -> str:
    """Write the recipe of one stage with one modifier."""
    # Imported here because only this export writes YAML.
    import yaml

    recipe = {"spectail_stage": {f"{kind}_modifiers": {modifier: settings}}}
    return str(yaml.safe_dump(recipe, sort_keys=False))
