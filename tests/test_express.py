"""Webhooks that the watching thread takes in itself, and what it leaves to the others."""

from __future__ import annotations

import os
import queue
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser

from bridge.web import express
from bridge.web.express import Answer, read_plain
from bridge.web.inbound import Reply, as_received
from bridge.web.server import Server, ServerLog, Worker
from tests.processes import until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATHS = frozenset({b"/hooks/shop"})
HEAD = b"POST /hooks/shop HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LATE = Reply(b"late", "503 Service Unavailable", "text/plain", retry_after="5")


def webhook(body: bytes = b"{}", *headers: bytes) -> bytes:
    return HEAD + b"".join(one + b"\r\n" for one in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass
class Later:
    """An application whose answers the test gives; what does not come by the shortcut, it answers at once."""

    begun: queue.SimpleQueue[tuple[bytes, Callable[[Answer], None]]] = field(default_factory=queue.SimpleQueue)
    finished: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    paths: frozenset[bytes] = PATHS

    @property
    def shortcut(self) -> Later:
        return self

    def begin(
        self, target: str, headers: Mapping[str, str], body: bytes, answer: Callable[[Answer], None]
    ) -> Callable[[], None]:
        self.begun.put((body, answer))
        return lambda: answer(LATE)

    def finish(self) -> None:
        self.finished.release()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = b"by a thread: " + environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def next(self) -> tuple[bytes, Callable[[Answer], None]]:
        assert self.finished.acquire(timeout=10)
        return self.begun.get(timeout=10)


@dataclass
class Running:
    app: Later
    worker: Worker
    thread: threading.Thread
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def stop(self) -> None:
        for _ in range(2):  # with all other processes, and by the arbiter
            self.worker.handle_exit(0, None)

    def ended(self) -> bool:
        self.thread.join(10)
        return not self.thread.is_alive()


@pytest.fixture
def running() -> Iterator[Running]:
    app = Later()
    server = Server(lambda: Flask("none"), lambda: None, bind="127.0.0.1:0", processes=1, threads=2)
    listener = socket.create_server(("127.0.0.1", 0))
    worker = Worker(1, os.getppid(), [listener], server, 60, server.cfg, ServerLog(server.cfg))
    worker.tpool = worker.get_thread_pool()
    worker.wsgi = app
    worker.poller = selectors.DefaultSelector()
    worker.method_queue.init()
    thread = threading.Thread(target=worker.run)
    thread.start()
    one = Running(app, worker, thread, listener.getsockname()[1])
    yield one
    one.stop()
    assert one.ended()
    worker.tmp.close()


def read_answer(peer: socket.socket) -> bytes:
    """Return one whole answer."""
    data = b""
    while b"\r\n\r\n" not in (data := data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")):
        data += peer.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += peer.recv(4096)
    return head + b"\r\n\r\n" + body


def test_a_whole_webhook_holds_no_thread_and_is_answered_later(running: Running) -> None:
    with running.connect() as first, running.connect() as second, running.connect() as third:
        answers = []
        for number, peer in enumerate((first, second, third)):  # there are two threads only
            peer.sendall(webhook(b"%d" % number))
            body, answer = running.app.next()
            assert body == b"%d" % number
            answers.append(answer)
        for number, answer in enumerate(answers):
            answer(Reply(b"stored %d" % number))
        for number, peer in enumerate((first, second, third)):
            said = read_answer(peer)
            assert said.startswith(b"HTTP/1.1 200 OK\r\nServer: bridge\r\nDate: ")
            assert said.endswith(b"\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
                                 b"Content-Length: 8\r\n\r\nstored %d" % number)  # fmt: skip
        first.sendall(webhook(b"again"))  # the connection goes on
        body, answer = running.app.next()
        answer(Reply(b"stored again"))
        assert read_answer(first).endswith(b"stored again")


def test_the_connection_ends_when_the_sender_wants_it_to(running: Running) -> None:
    with running.connect() as peer:
        peer.sendall(webhook(b"{}", b"Connection: close"))
        _, answer = running.app.next()
        answer(Reply(b"stored"))
        said = read_answer(peer)
        assert b"\r\nConnection: close\r\n" in said
        assert peer.recv(1) == b""


@pytest.mark.parametrize(
    "pieces",
    [
        [webhook(b"12345")[:-2], b"45"],
        [HEAD + b"Content-", b"Length: 5\r\n\r\n12345"],
        [webhook(b"12345", b"Expect: 100-continue")],
        [webhook(b"12345").replace(b"1.1", b"1.0")],
        [webhook(b"12345").replace(b"/hooks/shop", b"/hooks/other")],
    ],
)
def test_what_is_not_whole_or_not_plain_goes_its_usual_way(running: Running, pieces: list[bytes]) -> None:
    with running.connect() as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(pieces[0])
        for piece in pieces[1:]:
            until(lambda: bool(running.worker._began), what="a thread that reads")
            peer.sendall(piece)
        assert read_answer(peer).endswith(b"by a thread: 12345")


def test_requests_in_a_row_are_answered_in_that_row(running: Running) -> None:
    with running.connect() as peer:
        peer.sendall(webhook(b"1") + webhook(b"2"))
        said = b""
        while not said.endswith(b"by a thread: 2"):
            said += peer.recv(4096)
        assert said.count(b"HTTP/1.1 200 OK") == 2
        assert b"by a thread: 1HTTP/1.1 200 OK" in said


def test_a_sender_hears_something_in_time(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express, "PATIENCE_S", -1.0)
    with running.connect() as peer:
        peer.sendall(webhook())
        said = read_answer(peer)
        assert said.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 5\r\n" in said


def test_what_was_begun_is_answered_before_the_end(running: Running) -> None:
    with running.connect() as peer:
        peer.sendall(webhook())
        _, answer = running.app.next()
        running.stop()
        answer(Reply(b"stored"))
        said = read_answer(peer)
        assert said.endswith(b"stored")
        assert b"\r\nConnection: close\r\n" in said
        assert peer.recv(1) == b""
    assert running.ended()


def test_a_sender_that_left_harms_nobody(running: Running) -> None:
    gone = running.connect()
    gone.sendall(webhook())
    gone.close()
    _, answer = running.app.next()
    answer(Reply(b"nobody hears it"))
    with running.connect() as peer:
        peer.sendall(webhook(b"{}"))
        _, answer = running.app.next()
        answer(Reply(b"stored"))
        assert read_answer(peer).endswith(b"stored")


# --- what is plain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        webhook(b'{"a": 1}', b"X-Signature:  \t abc= \t", b"X-Latin: \xfc\t\xdf", b"X-Empty:"),
        webhook(b"").replace(b"/hooks/shop", b"/hooks/shop?a=b%20c&d"),
        webhook(b"\x00\xff\r\n\r\n"),
        HEAD.replace(b"Content-Type", b"x-other") + b"content-length: 2\r\n\r\n{}",
    ],
)
def test_a_plain_request_is_read_as_gunicorn_reads_it(data: bytes) -> None:
    read = read_plain(data, PATHS)
    assert read is not None
    target, headers, body = read
    server = Server(lambda: Flask("none"), lambda: None, bind="127.0.0.1:0", processes=1, threads=1)
    request = next(RequestParser(server.cfg, [data], ("127.0.0.1", 1)))
    _, environ = wsgi.create(request, None, ("127.0.0.1", 1), ("127.0.0.1", 2), server.cfg)
    theirs = as_received(environ, "https://x", request.body.read())
    assert (f"https://x{target}", headers, body) == (theirs.url, theirs.headers, theirs.body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        webhook().replace(b"POST", b"PUT"),
        webhook().replace(b"HTTP/1.1", b"HTTP/1.1 "),
        webhook().replace(b"/hooks/shop", b"/hooks/shop/token"),
        webhook().replace(b"/hooks/shop", b"/hooks/sh%6fp"),
        webhook().replace(b"/hooks/shop", b"http://x/hooks/shop"),
        webhook().replace(b"/hooks/shop", b"/hooks/shop?" + b"a" * 1100),
        webhook() + b"P",
        webhook()[:-1],
        webhook(b"{}", b"Content-Length: 2"),
        webhook(b"{}", b"Host: y"),
        webhook().replace(b"application/json", b""),
        webhook(b"{}", b"Transfer-Encoding: chunked"),
        webhook(b"{}", b"Content-Encoding: gzip"),
        webhook(b"{}", b"X_Under: score"),
        webhook(b"{}", b"X-Space : before"),
        webhook(b"{}", b" folded"),
        webhook(b"{}", b": nameless"),
        webhook(b"{}", b"X-Control: \x00"),
        webhook(b"{}", b"X-Bare: a\nb: c"),
        webhook(b"{}").replace(b": 2", b": +2"),
        webhook(b"{}").replace(b": 2", b": 2, 2"),
        webhook(b"{}").replace(b": 2", b": 000002"),
        webhook(b"{}", *(b"X-%d: 1" % n for n in range(100))),
    ],
)
def test_everything_else_is_left_to_gunicorn(data: bytes) -> None:
    assert read_plain(data, PATHS) is None
