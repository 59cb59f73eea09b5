"""Places elsewhere that hold files: buckets, web servers and repositories of the Hugging Face hub.

All are read through obstore (the Rust library ``object_store``), which repeats a request after a
server error, a broken connection or a body that ends early, and which refuses a server that ignores
the asked-for range. fsspec's HTTP file system does none of these: it returns the whole file as if
it were the range.
"""

from __future__ import annotations

import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Protocol

from spectail.basics.texts import type_and_line, visible
from spectail.errors import SourceError
from spectail.models.formats import waiting
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.retry_after import TIMES, wait_as_asked
from spectail.models.formats.store_errors import (
    RETRIES,
    BusyError,
    PastEndError,
    RangesIgnoredError,
    explained,
    failure,
    is_silence,
)
from spectail.models.formats.waiting import waiting_for

WAITS: dict[str, Any] = {
    "init_backoff": timedelta(milliseconds=200),
    "max_backoff": timedelta(seconds=10),
    "base": 2,
}
"""Waits before a request is repeated: they grow from 0.2 s to 10 s, with some randomness."""
IN_FLIGHT = 4
"""Requests for parts of files that run at the same time."""
_SLOTS = threading.BoundedSemaphore(IN_FLIGHT)
"""Shared by the whole process, since each layer that is measured asks for its own parts."""
_LONGEST = timedelta(days=1)
"""How long one answer may take as long as its bytes arrive; obstore has no way to say for ever."""


@dataclass(frozen=True)
class RemoteStamp:
    """What changes when a remote file is replaced: its size, and its ETag or else its date."""

    size: int
    tag: str


@dataclass(frozen=True)
class Piece:
    """Bytes of a remote file, and the stamp of the file that they were read from."""

    data: memoryview
    stamp: RemoteStamp


class Place(FilePath, Protocol):
    """A path in a store: a ``RemotePath``."""

    store: Store
    key: str

    @property
    def parent(self) -> Place:
        """The folder that the path lies in."""

    def open(self) -> ReadableFile:
        """Open the file, once."""


