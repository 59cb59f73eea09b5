"""Addresses of models elsewhere: ``hf://``, ``s3://``, ``gs://`` and ``https://``."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from spectail.basics.addresses import without_secrets
from spectail.errors import SourceError
from spectail.models.formats.buckets import BUCKETS
from spectail.models.formats.folders import path_source
from spectail.models.formats.hub import HubRepository, hub_address
from spectail.models.formats.remote_path import RemotePath
from spectail.models.formats.web import WebFile, WebFolder
from spectail.models.source import Source


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
        name, revision, path = hub_address(rest)
        return RemotePath(HubRepository(name, revision), path)
    if "@" in parts.netloc:
        raise SourceError(
            f"{place} holds credentials, which are not read from an address; give them as the "
            "libraries of the service expect them, for example in environment variables"
        )
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise SourceError(
            f"{without_secrets(address)!r} names no bucket; expected {scheme}://bucket/folder"
        )
    return RemotePath(BUCKETS[scheme](bucket), key.strip("/"))


def _on_the_web(address: str) -> RemotePath:
    """Return the path of an address of a web server: its folder, and the name in it."""
    parts = urlsplit(address)
    if not parts.hostname:
        raise SourceError("the address names no server; expected https://host/path")
    if re.search(r"[\x00-\x1f\x7f]", unquote(parts.path)):
        raise SourceError(
            f"{without_secrets(address)} is no valid address: it has control characters"
        )
    folder, _, name = parts.path.rpartition("/")
    if "/" in unquote(name):
        return RemotePath(WebFile(urlunsplit(parts._replace(fragment=""))), "")
    # A lone % stands for itself.
    key = unquote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", name))
    return RemotePath(WebFolder(urlunsplit(parts._replace(path=folder, fragment=""))), key)
