"""Faults of servers that come and go, answers without end, and odd names of files and folders."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote
from urllib.request import Request

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.models.formats.stores import IN_FLIGHT
from spectail.models.formats.web_page import _Redirects
from spectail.models.open import open_source
from tests.conftest import weights
from tests.models.servers import Server, _Handler, serve, serve_hub
from tests.models.test_remote import assert_same, impatient, table

__all__ = ["impatient"]

PAGES = {
    "doctype": b"<!DOCTYPE html><html></html>",
    "comment": b"<!-- an application -->\n<html></html>",
    "mark of byte order": b"\xef\xbb\xbf<html></html>",
    "XML": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "XML without declaration": b"  <Error><Code>NoSuchKey</Code></Error>",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    save_file(weights(), tmp_path / "site" / "one.safetensors")
    return tmp_path / "site"


class Unsteady(_Handler):
    """Three answers of ten have another length, or are the whole file in place of a part."""

    chance: ClassVar[random.Random]
    fault: ClassVar[str]

    def send_file(self, data: bytes, fails: bool) -> None:
        if self.chance.random() >= 0.3:
            super().send_file(data, fails)
        elif self.fault == "whole":
            del self.headers["Range"]
            super().send_file(data, fails)
        else:
            self.length = self.fault
            super().send_file(data, fails)

    length = ""

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int = -1
    ) -> None:
        if status == 206 and self.length == "short":
            body = body[: len(body) // 2]
        elif status == 206 and self.length == "long":
            body += bytes(3000)
        self.length = ""
        super().answer(status, body, headers, cut)


@pytest.mark.parametrize("fault", ["short", "long", "whole"])
@pytest.mark.parametrize("etags", [True, False])
def test_answers_that_are_wrong_now_and_then_are_repeated(
    site: Path, fault: str, etags: bool, impatient: None
) -> None:
    kind = type("Bound", (Unsteady,), {"chance": random.Random(2), "fault": fault})
    with serve(site, kind, etags=etags) as server:
        remote = table(f"{server.url}/one.safetensors")
        assert len(server.requests) > 12
    pd.testing.assert_frame_equal(remote, table(site / "one.safetensors"), check_exact=True)


class TooLongAndBroken(_Handler):
    """Sends the end of a file with more behind it, once, and breaks off in that."""

    broken: ClassVar[list[str]]

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int = -1
    ) -> None:
        where = (headers or {}).get("Content-Range", "")
        start, stop, size = map(int, re.findall(r"\d+", where) or (0, 0, 0))
        if start and stop + 1 == size and not self.broken:
            self.broken.append(where)
            body += bytes(2_000_000)
            cut = len(body) - 1_000_000
        super().answer(status, body, headers, cut)


def test_a_long_answer_that_breaks_off_is_repeated(site: Path, impatient: None) -> None:
    """obstore goes on where an answer broke off, here behind the end of the file."""
    broken: list[str] = []
    with serve(site, type("Once", (TooLongAndBroken,), {"broken": broken})) as server:
        remote = table(f"{server.url}/one.safetensors")
    assert broken
    pd.testing.assert_frame_equal(remote, table(site / "one.safetensors"), check_exact=True)


def test_a_server_that_sends_whole_files_from_some_time_on_is_one_line(
    site: Path, impatient: None
) -> None:
    def change(server: Server) -> None:
        server.ranges = len(server.requests) < 12

    with (
        serve(site, on_request=change) as server,
        pytest.raises(st.SourceUnreachableError, match=r"a whole file or page in place of \d"),
    ):
        table(f"{server.url}/one.safetensors")


def test_one_whole_file_in_place_of_the_first_part_costs_no_download(tmp_path: Path) -> None:
    save_file(
        {"a.weight": torch.randn(512, 1024), "b.weight": torch.randn(128, 128)},
        tmp_path / "m.safetensors",
    )

    def change(server: Server) -> None:
        server.ranges = len(server.requests) > 1

    with serve(tmp_path, on_request=change) as server:
        analysis = st.analyze(f"{server.url}/m.safetensors", include=["b"])
    assert not analysis.run.notes
    assert [layer.status for layer in analysis.layers] == ["ok"]


class Endless(_Handler):
    """Sends the part that is asked for, and goes on for ever."""

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int = -1
    ) -> None:
        if status != 206:
            super().answer(status, body, headers, cut)
            return
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(2**40)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        try:
            while self.state.sent < 2**28:
                self.wfile.write(body)
                self.state.sent += len(body)
        except OSError:
            return


def test_an_answer_without_end_takes_no_memory(site: Path, impatient: None) -> None:
    with (
        serve(site, Endless) as server,
        pytest.raises(st.SourceUnreachableError, match="more than 65536 in place of 65536 bytes"),
    ):
        open_source(f"{server.url}/one.safetensors")
    # What the server could send into the buffers of seven connections; 2^28 bytes was its limit.
    assert server.sent < 2**27


def test_a_whole_file_that_does_not_fit_on_the_disk_is_not_begun(
    site: Path, impatient: None
) -> None:
    class Whole(_Handler):
        def answer(
            self, status: int, body: bytes = b"", headers: Any = None, cut: int = -1
        ) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(10**15))
            self.end_headers()
            self.close_connection = True
            self.wfile.write(body)

    with (
        serve(site, Whole, ranges=False) as server,
        pytest.raises(st.SourceError, match=r"free of the 1000000\.0 that it takes; set TMPDIR"),
    ):
        open_source(f"{server.url}/one.safetensors")


def test_layers_side_by_side_share_the_requests_in_flight(tmp_path: Path) -> None:
    whole = {f"l{i}.weight": torch.randn(64, 512) for i in range(24)}
    save_file(whole, tmp_path / "m.safetensors")

    class Slow(_Handler):
        now = most = 0

        def send_file(self, data: bytes, fails: bool) -> None:
            with self.state.lock:
                Slow.now += 1
                Slow.most = max(Slow.most, Slow.now)
            time.sleep(0.03)
            with self.state.lock:
                Slow.now -= 1
            super().send_file(data, fails)

    before = torch.get_num_threads()
    torch.set_num_threads(12)
    try:
        with serve(tmp_path, Slow) as server:
            st.analyze(f"{server.url}/m.safetensors")
    finally:
        torch.set_num_threads(before)
    assert 1 < Slow.most <= IN_FLIGHT


_NAMES = r"""a b/ü/日本/a%b/a%20b/a+b/a#b/a?b/a;b/a@b/[x]/a&b=c/~x/a\b/a|b/a^b/"q"/a..b"""
NAMES = [*_NAMES.split("/"), "net.v2", " a ", "a:b", "{y}", "a'b", "100%25", "non\xa0breaking"]


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_folders(tmp_path: Path, name: str, listing: bool) -> None:
    folder = tmp_path / name
    folder.mkdir()
    save_file({"a.weight": torch.randn(64, 64)}, folder / "model.safetensors")
    shutil.copy(folder / "model.safetensors", tmp_path / f"{name}.safetensors")
    # People type addresses with letters of all scripts, and some programs encode them.
    typed = {quote(name)} | ({name} if not re.search(r"[?#%]", name) else set())
    with serve(tmp_path, listing=listing) as server:
        for text in sorted(typed):
            for path in (f"{text}.safetensors", f"{text}/model.safetensors", f"{text}/", text):
                for query in ("", "?key=ä/b c%2F"):
                    source = open_source(f"{server.url}/{path}{query}")
                    assert [layer.name for layer in source.layers] == ["a"]


