"""GGUF: described from the header; the ``gguf`` library dequantises one tensor at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectail.basics.texts import first_names
from spectail.errors import SourceError
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.gguf_header import GgufTensor, read_header
from spectail.models.formats.gguf_names import FAMILIES, PERMUTED, HfName, hf_name
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray, row_major
from spectail.models.formats.settings import check_gguf_settings
from spectail.models.lazy_tensor import MOST_EXPERTS, Index, LazyTensor, in_memory, piece_of
from spectail.models.naming.names import natural_key

_SPLIT = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
"""Name of one part of a split model."""
_NO_MODELS = {
    "imatrix": "llama.cpp's importance matrix (sums of squared activations)",
    "controlvector": "a control vector of llama.cpp",
}
"""What GGUF files hold besides models and adapters, by ``general.type`` or architecture."""
_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that are stored as plain numbers, and torch's names of them."""


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a tensor lie; its last dimension is packed as its type says."""

    data: StoredArray
    type_id: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Sizes of all dimensions but the last."""
        return self.data.shape[:-1]


def gguf_shards(path: FilePath) -> list[FilePath]:
    """List all files of a split model, given any of them."""
    match = _SPLIT.match(path.name)
    if match is None:
        return [path]
    shards = [
        path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}.gguf")
        for i in range(1, int(match[3]) + 1)
    ]
    for shard in shards:
        if not shard.is_file():
            raise SourceError(
                f"{shard.name}, a part of the split model {path}, is missing; "
                "download the model again"
            )
    return shards


def read_gguf(files: Sequence[ReadableFile]) -> Contents:
    """Describe the tensors of a GGUF file, or of all parts of a split one."""
    headers = [(file, read_header(file)) for file in files]
    metadata = headers[0][1].metadata
    architecture = str(metadata.get("general.architecture", "unknown"))
    if kind := {str(metadata.get("general.type")), architecture} & _NO_MODELS.keys():
        raise SourceError(
            f"{files[0].path} holds {_NO_MODELS[kind.pop()]}, no weights; "
            "open the model's own GGUF file"
        )
    check_gguf_settings(files[0].path, architecture, metadata)
    tensors: list[LazyTensor] = []
    unnamed: list[str] = []
    for file, header in headers:
        for tensor in header.tensors:
            known = hf_name(architecture, tensor.name) or _factor_name(architecture, tensor.name)
            # Names of vectors do not matter: they give no rows.
            if known is None and len(tensor.shape) > 1:
                unnamed.append(tensor.name)
            tensors += _described(file, tensor, known, metadata)
    if not tensors:
        raise SourceError(f"{files[0].path} is a GGUF file without tensors; expected a model")
    tensors += _alphas(tensors, metadata)
    tensors.sort(key=lambda stored: natural_key(stored.name))  # stored as blk.0, blk.1, blk.10
    return Contents(tensors, _config(architecture, metadata), _notes(architecture, unnamed))


def _factor_name(architecture: str, name: str) -> HfName | None:
    """Translate the name of a LoRA factor (``blk.0.attn_q.weight.lora_a``) into peft's.

    Only the rows of factor B are reordered: B has the outputs of the weight as its rows.
    """
    weight, _, factor = name.rpartition(".")
    if (
        factor not in {"lora_a", "lora_b"}
        or (known := hf_name(architecture, weight)) is None
        or known.transposed
    ):
        return None
    target = known.name.removesuffix(".weight")
    return HfName(f"{target}.lora_{factor[-1].upper()}", known.stem if factor == "lora_b" else "")


def _alphas(tensors: Sequence[LazyTensor], metadata: Mapping[str, object]) -> list[LazyTensor]:
    """Describe an adapter's single alpha beside every factor, as the files of kohya store it."""
    alpha = metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, int | float):
        return []
    targets = (re.fullmatch(r"(.*?)(?:\.weight)?\.lora_[aA]", stored.name) for stored in tensors)
    return [
        in_memory(f"{match[1]}.alpha", torch.tensor(float(alpha))) for match in targets if match
    ]


def _notes(architecture: str, unnamed: Sequence[str]) -> tuple[str, ...]:
    """Return a note on the tensors that keep llama.cpp's names."""
    if architecture not in FAMILIES:
        return (
            f"GGUF architecture {architecture!r} is not known here: "
            "layers keep llama.cpp's names and row order",
        )
    if unnamed:
        shown = first_names(unnamed)
        return (f"{shown} of GGUF architecture {architecture!r} keep llama.cpp's names",)
    return ()


