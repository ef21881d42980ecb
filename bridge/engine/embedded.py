"""The engine of one machine: a thread for each lane of the one worker process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType

from bridge.engine.protocol import Run
from bridge.errors import ConfigError, Problem
from bridge.model import utc_now

# Deep JSON recurses in C as far as Python's own limit lets it, and Python 3.13 lets it go further: with 1 MiB the
# process died of it. Memory is taken only as far as the stack is used.
STACK_BYTES = 8 * 1024 * 1024
BACKOFF_S = (1.0, 60.0)  # after a run that raised: the first pause and the longest
LOOK_AGAIN_S = 60.0  # however late a wake is due, so that a clock that was set costs no more than this


@dataclass
class _Lane:
    """A lane's state. `due` is the earliest moment asked for since the last run began; None: until it is woken."""

    name: str
    due: datetime | None
    failures: int = 0  # in a row
    not_before: float = 0.0  # by the monotonic clock: the end of a pause after a failure
    woken: threading.Condition = field(default_factory=threading.Condition)
    thread: threading.Thread | None = None


class EmbeddedEngine:
    """An `Engine` of threads.

    *failed* is told of every run that raised, with the lane's name; the lane runs again after a pause. *clock*
    gives the moments that wakes are compared with.
    """

    def __init__(
        self,
        failed: Callable[[str, Exception], None],
        *,
        clock: Callable[[], datetime] = utc_now,
        backoff_s: tuple[float, float] = BACKOFF_S,
    ) -> None:
        self._failed = failed
        self._clock = clock
        self._backoff_s = backoff_s
        self._lanes: dict[str, _Lane] = {}
        self._stopping = False

    def start(self, lanes: Sequence[str], run: Run) -> None:
        now = self._clock()
        # All are there before the first one runs: a run may wake any other.
        self._lanes = {name: _Lane(name, due=now) for name in lanes}
        usual = threading.stack_size(STACK_BYTES)
        try:
            for lane in self._lanes.values():
                lane.thread = threading.Thread(target=self._serve, args=(lane, run), name=lane.name, daemon=True)
                lane.thread.start()
        finally:
            threading.stack_size(usual)

    def wake(self, lanes: Iterable[str], when: datetime | None = None) -> None:
        due = when or self._clock()
        for name in lanes:
            if (lane := self._lanes.get(name)) is not None:
                _ask(lane, due)

    def stop(self, grace_s: float) -> bool:
        deadline = time.monotonic() + grace_s
        self._stopping = True
        for lane in self._lanes.values():
            with lane.woken:
                lane.woken.notify()
        threads = [lane.thread for lane in self._lanes.values() if lane.thread is not None]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _serve(self, lane: _Lane, run: Run) -> None:
        while self._wait(lane):
            try:
                again = run(lane.name)
            except Exception as error:  # whatever it was, the lane must not die of it
                self._pause(lane)
                with contextlib.suppress(Exception):
                    self._failed(lane.name, error)
            else:
                lane.failures = 0
                if again is not None:
                    _ask(lane, again)

    def _wait(self, lane: _Lane) -> bool:
        """Return True when the lane is to run, with its wake used up; False when the engine stops."""
        with lane.woken:
            while not self._stopping:
                pause_s = self._until(lane)
                if pause_s is not None and pause_s <= 0:
                    lane.due = None
                    return True
                lane.woken.wait(pause_s if pause_s is None else min(pause_s, LOOK_AGAIN_S))
        return False

    def _until(self, lane: _Lane) -> float | None:
        if lane.due is None:
            return None
        return max((lane.due - self._clock()).total_seconds(), lane.not_before - time.monotonic())

    def _pause(self, lane: _Lane) -> None:
        first_s, longest_s = self._backoff_s
        lane.not_before = time.monotonic() + min(first_s * 2.0 ** min(lane.failures, 30), longest_s)
        lane.failures += 1
        _ask(lane, self._clock())


def _ask(lane: _Lane, due: datetime) -> None:
    """Have *lane* run at *due*, unless it runs earlier anyway."""
    with lane.woken:
        lane.due = due if lane.due is None else min(lane.due, due)
        lane.woken.notify()


def lock_path(database: Path) -> Path:
    return database.with_name(f"{database.name}-worker")


class LockTaken(ConfigError):
    """Another worker has the database. *holder* is its process id, "" when that is not known."""

    def __init__(self, problem: Problem, holder: str) -> None:
        super().__init__(problem)
        self.holder = holder


class WorkerLock:
    """The right to be the one worker of the SQLite database at *database*.

    It ends with `release`, or with the process, however that ends. A forked child does not have it.

    Raises:
        LockTaken: another worker has it.
        ConfigError: the lock's file cannot be written.
    """

    def __init__(self, database: Path) -> None:
        self._file = -1
        try:
            file = os.open(lock_path(database), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(_unwritable(database, error)) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 32).decode("ascii", "replace").strip()
            os.close(file)
            raise LockTaken(_taken(database, holder), holder) from error
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file
        _LOCKS.add(self)

    def release(self) -> None:
        if self._file >= 0:
            # A child that was forked a moment ago may have the descriptor still: closing ours would not let go.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> WorkerLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_LOCKS: weakref.WeakSet[WorkerLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_LOCKS):
        lock._close()  # the child's descriptor, and no more: the parent keeps the lock, and alone


os.register_at_fork(after_in_child=_after_fork_in_child)


def _taken(database: Path, holder: str) -> Problem:
    process = f"process {holder}" if holder else "another process"
    return Problem(
        where=str(database),
        what=f"a worker runs on this SQLite database already ({process}), and there can be one only",
        fix="stop that one first; several workers need PostgreSQL, which this version does not speak yet",
    )


def _unwritable(database: Path, error: OSError) -> Problem:
    return Problem(
        where=str(lock_path(database)),
        what=f"the worker's lock cannot be opened ({error.strerror})",
        fix="let the user that runs bridge write to the folder of the database",
    )
