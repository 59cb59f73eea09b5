"""The Ray engine on a real cluster of several nodes, all on this machine: kills included."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.measuring.engines.ray import TRIES, RayEngine
from spectail.measuring.engines.ray_cluster import Capacity
from spectail.measuring.engines.task import Request, Trouble, measure_request
from spectail.measuring.planning import make_plan
from spectail.measuring.run import run_plan
from spectail.models.formats.open_file import OpenFile
from spectail.results.records import LayerRecord
from tests.conftest import weights
from tests.models.servers import serve
from tests.processes import SIGNALLED

# As the engine does before it imports Ray: messages of raylets stay out of what tests capture.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
ray = pytest.importorskip("ray")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster

SLOW = st.Spec(window="whole")
"""Settings under which a layer of ``_large`` takes about a second, time enough to be killed in."""
TOY = '''
import os
import torch
from torch import nn

def model():
    """A model whose weights depend on the machine: as if each had a disk of its own."""
    if os.environ.get("TOY") == "missing":
        raise FileNotFoundError("no such disk")
    torch.manual_seed(1 if os.environ.get("TOY") == "other" else 0)
    return nn.Sequential(*(nn.Linear(96, 96) for _ in range(8)))
'''


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module that the workers can import."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "raytoy.py").write_text(TOY)
    return folder


@pytest.fixture(scope="module")
def cluster(toys: Path) -> Iterator[Any]:
    """A head without CPUs, and two nodes of one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{toys}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.syspath_prepend(str(toys))
        started = _cluster()
        # Connected once: every connection starts worker processes of its own, which takes seconds.
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        yield started
        ray.shutdown()
        started.shutdown()


def _cluster() -> Any:
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        started.add_node(num_cpus=1)
    return started


def _table(analysis: st.Analysis) -> pd.DataFrame:
    return analysis.table.drop(columns="seconds")


def _kept(run: Path) -> list[dict[str, Any]]:
    """Return the rows in the journal of a run."""
    journal = run / ".progress.jsonl"
    lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
    return [json.loads(line) for line in lines]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint of five layers that take about a second each, and one that takes less."""
    torch.manual_seed(0)
    state = {f"layers.{i}.weight": torch.randn(1100, 1100) for i in range(5)}
    save_file(state | {"small.weight": torch.randn(90, 90)}, tmp_path / "large.safetensors")
    return tmp_path / "large.safetensors"


@contextmanager
def _whenever_a_worker_measures(
    layer: str, act: Callable[[psutil.Process], None]
) -> Iterator[None]:
    """Call ``act`` with each worker process that is seen to measure the layer."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for process in psutil.process_iter(["cmdline"]):
                if process.info["cmdline"] and process.info["cmdline"][0] == f"ray::{layer}":
                    act(process)
            time.sleep(0.02)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield
    finally:
        stop.set()
        watching.join()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "rubbish"])
