"""A pruned model, its tokenizer, its allocation and what was done to it, as a folder that transformers loads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.errors import PruneError
from spectail.models.live.language import without_bars
from spectail.pruning.report import PruneReport

ALLOCATION_FILE = "allocation.json"
REPORT_FILE = "pruning.json"
PAGE_FILE = "report.html"


PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""What a multi-modal model's folder holds beside model and tokenizer, so that it still reads images
or audio."""


def check_free(out: str | Path) -> Path:
    """The folder to write, which must not exist or be empty; PruneError otherwise."""
    out = Path(out)
    if out.is_dir() and not any(out.iterdir()):
        return out
    if out.exists():
        raise PruneError(
            f"{out} exists and is not an empty folder, so nothing is written there: give another one"
        )
    return out


def save_pruned(
    model: nn.Module,
    tokenizer: Any,
    out: str | Path,
    *,
    allocation: Allocation,
    report: PruneReport,
    page: str = "",
) -> Path:
    """Write model, tokenizer, allocation, report and its page (HTML) into a new folder, which appears whole or not."""
    out = check_free(out)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        saved: Any = model
        with without_bars():
            saved.save_pretrained(part)
        tokenizer.save_pretrained(part)
        _copy_processor(saved, part)
        allocation.save(part / ALLOCATION_FILE)
        report.save(part / REPORT_FILE)
        if page:
            (part / PAGE_FILE).write_text(page, encoding="utf-8")
        os.replace(part, check_free(out))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _copy_processor(model: Any, out: Path) -> None:
    """Copy the files of the processor from the folder that the model was loaded from, where there is one."""
    source = Path(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    for name in PROCESSOR_FILES:
        if source.is_dir() and (source / name).is_file() and not (out / name).exists():
            shutil.copyfile(source / name, out / name)
