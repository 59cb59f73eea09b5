"""Open a model from any kind of source: a module, tensors, a path, a function or a hub id."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.jit import ScriptModule

from spectail.basics.addresses import is_address, without_secrets
from spectail.basics.files import local_path
from spectail.basics.texts import type_and_line
from spectail.errors import SourceError
from spectail.models.build import build_source
from spectail.models.difference import difference
from spectail.models.formats.demo import demo_file
from spectail.models.formats.fingerprint import fingerprint_tensors
from spectail.models.formats.folders import path_source
from spectail.models.formats.hub import cached_folder, is_hub_id
from spectail.models.formats.remote import hub_source, remote_source
from spectail.models.formats.state_dict import state_tensors
from spectail.models.live.walk import module_source
from spectail.models.source import Source

_FUNCTION = re.compile(r"^([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)$")


def open_source(
    source: nn.Module | Mapping[str, Any] | Tensor | np.ndarray[Any, Any] | str | os.PathLike[str],
    base: Any = None,
) -> Source:
    """List the layers of a model without building it; values are read later if possible.

    Args:
        source: A torch module; a state dict; one matrix as a tensor or an array; or a text. The
            text is ``demo``, the path of a checkpoint file, of an index of shards, of a model
            folder or of an adapter folder (the formats are in ``formats.table``), an address
            (``hf://org/name``, ``s3://bucket/folder``, ``gs://bucket/folder``,
            ``https://host/model.safetensors``), ``module:function`` for a function that returns a
            module, or a hub id ``org/name``. Of what lies elsewhere, only the bytes of the tensors
            that are measured are fetched.
        base: A second model, given in the same ways, whose weights are taken away from those of the
            first: see ``difference``.

    Returns:
        The layers in the model's own order. A layer has the same name whichever source it came
        from.

    Raises:
        SourceError: The source cannot be found, read or trusted. The message is one line.

    """
    if base is not None:
        return difference(open_source(source), open_source(base))
    if isinstance(source, nn.Module):
        # The classes of scripted modules are gone, so names tell their layers, as in a file.
        if any(isinstance(part, ScriptModule) for part in source.modules()):
            return _state_source(source.state_dict())
        return module_source(source)
    if isinstance(source, Mapping | Tensor | np.ndarray):
        return _state_source(source)
    if isinstance(source, str | os.PathLike):
        try:
            return _named_source(os.fspath(source))
        except OSError as error:
            raise SourceError(
                f"{without_secrets(os.fspath(source))} cannot be read: {error.strerror or error}"
            ) from None
    raise SourceError(
        f"cannot open a {type(source).__name__}; expected a torch module, a state dict, a matrix, "
        "a path, 'demo', 'module:function' or a hub id"
    )


def _state_source(state: Mapping[str, Any] | Tensor | np.ndarray[Any, Any]) -> Source:
    """Open tensors that are in memory."""
    tensors = state_tensors(state)
    if not tensors:
        raise SourceError(
            "the dict holds no tensors; expected a state dict, from names to tensors or arrays"
        )
    label = "state dict" if isinstance(state, Mapping) else "matrix"
    return build_source(label, fingerprint_tensors(tensors), tensors)


def _named_source(text: str) -> Source:
    """Open what a text names; an existing path comes first, except that ``demo`` is the demo model.

    A folder called ``demo`` can be opened as ``./demo``.
    """
    if text == "demo":
        return path_source(demo_file())
    if is_address(text):
        return remote_source(text)
    path = local_path(text)
    if text and path.exists():
        return path_source(path)
    if match := _FUNCTION.match(text):
        return _from_function(match[1], match[2])
    if is_hub_id(text):
        cached = cached_folder(text)
        return path_source(cached, label=text) if cached else hub_source(text)
    raise SourceError(
        f"no such file or folder: {without_secrets(text)!r}; "
        "expected a checkpoint, a model folder, 'demo', an address, 'module:function' or a hub id"
    )


def _from_function(module: str, function: str) -> Source:
    """Open the module that a function of the user's returns."""
    name = f"{module}:{function}"
    # The function is called inside of the block too, since it may import other files of the folder.
    with _importable_from_here():
        try:
            value: Any = importlib.import_module(module)
        except Exception as error:  # the user's code may raise anything
            raise SourceError(
                f"cannot import {module!r} of {name!r}: {type_and_line(error)}"
            ) from error
        for attribute in function.split("."):
            if not hasattr(value, attribute):
                raise SourceError(
                    f"module {module!r} has no {function!r}; "
                    "expected a function that returns a torch module"
                )
            value = getattr(value, attribute)
        # A module is callable too, but it is the model itself.
        if callable(value) and not isinstance(value, nn.Module):
            try:
                value = value()
            except Exception as error:  # the user's code may raise anything
                raise SourceError(f"{name} failed: {type_and_line(error)}") from error
    if not isinstance(value, nn.Module):
        raise SourceError(f"{name} returned a {type(value).__name__}; expected a torch module")
    return module_source(value, label=name)


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """Make modules of the current folder importable within the block, as ``python -m`` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    # The file may be newer than Python's listing of the folder.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
