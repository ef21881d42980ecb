"""Calls outward, against servers that answer badly, over real sockets."""

from __future__ import annotations

import gzip
import itertools
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest

from bridge.errors import Retryable
from bridge.outbound import READ_CAP_BYTES, Api, new_session

Parts = Iterable[bytes]


class Server:
    """Answers every call with the same head and the parts of a body, one after the other."""

    def __init__(self, parts: Callable[[], Parts], pause_s: float) -> None:
        self.parts, self.pause_s = parts, pause_s
        self.asked = b""
        self.ended = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))

    def serve(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            self.asked = connection.recv(65_536)
            try:
                for part in self.parts():
                    connection.sendall(part)
                    if self.ended.wait(self.pause_s):
                        return
            except OSError:
                return  # the caller hung up, as it should


@contextmanager
def answering(head: str, parts: Callable[[], Parts], pause_s: float = 0) -> Iterator[tuple[Api, Server]]:
    """Yield an API whose one call is answered with *head* (its header lines) and *parts*."""
    first = f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode()
    server = Server(lambda: itertools.chain([first], parts()), pause_s)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        with new_session() as session:
            port = server.socket.getsockname()[1]
            yield (
                Api(f"http://127.0.0.1:{port}", session=session, read_timeout_s=5, total_timeout_s=0.3),
                server,
            )
    finally:
        server.ended.set()
        thread.join()
        server.socket.close()


def chunked(parts: Parts) -> Iterator[bytes]:
    for part in parts:
        yield b"%x\r\n%s\r\n" % (len(part), part)


DRIPPING = {
    "sized": ("Content-Length: 100000", lambda: itertools.repeat(b" ")),
    "unsized": ("Connection: close", lambda: itertools.repeat(b" ")),
    "chunked": ("Transfer-Encoding: chunked", lambda: chunked(itertools.repeat(b" "))),
    "compressed": (
        "Content-Encoding: gzip\r\nConnection: close",
        lambda: (bytes([byte]) for byte in gzip.compress(bytes(range(256)) * 50, 0)),
    ),
}


@pytest.mark.parametrize("kind", DRIPPING)
def test_a_body_that_drips_is_given_up(kind: str) -> None:
    head, parts = DRIPPING[kind]
    with answering(head, parts, pause_s=0.02) as (api, _):
        started = time.monotonic()
        with pytest.raises(Retryable) as caught:
            api.call("GET", "/")
        assert time.monotonic() - started < 3
    assert (caught.value.code, caught.value.maybe_done) == ("timeout", True)
    assert [exchange.error for exchange in api.exchanges] == ["ReadTimeout"]


def test_a_small_body_that_unpacks_to_a_huge_one_is_never_unpacked() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    assert len(bomb) < READ_CAP_BYTES / 40
    with answering(f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}", lambda: [bomb]) as (api, _):
        api.total_timeout_s = 30
        with pytest.raises(Retryable) as caught:
            api.call("GET", "/")
    assert (caught.value.code, caught.value.maybe_done) == ("nonsense", True)
    assert "larger than 4 MiB" in str(caught.value)


def test_nothing_compressed_is_asked_for_and_what_is_compressed_all_the_same_is_read() -> None:
    body = gzip.compress(b'{"ok": true}')
    with answering(f"Content-Encoding: gzip\r\nContent-Length: {len(body)}", lambda: [body]) as (api, server):
        assert api.call("GET", "/").json() == {"ok": True}
    assert b"\r\nAccept-Encoding: identity\r\n" in server.asked


def test_a_body_in_many_parts_is_put_together() -> None:
    parts = [b'{"list": [', *[b"1, " * 4000] * 20, b"2]}"]
    for head, sent in (
        (f"Content-Length: {sum(map(len, parts))}", parts),
        ("Transfer-Encoding: chunked", [*chunked(parts), b"0\r\n\r\n"]),
        ("Connection: close", parts),
    ):
        with answering(head, sent.copy) as (api, _):
            api.total_timeout_s = 30
            assert len(api.call("GET", "/").json()["list"]) == 80_001


@pytest.mark.parametrize(
    ("head", "parts"),
    [
        ("Content-Length: 100", [b'{"a": 1}']),
        ("Transfer-Encoding: chunked", [b"8\r\n{", b'"a": 1}\r\n']),
        ("Transfer-Encoding: chunked", [b"no length\r\n"]),
        ("Content-Encoding: gzip\r\nContent-Length: 8", [b'{"a": 1}']),
    ],
)
def test_a_body_that_breaks_off_or_cannot_be_unpacked_is_no_answer(head: str, parts: list[bytes]) -> None:
    with answering(head, lambda: parts) as (api, _), pytest.raises(Retryable) as caught:
        api.call("GET", "/")
    assert (caught.value.code, caught.value.maybe_done) == ("network", True)
    assert "broke off" in str(caught.value)
