"""Webhooks that arrived whole are taken in by the thread that saw them arrive; no thread waits for the disk.

gunicorn gives every request a thread. To hand a webhook to that thread, from there to the writer and all the way
back takes longer than the webhook itself, since all of them fight over the interpreter's lock. So the thread that
watches the connections looks first: where a small, plain request that the application's `Shortcut` takes lies
whole in the socket's buffer, it is verified there and handed to the writer; once it is on disk, the same thread
sends the answers of the whole batch. Everything else goes the usual way: it was only looked at, and not read.

What each step gave, in µs of processor time for a signed webhook of 1 KB over 16 connections (2 cores; the figures
of one afternoon, on a machine that was busy with other work, so only their ratios count):

    a thread for each request, waiting for the writer                     1,290-1,460
    taken in here, read by gunicorn's parser, answered by its response      950-1,040
    plain heads read and answers written here                                 810-850
    all that others said meanwhile goes into the same commit                  760-770
    names of headers looked up instead of searched, times written once        605-685

Webhooks a second, before and now, in four rounds of both: 530 and 557, 368 and 383, 440 and 438 while other
programs wanted the processors four fifths of the time, and 597 and 1,379 once it was quieter (null: 1,182-1,495).
"""

from __future__ import annotations

import re
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.workers.gthread import _DEFER, TConn, ThreadWorker

EXPRESS_BYTES = 16 * 1024  # of a request with its head: all connections wait while one is verified
TARGET_BYTES = 1024
HEADERS = 64  # fewer than gunicorn is told to take
GATHER_S = 0.004  # for others to say something, too, before a commit; only while somebody does
PATIENCE_S = 15.0  # less than senders wait for an answer

# Every other head is gunicorn's to read: older versions, folded lines, names with odd characters, whatever may be
# read in two ways.
_PLAIN = re.compile(rb"POST /[!-~]* HTTP/1\.1(?:\r\n[0-9A-Za-z-]+:[\t -~\x80-\xff]*)+")
_ODD = frozenset({"transfer-encoding", "content-encoding", "expect", "upgrade", "trailer", "te"})
_LENGTH = re.compile("[0-9]{1,5}")


class Answer(Protocol):
    """What the sender hears. *headers* are all but those of the connection."""

    @property
    def status(self) -> str: ...
    @property
    def headers(self) -> Sequence[tuple[str, str]]: ...
    @property
    def body(self) -> bytes: ...


