"""Parameters that are no weight matrices keep the base rate, whatever a glob says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import spectail as st


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(64, 96)
        self.A_log = nn.Parameter(torch.randn(96, 64))
        self.out_proj = nn.Linear(96, 64)


@pytest.mark.parametrize("include", [[], ["*"], ["layers.0.A_log", "layers.1.in_proj"]])
def test_a_balancer_leaves_what_is_no_weight_matrix(include: Any) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Mixer() for _ in range(3)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    balancer = st.Balancer(model, optimizer, rule=st.TempBalance(include=include), every=1)
    assert (
        balancer.left_out["layers.0.A_log"]
        == "no weight matrix: a state-space or mixing parameter of Mixer"
    )
    assert "layers.1.in_proj" not in balancer.left_out
