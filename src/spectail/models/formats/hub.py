"""Models on the Hugging Face hub: what their names look like, and their files by ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spectail.errors import SourceError
from spectail.models.formats.shard_index import read_index
from spectail.models.formats.stores import AccessDeniedError, Store, settings
from spectail.models.formats.table import FORMATS

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def is_hub_id(text: str) -> bool:
    """Whether a text that is no path looks like ``org/name``."""
    # ``models/net.pt`` is a mistyped path and no hub id.
    return bool(_HUB_ID.match(text)) and not text.lower().endswith((".json", *_endings()))


def _endings() -> tuple[str, ...]:
    """Return the endings of all formats."""
    return tuple(suffix for form in FORMATS for suffix in form.suffixes)


def cached_folder(name: str) -> Path | None:
    """Return the folder of a model in the hub's cache on this machine; None if it is not whole."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        # Programs that needed only the configuration or the tokenizer leave a part of a model.
        for index in folder.rglob("*.index.json"):
            read_index(index)
    except (OSError, ValueError, SourceError):
        return None
    return folder if any(file.name.endswith(_endings()) for file in folder.rglob("*")) else None


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

    def _opened(self, obstore: Any) -> Any:
        """Open the commit's files. Requests are redirected to where the hub keeps large files."""
        self._files()
        return self._client(obstore, f"{self._name}/resolve/{quote(str(self._revision), safe='')}")

    def _client(self, obstore: Any, path: str) -> Any:
        """Open an address of the hub."""
        try:
            from huggingface_hub import constants, utils
        except ImportError:
            raise self.missing("huggingface_hub") from None
        if constants.HF_HUB_OFFLINE:
            raise SourceError(
                f"{self.shown} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
            )
        # obstore follows redirects to other servers without the token.
        plain = constants.ENDPOINT.startswith("http://")
        headers = utils.build_hf_headers(library_name="spectail")  # type: ignore[attr-defined]
        given = settings(plain_http=plain, headers=headers)
        return obstore.HTTPStore.from_url(f"{constants.ENDPOINT}/{path}", **given)

    def _files(self) -> dict[str, str]:
        """Ask the hub, once, for the commit and for all files with the hashes of their contents."""
        if self._hashes is None:
            at = f"/revision/{quote(self._revision, safe='')}" if self._revision else ""
            info = _Answer(self, f"api/models/{self._name}{at}?blobs=true").json()
            self._revision = str(info.get("sha") or self._revision or "main")
            # A mirror may list the files only where the hub lists folders.
            tree = f"tree/{quote(self._revision, safe='')}?recursive=true"
            files = info.get("siblings") or _Answer(self, f"api/models/{self._name}/{tree}").json()
            named = [(file.get("rfilename") or file.get("path"), file) for file in files]
            self._hashes = {str(name): _hash(file) for name, file in named if name}
        return self._hashes


def _hash(file: Mapping[str, Any]) -> str:
    """Return the hash of a file's content: that of its large-file storage, or that of git."""
    large = file.get("lfs") or {}
    known = (large.get("sha256"), large.get("oid"), file.get("blobId"), file.get("oid"))
    return next((str(value) for value in known if value), "")


class _Answer(HubRepository):
    """An answer of the hub's own interface."""

    def __init__(self, repository: HubRepository, path: str) -> None:
        """Take the repository that is asked about, and the address below the endpoint."""
        super().__init__(repository._name)
        self.shown, self._path = repository.shown, path

    def _opened(self, obstore: Any) -> Any:
        return self._client(obstore, self._path)

    def json(self) -> Any:
        """Return the answer.

        Raises:
            SourceError: There is no such repository, or the hub cannot be reached.

        """
        try:
            return json.loads(b"".join(self.whole("")[1]))
        except (FileNotFoundError, AccessDeniedError):
            raise SourceError(
                f"there is no model {self.shown} on the hub that you may read; check the id, "
                "and for a private or gated model log in with: hf auth login"
            ) from None
        except ValueError:
            raise SourceError(f"{self.shown} cannot be read: the hub's answer is no JSON") from None
