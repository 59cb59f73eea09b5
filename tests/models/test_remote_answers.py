"""Servers that refuse in the middle of a run, or whose answers make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.models.open import open_source
from tests.conftest import weights
from tests.models.servers import Server, _Handler, serve


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    save_file(weights(), tmp_path / "site" / "one.safetensors")
    return tmp_path / "site"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 416, 451])
def test_a_refusal_in_the_middle_ends_the_run_and_it_goes_on_later(
    site: Path, tmp_path: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(server: Server) -> None:
        # As when a signed address expires, or a quota is used up.
        server.fault, server.fail_every = str(status), int(len(server.requests) > 12)

    with serve(site, on_request=refuse) as server:
        command = ["analyze", f"{server.url}/one.safetensors", "--out", str(tmp_path / "run")]
        assert run(command) == 2
        message = capsys.readouterr().err.strip()
        gone = status in {404, 416}
        assert ("has changed" if gone else f"{status} ") in message
        assert "\n" not in message
        assert not (tmp_path / "run" / "layers.csv").exists()
        assert (tmp_path / "run" / ".progress.jsonl").stat().st_size > 500
        server.on_request, server.fail_every = lambda server: None, 0
        assert run(command) == 0


def answering(**changed: Any) -> type[_Handler]:
    """A server whose answers have another status or other headers; the key of one is its name."""

    class Handler(_Handler):
        def answer(
            self, status: int, body: bytes = b"", headers: Any = None, cut: int = -1
        ) -> None:
            headers = {**(headers or {}), **changed}
            super().answer(headers.pop("status", status), body, headers, cut)

    return Handler


RANGE = "the server answers with another range than the one asked for"
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "another range": ({"Content-Range": "bytes 8-65543/100000000"}, RANGE),
    "a range without the size": ({"Content-Range": "bytes 0-65535/*"}, RANGE),
    "a range beyond the file": ({"Content-Range": "bytes 0-65535/100"}, RANGE),
    "no date": ({"Last-Modified": "yesterday"}, "a header of the server's answer is damaged"),
    "bytes in a header": ({"ETag": '"\xe9"'}, "a header of the server's answer is damaged"),
    "a circle": ({"status": 302, "Location": "/one.safetensors"}, "too many redirects"),
    "nowhere": ({"status": 302}, "redirect"),
    "another protocol": ({"status": 302, "Location": "file:///etc/hosts"}, "answers 302 Found"),
    "a foreign protocol": ({"status": 302, "Location": "ftp://127.0.0.1/x"}, "is not read; down"),
    "no port": ({"status": 302, "Location": "http://127.0.0.1:99999/x"}, "is not read; down"),
    "not modified": ({"status": 304}, "answers 304 Not Modified"),
    "no status": ({"status": 99}, "the server's answer is no HTTP"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_without_sense_says_what_is_wrong(case: str, site: Path) -> None:
    changed, words = ANSWERS[case]
    with (
        serve(site, answering(**changed)) as server,
        pytest.raises(st.SourceError, match=words) as caught,
    ):
        open_source(f"{server.url}/one.safetensors")
    message = str(caught.value)
    assert message.startswith(f"{server.url}/one.safetensors cannot be read: ")
    # Such an answer is not asked for again.
    assert "more tries" not in message
    assert "\n" not in message


class Latin(_Handler):
    """A server whose pages of errors are no UTF-8."""

    def answer(self, status: int, body: bytes = b"", headers: Any = None, cut: int = -1) -> None:
        page = "nicht gefunden: \xfcber".encode("latin-1")
        super().answer(status, page if status >= 400 else body, headers, cut)


def test_a_page_in_other_letters_says_that_a_file_is_missing(site: Path) -> None:
    with serve(site, Latin) as server:
        # There is no config.json beside it.
        found = open_source(f"{server.url}/one.safetensors")
        assert found.layers
        assert len(server.requests) < 20
        with pytest.raises(st.SourceError, match="there is no model at"):
            open_source(f"{server.url}/two.safetensors")
        server.denied = "one"
        with pytest.raises(st.SourceError, match="access is denied"):
            open_source(f"{server.url}/one.safetensors")


@pytest.mark.parametrize(("tags", "same"), [(('"a"', 'W/"a"'), True), (('W/"a"', 'W/"b"'), False)])
def test_a_weak_tag_is_that_of_the_same_content(
    site: Path, tags: tuple[str, str], same: bool
) -> None:
    with serve(site, etags=False) as server:
        server.extra = {"ETag": tags[0]}
        [layer, *_] = open_source(f"{server.url}/one.safetensors").layers
        server.extra = {"ETag": tags[1]}
        if same:
            layer.read()
            return
        with pytest.raises(st.SourceChangedError):
            layer.read()


def test_an_empty_tag_says_nothing(site: Path) -> None:
    with serve(site, etags=False, extra={"ETag": '""'}) as server:
        before = open_source(f"{server.url}/one.safetensors").fingerprint
        data = bytearray((site / "one.safetensors").read_bytes())
        data[-4:] = b"\0\0\x80?"
        (site / "one.safetensors").write_bytes(data)
        assert open_source(f"{server.url}/one.safetensors").fingerprint != before
