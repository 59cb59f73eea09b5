"""Synthetic runs of many shapes: what a report may meet, without a model and without torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from spectail.core.null import marchenko_pastur_alpha
from spectail.core.spec import Spec
from spectail.core.tails import fit_from
from spectail.results.records import LayerRecord, Results, RunInfo, Spectrum

SIDE = 64
NULL = marchenko_pastur_alpha(1.0, fraction=0.5)
HOSTILE = (
    "layers.0.<script>alert(1)</script>",
    "layers.0.\"quoted\" 'twice' & `ticked`",
    "layers.1.</script><!-- <b>bold</b>",
    "layers.1.блок.重み.🜁\u202egnirts",
    "layers.2.<img src=x onerror=alert(1)>",
    "__proto__",
    '=HYPERLINK("http://example.com")',
    "lone surrogate \udc80",
)
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


def spectrum_of(eigenvalues: np.ndarray) -> Spectrum:
    """A record's spectrum, as an analysis would keep it."""
    logs = np.log10(eigenvalues)
    counts, edges = np.histogram(logs, bins=100)
    ranks = np.unique(np.geomspace(1, eigenvalues.size, 48).round().astype(int))
    top = tuple((int(r), float(eigenvalues[-r])) for r in ranks)
    return Spectrum((float(edges[0]), float(edges[-1])), tuple(counts.tolist()), top)


