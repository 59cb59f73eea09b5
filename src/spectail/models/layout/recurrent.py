"""Weights of recurrent layers, which hold the matrices of several gates one below the other.

The gates are i, f, g, o in an LSTM and r, z, n in a GRU.
"""

from __future__ import annotations

import re

from spectail.models.layout.cut import Cut, Segment, cut_rows
from spectail.models.layout.part import Part
from spectail.models.layout.view import View

_RNN = re.compile(r"(?:^|\.)weight_(ih|hh|hr)(_l\d+(?:_reverse)?)?$")
"""Names of torch's recurrent weights: input to hidden, hidden to hidden, projection of the
output."""
_GATES = {4: "ifgo", 3: "rzn"}
"""Number of gates -> their names."""


def recurrent(view: View) -> tuple[Part, ...] | None:
    """Cut the gates apart; the size of the hidden state tells how many there are."""
    match = _RNN.search(view.name)
    if match is None or len(view.shape) != 2:
        return None
    rows, layer = view.shape[0], match[2] or ""
    hidden_to_hidden = view.sibling(f"weight_hh{layer}")
    projection = view.sibling(f"weight_hr{layer}")
    # An LSTM with a projection has shorter hidden states; weight_hr is (projected, hidden).
    hidden = projection[1] if projection else hidden_to_hidden[1] if hidden_to_hidden else 0
    gates = (
        # A plain RNN has one "gate" and stays whole, as does the projection.
        _GATES.get(rows // hidden, "") if hidden and rows % hidden == 0 and match[1] != "hr" else ""
    )
    if not gates:
        return (view.matrix(kind="recurrent"),)
    return cut_rows(view, Cut(1, tuple(Segment(gate, "recurrent", hidden) for gate in gates)))
