"""Buckets of Amazon S3, of servers that speak its protocol, and of Google Cloud Storage."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from spectail.basics.addresses import without_secrets
from spectail.basics.texts import type_and_line
from spectail.errors import SourceError
from spectail.models.formats import waiting
from spectail.models.formats.store_errors import AccessDeniedError, UnnameableError, explained
from spectail.models.formats.stores import Place, Store, settings
from spectail.models.formats.usual_names import usual_names
from spectail.models.formats.waiting import waiting_for


class Bucket(Store):
    """A bucket, whose keys can be listed."""

    scheme = "s3"

    def __init__(self, bucket: str) -> None:
        """Take the bucket's name."""
        super().__init__(f"{self.scheme}://{bucket}")
        self.bucket = bucket
        self._listed: dict[str, dict[str, bool]] = {}
        self._unlisted: dict[str, SourceError] = {}
        """Why folders could not be listed."""

    def names(self, folder: str) -> Mapping[str, bool]:
        """List a folder with one request; later calls answer from memory.

        If it cannot be listed, these are the usual names that exist.
        """
        if folder not in self._listed:
            try:
                self._listed[folder] = self._list(folder)
            except (AccessDeniedError, UnnameableError) as error:
                self._unlisted[folder] = error
                self._listed[folder] = {}
                with suppress(AccessDeniedError):
                    self._listed[folder] = usual_names(self, folder)
        if folder in self._unlisted and not self._listed[folder]:
            raise self._unlisted[folder]
        return self._listed[folder]

    def holds_file(self, path: Place) -> bool:
        """Whether there is a file of this path; if its folder cannot be listed, open it."""
        with suppress(AccessDeniedError, UnnameableError):
            if super().holds_file(path):
                return True
        if path.key and path.parent.key in self._unlisted:
            with suppress(FileNotFoundError):
                return bool(path.open())
        return False

    def holds_folder(self, path: Place) -> bool:
        """Whether there is a folder of this path, as far as the bucket may be listed."""
        with suppress(AccessDeniedError):
            return super().holds_folder(path)
        return False

    def _list(self, folder: str) -> dict[str, bool]:
        """Ask for the names in a folder, with True for folders."""
        client = self.client
        import obstore

        try:
            with waiting_for(self.shown, self.address(folder)):
                result = obstore.list_with_delimiter(client, folder or None)
        except Exception as error:  # noqa: BLE001 - obstore raises OSError and classes of its own
            if isinstance(error, FileNotFoundError) or "NoSuchBucket" in str(error):
                raise SourceError(f"there is no bucket {self.shown}") from None
            raise explained(error, self.address(folder)) from None
        names = {prefix.rsplit("/", 1)[-1]: True for prefix in result["common_prefixes"]}
        return names | {item["path"].rsplit("/", 1)[-1]: False for item in result["objects"]}


class S3Bucket(Bucket):
    """A bucket of Amazon S3 or of a server that speaks its protocol.

    Credentials, endpoint and region are those that boto3 finds: environment variables, the files in
    ``~/.aws`` with ``AWS_PROFILE``, single sign-on, roles. Without credentials, requests are not
    signed, as public buckets allow.
    """

    extra, scheme = "s3", "s3"

    def _opened(self, obstore: Any) -> Any:
        try:
            import boto3
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise self.missing("boto3") from None
        try:
            session = boto3.Session()
            found = session.get_credentials()
            signed = found is not None
            if found:
                self._check(found.get_frozen_credentials())
            patience = Config(
                connect_timeout=waiting.CONNECT.total_seconds(),
                read_timeout=waiting.ANSWER.total_seconds(),
                retries={"total_max_attempts": 2},
            )
            config = patience if signed else patience.merge(Config(signature_version=UNSIGNED))
            client = session.client("s3", config=config)
            given = self._place(client)
        except BotoCoreError as error:
            raise SourceError(f"{self.shown} cannot be read: {type_and_line(error)}") from None
        if signed:
            from obstore.auth.boto3 import Boto3CredentialProvider

            given["credential_provider"] = Boto3CredentialProvider(session)
        else:
            given["skip_signature"] = True
        plain = str(given.get("endpoint", "")).startswith("http://")
        return obstore.S3Store(self.bucket, **given, **settings(plain_http=plain))

    def _check(self, credentials: Any) -> None:
        """Raise SourceError for credentials that no header can hold, for which obstore panics."""
        if re.search(r"[^\x21-\x7e]", f"{credentials.access_key}{credentials.token or ''}"):
            raise SourceError(
                f"{self.shown} cannot be read: the access key or the session token holds a space, "
                "a line break or another character that none has"
            )

    def _place(self, client: Any) -> dict[str, Any]:
        """Return the endpoint and the region of the bucket."""
        endpoint = client.meta.endpoint_url
        region = client.meta.region_name
        if (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com"):
            # Amazon refuses signatures for another region than the bucket's.
            return {"region": bucket_region(client, self.bucket) or region or "us-east-1"}
        return {"endpoint": endpoint, "region": region or "us-east-1"}


def bucket_region(client: Any, bucket: str) -> str | None:
    """Ask S3 for the region of a bucket, which it also tells those who may not read the bucket."""
    from botocore.exceptions import ClientError

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region: str | None = headers.get("x-amz-bucket-region")
    return region


class GoogleBucket(Bucket):
    """A bucket of Google Cloud Storage.

    Credentials are those that obstore finds: ``GOOGLE_APPLICATION_CREDENTIALS``, those of
    ``gcloud auth application-default login``, or the machine's own in Google's cloud.
    ``GOOGLE_SKIP_SIGNATURE=true`` reads public buckets without. ``STORAGE_EMULATOR_HOST`` names
    another server, which needs none.
    """

    extra, scheme = "gs", "gs"

    def _opened(self, obstore: Any) -> Any:
        given: dict[str, Any] = {}
        if host := os.environ.get("STORAGE_EMULATOR_HOST"):
            base = host if "://" in host else f"http://{host}"
            if not re.fullmatch(r"https?://[^/\s]+/?", base):
                raise SourceError(
                    f"STORAGE_EMULATOR_HOST is {without_secrets(host)!r}; "
                    "expected host:port or http://host:port"
                )
            given = {"base_url": base.rstrip("/"), "skip_signature": True}
        plain = str(given.get("base_url", "")).startswith("http://")
        return obstore.GCSStore(self.bucket, **given, **settings(plain_http=plain))


BUCKETS: dict[str, Callable[[str], Bucket]] = {
    "s3": S3Bucket,
    "s3a": S3Bucket,
    "gs": GoogleBucket,
    "gcs": GoogleBucket,
}
"""The schemes of addresses of buckets."""