def ok_layer(
    name: str, block: int | None, kind: str, heavy: float = 0.0, seed: int = 0, **more: Any
) -> LayerRecord:
    """A layer whose matrix has columns of log-normal scale: ``heavy`` 0 is
    i.i.d., more is a heavier tail."""
    rng = np.random.default_rng(seed)
    windows = rng.standard_normal((9, SIDE, SIDE)) * 0.02
    windows *= np.exp(heavy * rng.standard_normal(SIDE))
    eigenvalues = np.sort(np.linalg.svd(windows, compute_uv=False).ravel() ** 2)
    fit = fit_from(eigenvalues, eigenvalues.size // 2)
    rows, cols = (
        (4 * SIDE, SIDE)
        if kind in ("gate", "up")
        else (SIDE, 4 * SIDE)
        if kind == "down"
        else (192, 192)
    )
    total, largest = float((windows**2).sum()), float(eigenvalues[-1])
    values = {
        "name": name, "block": block, "kind": kind, "rows": rows, "cols": cols,
        "numel": rows * cols, "n_matrices": 1, "window_rows": SIDE, "window_cols": SIDE,
        "n_windows": 9, "n_eigenvalues": eigenvalues.size, "alpha": fit.alpha, "alpha_se": 0.02,
        "alpha_null": NULL, "alpha_null_sd": 0.008, "xmin": fit.xmin, "n_tail": fit.n_tail,
        "ks": fit.ks, "lambda_max": largest, "frobenius_norm_sq": total,
        "tail_verdict": "not applicable: this cutoff measures the shape of the bulk",
        "stable_rank": total / largest, "alpha_weighted": fit.alpha * math.log10(largest),
        "log_norm": math.log10(total), "seconds": 0.05, "weight_var": float(windows.var()),
        "spectrum": spectrum_of(eigenvalues),
    }  # fmt: skip
    return LayerRecord(**{**values, **more})


def missing(
    name: str, block: int | None, kind: str, status: str, reason: str, **more: Any
) -> LayerRecord:
    """A layer that was not measured."""
    values = {"rows": 8, "cols": 64, "numel": 512, "n_matrices": 1}
    return LayerRecord(
        name=name, block=block, kind=kind, status=status, reason=reason, **{**values, **more}
    )


def run_of(layers: list[LayerRecord], **more: Any) -> Results:
    """Results with plausible run information."""
    values = {
        "source": "demo", "fingerprint": "sha256:0123abcd", "spec": Spec(), "window": SIDE,
        "n_vectors": 25, "versions": {"spectail": "0.1.0", "torch": "2.9.0", "numpy": "2.4.6"},
    }  # fmt: skip
    return Results(RunInfo(**{**values, **more}), tuple(layers))


def block_layers(b: int, n_blocks: int) -> list[LayerRecord]:
    """Seven projections; q and k heavier than the rest, and heavier with depth."""
    depth = 0.25 * b / max(1, n_blocks - 1)
    heavy = {"q": 0.55, "k": 0.5, "v": 0.3, "o": 0.3, "gate": 0.25, "up": 0.15, "down": 0.1}
    paths = {kind: f"self_attn.{kind}_proj" for kind in ATTENTION} | {
        kind: f"mlp.{kind}_proj" for kind in MLP
    }
    return [
        ok_layer(f"model.layers.{b}.{paths[k]}", b, k, heavy[k] + depth, seed=100 * b + i)
        for i, k in enumerate(ATTENTION + MLP)
    ]


def build_transformer(n_blocks: int = 12, full: bool = False) -> Results:
    """Blocks of q, k, v, o, gate, up, down, with embedding, convs, not
    comparable, skipped and failed rows."""
    layers = [ok_layer("model.embed_tokens", None, "embedding", 0.4, seed=7)]
    for b in range(n_blocks):
        layers += block_layers(b, n_blocks)
        layers.append(
            missing(f"model.layers.{b}.router", b, "router", "skipped", "short side 8 is below 16")
        )
    layers += [ok_layer(f"model.head.conv{i}", None, "conv", 0.1, seed=900 + i) for i in range(2)]
    small = {"comparable": False, "window_rows": 32, "window_cols": 32, "alpha_se": math.nan}
    layers.append(
        ok_layer(
            "model.head.conv2", None, "conv", 0.1, seed=903, reason="window 32 is not 64", **small
        )
    )
    layers.append(ok_layer("lm_head", None, "head", 0.0, seed=11))
    layers.append(
        missing("model.head.broken", None, "linear", "failed", "weights hold NaN", rows=64, cols=64)
    )
    if full:
        replaced = [
            LayerRecord(**{**vars(x), "alpha_full": x.alpha * (1 - 0.2 * (x.rows != x.cols))})
            if x.status == "ok"
            else x
            for x in layers
        ]
        return run_of(replaced, full_spectrum=True)
    return run_of(layers)


@pytest.fixture(scope="session")
def transformer() -> Results:
    """A transformer of 12 blocks with full-spectrum alphas."""
    return build_transformer(full=True)


@pytest.fixture(scope="session")
def cnn() -> Results:
    """Convolutions without blocks, and a classifier; no error bars."""
    layers = [
        ok_layer(f"features.conv{i}", None, "conv", 0.1 * i, seed=i, alpha_se=math.nan)
        for i in range(8)
    ]
    return run_of(
        [*layers, ok_layer("classifier", None, "linear", 0.2, seed=50)], source="tests:cnn"
    )


@pytest.fixture(scope="session")
def single() -> Results:
    """One layer only."""
    return run_of([ok_layer("weight", None, "linear", 0.3)])


@pytest.fixture(scope="session")
def failed() -> Results:
    """Not one layer measured."""
    return run_of(
        [missing(f"layer{i}", None, "linear", "failed", "weights hold Inf") for i in range(3)],
        window=None,
    )


@pytest.fixture(scope="session")
def random_model() -> Results:
    """Every layer i.i.d.: nothing to be found."""
    layers = [
        ok_layer(
            f"model.layers.{b}.self_attn.{k}_proj",
            b,
            k,
            0.0,
            seed=10 * b + i,
            alpha=NULL + 0.01 * ((b + i) % 3 - 1),
        )
        for b in range(10)
        for i, k in enumerate(ATTENTION)
    ]
    return run_of(layers)


@pytest.fixture(scope="session")
def hostile() -> Results:
    """Names, kinds and reasons that try to be code."""
    layers = [
        ok_layer(name, None, f"kind {name[-9:]}", 0.3, seed=i) for i, name in enumerate(HOSTILE)
    ]
    layers.append(
        missing(
            "bad </script>",
            None,
            "<i>x</i>",
            "failed",
            "</script><script>window.hacked = 1</script>",
        )
    )
    versions = {"spectail": "<b>0</b>"}
    return run_of(
        layers,
        source="</title><script>window.hacked = 1</script>",
        versions=versions,
        notes=("<u>note</u>",),
    )


@pytest.fixture(scope="session")
def huge() -> Results:
    """2,000 layers: 40 blocks of 50, experts among them."""
    patterns = [ok_layer("x", 0, "gate", 0.1 * i, seed=i) for i in range(7)]
    layers = []
    for b in range(40):
        for j in range(50):
            kind = ("q", "k", "v", "o")[j] if j < 4 else ("gate", "up", "down")[j % 3]
            name = f"model.layers.{b}.mlp.experts.{j}.{kind}_proj"
            pattern = vars(patterns[(b + j) % 7])
            layers.append(LayerRecord(**{**pattern, "name": name, "block": b, "kind": kind}))
    return run_of(layers)
