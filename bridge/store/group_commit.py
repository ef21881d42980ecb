"""One commit for all that arrived meanwhile: a sync to disk costs the same for one receipt as for fifty.

Whoever received something hands it over, and waits or is told later; one thread writes. While it commits, the next
batch gathers, so that nobody waits for a timer and a lone request is written at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.errors import StoreUnavailable, Unstorable
from bridge.store.protocol import NewInbound, Received, Refusal

BATCH = 256  # receipts in one transaction
BATCH_BYTES = 16 * 1024 * 1024
QUEUE = 1024  # more than any server has threads
QUEUE_BYTES = 64 * 1024 * 1024
WAIT_S = 15.0  # less than senders wait for an answer
REFUSALS = 1000  # waiting to be counted; beyond that they are lost, so that a flood costs nothing

Receive = Callable[[Sequence[NewInbound]], list[Received]]
Refuse = Callable[[Sequence[Refusal]], None]


@dataclass(frozen=True, slots=True)
class Trouble:
    """The last receipt was not stored. *at* is by `time.monotonic`."""

    why: str
    at: float


Stored = Received | StoreUnavailable  # what became of a receipt


class Pending:
    """A receipt on its way to disk. Its sender is told once: by the writer, or when patience is over."""

    __slots__ = ("inbound", "settled", "tell")

    def __init__(self, inbound: NewInbound, tell: Callable[[Stored], None]) -> None:
        self.inbound = inbound
        self.tell = tell
        self.settled = False  # guarded by the lock of the GroupCommit


class GroupCommit:
    """Many threads' receipts, committed together by one thread of this process.

    *receive* and *refuse* are the store's. *committed* is called after each commit that stored something new: it
    rings for the worker, and must neither block nor raise. Everything starts with the first request, so that the
    object may be made before a server forks.
    """

    def __init__(
        self,
        receive: Receive,
        refuse: Refuse,
        *,
        committed: Callable[[], None] = lambda: None,
        wait_s: float = WAIT_S,
    ) -> None:
        self._receive = receive
        self._refuse = refuse
        self._committed = committed
        self._wait_s = wait_s
        self._closed = False
        self._reset()
        _ALL.add(self)

    def receive(self, inbound: NewInbound) -> Received:
        """Return when *inbound* is on disk.

        Raises:
            StoreUnavailable: it could not be stored, or not in time; in the latter case it may be stored yet, and
                what the sender repeats then is a duplicate.
        """
        told: queue.SimpleQueue[Stored] = queue.SimpleQueue()
        pending = self.submit(inbound, told.put)
        self.write()
        try:
            stored = told.get(timeout=self._wait_s)
        except queue.Empty:
            self.give_up(pending)
            stored = told.get()
        if isinstance(stored, StoreUnavailable):
            raise stored
        return stored

    def submit(self, inbound: NewInbound, tell: Callable[[Stored], None]) -> Pending:
        """Have *inbound* stored. *tell* is called once, by the writer or by `give_up`; it must not block or raise.

        Raises:
            StoreUnavailable: it is not taken at all, and *tell* is not called.
        """
        pending = Pending(inbound, tell)
        with self._ready:
            if self._closed:
                raise StoreUnavailable("Bridge is stopping; the sender tries again.")
            if len(self._queue) >= QUEUE or self._queued_bytes >= QUEUE_BYTES:
                raise StoreUnavailable("Too many requests wait to be stored; the sender tries again.")
            self._queue.append(pending)
            self._queued_bytes += len(inbound.body)
        return pending

    def write(self) -> None:
        """Have what was submitted written now."""
        with self._ready:
            self._awake()

    def give_up(self, pending: Pending) -> None:
        """Tell *pending* that it took too long, unless it was told already.

        If it is still in the queue it is not written; if it is being written, what the sender repeats is a
        duplicate.
        """
        with self._ready:
            if pending.settled:
                return
            pending.settled = True
        why = "The database did not store the request in time; the sender tries again."
        self._note(why)
        pending.tell(StoreUnavailable(why))

    def refuse(self, refusal: Refusal) -> None:
        """Have *refusal* counted with the next commit. Returns at once; beyond a bound it is lost."""
        with self._ready:
            if not self._closed and len(self._refusals) < REFUSALS:
                self._refusals.append(refusal)
                self._awake()

    def trouble(self) -> Trouble | None:
        """Return why the last receipt was not stored; None once one was, or when none ever failed."""
        return self._trouble

    def close(self, timeout_s: float = 10.0) -> bool:
        """Write what waits, take nothing more, and say whether the writer ended in time."""
        with self._ready:
            self._closed = True
            writer = self._writer
            self._ready.notify_all()
        if writer is None:
            return True
        writer.join(timeout_s)
        return not writer.is_alive()

    def _reset(self) -> None:
        self._ready = threading.Condition()
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._refusals: list[Refusal] = []
        self._writer: threading.Thread | None = None
        self._trouble: Trouble | None = None

    def _note(self, why: str) -> None:
        self._trouble = Trouble(why, time.monotonic())

    def _awake(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="group-commit", daemon=True)
            self._writer.start()
        self._ready.notify()

    def _write(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._refusals or self._closed)
                batch = self._next_batch()
                refusals, self._refusals = self._refusals, []
                if not batch and not refusals and self._closed:
                    return
            self._commit(batch)
            if refusals:
                self._count(refusals)

    def _next_batch(self) -> list[Pending]:
        batch: list[Pending] = []
        size = 0
        while self._queue and len(batch) < BATCH and size < BATCH_BYTES:
            pending = self._queue.popleft()
            size += len(pending.inbound.body)
            if not pending.settled:
                batch.append(pending)
        self._queued_bytes -= size
        return batch

    def _commit(self, batch: Sequence[Pending]) -> None:
        if not batch:
            return
        try:
            stored = self._receive([pending.inbound for pending in batch])
        except Exception as error:
            if isinstance(error, StoreUnavailable) and not isinstance(error, Unstorable):
                self._note(str(error))
                self._fail(batch, str(error))
            elif len(batch) > 1:  # one of them is unfit; the others shall not suffer from it
                for pending in batch:
                    self._commit([pending])
            elif isinstance(error, Unstorable):
                self._fail(batch, str(error))
            else:
                why = f"The request cannot be stored ({type(error).__name__}, a bug of bridge)."
                self._fail(batch, why, error)
        else:
            self._trouble = None
            self._tell(batch, stored)
            if not all(received.duplicate for received in stored):
                with contextlib.suppress(Exception):  # a ring that is lost costs time only: the worker sweeps
                    self._committed()

    def _fail(self, batch: Sequence[Pending], why: str, cause: Exception | None = None) -> None:
        errors = [
            StoreUnavailable(why) for _ in batch
        ]  # one each: a traceback is bound to the thread that raises it
        for error in errors:
            error.__cause__ = cause
        self._tell(batch, errors)

    def _tell(self, batch: Sequence[Pending], stored: Sequence[Stored]) -> None:
        with self._ready:
            waiting = [(one, what) for one, what in zip(batch, stored, strict=True) if not one.settled]
            for pending, _ in waiting:
                pending.settled = True
        for pending, what in waiting:
            pending.tell(what)

    def _count(self, refusals: Sequence[Refusal]) -> None:
        with contextlib.suppress(Exception):  # a count is worth nothing beside the webhooks that wait behind it
            self._refuse(refusals)


_ALL: weakref.WeakSet[GroupCommit] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for one in list(_ALL):
        one._reset()  # the writer, and whoever waited for it, stayed behind in the parent


os.register_at_fork(after_in_child=_after_fork_in_child)
