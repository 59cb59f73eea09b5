"""auto-round itself: a model in several widths, saved and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spectail.core.quantisers import quantiser_named
from spectail.export.auto_round import AutoRound
from tests.export.conftest import allocation, llama_names
from tests.export.runs import change, logits, saved, wide_llama
from tests.export.test_formats import chosen, mixed

FORMATS = mixed("w4a16", "w8a16", "int4", "int2-g64")
WIDTHS = {name: (2, 3, 4, 8, 16)[i % 5] for i, name in enumerate(llama_names())}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("formats", [True, False], ids=["formats", "widths"])
def test_auto_round_rounds_as_told_and_its_folder_loads(tmp_path: Path, formats: bool) -> None:
    library = pytest.importorskip("auto_round")
    pytest.importorskip("auto_round_kernel", reason="loading on a CPU needs auto-round-lib")
    transformers = pytest.importorskip("transformers")
    where = saved(tmp_path / "model")
    modules = [name for name, _ in wide_llama().named_modules()]
    made = chosen({k: v for k, v in FORMATS.items() if k != llama_names()[0]}, left_out=(
        llama_names()[0],)) if formats else allocation(WIDTHS, "bits")  # fmt: skip
    config = json.loads(AutoRound(modules).text(made))
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16)
    tokens = transformers.AutoTokenizer.from_pretrained(where)
    rounder = library.AutoRound(
        model, tokens, scheme="W4A16", layer_config=config, iters=0, device_map="cpu",
        disable_opt_rtn=True,
    )  # fmt: skip
    rounder.quantize_and_save(str(tmp_path / "out"), format="auto_round")
    (written,) = (path.parent for path in (tmp_path / "out").rglob("config.json"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(written, device_map="cpu")
    for name in llama_names():
        module: Any = loaded.get_submodule(name)
        bits = 16 if isinstance(module, torch.nn.Linear) else module.bits
        wanted = WIDTHS[name] if not formats else 16 if name == llama_names()[0] else None
        own = quantiser_named(FORMATS[name])
        assert bits == (own.bits if wanted is None else wanted), name  # type: ignore[attr-defined]
    # Two bits in some layers change a random model much, but it is still the same one.
    assert change(logits(loaded), logits(wide_llama())) < 0.8
