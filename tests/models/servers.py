"""Web servers on loopback that serve a folder, with the faults that servers have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit of the fake hub's only branch."""


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Server:
    """What a server serves and how it fails; ``requests`` and ``sent`` count what it did."""

    folder: Path
    fail_every: int = 0
    """Every so many requests one fails."""
    fault: str = "503"
    """How: a status, ``reset`` (the connection), ``truncate`` (half of the announced body) or
    ``short`` (half of the body, announced as such)."""
    ranges: bool = True
    etags: bool = True
    dates: bool = False
    listing: bool = False
    """Whether folders are answered with a page, which does not say how long it is."""
    page: bytes = b""
    """What is sent in place of a file that does not exist, as if it existed."""
    refusal: tuple[int, bytes] | None = None
    """A status and a body with which every request is refused."""
    denied: str = "$^"
    """A pattern of the paths that are answered with 403."""
    user: str = ""
    """The value of the Authorization header without which the answer is 401."""
    redirect_to: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    """Headers that are sent with every file."""
    on_request: Callable[[Server], None] = lambda server: None
    mirror: bool = False
    """Whether a hub lists files by folders only."""
    large: Any = None
    """The server that a hub redirects to."""
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        state = self.state
        with state.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.requests.append(Request(self.command, self.path, headers))
            fails = state.fail_every and len(state.requests) % state.fail_every == 0
        state.on_request(state)
        if state.refusal:
            self.answer(*state.refusal)
        elif fails and state.fault == "reset":
            self.close_connection = True
            self.connection.close()
        elif fails and state.fault.isdigit():
            self.answer(int(state.fault))
        elif state.user and self.headers.get("Authorization") != state.user:
            self.answer(401)
        elif re.search(state.denied, urlsplit(self.path).path):
            self.answer(403)
        else:
            self.serve(unquote(urlsplit(self.path).path), bool(fails))

    def serve(self, path: str, fails: bool) -> None:
        if self.state.redirect_to:
            return self.answer(302, headers={"Location": self.state.redirect_to + self.path})
        return self.serve_here(path, fails)

    def serve_here(self, path: str, fails: bool) -> None:
        file = self.state.folder / path.lstrip("/")
        if file.is_dir() and self.state.listing:
            names = sorted(f"{f.name}/" if f.is_dir() else f.name for f in file.iterdir())
            links = "".join(f'<a href="{quote(name)}">{name}</a>' for name in names)
            self.stream(f"<html><a href='../'>..</a>{links}</html>".encode())
        elif file.is_file():
            self.send_file(file.read_bytes(), fails)
        elif self.state.page:
            self.send_file(self.state.page, fails)
        else:
            self.answer(404)

    def stream(self, page: bytes) -> None:
        """Send a page in chunks, as servers do that make it on request."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(f"{len(page):x}\r\n".encode() + page + b"\r\n0\r\n\r\n")

    def send_file(self, data: bytes, fails: bool) -> None:
        state, headers, status = self.state, dict(self.state.extra), 200
        if state.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        if state.dates:
            headers["Last-Modified"] = "Tue, 01 Sep 2026 10:00:00 GMT"
        if state.ranges and (
            match := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        ):
            start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
            if start >= len(data):
                self.answer(416)
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{len(data)}"
            data = data[start:stop]
        if fails and state.fault == "short":
            data = data[: len(data) // 2]
        cut = len(data) // 2 if fails and state.fault == "truncate" else len(data)
        self.answer(status, data, headers, cut)

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int = -1
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if 0 <= cut < len(body):
            body, self.close_connection = body[:cut], True
        with self.state.lock:
            self.state.sent += len(body)
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


class _HubHandler(_Handler):
    """The hub: its description of a repository, and files that lie on another server."""

    def serve(self, path: str, fails: bool) -> None:
        folder = self.state.folder
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if not (folder / match[1]).is_dir() or (match[2] or "main") not in {"main", COMMIT}:
                return self.answer(404)
            files = [file for file in (folder / match[1]).rglob("*") if file.is_file()]
            siblings = [{"rfilename": str(f.relative_to(folder / match[1]))} for f in files]
            answer = {"id": match[1], "sha": COMMIT}
            if not self.state.mirror:
                answer |= {"siblings": siblings}
            return self.stream(json.dumps(answer).encode())
        if self.state.mirror and (match := re.fullmatch(r"/api/models/(.+)/tree/(.+)", path)):
            files = [file for file in (folder / match[1]).rglob("*") if file.is_file()]
            tree = [{"type": "file", "path": str(f.relative_to(folder / match[1]))} for f in files]
            return self.stream(json.dumps(tree).encode())
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None or match[2] not in {"main", COMMIT}:
            return self.answer(404)
        if match[3].endswith(".json") or not self.state.redirect_to:
            return self.serve_here(f"{match[1]}/{match[3]}", fails)
        where = f"{self.state.redirect_to}/{match[1]}/{match[3]}?signed=1"
        return self.answer(302, headers={"Location": where})


@contextmanager
def serve_hub(folder: Path, **options: Any) -> Iterator[Server]:
    """Serve the folder ``org/name`` as a hub does."""
    with serve(folder, _HubHandler, **options) as server:
        yield server


@contextmanager
def serve(folder: Path, handler: type[_Handler] = _Handler, **options: Any) -> Iterator[Server]:
    """Serve a folder on a free port for as long as the block runs."""
    state = Server(folder, **options)
    bound = type("Bound", (handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    state.port = server.server_port
    # Clients break connections off; that is no error of the server.
    server.handle_error = lambda request, address: None  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
