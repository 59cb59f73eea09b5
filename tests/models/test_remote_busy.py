"""Servers that are asked too often, and say how long to wait."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from safetensors.torch import save_file

import spectail as st
from spectail.models.formats import retry_after
from spectail.models.formats.retry_after import asked_wait
from spectail.models.open import open_source
from tests.conftest import weights
from tests.models.servers import _Handler, _HubHandler, serve
from tests.models.test_remote import assert_same, impatient

__all__ = ["impatient"]


def test_the_header_in_both_forms() -> None:
    assert asked_wait("20") == 20
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    assert 35 < asked_wait(date) <= 40
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    for text in ("0", "-3", "1.5", "301", "9" * 5000, "soon", "", past, "\x00", "Mon, 99 Foo 1"):
        assert asked_wait(text) == 0


class Busy(_Handler):
    """Answers 429 for some seconds from the fifth request on."""

    until = 0.0
    header = "2"

    def serve(self, path: str, fails: bool) -> None:
        kind = type(self)
        if len(self.state.requests) >= 5 and not kind.until:
            kind.until = time.monotonic() + 1.8
        if time.monotonic() >= kind.until:
            super().serve(path, fails)
            return
        header = self.header
        if header == "date":
            header = format_datetime(datetime.now(UTC) + timedelta(seconds=2.9), usegmt=True)
        self.answer(429, headers={"Retry-After": header} if header else {})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site" / "org" / "name").mkdir(parents=True)
    save_file(weights(), tmp_path / "site" / "org" / "name" / "model.safetensors")
    return tmp_path / "site"


@pytest.mark.parametrize("header", ["2", "date"])
@pytest.mark.parametrize("path", ["model.safetensors", ""])
def test_a_busy_server_is_left_alone_as_long_as_it_asks(
    site: Path, path: str, header: str, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    kind = type("Bound", (Busy,), {"header": header})
    with caplog.at_level(logging.WARNING), serve(site, kind) as server:
        address = f"{server.url.replace('//', '//me:hidden@')}/org/name/{path}?hidden=1"
        assert_same(address, site / "org" / "name")
    assert f"{server.url}/org/name" in caplog.text
    assert "asks to wait for" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize("header", ["", "4000", "soon"])
def test_a_busy_server_that_does_not_say_so_is_one_line(
    site: Path, header: str, impatient: None
) -> None:
    kind = type("Bound", (Busy,), {"header": header, "until": time.monotonic() + 60})
    with (
        serve(site, kind) as server,
        pytest.raises(st.SourceUnreachableError, match="429 Too Many Requests, also after 6 more"),
    ):
        open_source(f"{server.url}/org/name/model.safetensors")


def test_a_server_that_asks_again_and_again_is_given_up(
    site: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("spectail.models.formats.retry_after.time.sleep", waits.append)
    kind = type("Bound", (Busy,), {"header": "120", "until": time.monotonic() + 600})
    with serve(site, kind) as server, pytest.raises(st.SourceUnreachableError, match="429"):
        open_source(f"{server.url}/org/name/model.safetensors")
    assert waits.count(120.0) == retry_after.TIMES


def test_a_busy_hub_is_left_alone(
    site: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    with serve(site, type("Bound", (Busy, _HubHandler), {})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert_same("hf://org/name", site / "org" / "name")
    assert "hf://org/name asks to wait for 2 seconds" in caplog.text
