"""Models on a web server: the same table as from a disk, few bytes, and every fault of servers."""

from __future__ import annotations

import base64
import json
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.models.formats import stores
from spectail.models.formats.web import names_on_page
from spectail.models.open import open_source
from tests.conftest import weights
from tests.models.format_cases import WRITERS, state
from tests.models.servers import Server, serve


def table(source: Any, **options: Any) -> pd.DataFrame:
    return st.analyze(source, **options).table.drop(columns="seconds")


def assert_same(remote: Any, local: Any) -> None:
    """All layers have the same names and, bit for bit, the same values."""
    there, here = open_source(remote), open_source(local)
    assert [layer.name for layer in there.layers] == [layer.name for layer in here.layers]
    assert here.layers
    for far, near in zip(there.layers, here.layers, strict=True):
        assert torch.equal(far.read(), near.read())


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a model: two shards, their index and a configuration."""
    folder = tmp_path / "site" / "models" / "toy model"
    folder.mkdir(parents=True)
    whole = weights()
    names = sorted(whole)
    index: dict[str, str] = {}
    for number, part in enumerate((names[:6], names[6:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    (folder / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 8}')
    save_file(whole, tmp_path / "site" / "one.safetensors")
    return tmp_path / "site"


FOLDER = "models/toy%20model"


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("end", ["", "/", "/model.safetensors.index.json"])
def test_a_folder_reads_as_locally(site: Path, listing: bool, end: str) -> None:
    with serve(site, listing=listing) as server:
        remote = table(f"{server.url}/{FOLDER}{end}")
    pd.testing.assert_frame_equal(remote, table(site / "models" / "toy model"), check_exact=True)


@pytest.mark.parametrize("path", ["one.safetensors", "one.safetensors?token=x", FOLDER])
def test_the_fingerprint_is_the_contents_and_not_the_place(site: Path, path: str) -> None:
    with serve(site) as first, serve(site) as second:
        before = open_source(f"{first.url}/{path}").fingerprint
        assert open_source(f"{second.url}/{path}").fingerprint == before
        other = weights(seed=1)
        save_file(other, site / "one.safetensors")
        save_file({"a": other["model.norm.weight"]}, site / "models/toy model/other.safetensors")
        config = site / "models/toy model/config.json"
        config.write_text(config.read_text().replace("8", "4"))
        assert open_source(f"{second.url}/{path}").fingerprint != before


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_reads_as_locally(tmp_path: Path, form: str) -> None:
    (tmp_path / "m").mkdir()
    path = WRITERS[form](tmp_path / "m", state(rows=24))
    with serve(tmp_path) as server:
        assert_same(f"{server.url}/{path.relative_to(tmp_path)}", path)


def large(folder: Path, suffix: str) -> Path:
    """A file of eight layers of 1 MB."""
    generator = torch.Generator().manual_seed(0)
    layers = {f"layers.{i}.weight": torch.randn(512, 512, generator=generator) for i in range(8)}
    path = folder / f"large{suffix}"
    save_file(layers, path) if suffix == ".safetensors" else torch.save(layers, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_only_the_layers_that_are_measured_are_fetched(tmp_path: Path, suffix: str) -> None:
    path = large(tmp_path, suffix)
    with serve(tmp_path) as server:
        source = open_source(f"{server.url}/{path.name}")
        opening = server.sent
        remote = table(f"{server.url}/{path.name}", include=["layers.3"])
        assert opening < 2e5
        assert server.sent - opening < 2**20 + 2e5
        # The header says where a row lies: a piece of a tensor costs its own bytes.
        before = server.sent
        source.layers[6].tensor.read((slice(100, 140),))
        assert server.sent - before == 40 * 512 * 4
    pd.testing.assert_frame_equal(remote, table(path, include=["layers.3"]), check_exact=True)


def test_a_long_tensor_is_fetched_by_several_requests(tmp_path: Path) -> None:
    tensor = torch.arange(5 * 2**20, dtype=torch.float32).reshape(5, -1)
    save_file({"a.weight": tensor}, tmp_path / "m.safetensors")
    with serve(tmp_path) as server:
        layer = open_source(f"{server.url}/m.safetensors").layers[0]
        before = len(server.requests)
        assert torch.equal(layer.tensor.read(()), tensor)
        assert len(server.requests) - before == 3  # of 8 MiB


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between tries."""
    monkeypatch.setitem(stores.WAITS, "init_backoff", timedelta(milliseconds=10))


