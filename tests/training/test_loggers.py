"""What real loggers and libraries of tables store (make integrations)."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

import spectail as st
from tests.conftest import weights
from tests.training.nets import net, train

Points = list[tuple[int, float]]


def logged(log: Any) -> dict[str, Points]:
    """Train five steps with a measurement every two; return what a logger should hold."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2, log=log)
    train(model, optimizer, 5)
    balancer.remove()
    values = [update.scalars() for update in balancer.history]
    assert len(values) == 2
    return {name: [(2, values[0][name]), (4, values[1][name])] for name in values[0]}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        expected = logged(writer)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in points]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        expected = logged(mlflow.log_metrics)
    client = mlflow.MlflowClient()
    for name, points in expected.items():
        metrics = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in metrics] == points


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    trackio.init(project="spectail")
    expected = logged(trackio.log)
    trackio.finish()
    with sqlite3.connect(tmp_path / "spectail.db") as stored:
        rows = stored.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    values = [(step, json.loads(metrics)) for step, metrics in rows]
    for name, points in expected.items():
        assert [(step, found[name]) for step, found in values] == points


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    analysis = st.analyze(weights())
    with wandb.init(project="spectail", mode="offline", dir=tmp_path) as run:
        expected = logged(wandb.log)
        table = wandb.Table(dataframe=analysis.table)
        run.log({"layers": table}, step=5)  # what came before is in the summary from now on
        summary = dict(run.summary)
    assert {name: summary[name] for name in expected} == {
        name: points[-1][1] for name, points in expected.items()
    }
    assert table.columns == list(analysis.table.columns)
    assert [row[0] for row in table.data] == analysis.table["name"].tolist()


def test_polars() -> None:
    polars = pytest.importorskip("polars")
    analysis = st.analyze(weights())
    frame = polars.DataFrame(analysis)
    assert frame.schema["block"] == polars.Int64
    assert frame["block"].to_list() == [layer.block for layer in analysis.layers]
    assert frame["name"].to_list() == [layer.name for layer in analysis.layers]


def test_duckdb() -> None:
    duckdb = pytest.importorskip("duckdb")
    analysis = st.analyze(weights())
    rows = duckdb.sql("SELECT kind, max(block), avg(alpha) FROM analysis GROUP BY kind").fetchall()
    found = {kind: (block, alpha) for kind, block, alpha in rows}
    assert found["router"] == (2, None)
    alphas = [layer.alpha for layer in analysis.layers if layer.kind == "up"]
    assert found["up"] == (2, pytest.approx(sum(alphas) / 3))
