"""HDF5 files of Keras and TensorFlow: ``tf_model.h5``, ``.h5``, ``.weights.h5`` and ``.keras``.

The ``h5py`` library reads the structure; arrays that are stored in one piece are read by ranges.
Keras 3 numbers the variables of a layer (``layers/dense/vars/0``). Its group is named after the
layer's class, which tells what the variables are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectail.basics.memory import in_words
from spectail.errors import SourceError
from spectail.models.formats.channels_last import as_torch
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.hdf5_heaps import MAGIC, CheckedStream
from spectail.models.formats.npy import torch_dtype
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray, row_major, stored_tensor
from spectail.models.formats.zipped import member, open_archive
from spectail.models.lazy_tensor import Index, LazyTensor, dtype_name, piece_of, unreadable
from spectail.models.naming.names import natural_key

_OPTIMIZER = re.compile(
    r"^/(?:optimizer|optimizer_weights|_layer_checkpoint_dependencies/optimizer)(?:/|$)"
)
"""Paths of the optimizer's variables."""
_ATTENTION = {
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
}
"""Names of the layers inside of Keras' MultiHeadAttention, and of their weights in a model."""
_CONTAINERS = {"_layer_checkpoint_dependencies", "layers", "vars"}
"""Levels of Keras' paths that are no modules."""
_WEIGHTS = "model.weights.h5"
"""Name of the member of a ``.keras`` archive that holds the weights."""


def read_hdf5(files: Sequence[ReadableFile]) -> Contents:
    """Describe the weights of one or several files; numbers in names are sorted as numbers."""
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        for path, stored in _arrays(file).items():
            if path in tensors:
                raise SourceError(f"array {path!r} is in {file.name} and in an earlier shard")
            tensors[path] = stored
    if not tensors:
        raise SourceError(f"{files[0].path} holds no arrays; expected the weights of a Keras model")
    return Contents(sorted(as_torch(tensors), key=lambda stored: natural_key(stored.name)))


def _arrays(file: ReadableFile) -> dict[str, LazyTensor]:
    """Describe the arrays of one file by their paths."""
    h5py = _library(file)
    if file.size == 0:
        raise SourceError(f"{file.path} is empty; expected an HDF5 file of Keras")
    try:
        # A ``.keras`` file is a zip archive, which begins with PK.
        place, start = (file, 0) if bytes(file.read(0, 2)) != b"PK" else _inside(file)
        with h5py.File(CheckedStream(place, start), "r") as tree:
            found: list[str] = []
            tree.visititems(
                lambda path, item: (
                    found.append(f"/{path}") if isinstance(item, h5py.Dataset) else None
                )
            )
            # Optimizer states have the shapes of the weights and would double every layer.
            kept = [path for path in found if not _OPTIMIZER.match(path)]
            return {
                _name(path): _described(tree[path], place, start)
                for path in sorted(kept, key=natural_key)
            }
    except SourceError:
        raise
    except Exception:  # noqa: BLE001 - a damaged file may fail in any way
        raise SourceError(
            f"{file.path} is not a readable file of Keras: it is truncated or of another format"
        ) from None


def _library(file: ReadableFile) -> Any:
    """Import h5py, which is an optional dependency."""
    try:
        import h5py
    except ImportError:
        raise SourceError(f"reading {file.path} needs the h5py library: pip install h5py") from None
    return h5py


def _inside(file: ReadableFile) -> tuple[ReadableFile, int]:
    """Find the weights in a ``.keras`` archive."""
    with open_archive(file) as archive:
        place, start, _ = member(file, 0, archive, _WEIGHTS)
        return place, start


def _described(dataset: Any, file: ReadableFile, start: int) -> LazyTensor:
    """Describe one array: by its range if it is stored in one piece, else through the library."""
    shape = tuple(dataset.shape)
    dtype = torch_dtype(dataset.dtype.str)
    if dtype is None:
        return unreadable(
            "", shape, "uint8", f"an array of type {dataset.dtype}, which is not read"
        )
    if problem := _not_stored(dataset, dtype):
        return unreadable("", shape, dtype_name(dtype), problem)
    # None if the array is chunked or compressed.
    offset = dataset.id.get_offset()
    if offset is not None:
        return stored_tensor("", StoredArray(file, start + offset, dtype, shape, row_major(shape)))
    read = partial(_read_chunked, file, start, dataset.name)
    return LazyTensor("", shape, dtype_name(dtype), read)


