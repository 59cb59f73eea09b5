"""What training and measuring need: nothing that draws reports, writes Parquet
files or makes command lines.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

import spectail as st

TRAIN_AND_MEASURE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"plotly", "pyarrow", "typer", "rich"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
import spectail as st

model = torch.nn.Sequential(*[torch.nn.Linear(96, 96) for _ in range(4)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
for _ in range(2):
    model(torch.randn(4, 96)).sum().backward()
    optimizer.step()
assert len(balancer.history) == 2
assert balancer.history.table["alpha"].notna().any()

assert st.tail_fit(model[0].weight.detach()).alpha > 1
analysis = st.analyze(model)
assert (analysis.table["alpha"] > 1).all()
assert len(st.allocate(analysis, target="lr", budget=0.1)) > 0
"""


def test_training_and_measuring_need_neither_plotly_nor_pyarrow_nor_typer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_MEASURE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


EXPORT = """
import sys
from spectail.cli import run

assert run(["export", sys.argv[1], "--to", "factors", "--out", sys.argv[2], "--quiet"]) == 0
slow = {"torch", "pandas", "scipy", "plotly", "jinja2"} & set(sys.modules)
assert not slow, slow
"""


def test_an_export_imports_nothing_slow(tmp_path: Path) -> None:
    """They take most of a second, and most tools need names and numbers only."""
    rng = np.random.default_rng(0)
    model = {f"layers.{i}.q.weight": rng.standard_normal((64, 64), np.float32) for i in range(3)}
    allocation = st.allocate(st.analyze(model), target="lr", budget=0.1)
    allocation.save(tmp_path / "lr.json")
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, tmp_path / "lr.json", tmp_path / "factors.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "factors.json").stat().st_size > 0
