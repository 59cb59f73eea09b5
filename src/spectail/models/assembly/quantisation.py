"""What a model's configuration says about quantisation, collected once for all weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

_NOT_OF_WEIGHTS = frozenset({"input_activations", "output_activations"})
"""Keys of parts that concern the inputs and outputs of layers, not their weights."""
_BLOCK_SIZES = frozenset({"weight_block_size", "block_structure"})
KEYS = ("quantization_config", "compression_config", "quantization")
"""Where a model's configuration keeps what it says about quantisation."""


class Quantisation(dict[str, Any]):
    """A checkpoint's ``quantization_config``; empty if there is none.

    Formats that treat modules differently state numbers for each kind of module, at any depth.
    With thousands of modules, looking for them anew for every weight would take minutes.
    """

    @cached_property
    def _entries(self) -> list[tuple[str, Any]]:
        """Every key with its value, at any depth."""
        found: list[tuple[str, Any]] = []
        parts: list[Mapping[str, Any]] = [self]
        for part in parts:  # the list grows meanwhile
            entries = list(part.items())
            found += entries
            parts += [
                value
                for key, value in entries
                if isinstance(value, Mapping) and key not in _NOT_OF_WEIGHTS
            ]
        return found

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
        found = {_rows_and_columns(value) for key, value in self._entries if key in _BLOCK_SIZES}
        sizes = found - {None}
        return sizes.pop() if len(sizes) == 1 else None


def _rows_and_columns(block: Any) -> tuple[int, int] | None:
    """Read the size of a block, ``[128, 64]`` or ``128x64``; None if it is neither."""
    parts = block.split("x") if isinstance(block, str) else block
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        return None
    rows, columns = map(str, parts)
    return (int(rows), int(columns)) if rows.isdecimal() and columns.isdecimal() else None


def quantisation_of(config: Mapping[str, Any]) -> Quantisation:
    """Return what a configuration says about quantisation; empty if it says nothing.

    The text part of a multi-modal configuration counts too.
    """
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping):
            for key in KEYS:
                if isinstance(part.get(key), Mapping):
                    return Quantisation({**_bits_of(config), **part[key]})
    return Quantisation(_bits_of(config))


def _bits_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ChatGLM's number of bits, which it states at the top level of the configuration."""
    return {"quantization_bit": config["quantization_bit"]} if "quantization_bit" in config else {}
