"""A small HTTP/1.1 server on loopback for the fakes.

It keeps connections open, as the platforms do, ends at once when told to, and takes a fraction of the time of a
general one: thousands of tests wait for its answers.
"""

from __future__ import annotations

import io
import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIApplication, WSGIEnvironment

LINE_BYTES = 64 * 1024
BODILESS = ("1", "204", "304")  # how a status begins that has no body
SOCKET = "bridge.socket"  # in a request's environment: the connection it came on, to be cut


@contextmanager
def serve(app: WSGIApplication, port: int = 0) -> Iterator[str]:
    """Serve *app* on 127.0.0.1 (0: on a free port) and yield its base URL, without a trailing slash."""
    server = _Server(app, port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.end()
        thread.join()


class _Server:
    """Accepts connections, and gives each a thread."""

    def __init__(self, app: WSGIApplication, port: int) -> None:
        self._app = app
        self._listening = socket.create_server(("127.0.0.1", port), backlog=128)
        self._told, self._tell = socket.socketpair()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port: int = self._listening.getsockname()[1]

    def run(self) -> None:
        """Serve until `end`; who is connected then is hung up on."""
        with self._told, self._listening, selectors.DefaultSelector() as ready:
            ready.register(self._told, selectors.EVENT_READ)
            ready.register(self._listening, selectors.EVENT_READ)
            while all(key.fileobj is self._listening for key, _ in ready.select()):
                peer, _ = self._listening.accept()
                with self._lock:
                    self._open.add(peer)
                threading.Thread(target=self._talk, args=(peer,), daemon=True).start()
        with self._lock, suppress(OSError):
            for peer in self._open:
                peer.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Have `run` return."""
        self._tell.close()

    def _talk(self, peer: socket.socket) -> None:
        """Answer the requests of one connection, one after the other, until either side has enough."""
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError), peer.makefile("rb") as stream:
                about = {SOCKET: peer, "SERVER_PORT": str(self.port), "REMOTE_ADDR": peer.getpeername()[0]}
                while environ := _request(stream):
                    environ |= about
                    peer.sendall(_answer(self._app, environ))
                    if environ.get("HTTP_CONNECTION", "").lower() == "close":
                        break
        finally:
            with self._lock:
                self._open.discard(peer)
            peer.close()


def _request(stream: BinaryIO) -> WSGIEnvironment | None:
    """Return the next request, read whole, or None where there is none, or none that makes sense."""
    first = stream.readline(LINE_BYTES).decode("latin-1").split()
    if len(first) != 3:
        return None
    method, target, protocol = first
    headers: dict[str, str] = {}
    while (line := stream.readline(LINE_BYTES)) != b"\r\n":
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            return None
        key = name.upper().replace("-", "_")
        headers[key] = f"{headers[key]},{value.strip()}" if key in headers else value.strip()
    length = int(headers.get("CONTENT_LENGTH", "0"))
    body = stream.read(length)
    if len(body) < length or "TRANSFER_ENCODING" in headers:  # no client of ours sends in chunks
        return None
    path, _, query = target.partition("?")
    return {
        **{key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}": headers[key] for key in headers},
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),  # bytes as text, as WSGI has it
        "QUERY_STRING": query,
        "REQUEST_URI": target,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PROTOCOL": protocol,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _answer(app: WSGIApplication, environ: WSGIEnvironment) -> bytes:
    """Return what *app* says to the request, as it goes over the wire."""
    status, headers = "", list[tuple[str, str]]()

    def start_response(line: str, given: list[tuple[str, str]], _failure: Any = None) -> Any:
        nonlocal status, headers
        status, headers = line, given
        return lambda _data: None  # the way to write of old times; nobody here does

    parts = app(environ, start_response)
    try:
        body = b"".join(parts)
    finally:
        if close := getattr(parts, "close", None):
            close()
    if not any(name.lower() == "content-length" for name, _ in headers) and not status.startswith(BODILESS):
        headers = [*headers, ("Content-Length", str(len(body)))]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    shown = b"" if environ["REQUEST_METHOD"] == "HEAD" else body
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + shown
