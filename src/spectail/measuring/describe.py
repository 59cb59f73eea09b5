"""Describe what a run would measure, from names, shapes and types alone: nothing is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spectail import presets
from spectail.basics.json_values import plain
from spectail.basics.texts import joined, plural
from spectail.core.measure import estimator_of, too_small
from spectail.core.spec import Spec
from spectail.core.threads import cores
from spectail.errors import SpecError
from spectail.measuring.cost import Cost, estimate, item_bytes
from spectail.measuring.layer import Plan
from spectail.measuring.planning import make_plan
from spectail.models.formats.fingerprint import no_fingerprints
from spectail.models.naming.select import type_of
from spectail.models.source import Layer
from spectail.results.records import RunInfo
from spectail.results.table import storable, table_html

if TYPE_CHECKING:
    import pandas as pd

_GIB = 2**30


@dataclass(frozen=True)
class LayerOutline:
    """What is known of a layer before it is read."""

    name: str
    block: int | None
    kind: str
    type: str
    """``linear``, ``conv``, ``embedding``, ``recurrent``, ``spectral`` or ``lora``."""
    rows: int
    cols: int
    n_matrices: int
    numel: int
    dtype: str
    """Type of the stored numbers."""
    bytes: int
    """Bytes of its numbers in this type."""
    window_rows: int
    window_cols: int
    n_windows: int
    """Windows of the fit over all matrices, without those of the error bar."""
    status: str
    """``ok`` if the layer will be measured, else ``skipped`` or ``failed``."""
    reason: str
    """Why it will not be measured."""
    seconds: float
    """Estimated time on one core."""
    memory: int
    """Estimated peak memory in bytes of a process that measures it on one core."""


@dataclass(frozen=True)
class Description:
    """What ``analyze`` would measure. ``str()`` of it is a text for people."""

    run: RunInfo
    layers: tuple[LayerOutline, ...]
    cost: Cost
    """The estimated cost of the whole run."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer, with the fields of LayerOutline."""
        # Imported here, because pandas takes half a second that nothing else needs.
        import pandas as pd

        rows = [asdict(layer) for layer in self.layers]
        for row in rows:
            row |= {key: storable(value) for key, value in row.items() if isinstance(value, str)}
        table = pd.DataFrame(rows, columns=[field.name for field in fields(LayerOutline)])
        return table.astype({"block": "float64"})

    @property
    def numel(self) -> int:
        """Number of weights in all layers."""
        return sum(layer.numel for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of all layers as they are stored."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def n_blocks(self) -> int:
        """Number of different blocks."""
        return len({layer.block for layer in self.layers if layer.block is not None})

    @property
    def seconds(self) -> float:
        """Estimated time on one core."""
        return self.cost.seconds()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        run = self.run
        found: dict[str, Any] = plain(
            {
                "source": run.source,
                "spec": run.spec.to_dict(),
                "window": run.window,
                "n_layers": len(self.layers),
                "n_blocks": self.n_blocks,
                "numel": self.numel,
                "bytes": self.bytes,
                "n_vectors": run.n_vectors,
                "seconds": round(self.seconds, 3),
                "memory": self.cost.memory,
                "notes": run.notes,
                "layers": [asdict(layer) for layer in self.layers],
            }
        )
        return found

    def __str__(self) -> str:
        """Write totals, the layers by kind and shape, and the estimate."""
        window = f"windows of {self.run.window}" if self.run.window else str(self.run.spec.window)
        dtypes = joined(sorted({layer.dtype for layer in self.layers}))
        lines = [
            f"{self.run.source}: {plural(len(self.layers), 'layer')}, {self.numel:,} weights "
            f"({_size(self.bytes)} as {dtypes}), {plural(self.n_blocks, 'block')}, "
            f"{plural(self.run.n_vectors, 'vector')} without a row",
            f"to measure: {window}, placement {self.run.spec.placement}, "
            f"cutoff {self.run.spec.cutoff}",
            *_grouped(self.layers),
            f"estimate: {self._duration()}; {_size(self.cost.memory)} of memory",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.run.notes)])

    def _duration(self) -> str:
        """Write the estimated time, on one core and on those that are here."""
        one, here = _duration(self.seconds), cores()
        if here == 1:
            return f"{one} on one core"
        return f"{one} on one core, {_duration(self.seconds / here)} on the {here} here"

    def __repr__(self) -> str:
        """Return the text for people."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        return table_html(self.table)


def describe(
    source: Any,
    *,
    spec: Spec = presets.FARMS,
    base: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: str | Sequence[str] = (),
    types: str | Sequence[str] = (),
    full_spectrum: bool = False,
) -> Description:
    """List the layers of a model and what ``analyze`` would do with them, without measuring.

    Of files only the headers are read. The arguments are those of ``analyze``. Time and memory are
    estimates for the local engine.

    Raises SourceError or SpecError with a one-line message, as ``analyze`` does.
    """
    with no_fingerprints():
        plan = make_plan(
            source,
            spec=spec,
            base=base,
            device="cpu",
            include=include,
            exclude=exclude,
            kinds=kinds,
            types=types,
            full_spectrum=full_spectrum,
        )
    costs = [
        estimate(layer, spec, plan.run.window, full_spectrum=full_spectrum) for layer in plan.layers
    ]
    outlines = tuple(
        _outline(layer, cost, plan) for layer, cost in zip(plan.layers, costs, strict=True)
    )
    return Description(plan.run, outlines, sum(costs, Cost()))


def _outline(layer: Layer, cost: Cost, plan: Plan) -> LayerOutline:
    """Describe one layer."""
    window, count, status, reason = _windows(layer, plan.run)
    return LayerOutline(
        name=layer.name,
        block=layer.block,
        kind=layer.kind,
        type=type_of(layer.kind),
        rows=layer.rows,
        cols=layer.cols,
        n_matrices=layer.n_matrices,
        numel=layer.numel,
        dtype=layer.tensor.dtype,
        bytes=layer.numel * item_bytes(layer.tensor.dtype),
        window_rows=window[0],
        window_cols=window[1],
        n_windows=count * layer.n_matrices,
        status=status,
        reason="; ".join(filter(None, (reason, layer.note))),
        seconds=cost.seconds(),
        memory=cost.memory,
    )


def _windows(layer: Layer, run: RunInfo) -> tuple[tuple[int, int], int, str, str]:
    """Return a layer's window, the number of places for it, and status and reason."""
    shape = (layer.rows, layer.cols)
    if layer.no_weight:
        return (0, 0), 0, "skipped", layer.no_weight
    if layer.problem:
        return (0, 0), 0, "failed", layer.problem
    if reason := too_small(shape, run.spec, layer.n_matrices):
        return (0, 0), 0, "skipped", reason
    try:
        window, positions = estimator_of(run.spec).place(shape, run.spec, run.window)
    except SpecError as error:
        return (0, 0), 0, "skipped", str(error)
    return (window.rows, window.cols), len(positions), "ok", ""


