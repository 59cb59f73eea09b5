"""Analyses made by hand: what an allocation sees of a model, without the model."""

from __future__ import annotations

import csv
import gzip
import io
import math
from typing import Any

from spectail.core.spec import Spec
from spectail.models.naming.blocks import block_of
from spectail.models.naming.kinds import kind_of
from spectail.results.records import LayerRecord, Results, RunInfo
from tests.goldens.published import HERE


def layer(name: str, alpha: float = 2.0, numel: int = 4096, **more: Any) -> LayerRecord:
    """A measured layer; its kind and block by its name."""
    values = {
        "kind": kind_of(name), "block": block_of(name), "rows": numel // 64, "cols": 64,
        "n_matrices": 1,
        "window_rows": 64, "window_cols": 64, "weight_var": 0.01, "group_range": 25.0 + alpha,
    }  # fmt: skip
    return LayerRecord(name=name, alpha=alpha, numel=numel, **{**values, **more})


def unmeasured(
    name: str, status: str = "skipped", reason: str = "short side 8 is below 16", **more: Any
) -> LayerRecord:
    """A layer without an alpha."""
    values = {"status": status, "reason": reason, "weight_var": math.nan,
              "group_range": math.nan, **more}  # fmt: skip
    return layer(name, math.nan, **values)


def results(*layers: LayerRecord, **more: Any) -> Results:
    """A run over these layers."""
    values = {"source": "toy", "fingerprint": "sha256:0123", "spec": Spec(), "window": 64}
    return Results(RunInfo(**{**values, **more}), layers)


def transformer(blocks: int = 4) -> Results:
    """Embedding, blocks of q, up and a router, head; alpha grows with depth."""
    layers = [layer("model.embed_tokens", 3.0, 64 * 300)]
    for b in range(blocks):
        layers += [
            layer(f"model.layers.{b}.self_attn.q_proj", 1.5 + 0.1 * b, 64 * 64),
            layer(f"model.layers.{b}.mlp.up_proj", 1.9 + 0.2 * b, 64 * 256),
            unmeasured(f"model.layers.{b}.mlp.gate", numel=64 * 8),
        ]
    return results(*layers, layer("lm_head", 2.5, 64 * 300))


def llama(model: str, column: str) -> Results:
    """The published alphas of a LLaMA model, as an analysis."""
    text = gzip.decompress((HERE / "llama_alphas.csv.gz").read_bytes()).decode()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["model"] == model]
    return results(
        *(
            layer(row["name"], float(row[column]), int(row["rows"]) * int(row["cols"]))
            for row in rows
        ),
        source=model,
    )
