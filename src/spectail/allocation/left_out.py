"""Layers that get no value, each with the reason: a code for programs and a text for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from spectail.basics.schema import checked
from spectail.basics.texts import first_names
from spectail.errors import AllocationError


class Code(StrEnum):
    """Why a layer gets no value. Programs compare codes; the text beside a code may change."""

    NO_WEIGHT = "no-weight"
    """Its tensor is no weight matrix: a bias, a position table, learned tokens."""
    EMBEDDING = "embedding"
    HEAD = "head"
    ROUTER = "router"
    LORA = "lora"
    NORM = "norm"
    OUTSIDE_BLOCKS = "outside-blocks"
    """It lies in no repeated block, and the target is a compression."""
    OTHER_TOWER = "other-tower"
    """It lies beside the language model of a multi-modal model."""
    DEPTHWISE = "depthwise"
    SPECTRAL = "spectral"
    EXCLUDED = "excluded"
    """The caller left it out by a glob."""
    OTHER_KIND = "other-kind"
    """Its kind or type is none of those that the caller chose."""
    NO_ALPHA = "no-alpha"
    """Nothing comparable was measured for it."""
    UNREACHED = "unreached"
    """Calibration text does not reach it."""
    FILE_ONLY = "file-only"
    """The file has it and the live model does not."""
    NOT_NAMED = "not-named"
    """The allocation does not mention it, and nothing else keeps it out."""
    OTHER = "other"
    """Read from a file that stores no code."""


@dataclass(frozen=True)
class Reason:
    """Why a layer gets no value."""

    code: Code
    text: str
    """A phrase that completes "left out, ..."."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class LeftOut:
    """A layer that gets no value, and why."""

    name: str
    why: Reason

    @property
    def reason(self) -> str:
        """The text of the reason."""
        return self.why.text

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON values: name, code and reason."""
        return {"name": self.name, "code": str(self.why.code), "reason": self.why.text}

    @classmethod
    def from_dict(cls, stored: Any) -> LeftOut:
        """Invert ``to_dict``; files of earlier versions store the text without a code.

        Raises:
            AllocationError: a code that this version does not know.
            SchemaError: no text for the name or the reason.

        """
        fields = checked(_Stored, stored)
        if fields.code not in set(Code):
            raise AllocationError(
                f"{fields.name} is left out by the code {fields.code!r}, which this version does "
                f"not know; it knows {', '.join(Code)}"
            )
        return cls(fields.name, Reason(Code(fields.code), fields.reason))


class _Stored(msgspec.Struct):
    """A layer that gets no value, as it is stored."""

    name: str
    reason: str
    code: str = Code.OTHER


def describe_left_out(layers: Iterable[LeftOut]) -> list[str]:
    """Write one line for each reason, with the first three layers that it applies to.

    >>> embedding = Reason(Code.EMBEDDING, "an embedding")
    >>> describe_left_out([LeftOut("wte", embedding), LeftOut("wpe", embedding)])
    ['left out, an embedding: wte, wpe']
    """
    # By text and not by code: two towers share a code and need different globs.
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(layer.reason, []).append(layer.name)
    return [f"left out, {reason}: {first_names(names, 3)}" for reason, names in reasons.items()]
