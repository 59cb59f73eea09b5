"""torchao: widths by full name, and the configuration that the library applies."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spectail.core.quantisers import quantiser_named, relative_error
from spectail.errors import ExportError
from spectail.export import torchao
from spectail.export.torchao import TorchAO
from tests.export.conftest import allocation, llama_names
from tests.export.runs import change, logits, saved, wide_llama
from tests.export.test_formats import chosen, mixed
from tests.language import llama

BITS = {name: (2, 3, 4, 8)[i % 4] for i, name in enumerate(llama_names())}


def test_widths_are_plain_values() -> None:
    data = torchao.widths(allocation(BITS, "bits"), group_size=64)
    assert json.loads(json.dumps(data)) == {"group_size": 64, "bits": BITS}


def test_what_torchao_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ExportError, match="torchao takes an allocation of bits, but this one is of sparsity"
    ):
        torchao.widths(allocation({"a": 0.5}))
    with pytest.raises(
        ExportError, match="torchao's integer weights have at most 8 bits, but b has 16"
    ):
        torchao.widths(allocation({"a": 8, "b": 16}, "bits"))
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        ExportError, match="this needs torchao with FqnToConfig: pip install torchao"
    ):
        torchao.fqn_to_config({"group_size": 32, "bits": {"a": 4}})


@pytest.mark.filterwarnings("ignore")
def test_torchao_gives_every_module_its_width() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model: Any = llama()
    before = {name: model.get_submodule(name).weight.detach().clone() for name in BITS}
    config = torchao.fqn_to_config(torchao.widths(allocation(BITS, "bits")))
    quantization.quantize_(model, config, filter_fn=None)
    for name, width in BITS.items():
        weight = model.get_submodule(name).weight
        assert weight.target_dtype == getattr(torch, f"int{width}")
        assert tuple(weight.block_size) == (1, 32)
        step = before[name].unflatten(1, (-1, 32)).abs().amax(-1).max() / 2 ** (width - 1)
        assert (weight.dequantize() - before[name]).abs().max() <= 1.1 * step
    assert type(model.lm_head.weight) is torch.nn.Parameter


FORMATS = mixed("fp8", "w4a16", "w8a16", "int4", "int3-g64", "nvfp4")


@pytest.mark.filterwarnings("ignore")
def test_torchao_gives_every_module_its_format_also_after_loading(tmp_path: Path) -> None:
    pytest.importorskip("torchao.quantization")
    transformers = pytest.importorskip("transformers")
    original: Any = wide_llama()
    data = json.loads(TorchAO().text(chosen(FORMATS)))
    config = torchao.fqn_to_config(data, [name for name, _ in original.named_modules()])
    given = transformers.TorchAoConfig(config)
    where = saved(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        where, dtype=torch.bfloat16, quantization_config=given, device_map="cpu"
    )
    model.save_pretrained(tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    for name, own in FORMATS.items():
        weight = original.get_submodule(name).weight.detach().float()
        error = change(loaded.get_submodule(name).weight.dequantize().float(), weight) ** 2
        # Both round to nearest; torchao's scales are bfloat16, like the model.
        assert error == pytest.approx(relative_error(quantiser_named(own), weight), rel=0.4), own
    assert type(loaded.lm_head.weight) is torch.nn.Parameter
    assert torch.equal(logits(loaded), logits(model))
