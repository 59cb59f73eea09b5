"""Names of models on the Hugging Face hub."""

from __future__ import annotations

import re

from spectail.models.formats.table import FORMATS

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def is_hub_id(text: str) -> bool:
    """Whether a text that is no path looks like ``org/name``."""
    # ``models/net.pt`` is a mistyped path and no hub id.
    endings = (".json", *(suffix for form in FORMATS for suffix in form.suffixes))
    return bool(_HUB_ID.match(text)) and not text.lower().endswith(endings)