_UNPACKED, _RATIO = 2**26, 32
"""Bytes, and how many times what is stored of it, that a compressed array may have."""


def _not_stored(dataset: Any, dtype: torch.dtype) -> str | None:
    """Say that an array is in other files, or mostly not stored; None for all others."""
    # A file must not make this read any other file of the user's.
    if dataset.external or dataset.is_virtual:
        return "its numbers lie in other files, which are not read"
    size, stored = dataset.size * dtype.itemsize, dataset.id.get_storage_size()
    if size > _UNPACKED + _RATIO * stored:
        return f"the file holds {in_words(stored)} of its {in_words(size)}"
    return None


def _read_chunked(file: ReadableFile, start: int, path: str, index: Index) -> Tensor:
    """Read an array that is chunked or compressed."""
    import h5py

    try:
        # The file is opened again for each read: h5py
        # objects cannot be pickled or shared by threads.
        with h5py.File(CheckedStream(file, start), "r") as tree:
            values = np.asarray(tree[path][()])
    except (OSError, RuntimeError, KeyError) as error:
        raise SourceError(
            f"{path} of {file.path} cannot be read ({error}): the file is damaged"
        ) from None
    return piece_of(torch.from_numpy(values), index)


def _name(path: str) -> str:
    """Return a variable's path with dots, ending with Keras' name of the variable.

    >>> _name("/bert/tf_bert_model/bert/encoder/layer_._0/output/dense/kernel:0")
    'bert.encoder.layer.0.output.dense.kernel'
    >>> _name("/layers/dense_1/vars/0"), _name("/dense/dense/kernel:0")
    ('dense_1.kernel', 'dense.kernel')
    """
    parts = path.strip("/").removesuffix(":0").replace("_._", "/").split("/")
    # transformers' TensorFlow models put their class (``tf_bert_model``) into every path.
    tf_class = next((i for i, part in enumerate(parts) if part.startswith("tf_")), None)
    if tf_class is not None:
        parts = parts[tf_class + 1 :]
    elif len(parts) > 2 and parts[0] == "model_weights":
        parts = parts[1:]
    if len(parts) > 2 and parts[0] == parts[1]:
        # A Keras file has a group for the layer, and the layer's name again in the variable's name.
        parts = parts[1:]
    if len(parts) > 2 and parts[-2] == "vars":  # Keras 3
        parts = [
            *(_ATTENTION.get(part, part) for part in parts[:-1] if part not in _CONTAINERS),
            parts[-1],
        ]
        parts = [*parts[:-1], _variable(parts[:-1], parts[-1])]
    return ".".join(parts)


def _variable(layer: Sequence[str], number: str) -> str:
    """Return the name of a numbered variable of Keras 3."""
    # Keras numbers repeated layers: ``dense``, ``dense_1``.
    kind = re.sub(r"_\d+$", "", layer[-1])
    if kind == "cell":
        names = ["kernel", "recurrent_kernel", "bias"]
    elif "separable" in kind:
        names = ["depthwise_kernel", "pointwise_kernel", "bias"]
    elif "depthwise" in kind:
        names = ["depthwise_kernel", "bias"]
    elif "embedding" in kind:
        names = ["embeddings"]
    elif "norm" in kind:
        names = ["gamma", "beta", "moving_mean", "moving_variance"]
    else:
        names = ["kernel", "bias"]
    place = int(number)
    return names[place] if place < len(names) else f"variable_{number}"


FORMAT = Format(
    name="an HDF5 file of Keras",
    suffixes=(".h5", ".hdf5", ".keras"),
    read=read_hdf5,
    looks_like=lambda start, size: start.startswith(MAGIC),
)
