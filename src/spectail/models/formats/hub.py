"""Models on the Hugging Face hub: what their names look like, and the download of their files."""

from __future__ import annotations

import re
from pathlib import Path

from spectail.basics.texts import type_and_line
from spectail.errors import SourceError
from spectail.models.formats.table import FORMATS

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def is_hub_id(text: str) -> bool:
    """Whether a text that is no path looks like ``org/name``."""
    # ``models/net.pt`` is a mistyped path and no hub id.
    endings = (".json", *(suffix for form in FORMATS for suffix in form.suffixes))
    return bool(_HUB_ID.match(text)) and not text.lower().endswith(endings)


def download(name: str) -> Path:
    """Return the folder of a model of the hub: its safetensors and JSON files, cached or fetched.

    Raises SourceError without the huggingface_hub library, and if there is no such model.
    """
    missing = f"no such file or folder: {name!r}; as a hub id,"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise SourceError(
            f"{missing} it needs the huggingface_hub library: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise SourceError(
            f"{missing} it could not be downloaded ({type_and_line(error)[:160]})"
        ) from None