def _config(architecture: str, metadata: Mapping[str, object]) -> dict[str, Any]:
    """Return what the header states about attention, with the keys of a transformers configuration.

    llama.cpp's converter turns every family's fused ``attn_qkv`` into blocks of query, key and
    value. The model type is therefore one of its own and not the family's.
    """
    keys = {
        # Only what cutting fused weights into parts needs.
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "hidden_size": "embedding_length",
    }
    # A family with a name for the output layer is one of language models.
    family = FAMILIES.get(architecture)
    causal = ["GgufForCausalLM"] if family and "output" in family.top else []
    return {"model_type": "gguf", "architectures": causal} | {
        name: metadata.get(f"{architecture}.{key}") for name, key in keys.items()
    }


def _heads(metadata: Mapping[str, object], key: str, block: int) -> int | None:
    """Return the number of attention heads, which some models state for each block."""
    value = metadata.get(f"{metadata.get('general.architecture')}.attention.{key}")
    if isinstance(value, list):
        value = value[block] if block < len(value) else None
    return value if isinstance(value, int) and value > 0 else None


def _described(
    file: ReadableFile, tensor: GgufTensor, known: HfName | None, metadata: Mapping[str, object]
) -> Iterator[LazyTensor]:
    """Describe one tensor; stacked experts become single ones, as in Hugging Face's files."""
    dtype, place, problem = _place(file, tensor)
    name, shape = known.name if known else tensor.name, tensor.shape
    if before := metadata.get(f"{_SHAPE_BEFORE}{tensor.name}"):
        yield _reshaped(tensor, before, dtype, place, problem)
    # Names with a place for the expert's number are those of stacked experts.
    elif (
        known and "{}" in name and len(shape) == 3 and math.prod(shape) and shape[0] <= MOST_EXPERTS
    ):
        for expert in range(shape[0]):
            yield LazyTensor(
                name.format(expert),
                shape[1:],
                dtype,
                partial(_read_expert, place, expert),
                problem=problem,
            )
    elif known and known.transposed and len(shape) == 2:
        yield LazyTensor(
            name, shape[::-1], dtype, partial(_read_transposed, place), problem=problem
        )
    else:
        # Biases of q and k are reordered as well, but vectors are not measured.
        reordered = known is not None and len(shape) == 2 and _is_permuted(known, metadata)
        heads = _permuted_heads(known, metadata) if known and reordered else None
        if heads and shape[0] % (2 * heads):
            problem = f"{shape[0]} rows do not divide into the {heads} heads that the file states"
        yield LazyTensor(
            name.replace("{}", "0"),
            shape,
            dtype,
            partial(_read, place, heads),
            problem=problem,
            note=_NO_HEADS if reordered and not heads else "",
        )


_SHAPE_BEFORE = "comfy.gguf.orig_shape."
"""Metadata key before a tensor's name: ComfyUI's converter stores convolutions and narrow matrices
with 256 columns, which blocks of quantised types need, and states the shape before that."""


def _reshaped(
    tensor: GgufTensor, before: object, dtype: str, place: _Place | None, problem: str | None
) -> LazyTensor:
    """Describe a tensor that was stored in another shape than it has in the model."""
    shape = tuple(before) if isinstance(before, list) else ()
    if math.prod(shape) != math.prod(tensor.shape) or min(shape, default=0) < 0:
        problem = (
            f"stored with shape {tensor.shape}, which {_SHAPE_BEFORE}{tensor.name} contradicts"
        )
        shape = tensor.shape
    return LazyTensor(
        tensor.name, shape, dtype, partial(_read_reshaped, place, shape), problem=problem
    )


def _read_reshaped(place: _Place | None, shape: tuple[int, ...], index: Index) -> Tensor:
    """Read a tensor, or the indexed piece, in the shape it has in the model."""
    return piece_of(_read(place, None, ()).reshape(shape), index)


_NO_HEADS = (
    "llama.cpp reorders the rows of this weight by heads, and the file does not state how many: "
    "measured in the order of the file"
)


def _is_permuted(known: HfName, metadata: Mapping[str, object]) -> bool:
    """Whether llama.cpp has reordered the rows of a tensor."""
    is_kind = known.stem in {"attn_q", "attn_k"}
    return is_kind and metadata.get("general.architecture") in PERMUTED


def _permuted_heads(known: HfName, metadata: Mapping[str, object]) -> int | None:
    """Return the number of heads of a tensor whose rows llama.cpp has reordered."""
    match = re.search(r"\.(\d+)\.", known.name)
    block = int(match[1]) if match else 0
    heads = _heads(metadata, "head_count", block)
    return heads if known.stem == "attn_q" else _heads(metadata, "head_count_kv", block) or heads


