"""Save a pruned model with its tokenizer, allocation and report as a folder for transformers."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.basics.files import all_or_nothing, check_writable
from spectail.basics.texts import type_and_line
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
"""More files of a multi-modal model's folder: without them it cannot read images or audio."""


def check_free(out: str | Path) -> Path:
    """Return ``out`` as a path if it can be made: it is missing or empty.

    Raises:
        PruneError: There is something at ``out``.
        OSError: The folder around it cannot be written.

    """
    out = Path(out).absolute()
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise PruneError(
            f"{out} is not UTF-8, and the libraries that write models take no other path: "
            "give another one"
        ) from None
    check_writable(out)
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        if os.path.ismount(out):
            raise PruneError(
                f"{out} is a mount point, which cannot be replaced as a whole: "
                f"give a new folder inside it, such as {out / 'pruned'}"
            )
        return out
    if out.exists():
        raise PruneError(
            f"{out} exists and is not an empty folder, so nothing is written there: "
            "give another one"
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
    """Write model, tokenizer, allocation, report and page (HTML) into a new folder.

    The folder appears complete or not at all.
    """
    out = check_free(out)
    with _named_if_taken(out), all_or_nothing(out) as (part,):
        part.mkdir()
        saved: Any = model
        try:
            with without_bars():
                saved.save_pretrained(part)
            tokenizer.save_pretrained(part)
        except OSError:
            raise
        except Exception as error:  # a full disk is another error in each library
            raise PruneError(
                f"the pruned model cannot be written to {out}: {type_and_line(error)}"
            ) from error
        _copy_processor(saved, part)
        allocation.save(part / ALLOCATION_FILE)
        report.save(part / REPORT_FILE)
        if page:
            (part / PAGE_FILE).write_text(page, encoding="utf-8")
    return out


@contextmanager
def _named_if_taken(out: Path) -> Iterator[None]:
    """Say what is wrong if somebody has written to ``out`` in the meantime."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            check_free(out)
        raise


def _copy_processor(model: Any, out: Path) -> None:
    """Copy the processor's files from the folder that the model was loaded from, if it has any."""
    # transformers keeps the path that a model was loaded from in its configuration.
    source = Path(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    for name in PROCESSOR_FILES:
        if source.is_dir() and (source / name).is_file() and not (out / name).exists():
            shutil.copyfile(source / name, out / name)
