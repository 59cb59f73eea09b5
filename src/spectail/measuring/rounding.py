"""Add to the rows of a run what every format would make of the layer's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from spectail.core.quantisers import rounding_errors
from spectail.errors import SourceChangedError, SourceUnreachableError
from spectail.measuring.layer import Plan, record_of, why_failed
from spectail.measuring.reading import read_layer
from spectail.models.source import Layer
from spectail.results.records import LayerRecord, Rounding


def with_rounding(plan: Plan, records: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Return the records with the error of each format, read anew where a record lacks them.

    It is a pass of its own over the weights, so that it also completes a run that was finished
    without it. Layers that are skipped or failed have no errors.
    """
    layers = {layer.name: layer for layer in plan.layers}
    return tuple(
        _completed(record, layers[record.name], plan)
        if record.status == "ok" and not record.rounding
        else record
        for record in records
    )


def _completed(record: LayerRecord, layer: Layer, plan: Plan) -> LayerRecord:
    """Return a record with its errors; a layer that cannot be read any more has failed."""
    try:
        return replace(record, rounding=_rounding(layer, plan))
    except (SourceChangedError, SourceUnreachableError):
        raise
    except Exception as error:  # noqa: BLE001 - no layer may end a run of hours, whatever it raises
        return replace(record_of(layer), status="failed", reason=why_failed(error))


def _rounding(layer: Layer, plan: Plan) -> tuple[Rounding, ...]:
    """Return the error of every format that can hold a layer."""
    with torch.no_grad():
        found = list(rounding_errors(read_layer(layer, plan.run, plan.device)[0]))
    # Six digits, as the sample of rows says no more.
    return tuple(Rounding(name, bits, float(f"{error:.6g}")) for name, bits, error in found)
