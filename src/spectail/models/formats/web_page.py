"""Pages of web servers, which are read whole: listings of folders and answers of the hub.

obstore is made for files and refuses an answer that does not say how long it is, as pages that are
made on request often do not. So these few are read with Python's own library.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from spectail.basics.texts import first_line
from spectail.errors import SourceError, SourceUnreachableError
from spectail.models.formats import waiting
from spectail.models.formats.retry_after import asked_wait, wait_as_asked
from spectail.models.formats.store_errors import failure, unanswered
from spectail.models.formats.stores import pauses
from spectail.models.formats.waiting import waiting_for

_LONGEST = 2**26
"""Bytes after which a page is too long to be a listing."""


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, and keeps the password from other servers."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """Return the request that follows a redirect."""
        if urlsplit(newurl).scheme not in {"http", "https"}:
            return None  # Python's library would follow one to ftp
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        # From https to http, it would be sent in the clear to the same server.
        if request and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            request.remove_header("Authorization")
        return request


def read_page(url: str, shown: str, headers: Mapping[str, str]) -> bytes:
    """Read a page; a failed request is repeated as one for a file is.

    Args:
        url: The address, without user and password.
        shown: The address for messages.
        headers: What is sent with the request.

    Raises:
        FileNotFoundError: There is no such page.
        SourceError: It cannot be read.

    """
    rest, started = pauses(), time.monotonic()
    while True:
        status, cause, wait = "", "", 0.0
        try:
            content = _read(Request(url, headers=dict(headers)), shown)
            if len(content) > _LONGEST:
                raise SourceError(f"{shown} is too long for a listing; name the file to open")
            return content
        except HTTPError as error:
            status = _status(error)
            wait = asked_wait(error.headers.get("Retry-After")) if error.code in {429, 503} else 0.0
            error.close()
        except (ValueError, http.client.InvalidURL):
            raise SourceError(f"{shown} cannot be read: a redirect is no valid address") from None
        except (URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            cause = _cause(reason if isinstance(reason, Exception) else error)
            # The resolver has tried several times itself.
            if isinstance(reason, socket.gaierror):
                raise SourceUnreachableError(
                    f"{shown} cannot be read: the server's name is not known ({cause})"
                ) from None
            if time.monotonic() - started > waiting.RETRY.total_seconds():
                raise (
                    unanswered(shown)
                    if isinstance(reason, TimeoutError)
                    else failure(shown, status, cause)
                ) from None
        pause = next(rest, None)
        if pause is None or not _may_pass(status):
            raise failure(shown, status, cause)
        if wait:
            wait_as_asked(wait, shown)
        else:
            time.sleep(pause)


def wait_of(url: str, headers: Mapping[str, str]) -> float:
    """Ask a busy server for one byte of a file, to learn how long it wants to be left alone."""
    try:
        refusal = _refusal(url, headers)
    except (OSError, http.client.HTTPException, ValueError):
        return 0.0
    # Without a refusal, it answers again.
    return asked_wait(refusal.headers.get("Retry-After")) if refusal else 0.1


def status_of(url: str, headers: Mapping[str, str]) -> str:
    """Ask for one byte of a file; return the status of a refusal, empty if there is none."""
    try:
        refusal = _refusal(url, headers)
    except (OSError, http.client.HTTPException, ValueError):
        return ""
    return _status(refusal) if refusal else ""


def _refusal(url: str, headers: Mapping[str, str]) -> HTTPError | None:
    """Ask for one byte of a file; return the server's refusal, or None if it answers."""
    request = Request(url, headers={**headers, "Range": "bytes=0-0"})
    try:
        with build_opener(_Redirects).open(request, timeout=waiting.ANSWER.total_seconds()):
            return None
    except HTTPError as error:
        error.close()
        return error


def _status(error: HTTPError) -> str:
    """Return a status such as ``404 Not Found``: not the server's words, which may be anything."""
    return f"{error.code} {http.client.responses.get(error.code, '')}".rstrip()


def _cause(error: Exception) -> str:
    """Say in one line what happened to a connection, without the server's own words."""
    return next((words for kind, words in _CAUSES if isinstance(error, kind)), first_line(error))


_CAUSES = (
    (http.client.RemoteDisconnected, "the server breaks the connection"),
    (http.client.IncompleteRead, "the server breaks off its answers"),
    (http.client.HTTPException, "the server's answer is no HTTP"),
)
"""What the errors of Python's library mean, the general one last."""


def _read(request: Request, shown: str) -> bytes:
    """Read a page, or its first bytes if it is too long."""
    opener = build_opener(_Redirects)
    with waiting_for(urlsplit(request.full_url).netloc, shown):
        answer = opener.open(request, timeout=waiting.ANSWER.total_seconds())
    with answer:
        content: bytes = answer.read(_LONGEST + 1)
    return content


def _may_pass(status: str) -> bool:
    """Whether a failure may pass: that of the server or of the connection, not of the request."""
    return not status.startswith("4") or status[:3] in {"408", "429"}
