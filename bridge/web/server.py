"""The web process under gunicorn: many threads, one commit for all that arrived meanwhile."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.errors import InvalidHeader, UnsupportedTransferCoding
from gunicorn.workers.gthread import _DEFER, TConn

from bridge import log
from bridge.web.express import ExpressWorker

if TYPE_CHECKING:
    from flask import Flask

# Threads serve all that `express` does not take in by itself. How many there are hardly matters for speed, so
# there are enough of them to bear a few slow senders. Before it, these were tried, with a thread for each that
# waits for the writer (signed, 1 KB; against a Flask route that does nothing on the same server, called null; two
# or three runs each on a busy 2-core machine, lowest to highest):
#
#   processes x threads   null/s        stored durably/s   ratio      p99 at 64 connections
#   1 x 8                 1,300-1,580   530-710            0.39-0.48  120-180 ms
#   1 x 16                1,190-1,730   540-800            0.33-0.62  130-190 ms
#   1 x 32                  950-1,410   570-810            0.48-0.75  130-200 ms
#   2 x 16                1,780-2,660   670-1,130          0.27-0.48   90-180 ms
#
# With SQLite a second process only shares the turns at writing. A shorter switch interval of the interpreter gave
# nothing.
THREADS = 32
READ_DEADLINE_S = 20.0  # for a whole request to arrive; a sender that drips bytes holds a thread no longer
SEND_TIMEOUT_S = 10.0  # for a peer that reads nothing of its answer
ANSWER_DEADLINE_S = 30.0  # for a request and its answer; a peer that sips its answer holds a thread no longer
LINGER_S = 1.0  # for a peer to read the end of its last answer before the connection is closed
LINGER_BYTES = 64 * 1024
GRACE_S = 7  # of the 10 seconds in which all of bridge ends: requests under way are answered by then
ARBITER_S = 0.5  # for gunicorn's main process to close its side of the door
LAST_BYTE_S = 2.0  # a connection that was there when we were asked to stop may still say so long what it wants
KEEPALIVE_S = 15
HEAD_LINE_BYTES = 8190
HEADERS = 100
HEADER_BYTES = 16 * 1024  # a JSON web token may be that long


class Worker(ExpressWorker):
    """gunicorn's threads and a way past them, with an end to the patience for slow senders and slow readers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._began: dict[TConn, float] = {}  # requests under way
        self._asked_at: float | None = None  # to stop

    def handle(self, conn: TConn) -> object:
        if not conn.initialized:
            if not conn.wait_for_data(LAST_BYTE_S):
                return False
            limit_sending(conn.sock)
        self._began[conn] = time.monotonic()
        try:
            goes_on = super().handle(conn)
        finally:
            self._began.pop(conn, None)
        if not goes_on:
            # gunicorn waits for the peer's goodbye in the thread that serves all connections: do it here before.
            say_goodbye(conn.sock)
        return goes_on

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called with SIGTERM: by the arbiter, once it has closed its side of the door, or with all at once.

        As long as the arbiter has not, the kernel lets people in that nobody serves; so wait for it. Its own
        signal comes on top of the one for all, if that was one.
        """
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self.method_queue.defer(lambda: None)
        else:
            super().handle_exit(sig, frame)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self._asked_at is None or not self.alive:
            super().wait_for_and_dispatch_events(timeout)
        else:
            left_s = self._asked_at + ARBITER_S - time.monotonic()
            super().wait_for_and_dispatch_events(min(timeout, max(left_s, 0)))
            if left_s <= 0:
                self.alive = False

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called with False at the end: take in who waits at the door, then close it.

        Whoever the kernel let in already would get a reset in the middle of his request, and a proxy answers that
        with a 502. From a closed door it is turned away before it says anything, and may knock again.
        """
        super().set_accept_enabled(enabled)
        if self.alive:
            return
        for listener in self.sockets:
            taken = -1
            while taken < self.nr_conns:
                taken = self.nr_conns
                self.accept(listener)
            listener.close()

    def finish_request(self, conn: TConn, fs: Any) -> None:
        if not self.alive and not fs.cancelled() and fs.exception() is None and fs.result() is _DEFER:
            self.enqueue_req(conn)  # it was put off while we did not know yet that we are to stop
        else:
            super().finish_request(conn, fs)

    def _cap_keepalive(self, deadline: float) -> None:
        """Called at the end: connections that say nothing must not hold us until the grace is over."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def initialize(self, conn: TConn) -> None:
        limit_sending(conn.sock)
        super().initialize(conn)

    def say_goodbye(self, conn: TConn) -> bool:
        say_goodbye(conn.sock)
        return super().say_goodbye(conn)

    def murder_pending(self) -> None:
        """Called about once a second: hang up on whoever takes too long over one request."""
        super().murder_pending()
        now = time.monotonic()
        for conn, began in list(self._began.items()):
            if now - began > ANSWER_DEADLINE_S:
                shut(conn.sock, socket.SHUT_RDWR)
            elif now - began > READ_DEADLINE_S:
                # Only the reading side: an answer that is being written still goes out.
                shut(conn.sock, socket.SHUT_RD)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        # What we do not take is the sender's mistake, and none of ours that an alarm should count as a 5xx.
        if isinstance(exc, UnsupportedTransferCoding):
            exc = InvalidHeader("Transfer-Encoding")
        super().handle_error(req, client, addr, exc)


def limit_sending(connection: socket.socket) -> None:
    """Let a blocking send that gets nothing away fail with `BlockingIOError` after `SEND_TIMEOUT_S`."""
    seconds, rest = divmod(SEND_TIMEOUT_S, 1)
    timeval = struct.pack("@ll", int(seconds), int(rest * 1_000_000))
    with contextlib.suppress(OSError):  # it may be gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def say_goodbye(connection: socket.socket) -> None:
    """End the answer and give the peer a moment to close; afterwards nothing waits for it any more.

    What it still sends is read: a close with unread bytes would take back the answer that is on its way.
    """
    deadline = time.monotonic() + LINGER_S
    left = LINGER_BYTES
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            connection.settimeout(seconds)
            read = len(connection.recv(4096))
            if not read:
                break
            left -= read
    shut(connection, socket.SHUT_RD)


def shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # it may be gone already
        connection.shutdown(how)


class ServerLog(Logger):
    """gunicorn's own messages as events of ours. Requests are not logged here: each has its own event."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg

    def access(self, *args: Any, **kwargs: Any) -> None:
        pass

    def critical(self, msg: str, *args: Any, **kwargs: Any) -> None:
        _note("error", msg, args)

    def error(self, msg: str, *args: Any, **kwargs: Any) -> None:
        _note("error", msg, args)

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        # "Invalid request from ip=…": anybody can cause any number of those, and they name an address.
        if not msg.startswith("Invalid request"):
            _note("warning", msg, args)

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        _note("info", msg, args)

    def debug(self, msg: str, *args: Any, **kwargs: Any) -> None:
        pass

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        # Without its arguments: they quote the URL, which may hold a token.
        error = sys.exc_info()[1]
        # A peer that went away or does not read its answer: anybody can cause any number of those.
        if error is not None and not isinstance(error, BlockingIOError | ConnectionError | TimeoutError):
            log.bug("web.request_failed", error)

    def log(self, lvl: int | str, msg: str, *args: Any, **kwargs: Any) -> None:
        _note("info", msg, args)

    def reopen_files(self) -> None:
        pass

    def close_on_exec(self) -> None:
        pass