@pytest.mark.parametrize(
    ("fault", "every"),
    [("503", 2), ("503", 3), ("500", 3), ("429", 3), ("reset", 3), ("truncate", 3), ("short", 3)],
)
def test_a_failed_request_is_repeated(site: Path, fault: str, every: int, impatient: None) -> None:
    with serve(site, fail_every=every, fault=fault) as server:
        assert_same(f"{server.url}/{FOLDER}", site / "models" / "toy model")
        assert len(server.requests) > 20


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("503", "503 Service Unavailable, also after 6 more tries"),
        ("reset", "the server breaks the connection, also after"),
        ("truncate", "the server breaks off its answers, also after"),
        ("short", r"the server sends 32768 in place of 65536 bytes, also after 6 more tries"),
    ],
)
def test_a_server_that_always_fails_is_one_line(
    site: Path, fault: str, words: str, impatient: None
) -> None:
    with (
        serve(site, fail_every=1, fault=fault) as server,
        pytest.raises(st.SourceUnreachableError, match=words) as error,
    ):
        open_source(f"{server.url}/one.safetensors?X-Signature=secret")
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_server_that_ignores_ranges_sends_a_file_once(tmp_path: Path) -> None:
    path = large(tmp_path, ".safetensors")
    with serve(tmp_path, ranges=False) as server:
        analysis = st.analyze(f"{server.url}/{path.name}")
        gets = [r for r in server.requests if r.method == "GET" and path.name in r.path]
    # Two ask for a range, since one answer may be an exception, and one for the file.
    assert all(request.method == "GET" for request in server.requests)
    assert len(gets) == 3
    (note,) = analysis.run.notes
    assert "ignores ranges: the whole file of 8.4 MB was downloaded" in note
    remote = analysis.table.drop(columns="seconds")
    pd.testing.assert_frame_equal(remote, table(path), check_exact=True)


def test_a_redirect_is_followed_without_the_password(site: Path) -> None:
    with serve(site) as there, serve(site) as here:
        here.redirect_to = there.url.replace("127.0.0.1", "localhost")
        assert_same(
            f"{here.url.replace('//', '//user:pass@')}/one.safetensors", site / "one.safetensors"
        )
        assert all("authorization" in request.headers for request in here.requests)
        assert not any("authorization" in request.headers for request in there.requests)
        assert there.sent > 0