def test_an_encoded_slash_stays_one(site: Path) -> None:
    """As in addresses of Google's and Firebase's storage, and of GitLab's files."""

    class Objects(_Handler):
        def serve(self, path: str, fails: bool) -> None:
            if re.match(r"/o/deep%2[fF]one.safetensors\?alt=media$", self.path):
                self.serve_here("one.safetensors", fails)
            else:
                self.answer(404)

    with serve(site, Objects) as server:
        for slash in ("%2F", "%2f"):
            address = f"{server.url}/o/deep{slash}one.safetensors?alt=media"
            assert_same(address, site / "one.safetensors")
        with pytest.raises(st.SourceError, match=r"no model at .*/o/deep/two.safetensors;"):
            open_source(f"{server.url}/o/deep%2Ftwo.safetensors?alt=media")


@pytest.mark.parametrize(
    "path", ["a%0Ab.safetensors", "a%1B%5B31m/", "x/%7F/m.safetensors", "a\x1bb"]
)
def test_control_characters_in_an_address_are_one_line(path: str) -> None:
    with pytest.raises(st.SourceError, match="is no valid address: it has control") as error:
        open_source(f"http://127.0.0.1:1/{path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "links",
    [
        "http://[half/x",
        "//[::1/x",
        "javascript:x",
        "http://host:port/x",
        "../../one.bin",
        "%2e%2e/",
    ],
)
@pytest.mark.parametrize("as_redirect", [True, False])
def test_links_and_redirects_that_are_no_addresses(
    site: Path, links: str, as_redirect: bool, impatient: None
) -> None:
    class Listing(_Handler):
        def serve(self, path: str, fails: bool) -> None:
            if path == "/m/" and as_redirect:
                self.answer(302, headers={"Location": links})
            elif path == "/m/":
                self.stream(f'<html><a href="{links}">x</a><a href="my.safetensors">y</a>'.encode())
            else:
                super().serve(path, fails)

    (site / "m").mkdir()
    name = "model.safetensors" if as_redirect else "my.safetensors"
    shutil.copy(site / "one.safetensors", site / "m" / name)
    with serve(site, Listing) as server:
        assert_same(f"{server.url}/m/", site / "m")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("path", ["one.safetensors", "whole"])
