"""Models in buckets: a server of S3's protocol on loopback, and the same server as Google's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.models.formats.buckets import bucket_region
from spectail.models.open import open_source
from tests.conftest import weights
from tests.models.format_cases import state, write_gguf, write_torch
from tests.models.servers import serve
from tests.models.test_remote import assert_same, impatient, table

__all__ = ["impatient"]

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")


MOTO = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
"""The server on a free port that it tells: one that is chosen before may be taken meanwhile."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of moto's server, which runs as a process of its own."""
    command = [sys.executable, "-c", MOTO]
    with subprocess.Popen(command, stdout=-1, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client, with the environment of a user who has credentials."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user-of-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-tests")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return boto3.client("s3", region_name="us-east-1")


@pytest.fixture
def model(s3: Any, tmp_path: Path) -> Path:
    """A folder with a model, uploaded as ``toys/models/toy model``."""
    folder = tmp_path / "toy model"
    folder.mkdir()
    whole = weights()
    for number, names in enumerate((sorted(whole)[:6], sorted(whole)[6:]), 1):
        file = folder / f"model-{number:05d}-of-00002.safetensors"
        save_file({name: whole[name] for name in names}, file)
    (folder / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 8}')
    s3.create_bucket(Bucket="toys")
    for path in folder.iterdir():
        key = f"models/toy model/{path.name}"
        s3.upload_file(str(path), "toys", key, ExtraArgs={"ACL": "public-read"})
    return folder


def test_the_table_is_that_of_a_local_copy(model: Path) -> None:
    remote = table("s3://toys/models/toy model")
    pd.testing.assert_frame_equal(remote, table(model), check_exact=True)