class Store(ABC):
    """A place elsewhere that holds files by key (``folder/name``)."""

    extra: str
    """The extra of this package that has what the store needs."""

    def __init__(self, shown: str) -> None:
        """Take the place's address without secrets, as messages show it."""
        self.shown = shown
        self.files: dict[str, ReadableFile] = {}
        """The files opened so far, by key."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the address and what it needs; connections and files are opened again."""
        kept = {key: value for key, value in vars(self).items() if key != "client"}
        return {**kept, "files": {}}

    @abstractmethod
    def _opened(self, obstore: Any) -> Any:
        """Open the place with obstore, which is passed as a module."""

    @abstractmethod
    def names(self, folder: str) -> Mapping[str, bool]:
        """Return the names in a folder, with True for a folder; empty if there is no such folder.

        Raises:
            SourceError: The place cannot be listed.

        """

    def holds_file(self, path: Place) -> bool:
        """Whether there is a file of this path."""
        return bool(path.key) and self.names(path.parent.key).get(path.name) is False

    def holds_folder(self, path: Place) -> bool:
        """Whether there is a folder of this path."""
        return bool(self.names(path.key))

    def identity(self, key: str) -> str:
        """Return what identifies the content of a file, if the place knows it; else nothing."""
        return ""

    def address(self, key: str) -> str:
        """Return a file's address without secrets."""
        return visible(f"{self.shown}/{key}" if key else self.shown)

    @cached_property
    def client(self) -> Any:
        """The opened store of obstore."""
        try:
            import obstore.store
        except ImportError:
            raise self.missing("obstore") from None
        try:
            return self._opened(obstore.store)
        except SourceError:
            raise
        except Exception as error:  # noqa: BLE001 - obstore has classes of its own for bad settings
            # The address is left out, since it may hold secrets.
            cause = re.sub(r"\S*://\S*", "...", type_and_line(error))
            raise SourceError(f"{self.shown} cannot be opened ({cause[:200]})") from None

    def missing(self, package: str) -> SourceError:
        """Return the error for a package that is not installed."""
        return SourceError(
            f"reading {self.shown} needs the package {package}; "
            f"install it with: pip install 'spectail[{self.extra}]'"
        )

    def get(self, key: str, start: int, end: int) -> Piece:
        """Read the bytes from ``start`` to ``end``, or fewer at the end of the file.

        A server may send fewer, or more; how many more is not known then.

        Raises:
            FileNotFoundError: There is no such file.
            RangesIgnoredError: The server sends the whole file only.
            SourceError: The file cannot be read.

        """
        for _ in range(TIMES):
            try:
                return self._part(key, start, end)
            except BusyError:
                if not (wait := self.asked_wait(key)):
                    raise
                wait_as_asked(wait, self.shown)
        return self._part(key, start, end)

    def asked_wait(self, key: str) -> float:
        """Return the seconds after which a busy server wants to be asked again, 0 if it says none.

        obstore does not show the header that says so.
        """
        return 0.0

    def status(self, key: str) -> str:
        """Ask for the status of a refused file, such as ``404 Not Found``; empty if unknown."""
        return ""

    def _part(self, key: str, start: int, end: int) -> Piece:
        """Read a part as ``get`` does, unless the server is busy."""
        rest, silent = pauses(), 0
        while True:
            with _SLOTS:
                try:
                    answer = self._answer(key, {"range": (start, end)})
                except PastEndError:
                    if start:
                        raise
                    return Piece(memoryview(b""), self.whole(key)[0])
                try:
                    return Piece(_body(answer, end - start), _stamp(answer.meta))
                except Exception as error:  # noqa: BLE001 - obstore raises OSError and its own
                    silent += is_silence(error)
                    pause = next(rest, None)
                    found = explained(error, self.address(key))
                    # obstore itself goes on with a body that broke off, but only if it has an ETag.
                    # If the body was too long, it may ask for what lies past the end of the file.
                    again = not answer.meta["e_tag"] or isinstance(found, PastEndError)
                    if not again or pause is None or silent > 1:
                        raise found from None
            time.sleep(pause)

    def whole(self, key: str) -> tuple[RemoteStamp, Iterator[bytes]]:
        """Return the stamp of a file, and the pieces of the whole file in order.

        Nothing but the stamp is fetched as long as no piece is asked for.

        Raises:
            FileNotFoundError: There is no such file.
            SourceError: The file cannot be read.

        """
        answer = self._answer(key)
        return _stamp(answer.meta), self._pieces(answer, key)

    def _answer(self, key: str, options: Any = None) -> Any:
        """Ask for a file, and return obstore's answer as soon as it begins."""
        client = self.client
        import obstore

        try:
            with waiting_for(self.shown, self.address(key)):
                return obstore.get(client, key, options=options)
        except Exception as error:  # noqa: BLE001 - obstore raises OSError and classes of its own
            if type(error).__name__ == "NotSupportedError":
                raise RangesIgnoredError from None
            # obstore loses the status if the page that comes with it is no UTF-8.
            if "FromUtf8Error" in str(error) and (status := self.status(key)):
                raise failure(self.address(key), status, "") from None
            raise explained(error, self.address(key)) from None

    def _pieces(self, result: Any, key: str) -> Iterator[bytes]:
        """Yield the pieces of an answer as they arrive."""
        try:
            for piece in result.stream(min_chunk_size=2**20):
                yield bytes(piece)
        except Exception as error:  # noqa: BLE001 - obstore raises OSError and classes of its own
            raise explained(error, self.address(key)) from None


def settings(*, plain_http: bool, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the arguments that every store of obstore is opened with."""
    options: dict[str, Any] = {
        "connect_timeout": waiting.CONNECT,
        "read_timeout": waiting.ANSWER,
        "timeout": _LONGEST,
        "allow_http": plain_http,
    }
    if headers:
        options["default_headers"] = dict(headers)
    retries = {"max_retries": RETRIES, "retry_timeout": waiting.RETRY, "backoff": WAITS}
    return {"client_options": options, "retry_config": retries}


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each further try of a request that failed."""
    wait = WAITS["init_backoff"].total_seconds()
    for _ in range(RETRIES):
        # Random, so that many programs that failed together do not come back together.
        yield wait * random.uniform(0.5, 1)
        wait = min(wait * WAITS["base"], WAITS["max_backoff"].total_seconds())


def _body(answer: Any, most: int) -> memoryview:
    """Return the bytes of an answer; one that is longer than ``most`` bytes ends somewhere after.

    obstore's own ``bytes`` keeps all that a server sends, which may never end.
    """
    body = bytearray()
    for piece in answer.stream(min_chunk_size=2**20):
        body += memoryview(piece)
        if len(body) > most:
            break
    return memoryview(body)


def _stamp(meta: Mapping[str, Any]) -> RemoteStamp:
    """Return the stamp of obstore's description of a file."""
    # A server that states no date is said to state the beginning of 1970.
    date = meta["last_modified"]
    dated = date.isoformat() if date.timestamp() else ""
    # Proxies mark a tag as weak on their way; an empty one would be that of every file.
    tag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
    return RemoteStamp(meta["size"], tag or dated)