def test_an_address_without_a_cluster_is_one_line(
    checkpoint: Path, tmp_path: Path, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", str(checkpoint), "--out", str(tmp_path / "run"), "--engine", "ray"]
    started = time.monotonic()
    assert run([*arguments, "--ray-address", address]) == 2
    assert time.monotonic() - started < 30
    output = capfd.readouterr()
    assert output.out == ""
    assert f"no Ray cluster answers at {address}" in output.err
    assert "\n" not in output.err.strip()


def _web_page() -> Iterator[str]:
    """Serve pages on a port, as Ray's dashboard does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def _silence() -> Iterator[str]:
    """Accept connections and say nothing, as a port that a firewall forwards to nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("serve", [_web_page, _silence])
def test_a_port_of_something_else_is_one_line(
    checkpoint: Path,
    serve: Callable[[], Iterator[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spectail.measuring.engines.ray_cluster.CONNECT_SECONDS", 1.0)
    with contextmanager(serve)() as address, pytest.raises(st.RunError) as error:
        st.analyze(checkpoint, engine="ray", ray_address=address)
    assert f"no Ray cluster answers at {address}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_address_in_the_environment_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "[::1]:9"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(st.RunError, match="or unset RAY_ADDRESS to use this machine") as error:
            st.analyze(checkpoint, engine="ray")
        assert f"no Ray cluster answers at {address}" in str(error.value)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for the sockets of Ray, whose paths may have 107 characters only."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("address", [None, "auto"])
def test_the_note_of_a_cluster_that_was_killed_is_no_cluster(
    checkpoint: Path, tmp_path: Path, short: Path, address: str | None
) -> None:
    # What `ray start` leaves behind when its processes are killed.
    (short / "ray").mkdir()
    (short / "ray" / "ray_current_cluster").write_text("127.0.0.1:9\n")
    command = [sys.executable, "-m", "spectail", "analyze", str(checkpoint), "--quiet"]
    command += ["--out", str(tmp_path / "run"), "--engine", "ray"]
    command += ["--ray-address", address] if address else []
    environment = os.environ | {"RAY_TMPDIR": str(short)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    if address:
        assert done.returncode == 2
        assert done.stderr.startswith("spectail: no Ray cluster answers at 127.0.0.1:9 (")
    else:
        assert done.returncode == 0, "one was started on this machine"


def test_the_table_is_the_same_bit_for_bit(cluster: Any, checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"full_spectrum": True, "quantization_errors": True}
    here = st.analyze(checkpoint, **options)
    seen = []
    there = st.analyze(
        checkpoint,
        engine="ray",
        out=tmp_path / "run",
        progress=lambda layer, done, total: seen.append((layer, done, total)),
        **options,
    )
    pd.testing.assert_frame_equal(_table(there), _table(here), rtol=0, atol=0)
    assert [x.rounding for x in there.layers] == [x.rounding for x in here.layers]
    assert seen[-1] == (None, seen[-1][2], seen[-1][2])
    started = [layer.name for layer, _, _ in seen[:-1]]
    assert started[0] == "model.embed_tokens", "the costliest layer is first"
    assert sorted(started) == sorted(here.table["name"])
    assert st.Analysis.load(tmp_path / "run").table.equals(there.table)


def test_a_worker_that_is_killed_costs_one_more_try(cluster: Any, large: Path) -> None:
    killed: list[int] = []

    def kill_first(process: psutil.Process) -> None:
        if not killed:
            killed.append(process.pid)
            process.kill()

    with _whenever_a_worker_measures("layers.2", kill_first):
        found = st.analyze(large, spec=SLOW, engine="ray")
    assert killed
    pd.testing.assert_frame_equal(_table(found), _table(st.analyze(large, spec=SLOW)))


def test_a_layer_that_always_kills_its_worker_is_a_failed_row(
    cluster: Any, large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = set()

    def kill(process: psutil.Process) -> None:
        killed.add(process.pid)
        process.kill()

    arguments = ["analyze", str(large), "--out", str(tmp_path / "run"), "--window", "whole"]
    with _whenever_a_worker_measures("layers.3", kill):
        code = run([*arguments, "--engine", "ray", "--ray-address", cluster.address])
    assert len(killed) == TRIES
    assert code == 1
    table = st.Analysis.load(tmp_path / "run").table.set_index("name")
    assert table.loc["layers.3", "status"] == "failed"
    assert table.loc["layers.3", "reason"] == "given up after 3 tries: its worker was killed"
    assert (table["status"].drop("layers.3") == "ok").all()
    output = capfd.readouterr()
    assert "failed: layers.3: given up after 3 tries: its worker was killed" in output.out
    assert "raylet" not in output.out + output.err
    # The same command measures the failed layer again, and nothing else.
    assert run([*arguments, "--quiet"]) == 0
    again = st.Analysis.load(tmp_path / "run").table.set_index("name")
    assert again.loc["layers.3", "status"] == "ok"
    others = again.index != "layers.3"
    assert again["seconds"][others].equals(table["seconds"][others])


@pytest.mark.slow
def test_a_node_that_leaves_takes_no_layer_with_it(cluster: Any, large: Path) -> None:
    node = cluster.add_node(num_cpus=1, resources={"leaving": 1})
    removed = threading.Event()

    def remove(layer: Any, done: int, total: int) -> None:
        # By the second call the first tasks run, one on each node.
        if done and not removed.is_set():
            removed.set()
            cluster.remove_node(node, allow_graceful=False)

    found = st.analyze(large, spec=SLOW, engine="ray", progress=remove)
    assert removed.is_set()
    pd.testing.assert_frame_equal(_table(found), _table(st.analyze(large, spec=SLOW)))


@pytest.mark.parametrize("seed", range(20))
def test_a_task_never_asks_for_more_than_one_machine_has(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes: list[dict[str, Any]] = [
        {
            "NodeID": str(number),
            "Alive": bool(rng.random() < 0.8),
            "Resources": {
                "CPU": float(rng.choice([0, 0.5, 1, 4, 64])),
                "GPU": float(rng.integers(0, 2)),
                "memory": float(rng.choice([0, 1e8, 4e9, 1e12])),
            },
        }
        for number in range(rng.integers(0, 6))
    ]
    for gpu in (False, True):
        found = Capacity.of(nodes, gpu=gpu, without=["0"])
        usable = [
            node["Resources"]
            for node in nodes[1:]
            if node["Alive"] and node["Resources"]["CPU"] >= 1 and node["Resources"]["GPU"] >= gpu
        ]
        assert len(found.machines) == len(usable)
        cpus, memory = found.nearest(8, 10**9)
        assert 1 <= cpus <= 8
        assert memory <= 10**9
        one = [x for x in usable if x["CPU"] >= cpus and x["memory"] >= memory]
        assert bool(one) == bool(usable) == found.holds(cpus, memory)
        if any(x["memory"] >= 10**9 for x in usable):
            assert memory == 10**9, "a machine with enough memory comes first"


def test_machines_with_many_cpus_or_much_memory_get_what_fits_them(
    cluster: Any, large: Path
) -> None:
    # No machine has the CPUs of this one and the memory of the others.
    node = cluster.add_node(num_cpus=2, memory=100 * 2**20)
    found = st.analyze(large, spec=SLOW, engine="ray", include=["layers.0", "layers.1"])
    cluster.remove_node(node)
    here = st.analyze(large, spec=SLOW, include=["layers.0", "layers.1"])
    pd.testing.assert_frame_equal(_table(found), _table(here), rtol=0, atol=0)


@pytest.mark.slow
def test_a_smaller_machine_takes_over_after_all_have_gone(tmp_path: Path) -> None:
    # It takes so long that the machine is removed while it is measured.
    save_file({"one.weight": torch.randn(2000, 1800)}, tmp_path / "one.safetensors")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    node = started.add_node(num_cpus=4)
    command = [sys.executable, "-m", "spectail", "analyze", str(tmp_path / "one.safetensors")]
    command += ["--window", "whole", "--out", str(tmp_path / "run"), "--quiet"]
    command += ["--engine", "ray", "--ray-address", started.address]
    measuring = threading.Event()
    try:
        with _whenever_a_worker_measures("one", lambda _: measuring.set()):
            driver = subprocess.Popen(command)
            assert measuring.wait(60)
        started.remove_node(node, allow_graceful=False)
        time.sleep(15)  # until Ray has noticed
        started.add_node(num_cpus=1)
        assert driver.wait(60) == 0
    finally:
        driver.kill()
        started.shutdown()
    here = st.analyze(tmp_path / "one.safetensors", spec=SLOW)
    pd.testing.assert_frame_equal(_table(st.Analysis.load(tmp_path / "run")), _table(here))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_driver_that_is_told_to_end_says_so(
    cluster: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    values = torch.randn(1100, 1100)
    torch.save({f"layers.{i}.weight": values[: 1100 - i] for i in range(60)}, tmp_path / "many.pt")
    command = [*SIGNALLED, "analyze", str(tmp_path / "many.pt"), "--quiet", "--window", "whole"]
    command += ["--out", str(tmp_path / "run"), "--engine", "ray"]
    driver = subprocess.Popen(
        [*command, "--ray-address", cluster.address], stderr=subprocess.PIPE, text=True
    )
    while not _kept(tmp_path / "run"):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(number)
    _, message = driver.communicate(timeout=30)
    assert driver.returncode == code
    assert message == "interrupted; the same command goes on where it stopped\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "words"),
    [
        ("raylet", "Ray's process on this machine (raylet) has died: start it again"),
        ("gcs_server", "has not answered for 30 s: start it again, and run the same command"),
    ],
)
def test_a_run_whose_cluster_dies_is_one_line_and_goes_on(
    tmp_path: Path, process: str, words: str
) -> None:
    source, out = tmp_path / "many.pt", tmp_path / "run"
    # Minutes of work in a small file: the layers overlap in one storage. No two ask for the same
    # memory, so that each task asks Ray for a worker anew.
    values = torch.randn(2400, 2400)
    torch.save({f"layers.{i}.weight": values[: 2400 - 9 * i] for i in range(40)}, source)
    command = [sys.executable, "-m", "spectail", "analyze", str(source), "--out", str(out)]
    command += ["--window", "whole", "--quiet", "--engine", "ray"]
    started = _cluster()
    try:
        driver = subprocess.Popen(
            [*command, "--ray-address", started.address], stderr=subprocess.PIPE, text=True
        )
        while not _kept(out):  # it is connected
            assert driver.poll() is None
            time.sleep(0.05)
        # The driver is connected to the head's raylet, which runs no tasks.
        started.head_node.all_processes[process][0].process.kill()
        _, message = driver.communicate(timeout=90)
    finally:
        driver.kill()
        started.shutdown()
    assert driver.returncode == 2
    assert message.startswith("spectail: ")
    assert words in message
    assert message.count("\n") == 1
    assert {row["status"] for row in _kept(out)} == {"ok"}, "no layer is to blame"


@contextmanager
def _both_nodes_busy(flag: Path) -> Iterator[None]:
    """Keep the cluster's two nodes busy until ``flag`` exists, so that tasks go to a third one."""

    def wait() -> None:
        while not flag.exists():
            time.sleep(0.05)

    waiting = ray.remote(max_retries=0)(wait)
    busy = [waiting.options(scheduling_strategy="SPREAD").remote() for _ in range(2)]
    while ray.available_resources().get("CPU", 0) > 0:
        time.sleep(0.05)
    try:
        yield
    finally:
        flag.touch()
        ray.get(busy)


def test_a_machine_without_the_files_is_left_out_and_named(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = []

    def note(message: str, *words: object) -> None:
        messages.append(message % words)
        (tmp_path / "flag").touch()

    monkeypatch.setattr(logging.getLogger("spectail.measuring.engines.ray"), "warning", note)
    with _both_nodes_busy(tmp_path / "flag"):
        node = cluster.add_node(num_cpus=1, env_vars={"TOY": "missing"})
        found = st.analyze("raytoy:model", engine="ray")
    cluster.remove_node(node)
    pd.testing.assert_frame_equal(_table(found), _table(st.analyze("raytoy:model")))
    [message] = messages
    assert node.node_id[:8] in message
    assert "is not used: raytoy:model failed: FileNotFoundError: no such disk" in message


def test_a_machine_with_another_model_ends_the_run(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with _both_nodes_busy(tmp_path / "flag"):
        node = cluster.add_node(num_cpus=1, env_vars={"TOY": "other"})
        code = run(["analyze", "raytoy:model", "--out", str(tmp_path / "run"), "--engine", "ray"])
    cluster.remove_node(node)
    assert code == 2
    message = capfd.readouterr().err.strip()
    assert "\n" not in message
    assert node.node_id[:8] in message
    assert "raytoy:model is another model than the one that was planned" in message


def test_a_model_that_changes_after_the_plan_ends_the_run(cluster: Any, checkpoint: Path) -> None:
    plan = make_plan(str(checkpoint), spec=st.presets.FARMS, elsewhere=True)
    save_file(weights(seed=1), checkpoint)
    with pytest.raises(st.SourceChangedError, match="is another model than the one"):
        run_plan(plan, RayEngine(cluster.address))


def test_a_model_that_is_written_while_a_machine_opens_it_has_changed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(str(checkpoint), spec=st.presets.FARMS)
    [layer] = [layer for layer in plan.layers if layer.name == "model.embed_tokens"]
    request = Request(layer.name, str(checkpoint), None, plan.run, "cpu", 1, False)
    assert isinstance(measure_request(request), LayerRecord)
    read = OpenFile.read_into

    def write_before_reading(file: OpenFile, offset: int, target: memoryview) -> None:
        with checkpoint.open("r+b") as writing:
            writing.truncate(checkpoint.stat().st_size - 1)
        read(file, offset, target)

    # A model opened by another name is opened anew.
    request = replace(request, source=f"{checkpoint.parent}/./{checkpoint.name}")
    monkeypatch.setattr(OpenFile, "read_into", write_before_reading)
    found = measure_request(request)
    assert isinstance(found, Trouble)
    assert found.changed
    assert "has changed since it was opened" in found.reason


def test_messages_about_an_address_hold_no_secrets(cluster: Any, checkpoint: Path) -> None:
    with serve(checkpoint.parent) as server:
        address = server.url.replace("//", "//user7:password8@")
        plan = make_plan(f"{address}/{checkpoint.name}?signature9=1", spec=st.presets.FARMS)
        save_file(weights(seed=1), checkpoint)
        shown = f"{server.url}/{checkpoint.name}"
        with pytest.raises(st.SourceChangedError, match=f" {shown} is another model than the one"):
            run_plan(plan, RayEngine(cluster.address))
        checkpoint.unlink()
        with pytest.raises(st.SourceError, match=f"can measure {shown}: there is no model"):
            run_plan(replace(plan, source=f"{plan.source}0"), RayEngine(cluster.address))


def test_a_source_that_no_machine_has_is_one_line(cluster: Any, checkpoint: Path) -> None:
    plan = make_plan(str(checkpoint), spec=st.presets.FARMS, elsewhere=True)
    checkpoint.unlink()
    with pytest.raises(st.SourceError) as error:
        run_plan(plan, RayEngine(cluster.address))
    assert "no machine of the cluster (2 machines) can measure" in str(error.value)
    assert f"no such file or folder: '{checkpoint}'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_stopped(
    cluster: Any, large: Path, tmp_path: Path
) -> None:
    arguments = ["analyze", str(large), "--out", str(tmp_path / "run"), "--window", "whole"]
    arguments += ["--engine", "ray", "--ray-address", cluster.address, "--quiet"]
    driver = subprocess.Popen([sys.executable, "-m", "spectail", *arguments])
    while len(_kept(tmp_path / "run")) < 2:
        assert driver.poll() is None
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {row["name"]: row["seconds"] for row in _kept(tmp_path / "run")}
    assert len(before) < 6
    assert run(arguments) == 0
    found = st.Analysis.load(tmp_path / "run")
    pd.testing.assert_frame_equal(_table(found), _table(st.analyze(large, spec=SLOW)))
    seconds = dict(zip(found.table["name"], found.table["seconds"], strict=True))
    assert {name: seconds[name] for name in before} == before, "measured once"


def test_a_finished_run_needs_no_cluster(checkpoint: Path, tmp_path: Path) -> None:
    first = st.analyze(checkpoint, out=tmp_path / "run")
    again = st.analyze(checkpoint, out=tmp_path / "run", engine="ray", ray_address="127.0.0.1:9")
    pd.testing.assert_frame_equal(first.table, again.table)


def test_another_cluster_than_that_of_the_connection_is_refused(
    cluster: Any, checkpoint: Path
) -> None:
    with pytest.raises(
        st.RunError, match=r"is connected to .*, not 127\.0\.0\.1:9: call ray\.shut"
    ):
        st.analyze(checkpoint, engine="ray", ray_address="127.0.0.1:9")


def test_a_run_that_is_interrupted_leaves_no_tasks(cluster: Any, large: Path) -> None:
    def interrupt(layer: Any, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        st.analyze(large, spec=SLOW, engine="ray", progress=interrupt)
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline, "tasks still hold the CPUs"
        time.sleep(0.1)


def test_a_gpu_that_is_not_there_is_refused(
    cluster: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(st.SpecError, match="device 'cuda' needs a machine with a GPU"):
        st.analyze(checkpoint, device="cuda", engine="ray")
    # The machine of the driver needs none, with several checkpoints either.
    second = tmp_path / "second.safetensors"
    save_file(weights(seed=1), second)
    arguments = ["analyze", str(checkpoint), str(second), "--out", str(tmp_path / "run")]
    assert run([*arguments, "--engine", "ray", "--device", "cuda"]) == 2
    assert "Ray knows of none in this cluster" in capsys.readouterr().err


@pytest.mark.slow
def test_nodes_with_a_gpu_get_the_tasks_and_fall_back_where_torch_has_none(
    cluster: Any, checkpoint: Path
) -> None:
    # Ray believes in the GPU that it is told of; torch finds none, so the task uses the CPU.
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    found = st.analyze(checkpoint, engine="ray")
    cluster.remove_node(node)
    pd.testing.assert_frame_equal(_table(found), _table(st.analyze(checkpoint)))


def test_what_other_machines_cannot_open_is_refused() -> None:
    with pytest.raises(st.SpecError, match="not a dict"):
        st.analyze(weights(), engine="ray")
    with pytest.raises(st.SpecError, match="--ray-address needs --engine ray, not 'local'"):
        st.analyze(weights(), ray_address="auto")


@pytest.mark.slow
def test_a_worker_that_the_memory_monitor_kills_is_named(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A threshold below what the machine uses already: the monitor kills every task.
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    started = _cluster()
    # A process of its own, since this one is connected to the other cluster.
    command = [sys.executable, "-m", "spectail", "analyze", str(large), "--window", "whole"]
    command += ["--include", "layers.0", "--out", str(tmp_path / "run"), "--quiet"]
    try:
        found = subprocess.run([*command, "--engine", "ray", "--ray-address", started.address])
    finally:
        started.shutdown()
    assert found.returncode == 1
    [record] = st.Analysis.load(tmp_path / "run").layers
    assert record.status == "failed"
    assert record.reason == (
        "given up after 3 tries: Ray ended its worker because the machine's memory was full"
    )