def test_every_kind_of_page_in_place_of_a_missing_file(site: Path, page: str, path: str) -> None:
    (site / "whole").mkdir()
    shutil.copy(site / "one.safetensors", site / "whole" / "model.safetensors")
    with serve(site, page=PAGES[page]) as server:
        assert_same(f"{server.url}/{path}", site / path)
        with pytest.raises(st.SourceError, match="is a web page, not a model"):
            open_source(f"{server.url}/two.safetensors")


def test_a_safetensors_header_whose_length_reads_like_a_tag_is_no_page(tmp_path: Path) -> None:
    tensor = torch.randn(64, 64)
    save_file({"a.weight": tensor}, tmp_path / "m.safetensors", metadata={"x": "y" * 0x4130})
    data = (tmp_path / "m.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    # The header may end in spaces: as many as make its length "<B" and zeros.
    spaces = 0x423C - length
    assert spaces > 0
    data = (
        (0x423C).to_bytes(8, "little") + data[8 : 8 + length] + b" " * spaces + data[8 + length :]
    )
    (tmp_path / "m.safetensors").write_bytes(data)
    assert data.startswith(b"<B\0")
    assert torch.equal(open_source(tmp_path / "m.safetensors").layers[0].read()[0], tensor)


def test_a_text_of_any_size_is_not_read(site: Path) -> None:
    class Claims(_Handler):
        """Says that ``config.json`` has a hundred terabytes, and sends zeros for any part."""

        def serve(self, path: str, fails: bool) -> None:
            found = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if found and path.endswith("config.json"):
                start, end = int(found[1]), int(found[2])
                there = {"Content-Range": f"bytes {start}-{end}/{10**14}", "ETag": '"a"'}
                self.answer(206, bytes(end - start + 1), there)
            else:
                super().serve(path, fails)

    with (
        serve(site, Claims) as server,
        pytest.raises(st.SourceError, match="has 100000000000000 bytes, too many for a text"),
    ):
        open_source(f"{server.url}/one.safetensors")


def test_the_password_does_not_follow_from_https_to_http() -> None:
    asked = Request("https://host/m/", headers={"Authorization": "Basic secret"})
    for target, kept in {
        "https://host/m/x/": True,
        "http://host/m/": False,
        "https://host:444/m/": False,
        "https://other/m/": False,
    }.items():
        follow = _Redirects().redirect_request(asked, None, 301, "", {}, target)
        assert follow is not None
        assert follow.has_header("Authorization") == kept
    assert _Redirects().redirect_request(asked, None, 301, "", {}, "ftp://host/m/") is None


@pytest.mark.parametrize(
    "answer",
    [
        [1],
        "text",
        3,
        None,
        {},
        {"siblings": "model.safetensors"},
        {"sha": "x", "siblings": [1, None]},
    ],
)
def test_a_hub_that_answers_with_other_json_is_one_line(
    tmp_path: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")

    class Odd(_Handler):
        def serve(self, path: str, fails: bool) -> None:
            self.stream(json.dumps(answer).encode())

    with serve(tmp_path, Odd) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(st.SourceError, match=r"no JSON about a model|no model at"):
            open_source("hf://org/name")


def test_a_pull_request_of_the_hub_is_a_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    with serve_hub(tmp_path) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(st.SourceError, match="no model hf://org/name@refs/pr/1 on the hub"):
            open_source("hf://org/name@refs/pr/1/folder")
        assert server.requests[0].path == "/api/models/org/name/revision/refs%2Fpr%2F1?blobs=true"


@pytest.mark.parametrize("endpoint", ["localhost:8000", "http://", "", "ftp://host", "http:// a"])
def test_an_endpoint_that_is_no_address_is_one_line(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(st.SourceError, match=r"HF_ENDPOINT is '.*'; expected https://host"):
        open_source("hf://org/name")