_READ_BYTES = 2**16
"""Stored bytes that are dequantised at a time. The library needs several times the memory of its
result, which stays in a core's cache."""


def _place(file: ReadableFile, tensor: GgufTensor) -> tuple[str, _Place | None, str | None]:
    """Return the torch name of the values' type, where they lie, and why they are unreadable."""
    gguf = _library(file.path)
    try:
        kind = gguf.GGMLQuantizationType(tensor.type_id)
    except ValueError:
        return (
            "float32",
            None,
            f"stored in GGUF type {tensor.type_id}, which the gguf library does not know",
        )
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns = tensor.shape[-1] if tensor.shape else 1
    packed = (*tensor.shape[:-1], columns // block * size)
    place = _Place(
        StoredArray(file, tensor.offset, torch.uint8, packed, row_major(packed)), tensor.type_id
    )
    if columns % block or place.data.end > file.size:
        raise SourceError(
            f"{file.path} is truncated or damaged: tensor {tensor.name!r} does not fit into it; "
            "download it again"
        )
    if kind.name in _PLAIN:
        return _PLAIN[kind.name], place, None
    if re.fullmatch(r"I(8|16|32|64)", kind.name):
        return f"int{kind.name[1:]}", place, None
    try:
        # Whether the library can dequantise a type shows
        # only when it tries: do so with one empty block.
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return "float32", place, f"stored as {kind.name}, which the gguf library cannot dequantise"
    return "float32", place, None


def _library(path: FilePath) -> Any:
    """Import gguf, which is an optional dependency."""
    try:
        import gguf
    except ImportError:
        raise SourceError(f"reading {path} needs the gguf library: pip install gguf") from None
    return gguf


def _read(place: _Place | None, heads: int | None, index: Index) -> Tensor:
    """Dequantise one tensor, or the indexed piece, and put its rows in Hugging Face's order."""
    if place is None:
        raise NotImplementedError
    # The index is applied to all dimensions but the last before dequantising, so that one expert or
    # a few rows of a large tensor cost little. Reordering needs all rows.
    early = () if heads else index[: len(place.rows)]
    values = _dequantise(place, early)
    if heads:
        values = unpermute(values, heads)
    late = index[len(early) :]
    # A slice keeps its dimension and an integer removes it;
    # the rest of the index applies behind those.
    kept = tuple(slice(None) for cut in early if isinstance(cut, slice))
    return piece_of(torch.from_numpy(values), (*kept, *late) if late else ())


def _dequantise(place: _Place, early: Index) -> np.ndarray[Any, Any]:
    """Convert stored bytes to numbers, in memory of their own."""
    gguf = _library(place.data.file.path)
    data = np.ascontiguousarray(place.data.read(early).numpy())
    kind = gguf.GGMLQuantizationType(place.type_id)
    if kind.name == "F64":
        return data.view(np.float64).copy()
    rows = data.reshape(-1, data.shape[-1])
    # Whole rows at a time: blocks of a quantised type never cross rows. They are handed over as one
    # long row, since the library would cut more rows into groups of 16, which takes 1.7 times as
    # long for the short rows of small models.
    some = max(1, _READ_BYTES // data.shape[-1])
    first = gguf.quants.dequantize(rows[:1], kind)
    values = np.empty((rows.shape[0], first.shape[-1]), dtype=first.dtype)
    for start in range(0, rows.shape[0], some):
        piece = rows[start : start + some]
        numbers = gguf.quants.dequantize(piece.reshape(1, -1), kind)
        values[start : start + some] = numbers.reshape(piece.shape[0], -1)
    return values.reshape(*data.shape[:-1], -1)


def _read_expert(place: _Place | None, expert: int, index: Index) -> Tensor:
    """Read one of the stacked experts."""
    return _read(place, None, (expert, *index))


def _read_transposed(place: _Place | None, index: Index) -> Tensor:
    """Read a tensor that Hugging Face stores as (in, out)."""
    return piece_of(_read(place, None, ()).T, index)


def unpermute(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order of q and k, which interleaves the two halves of each head."""
    half = values.shape[0] // heads // 2
    return np.ascontiguousarray(
        # Row 2 i + j of a head in the file is row i + j * half of the model, j = 0 or 1.
        values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
    )


FORMAT = Format(
    name="a GGUF file",
    suffixes=(".gguf",),
    read=read_gguf,
    looks_like=lambda start, size: start.startswith(b"GGUF"),
    all_parts=gguf_shards,
)
