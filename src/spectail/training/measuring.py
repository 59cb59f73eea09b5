"""Measure alphas while training: in one process, shared by several, or on a copy in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spectail.core.cuda import start_solver
from spectail.core.measure import common_window, too_small
from spectail.core.spec import Spec
from spectail.core.threads import on_one_core
from spectail.errors import TrainingError
from spectail.measuring.device import usable_device
from spectail.measuring.engines import local
from spectail.measuring.layer import Plan, measure_layer
from spectail.models.build import holding
from spectail.models.live.walk import module_source
from spectail.models.source import Layer
from spectail.results.records import LayerRecord, RunInfo


def plan_of(model: nn.Module, spec: Spec, device: str | None) -> Plan:
    """Return the plan of all measurements: layers, device, and the window, which stays fixed.

    No value of the model is read.

    Raises:
        TrainingError: the model has no weight matrices.
        SpecError: no layer is as large as the window asked for, or torch does not have the device.

    """
    source = module_source(model, fingerprint=False)
    if not source.layers:
        raise TrainingError(
            f"{source.label} has no weight matrices to balance: {source.n_vectors} vectors, "
            "nothing else"
        )
    readable = [layer for layer in source.layers if layer.part is not None]
    large = [x for x in readable if not too_small((x.rows, x.cols), spec, x.n_matrices)]
    # Shapes alone decide the window, so it can be known before anything is measured.
    window = common_window([(layer.rows, layer.cols) for layer in large], spec)
    device = (
        usable_device(device)
        if device
        else next((str(p.device) for p in model.parameters() if p.is_cuda), "cpu")
    )
    run = RunInfo(
        source=source.label,
        fingerprint="",
        spec=spec,
        window=window,
        device=device,
        n_vectors=source.n_vectors,
    )
    return Plan(run, source.layers, device, alpha_only=True)


def current_layers(model: nn.Module, names: Sequence[str]) -> list[Layer]:
    """Return the layers of these names anew, because a parameter may have moved in memory."""
    found = {layer.name: layer for layer in module_source(model, fingerprint=False).layers}
    if lost := [name for name in names if name not in found]:
        raise TrainingError(
            f"the model has lost its layer {lost[0]!r} since the Balancer was built; build a new "
            "one after changing it"
        )
    return [found[name] for name in names]


def group_of(model: nn.Module) -> Any:
    """Return the process group of DistributedDataParallel or of the DTensors; None without one."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            return module.process_group
    meshes = [p.device_mesh for p in model.parameters() if hasattr(p, "device_mesh")]
    if not meshes:
        return None
    if any(mesh.size() != dist.get_world_size() for mesh in meshes):
        raise TrainingError(
            f"the model is spread over {meshes[0].size()} of {dist.get_world_size()} processes: "
            "a Balancer needs every process to hold a piece of every layer"
        )
    return meshes[0].get_group() if all(mesh.ndim == 1 for mesh in meshes) else dist.group.WORLD


def measure_now(plan: Plan, layers: Sequence[Layer], group: Any) -> list[LayerRecord]:
    """Measure the layers, in their order; with a group each process measures a share of them."""
    if group is None or dist.get_world_size(group) == 1:
        found = list(local.measure(plan, layers))  # the first one that is finished comes first
    else:
        found = _measure_together(plan, layers, group)
    by_name = {record.name: record for record in found}
    return [by_name[layer.name] for layer in layers]


def _measure_together(plan: Plan, layers: Sequence[Layer], group: Any) -> list[LayerRecord]:
    """Measure a share of the layers and return the records of all processes of the group."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    own: list[LayerRecord] = []
    for start in range(0, len(layers), world):
        # Reading a sharded layer is a collective operation: all processes must read every layer in
        # the same order, although only one of them keeps it.
        held = [
            _held(layer, keep=i == rank) for i, layer in enumerate(layers[start : start + world])
        ]
        own += [measure_layer(layer, plan) for layer in held if layer is not None]
    # Records are small, so that all processes can hold all of them and compute the same factors.
    shares: list[list[LayerRecord]] = [[] for _ in range(world)]
    dist.all_gather_object(shares, own, group=group)
    return [record for share in shares for record in share]


def measure_beside(plan: Plan, layers: Sequence[Layer]) -> Future[list[LayerRecord]]:
    """Measure copies of the layers in a thread on one core, while training goes on."""
    copies = [layer if layer.part is None else _copied(layer, plan.device) for layer in layers]
    ready = None
    if torch.device(plan.device).type == "cuda":
        start_solver(plan.device)
        # The measuring stream must wait until the copies are made on the training stream.
        ready = torch.cuda.current_stream(plan.device).record_event()
    pool = ThreadPoolExecutor(1, thread_name_prefix="spectail-balancer")
    try:
        return pool.submit(_measure_in_order, plan, copies, ready)
    finally:
        # The thread ends by itself after its one task.
        pool.shutdown(wait=False)


def _held(layer: Layer, *, keep: bool) -> Layer | None:
    """Read a layer and return it with its values; None if it was read for other processes only."""
    if layer.part is None:
        return layer if keep else None
    with torch.no_grad():
        values = layer.read().detach()
    return holding(layer, values) if keep else None


def _copied(layer: Layer, device: str) -> Layer:
    """Return a layer with a copy of its values on the device that measures."""
    # Copied here and not by the thread, which waits for nothing on the training stream.
    with torch.no_grad():
        return holding(layer, layer.read().detach().to(device, copy=True))


def _measure_in_order(plan: Plan, layers: Sequence[Layer], ready: Any) -> list[LayerRecord]:
    """Measure layer by layer on one core, on a stream of its own once the copies are ready."""
    # Training needs the other cores.
    with on_one_core():
        if ready is None:
            return [measure_layer(layer, plan) for layer in layers]
        stream = _stream(plan.device)
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            found = [measure_layer(layer, plan) for layer in layers]
        # The memory of the copies goes back to the training stream, which does not wait for this.
        stream.synchronize()
        return found


@lru_cache
def _stream(device: str) -> Any:
    """Return the stream that measures in the background; cuBLAS keeps memory for each one used."""
    return torch.cuda.Stream(device)
