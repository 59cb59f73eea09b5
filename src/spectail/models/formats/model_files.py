"""Which files of a folder make up its model, and whether all of them are there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spectail.basics.json_values import read_json
from spectail.errors import SourceError
from spectail.models.formats import table
from spectail.models.formats.adapter_files import ADAPTER, MAIN_ADAPTER
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.foreign import refuse_foreign
from spectail.models.formats.format import Format
from spectail.models.formats.shard_index import read_index

WHOLE = re.compile(
    r"^(?:model\.(?:safetensors|onnx)|pytorch_model\.bin"
    r"|diffusion_pytorch_model\.(?:safetensors|bin)|flax_model\.msgpack|tf_model\.h5|weights\.npz)$"
)
"""Names of a whole model in one file; transformers too looks for these before an index."""
_MAIN_INDEX = re.compile(
    r"^(?:model|pytorch_model|diffusion_pytorch_model|flax_model|tf_model)\.\w+\.index\.json$"
)
"""Names of the index that the libraries themselves write, preferred over other indices."""
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})(\.\w+)$")
"""Name of a shard: stem, number, count and suffix."""
NOT_MODELS = re.compile(
    r"^(?:training_args|optimizer|scheduler|scaler|sampler|dl_state.*|rng_state.*|random_states.*"
    r"|tokenizer.*|manifest|regularizer|custom_checkpoint.*|trainer_state|openvino_.*"
    r"|.*optim_states)\."
)
"""Files of a training run that have a model's suffix but hold no model."""


def candidates(
    folder: FilePath, pattern: str, *, adapters: bool
) -> tuple[list[FilePath], list[FilePath]]:
    """Return the indices of shards in a folder, the best first, and the files of one pattern.

    There are no indices if the files are to be opened.
    """
    found = [
        f for f in sorted(folder.glob(pattern)) if f.is_file() and not NOT_MODELS.match(f.name)
    ]
    files = [f for f in found if bool(ADAPTER.match(f.name)) == adapters]
    # An index that is left over beside a whole file is ignored, as transformers does.
    if adapters or any(WHOLE.match(f.name) for f in files):
        return [], files
    indices = sorted(folder.glob(f"{pattern}.index.json"))
    return sorted(indices, key=lambda index: not _MAIN_INDEX.match(index.name)), files


def choose(folder: FilePath, files: Sequence[FilePath], form: Format) -> list[FilePath]:
    """Choose the one model among a folder's files of one format."""
    by_name = {path.name: path for path in files}
    if whole := [path for path in files if WHOLE.match(path.name) or MAIN_ADAPTER.match(path.name)]:
        return whole[:1]
    # Shards without an index: their names say how many there must be.
    shards = [match for name in by_name if (match := _SHARD.match(name))]
    if shards and len({(m[1], m[3], m[4]) for m in shards}) == 1:
        stem, count, suffix = shards[0][1], shards[0][3], shards[0][4]
        wanted = [f"{stem}-{i:05d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
        for name in wanted:
            if name not in by_name:
                raise SourceError(f"shard {name} of {folder} is missing; download the model again")
        return [by_name[name] for name in wanted]
    # Several models of equal standing: do not guess which one the user means.
    if len({tuple(form.all_parts(path)) for path in files}) > 1:
        refuse_foreign(folder)
        names = ", ".join(sorted(by_name)[:3])
        raise SourceError(
            f"{folder} holds {len(files)} checkpoints ({names}); name the file to open"
        )
    return form.all_parts(files[0])


def is_whole(folder: FilePath) -> bool:
    """Whether a folder has all files of the model that it is opened as.

    Of a model in the hub's cache some may be missing: programs fetch those that they need.
    """
    index = read_json(folder / "model_index.json", dict)
    # In ``model_index.json`` a part that the pipeline does without is [null, null].
    parts = [
        key for key, value in index.items() if isinstance(value, list) and any(map(bool, value))
    ]
    try:
        return _has_whole(folder) or (bool(parts) and all(_is_there(folder / x) for x in parts))
    except SourceError:
        return False


def _is_there(part: FilePath) -> bool:
    """Whether a part of a pipeline is there whole; a tokenizer or scheduler has no weights."""
    return part.is_dir() and (not (part / "config.json").is_file() or _has_whole(part))


def _has_whole(folder: FilePath) -> bool:
    """Whether a folder itself holds a model, all of whose files are there.

    Raises:
        SourceError: Some are missing, or nothing says which of several models is meant.

    """
    for adapters in (False, True):
        for form in table.FORMATS:
            for pattern in form.patterns:
                indices, files = candidates(folder, pattern, adapters=adapters)
                if indices:
                    return bool(read_index(indices[0]))
                if files:
                    return bool(choose(folder, files, form))
    return False
