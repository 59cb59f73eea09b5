"""Load a transformers language model with its tokenizer; it may accept images or audio too."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spectail.basics.addresses import is_address, without_secrets
from spectail.basics.files import local_path
from spectail.errors import SourceError, SpectailError
from spectail.models.formats.demo import demo_file
from spectail.models.formats.hub import HubRepository, hub_address, is_hub_id
from spectail.models.live.saved_names import saved_modules
from spectail.models.live.vocabulary import check_words

_COPIES = {
    "s3": "aws s3 cp --recursive",
    "s3a": "aws s3 cp --recursive",
    "gs": "gcloud storage cp --recursive",
    "gcs": "gcloud storage cp --recursive",
}
"""What copies a folder of a bucket, by kind of address."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


def open_language_model(
    source: str | os.PathLike[str], dtype: str = "auto", device: str | torch.device | None = None
) -> tuple[Any, Any]:
    """Load a model in eval mode, with its tokenizer; no code from the folder is run.

    The model class is the one that the configuration names, so that a multi-modal model keeps all
    its parts.

    Args:
        source: A folder that transformers wrote, a ``.gguf`` file, ``demo``, or a model of the hub:
            its id ``org/name``, or ``hf://org/name@revision/folder`` (the last two may be missing).
            A model of the hub is fetched to the hub's cache.
        dtype: ``auto`` (as stored; a GGUF file is dequantised to float32), ``float32``,
            ``bfloat16`` or ``float16``.
        device: Where to put the model; the CPU by default.

    Raises:
        SourceError: transformers is missing, or cannot load the source.

    """
    text = os.fspath(source)
    if dtype not in DTYPES:
        raise SourceError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    where, options = _location(text)
    # torch has no counterpart for the quantised types of GGUF files.
    quantised = "gguf_file" in options
    wanted: Any = torch.float32 if quantised and dtype == "auto" else dtype
    with _one_line_errors(text):
        transformers = _transformers()
        options |= _without_the_hub(where, options)
        more = (
            {"quantization_config": transformers.GgufConfig(dequantize=True)} if quantised else {}
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        config = transformers.AutoConfig.from_pretrained(where, **options)
        model_class = _model_class(transformers, config) or transformers.AutoModelForCausalLM
        if quantised:
            check_words(tokenizer, text)
        model = model_class.from_pretrained(where, dtype=wanted, **options, **more)
    return (model if device is None else model.to(device)).eval(), tokenizer


def module_names(source: str | os.PathLike[str]) -> dict[str, str]:
    """Map the names of a language model's modules to those in its file, without reading weights.

    The order is that of ``named_modules``. A module whose name in the file is unknown keeps its own
    name.
    """
    model, saved = _without_weights(source)
    return {name: saved.get(name, name) for name, _ in model.named_modules() if name}


def parameter_names(source: str | os.PathLike[str]) -> dict[str, str]:
    """Map the names of a language model's parameters to those in its file, without its weights.

    A parameter whose name in the file is unknown keeps its own name.
    """
    model, saved = _without_weights(source)
    return {
        name: f"{saved.get(module, module)}.{own}" if module else name
        for name, _ in model.named_parameters()
        for module, _, own in [name.rpartition(".")]
    }


def _without_weights(source: str | os.PathLike[str]) -> tuple[Any, dict[str, str]]:
    """Build a language model on the meta device; also return its modules' names in the file."""
    text = os.fspath(source)
    where, options = _location(text)
    # Parameters on the meta device take no memory, so that even a large model is built at once.
    with _one_line_errors(text), torch.device("meta"):
        transformers = _transformers()
        options |= _without_the_hub(where, options)
        config = transformers.AutoConfig.from_pretrained(where, **options)
        model_class = _model_class(transformers, config)
        model = (
            model_class(config)
            if model_class
            else transformers.AutoModelForCausalLM.from_config(config)
        )
        return model, saved_modules(model)


def _model_class(transformers: Any, config: Any) -> Any:
    """Return the class that a folder was saved from if it is one that generates text; else None.

    ``AutoModelForCausalLM`` refuses LLaVA and similar models, and loads only one part of Gemma 3 or
    BART.
    """
    # A list with one name in practice; older configurations have none.
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.GenerationMixin):
            return found
    return None