@pytest.mark.parametrize("scheme", ["s3", "s3a", "gs", "gcs"])
@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_reads_as_locally(
    model: Path, server: str, scheme: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Google's XML interface has the addresses and listings of S3.
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    assert_same(f"{scheme}://toys/models/toy model{end}", model)


def test_a_file_reads_as_locally(s3: Any, model: Path, tmp_path: Path) -> None:
    for write in (write_torch, write_gguf):
        path = write(tmp_path, state(rows=24))
        s3.upload_file(str(path), "toys", path.name)
        assert_same(f"s3://toys/{path.name}", path)
    shard = "model-00001-of-00002.safetensors"
    assert_same(f"s3://toys/models/toy model/{shard}", model / shard)


def test_the_whole_bucket_may_be_a_folder(s3: Any, tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    s3.create_bucket(Bucket="alone")
    s3.upload_file(str(tmp_path / "model.safetensors"), "alone", "model.safetensors")
    assert_same("s3://alone", tmp_path)


def test_credentials_come_from_a_profile(
    model: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(f"[profile lab]\nendpoint_url = {server}\n")
    keys = "[lab]\naws_access_key_id = a\naws_secret_access_key = b\n"
    (tmp_path / ".aws" / "credentials").write_text(keys)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert len(open_source("s3://toys/models/toy model").layers) > 10
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(st.SourceError, match="s3://toys cannot be read: ProfileNotFound"):
        open_source("s3://toys/models/toy model")


def test_without_credentials_requests_are_not_signed(
    s3: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = str(model / "model-00001-of-00002.safetensors")
    s3.upload_file(shard, "toys", "private/model.safetensors")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert len(open_source("s3://toys/models/toy model").layers) > 10
    denied = r"private/model.safetensors cannot be read: access is denied \(403 Forbidden\); check"
    with pytest.raises(st.SourceError, match=denied):
        open_source("s3://toys/private")


def test_google_without_credentials_is_one_line(
    s3: Any, model: Path, server: str, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    # Outside of Google's cloud nobody answers where a machine asks for its own credentials.
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    with pytest.raises(st.SourceError, match=r"no credentials were found.*SKIP_SIGNATURE=true"):
        open_source("gs://toys/models/toy model")


def test_an_object_that_is_replaced_is_one_line(
    s3: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source("s3://toys/models/toy model")
    shard = "model-00001-of-00002.safetensors"
    other = {name: tensor + 1 for name, tensor in weights().items()}
    save_file({name: other[name] for name in sorted(other)[:6]}, model / shard)
    s3.upload_file(str(model / shard), "toys", f"models/toy model/{shard}")
    with pytest.raises(st.SourceChangedError, match=f"{shard} has changed since it was opened"):
        [layer.read() for layer in source.layers]
    assert open_source("s3://toys/models/toy model").fingerprint != source.fingerprint
    s3.delete_object(Bucket="toys", Key=f"models/toy model/{shard}")
    with pytest.raises(st.SourceChangedError, match="has changed"):
        source.files[0].check_path()
    command = ["analyze", "s3://toys/models/toy model", "--out", str(tmp_path / "run")]
    assert run(command) == 2
    assert f"shard {shard} of s3://toys/models/toy model is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://nowhere/model", "there is no bucket s3://nowhere"),
        ("s3://toys/nothing", "there is no model at s3://toys/nothing"),
        ("s3://toys/empty/model.safetensors", "is empty; expected a safetensors file"),
        ("s3://toys/notes", "s3://toys/notes holds no weights"),
    ],
)
def test_what_is_missing_is_one_line(s3: Any, model: Path, address: str, words: str) -> None:
    s3.put_object(Bucket="toys", Key="empty/model.safetensors", Body=b"")
    s3.put_object(Bucket="toys", Key="notes/readme.txt", Body=b"nothing")
    with pytest.raises(st.SourceError, match=words) as error:
        open_source(address)
    assert "\n" not in str(error.value)
    assert "secret-of-tests" not in str(error.value)


def test_s3_tells_the_region_of_a_bucket(s3: Any) -> None:
    where = {"LocationConstraint": "eu-west-3"}
    s3.create_bucket(Bucket="in-paris", CreateBucketConfiguration=where)
    assert bucket_region(s3, "in-paris") == "eu-west-3"
    assert bucket_region(s3, "nowhere") is None


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", "boto3"), ("s3", "obstore"), ("gs", "obstore")]
)
def test_a_missing_package_is_one_line(
    scheme: str, package: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.store", None)
    words = f"needs the package {package}; install it with: pip install 'spectail.{scheme}.'"
    with pytest.raises(st.SourceError, match=words):
        open_source(f"{scheme}://toys/model")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("key", ["/deep.bin", "./deep.bin", "../deep.bin", "a//", "a\x07b"])
def test_a_key_that_cannot_be_named_hides_no_model_beside_it(
    s3: Any, server: str, scheme: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    save_file(weights(), tmp_path / "model.safetensors")
    # Without a hyphen, which obstore encodes for Google and the server here does not decode.
    bucket = f"odd{scheme}{key.encode().hex()}"
    s3.create_bucket(Bucket=bucket)
    public = {"ACL": "public-read"}
    s3.upload_file(str(tmp_path / "model.safetensors"), bucket, "m/model.safetensors", public)
    s3.upload_file(str(tmp_path / "model.safetensors"), bucket, "m/my.safetensors", public)
    s3.put_object(Bucket=bucket, Key=f"m/{key}", Body=b"x")
    s3.put_object(Bucket=bucket, Key=f"other/{key}", Body=b"x")
    for path in ("m", "m/", "m/model.safetensors", "m/my.safetensors"):
        assert_same(f"{scheme}://{bucket}/{path}", tmp_path / "model.safetensors")
    with pytest.raises(st.SourceError, match=r"a path is not supported|no weights|no model"):
        open_source(f"{scheme}://{bucket}/other")
    with pytest.raises(st.SourceError, match=r"a path is not supported|no model") as found:
        open_source(f"{scheme}://{bucket}/m//my.safetensors")
    assert "tries" not in str(found.value)


def test_more_keys_than_one_answer_lists(s3: Any, tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    s3.create_bucket(Bucket="many-keys")
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: s3.put_object(Bucket="many-keys", Key=f"m/a{n:05d}.txt", Body=b"x"),
                range(1005),
            )
        )
    s3.upload_file(str(tmp_path / "model.safetensors"), "many-keys", "m/model.safetensors")
    assert_same("s3://many-keys/m", tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"])
@pytest.mark.parametrize("value", ["hidden\nhidden", "hidden hidden", "hiddenü"])
def test_credentials_that_no_header_can_hold_are_one_line(
    s3: Any, model: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(st.SourceError, match="holds a space, a line break or another") as found:
        open_source("s3://toys/models/toy model")
    assert "hidden" not in str(found.value)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", "the credentials have expired; ask for new ones"),
        (400, "TokenRefreshRequired", "the credentials have expired; ask for new ones"),
        (400, "AuthorizationHeaderMalformed", "another region; set AWS_DEFAULT_REGION"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        (403, "InvalidObjectState", "it lies in an archive; restore it first"),
        (403, "SignatureDoesNotMatch", "check the address and the credentials"),
    ],
)
@pytest.mark.parametrize("key", ["model", "model.safetensors"])
def test_a_request_that_s3_refuses_says_what_to_do(
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    words: str,
    key: str,
) -> None:
    body = f"<Error><Code>{code}</Code><Message>secret-of-tests</Message></Error>"
    with serve(tmp_path, refusal=(status, body.encode())) as refusing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", refusing.url)
        with pytest.raises(st.SourceError, match=words) as found:
            open_source(f"s3://toys/{key}")
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("host", ["nonsense://x", "http://a b", "http://"])
def test_an_emulator_that_is_no_address_is_one_line(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    with pytest.raises(st.SourceError, match=r"STORAGE_EMULATOR_HOST is .*; expected host:port"):
        open_source("gs://bucket/model")
