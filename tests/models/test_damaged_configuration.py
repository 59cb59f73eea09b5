"""A damaged configuration beside a model is an error and never taken as missing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectail.errors import SourceError
from spectail.models.open import open_source

NAMES = ("config.json", "hf_quant_config.json", "quantize_config.json", "quant_config.json")


def test_infinity_is_no_damage(tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(16, 16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert open_source(tmp_path).layers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"{" * 50_000, b'{"a": 1'])
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    save_file({"a.weight": torch.randn(16, 16)}, tmp_path / "model.safetensors")
    assert open_source(tmp_path).layers
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(SourceError, match=name) as caught:
            open_source(source)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
