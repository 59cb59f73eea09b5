"""Situations on disk: what is opened, and the one line for what is not. Each is a case of one
table."""

from __future__ import annotations

import json
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from spectail.errors import SourceError
from spectail.models.formats.foreign import FOREIGN
from spectail.models.open import open_source

from .format_cases import (
    WRITERS,
    state,
    write_flax,
    write_keras,
    write_numpy,
    write_onnx,
    write_safetensors,
    write_torch,
)


def model(**names: str) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((4, 6), 1.0), "b.weight": torch.full((3, 4), 2.0)}


def put(folder: Path, name: str, value: Any = None) -> Path:
    """Save a small model under a name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    value = model() if value is None else value
    save_file(value, path) if name.endswith(".safetensors") else torch.save(value, path)
    return path


def text(folder: Path, name: str, content: str = "{}") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return folder


def hub_cache(folder: Path, *, refs: bool = True, snapshots: int = 1) -> Path:
    root = folder / "models--org--name"
    for number in range(snapshots):
        put(root, f"snapshots/{number}abc/model.safetensors")
        text(root, "blobs/123", "x")
    if refs:
        text(root, "refs/main", f"{snapshots - 1}abc")
    return root


def pipeline(folder: Path, *, index: int = True) -> Path:
    """What diffusers saves: each component in a folder, the scheduler and tokenizer without
    weights."""
    put(
        folder,
        "unet/diffusion_pytorch_model.safetensors",
        {"down_blocks.0.proj.weight": torch.ones(8, 6)},
    )
    put(
        folder,
        "unet/diffusion_pytorch_model.fp16.safetensors",
        {"down_blocks.0.proj.weight": torch.ones(8, 6).half()},
    )
    text(folder, "unet/config.json", json.dumps({"_class_name": "UNet2DConditionModel"}))
    qkv = {"h.0.attn.c_attn.weight": torch.ones(8, 24)}
    put(folder, "text_encoder/model.safetensors", qkv)
    text(folder, "text_encoder/config.json", json.dumps({"model_type": "gpt2", "n_head": 2}))
    put(
        folder,
        "vae/diffusion_pytorch_model.safetensors",
        {"encoder.conv_in.weight": torch.ones(4, 3, 3, 3)},
    )
    text(folder, "scheduler/scheduler_config.json")
    text(folder, "tokenizer/vocab.json")
    if index:
        entries = {
            key: ["diffusers", "X"]
            for key in ("unet", "vae", "text_encoder", "scheduler", "tokenizer")
        }
        text(
            folder,
            "model_index.json",
            json.dumps({"_class_name": "P", **entries, "safety_checker": [None, None]}),
        )
    return folder


def trainer_run(folder: Path, *, final: Any) -> Path:
    for step in (5, 100, 20):
        put(folder, f"checkpoint-{step}/model.safetensors")
    if final:
        put(folder, "model.safetensors")
    text(folder, "trainer_state.json")
    return folder


def deepspeed(folder: Path, *, stage: Any) -> Path:
    """ZeRO-1 and 2 keep the whole module in one file; ZeRO-3 spreads it."""
    names = {
        "module": model(),
        "ds_version": "0.1",
        "param_shapes": [{"a.weight": torch.Size([4, 6])}],
    }
    if stage == 3:
        for rank in range(2):
            put(folder, f"global_step10/zero_pp_rank_{rank}_mp_rank_00_model_states.pt", names)
            put(
                folder,
                f"global_step10/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
                {"x": torch.ones(3)},
            )
    else:
        put(folder, "global_step10/mp_rank_00_model_states.pt", names)
        put(
            folder,
            "global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            {"x": torch.ones(9, 9)},
        )
    text(folder, "latest", "global_step10")
    return text(folder, "zero_to_fp32.py", "")


def deepspeed_of_lightning(folder: Path) -> Path:
    """Lightning names the step ``checkpoint``, in a folder that ends like a file."""
    run = folder / "last.ckpt"
    values = {f"_forward_module.model.{name}": value for name, value in model().items()}
    saved = {"module": values, "pytorch-lightning_version": "2.0"}
    put(run, "checkpoint/mp_rank_00_model_states.pt", saved)
    put(
        run,
        "checkpoint/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        {"optimizer_state_dict": {"zero_stage": 2, "flat": torch.ones(9, 9)}},
    )
    return text(run, "latest", "checkpoint")


def accelerate_fsdp(folder: Path) -> Path:
    """accelerate's save_state under FSDP: model and optimizer are distributed checkpoints."""
    for name, values in {
        "pytorch_model_fsdp_0": {"model": model()},
        "optimizer_0": {"optimizer": {"state": {"a": {"exp_avg": torch.ones(9, 9)}}}},
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that one process saves alone
            save_distributed(values, checkpoint_id=folder / name, no_dist=True)
    put(folder, "scheduler.bin", {"last": 3})
    return folder


def neuralop(folder: Path) -> Path:
    """What save_checkpoint of neuraloperator writes."""
    put(folder, "model_state_dict.pt", model() | {"_metadata": {"activation": nn.functional.gelu}})
    put(folder, "optimizer.pt", {"state": {0: torch.ones(7, 7)}})
    put(folder, "scheduler.pt", {"last": 3})
    put(folder, "regularizer.pt", {"a": torch.ones(5, 5)})
    put(folder, "manifest.pt", {"epoch": 3, "model": "model_state_dict.pt"})
    return folder


def accelerate_state(folder: Path) -> Path:
    put(folder, "model.safetensors")
    for name in (
        "optimizer.bin",
        "scheduler.bin",
        "sampler.bin",
        "random_states_0.pkl",
        "scaler.pt",
    ):
        put(folder, name, {"x": torch.ones(5, 5)})
    return folder


def adapter_and_model(folder: Path) -> Path:
    put(folder, "adapter_model.safetensors", {"base_model.model.a.lora_A.weight": torch.ones(2, 6)})
    text(folder, "adapter_config.json", json.dumps({"r": 2, "lora_alpha": 2}))
    put(folder, "pytorch_model.bin")
    return folder


def several_formats(folder: Path) -> Path:
    values = state()
    for write in (write_onnx, write_flax, write_keras, write_numpy):
        write(folder, values)
    put(folder, "pytorch_model.bin")
    put(folder, "model.safetensors")
    return folder


def flax_shards(folder: Path) -> Path:
    values = state()
    for number in (0, 1):
        (folder / f"{number}").mkdir()
        part = {
            name: value for name, value in values.items() if name.startswith(f"layers.{number}")
        }
        write_flax(folder / f"{number}", part).rename(
            folder / f"flax_model-0000{number + 1}-of-00002.msgpack"
        )
    names = {
        f"layers/{number}/kernel": f"flax_model-0000{number + 1}-of-00002.msgpack"
        for number in (0, 1)
    }
    text(folder, "flax_model.msgpack.index.json", json.dumps({"weight_map": names}))
    return folder


def sentence_transformer(folder: Path) -> Path:
    put(folder, "model.safetensors")
    put(folder, "2_Dense/model.safetensors", {"linear.weight": torch.ones(5, 4)})
    text(folder, "1_Pooling/config.json")
    paths = ["", "1_Pooling", "2_Dense", "../elsewhere"]
    return text(
        folder,
        "modules.json",
        json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]),
    )


