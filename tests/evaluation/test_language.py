"""Language models from a folder: model and tokenizer, dtypes, the order of modules, and what cannot
be opened."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import spectail as st
from spectail.errors import SourceError
from spectail.models.live.language import module_names, without_bars
from tests.language import llama, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("language") / "llama"
    llama().to(torch.bfloat16).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)],
)
def test_a_folder_gives_model_and_tokenizer(
    folder: Path, dtype: str, expected: torch.dtype
) -> None:
    model, tok = st.open_language_model(folder, dtype)
    assert model.dtype == expected
    assert not model.training
    assert tok("w0 w29")["input_ids"] == [2, 31]
    saved = llama().to(torch.bfloat16).to(expected).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_names_of_modules_come_in_the_models_order_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "away")
    names = list(module_names(folder))
    (folder / "away").rename(folder / "model.safetensors")
    assert names == [name for name, _ in llama().named_modules() if name]
    assert names.index("model.layers.0.self_attn.q_proj") < names.index(
        "model.layers.0.self_attn.k_proj"
    )


def test_no_bar_is_drawn_not_even_by_the_reader_of_gguf_files(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from transformers.utils import logging

    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm, logging.is_progress_bar_enabled()
    with without_bars():
        assert list(reader.tqdm(range(3), desc="Converting and de-quantizing")) == [0, 1, 2]
        assert not logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")
    assert (reader.tqdm, logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    "content", ['{"version": "1.0", "trun', "", "[1]", '{"model": {"type": "X"}}']
)
def test_a_damaged_tokenizer_is_one_line(content: str, folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "tokenizer.json").write_text(content)
    with pytest.raises(SourceError, match="damaged cannot be loaded: ") as error:
        st.open_language_model(damaged)
    assert "\n" not in str(error.value)


def test_what_cannot_be_opened_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.safetensors").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    cases = {
        tmp_path / "none": "no such folder: ",
        tmp_path: "has no config.json; expected a model folder that transformers wrote",
        tmp_path / "file.safetensors": "is a file; a language model needs the whole folder",
        tmp_path / "broken": "broken cannot be loaded: ",
    }
    for source, message in cases.items():
        with pytest.raises(SourceError) as error:
            st.open_language_model(source)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(
        SourceError, match="dtype must be one of auto, float32, bfloat16, float16, not 'int8'"
    ):
        st.open_language_model(folder, "int8")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        SourceError, match=r"language models need transformers: pip install 'spectail\[hf\]'"
    ):
        st.open_language_model(folder)
