"""What a worker process of a cluster does: open the model where it runs, and measure one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata

from spectail.basics.addresses import without_secrets
from spectail.core.threads import spread_over
from spectail.errors import SourceChangedError, SourceError, SpecError
from spectail.measuring.device import usable_device
from spectail.measuring.layer import Plan, measure_layer
from spectail.measuring.rounding import with_rounding
from spectail.models.formats.hub import advice_on_cache
from spectail.models.open import open_source
from spectail.models.source import Source
from spectail.results.records import LayerRecord, RunInfo


@dataclass(frozen=True)
class Request:
    """One layer of a run to measure; it is small, since the weights are read by the worker."""

    layer: str
    source: str
    """The text that opens the model on every machine."""
    base: str | None
    """The same for the model whose weights are taken away."""
    run: RunInfo
    device: str
    cpus: int
    quantization_errors: bool


@dataclass(frozen=True)
class Trouble:
    """Why a machine cannot measure any layer; a worker returns it in place of a record."""

    reason: str
    changed: bool = False
    """Whether the machine has a model, and it is not the one of the plan."""


def measure_request(request: Request) -> LayerRecord | Trouble:
    """Measure the layer of a request, or say what is wrong with this machine."""
    found = request.run.versions.get("spectail")
    own = metadata.version("spectail")
    if found != own:
        return Trouble(f"it has spectail {own}, the run was planned by {found}: use one version")
    try:
        device = usable_device(request.device)
        opened = _opened(request.source, request.base, request.run.fingerprint)
    except SourceChangedError as error:  # it was written while it was opened
        return Trouble(str(error), changed=True)
    except (SourceError, SpecError) as error:
        return Trouble(str(error))
    if opened.fingerprint != request.run.fingerprint:
        return Trouble(
            f"{without_secrets(request.source)} is another model than the one that was planned"
            + advice_on_cache(request.source),
            changed=True,
        )
    layers = {layer.name: layer for layer in (*opened.layers, *opened.tied)}
    plan = Plan(request.run, opened.layers, device)
    try:
        # One thread for each CPU asked for, however many the machine has.
        with spread_over(request.cpus):
            record = measure_layer(layers[request.layer], plan)
            if request.quantization_errors:
                [record] = with_rounding(replace(plan, layers=(layers[request.layer],)), [record])
    except SourceChangedError as error:
        return Trouble(str(error), changed=True)
    except SourceError as error:  # a server that does not answer this machine
        return Trouble(str(error))
    return record


@lru_cache(maxsize=1)
def _opened(source: str, base: str | None, fingerprint: str) -> Source:
    """Open the model once for all tasks of a run that a worker process gets.

    ``fingerprint`` is that of the plan: a run of another one opens the source anew.
    """
    return open_source(source, base)