def test_user_and_password_are_sent_and_not_shown(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "Basic " + base64.b64encode(b"me:pa ss").decode()
    with serve(site, user=secret) as server:
        address = server.url.replace("//", "//me:pa%20ss@") + "/one.safetensors?sig=qx7signature"
        assert run(["analyze", address, "--out", str(tmp_path / "run")]) == 0
        assert all(request.path.endswith("?sig=qx7signature") for request in server.requests)
        assert run(["analyze", address + "x", "--out", str(tmp_path / "run2")]) == 0
        for bad in (address.replace("me:", "you:"), address.replace("one", "two")):
            assert run(["analyze", bad, "--out", str(tmp_path / "bad")]) == 2
    printed = capsys.readouterr()
    kept = [path.read_bytes() for path in tmp_path.glob("run*/*")]
    assert len(kept) > 3
    assert any(f"{server.url}/one.safetensors".encode() in content for content in kept)
    for content in (printed.out.encode(), printed.err.encode(), *kept):
        for part in (b"pa%20ss", b"pa ss", b"qx7signature", secret.encode()):
            assert part not in content
    assert "access is denied (401" in printed.err
    assert "there is no model at" in printed.err


@pytest.mark.parametrize("end", ["", "/model.safetensors.index.json?X-Amz-Signature=hidden"])
def test_shards_that_may_not_be_read_are_denied_and_not_missing(site: Path, end: str) -> None:
    with (
        serve(site, denied=r"-of-00002\.safetensors$") as server,
        pytest.raises(st.SourceError, match=r"00001-of.*access is denied \(403") as found,
    ):
        open_source(f"{server.url}/{FOLDER}{end}")
    assert "hidden" not in str(found.value)
    (site / "models" / "toy model" / "model-00001-of-00002.safetensors").unlink()
    with serve(site) as server, pytest.raises(st.SourceError, match=r"00001-of.* is missing"):
        open_source(f"{server.url}/{FOLDER}{end}")


def test_denied_files_beside_a_model_do_not_matter(site: Path) -> None:
    """An address that is signed for one file gives access to nothing else."""
    with serve(site, denied=r"(?<!one\.safetensors)$") as server:
        assert_same(f"{server.url}/one.safetensors?sig=x", site / "one.safetensors")
        with pytest.raises(st.SourceError, match="access is denied"):
            open_source(f"{server.url}/models/")


@pytest.mark.parametrize("what", ["etags", "dates", "nothing"])
def test_a_file_that_changes_while_it_is_read_is_one_line(
    site: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = site / "one.safetensors"

    def change(server: Server) -> None:
        # The shorter file has another size, which servers without tags and dates tell too.
        if len(server.requests) == 12:
            save_file(weights(blocks=3 if what == "etags" else 2, seed=7), path)

    options: dict[str, Any] = {
        "etags": what == "etags",
        "dates": what == "dates",
        "on_request": change,
    }
    with serve(site, **options) as server:
        command = ["analyze", f"{server.url}/one.safetensors", "--out", str(tmp_path / "run")]
        assert run(command) == 2
    message = capsys.readouterr().err.strip()
    assert "one.safetensors has changed since it was opened: open it again" in message
    assert "\n" not in message
    assert (tmp_path / "run" / ".progress.jsonl").stat().st_size > 500


def test_a_file_that_changes_after_the_last_layer_is_noticed(site: Path) -> None:
    def change(layer: object, done: int, total: int) -> None:
        if layer is None:
            save_file(weights(seed=7), site / "one.safetensors")

    with serve(site) as server, pytest.raises(st.SourceChangedError, match="has changed"):
        st.analyze(f"{server.url}/one.safetensors", progress=change)


def test_an_outage_ends_the_run_and_it_goes_on_later(
    site: Path, tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(server: Server) -> None:
        server.fail_every = int(len(server.requests) > 12)

    with serve(site, on_request=fail) as server:
        command = ["analyze", f"{server.url}/one.safetensors", "--out", str(tmp_path / "run")]
        assert run(command) == 2
        assert "503 Service Unavailable" in capsys.readouterr().err
        server.on_request, server.fail_every = lambda server: None, 0
        before = server.sent
        assert run(command) == 0
        assert server.sent - before < (site / "one.safetensors").stat().st_size
    there = pd.read_parquet(tmp_path / "run" / "layers.parquet").drop(columns="seconds")
    there = there.astype({"block": "float64"})  # files hold whole numbers, the table NaN too
    pd.testing.assert_frame_equal(there, table(site / "one.safetensors"), check_exact=True)


def test_layers_can_be_sent_to_another_process(site: Path) -> None:
    with serve(site) as server:
        sent = pickle.dumps(open_source(f"{server.url}/one.safetensors").layers)
        local = open_source(site / "one.safetensors").layers
        for layer, same in zip(pickle.loads(sent), local, strict=True):
            assert torch.equal(layer.read(), same.read())
        save_file(weights(seed=7), site / "one.safetensors")
        with pytest.raises(st.SourceChangedError, match="has changed"):
            pickle.loads(sent)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nothing.safetensors", "there is no model at http://127.0.0.1:.*/nothing.safetensors"),
        ("nothing", "there is no model at http://127.0.0.1:.*/nothing"),
        ("empty.safetensors", "is empty"),
        ("page.safetensors", "is a web page, not a model"),
        ("cut.safetensors", "is not a readable safetensors file"),
        ("lost.index.json", "shard gone.safetensors of .*lost.index.json is missing"),
    ],
)
def test_what_is_missing_or_damaged_is_one_line(site: Path, path: str, words: str) -> None:
    (site / "empty.safetensors").touch()
    (site / "page.safetensors").write_text("<!DOCTYPE html><html></html>")
    (site / "cut.safetensors").write_bytes((site / "one.safetensors").read_bytes()[:-1000])
    (site / "lost.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with serve(site) as server, pytest.raises(st.SourceError, match=words):
        open_source(f"{server.url}/{path}")


@pytest.mark.parametrize("path", ["one.safetensors", FOLDER, "whole", "whole/model.safetensors"])
def test_a_server_with_a_page_for_every_other_name(site: Path, path: str) -> None:
    (site / "whole").mkdir()
    save_file(weights(), site / "whole" / "model.safetensors")
    with serve(site, page=b"<!DOCTYPE html><html><body>an application</body></html>") as server:
        assert_same(f"{server.url}/{path}", site / path.replace("%20", " "))
        with pytest.raises(st.SourceError, match="is a web page, not a model"):
            open_source(f"{server.url}/other.safetensors")
        with pytest.raises(st.SourceError, match=r"no model at|no weights"):
            open_source(f"{server.url}/other")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/model.pt", "ftp:// are not read; expected hf://, s3://, gs:// or https://"),
        ("https:///model.pt", "names no server; expected https://host/path"),
        ("s3://", "names no bucket; expected s3://bucket/folder"),
        ("s3://key:secret@bucket/m", "s3://bucket holds credentials, which are not read"),
        ("hf://", "names no model; expected hf://org/name"),
        ("http://127.0.0.1:1/model.safetensors", "the connection is refused, also after 6"),
        ("http://127.0.0.1:x/model.safetensors", "is no valid address"),
    ],
)
def test_bad_addresses_are_one_line(address: str, words: str, impatient: None) -> None:
    with pytest.raises(st.SourceError, match=words) as error:
        open_source(address)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_names_on_a_listing_page() -> None:
    page = """<a href="https://here/m/a.bin">a</a>
    <a href="?C=N;O=D">sort</a> <a href="/">top</a> <a href="/m/config.json">x</a>
    <a href="https://elsewhere/m/e.bin">y</a> <a href='b%20c.bin'>z</a> <a href="sub/">s</a>
    <a href="sub/deeper.bin">d</a> <a>nothing</a>"""
    found = {"a.bin": False, "config.json": False, "b c.bin": False, "sub": True}
    assert names_on_page(page, "https://here/m/") == found


def test_a_server_that_does_not_say_how_long_a_file_is_is_one_line(site: Path) -> None:
    # A folder of that name is answered with a page without a length.
    (site / "page.safetensors").mkdir()
    with (
        serve(site, listing=True) as server,
        pytest.raises(st.SourceError, match="does not say how long its answer is; download it"),
    ):
        open_source(f"{server.url}/page.safetensors")
