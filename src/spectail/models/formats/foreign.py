"""Formats that are recognised but not read: each gives one line that says how to convert it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from spectail.errors import SourceError
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.open_file import ReadableFile


@dataclass(frozen=True)
class Foreign:
    """A kind of model file that people have and that no reader here opens."""

    what: str
    """Its name in messages, with its article."""
    advice: str
    """How to convert it; ``{}`` stands for the path."""
    files: str
    """A regular expression for the name of a file or sub-folder that identifies it, matched from
    the start."""


_KERAS = (
    "load it with Keras and save its weights as model.weights.h5, or its transformers class with "
    "from_pretrained('{}', from_tf=True) and save_pretrained"
)
# The order matters: specific names come before general ones, such as packed archives.
FOREIGN = (
    Foreign(
        "a DeepSpeed checkpoint whose weights are spread over ranks (ZeRO-3 or model parallel)",
        "gather it in the folder above, where DeepSpeed puts the script: "
        "python zero_to_fp32.py . model",
        r"(?:zero_pp_rank_\d+_mp_rank_\d+_(?:model|optim)_states\.pt"
        r"|mp_rank_0*[1-9]\d*_model_states\.pt|bf16_zero_pp_.*)$",
    ),
    Foreign(
        "a Megatron checkpoint, one folder per rank",
        "convert it with Megatron's tools/checkpoint/convert.py --load-dir {} --save-dir model "
        "--model-type GPT --loader core --saver llama_mistral, "
        "or name the model_optim_rng.pt of one rank",
        r"(?:mp_rank_\d+(?:_\d+)*$|latest_checkpointed_iteration\.txt$|iter_\d{7}$)",
    ),
    Foreign(
        "an Orbax checkpoint of JAX",
        "restore it and save it as msgpack: open('flax_model.msgpack', 'wb').write("
        "flax.serialization.to_bytes(orbax.checkpoint.PyTreeCheckpointer().restore('{}')))",
        r"(?:_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt|ocdbt\.process_\d+|_sharding)$",
    ),
    Foreign("a TensorFlow SavedModel", _KERAS, r"saved_model\.pb(?:txt)?$"),
    Foreign(
        "a TensorFlow checkpoint",
        _KERAS,
        r"(?:.*\.ckpt(?:-\d+)?\.(?:index|data-\d+-of-\d+|meta)|checkpoint)$",
    ),
    Foreign(
        "a frozen TensorFlow graph",
        "convert it: python -m tf2onnx.convert --graphdef {} --output model.onnx",
        r".*\.pb$",
    ),
    Foreign(
        "a TFLite model",
        "convert it: python -m tf2onnx.convert --tflite {} --output model.onnx",
        r".*\.(?:tflite|lite)$",
    ),
    Foreign(
        "a Core ML model",
        "open the model that it was converted from; "
        "Core ML stores compressed weights without their names",
        r".*\.(?:mlmodel|mlpackage|mlmodelc)$",
    ),
    Foreign(
        "an OpenVINO model",
        "open the model that it was converted from",
        r"openvino_.*\.(?:xml|bin)$",
    ),
    Foreign(
        "a TensorRT engine", "open the model that it was built from", r".*\.(?:engine|plan|trt)$"
    ),
    Foreign("an ExecuTorch program", "open the model that it was exported from", r".*\.pte$"),
    Foreign(
        "an exported PyTorch program",
        "save its weights: torch.save(torch.export.load('{}').state_dict, 'model.pt')",
        r".*\.pt2$",
    ),
    Foreign("a NeMo archive", "unpack it: tar -xf {}, then open model_weights.ckpt", r".*\.nemo$"),
    Foreign(
        "a PaddlePaddle model",
        "convert it: paddle.load, then safetensors.numpy.save_file",
        r".*\.(?:pdparams|pdiparams|pdmodel)$",
    ),
    Foreign(
        "an MXNet model",
        "convert it: mxnet.nd.load, then safetensors.numpy.save_file",
        r".*\.params$",
    ),
    Foreign(
        "a packed archive",
        "unpack it and open the folder",
        r".*\.(?:tar|tgz|gz|bz2|xz|zst|7z|rar|zip)$",
    ),
)
"""All recognised kinds. The first that matches is named."""
_TOKENIZER = re.compile(
    r"(?:tokenizer.*|special_tokens_map.*|vocab\..*|merges\.txt|.*\.model|chat_template.*"
    r"|added_tokens\.json)$"
)
"""Names of a tokenizer's files."""


def refuse_foreign(path: FilePath) -> None:
    """Raise an error if a file or folder is of a kind that is recognised but not read.

    Raises:
        SourceError: The message names the kind and says how to convert it.

    """
    names = sorted(_names(path))
    for known in FOREIGN:
        if any(re.match(known.files, name) for name in names):
            raise SourceError(
                f"{path} is {known.what}, which is not read here; "
                f"{known.advice.replace('{}', str(path))}"
            )


def is_page(file: ReadableFile) -> bool:
    """Whether a file begins as a web page or as another answer in HTML or XML.

    No format that is read begins so, and no JSON.
    """
    start = bytes(file.read(0, 256))
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    # The length at the beginning of a safetensors file may read "<A", but zeros follow.
    return b"\0" not in start[:8] and re.match(rb"<[!?a-zA-Z]", text) is not None


def refuse_stand_in(file: ReadableFile) -> None:
    """Raise an error if a download left something else in a file's place.

    Raises:
        SourceError: It is a pointer of Git LFS, or a web page.

    """
    if bytes(file.read(0, 64)).startswith(b"version https://git-lfs.github.com/spec/"):
        raise SourceError(
            f"{file.path} is a pointer of Git LFS, not the file itself; "
            "download it: git lfs pull, or huggingface-cli download"
        )
    if is_page(file):
        raise SourceError(
            f"{file.path} is a web page, not a model; download the file again (from a hub, look "
            "for access conditions)"
        )


def _names(path: FilePath) -> Iterator[str]:
    """Yield the names that identify a foreign model: the path's own and those in a folder."""
    # Some of these formats are folders with a suffix (``model.mlpackage``).
    if path.is_file() or path.suffix:
        yield path.name
    if path.is_dir():
        # Lightning calls a folder of DeepSpeed ``checkpoint``, as TensorFlow calls a file.
        yield from (c.name for c in path.iterdir() if c.name != "checkpoint" or c.is_file())


def without_weights(folder: FilePath) -> SourceError:
    """Return the error for a folder without a model; it says what the folder holds instead."""
    files = sorted(
        child.name
        for child in folder.iterdir()
        if child.is_file() and not child.name.startswith(".")
    )
    if files and all(
        _TOKENIZER.match(name) or name.endswith((".json", ".md", ".txt")) for name in files
    ):
        tokens = any(_TOKENIZER.match(name) for name in files)
        what = "a tokenizer and configuration files" if tokens else "configuration files"
        return SourceError(
            f"{folder} holds no weights, only {what} ({files[0]}...); "
            "download the weights beside them"
        )
    holds = "it holds only folders and hidden files" if any(folder.iterdir()) else "it is empty"
    if files:
        holds = f"it holds {', '.join(files[:3])}{'...' if len(files) > 3 else ''}"
    return SourceError(
        f"{folder} holds no weights; expected model.safetensors, an index of shards, "
        "adapter_model.safetensors, pytorch_model.bin, "
        f"a GGUF file or another format of docs/formats.md, and {holds}"
    )
