"""What went wrong with a file elsewhere: errors, and the words for those of obstore."""

from __future__ import annotations

import re

from spectail.errors import SourceError, SourceUnreachableError
from spectail.models.formats import waiting

RETRIES = 6
"""How often a request is repeated, unless the server is silent for long (``waiting.RETRY``)."""


class RangesIgnoredError(Exception):
    """A server answers the request for a part of a file with the whole file."""


class LengthUnknownError(SourceError):
    """A server does not say how long a file is, as for pages that it makes on request."""


class PastEndError(SourceError):
    """A range lies behind the end of a file."""


class UnnameableError(SourceError):
    """A file, or one of those in a folder, has a name that obstore does not read."""


class BusyError(SourceUnreachableError):
    """A server is asked too often, or has too much to do."""


class AccessDeniedError(SourceError):
    """A file may not be read, or not with these credentials."""


_ANOTHER_NAME = (
    "an empty part, '.', '..' or a control character in a path is not supported; copy the model "
    "to another name"
)
_EXPIRED = "the credentials have expired; ask for new ones"
_TOLD: tuple[tuple[str, type[SourceError], str], ...] = (
    (
        "token request",
        AccessDeniedError,
        "no credentials were found, or they are not accepted; for a public bucket of Google set "
        "GOOGLE_SKIP_SIGNATURE=true",
    ),
    (
        "MissingContentLength",
        LengthUnknownError,
        "the server does not say how long its answer is; download it",
    ),
    ("parsing Path", UnnameableError, _ANOTHER_NAME),
    ("empty path segment", UnnameableError, _ANOTHER_NAME),
    # Codes of S3, whose statuses do not tell them apart.
    ("<Code>ExpiredToken<", AccessDeniedError, _EXPIRED),
    ("<Code>TokenRefreshRequired<", AccessDeniedError, _EXPIRED),
    (
        "<Code>InvalidToken<",
        AccessDeniedError,
        "the session token is not valid; ask for new credentials",
    ),
    (
        "<Code>RequestTimeTooSkewed<",
        AccessDeniedError,
        "the clock of this machine is wrong; set it",
    ),
    (
        "<Code>AuthorizationHeaderMalformed<",
        AccessDeniedError,
        "the bucket has another region; set AWS_DEFAULT_REGION",
    ),
    ("<Code>InvalidObjectState<", AccessDeniedError, "it lies in an archive; restore it first"),
)
"""Parts of obstore's messages that say what went wrong, and the error for each."""
_CAUSES = (
    ("dns error", "the server's name is not known"),
    ("certificate", "the server's certificate is not trusted"),
    ("Connection refused", "the connection is refused"),
    ("ConnectError", "there is no connection to the server"),
    ("IncompleteBody", "the server breaks off its answers"),
    ("ConnectionReset", "the server breaks the connection"),
    ("IncompleteMessage", "the server breaks the connection"),
)
"""Parts of obstore's messages, and what they mean."""
_OTHER_RANGE = "the server answers with another range than the one asked for"
_SENSELESS = (
    ("UnexpectedRange", _OTHER_RANGE),
    ("ParseContentRange", _OTHER_RANGE),
    ("Content-Range", _OTHER_RANGE),
    ("Header {", "a header of the server's answer is damaged"),
    ("TooManyRedirects", "there are too many redirects"),
    ("BareRedirect", "the server's redirect leads nowhere"),
    ("kind: Builder", "the server's redirect leads to an address that is not read"),
    ("Parse(", "the server's answer is no HTTP"),
)
"""The same for answers that obstore does not ask for again, because they make no sense."""


def explained(error: Exception, shown: str) -> Exception:
    """Return the error to raise for one of obstore's.

    Its own text is not shown: it holds the whole address, which may be signed, and the server's
    answer.
    """
    kind, text = type(error).__name__, str(error)
    match = re.search(r"status code: (\d{3}(?: [A-Za-z][A-Za-z ]*)?)", text)
    status = match[1].strip() if match else ""
    if isinstance(error, FileNotFoundError):
        status = "404"
    elif kind in {"PermissionDeniedError", "UnauthenticatedError"}:
        status = status or "403"
    for part, error_class, words in _TOLD:
        if part in text:
            return error_class(f"{shown} cannot be read: {words}")
    if is_silence(error):
        return unanswered(shown)
    for part, words in _SENSELESS:
        if part in text:
            return SourceUnreachableError(f"{shown} cannot be read: {words}; download it")
    return failure(shown, status, next((words for part, words in _CAUSES if part in text), ""))


def is_silence(error: Exception) -> bool:
    """Whether an error of obstore means that a server has sent nothing for long."""
    return "operation timed out" in str(error) or "TimedOut" in str(error)


def unanswered(shown: str) -> SourceError:
    """Return the error to raise for a server that has sent nothing for long."""
    return SourceUnreachableError(
        f"{shown} cannot be read: the server has not answered for about {waiting.silence()}; "
        "run the same command again"
    )


def failure(shown: str, status: str, cause: str) -> Exception:
    """Return the error to raise for a status of HTTP, such as ``503 Service Unavailable``.

    Without a status, ``cause`` says what happened to the connection.
    """
    if status[:3] in {"404", "410"}:
        return FileNotFoundError(f"there is no {shown}")
    if status[:3] == "416":
        return PastEndError(f"{shown} cannot be read: it is shorter than it was")
    if status[:3] in {"401", "403"}:
        return AccessDeniedError(
            f"{shown} cannot be read: access is denied ({status}); "
            "check the address and the credentials"
        )
    # Requests that the server refuses are not repeated, except those that came too fast or late.
    # A redirect is left over only if it leads nowhere.
    if status.startswith(("3", "4")) and status[:3] not in {"408", "429"}:
        return SourceError(f"{shown} cannot be read: the server answers {status}")
    kind = BusyError if status[:3] in {"429", "503"} else SourceUnreachableError
    what = status or cause or "the server cannot be reached or breaks off its answers"
    return kind(
        f"{shown} cannot be read: {what}, also after {RETRIES} more tries; "
        "run the same command again"
    )
