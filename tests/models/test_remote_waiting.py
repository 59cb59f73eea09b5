"""Servers that answer late, or never: spectail says that it waits, and gives up in good time."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.models.formats import stores, waiting
from spectail.models.open import open_source
from tests.models.test_remote import table

Answer = Callable[[socket.socket, tuple[int, int]], None]
"""What a server does with a connection and the range that is asked for."""


@contextmanager
def listening(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Serve on loopback without any library; yield the address and the requests so far."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    requests: list[str] = []
    open_: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with connection:
            asked = connection.recv(2**16).decode(errors="replace")
            requests.append(asked.partition("\r\n")[0])
            found = re.search(r"range: bytes=(\d+)-(\d+)", asked, re.IGNORECASE)
            part = (int(found[1]), int(found[2]) + 1) if found else (0, 2**62)
            try:
                if asked.split(" ")[1].endswith(".json"):
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    return
                answer(connection, part)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            open_.append(connection)
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in open_:
            connection.close()


def never(connection: socket.socket, part: tuple[int, int]) -> None:
    """Accept the request and say nothing."""
    time.sleep(60)


def head(data: bytes, part: tuple[int, int], more: str = "") -> bytes:
    """The beginning of an answer with a part of a file."""
    start, end = part[0], min(part[1], len(data))
    return (
        "HTTP/1.1 206 Partial Content\r\nConnection: close\r\n"
        f"Content-Range: bytes {start}-{end - 1}/{len(data)}\r\n"
        f"Content-Length: {end - start}\r\n{more}\r\n"
    ).encode()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thirtieth of the usual patience, and as much time as there may be for the second try."""
    monkeypatch.setattr(waiting, "ANSWER", timedelta(seconds=1))
    monkeypatch.setattr(waiting, "RETRY", timedelta(seconds=1.9))
    monkeypatch.setattr(waiting, "SAY", timedelta(seconds=0.3))


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    generator = torch.Generator().manual_seed(0)
    whole = {f"layers.{i}.weight": torch.randn(128, 96, generator=generator) for i in range(8)}
    save_file(whole, tmp_path / "m.safetensors")
    return (tmp_path / "m.safetensors").read_bytes()


def test_the_usual_patience_is_about_a_minute() -> None:
    """The tests below shorten it: here are the numbers of the documentation."""
    assert timedelta(seconds=30) == waiting.ANSWER
    assert timedelta(seconds=10) == waiting.SAY
    # The second try begins after the first has failed, and there is no third one.
    assert waiting.ANSWER < waiting.RETRY < 2 * waiting.ANSWER


