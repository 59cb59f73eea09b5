"""Models and settings that pruning was not written for: exact, refused in one line, or noted."""

from __future__ import annotations

import pytest
from torch import nn

from spectail.models.naming.select import KindFilter
from spectail.pruning.allocators import by_depth
from spectail.pruning.weights_to_prune import Scope
from tests.pruning.models import decoder


class Block(nn.Module):
    """One convolution, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3)


class Stages(nn.Module):
    """Two stages of two blocks, and a head of numbered layers outside of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block(), Block())
        self.fc1, self.fc2 = nn.Linear(24, 24), nn.Linear(24, 24)


def test_depth_runs_through_all_stages_and_not_through_layers_outside_of_blocks() -> None:
    found = by_depth(Stages(), 0.5, form="rising", eps=0.3, scope=Scope(include=("fc*",)))
    blocks = [found[f"layer{stage}.{number}.conv1"] for stage in (1, 2) for number in (0, 1)]
    # All layers have one size here, so that the ratios are the map's factors times the sparsity.
    assert blocks == pytest.approx([0.35, 0.45, 0.55, 0.65])
    assert [found["fc1"], found["fc2"]] == pytest.approx([0.5, 0.5])
    assert abs(found.realised - 0.5) < 1e-9


@pytest.mark.parametrize(
    "scope",
    [Scope(exclude=("model.layers.0.*",)), Scope(exclude=("*.0.*",), of=KindFilter.of("q"))],
)
def test_the_second_block_is_not_kept_in_place_of_a_first_one_that_stays_dense(
    scope: Scope,
) -> None:
    model = decoder("llama", blocks=4)
    found = by_depth(model, 0.5, form="first", eps=0.3, scope=scope)
    assert list(found.values()) == pytest.approx([0.5] * len(found))
    rising = by_depth(model, 0.5, form="first-rising", eps=0.3, scope=scope)
    first, *_, last = rising.values()
    assert first < last
