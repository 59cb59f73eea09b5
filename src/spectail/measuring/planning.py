"""The plan of a run: which layers are measured, in which window, and what identifies the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from spectail.basics.addresses import without_secrets
from spectail.core.measure import common_window, estimator_of, too_small
from spectail.core.spec import Spec
from spectail.errors import SourceError, SpecError
from spectail.measuring.device import usable_device
from spectail.measuring.layer import Plan
from spectail.models.naming.select import KindFilter, select
from spectail.models.open import open_source
from spectail.models.source import Layer, Source
from spectail.results.records import RunInfo

VERSIONS_OF = ("spectail", "torch", "numpy", "scipy", "safetensors", "gguf")
"""Packages whose versions are stored with a run."""


def make_plan(
    source: Any,
    *,
    spec: Spec,
    base: Any = None,
    device: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: str | Sequence[str] = (),
    types: str | Sequence[str] = (),
    quantization_errors: bool = False,
    elsewhere: bool = False,
    **measured: bool,
) -> Plan:
    """Open the source and choose layers and common window, without measuring or writing.

    ``elsewhere`` leaves the choice of the device to the processes that measure. ``measured`` are
    the switches of ``RunInfo``: ``full_spectrum``, ``traps`` and ``erg``.
    """
    device = device if elsewhere else usable_device(device)
    if base is not None and quantization_errors:
        raise SpecError(
            "quantization errors are those of a model's weights, not of a difference: leave out "
            "--base or --quantization-errors"
        )
    opened, of = open_source(source, base), KindFilter.of(kinds, types)
    layers = _chosen(opened, spec, include, exclude, of)
    window, notes = _window(layers, spec)
    # ``given`` is kept as it was typed, so that the report can show the command to repeat.
    run = RunInfo(
        source=opened.label,
        fingerprint=opened.fingerprint,
        spec=spec,
        window=window,
        include=tuple(include),
        exclude=tuple(exclude),
        kinds=of.kinds,
        types=of.types,
        device=device,
        n_vectors=opened.n_vectors,
        notes=(*opened.notes, *notes),
        versions=_versions(),
        given=_typed(source),
        base=_typed(base),
        **measured,
    )
    files = opened.files
    return Plan(
        run, layers, device, source, quantization_errors=quantization_errors, files=files, base=base
    )


def _chosen(
    opened: Source, spec: Spec, include: Sequence[str], exclude: Sequence[str], of: KindFilter
) -> tuple[Layer, ...]:
    """Return the layers that are to be measured; SourceError if there is none."""
    tied = opened.tied if estimator_of(spec).counts_tied else ()
    layers = select((*opened.layers, *tied), include, exclude, of)
    if not layers:
        raise SourceError(
            f"{opened.label} has no weight matrices to measure: "
            f"{opened.n_vectors} vectors, nothing else"
        )
    return layers


def _window(layers: Sequence[Layer], spec: Spec) -> tuple[int | None, list[str]]:
    """Return the common window of the layers, and notes on it."""
    # Layers that cannot be read (part is None) do not influence the common window.
    readable = [layer for layer in layers if layer.part is not None]
    large = [x for x in readable if not too_small((x.rows, x.cols), spec, x.n_matrices)]
    window = common_window([(layer.rows, layer.cols) for layer in large], spec)
    return window, _window_notes(spec, window, [(layer.rows, layer.cols) for layer in readable])


def _typed(source: Any) -> str:
    """Return a source as it was typed, without its secrets; empty for an object."""
    return without_secrets(os.fspath(source)) if isinstance(source, str | os.PathLike) else ""


def _window_notes(spec: Spec, window: int | None, shapes: list[tuple[int, int]]) -> list[str]:
    """Return a note for the report if the run has no common window."""
    if window is not None or len(set(shapes)) < 2:
        return []
    if spec.window == "common":
        return [
            "No layer is large enough for a common window: each has its own, "
            "and other shapes do not compare."
        ]
    return [
        "Every layer has a window of its own size: "
        "alphas of layers of different shape do not compare."
    ]


def _versions() -> dict[str, str]:
    """Return the installed versions of VERSIONS_OF."""
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
