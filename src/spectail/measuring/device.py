"""The device that layers are measured on."""

from __future__ import annotations

import torch

from spectail.basics.texts import first_line
from spectail.errors import SpecError


def usable_device(device: str) -> str:
    """Return the device, with ``auto`` resolved; raise SpecError if torch cannot use it here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    # Allocating is the only test that covers every backend; an unknown one fails an assertion.
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise SpecError(
            "device must be auto, cpu or an accelerator that torch has here, "
            f"not {device!r} ({reason})"
        ) from error
    return device
