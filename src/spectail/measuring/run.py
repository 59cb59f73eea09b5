"""The function ``analyze``: open a source, plan the run, measure its layers, keep the results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

from spectail import presets
from spectail.analysis import Analysis
from spectail.basics.imports import importing
from spectail.core.measure import common_window, estimator_of, too_small
from spectail.core.spec import Spec
from spectail.errors import SourceChangedError, SourceError, SourceUnreachableError, SpecError
from spectail.measuring.cost import costliest_first
from spectail.measuring.device import usable_device
from spectail.measuring.engines import Engine, engine_named, is_elsewhere
from spectail.measuring.journal import Journal
from spectail.measuring.layer import Plan
from spectail.measuring.notebook_bar import notebook_bar
from spectail.measuring.rounding import with_rounding
from spectail.measuring.shards import Shard, open_run, part_of
from spectail.models.formats.remote import without_secrets
from spectail.models.naming.select import KindFilter, select
from spectail.models.open import open_source
from spectail.models.source import Layer
from spectail.results.records import LayerRecord, RunInfo

VERSIONS_OF = ("spectail", "torch", "numpy", "scipy", "safetensors", "gguf")
"""Packages whose versions are stored with a run."""


NEEDED_TO_WRITE = ("pyarrow.parquet", "pandas", "plotly.graph_objs._figure", "plotly.io")
"""Libraries that write tables and report. Their import takes half a second of processor time."""


class Progress(Protocol):
    """The progress callback of ``analyze``; the command line passes a progress bar."""

    def __call__(self, layer: Layer | None, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` weights are measured.

        ``layer`` is the next layer, or None at the end.
        """


def analyze(
    source: Any,
    *,
    spec: Spec = presets.FARMS,
    base: Any = None,
    device: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: str | Sequence[str] = (),
    types: str | Sequence[str] = (),
    full_spectrum: bool = False,
    quantization_errors: bool = False,
    traps: bool = False,
    erg: bool = False,
    out: str | Path | None = None,
    fresh: bool = False,
    engine: str = "local",
    ray_address: str | None = None,
    shard: Shard | str | tuple[int, int] | None = None,
    progress: Progress | Literal["notebook"] | None = "notebook",
) -> Analysis:
    """Measure every weight matrix of a model.

    ``source`` is an ``nn.Module``, a state dict, or text: ``demo``, a Hugging Face folder, a
    ``.safetensors``, ``.pt``, ``.bin``, ``.pth`` or ``.gguf`` file, an index of shards,
    ``module:function``, an address (``hf://``, ``s3://``, ``gs://``, ``https://``), or a hub id.
    ``include`` and ``exclude`` are globs over layer names; ``kinds`` (``"q,k"``) and ``types``
    (``"conv"``, see ``naming.select``) choose layers by what they do.
    With a ``base``, the model that ``source`` was fine-tuned from, the weights that are measured
    are those of ``source`` minus those of ``base``, layer by layer, and ``relative_change`` says
    how large the change is.
    ``full_spectrum`` adds ``alpha_full`` and ``entropy``, measured without windows.
    ``quantization_errors`` adds what each format of ``core.quantisers`` makes of the weights, by
    which ``allocate`` chooses bits.
    ``traps`` adds ``n_traps``, ``trap_ratio`` and ``trap_p`` (see ``core.traps``), ``erg`` adds
    ``erg_n`` and ``erg_gap`` (see ``core.erg``).

    With ``out`` the results are stored in that folder as they come. A run that was killed continues
    where it stopped, and at the end the tables and the report are written there. ``fresh`` replaces
    a run that the folder holds. ``engine`` is ``local`` or ``ray``, the latter on the cluster at
    ``ray_address``. ``shard`` measures one part of
    the layers: ``"2/4"`` is the second of four, and ``merge`` joins the parts. A layer that cannot
    be measured keeps its row, with a reason.

    ``progress`` is called before each layer. By default a notebook shows a bar while the layers are
    measured, and a script shows nothing; with None a notebook shows nothing either.

    Raises SourceError, SpecError or RunError with a one-line message before anything is written.
    """
    chosen = engine_named(engine, ray_address)
    plan = make_plan(
        source,
        spec=spec,
        base=base,
        device=device,
        include=include,
        exclude=exclude,
        kinds=kinds,
        types=types,
        full_spectrum=full_spectrum,
        quantization_errors=quantization_errors,
        traps=traps,
        erg=erg,
        elsewhere=is_elsewhere(chosen),
    )
    return run_plan(
        plan,
        chosen,
        out=out,
        progress=notebook_bar() if progress == "notebook" else progress,
        fresh=fresh,
        shard=None if shard is None else Shard.of(shard),
    )


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
    full_spectrum: bool = False,
    quantization_errors: bool = False,
    traps: bool = False,
    erg: bool = False,
    elsewhere: bool = False,
) -> Plan:
    """Open the source and choose layers and common window, without measuring or writing.

    ``elsewhere`` leaves the choice of the device to the processes that measure.
    """
    device = device if elsewhere else usable_device(device)
    if base is not None and quantization_errors:
        raise SpecError(
            "quantization errors are those of a model's weights, not of a difference: leave out "
            "--base or --quantization-errors"
        )
    opened = open_source(source, base)
    tied = opened.tied if estimator_of(spec).counts_tied else ()
    of = KindFilter.of(kinds, types)
    layers = select((*opened.layers, *tied), include, exclude, of)
    if not layers:
        raise SourceError(
            f"{opened.label} has no weight matrices to measure: "
            f"{opened.n_vectors} vectors, nothing else"
        )
    # Layers that cannot be read (part is None) do not influence the common window.
    readable = [layer for layer in layers if layer.part is not None]
    shapes = [(layer.rows, layer.cols) for layer in readable]
    large = [x for x in readable if not too_small((x.rows, x.cols), spec, x.n_matrices)]
    window = common_window([(layer.rows, layer.cols) for layer in large], spec)
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
        full_spectrum=full_spectrum,
        traps=traps,
        erg=erg,
        device=device,
        n_vectors=opened.n_vectors,
        notes=(*opened.notes, *_window_notes(spec, window, shapes)),
        versions=_versions(),
        given=_typed(source),
        base=_typed(base),
    )
    return Plan(
        run,
        layers,
        device,
        source,
        quantization_errors=quantization_errors,
        files=opened.files,
        base=base,
    )


