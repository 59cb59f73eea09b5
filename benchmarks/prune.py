"""Peak memory of ``spectail prune`` on the demo model.

It is compared with the model's size and one block's statistics. The demo is first saved as
safetensors, so that no GGUF is dequantised on the way. Loading alone, with every weight read once,
is a process of its own: what pruning adds is the difference. The calibration text is this
repository's sources, which memory does not depend on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import run_command
from experiments.common import ROOT
from spectail.models.open import open_source

SPECTAIL = (sys.executable, "-c", "from spectail.cli import main; main()")
SAVE = """
import sys, spectail as st
for part in st.open_language_model("demo"):
    part.save_pretrained(sys.argv[1])
"""
LOAD = """
import sys, spectail as st, spectail.cli
model, tokenizer = st.open_language_model(sys.argv[1])
touched = [float(parameter.detach().sum()) for parameter in model.parameters()]
"""
MIB = 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--model", type=Path, help="a folder that transformers wrote, in place of the demo"
    )
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in each")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks in MB, and the parts that the peak is to be near to.

    A quick run calibrates on 2 x 64 tokens.
    """
    samples, length = (2, 64) if options.quick else (options.samples, options.seq_len)
    with tempfile.TemporaryDirectory() as temporary:
        model, text = options.model or Path(temporary, "model"), Path(temporary, "text.txt")
        if not options.model:
            run_command([sys.executable, "-c", SAVE, str(model)])
        text.write_text(
            "\n\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
        )
        loaded = run_command([sys.executable, "-c", LOAD, str(model)])
        words = [
            "prune",
            str(model),
            "--sparsity",
            "0.5",
            "--method",
            options.method,
            "--allocation",
            "uniform",
        ]
        words += [
            "--calibration",
            str(text),
            "--samples",
            str(samples),
            "--seq-len",
            str(length),
            "--quiet",
        ]
        pruned = run_command([*SPECTAIL, *words, "--out", str(Path(temporary, "pruned"))])
        parts = _parts(model, samples * length, options.method)
    return {
        "method": options.method,
        "calibration": [samples, length],
        "seconds": round(pruned.seconds, 1),
        "peak_megabytes": pruned.peak_megabytes,
        "peak_anonymous_megabytes": pruned.peak_anonymous_megabytes,
        "loading_alone": {
            "peak": loaded.peak_megabytes,
            "peak_anonymous": loaded.peak_anonymous_megabytes,
        },
        "parts_megabytes": parts,
    }


def _parts(model: Path, tokens: int, method: str) -> dict[str, float]:
    """What has to be in memory, in MB.

    Weights, hidden states in front of one block, statistics of one block.
    """
    source = open_source(model)
    width = next(layer.cols for layer in source.layers if layer.kind == "embedding")
    inputs = [layer.cols for layer in source.layers if layer.block == 0]
    numbers = sum(cols * cols if method == "sparsegpt" else cols for cols in inputs)
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    sizes = {
        "model": weights,
        "hidden states": 4 * tokens * width,
        "statistics of one block": 4 * numbers,
    }
    return {name: round(size / MIB, 1) for name, size in sizes.items()}
