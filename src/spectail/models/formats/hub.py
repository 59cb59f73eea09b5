"""Models on the Hugging Face hub: what their names look like, and their files by ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from spectail.basics.addresses import without_secrets
from spectail.basics.schema import checked, parse_json
from spectail.errors import SourceError
from spectail.models.formats.model_files import is_whole
from spectail.models.formats.store_errors import AccessDeniedError
from spectail.models.formats.stores import Store, settings
from spectail.models.formats.table import endings
from spectail.models.formats.web_page import read_page, status_of, wait_of

T = TypeVar("T")

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")

_REPOSITORY = re.compile(
    r"^([\w.-]+/[\w.-]+|[\w.-]+(?=@|$))(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?$"
)
"""A repository of the hub with a revision and a path: ``org/name@main/folder``. Some names have no
``org/``; what follows a slash is a name then, never a path, or a typo would name another model."""


def is_hub_id(text: str) -> bool:
    """Whether a text that is no path looks like ``org/name``."""
    # ``models/net.pt`` is a mistyped path and no hub id.
    return bool(_HUB_ID.match(text)) and not text.lower().endswith((".json", *endings()))


def hub_address(place: str) -> tuple[str, str | None, str]:
    """Return the id, the revision and the path of ``org/name@revision/path`` behind ``hf://``.

    Raises:
        SourceError: It names no model.

    >>> hub_address("org/name@main/folder"), hub_address("org/name/")
    (('org/name', 'main', 'folder'), ('org/name', None, ''))

    """
    match = _REPOSITORY.match(place.strip("/"))
    if match is None:
        shown = without_secrets(f"hf://{place}")
        raise SourceError(f"{shown!r} names no model; expected hf://org/name")
    return match[1], unquote(match[2]) if match[2] else None, (match[3] or "").strip("/")


def advice_on_cache(source: str) -> str:
    """Return what to do if two machines open two models under a hub id; empty for other names.

    >>> advice_on_cache("org/name")[-45:], advice_on_cache("hf://org/name")
    ('give hf://org/name to read the hub everywhere', '')
    """
    if not is_hub_id(source):
        return ""
    return (
        "; a copy in the hub's cache counts as another model than that on the hub: "
        f"give hf://{source} to read the hub everywhere"
    )


def cached_folder(name: str) -> Path | None:
    """Return the folder of a model in the hub's cache on this machine; None if it is not whole."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        folder: str | None = snapshot_download(name, local_files_only=True)
    except (OSError, ValueError) as error:
        # Files of the repository are missing, though perhaps none of the model.
        folder = getattr(error, "snapshot_path", None)
    return Path(folder) if folder and is_whole(Path(folder)) else None


class HubRepository(Store):
    """A model repository of the hub at one commit, which never changes.

    Token and endpoint are those that huggingface_hub finds: ``HF_TOKEN`` or a stored login, and
    ``HF_ENDPOINT``.
    """

    extra = "hf"

    def __init__(self, name: str, revision: str | None = None) -> None:
        """Take the repository's id and a branch, tag or commit."""
        super().__init__(f"hf://{name}" + (f"@{revision}" if revision else ""))
        self._name, self._revision = name, revision
        self._hashes: dict[str, str] | None = None

    def names(self, folder: str) -> Mapping[str, bool]:
        """Return the names in a folder."""
        before = f"{folder}/" if folder else ""
        inside = [key.removeprefix(before) for key in self._files() if key.startswith(before)]
        return {key.partition("/")[0]: "/" in key for key in inside}

    def identity(self, key: str) -> str:
        """Return the hash of a file's content."""
        return self._files().get(key, "")

    def asked_wait(self, key: str) -> float:
        """Return the seconds after which the hub wants to be asked again."""
        return wait_of(*self._file(key))

    def status(self, key: str) -> str:
        """Ask for the status of a refused file."""
        return status_of(*self._file(key))

    def _file(self, key: str) -> tuple[str, dict[str, str]]:
        """Return the address of a file, and what is sent with a request for it."""
        endpoint, headers = self._hub()
        return f"{endpoint}/{self._place()}/{quote(key)}", headers

    def _opened(self, obstore: Any) -> Any:
        """Open the commit's files. Requests are redirected to where the hub keeps large files."""
        self._files()
        endpoint, headers = self._hub()
        # obstore follows redirects to other servers without the token.
        given = settings(plain_http=endpoint.startswith("http://"), headers=headers)
        return obstore.HTTPStore.from_url(f"{endpoint}/{self._place()}", **given)

    def _place(self) -> str:
        """Return the path of the commit's files on the hub."""
        return f"{self._name}/resolve/{quote(str(self._revision), safe='')}"

    def _hub(self) -> tuple[str, dict[str, str]]:
        """Return the hub's address, and what is sent with every request."""
        try:
            from huggingface_hub import constants, get_token
        except ImportError:
            raise self.missing("huggingface_hub") from None
        if constants.HF_HUB_OFFLINE:
            raise SourceError(
                f"HF_HUB_OFFLINE forbids to ask the hub for {self.shown}; a model that is whole in "
                f"the hub's cache is read from there by its id, {self._name}"
            )
        if not re.match(r"https?://[^/\s]+", constants.ENDPOINT):
            raise SourceError(
                f"HF_ENDPOINT is {without_secrets(constants.ENDPOINT)!r}; expected https://host"
            )
        headers = {"User-Agent": "spectail"}
        # The library's own function for this asks the hub for a list of programs first.
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return constants.ENDPOINT, headers

    def _files(self) -> dict[str, str]:
        """Ask the hub, once, for the commit and for all files with the hashes of their contents."""
        if self._hashes is None:
            at = f"/revision/{quote(self._revision, safe='')}" if self._revision else ""
            info = self._asked(f"{at}?blobs=true", dict[str, Any])
            self._revision = str(info.get("sha") or self._revision or "main")
            # A mirror may list the files only where the hub lists folders.
            tree = f"/tree/{quote(self._revision, safe='')}?recursive=true"
            listed = info.get("siblings") or self._asked(tree, list[Any])
            files = [file for file in listed if isinstance(file, dict)]
            named = [(file.get("rfilename") or file.get("path"), file) for file in files]
            self._hashes = {str(name): _hash(file) for name, file in named if name}
        return self._hashes

    def _asked(self, path: str, kind: type[T]) -> T:
        """Return the hub's answer about the model, JSON of this kind.

        Raises:
            SourceError: There is no such model, or the hub cannot be reached.

        """
        endpoint, headers = self._hub()
        url = f"{endpoint}/api/models/{self._name}{path}"
        try:
            return checked(kind, parse_json(read_page(url, self.shown, headers)))
        except (FileNotFoundError, AccessDeniedError):
            raise SourceError(
                f"there is no model {self.shown} on the hub that you may read; check the id, "
                "and for a private or gated model log in with: hf auth login"
            ) from None
        except ValueError:
            raise SourceError(
                f"{self.shown} cannot be read: the hub's answer is no JSON about a model; "
                "check HF_ENDPOINT"
            ) from None


def _hash(file: Mapping[str, Any]) -> str:
    """Return the hash of a file's content: that of its large-file storage, or that of git."""
    large = file.get("lfs")
    large = large if isinstance(large, dict) else {}
    known = (large.get("sha256"), large.get("oid"), file.get("blobId"), file.get("oid"))
    return next((str(value) for value in known if value), "")
