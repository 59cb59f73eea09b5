"""Folders of a web server: files by their addresses, and the names that a listing page shows."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from spectail.errors import SourceError, SourceUnreachableError
from spectail.models.formats.foreign import is_page
from spectail.models.formats.store_errors import AccessDeniedError, LengthUnknownError
from spectail.models.formats.stores import Place, Store, settings
from spectail.models.formats.table import endings
from spectail.models.formats.usual_names import usual_names
from spectail.models.formats.web_page import read_page, status_of, wait_of

_FILE_NAME = re.compile(r"\.[A-Za-z][A-Za-z0-9]+$")
"""The end of a name that is a file's (``model.gguf``) and no folder's (``Qwen2.5``)."""


class WebFolder(Store):
    """A folder of a web server, and what lies below it.

    A user and password in the address are sent as HTTP basic authentication, and its query with
    every request; neither is shown.
    """

    extra = "http"

    def __init__(self, url: str) -> None:
        """Take the folder's address."""
        self._parts = _encoded(urlsplit(url))
        self._user, _, self._host = self._parts.netloc.rpartition("@")
        shown = (self._parts.scheme, self._host, unquote(self._parts.path), "", "")
        super().__init__(urlunsplit(shown).rstrip("/"))
        self._names: dict[str, dict[str, bool]] = {}

    def names(self, folder: str) -> Mapping[str, bool]:
        """Return the names that the server's listing page shows, else the usual ones that exist."""
        if folder not in self._names:
            found = self._shown_names(folder)
            # A page that names no file of a model is no listing.
            if not any(name.endswith((".json", ".safetensors")) for name in found):
                found |= usual_names(self, folder)
            self._names[folder] = found
        return self._names[folder]

    def holds_file(self, path: Place) -> bool:
        """Whether there is a file of this path; a web page in place of another file is none."""
        if not path.key:
            return False
        try:
            file = path.open()
        except FileNotFoundError:
            return False
        except LengthUnknownError:
            # Most likely the listing page of a folder, which may be called ``net.v2``.
            if path.name.lower().endswith((".json", *endings())):
                raise
            return False
        # Some servers answer with a page, and no error, for every name that they do not have.
        # A page under another name is reported when it is read as weights.
        named = _FILE_NAME.search(path.name) and not path.name.endswith(".json")
        return bool(named) or not is_page(file)

    def holds_folder(self, path: Place) -> bool:
        """Whether there is a folder of this path: no file, and with known names."""
        return not self._is_file(path) and bool(self.names(path.key))

    def _is_file(self, path: Place) -> bool:
        """Whether a path is a file; servers deny access to folders that they do not list."""
        try:
            return self.holds_file(path)
        except AccessDeniedError:
            if _FILE_NAME.search(path.name):
                raise
            return False

    def asked_wait(self, key: str) -> float:
        """Return the seconds after which the server wants to be asked again."""
        return wait_of(self._file(key), self._headers())

    def status(self, key: str) -> str:
        """Ask for the status of a refused file."""
        return status_of(self._file(key), self._headers())

    def _file(self, key: str) -> str:
        """Return the address of a file, without user and password."""
        path = f"{self._parts.path.rstrip('/')}/{quote(key)}" if key else self._parts.path
        return self._address(path)

    def _opened(self, obstore: Any) -> Any:
        """Open the folder; keys are appended to its address."""
        given = settings(plain_http=self._parts.scheme == "http", headers=self._headers())
        return obstore.HTTPStore.from_url(self._address(self._parts.path.rstrip("/")), **given)

    def _address(self, path: str, query: str | None = None) -> str:
        """Return the address of a path on the server, without user and password."""
        query = self._parts.query if query is None else query
        return urlunsplit((self._parts.scheme, self._host, path, query, ""))

    def _headers(self) -> dict[str, str]:
        """Return what is sent with every request."""
        if not self._user:
            return {}
        user = self._user if ":" in self._user else f"{self._user}:"
        secret = base64.b64encode(unquote(user).encode()).decode()
        return {"Authorization": f"Basic {secret}"}

    def _shown_names(self, folder: str) -> dict[str, bool]:
        """Return the names on the server's page for a folder, if there is such a page."""
        # With a slash at the end, servers answer with the listing and not with a redirect to it.
        path = f"{self._parts.path.rstrip('/')}/{quote(folder)}".rstrip("/") + "/"
        try:
            page = read_page(self._address(path), self.address(folder), self._headers())
        except SourceUnreachableError:
            raise
        except (FileNotFoundError, SourceError):
            return {}
        return names_on_page(page.decode("utf-8", "replace"), self._address(path, ""))


class WebFile(WebFolder):
    """One file of a web server in whose name a slash is encoded: ``/o/folder%2Fmodel.safetensors``.

    Nothing can be found beside it, since its folder is a part of its name.
    """

    def names(self, folder: str) -> Mapping[str, bool]:
        """Return no names."""
        return {}

    def holds_file(self, path: Place) -> bool:
        """Whether the path is that of the file, and there is one."""
        if path.key:
            return False
        with suppress(FileNotFoundError):
            path.open()
            return True
        return False


def _encoded(parts: SplitResult) -> SplitResult:
    """Return the parts of an address that may hold spaces, letters of all scripts and lone ``%``.

    What is encoded already stays as it is.
    """

    def encoded(text: str, kept: str) -> str:
        return quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", text), safe=f"%{kept}")

    marks = "/:@!$&'()*+,;=~"
    return parts._replace(path=encoded(parts.path, marks), query=encoded(parts.query, marks + "?"))


def names_on_page(text: str, url: str) -> dict[str, bool]:
    """Return the names that the listing page of a folder links to, with True for folders.

    >>> names_on_page('<a href="../">up</a> <a href="a%20b.bin"> <a href="/m/sub/">', "https://h/m/")
    {'a b.bin': False, 'sub': True}
    """
    links = _Links()
    links.feed(text)
    names = {}
    for link in links.found:
        # Links may be relative or whole addresses; one with a query only sorts the listing.
        try:
            target = urljoin(url, link)
        except ValueError:  # half an IPv6 address, for example
            continue
        inside = unquote(target.removeprefix(url))
        name = inside.rstrip("/")
        if target.startswith(url) and name and not re.search(r"[/?#]", name):
            names[name] = inside.endswith("/")
    return names


class _Links(HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember a link's target."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]
