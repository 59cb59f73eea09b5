"""Find the files that make up the model of a path, and open them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from spectail.basics.json_values import read_json
from spectail.basics.texts import type_and_line
from spectail.errors import SourceChangedError, SourceError
from spectail.models.assembly.quantisation import quantisation_of
from spectail.models.build import build_source
from spectail.models.formats import table
from spectail.models.formats.adapter_files import CONFIG, adapter_beside
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.fingerprint import digest_of, fingerprint_files
from spectail.models.formats.foreign import refuse_foreign, refuse_stand_in, without_weights
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.model_files import NOT_MODELS, candidates, choose
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.remote_path import open_at_once, open_file
from spectail.models.formats.settings import check_model_settings, check_quantisation
from spectail.models.formats.shard_index import names_without_shard, read_index
from spectail.models.naming.names import natural_key
from spectail.models.source import Source

_COMPONENTS = re.compile(
    r"^(?:unet|vae|transformer|prior|decoder|controlnet|text_encoder|image_encoder|vision_encoder"
    r"|vqvae|movq|vocoder|safety_checker|adapter|connectors)(?:_\d+)?$"
)
"""Usual names of the sub-folders of a diffusers pipeline."""


def path_source(path: FilePath, label: str | None = None) -> Source:
    """Open a checkpoint file or a model folder."""
    if path.is_dir():
        return _folder(path, label or path.resolve().name)
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder")
    label = label or path.name
    if path.name.endswith(".index.json"):
        return _from_index(path, label)
    try:
        form = table.format_of(path)
    except SourceError:
        # An unknown file may be of a format that is recognised, which deserves a better message.
        refuse_foreign(path)
        raise
    try:
        return _assembled(form, form.all_parts(path), label)
    except SourceError as error:
        # Some programs pack their files as torch does.
        if not isinstance(error, SourceChangedError):
            refuse_foreign(path)
        raise


def _from_index(index: FilePath, label: str) -> Source:
    """Open the shards that an index names."""
    shards, promised = read_index(index)
    return _assembled(table.format_of_shards(shards), shards, label, promised)


def _folder(folder: FilePath, label: str) -> Source:
    """Open a model folder: its own model, else its adapter, else what its sub-folders hold."""
    # A whole model in any format comes before an adapter in any format.
    for adapters in (False, True):
        if source := _of_formats(folder, label, adapters=adapters):
            return _with_modules(folder, source)
    if inner := _snapshot(folder) or _latest_step(folder) or _of_fsdp(folder):
        return path_source(inner, _hub_name(folder) or label)
    if components := _components(folder):
        return _pipeline(components, label)
    # Foreign files beside a model are common: refuse only if nothing can be opened.
    refuse_foreign(folder)
    _refuse_run(folder)
    raise without_weights(folder)


def _of_formats(folder: FilePath, label: str, *, adapters: bool) -> Source | None:
    """Open the whole model of a folder, or its adapter, in the first format; None if neither."""
    for form in table.FORMATS:
        for pattern in form.patterns:
            if source := _of_format(folder, label, form, pattern, adapters=adapters):
                return source
    return None


def _whole(folder: FilePath) -> Source | None:
    """Open the whole model of a folder; None if it holds adapters only."""
    return _of_formats(folder, folder.name, adapters=False)


def _of_format(
    folder: FilePath, label: str, form: Format, pattern: str, *, adapters: bool
) -> Source | None:
    """Open the folder's model of one format, whole rather than sharded; None if there is none."""
    indices, files = candidates(folder, pattern, adapters=adapters)
    if indices:
        return _from_index(indices[0], label)
    if not files:
        return None
    chosen = choose(folder, files, form)
    return _assembled(form, chosen, label)


def _snapshot(folder: FilePath) -> FilePath | None:
    """Find the model in a hub cache folder: the snapshot of ``refs/main``, or the only one."""
    snapshots = sorted(path for path in (folder / "snapshots").glob("*") if path.is_dir())
    if not snapshots:
        return None
    if (folder / "refs" / "main").is_file():
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if commit in {path.name for path in snapshots}:
            return folder / "snapshots" / commit
    if len(snapshots) > 1:
        raise SourceError(
            f"{folder} holds {len(snapshots)} snapshots; name one of them, such as {snapshots[0]}"
        )
    return snapshots[0]


