"""The function ``analyze``: plan the run, measure its layers, keep the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

from spectail import presets
from spectail.analysis import Analysis
from spectail.basics.imports import importing
from spectail.core.spec import Spec
from spectail.errors import SourceChangedError, SourceUnreachableError
from spectail.measuring.cost import costliest_first
from spectail.measuring.engines import Engine, engine_named, is_elsewhere
from spectail.measuring.journal import Journal
from spectail.measuring.layer import Plan
from spectail.measuring.notebook_bar import notebook_bar
from spectail.measuring.planning import make_plan
from spectail.measuring.rounding import with_rounding
from spectail.measuring.shards import Shard, open_run, part_of
from spectail.models.source import Layer
from spectail.results.records import LayerRecord

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
        # A run with a journal is written afterwards, from Python as from the command line.
        with importing(*NEEDED_TO_WRITE) if journal else nullcontext():
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