def _note(level: str, message: str, args: tuple[Any, ...]) -> None:
    log.event("web.server", level=level, message=(message % args) if args else message)


# What stands in the Server header of every answer: nobody needs to know more.
vars(wsgi)["SERVER"] = "bridge"


class Server(BaseApplication):
    """gunicorn, set up in code. *make_app* is called in each process after the fork, *stop* at its end."""

    def __init__(
        self, make_app: Callable[[], Flask], stop: Callable[[], None], *, bind: str, processes: int, threads: int
    ) -> None:
        self._make_app = make_app
        self._stop = stop
        self._settings: dict[str, Any] = {
            "bind": bind,
            "workers": processes,
            "worker_class": Worker,
            "threads": threads,
            "worker_connections": 1000,
            "keepalive": KEEPALIVE_S,
            "graceful_timeout": GRACE_S,
            "timeout": 60,
            "max_requests": 0,
            "limit_request_line": HEAD_LINE_BYTES,
            "limit_request_fields": HEADERS,
            "limit_request_field_size": HEADER_BYTES,
            "accesslog": None,
            "logger_class": ServerLog,
            "control_socket_disable": True,
            # Nothing is believed of what a proxy says: the public URL is configured. (From a trusted address a
            # header named SCRIPT_NAME would move every path.)
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "secure_scheme_headers": {},
            "worker_exit": lambda server, worker: stop(),
        }
        super().__init__()

    def load_config(self) -> None:
        settings: Any = self.cfg  # gunicorn says that it may be None, and never is here
        for name, value in self._settings.items():
            settings.set(name, value)

    def load(self) -> Flask:
        return self._make_app()