def _latest_step(folder: FilePath) -> FilePath | None:
    """Find the DeepSpeed checkpoint that the file ``latest`` names."""
    if not (folder / "latest").is_file():
        return None
    step = folder / (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
    # The file's text may be a path to somewhere else.
    return step if step.parent == folder and list(step.glob("*_states.pt")) else None


def _of_fsdp(folder: FilePath) -> FilePath | None:
    """Find the model that accelerate's ``save_state`` keeps beside ``optimizer_0`` under FSDP."""
    inner = folder / "pytorch_model_fsdp_0"
    return inner if (inner / ".metadata").is_file() else None


def _hub_name(folder: FilePath) -> str | None:
    """Return ``org/name`` for a folder called ``models--org--name``."""
    name = folder.resolve().name
    return name.removeprefix("models--").replace("--", "/") if name.startswith("models--") else None


def _components(folder: FilePath) -> list[FilePath]:
    """List the sub-folders of a pipeline that hold weights, by its index or by usual names."""
    index = read_json(folder / "model_index.json", dict)
    named = [
        key for key, value in index.items() if isinstance(value, list) and not key.startswith("_")
    ]
    # In ``model_index.json`` a model is a list, [library, class]; all other entries are settings.
    names = named or [
        path.name for path in sorted(folder.iterdir()) if _COMPONENTS.match(path.name)
    ]
    inside = _inside(folder, names)
    return [path for path in inside if path.is_dir() and _has_weights(path)]


def _inside(folder: FilePath, names: Iterable[str]) -> list[FilePath]:
    """List the paths of these names that lie in the folder itself, each once.

    The names come from a file, which must not make this read any other file of the user's.
    """
    paths = dict.fromkeys(folder / name for name in names)
    return [path for path in paths if path.parent == folder and path.name != ".."]


def _has_weights(folder: FilePath) -> bool:
    """Whether a folder holds files of a format that is read."""
    patterns = [pattern for form in table.FORMATS for pattern in form.patterns]
    return any(
        not NOT_MODELS.match(file.name) for pattern in patterns for file in folder.glob(pattern)
    )


def _pipeline(components: Sequence[FilePath], label: str) -> Source:
    """Open the models of a pipeline as one source, each with its folder's name before layers."""
    sources = [(path.name, path_source(path)) for path in components]
    parts = ", ".join(name for name, _ in sources)
    note = (
        f"a pipeline of {len(sources)} models: {parts}; "
        f"choose one with --include '{sources[0][0]}.*'"
    )
    return _joined(label, sources, note)


def _with_modules(folder: FilePath, source: Source) -> Source:
    """Add the modules in sub-folders that ``modules.json`` of sentence-transformers lists."""
    modules = read_json(folder / "modules.json", list)
    paths = [str(item.get("path", "")) for item in modules if isinstance(item, Mapping)]
    # A module has no modules of its own: a link may lead back to this folder.
    extra = [
        (path.name, module)
        for path in _inside(folder, paths)
        if path.is_dir() and (module := _whole(path))
    ]
    if not extra:
        return source
    return _joined(
        source.label, [("", source), *extra], f"with {', '.join(name for name, _ in extra)}"
    )


def _joined(label: str, sources: Sequence[tuple[str, Source]], note: str) -> Source:
    """Join the layers of several sources, with each source's name before its layers' names.

    A source with an empty name keeps its layers' names.
    """
    layers, tied = (
        tuple(
            replace(layer, name=f"{name}.{layer.name}") if name else layer
            for name, source in sources
            for layer in getattr(source, which)
        )
        for which in ("layers", "tied")
    )
    notes = [
        f"{name}: {text}" if name else text for name, source in sources for text in source.notes
    ]
    vectors = sum(source.n_vectors for _, source in sources)
    files = tuple(file for _, source in sources for file in source.files)
    return Source(label, _joint_digest(sources), layers, vectors, (note, *notes), tied, files=files)


def _joint_digest(sources: Sequence[tuple[str, Source]]) -> str:
    """Return the fingerprint of several sources; of a single one its own."""
    if len(sources) == 1:
        return sources[0][1].fingerprint
    # The names are part of the digest, so that two models that swap places give another one.
    text = "\0".join(f"{name}\0{source.fingerprint}" for name, source in sources)
    return digest_of(text.encode())


def _refuse_run(folder: FilePath) -> None:
    """Raise an error that names the latest checkpoint of a run, or the sub-folders with models."""
    children = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("optim")]
    numbered = [
        path
        for path in children
        if re.search(r"^(?:checkpoint|global_step|step|epoch)[-_]?\d+$", path.name)
    ]
    if numbered:
        # By number, not by text: checkpoint-1000 is later than checkpoint-999.
        latest = max(numbered, key=lambda path: natural_key(path.name))
        raise SourceError(
            f"{folder} holds no weights itself but checkpoints of a run ({len(numbered)}); "
            f"open the latest with: spectail analyze {latest}"
        )
    holding = sorted(
        (path for path in children if _has_weights(path)), key=lambda path: natural_key(path.name)
    )
    if holding:
        names = ", ".join(path.name for path in holding[:4]) + ("..." if len(holding) > 4 else "")
        raise SourceError(
            f"{folder} holds no weights itself, its sub-folders do ({names}); "
            f"name one: spectail analyze {holding[0]}"
        )


