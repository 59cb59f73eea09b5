"""Recipes for llm-compressor: one sparsity per module, or weights of several widths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from spectail.allocation.allocation import Allocation
from spectail.basics.checks import is_whole
from spectail.errors import ExportError
from spectail.export.parts import Modules, check_target, grouped, module_name, placed, shown
from spectail.export.tool import Tool

PRUNERS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
QUANTISERS = {"rtn": "QuantizationModifier", "gptq": "GPTQModifier"}

# The name of an expert that is a module of its own in some models and part of a tensor in others.
_EXPERT = re.compile(r"^(.+\.experts)\.\d+\.")
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
        "0.14.0.1 on a small Llama: ratios and widths come back, module by module"
    )

    modules: Modules | None = None
    """Names of the model's modules; a recipe of sparsities needs them."""
    method: str | None = None
    """By default ``wanda`` for sparsities and ``rtn`` for bits."""
    group_size: int = 128
    """Weights along a row that share a scale, for bits."""

    @classmethod
    def options_for(cls, allocation: Allocation) -> list[str]:
        """Return the names of its options; sparsities have no groups of weights."""
        pruned = allocation.target == "sparsity"
        return ["modules", "method", *([] if pruned else ["group_size"])]

    def text(self, allocation: Allocation) -> str:
        """Return a pruning recipe for sparsities, else a quantisation recipe."""
        if allocation.target != "sparsity":
            return quantization_recipe(
                allocation, self.modules, method=self.method or "rtn", group_size=self.group_size
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
    ratios = _placed(_by_module(allocation), modules)
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
) -> str:
    """Return YAML with one modifier and one ``config_groups`` entry per width.

    Weights become symmetric integers with one scale per group. llm-compressor silently ignores a
    target that is no module, so give the model's ``modules``, as for ``pruning_recipe``; without
    them names are not checked. ``group_size`` is the number of weights along a row that share a
    scale; it must divide the columns of every layer.

    Raises:
        ExportError: not an allocation of bits, an unknown method, or a layer that is no module.

    """
    check_target(allocation, "bits", "a quantisation recipe")
    modifier = _modifier(QUANTISERS, method)
    check_group_size(group_size)
    widths = _by_module(allocation)
    # Widths go by name, so that the order of modules does not matter here.
    if modules is not None:
        widths = _placed(widths, modules)
    scheme = {"type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    # A scheme has one width, so that every width needs a group of its own.
    groups = {
        f"bits_{int(width)}": {
            "weights": {"num_bits": int(width), **scheme},
            "targets": [name for name, own in widths.items() if own == width],
        }
        for width in sorted(set(widths.values()))
    }
    return _stage("quantization", modifier, {"config_groups": groups})


def _by_module(allocation: Allocation) -> dict[str, float]:
    """Return one value per module; an error about experts in one tensor says what to do."""
    how = f" ({_LINEARISE})" if any("[" in name for name in allocation) else ""
    return grouped(
        allocation,
        module_name,
        f"llm-compressor addresses modules by name, and these layers are none{how}",
    )


def _placed(values: Mapping[str, float], modules: Modules) -> dict[str, float]:
    """Return the values under the names of the model's modules; refuse names that are none."""
    modules = modules if isinstance(modules, Mapping) else list(modules)
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
