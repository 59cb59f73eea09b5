"""Files and folders on disk: which files make up the model, and how each is read."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spectail.errors import SourceError
from spectail.models.assembly.lora import ScaleOf, no_scale, scale_from_config
from spectail.models.build import build_source
from spectail.models.fingerprint import fingerprint_files
from spectail.models.formats.gguf import gguf_shards, read_gguf
from spectail.models.formats.safetensors import read_index, read_safetensors
from spectail.models.formats.torch_pickle import read_pickles
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.naming.names import natural_key
from spectail.models.source import Source

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Names of a whole model in one file, which transformers too looks for before an index."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})(\.\w+)$")
_NOT_MODELS = re.compile(r"^(?:training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|tokenizer.*)\.")


def path_source(path: Path, label: str | None = None) -> Source:
    """Open a checkpoint file or a model folder."""
    if path.is_dir():
        return _folder(path, label or path.resolve().name)
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder")
    label = label or path.name
    if path.name.endswith(".index.json"):
        return _from_index(path, label)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _safetensors([path], label)
    if suffix == ".gguf":
        return _gguf(path, label)
    if suffix in PICKLES:
        return _pickles([path], label)
    return _by_content(path, label)


def _by_content(path: Path, label: str) -> Source:
    """Open a file whose name does not say what it is."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"GGUF"):
        return _gguf(path, label)
    if len(start) == 9 and start.endswith(b"{") and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _safetensors([path], label)
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        return _pickles([path], label)
    what = "is empty" if not start else "is of no known format"
    raise SourceError(f"{path} {what}; expected a .safetensors, .gguf, .pt, .pth or .bin file or an index of shards")


def _from_index(index: Path, label: str) -> Source:
    """Open the shards that an index names."""
    shards, promised = read_index(index)
    reader = _safetensors if all(shard.suffix == ".safetensors" for shard in shards) else _pickles
    return reader(shards, label, promised)


def _folder(folder: Path, label: str) -> Source:
    """Open a model folder: safetensors before torch files, a whole model before an adapter, GGUF last."""
    for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt"):
        reader = _safetensors if pattern == "*.safetensors" else _pickles
        indices = sorted(folder.glob(f"{pattern}.index.json"))
        whole = any((folder / name).is_file() for name in WHOLE if name.endswith(pattern[1:]))
        if indices and not whole:
            preferred = [
                index
                for index in indices
                if index.name in {"model.safetensors.index.json", "pytorch_model.bin.index.json"}
            ]
            return _from_index((preferred or indices)[0], label)
        files = [f for f in folder.glob(pattern) if f.is_file() and not _NOT_MODELS.match(f.name)]
        if files:
            return reader(_choose(folder, files), label)
    if ggufs := sorted(folder.glob("*.gguf")):
        if len({gguf_shards(path)[0] for path in ggufs}) > 1:
            raise SourceError(f"{folder} holds {len(ggufs)} GGUF files; name one of them, such as {ggufs[0]}")
        return _gguf(ggufs[0], label)
    raise SourceError(
        f"{folder} holds no weights; expected model.safetensors, an index of shards, "
        "adapter_model.safetensors, pytorch_model.bin or a GGUF file"
    )


def _choose(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Find the one model among a folder's files of one format."""
    by_name = {path.name: path for path in files}
    for name in WHOLE:
        if name in by_name:
            return [by_name[name]]
    shards = [match for name in by_name if (match := _SHARD.match(name))]
    if shards and len({(m[1], m[3], m[4]) for m in shards}) == 1:
        stem, count, suffix = shards[0][1], shards[0][3], shards[0][4]
        wanted = [f"{stem}-{i:05d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
        for name in wanted:
            if name not in by_name:
                raise SourceError(f"shard {name} of {folder} is missing; download the model again")
        return [by_name[name] for name in wanted]
    whole = [path for path in files if not path.name.startswith("adapter_")] or list(files)
    if len(whole) > 1:
        names = ", ".join(sorted(path.name for path in whole)[:3])
        raise SourceError(f"{folder} holds {len(whole)} checkpoints ({names}); name the file to open")
    return whole


def _safetensors(paths: Sequence[Path], label: str, promised: Iterable[str] = ()) -> Source:
    """Open safetensors files that make up one model."""
    return _assembled(paths, label, read_safetensors(paths), promised)


def _pickles(paths: Sequence[Path], label: str, promised: Iterable[str] = ()) -> Source:
    """Open torch files that make up one model."""
    return _assembled(paths, label, read_pickles(paths), promised)


def _assembled(paths: Sequence[Path], label: str, tensors: Sequence[LazyTensor], promised: Iterable[str]) -> Source:
    """Put the tensors together with the configuration files beside them."""
    folder = paths[0].parent
    adapter = paths[0].stem == "adapter_model"
    scale_of: ScaleOf = no_scale
    notes = _lost(promised, tensors)
    files = [(path.name, path) for path in paths]
    if adapter:
        config = _json(folder / "adapter_config.json")
        scale_of = partial(scale_from_config, config)
        if config:
            files.append(("adapter_config.json", folder / "adapter_config.json"))
        notes += _adapter_notes(config)
    return build_source(
        label,
        fingerprint_files(files),
        tensors,
        config=_json(folder / "config.json"),
        scale_of=scale_of,
        notes=notes,
    )


def _lost(promised: Iterable[str], tensors: Sequence[LazyTensor]) -> tuple[str, ...]:
    """Say which tensors an index names and no shard holds."""
    there = {stored.name for stored in tensors}
    lost = [name for name in promised if name not in there]
    if not lost:
        return ()
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return (f"the index names {lost[0]}{more}, which no shard holds",)


def _adapter_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what about an adapter is not in its delta."""
    if not config:
        return (
            "no adapter_config.json beside the adapter: its scaling is taken as 1, which moves norms and not alpha",
        )
    if config.get("use_dora"):
        return ("the adapter uses DoRA: its delta is measured without the magnitude vectors",)
    return ()


def _json(path: Path) -> Mapping[str, Any]:
    """Read a configuration; one that is missing or damaged says nothing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, Mapping) else {}


def _gguf(path: Path, label: str) -> Source:
    """Open a GGUF file, or all parts of a split one."""
    paths = gguf_shards(path)
    model = read_gguf(paths)
    fingerprint = fingerprint_files((part.name, part) for part in paths)
    tensors = sorted(model.tensors, key=lambda stored: natural_key(stored.name))  # stored as blk.0, blk.1, blk.10
    return build_source(label, fingerprint, tensors, config=model.config, notes=model.notes)
