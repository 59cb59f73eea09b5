"""A transformers model from a folder or the demo package, and a pruned one back into a folder."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.errors import PruneError, SourceError
from spectail.models.open import DEMO_COMMAND, DEMO_PACKAGE
from spectail.pruning.report import PruneReport

ALLOCATION_FILE = "allocation.json"
REPORT_FILE = "pruning.json"


def load_model(source: str, *, device: str = "cpu") -> tuple[Any, Any]:
    """A causal language model and its tokenizer, from a transformers folder, a hub id, or ``demo``.

    Weights keep their stored type; a GGUF file is dequantised to float32. No code of the folder is run.

    Raises:
        SourceError: transformers is missing, or cannot load it; one line.

    """
    transformers = _transformers()
    where, options = source, dict[str, Any]()
    if source == "demo":
        path = _demo_file()
        where, options = str(path.parent), {"gguf_file": path.name}
    elif not Path(source).is_dir() and (Path(source).exists() or source.count("/") != 1):
        raise SourceError(f"expected a transformers model folder, a hub id or demo, not {source!r}")
    more: dict[str, Any] = {"dtype": "auto"}
    if options:
        more = {"dtype": torch.float32, "quantization_config": transformers.GgufConfig(dequantize=True)}
    try:
        with _without_bars(transformers):
            model = transformers.AutoModelForCausalLM.from_pretrained(where, **options, **more)
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"transformers cannot load {source} as a causal language model: {reason}") from error
    return model.to(device).eval(), tokenizer


def check_free(out: str | Path) -> Path:
    """The folder to write, which must not exist or be empty; PruneError otherwise."""
    out = Path(out)
    if out.is_dir() and not any(out.iterdir()):
        return out
    if out.exists():
        raise PruneError(f"{out} exists and is not an empty folder, so nothing is written there: give another one")
    return out


def save_pruned(
    model: nn.Module, tokenizer: Any, out: str | Path, *, allocation: Allocation, report: PruneReport
) -> Path:
    """Write model, tokenizer, allocation and report into a new folder, which appears whole or not at all."""
    out = check_free(out)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        saved: Any = model
        with _without_bars(_transformers()):
            saved.save_pretrained(part)
        tokenizer.save_pretrained(part)
        allocation.save(part / ALLOCATION_FILE)
        report.save(part / REPORT_FILE)
        os.replace(part, check_free(out))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def read_text(path: str | Path) -> str:
    """A text file in UTF-8; SourceError where it is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError(f"{path} is no text in UTF-8") from None


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise SourceError("pruning a folder needs transformers: pip install 'spectail[hf]'") from None


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """No progress bars of transformers for a while: the caller has one."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _demo_file() -> Path:
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise SourceError(f"the demo model is not installed; install it with: {DEMO_COMMAND}")
    return files[0]