def _typed(source: Any) -> str:
    """Return a source as it was typed, without its secrets; empty for an object."""
    return without_secrets(os.fspath(source)) if isinstance(source, str | os.PathLike) else ""


def run_plan(
    plan: Plan,
    engine: Engine,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    shard: Shard | None = None,
) -> Analysis:
    """Measure the layers that the folder ``out`` does not hold yet, and write the finished run.

    Each record is stored as soon as it is measured. A ``shard`` of the run has a folder of its own
    in ``out``, see ``measuring.shards``.
    """
    mine = part_of(plan, shard)
    if out is None:
        return measure_plan(mine, engine, progress=progress)
    with open_run(Path(out), plan, shard, fresh=fresh) as journal:
        with importing(*NEEDED_TO_WRITE):
            analysis = measure_plan(mine, engine, journal, progress=progress)
        journal.finish(analysis)
    return analysis


def measure_plan(
    plan: Plan,
    engine: Engine,
    journal: Journal | None = None,
    *,
    progress: Progress | None = None,
) -> Analysis:
    """Measure the layers that the journal lacks, and add each record to it as it is measured.

    Raises:
        SourceChangedError: The source has changed since the plan was made. The journal keeps the
            records from before.

    """
    known = journal.known(plan.layers) if journal else {}
    if plan.quantization_errors and is_elsewhere(engine):
        # The errors of formats come with a record there: this process reads no weights.
        known = {name: x for name, x in known.items() if x.rounding or x.status != "ok"}
    try:
        for record in _measured(plan, engine, known, progress):
            known[record.name] = record
            if journal:
                journal.add(record)
        # Engines return records in any order; the table has the order of the model.
        records = tuple(known[layer.name] for layer in plan.layers)
        if plan.quantization_errors:
            records = with_rounding(plan, records)
        for file in plan.files:
            file.check_path()
    except (SourceChangedError, SourceUnreachableError) as error:
        kept = f"; {journal.path} keeps the layers measured before" if journal else ""
        raise type(error)(f"{error}{kept}") from error
    return Analysis(plan.run, records)


def _measured(
    plan: Plan, engine: Engine, known: Mapping[str, LayerRecord], progress: Progress | None
) -> Iterator[LayerRecord]:
    """Measure the layers that are not known and report the progress."""
    # Progress counts weights, because the time of a layer is roughly proportional to them.
    total = sum(layer.numel for layer in plan.layers)
    missing = {layer.name: layer for layer in plan.layers if layer.name not in known}
    done = total - sum(layer.numel for layer in missing.values())
    order = costliest_first(plan) if is_elsewhere(engine) else plan.layers

    # The engine takes layers from this generator, so progress is reported when one starts.
    def announced() -> Iterable[Layer]:
        for layer in order:
            if layer.name not in missing:
                continue
            if progress:
                progress(layer, done, total)
            yield layer

    for record in engine(plan, announced()):
        done += missing[record.name].numel
        yield record
    if progress:
        progress(None, done, total)


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