def _location(text: str) -> tuple[str, dict[str, Any]]:
    """Return the path or hub id for ``from_pretrained``, and the options that go with it."""
    if is_address(text):
        return _on_the_hub(text)
    path = demo_file() if text == "demo" else local_path(text)
    # transformers wants the folder and the file's name apart.
    if path.is_file() and path.suffix.lower() == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if path.is_file():
        raise SourceError(
            f"{text} is a file; a language model needs the whole folder, "
            "with configuration and tokenizer"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise SourceError(
            f"{text} has no config.json; expected a model folder that transformers wrote"
        )
    if not path.exists() and not is_hub_id(text):
        raise SourceError(
            f"no such folder: {without_secrets(text)!r}; "
            "expected a model folder, a .gguf file, 'demo' or a hub id"
        )
    return (str(path) if path.exists() else text), {}


def _on_the_hub(address: str) -> tuple[str, dict[str, Any]]:
    """Return the hub id and the options of ``hf://org/name``.

    Raises:
        SourceError: It is another kind of address. Models there are not copied whole without a
            word: they may be large.

    """
    scheme, _, repository = address.partition("://")
    if scheme.lower() != "hf":
        raise _not_loaded(scheme.lower(), without_secrets(address))
    name, revision, path = hub_address(repository)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    folder, _, file = path.rpartition("/")
    if file.lower().endswith(".gguf"):
        options["gguf_file"], path = file, folder
    return name, options | ({"subfolder": path} if path else {})


def _without_the_hub(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option that loads a model from the hub's cache alone, if the hub is out of reach.

    The hub is asked once, for its own library asks six times for every file, and says so each time.

    Raises:
        SourceError: The cache has no such model either, or the hub knows none of this name.

    """
    if Path(where).exists():
        return {}
    revision = options.get("revision")
    try:
        HubRepository(where, revision).names("")
    except SourceError:
        folder = f"{options['subfolder']}/" if "subfolder" in options else ""
        file = folder + options.get("gguf_file", "config.json")
        hub = importlib.import_module("huggingface_hub")
        if not isinstance(hub.try_to_load_from_cache(where, file, revision=revision), str):
            raise
        return {"local_files_only": True}
    return {}


def _not_loaded(scheme: str, shown: str) -> SourceError:
    """Return the error for an address that transformers does not read; it says how to copy it."""
    place = shown.partition("://")[2].rstrip("/")
    if scheme in _COPIES:
        bucket = shlex.quote(f"{scheme[:2]}://{place}")
        how = f"copy it first, with: {_COPIES[scheme]} {bucket} DIR"
    elif scheme in {"http", "https"}:
        how = f"download weights, config.json and tokenizer from {scheme}://{place} to DIR first"
    else:
        return SourceError(
            f"{shown} cannot be loaded; expected hf://, a folder, a .gguf file or a hub id"
        )
    return SourceError(
        f"{shown} is not loaded from there, since transformers needs the whole model in a folder: "
        f"{how}, and give DIR"
    )


def _transformers() -> Any:
    """Import transformers, which is an optional dependency."""
    try:
        import transformers
    except ImportError:
        raise SourceError("language models need transformers: pip install 'spectail[hf]'") from None
    return transformers


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers within the block."""
    bars = _transformers().utils.logging
    # The GGUF reader of transformers draws its own tqdm
    # bar, which the library's switch does not reach.
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    shown, drawn = bars.is_progress_bar_enabled(), getattr(reader, "tqdm", None)
    bars.disable_progress_bar()
    if drawn:
        reader.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        if drawn:
            reader.tqdm = drawn


@contextmanager
def _one_line_errors(text: str) -> Iterator[None]:
    """Turn errors of transformers, or of a library it needs, into one line; hide progress bars."""
    try:
        with without_bars():
            yield
    except (SpectailError, MemoryError):
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        lines = str(error).strip().splitlines()
        raise SourceError(
            f"{text} cannot be loaded: {lines[0][:200] if lines else type(error).__name__}"
        ) from error