def _assembled(
    form: Format, paths: Sequence[FilePath], label: str, promised: Iterable[str] = ()
) -> Source:
    """Read the files of one model and combine its tensors with the configuration beside them."""
    open_at_once(paths)
    files = [open_file(path) for path in paths]
    contents = _read(form, files)
    folder = paths[0].parent
    # The measured numbers depend on the configurations too: heads, quantisation, scales.
    config, beside = (contents.config, []) if contents.config else configuration_of(folder)
    bases: list[Source] = []

    def open_base(path: FilePath) -> Source | None:
        source = _whole(path)
        bases.extend([source] if source else [])
        return source

    adapters = adapter_beside(paths[0], contents.tensors, open_base)
    if adapters.config:
        beside = [*beside, open_file(folder / CONFIG)]
    opened = (*files, *contents.more_files, *beside)
    read_how = [file.note for file in opened if file.note]
    source = build_source(
        label,
        fingerprint_files((file.name, file) for file in opened),
        contents.tensors,
        config=config,
        adapters=adapters,
        notes=(*contents.notes, *names_without_shard(promised, contents.tensors), *read_how),
    )
    # The base model of an adapter is opened while the layers are built, if any of them needs it.
    return replace(
        source,
        fingerprint=_joint_digest([("", source), *(("base", base) for base in bases)]),
        files=(*opened, *(file for base in bases for file in base.files)),
    )


def configuration_of(folder: FilePath) -> tuple[Mapping[str, Any], Sequence[ReadableFile]]:
    """Read a model's configuration, and return also the files that it was read from."""
    config, files = _json_of(folder / "config.json")
    check_model_settings(folder / "config.json", config)
    if quantisation_of(config):
        return config, files
    # Some quantisation libraries write a file of their own instead of an entry in ``config.json``.
    for name in ("hf_quant_config.json", "quantize_config.json", "quant_config.json"):
        said, file = _json_of(folder / name)
        if said:
            where, settings = (
                ("quantization.", said["quantization"]) if "quantization" in said else ("", said)
            )
            check_quantisation(folder / name, settings, where)
            return {**config, "quantization_config": settings}, [*files, *file]
    return config, files


def _json_of(path: FilePath) -> tuple[dict[str, Any], list[ReadableFile]]:
    """Read a JSON object and return it with its file; neither if it is missing.

    A damaged one is an error: without it heads and quantised weights would be read in another way.
    """
    if not path.is_file():
        return {}, []
    # The file that is hashed must be the one that is read, so it is opened once.
    file = open_file(path)
    try:
        # Not ``read_json``, which refuses Infinity: transformers writes it (Mamba-2's step limits).
        value = json.loads(file.read_text_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path} is damaged ({type_and_line(error)}); restore it, or move it away"
        ) from error
    if not isinstance(value, dict):
        raise SourceError(
            f"{path} holds a {type(value).__name__} where a JSON object was expected; restore it, "
            "or move it away"
        )
    return value, [file]


def _read(form: Format, files: Sequence[ReadableFile]) -> Contents:
    """Read the files of one model; damage that the format does not notice gives one clear line."""
    for file in files:
        refuse_stand_in(file)
    try:
        contents = form.read(files)
    except (SourceError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - damage may show as any error of a format's library
        reason = (str(error).splitlines() or [""])[0][:100]
        raise SourceError(
            f"{files[0].path} is not readable as {form.name}: it is damaged or of another form "
            f"({type(error).__name__}: {reason})"
        ) from None
    for stored in contents.tensors:
        if len(stored.name) > LONGEST_NAME:
            raise SourceError(
                f"{files[0].path} names a tensor {stored.name[:40]!r}... of {len(stored.name):,} "
                f"characters, more than {LONGEST_NAME:,}: it is damaged"
            )
    return contents


LONGEST_NAME = 1000
"""The most characters in a tensor's name. Reading one takes time and memory that grow with the
square of its length."""