TWO = ["a", "b"]
OPENED: dict[str, Any] = {
    "hub cache": (hub_cache, TWO),
    "hub cache without refs": (lambda d: hub_cache(d, refs=False), TWO),
    "hub cache of two snapshots": (lambda d: hub_cache(d, snapshots=2), TWO),
    "pipeline": (
        pipeline,
        ["unet.down_blocks.0.proj", "vae.encoder.conv_in"]
        + [f"text_encoder.h.0.attn.c_attn.{part}" for part in "qkv"],
    ),
    "trainer output with a final model": (lambda d: trainer_run(d, final=True), TWO),
    "deepspeed step": (lambda d: deepspeed(d, stage=2) / "global_step10", TWO),
    "deepspeed run": (lambda d: deepspeed(d, stage=2), TWO),
    "deepspeed run of Lightning": (lambda d: deepspeed_of_lightning(d), TWO),
    "accelerate state under FSDP": (lambda d: accelerate_fsdp(d), TWO),
    "sentence transformer": (sentence_transformer, [*TWO, "2_Dense.linear"]),
    "neuraloperator checkpoint": (neuralop, TWO),
    "accelerate state": (accelerate_state, TWO),
    "a model beside an adapter": (adapter_and_model, TWO),
    "several formats": (several_formats, TWO),
    "flax shards": (flax_shards, ["layers.0", "layers.1"]),
    "lightning": (
        lambda d: put(d, "last.ckpt", {"state_dict": model(), "callbacks": {}}).parent,
        TWO,
    ),
    "a whole file and its shards": (
        lambda d: (
            put(d, "model-00001-of-00002.safetensors").parent and put(d, "model.safetensors").parent
        ),
        TWO,
    ),
    "a variant beside the whole": (
        lambda d: (
            put(d, "diffusion_pytorch_model.fp16.safetensors").parent
            and put(d, "diffusion_pytorch_model.safetensors").parent
        ),
        TWO,
    ),
}


