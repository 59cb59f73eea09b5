"""What a training script saves beside its model: optimizers under any
key, and averages of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectail.errors import SourceError
from spectail.models.open import open_source


def trained(optimizer: str = "Adam") -> tuple[nn.Module, dict[str, Any]]:
    model = nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 20))
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1)
    model(torch.randn(4, 20)).sum().backward()
    made.step()
    return model, made.state_dict()


@pytest.mark.parametrize(
    "key", ["g_optim", "adam", "opt", "d_opt", "generator_optimizer", "trainer"]
)
def test_an_optimizer_is_known_by_its_groups_whatever_it_is_called(
    key: str, tmp_path: Path
) -> None:
    (model, state), (other, _) = trained(), trained()
    saved = {"g": model.state_dict(), "d": other.state_dict(), key: state}
    torch.save(saved, tmp_path / "both.pt")
    names = ["g.0", "g.1", "d.0", "d.1"]
    assert [layer.name for layer in open_source(saved).layers] == names
    assert [layer.name for layer in open_source(tmp_path / "both.pt").layers] == names


def test_optimizers_in_a_list_or_dict_are_passed_over() -> None:
    model, state = trained("SGD")
    _, other = trained("AdamW")
    saved = {"net_G": model.state_dict(), "training": {"steps": 3, "a": state, "b": other}}
    assert [layer.name for layer in open_source(saved).layers] == ["net_G.0", "net_G.1"]


@pytest.mark.parametrize(
    "key", ["params_ema", "model_ema", "ema", "ema_state_dict", "state_dict_ema", "ema_model"]
)
def test_averaged_weights_alone_are_the_model(key: str) -> None:
    model: Any = trained()[0]
    assert [layer.name for layer in open_source({"epoch": 3, key: model.state_dict()}).layers] == [
        "0",
        "1",
    ]
    both = {
        "model": model.state_dict(),
        key: {name: 2 * value for name, value in model.state_dict().items()},
    }
    torch.testing.assert_close(open_source(both).layers[0].read()[0], model[0].weight.detach())


def test_state_dicts_in_a_list_are_numbered() -> None:
    (model, state), (other, _) = trained(), trained()
    saved = [model.state_dict(), other.state_dict(), state, {"epoch": 3}]
    assert [layer.name for layer in open_source({"nets": saved}).layers] == [
        f"nets.{net}.{layer}" for net in (0, 1) for layer in (0, 1)
    ]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_file_may_hold_a_list_of_a_state_dict_and_other_things(kind: Any, tmp_path: Path) -> None:
    model, state = trained()
    torch.save(kind([model.state_dict(), state, {"epoch": 3}]), tmp_path / "m.pt")
    assert [layer.name for layer in open_source(tmp_path / "m.pt").layers] == ["0.0", "0.1"]


def test_an_optimizer_alone_is_no_model(tmp_path: Path) -> None:
    _, state = trained()
    torch.save(state, tmp_path / "optimizer.pt")
    for source in (state, tmp_path / "optimizer.pt"):
        with pytest.raises(SourceError, match=r"expected (?:a|the) state dict"):
            open_source(source)
