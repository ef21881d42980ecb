"""A proxy as it stands in front of bridge on every host: it ends TLS, and says for whom it asks."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

AWAY = "X-Proxy"  # in answers that are the proxy's own: bridge was not reached, or did not answer
HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


@dataclass
class Proxy:
    """Forwards to bridge at *port*. (To senders it speaks plain HTTP here: what it says of TLS is what counts.)"""

    port: int
    url: str = ""
    turned_away: int = 0  # nobody listened: bridge has not seen the request, and it can be repeated safely
    broken_off: list[str] = field(default_factory=list)  # bridge took the connection, and gave no answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a sender, and the one to bridge that is kept open for it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 10

    def setup(self) -> None:
        super().setup()
        self.proxy = cast(_Server, self.server).proxy
        self.upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=10)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def log_message(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        before = self.headers.get("X-Forwarded-For")
        headers["X-Forwarded-For"] = ", ".join(filter(None, (before, self.client_address[0])))
        headers["X-Forwarded-Proto"] = "https"
        try:
            if self.upstream.sock is None:
                self.upstream.connect()
        except OSError:
            self.proxy.turned_away += 1
            self._answer(503, {AWAY: "turned away"}, b"")
            return
        try:
            self.upstream.request(self.command, self.path, body or None, headers)
            with self.upstream.getresponse() as answer:
                content, given = answer.read(), dict(answer.getheaders())
        except (OSError, http.client.HTTPException) as error:
            self.upstream.close()
            self.proxy.broken_off.append(repr(error))
            self._answer(502, {AWAY: "broken off"}, b"")
        else:
            self._answer(answer.status, given, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serve_proxy(port: int) -> Iterator[Proxy]:
    """Stand in front of the bridge at *port*."""
    proxy = Proxy(port)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.proxy = proxy
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
