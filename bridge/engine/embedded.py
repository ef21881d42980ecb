"""The engine of one machine: a thread for each lane of the one worker process, and one for all chores."""

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

from bridge.engine.pauses import pause_after
from bridge.engine.protocol import Chore, Run
from bridge.engine.threads import start_thread
from bridge.errors import ConfigError, Problem
from bridge.model import utc_now

BACKOFF_S = (1.0, 60.0)  # after a run that raised: the first pause and the longest
CHORE_BACKOFF_S = (1.0, 30.0)
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


@dataclass
class _Chore:
    chore: Chore
    due: float = 0.0  # by the monotonic clock
    failures: int = 0  # in a row


class EmbeddedEngine:
    """An `Engine` of threads.

    *failed* is told of every run that raised, with the lane's name; the lane runs again after a pause.
    *chore_failed* is the same for chores, and *failed* if it is not given. *clock* gives the moments that wakes
    are compared with.
    """

    shared = False

    def __init__(
        self,
        failed: Callable[[str, Exception], None],
        *,
        chore_failed: Callable[[str, Exception], None] | None = None,
        clock: Callable[[], datetime] = utc_now,
        backoff_s: tuple[float, float] = BACKOFF_S,
        chore_backoff_s: tuple[float, float] = CHORE_BACKOFF_S,
    ) -> None:
        self._failed = failed
        self._chore_failed = chore_failed or failed
        self._clock = clock
        self._backoff_s = backoff_s
        self._chore_backoff_s = chore_backoff_s
        self._lanes: dict[str, _Lane] = {}
        self._keeper: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self, lanes: Sequence[str], run: Run, chores: Sequence[Chore] = ()) -> None:
        now = self._clock()
        # All are there before the first one runs: a run may wake any other.
        self._lanes = {name: _Lane(name, due=now) for name in lanes}
        for lane in self._lanes.values():
            lane.thread = start_thread(self._serve, lane, run, name=lane.name)
        if chores:
            self._keeper = start_thread(self._keep, [_Chore(chore) for chore in chores], name="chores")

    def wake(self, lanes: Iterable[str], when: datetime | None = None) -> None:
        due = when or self._clock()
        for name in lanes:
            if (lane := self._lanes.get(name)) is not None:
                _ask(lane, due)

    def stop(self, grace_s: float) -> bool:
        deadline = time.monotonic() + grace_s
        self._stopping.set()
        for lane in self._lanes.values():
            with lane.woken:
                lane.woken.notify()
        begun = [*(lane.thread for lane in self._lanes.values()), self._keeper]
        threads = [thread for thread in begun if thread is not None]
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
            while not self._stopping.is_set():
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
        lane.not_before = time.monotonic() + pause_after(lane.failures, self._backoff_s)
        lane.failures += 1
        _ask(lane, self._clock())

    def _keep(self, chores: Sequence[_Chore]) -> None:
        next_due = time.monotonic()
        while not self._stopping.wait(max(0.0, next_due - time.monotonic())):
            for each in chores:
                if each.due <= time.monotonic() and not self._stopping.is_set():
                    self._do(each)
            next_due = min(each.due for each in chores)

    def _do(self, each: _Chore) -> None:
        began = time.monotonic()
        try:
            more = each.chore.do()
        except Exception as error:  # a full disk or a locked database passes; the other chores go on
            each.due = time.monotonic() + pause_after(each.failures, self._chore_backoff_s)
            each.failures += 1
            with contextlib.suppress(Exception):
                self._chore_failed(each.chore.name, error)
        else:
            each.failures = 0
            each.due = began if more else began + each.chore.every_s


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
        fix="stop that one first; several workers need a PostgreSQL database, in DATABASE_URL",
    )


def _unwritable(database: Path, error: OSError) -> Problem:
    return Problem(
        where=str(lock_path(database)),
        what=f"the worker's lock cannot be opened ({error.strerror})",
        fix="let the user that runs bridge write to the folder of the database",
    )
