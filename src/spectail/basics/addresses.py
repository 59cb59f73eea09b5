"""Addresses of places elsewhere, and how they are shown: without their secrets."""

from __future__ import annotations

import re


def is_address(text: str) -> bool:
    """Whether a text is an address, such as ``s3://bucket/folder``.

    >>> is_address("s3://bucket/folder"), is_address("s3:/bucket"), is_address("models/net.pt")
    (True, False, False)
    """
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text))


def unfolded(path: str) -> str:
    """Return an address that ``pathlib`` has folded, as it was typed; other paths as they are.

    >>> unfolded("s3:/bucket/folder"), unfolded("C:/models"), unfolded("runs/a")
    ('s3://bucket/folder', 'C:/models', 'runs/a')
    """
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])", r"\1://", path)


def without_secrets(text: str) -> str:
    """Return an address without user, password and query; other texts as they are.

    >>> without_secrets("https://me:password@host/model.safetensors?signature=x")
    'https://host/model.safetensors'
    """
    if not is_address(text):
        return text
    scheme, _, rest = text.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
