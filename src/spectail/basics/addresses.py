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

    Of a text that was mistyped, what may be an address loses its secrets.

    >>> without_secrets("https://me:password@host/model.safetensors?signature=x")
    'https://host/model.safetensors'
    >>> without_secrets("https://me:pass/word@host/model"), without_secrets("hf://model@main")
    ('https://host/model', 'hf://model@main')
    """
    if not is_address(text):
        return message_without_secrets(text)
    place = text.index("://") + 3
    return text[:place] + _shown(text[place:], hub=text.lower().startswith("hf:"))


def message_without_secrets(message: str) -> str:
    """Return a message without user, password and query of all addresses in it.

    >>> message_without_secrets("no file 'https:/me:password@host/text?signature=x'; give a path")
    "no file 'https:/host/text'; give a path"
    """

    def shown(found: re.Match[str]) -> str:
        return found[1] + _shown(found[2], hub=found[1].lower().startswith("hf:"))

    return _USER.sub("", _ADDRESS.sub(shown, message))


_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/{1,3})([^\s'\"/][^\s'\"]*)")
"""An address within a text, with one slash or more behind its scheme."""
_USER = re.compile(r"[^\s'\"/\\:@]+:[^\s'\"/\\:]+@")
"""A user and a password without a scheme before them."""


def _shown(rest: str, *, hub: bool) -> str:
    """Return what follows the scheme of an address, without secrets."""
    slashes = rest[: len(rest) - len(rest.lstrip("/"))]
    place, path = _split(rest.lstrip("/"))
    # A colon without a port behind it: the password has a slash, ? or # in it, and goes on there.
    if "@" not in place and re.search(r":(?![0-9]*$)", re.sub(r"^\[[^]]*\]", "", place)):
        place, path = _split(rest.rpartition("@")[2])
    user, _, host = place.rpartition("@")
    # The revision of ``hf://name@revision`` is no host.
    return slashes + (place if hub and ":" not in user else host) + re.split("[?#]", path)[0]


def _split(rest: str) -> tuple[str, str]:
    """Split what follows the scheme of an address into the server with its user, and the rest."""
    end = re.search("[/?#]|$", rest)
    place = end.start() if end else len(rest)
    return rest[:place], rest[place:]