class Shortcut(Protocol):
    """What an application has as its attribute ``shortcut`` when it can answer some requests later."""

    @property
    def paths(self) -> Collection[bytes]:
        """Return the paths of requests that it may take."""
        ...

    def begin(
        self, target: str, headers: Mapping[str, str], body: bytes, answer: Callable[[Answer], None]
    ) -> Callable[[], None] | None:
        """Take a POST request to *target* and return at once; None: it is not taken. Header names are lower-case.

        *answer* is called once, by any thread, after the next `finish`. What is returned makes that happen now.
        """
        ...

    def finish(self) -> None:
        """Go on with all that was begun since the last call; returns at once."""
        ...


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request that waits for its answer."""

    conn: TConn
    closes: bool  # the sender wants no other answer on this connection
    began: float  # by `time.monotonic`
    give_up: Callable[[], None]


class ExpressWorker(ThreadWorker):
    """gunicorn's threads, and a way past them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._exchanges: set[_Exchange] = set()
        self._answered: deque[tuple[_Exchange, Answer]] = deque()
        self._begun = 0  # requests since the last `Shortcut.finish`
        self._called = False  # the watching thread knows that there are answers

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Look who has something to say. Webhooks that come while others are looked at share their commit."""
        super().wait_for_and_dispatch_events(timeout)
        if not self._begun:
            return
        deadline = time.monotonic() + GATHER_S
        seen = 0
        while seen < self._begun and time.monotonic() < deadline:
            seen = self._begun
            super().wait_for_and_dispatch_events(0)
        self._begun = 0
        self.wsgi.shortcut.finish()

    def enqueue_req(self, conn: TConn) -> None:
        """Called with a connection that is new or has something to say, by the thread that watches them all."""
        if not self.alive:
            super().enqueue_req(conn)
        elif (data := _peek(conn.sock)) is None and not conn.initialized:
            self._go_on(conn, _DEFER)  # it is watched until it says something
        elif not data or not self._begin(conn, data):
            super().enqueue_req(conn)

    def murder_pending(self) -> None:
        """Called about once a second: whatever holds the writer up, senders hear something in time."""
        super().murder_pending()
        late = time.monotonic() - PATIENCE_S
        for exchange in list(self._exchanges):
            if exchange.began < late:
                exchange.give_up()

    def _begin(self, conn: TConn, data: bytes) -> bool:
        shortcut: Shortcut | None = getattr(self.wsgi, "shortcut", None)
        if shortcut is None or _has_read_ahead(conn):
            return False
        request = read_plain(data, shortcut.paths)
        if request is None:
            return False
        target, headers, body = request
        exchange = _Exchange(
            conn, headers.get("connection", "").lower() == "close", time.monotonic(), lambda: None
        )
        give_up = shortcut.begin(target, headers, body, lambda answer: self._tell(exchange, answer))
        if give_up is None:
            return False
        exchange.give_up = give_up
        self._exchanges.add(exchange)
        self._begun += 1
        conn.sock.recv(len(data))
        return True

    def _tell(self, exchange: _Exchange, answer: Answer) -> None:
        """Have *answer* sent; called by any thread, in batches by the one that writes."""
        self._answered.append((exchange, answer))
        if not self._called:
            self._called = True
            self.method_queue.defer(self._send_answers)

    def _send_answers(self) -> None:
        self._called = False  # before looking: who answers from now on calls again
        while self._answered:
            exchange, answer = self._answered.popleft()
            self._exchanges.discard(exchange)
            self._send(exchange, answer)

    def _send(self, exchange: _Exchange, answer: Answer) -> None:
        conn = exchange.conn
        closes = exchange.closes or not self.alive or len(self.keepalived_conns) >= self.max_keepalived
        wire = as_wire(answer, closes=closes)
        try:
            if not conn.initialized:
                self.initialize(conn)
            # An answer is small. Where there is no room for it, the peer did not read the thousands before it.
            whole = conn.sock.send(wire, socket.MSG_DONTWAIT) == len(wire)
        except OSError:
            whole = False
        threads: ThreadPoolExecutor | None = self.tpool
        if whole and closes and threads is not None:
            goodbye = threads.submit(self.say_goodbye, conn)
            goodbye.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))
        else:
            self._go_on(conn, whole)

    def _go_on(self, conn: TConn, how: object) -> None:
        """Do as if a thread were done with *conn*: True, it is watched; False, it is closed."""
        done: Future[object] = Future()
        done.set_result(how)
        self.finish_request(conn, done)

    def initialize(self, conn: TConn) -> None:
        """Called before a connection's first answer."""
        conn.init()

    def say_goodbye(self, conn: TConn) -> bool:
        """Called in a thread of its own when the last answer is sent; False: the connection does not go on."""
        return False


def read_plain(data: bytes, paths: Collection[bytes]) -> tuple[str, dict[str, str], bytes] | None:
    """Return target, headers and body when *data* is one whole, plain request to one of *paths*, and no more."""
    if not data.startswith(b"POST "):
        return None
    blank = data.find(b" ", 5, TARGET_BYTES)
    target = data[5:blank]
    end = data.find(b"\r\n\r\n")
    if blank < 0 or end < 0 or target.partition(b"?")[0] not in paths or not _PLAIN.fullmatch(data, 0, end):
        return None
    _, *lines = data[:end].decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
    length = headers.get("content-length", "")
    if (
        len(headers) < len(lines)  # a header that stands there twice
        or len(lines) > HEADERS
        or not headers.get("content-type", "-")  # gunicorn drops an empty one
        or not _ODD.isdisjoint(headers)
        or not _LENGTH.fullmatch(length)
        or end + 4 + int(length) != len(data)
    ):
        return None
    return target.decode("ascii"), headers, data[end + 4 :]


def as_wire(answer: Answer, *, closes: bool) -> bytes:
    """Return *answer* as HTTP/1.1, with the headers that gunicorn gives every answer."""
    lines = [
        f"HTTP/1.1 {answer.status}",
        f"Server: {vars(wsgi)['SERVER']}",
        f"Date: {_date(int(time.time()))}",
        f"Connection: {'close' if closes else 'keep-alive'}",
        *(f"{name}: {value}" for name, value in answer.headers),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return str(util.http_date(second))


def _has_read_ahead(conn: TConn) -> bool:
    """Say whether gunicorn holds bytes of the next request, which the socket no longer has."""
    return conn.parser is not None and bool(conn.parser.unreader.buf.getvalue())


def _peek(connection: socket.socket) -> bytes | None:
    """Return what can be read at once, b"" at the end; None: nothing yet."""
    try:
        return connection.recv(EXPRESS_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""
