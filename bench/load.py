"""A small closed-loop HTTP load generator: one thread, a fixed number of keep-alive connections.

It sends prepared bytes and reads just enough of each answer to know its status, so that on a machine of two cores
it takes little from the server that is measured. Loopback only; bounded in count.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """What a run came to. Latencies are seconds, in the order of the answers."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def per_s(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


@dataclass
class _Connection:
    peer: socket.socket
    sent_at: float = 0.0
    buffer: bytes = b""


def run(port: int, requests: Sequence[bytes], *, connections: int, time_limit_s: float = 60.0) -> Load:
    """Send all *requests* over *connections* to loopback, each connection waiting for its answer."""
    load = Load()
    waiting = iter(requests)
    selector = selectors.DefaultSelector()
    started = time.perf_counter()
    try:
        for _ in range(min(connections, len(requests))):
            peer = socket.create_connection(("127.0.0.1", port), timeout=10)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(peer)
            selector.register(peer, selectors.EVENT_READ, connection)
            _send(connection, waiting)
        while selector.get_map():
            for key, _ in selector.select(timeout=10):
                connection = key.data
                if not _receive(connection, load, port) or not _send(connection, waiting):
                    selector.unregister(connection.peer)
                    connection.peer.close()
            if time.perf_counter() - started > time_limit_s:
                raise TimeoutError(f"{len(load.latencies)} of {len(requests)} answers after {time_limit_s} s")
    finally:
        for key in list(selector.get_map().values()):
            key.data.peer.close()
        selector.close()
    load.seconds = time.perf_counter() - started
    return load


def _send(connection: _Connection, waiting: Iterator[bytes]) -> bool:
    request = next(waiting, None)
    if request is None:
        return False
    connection.sent_at = time.perf_counter()
    connection.peer.sendall(request)
    return True


def _receive(connection: _Connection, load: Load, port: int) -> bool:
    """Read until the answer is whole; False when the server hung up."""
    while True:
        chunk = connection.peer.recv(65536)
        if not chunk:
            raise ConnectionError(f"the server on port {port} hung up")
        connection.buffer += chunk
        head, found, body = connection.buffer.partition(b"\r\n\r\n")
        if not found:
            continue
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if len(body) >= length:
            break
    load.latencies.append(time.perf_counter() - connection.sent_at)
    load.statuses[int(head[9:12])] += 1
    connection.buffer = b""
    return True