@pytest.mark.parametrize("case", OPENED)
def test_what_is_opened(case: str, tmp_path: Path) -> None:
    make, names = OPENED[case]
    source = open_source(make(tmp_path))
    assert sorted(layer.name for layer in source.layers) == sorted(names)
    for layer in source.layers:
        assert layer.read().isfinite().all()


def test_each_model_of_a_pipeline_has_its_own_configuration_and_can_be_chosen(
    tmp_path: Path,
) -> None:
    source = open_source(pipeline(tmp_path))
    kinds = {layer.name: (layer.kind, layer.rows, layer.cols) for layer in source.layers}
    assert kinds["text_encoder.h.0.attn.c_attn.k"] == ("k", 8, 8)
    assert kinds["vae.encoder.conv_in"] == ("conv", 4, 3)
    assert "unet, vae, text_encoder" in source.notes[0]
    assert "--include 'unet.*'" in source.notes[0]
    assert source.fingerprint != open_source(tmp_path / "unet").fingerprint


def test_a_pipeline_is_known_by_its_folders(tmp_path: Path) -> None:
    assert len(open_source(pipeline(tmp_path, index=False)).layers) == 5


def test_a_hub_cache_is_called_as_on_the_hub(tmp_path: Path) -> None:
    assert open_source(hub_cache(tmp_path)).label == "org/name"


def foreign(folder: Path, *names: str) -> Path:
    for name in names:
        text(folder, name, "x")
    return folder


def exported(folder: Path) -> Path:
    program = torch.export.export(nn.Linear(6, 4), (torch.ones(2, 6),))
    torch.export.save(program, folder / "net.pt2")
    return folder


def lfs(folder: Path, name: str) -> Path:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 29\n"
    return text(folder, name, pointer)


NOT_OPENED: dict[str, Any] = {
    **{
        f"a pointer of Git LFS, {name}": (
            partial(lfs, name=name),
            f"{name} is a pointer of Git LFS",
            "git lfs pull",
        )
        for name in ("model.safetensors", "pytorch_model.bin", "model.gguf", "model.onnx")
    },
    "a program of torch.export": (
        lambda d: exported(d) / "net.pt2",
        "is an exported PyTorch program",
        "torch.export.load",
    ),
    "a web page": (
        lambda d: text(d, "pytorch_model.bin", "\n<!DOCTYPE html><html>Access restricted</html>"),
        "is a web page",
        "download the file again",
    ),
    "empty": (lambda d: d, "holds no weights", "it is empty"),
    "only folders": (
        lambda d: foreign(d, "part-1-of-2/analysis.json"),
        "holds no weights",
        "it holds only folders and hidden files",
    ),
    "only a tokenizer": (
        lambda d: foreign(d, "tokenizer.json", "vocab.json"),
        "only a tokenizer",
        "download the weights",
    ),
    "only a configuration": (
        lambda d: foreign(d, "config.json"),
        "only configuration files",
        "download the weights",
    ),
    "something else": (
        lambda d: foreign(d, "a.txt", "b.dat"),
        "holds no weights",
        "it holds a.txt, b.dat",
    ),
    "trainer output": (
        lambda d: trainer_run(d, final=False),
        "checkpoints of a run (3)",
        "spectail analyze {}/checkpoint-100",
    ),
    "a folder of models": (
        lambda d: put(d, "x/model.safetensors") and d,
        "sub-folders do (x)",
        "spectail analyze {}/x",
    ),
    "several snapshots": (
        lambda d: hub_cache(d, refs=False, snapshots=2),
        "holds 2 snapshots",
        "name one of them",
    ),
    "deepspeed zero 3": (
        lambda d: deepspeed(d, stage=3),
        "DeepSpeed",
        "python zero_to_fp32.py . model",
    ),
    "megatron": (
        lambda d: put(d, "mp_rank_00/model_optim_rng.pt") and d,
        "Megatron",
        "tools/checkpoint/convert.py",
    ),
    "orbax": (
        lambda d: foreign(d, "_METADATA", "manifest.ocdbt"),
        "Orbax",
        "flax.serialization.to_bytes",
    ),
    "saved model": (
        lambda d: foreign(d, "saved_model.pb", "variables/variables.index"),
        "SavedModel",
        "from_tf=True",
    ),
    "tensorflow checkpoint": (
        lambda d: foreign(d, "model.ckpt.index", "checkpoint"),
        "TensorFlow checkpoint",
        "from_tf",
    ),
    "core ml": (lambda d: foreign(d, "m.mlpackage/Data/x"), "Core ML", "converted from"),
    "tflite": (
        lambda d: foreign(d, "m.tflite") / "m.tflite",
        "TFLite",
        "tf2onnx.convert --tflite {}/m.tflite",
    ),
    "frozen graph": (lambda d: foreign(d, "g.pb") / "g.pb", "frozen TensorFlow graph", "tf2onnx"),
    "tensorrt": (lambda d: foreign(d, "m.engine") / "m.engine", "TensorRT", "built from"),
    "openvino": (
        lambda d: foreign(d, "openvino_model.xml", "openvino_model.bin"),
        "OpenVINO",
        "converted from",
    ),
    "executorch": (lambda d: foreign(d, "m.pte") / "m.pte", "ExecuTorch", "exported from"),
    "exported program": (
        lambda d: foreign(d, "m.pt2") / "m.pt2",
        "exported PyTorch program",
        "torch.export.load",
    ),
    "nemo": (lambda d: foreign(d, "m.nemo") / "m.nemo", "NeMo", "tar -xf"),
    "paddle": (lambda d: foreign(d, "m.pdparams") / "m.pdparams", "PaddlePaddle", "safetensors"),
    "mxnet": (lambda d: foreign(d, "m.params") / "m.params", "MXNet", "safetensors"),
    "archive": (lambda d: foreign(d, "m.tar.gz") / "m.tar.gz", "packed archive", "unpack it"),
    "two models": (
        lambda d: put(d, "model.pt").parent and put(d, "weights.pt").parent,
        "2 checkpoints (model.pt",
        "name",
    ),
    "snapshots of several epochs": (
        lambda d: put(d, "e1.ckpt").parent and put(d, "e2.ckpt").parent,
        "2 checkpoints",
        "name",
    ),
}


