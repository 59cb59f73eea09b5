"""The Ray engine: the layers of a run are tasks on the machines of a Ray cluster.

Weights are read on the machine that measures them, so every machine must be able to open the
source: by the same path on a shared file system, or from an object store. The process that starts
the run (Ray calls it the driver) hands out layer after layer, the costliest first, and collects the
records. Tasks hold no state, so a task whose worker or machine is lost is simply started again.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

from spectail.basics.addresses import without_secrets
from spectail.basics.files import local_path
from spectail.basics.texts import joined, plural, visible
from spectail.errors import RunError, SourceChangedError, SourceError, SpecError
from spectail.measuring.cost import estimate, plan_seconds
from spectail.measuring.engines.ray_cluster import (
    Capacity,
    answers,
    connect,
    import_ray,
    require_connection,
)
from spectail.measuring.engines.task import Request, Trouble, measure_request
from spectail.measuring.layer import Plan, record_of
from spectail.models.source import Layer
from spectail.results.records import LayerRecord

TRIES = 3
"""How often a layer is started before its row says that it failed."""
AHEAD = 2
"""Tasks handed to Ray for each CPU: those that wait show an autoscaler that more is needed."""
PATIENCE = 60.0
"""Seconds that a cluster may have no machine for the tasks, for example while one is replaced."""
HEAD_PATIENCE = 30.0
"""Seconds that the head of the cluster may not answer; after 60 Ray ends this process."""
LOOK_SECONDS = 2.0
"""How often to look which machines there are."""
_LOST = {
    "OutOfMemoryError": "Ray ended its worker because the machine's memory was full",
    "NodeDiedError": "its machine left the cluster",
}
"""What happened to a task, by the type of Ray's error; other errors are a worker that died."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayEngine:
    """Measure the layers on a Ray cluster and yield records as they are done.

    ``address`` is that of a cluster (``host:port``, or ``auto`` for one on this machine). Without
    it Ray connects to the cluster that ``RAY_ADDRESS`` names or that runs on this machine, and
    starts one with all cores of this machine if there is none.
    """

    address: str | None = None
    elsewhere: ClassVar[bool] = True
    """Layers are measured in other processes: these check the device, and get the costliest first.
    """

    def __call__(self, plan: Plan, layers: Iterable[Layer]) -> Iterator[LayerRecord]:
        """Measure the layers of a plan.

        Raises:
            SpecError: Ray is not installed, or the source is no text that other machines can open.
            RunError: There is no cluster at the address, or none of its machines is left.
            SourceError: No machine can open the source, or one has another model there.

        """
        ray = import_ray()
        source = _source_text(plan.source)
        new = iter(layers)
        # A finished run needs no cluster.
        if (first := next(new, None)) is None:
            return
        connected_here = not ray.is_initialized()
        if connected_here:
            connect(ray, self.address)
        else:
            require_connection(ray, self.address)
        driver = _Driver(ray, plan, source)
        try:
            yield from driver.records(chain([first], new))
        finally:
            if connected_here:
                ray.shutdown()  # Ray ends the tasks of a process that leaves
            else:
                driver.cancel()


@dataclass
class _Task:
    """A layer that is handed out, and what became of its earlier tries."""

    layer: Layer
    losses: list[str]
    cpus: int = 1
    memory: int = 0


