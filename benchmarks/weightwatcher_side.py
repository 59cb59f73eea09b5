"""WeightWatcher's turn, run by its own Python.

Load the demo model from a folder, analyze it, print one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import weightwatcher
from transformers import AutoModelForCausalLM, GgufConfig


def main(folder: str) -> None:
    """Load, analyze, report."""
    file = next(Path(folder).glob("*.gguf")).name
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    loaded = time.perf_counter()
    details = weightwatcher.WeightWatcher(model=model).analyze()
    ended = time.perf_counter()
    result = {
        "load_seconds": round(loaded - started, 2),
        "analyze_seconds": round(ended - loaded, 2),
        "layers": len(details),
        "versions": {
            name: metadata.version(name)
            for name in ("weightwatcher", "torch", "numpy", "transformers")
        },
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