@pytest.mark.parametrize(
    "address",
    [
        "{}/m.safetensors?X-Signature=secret",
        "{}/folder/?X-Signature=secret",
        "hf://org/name",
        "s3://bucket/folder",
        "gs://bucket/folder",
    ],
)
def test_a_server_that_never_answers_is_given_up(
    address: str,
    short: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with listening(never) as (server, requests):
        place = server.replace("http://", "http://user:secret@")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
        started = time.monotonic()
        code = run(["analyze", address.format(place), "--out", str(tmp_path / "run")])
        seconds = time.monotonic() - started
    assert code == 2
    assert 1.9 < seconds < 15
    # huggingface_hub itself asks other things, in a thread of its own.
    assert len([line for line in requests if "agent" not in line]) == 2
    printed = capsys.readouterr()
    [error] = printed.err.strip().splitlines()
    assert "cannot be read: the server has not answered for about 2 seconds" in error
    assert "run the same command again" in error
    [said] = [record.getMessage() for record in caplog.records]
    shown = address.format(server).split("?")[0]
    assert re.fullmatch(rf"waiting for {re.escape(shown[:12])}\S*: no answer yet; .*", said)
    assert "secret" not in printed.out + printed.err + said
    assert not (tmp_path / "run").exists()


def test_the_command_says_that_it_waits(tmp_path: Path) -> None:
    """In a process of its own, where nobody has set up logging; with the usual patience."""
    with listening(never) as (server, _):
        command = [sys.executable, "-m", "spectail", "describe", f"{server}/m.safetensors"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = process.stderr.readline()
            process.kill()
    assert said == (
        f"waiting for {server}/m.safetensors: no answer yet; given up after about 60 seconds\n"
    )


@pytest.mark.parametrize("tags", [True, False])
def test_a_server_that_stops_within_an_answer_is_given_up(
    data: bytes, short: None, tags: bool
) -> None:
    def stalls(connection: socket.socket, part: tuple[int, int]) -> None:
        connection.sendall(head(data, part, 'ETag: "a"\r\n' if tags else "") + data[:5000])
        time.sleep(60)

    with listening(stalls) as (server, requests):
        started = time.monotonic()
        with pytest.raises(st.SourceUnreachableError, match="has not answered for about 2 seconds"):
            open_source(f"{server}/m.safetensors")
        assert time.monotonic() - started < 15
    assert len(requests) == 2


def test_the_journal_is_kept_when_a_server_falls_silent(
    data: bytes, short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server answers until half of the layers were read, and later it answers again."""
    silent = threading.Event()
    journal = tmp_path / "run" / ".progress.jsonl"

    def answer(connection: socket.socket, part: tuple[int, int]) -> None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 3 and not silent.is_set():
            time.sleep(60)
        connection.sendall(head(data, part, 'ETag: "a"\r\n') + data[part[0] : part[1]])

    with listening(answer) as (server, _):
        command = ["analyze", f"{server}/m.safetensors", "--out", str(tmp_path / "run")]
        assert run(command) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "has not answered" in error
        assert f"{journal} keeps the layers measured before" in error
        assert journal.read_bytes().count(b"\n") > 3
        silent.set()
        assert run(command) == 0


@pytest.mark.parametrize("tags", [True, False])
def test_a_slow_server_is_not_given_up(
    data: bytes,
    short: None,
    tags: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pauses shorter than the patience may add up to more than it."""
    # Much longer than the pauses: a busy machine adds its own to them.
    monkeypatch.setattr(waiting, "ANSWER", timedelta(seconds=2))
    monkeypatch.setattr(waiting, "RETRY", timedelta(seconds=3.9))

    def slowly(connection: socket.socket, part: tuple[int, int]) -> None:
        body = data[part[0] : part[1]]
        pieces = 40 if len(body) > 60_000 else 1
        time.sleep(0.5 if pieces > 1 else 0)
        connection.sendall(head(data, part, 'ETag: "a"\r\n' if tags else ""))
        for i in range(pieces):
            time.sleep(0.12 if pieces > 1 else 0)
            size = -(-len(body) // pieces)
            connection.sendall(body[i * size : (i + 1) * size])

    with listening(slowly) as (server, _), caplog.at_level(logging.WARNING):
        started = time.monotonic()
        found = table(f"{server}/m.safetensors", include=["layers.[05]"])
        seconds = time.monotonic() - started
        assert seconds > 4
    expected = table(tmp_path / "m.safetensors", include=["layers.[05]"])
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    # It says so from time to time, not for each of the requests.
    assert 1 <= len(caplog.records) <= seconds / 4 + 1


def test_answers_without_tag_that_break_off_are_repeated(data: bytes, tmp_path: Path) -> None:
    """obstore resumes an answer by its ETag only; without one the request is made again."""
    broken: set[int] = set()

    def breaks(connection: socket.socket, part: tuple[int, int]) -> None:
        body = data[part[0] : part[1]]
        if part[0] not in broken:
            broken.add(part[0])
            body = body[: len(body) // 2]
        connection.sendall(head(data, part) + body)

    with listening(breaks) as (server, _):
        found = table(f"{server}/m.safetensors")
    assert len(broken) > 5
    expected = table(tmp_path / "m.safetensors")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x1b[2Jhello\r\nworld\r\n\r\n", "the server's answer is no HTTP"),
        (b"", "the server breaks the connection"),
        (b"HTTP/1.1 500 \x1b[2J\x07 no\r\nContent-Length: 0\r\n\r\n", "500 Internal Server Error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<a", "the server breaks off its answers"),
    ],
    ids=["no HTTP", "nothing", "odd status", "half"],
)
def test_a_servers_own_words_are_not_shown(
    answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stores.WAITS, "init_backoff", timedelta(milliseconds=1))
    with (
        listening(lambda connection, _: connection.sendall(answer)) as (url, _),
        pytest.raises(st.SourceError) as caught,
    ):
        open_source(f"{url}/folder/")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
