"""Which layers to train, for axolotl (``unfrozen_parameters``) and PEFT (``target_modules``)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import ClassVar

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.parameters import Parameters, by_parameter, check_patterns, known_parameters
from spectail.export.parts import check_target, shown
from spectail.export.tool import Tool
from spectail.models.naming.names import layer_name

_UNCHECKED = "names are not checked against the model's parameters: give --model for that"
_RANGE = re.compile(r"(?<=.)\[\d*(?::\d*)?\]$")
"""What axolotl reads at the end of a pattern as a range of rows to train."""


@dataclass(frozen=True)
class Axolotl(Tool):
    """The key ``unfrozen_parameters`` of axolotl's YAML."""

    name: ClassVar[str] = "axolotl"
    takes: ClassVar[str] = "freeze"
    tried: ClassVar[str] = (
        "0.19.0: its own `freeze_layers_except` leaves exactly these parameters of a small Llama "
        "trainable"
    )

    parameters: Parameters | None = None
    """Names of the model's parameters."""
    also: tuple[str, ...] | list[str] | str = ()
    """More patterns to train, such as ``^lm_head.weight$``, in axolotl's spelling."""

    def text(self, allocation: Allocation) -> str:
        """Return the key with its list of patterns as YAML: see ``unfrozen_parameters``."""
        # Imported here because only some exports write YAML.
        import yaml

        also = (self.also,) if isinstance(self.also, str) else tuple(self.also)
        patterns = unfrozen_parameters(allocation, self.parameters, also=also)
        return str(yaml.safe_dump({"unfrozen_parameters": patterns}, width=1000))

    def remark(self, allocation: Allocation) -> str:
        """Remark on names that nobody has checked."""
        return "" if self.parameters is not None else _UNCHECKED


@dataclass(frozen=True)
class PEFT(Tool):
    """JSON with the arguments of ``LoraConfig`` that name the layers."""

    name: ClassVar[str] = "peft"
    takes: ClassVar[str] = "freeze"
    tried: ClassVar[str] = "0.21.2: LoRA lies on exactly these modules of a small Llama"

    parameters: Parameters | None = None
    """Names of the model's parameters."""

    def text(self, allocation: Allocation) -> str:
        """Return the arguments as JSON: see ``lora_targets``."""
        return json.dumps(lora_targets(allocation, self.parameters), indent=1) + "\n"

    def remark(self, allocation: Allocation) -> str:
        """Remark on names that nobody has checked."""
        return "" if self.parameters is not None else _UNCHECKED


def unfrozen_parameters(
    allocation: Allocation, parameters: Parameters | None = None, *, also: tuple[str, ...] = ()
) -> list[str]:
    """Return axolotl's patterns for the weights, with their biases, that are trained.

    axolotl makes every dot literal itself, so that dots stand here without a backslash, and it
    looks for a pattern at the start of a name, so that each ends in ``$``.

    Args:
        allocation: An allocation of the target ``freeze``.
        parameters: Names of the model's parameters, ``model.named_parameters()``; a mapping also
            gives their names in the file that was analysed.
        also: More patterns, for parameters that the allocation does not rank.

    Raises:
        ExportError: another target, a layer that no parameter holds, or a pattern that matches
            nothing, everything, or a layer that stays frozen.

    """
    trained, frozen = _split(allocation, parameters, "axolotl")
    names = known_parameters(allocation, parameters)
    # re.escape writes "\." for a dot, which axolotl would take for a backslash before a dot.
    patterns = [f"^{_escaped(name)}(.weight|.bias)?$" for name in trained]
    kept = {name for name in names if layer_name(name) in frozen}
    hint = "; axolotl reads dots as they are, without a backslash"
    check_patterns([*patterns, *also], names, kept, axolotl_matches, hint=hint)
    return [*patterns, *also]


def axolotl_matches(pattern: str, name: str) -> bool:
    r"""Say whether axolotl takes a parameter's name for one of a pattern.

    >>> axolotl_matches("^layers.1.q", "layers.1.q.weight"), axolotl_matches("q", "layers.1.q")
    (True, False)
    >>> axolotl_matches(r"^layers\.1\.q", "layers.1.q.weight")
    False
    """
    # Its documentation: dots are literal, and a range of rows at the end is no part of the pattern.
    literal = re.sub(r"\.(?!\+)", r"\\.", _RANGE.sub("", pattern))
    return re.match(literal, name) is not None


def lora_targets(
    allocation: Allocation, parameters: Parameters | None = None
) -> dict[str, list[str] | str]:
    """Return ``target_modules``, and ``target_parameters`` for weights that are no module's.

    PEFT takes a name in a list for every module that ends in it. Full names end in each other only
    in models such as CLIP; there, ``target_modules`` is one regular expression, which PEFT matches
    with the full name.

    Raises:
        ExportError: another target, a layer that no parameter holds, or a name that also matches a
            layer that stays frozen.

    """
    trained, _ = _split(allocation, parameters, "PEFT")
    names = known_parameters(allocation, parameters)
    modules = {layer_name(name) for name in names if name.endswith(".weight")}
    inside = [name for name in trained if name in modules]
    loose = [name for name in trained if name not in modules]
    wanted = set(trained)
    # PEFT compares the modules without a weight of their own, which hold others, too.
    others = {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)} - wanted
    ends = any(peft_matches(own, x) for x in others for own in inside)
    found: dict[str, list[str] | str] = {"target_modules": inside}
    if ends:
        found["target_modules"] = "|".join(re.escape(name) for name in inside)
    chosen = found["target_modules"]
    # A list of no modules is what PEFT wants where only parameters are trained.
    if inside:
        patterns = [chosen] if isinstance(chosen, str) else chosen
        rule = _fully_matches if isinstance(chosen, str) else peft_matches
        check_patterns(patterns, modules | others, others, rule)
    if loose:
        bare = [name for name in names if not name.endswith(".weight")]
        check_patterns(loose, names, set(bare) - wanted, peft_matches)
        found["target_parameters"] = loose
    return found


def peft_matches(target: str, name: str) -> bool:
    """Say whether PEFT takes a module's or a parameter's name for one in a list of targets."""
    return name == target or name.endswith(f".{target}")


def _fully_matches(pattern: str, name: str) -> bool:
    """Say whether PEFT takes a module's name for one of a text, which is a regular expression."""
    return re.fullmatch(pattern, name) is not None


def _split(
    allocation: Allocation, parameters: Parameters | None, tool: str
) -> tuple[list[str], set[str]]:
    """Return the parameters that are trained and those that stay frozen."""
    check_target(allocation, "freeze", tool)
    values = by_parameter(allocation, parameters)
    torn = [name for name, value in values.items() if value not in (0, 1)]
    if torn:
        raise ExportError(
            f"{shown(torn)} would be trained in part, but a parameter is frozen as a whole: "
            "allocate again, or exclude its layers"
        )
    trained = [name for name, value in values.items() if value]
    if not trained:
        raise ExportError("the allocation trains no layer")
    return trained, {name for name, value in values.items() if not value}


def _escaped(name: str) -> str:
    """Escape a name for axolotl, which escapes the dots itself."""
    return re.escape(name).replace(r"\.", ".")