def _grouped(layers: Sequence[LayerOutline]) -> list[str]:
    """Write one line for each kind, shape and window; models repeat few of them."""
    groups = Counter(
        (x.kind, x.n_matrices, x.rows, x.cols, x.n_windows, x.window_rows, x.window_cols, x.status)
        for x in layers
    )
    first = {(x.kind, x.n_matrices, x.rows, x.cols, x.status): x.reason for x in reversed(layers)}
    rows = []
    for (kind, n, r, c, count, wr, wc, status), number in groups.items():
        shape = f"{r:,} x {c:,}" if n == 1 else f"{n:,} matrices of {r:,} x {c:,}"
        what = (
            f"{plural(count, 'window')} of {wr} x {wc}"
            if status == "ok"
            else f"{status}: {first[kind, n, r, c, status]}"
        )
        rows.append((f"{number:,}", kind, shape, what))
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    return [
        f"  {row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}"
        for row in rows
    ]


def _size(number: float) -> str:
    """Write a number of bytes.

    >>> _size(3 * 2**29), _size(5 * 2**19)
    ('1.5 GiB', '2.5 MiB')
    """
    return f"{number / _GIB:.1f} GiB" if number >= _GIB else f"{number / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    """Write a time.

    >>> _duration(4.2), _duration(300), _duration(9000)
    ('4 s', '5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
