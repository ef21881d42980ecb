"""A bell between processes of one machine: the web process rings, the worker wakes at once, and nobody polls.

It is a named pipe beside the database. A ring says only that there is something to do; the store knows what.
Where named pipes are impossible (some network and container file systems), ringing does nothing and the worker
looks around by itself now and then.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from pathlib import Path
from typing import Protocol

POLL_S = 1.0  # how often a worker without a pipe says that it might have rung


class Ringer(Protocol):
    """What a worker waits for, beside its own lanes."""

    def ring(self) -> None: ...

    def wait(self, timeout_s: float) -> bool: ...

    def close(self) -> None: ...


def bell_path(database: Path) -> Path:
    return database.with_name(f"{database.name}-bell")


class Bell:
    """The bell at *path*. Any number of processes may `ring`; one, the worker, does `wait`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pipe: int | None = None
        self._opened = False
        self._closed = threading.Event()
        self._waiting = threading.Lock()

    def ring(self) -> None:
        """Wake whoever waits. Never blocks and never fails: without a worker there is nobody to wake."""
        with contextlib.suppress(OSError):
            pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)  # fails where nobody waits
            try:
                # A regular file of that name would grow for ever.
                if stat.S_ISFIFO(os.fstat(pipe).st_mode):
                    os.write(pipe, b"\x00")  # fails when the pipe is full: then it rings anyway
            finally:
                os.close(pipe)

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as it rings or rang since the last call, False after *timeout_s* or `close`.

        Without a pipe, True may mean that it did not ring.
        """
        with self._waiting:
            if self._closed.is_set():
                return False
            pipe = self._listen()
            if pipe is None:
                return not self._closed.wait(min(timeout_s, POLL_S)) and timeout_s >= POLL_S
            rang = _ready(pipe, timeout_s)
            if rang:
                _drain(pipe)
            return rang and not self._closed.is_set()

    def close(self) -> None:
        """End a `wait` that is under way, from any thread; later ones return at once."""
        self._closed.set()
        self.ring()
        with self._waiting:
            if self._pipe is not None:
                os.close(self._pipe)
                self._pipe = None

    def _listen(self) -> int | None:
        """Return the pipe, made and opened with the first call; None where there can be none."""
        if not self._opened:
            self._opened = True
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileExistsError):
                    os.mkfifo(self._path, 0o600)
                # For writing as well: else it would be at its end, and always ready, when the last ringer is gone.
                pipe = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
                if stat.S_ISFIFO(os.fstat(pipe).st_mode):
                    self._pipe = pipe
                else:
                    os.close(pipe)
        return self._pipe


class Alarm:
    """A bell that rings within its process only, also from a signal's handler."""

    def __init__(self) -> None:
        self._ours, self._theirs = os.pipe()
        os.set_blocking(self._ours, False)
        os.set_blocking(self._theirs, False)

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # it is full, so it rings anyway
            os.write(self._theirs, b"\x00")

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as it rings or rang since the last call, False after *timeout_s*."""
        rang = _ready(self._ours, timeout_s)
        if rang:
            _drain(self._ours)
        return rang

    def close(self) -> None:
        """To be called when nobody waits any more."""
        os.close(self._theirs)
        os.close(self._ours)


def _ready(pipe: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(max(timeout_s, 0.0) * 1000))


def _drain(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while len(os.read(pipe, 65536)) == 65536:
            pass
