"""Addresses of models elsewhere: ``hf://``, ``s3://``, ``gs://`` and ``https://``."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from spectail.errors import SourceError
from spectail.models.formats.buckets import BUCKETS
from spectail.models.formats.folders import path_source
from spectail.models.formats.hub import HubRepository
from spectail.models.formats.remote_path import RemotePath
from spectail.models.formats.web import WebFolder
from spectail.models.source import Source

_ADDRESS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_REPOSITORY = re.compile(r"^([\w.-]+(?:/[\w.-]+)?)(?:@([^/]+))?(?:/(.*))?$")
"""A repository of the hub with a revision and a path: ``org/name@main/folder``."""


def is_address(text: str) -> bool:
    """Whether a text is an address, such as ``s3://bucket/folder``."""
    return bool(_ADDRESS.match(text))


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


def remote_source(address: str) -> Source:
    """Open a model elsewhere: a file, an index of shards or a folder. Only headers are read."""
    path = remote_path(address)
    if not path.exists():
        raise SourceError(
            f"there is no model at {path}; expected a checkpoint file, an index of shards "
            "or a folder with one"
        )
    return path_source(path, label=str(path))


def hub_source(name: str) -> Source:
    """Open a model of the hub by its id."""
    path = RemotePath(HubRepository(name), "")
    try:
        path.exists()
    except SourceError as error:
        # It may have been meant as a path.
        raise type(error)(
            f"no such file or folder: {name!r}; as a hub id, it could not be read: {error}"
        ) from None
    return path_source(path, label=name)


def remote_path(address: str) -> RemotePath:
    """Return the path of an address.

    Raises:
        SourceError: The address is of an unknown kind or incomplete.

    """
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        raise SourceError(f"{without_secrets(address)} is no valid address") from None
    scheme = parts.scheme.lower()
    if scheme in {"http", "https"}:
        return _on_the_web(address)
    place = f"{scheme}://{parts.netloc.rpartition('@')[2]}"
    if scheme not in {"hf", *BUCKETS}:
        raise SourceError(
            f"addresses of the kind {scheme}:// are not read; "
            "expected hf://, s3://, gs:// or https://"
        )
    rest = address.partition("://")[2].strip("/")
    if scheme == "hf":
        return _on_the_hub(rest)
    if "@" in parts.netloc:
        raise SourceError(
            f"{place} holds credentials, which are not read from an address; give them as the "
            "libraries of the service expect them, for example in environment variables"
        )
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise SourceError(f"{address!r} names no bucket; expected {scheme}://bucket/folder")
    return RemotePath(BUCKETS[scheme](bucket), key.strip("/"))


def _on_the_web(address: str) -> RemotePath:
    """Return the path of an address of a web server: its folder, and the name in it."""
    parts = urlsplit(address)
    if not parts.hostname:
        raise SourceError("the address names no server; expected https://host/path")
    folder, _, name = parts.path.rpartition("/")
    return RemotePath(
        WebFolder(urlunsplit(parts._replace(path=folder, fragment=""))), unquote(name)
    )


def _on_the_hub(rest: str) -> RemotePath:
    """Return the path of ``org/name@revision/path``; the last two may be missing."""
    match = _REPOSITORY.match(rest)
    if match is None:
        raise SourceError(f"'hf://{rest}' names no model; expected hf://org/name")
    revision = unquote(match[2]) if match[2] else None
    return RemotePath(HubRepository(match[1], revision), (match[3] or "").strip("/"))
