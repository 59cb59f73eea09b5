"""Very many layers, and little of everything: time and memory grow in proportion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spectail.models.open import open_source


def many_layers(path: Path, count: int, side: int = 16) -> Path:
    """A safetensors file with this many square matrices."""
    size = 4 * side * side
    header = {
        f"model.layers.{i // 7}.mlp.w{i % 7}.weight": {
            "dtype": "F32", "shape": [side, side], "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(count)
    }  # fmt: skip
    text = json.dumps(header).encode()
    values = np.random.default_rng(0).standard_normal(count * side * side, np.float32)
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def seconds_to_open(path: Path) -> float:
    """Processor seconds, the least of three."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        open_source(path)
        taken.append(time.process_time() - start)
    return min(taken)


def test_opening_takes_time_in_proportion_to_the_layers(tmp_path: Path) -> None:
    few = seconds_to_open(many_layers(tmp_path / "few.safetensors", 500))
    many = seconds_to_open(many_layers(tmp_path / "many.safetensors", 4000))
    # Eight times the layers; a walk over all layers for each of them would take 64 times as long.
    assert many < 20 * few


@pytest.mark.slow
def test_ten_thousand_layers_on_one_core_in_two_gib(tmp_path: Path) -> None:
    path = many_layers(tmp_path / "m.safetensors", 10_000)
    script = f"""
import os, resource, torch
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from spectail import analyze
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2)
analysis = analyze({str(path)!r}, out={str(tmp_path / "out")!r})
assert {{layer.status for layer in analysis.layers}} == {{"ok"}}
print(len(analysis.layers), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, mebibytes = map(int, done.stdout.split())
    assert count == 10_000
    assert mebibytes < 2048
