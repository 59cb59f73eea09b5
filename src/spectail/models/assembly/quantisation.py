"""What a model's configuration says about quantisation, collected once for all weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

_NOT_OF_WEIGHTS = frozenset({"input_activations", "output_activations"})
"""Keys of parts that concern the inputs and outputs of layers, not their weights."""
_BLOCK_SIZES = frozenset({"weight_block_size", "block_structure"})


class Quantisation(dict[str, Any]):
    """A checkpoint's ``quantization_config``; empty if there is none.

    Formats that treat modules differently state numbers for each kind of module, at any depth.
    With thousands of modules, looking for them anew for every weight would take minutes.
    """

    @cached_property
    def _entries(self) -> list[tuple[str, Any]]:
        """Every key with its value, at any depth."""
        return list(_entries(self))

    @cached_property
    def _whole_numbers(self) -> Mapping[str, set[int]]:
        """All whole numbers that are stated, by key."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        for key, value in self._entries:
            if isinstance(value, int):
                found[key].add(value)
        return found

    def stated(self, key: str) -> set[int]:
        """Return the whole numbers that are stated under a key, at any depth.

        >>> sorted(Quantisation(bits=4, dynamic={"lm_head": {"bits": 8}}).stated("bits"))
        [4, 8]
        """
        return set(self._whole_numbers.get(key, ()))

    @cached_property
    def block_size(self) -> tuple[int, int] | None:
        """The (rows, columns) of a block of 8-bit numbers; None unless exactly one is stated.

        >>> Quantisation(weights={"block_structure": "128x64"}).block_size
        (128, 64)
        """
        sizes = {
            (int(parts[0]), int(parts[1]))
            for key, value in self._entries
            if key in _BLOCK_SIZES
            and isinstance(
                parts := value.split("x") if isinstance(value, str) else value, list | tuple
            )
            and len(parts) == 2
            and all(str(part).isdecimal() for part in parts)
        }
        return sizes.pop() if len(sizes) == 1 else None


def quantisation_of(config: Mapping[str, Any]) -> Quantisation:
    """Return what a configuration says about quantisation; empty if it says nothing.

    The text part of a multi-modal configuration counts too.
    """
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping):
            for key in ("quantization_config", "compression_config", "quantization"):
                if isinstance(part.get(key), Mapping):
                    return Quantisation({**_bits_of(config), **part[key]})
    return Quantisation(_bits_of(config))


def _bits_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ChatGLM's number of bits, which it states at the top level of the configuration."""
    return {"quantization_bit": config["quantization_bit"]} if "quantization_bit" in config else {}


def _entries(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of a part of the configuration and of all parts within it."""
    waiting = [part]
    while waiting:
        for key, value in waiting.pop().items():
            yield key, value
            if isinstance(value, Mapping) and key not in _NOT_OF_WEIGHTS:
                waiting.append(value)