@pytest.mark.parametrize("case", NOT_OPENED)
def test_what_is_not_opened_is_named_with_what_to_do(case: str, tmp_path: Path) -> None:
    make, *parts = NOT_OPENED[case]
    with pytest.raises(SourceError) as caught:
        open_source(make(tmp_path))
    for part in parts:
        assert part.format(tmp_path) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_foreign_thing_is_a_case_here() -> None:
    texts = " ".join(part for _, *parts in NOT_OPENED.values() for part in parts)
    for known in FOREIGN:
        words = known.what.split()
        assert any(
            word in texts for word in words if len(word) > 3 and word not in {"model", "checkpoint"}
        ), known.what


def test_missing_shards_of_a_distributed_checkpoint_are_named(tmp_path: Path) -> None:
    WRITERS["a distributed checkpoint of torch"](tmp_path, state())
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(
        SourceError, match=r"__0_0\.distcp of the distributed checkpoint .* is missing"
    ):
        open_source(tmp_path)


def test_pieces_of_several_processes_are_put_together(tmp_path: Path) -> None:
    """A tensor written in two pieces, as two processes would: the metadata is torch's own."""
    from torch.distributed.checkpoint import metadata as meta

    whole = torch.randn(6, 5)
    kept, chunks = {}, []
    for rank, start in enumerate((0, 4)):
        piece = whole[start : start + 4].clone()
        file = tmp_path / f"__{rank}_0.distcp"
        file.write_bytes(b"padding")
        with file.open("ab") as stream:
            torch.save(piece, stream)
        place = torch.distributed.checkpoint.filesystem._StorageInfo(
            file.name, 7, file.stat().st_size - 7
        )
        kept[meta.MetadataIndex("model.a.weight", torch.Size([start, 0]), rank)] = place
        chunks.append(meta.ChunkStorageMetadata(torch.Size([start, 0]), piece.shape))
    tensor = meta.TensorStorageMetadata(
        meta.TensorProperties(dtype=torch.float32), whole.shape, chunks
    )
    planned = {"model.a.weight": ("model", "a.weight")}
    value = meta.Metadata({"model.a.weight": tensor}, planned, kept)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(value))
    (layer,) = open_source(tmp_path).layers
    assert layer.name == "a"
    assert torch.equal(layer.read()[0], whole)


def test_formats_are_preferred_in_the_order_of_the_table(tmp_path: Path) -> None:
    write_safetensors(tmp_path, state(1))
    write_torch(tmp_path, state(2))
    assert np.array_equal(open_source(tmp_path).layers[0].read()[0], state(1)["layers.0.weight"])


@pytest.mark.parametrize("name", ["..", "../other", "/other"])
def test_a_pipeline_does_not_name_folders_outside(name: str, tmp_path: Path) -> None:
    name = str(tmp_path / "other") if name == "/other" else name
    for folder in (tmp_path, tmp_path / "other", tmp_path / "model"):
        folder.mkdir(exist_ok=True)
        save_file({"net.weight": torch.eye(4)}, folder / "model.safetensors")
    (tmp_path / "model" / "modules.json").write_text(json.dumps([{"path": name}]))
    assert len(open_source(tmp_path / "model").layers) == 1
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({name: ["a", "b"]}))
    with pytest.raises(SourceError, match="weights"):
        open_source(tmp_path / "model")
