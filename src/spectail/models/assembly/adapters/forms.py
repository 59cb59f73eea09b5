"""The table of adapter forms: the pieces of each, and the formula of its change.

A new form is one formula, one line of ``FORMS`` and the names of its pieces in ``spelling``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spectail.models.assembly.adapters import formulas
from spectail.models.assembly.adapters.formulas import Formula


@dataclass(frozen=True)
class Form:
    """One way of storing the change of a weight."""

    name: str
    """What users call it."""
    needs: tuple[str, ...]
    """Roles of the pieces that must be there; ``a|b`` if either of two is enough."""
    formula: Formula
    """Computes the change from the pieces."""
    base: Literal["none", "useful", "shape", "weight"] = "none"
    """What the formula needs of the base weight. ``none``: nothing. ``useful``: values for DoRA and
    the shape for convolutions, if they are known. ``shape``: always its shape. ``weight``: always
    its values."""
    shared: tuple[str, ...] = ()
    """Roles of pieces that all layers of the model share."""
    rank_of: str | None = None
    """Role of the piece whose last dimension is the rank. A stored ``alpha`` is divided by it."""


FORMS: dict[str, Form] = {
    "lora": Form("LoRA", ("down", "up"), formulas.lora, "useful", rank_of="up"),
    "lora embedding": Form("LoRA", ("down", "up"), formulas.lora_embedding, "useful", rank_of="up"),
    "adalora": Form("AdaLoRA", ("down", "up", "singular"), formulas.adalora, "useful"),
    "loha": Form("LoHa", ("w1_a", "w1_b", "w2_a", "w2_b"), formulas.loha, "useful", rank_of="w1_a"),
    "lokr": Form("LoKr", ("w1|w1_a", "w1|w1_b", "w2|w2_a", "w2|w2_b"), formulas.lokr, "useful"),
    "diff": Form("full difference", ("diff",), formulas.difference),
    "vera": Form("VeRA", ("A", "B", "b", "d"), formulas.vera, "shape", shared=("A", "B")),
    "randlora": Form(
        "RandLoRA", ("A", "B", "lambda", "gamma"), formulas.randlora, "shape", shared=("A", "B")
    ),
    "vblora": Form("VB-LoRA", ("logits_A", "logits_B", "bank"), formulas.vblora, shared=("bank",)),
    "fourierft": Form("FourierFT", ("spectrum",), formulas.fourierft, "shape"),
    "hra": Form("HRA", ("u",), formulas.hra, "weight"),
    "oft": Form("OFT", ("R",), formulas.oft, "weight"),
    "hira": Form("HiRA", ("down", "up"), formulas.hira, "weight"),
    "delora": Form("DeLoRA", ("down", "up", "lambda", "w_norm"), formulas.delora),
}
"""Every form whose change can be computed from a file."""