class _Driver:
    """The loop that hands out the layers of one run and collects their records."""

    def __init__(self, ray: Any, plan: Plan, source: str) -> None:
        self.ray, self.plan, self.source = ray, plan, source
        # Ray ends a worker after each task with a GPU unless told otherwise, and starting one takes
        # seconds. It is never to repeat a task by itself: only the driver counts the tries.
        self.remote = ray.remote(max_retries=0, max_calls=0)(_measure_on_node)
        self.running: dict[Any, _Task] = {}
        self.again: list[_Task] = []
        self.bad_nodes: dict[str, str] = {}
        self.seconds = sum(plan_seconds(plan))
        self.last_seen = self.next_look = self.head_seen = time.monotonic()
        address = ray.get_runtime_context().gcs_address
        # Some are reached through a proxy only (ray://), and nothing else answers here.
        self.head = address if answers(address, LOOK_SECONDS) else None
        self.gpu = False  # all machines count for the question whether any has one
        self.capacity = self._look()
        self.gpu = self._wants_gpu()

    def records(self, layers: Iterable[Layer]) -> Iterator[LayerRecord]:
        """Yield the record of every layer, in the order in which they are done."""
        new = iter(layers)
        while True:
            self._hand_out(new)
            if not self.running:
                return
            done, _ = self.ray.wait(list(self.running), timeout=LOOK_SECONDS)
            if done:  # and whatever else is done by now
                done, _ = self.ray.wait(
                    list(self.running), num_returns=len(self.running), timeout=0
                )
            for reference in done:
                if record := self._result(reference):
                    yield record
            self._check_cluster()

    def cancel(self) -> None:
        """Stop the tasks of a run that has ended early."""
        for reference in self.running:
            with suppress(self.ray.exceptions.RayError):
                # Not by force: where a task is done at that moment, Ray 2.60 aborts this process.
                self.ray.cancel(reference)

    def _hand_out(self, new: Iterator[Layer]) -> None:
        """Start tasks until each CPU (or GPU) has AHEAD of them."""
        slots = self.capacity.gpus if self.gpu else self.capacity.cpus
        most = max(AHEAD * slots, AHEAD)
        while sum(task.cpus for task in self.running.values()) < most:
            if self.again:
                task = self.again.pop()
            elif layer := next(new, None):
                task = _Task(layer, [])
            else:
                return
            self._start(task)

    def _start(self, task: _Task) -> None:
        """Hand one task to Ray, with the CPUs and the memory that its layer needs."""
        run = self.plan.run
        cost = estimate(
            task.layer, run.spec, run.window, full_spectrum=run.full_spectrum, traps=run.traps
        )
        # A layer that takes longer than an equal share of the run would be waited for at the end.
        share = self.seconds / max(1, self.capacity.cpus)
        wanted = 1 if self.gpu else math.ceil(cost.seconds() / share) if share else 1
        # A worker that ran out of memory gets more of it.
        memory = cost.memory * 2 ** len(task.losses)
        task.cpus, task.memory = self.capacity.nearest(max(1, wanted), memory)
        options: dict[str, Any] = {
            "num_cpus": task.cpus,
            "memory": task.memory,
            "name": visible(task.layer.name),
        }
        if self.gpu:
            options["num_gpus"] = 1
        if self.bad_nodes:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self.bad_nodes)})"}
        request = Request(
            layer=task.layer.name,
            source=self.source,
            base=None if self.plan.base is None else _source_text(self.plan.base),
            run=run,
            device="auto" if self.gpu and self.plan.device == "auto" else self._device(),
            cpus=task.cpus,
            quantization_errors=self.plan.quantization_errors,
        )
        self.running[self.remote.options(**options).remote(request)] = task

    def _result(self, reference: Any) -> LayerRecord | None:
        """Return the record of a finished task, or arrange for its layer to be measured again."""
        task = self.running.pop(reference)
        errors = self.ray.exceptions
        try:
            node, found = self.ray.get(reference)
        except errors.TaskCancelledError:
            self.again.append(task)
            return None
        except errors.RayTaskError as error:
            # measure_request handles whatever may go wrong with a layer.
            cause = _cause(error)
            if "import" not in cause and "No module" not in cause:
                return self._lost(task, cause)
            raise RunError(
                "a machine of the cluster cannot run spectail: install the same versions of "
                f"Python, Ray and spectail on all of them ({cause})"
            ) from None
        except errors.LocalRayletDiedError:
            raise RunError(
                "Ray's process on this machine (raylet) has died: start it again, and run the same "
                "command again to go on"
            ) from None
        except errors.RayError as error:
            return self._lost(task, _LOST.get(type(error).__name__, "its worker was killed"))
        if isinstance(found, LayerRecord):
            return found
        self._trouble(node, found)
        self.again.append(task)
        return None

    def _lost(self, task: _Task, reason: str) -> LayerRecord | None:
        """Start a lost task again, or give its layer up after TRIES of them."""
        task.losses.append(reason)
        if len(task.losses) < TRIES:
            self.again.append(task)
            return None
        reasons = joined(list(dict.fromkeys(task.losses)))
        return replace(
            record_of(task.layer),
            status="failed",
            reason=f"given up after {TRIES} tries: {reasons}",
        )

    def _trouble(self, node: str, trouble: Trouble) -> None:
        """Use a machine no more that cannot open the source, and say so once.

        Raises:
            SourceChangedError: The machine has another model, so results would be of two models.

        """
        where = f"machine {self._address(node)}"
        if trouble.changed:
            raise SourceChangedError(f"{where}: {trouble.reason}")
        if node not in self.bad_nodes:
            self.bad_nodes[node] = trouble.reason
            _LOG.warning("%s is not used: %s", where, trouble.reason)
        self.capacity = self._look()
        if not self.capacity.machines:
            machines = plural(len(self.bad_nodes), "machine")
            raise SourceError(
                f"no machine of the cluster ({machines}) can measure {without_secrets(self.source)}"
                f": {trouble.reason}; every machine must reach it by this name"
            )

    def _check_cluster(self) -> None:
        """Follow machines that come and go.

        Raises:
            RunError: No machine has been there for PATIENCE seconds, or no head for HEAD_PATIENCE.

        """
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_SECONDS
        if not self._head_answers():
            return
        self.capacity = self._look()
        if self.capacity.machines:
            self.last_seen = time.monotonic()
        elif time.monotonic() - self.last_seen > PATIENCE:
            raise RunError(
                f"the cluster has had no machine for the layers for {PATIENCE:.0f} s: add one, "
                "and run the same command again to go on"
            )
        self._withdraw()

    def _head_answers(self) -> bool:
        """Return whether the head can be asked; without one, machines go on with what they have."""
        if self.head is None or answers(self.head, LOOK_SECONDS):
            self.head_seen = time.monotonic()
        elif time.monotonic() - self.head_seen > HEAD_PATIENCE:
            raise RunError(
                f"the head of the Ray cluster at {self.head} has not answered for "
                f"{HEAD_PATIENCE:.0f} s: start it again, and run the same command again to go on"
            )
        else:
            return False
        return True

    def _withdraw(self) -> None:
        """Cancel tasks that would wait for ever, since no machine has what they ask for any more.

        They are handed out again, and then ask for what there is.
        """
        if not self.capacity.machines:
            return
        for reference, task in self.running.items():
            if not self.capacity.holds(task.cpus, task.memory):
                self.ray.cancel(reference)

    def _look(self) -> Capacity:
        """Return what the machines offer now that can open the source."""
        return Capacity.of(self.ray.nodes(), gpu=self.gpu, without=self.bad_nodes)

    def _wants_gpu(self) -> bool:
        """Return whether the tasks ask for a GPU each: those of ``auto`` do if there is one."""
        if self.plan.device == "cpu":
            return False
        if self.plan.device != "auto" and not self.capacity.gpus:
            raise SpecError(
                f"device {self.plan.device!r} needs a machine with a GPU, and Ray knows of none in "
                "this cluster: use --device cpu, or start the machines with --num-gpus"
            )
        return self.capacity.gpus > 0

    def _device(self) -> str:
        """Return the device of the tasks; Ray shows each task only the GPU that it may use."""
        return "cuda" if self.gpu else "cpu"

    def _address(self, node: str) -> str:
        """Return the address of a machine, and the beginning of Ray's name for it."""
        found = {entry["NodeID"]: entry["NodeManagerAddress"] for entry in self.ray.nodes()}
        return f"{found.get(node, 'unknown')} (node {node[:8]})"


def _measure_on_node(request: Request) -> tuple[str, LayerRecord | Trouble]:
    """Measure a layer in a worker of Ray; return the node's name too."""
    return import_ray().get_runtime_context().get_node_id(), measure_request(request)


def _source_text(source: Any) -> str:
    """Return the text by which every machine can open the source; paths become absolute."""
    if not isinstance(source, str | os.PathLike):
        raise SpecError(
            "the ray engine needs a source that other machines can open: a path, an address or a "
            f"hub id, not a {type(source).__name__}"
        )
    text = os.fspath(source)
    path = local_path(text)
    # A worker has a current folder of its own.
    return str(path.absolute()) if text != "demo" and path.exists() else text


def _cause(error: Any) -> str:
    """Return the last line of a task's traceback, which says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
