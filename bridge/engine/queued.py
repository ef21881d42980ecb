"""The engine of any number of machines: Procrastinate's worker, on the PostgreSQL that all of them share.

A lane's run is a job; its lock keeps it to one runner. Waiting, waking, heartbeats and periodic work are
Procrastinate's. What is ours is what a lane means: a run that fails is not a failed job but a later wake, and a
job whose worker died is replaced rather than retried, so that a worker that only seemed dead, and ends its run
after all, cannot end the other's. (Retrying would also fail while a wake that came during the run waits: they have
the same queueing lock.)

Through a pooler in transaction mode nobody hears a notification; then lanes wait for the next look, `POLL_S` at
most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
from procrastinate import App
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException, UniqueViolation
from procrastinate.job_context import JobContext
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.worker import Worker

from bridge.engine import deferring
from bridge.engine.patience import CONNECT, PatientConnector, open_pool
from bridge.engine.pauses import pause_after
from bridge.engine.protocol import Chore, Run
from bridge.engine.threads import start_thread
from bridge.model import utc_now

BACKOFF_S = (1.0, 60.0)  # after a run that raised: the first pause and the longest
CHORE_BACKOFF_S = (1.0, 30.0)
RESTART_S = (0.1, 10.0)  # after Procrastinate's worker ended by itself
MOST_RUNS = 64  # at a time in one process
POLL_S = 0.5  # between looks for due lanes that nobody told of
BEAT_S = 1.0
STALLED_S = 5.0  # without a heartbeat, until a worker's lanes are handed over
RECOVER_S = 2  # between looks for them
RECOVER_TASK = "bridge.recover"
LONG_S = 3600.0  # for what is never used


@dataclass
class _Hand:
    """A thread of its own for a lane or a chore: one run at a time in this process, even if a job came twice."""

    name: str
    failures: int = 0  # in a row
    not_before: float = 0.0  # by the monotonic clock: the end of a pause after a failure
    calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = field(
        default_factory=queue.SimpleQueue
    )

    def serve(self) -> None:
        while (call := self.calls.get()) is not None:
            future, do = call
            try:
                future.set_result(do())
            except BaseException as error:
                future.set_exception(error)

    async def do(self, work: Callable[[], datetime | None]) -> datetime | None:
        future: Future[datetime | None] = Future()
        self.calls.put((future, work))
        return await asyncio.wrap_future(future)

    def pause(self, backoff_s: tuple[float, float]) -> float:
        pause_s = pause_after(self.failures, backoff_s)
        self.failures += 1
        self.not_before = time.monotonic() + pause_s
        return pause_s


@dataclass
class _ChoreHand(_Hand):
    chore: Chore = field(kw_only=True)
    began: float = float("-inf")


class QueuedEngine:
    """An `Engine` whose lanes are shared by all processes on the database at *url*.

    *failed* is told of every run that raised, with the lane's name; the lane runs again after a pause.
    *chore_failed* is the same for chores, and *failed* if it is not given. *troubled* is told when the database
    cannot be reached, once for each time that it is away, and of other trouble of the engine's own; the engine
    goes on by itself. *clock* gives what the database's clock says. At most *most_runs* lanes run at a time.
    """

    shared = True

    def __init__(
        self,
        url: str,
        failed: Callable[[str, Exception], None],
        *,
        chore_failed: Callable[[str, Exception], None] | None = None,
        troubled: Callable[[Exception], None] = lambda error: None,
        clock: Callable[[], datetime] = utc_now,
        connect: Mapping[str, Any] = CONNECT,
        most_runs: int = MOST_RUNS,
        backoff_s: tuple[float, float] = BACKOFF_S,
        chore_backoff_s: tuple[float, float] = CHORE_BACKOFF_S,
        poll_s: float = POLL_S,
        beat_s: float = BEAT_S,
        stalled_s: float = STALLED_S,
        recover_s: int = RECOVER_S,
    ) -> None:
        self._url = url
        self._failed = failed
        self._chore_failed = chore_failed or failed
        self._troubled = troubled
        self._clock = clock
        self._connect = connect
        self._most_runs = most_runs
        self._backoff_s = backoff_s
        self._chore_backoff_s = chore_backoff_s
        self._poll_s = poll_s
        self._beat_s = beat_s
        self._stalled_s = stalled_s
        self._recover_s = recover_s

        self._run: Run = lambda lane: None
        self._lanes: dict[str, _Hand] = {}
        self._chores: dict[str, _ChoreHand] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

        self._asking = threading.Lock()
        self._asked: dict[str, datetime] = {}  # wakes on their way to the database

        # What follows belongs to the thread of the event loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._ask = asyncio.Event()
        self._under_way: set[int | None] = set()  # ids of jobs
        self._worker: _Worker | None = None
        self._connector = PatientConnector(self._tell_trouble)
        self._manager = _Manager(self._connector, self._look)
        self._app = App(
            connector=self._connector, periodic_defaults={"max_delay": timedelta(days=1).total_seconds()}
        )
        self._app.job_manager = self._manager

    # --- the protocol ---

    def start(self, lanes: Sequence[str], run: Run, chores: Sequence[Chore] = ()) -> None:
        for name in ("procrastinate", "psycopg.pool"):
            # It logs what *failed* and *troubled* are told, and every job, with its arguments.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._run = run
        self._lanes = {lane: _Hand(lane) for lane in lanes}
        hands = (_ChoreHand(f"chore:{chore.name}", chore=chore) for chore in chores)
        self._chores = {hand.name: hand for hand in hands}
        for hand in (*self._lanes.values(), *self._chores.values()):
            start_thread(hand.serve, name=hand.name)
        self._register()
        self.wake(lanes)
        self._thread = start_thread(lambda: asyncio.run(self._serve()), name="engine")

    def wake(self, lanes: Iterable[str], when: datetime | None = None) -> None:
        due = when or self._clock()
        with self._asking:
            for lane in lanes:
                if lane in self._lanes:
                    self._asked[lane] = min(due, self._asked.get(lane, due))
        self._in_loop(self._ask.set)

    def stop(self, grace_s: float) -> bool:
        self._stopping.set()
        self._in_loop(self._end)
        if self._thread is not None:
            self._thread.join(grace_s)
            if self._thread.is_alive():
                return False
        for hand in (*self._lanes.values(), *self._chores.values()):
            hand.calls.put(None)
        return True

    # --- the event loop ---

    def _in_loop(self, do: Callable[[], object]) -> None:
        """Do it there, if it runs: before it does, nothing is lost, and after it did, nothing is of use."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(do)

    def _end(self) -> None:
        self._connector.hurry()
        self._stop.set()
        if self._worker is not None:
            self._worker.end()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._tell_stray)
        if self._stopping.is_set():
            return
        async with open_pool(self._url, self._connect) as pool, self._app.open_async(pool):
            passing_on = asyncio.create_task(self._pass_on())
            failures = 0
            while not self._stopping.is_set():
                began = time.monotonic()
                try:
                    await self._work()
                except Exception as error:
                    self._tell_trouble(error)
                failures = 0 if time.monotonic() - began > RESTART_S[1] else failures + 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), pause_after(failures - 1, RESTART_S))
            passing_on.cancel()

    async def _work(self) -> None:
        """Have a worker of Procrastinate's work until it is stopped, or ends because of an error."""
        lanes = min(len(self._lanes), self._most_runs)
        self._worker = worker = _Worker(
            self._app,
            queues=[
                *(deferring.queue_of(hand.name) for hand in (*self._lanes.values(), *self._chores.values())),
                RECOVER_TASK,
            ],
            concurrency=lanes + len(self._chores) + 1,
            fetch_job_polling_interval=self._poll_s,
            abort_job_polling_interval=LONG_S,
            delete_jobs="always",
            install_signal_handlers=False,
            update_heartbeat_interval=self._beat_s,
            stalled_worker_timeout=self._stalled_s,
            worker_middleware=[self._follow],
        )
        working = asyncio.create_task(worker.work())
        missed: set[int | None] = set()
        while not working.done():
            await asyncio.wait({working}, timeout=self._beat_s)
            if worker.worker_id is None:
                continue
            with contextlib.suppress(ConnectorException):
                if self._stopping.is_set():
                    worker.end()  # again, for it forgets what it was told before it ran
                    # It beats no more once it was told to stop, but its runs go on.
                    await self._manager.update_heartbeat(worker.worker_id)
                missed = await self._recover_own(worker.worker_id, missed)
        await working

    async def _follow(self, proceed: Callable[[], Awaitable[Any]], context: JobContext, worker: Worker) -> Any:
        self._under_way.add(context.job.id)
        try:
            return await proceed()
        finally:
            self._under_way.discard(context.job.id)

    def _look(self) -> None:
        if self._worker is not None:
            self._worker.look()

    def _tell_trouble(self, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._troubled(error)

    def _tell_stray(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception) and not self._stopping.is_set():
            self._tell_trouble(error)

    # --- wakes ---

    async def _pass_on(self) -> None:
        """Take the wakes of this process to the database, as many at a time as came meanwhile."""
        while True:
            with self._asking:
                asked, self._asked = self._asked, {}
            try:
                if asked:
                    await self._defer(asked)
            except Exception as error:
                self._tell_trouble(error)
                with self._asking:
                    for lane, due in asked.items():
                        self._asked[lane] = min(due, self._asked.get(lane, due))
                await asyncio.sleep(RESTART_S[1])
            else:
                await self._ask.wait()
                self._ask.clear()

    async def _defer(self, wakes: Mapping[str, datetime], make: deferring.Make = deferring.lane_job) -> None:
        await deferring.defer_now(self._manager, wakes, make)
        now = self._clock()
        for when in wakes.values():
            # Of a moment that comes nobody tells, and looks come only now and then.
            asyncio.get_running_loop().call_later(max(0.0, (when - now).total_seconds()), self._look)

    # --- jobs ---

    def _register(self) -> None:
        app = self._app
        app.task(name=deferring.LANE_TASK)(self._run_lane)
        keep = app.task(name=deferring.CHORE_TASK)(self._run_chore)
        for name, hand in self._chores.items():
            job = _chore_job(name, None)
            app.periodic(
                cron=_cron(hand.chore.every_s),
                periodic_id=name,
                queue=job.queue,
                lock=job.lock,
                queueing_lock=job.queueing_lock,
                priority=job.priority,
                task_kwargs={"name": name},
            )(keep)
        # Without a lock: else nobody could take over from a worker that died while it did this.
        recover = app.task(name=RECOVER_TASK, queue=RECOVER_TASK, queueing_lock=RECOVER_TASK)(self._recover)
        app.periodic(cron=_cron(self._recover_s), priority=deferring.NOW)(recover)

    async def _run_lane(self, *, lane: str) -> None:
        hand = self._lanes[lane]
        again = await hand.do(lambda: self._serve_lane(hand))
        if again is not None:
            await self._defer({lane: again})

    def _serve_lane(self, hand: _Hand) -> datetime | None:
        pause_s = hand.not_before - time.monotonic()
        if pause_s <= 0 and not self._stopping.is_set():
            try:
                again = self._run(hand.name)
            except Exception as error:  # whatever it was, the lane must not die of it
                pause_s = hand.pause(self._backoff_s)
                with contextlib.suppress(Exception):
                    self._failed(hand.name, error)
            else:
                hand.failures = 0
                return again
        return self._clock() + timedelta(seconds=max(0.0, pause_s))

    async def _run_chore(self, timestamp: int = 0, *, name: str) -> None:
        hand = self._chores[name]
        again = await hand.do(lambda: self._serve_chore(hand, planned=timestamp > 0))
        if again is not None:
            await self._defer({name: again}, _chore_job)

    def _serve_chore(self, hand: _ChoreHand, *, planned: bool) -> datetime | None:
        chore = hand.chore
        now = time.monotonic()
        # After a while away, Procrastinate makes up for every time that was missed.
        if planned and (now < hand.not_before or now < hand.began + chore.every_s / 4):
            return None
        hand.began = now
        try:
            while not self._stopping.is_set() and chore.do():
                pass
        except Exception as error:
            pause_s = hand.pause(self._chore_backoff_s)
            with contextlib.suppress(Exception):
                self._chore_failed(chore.name, error)
            return self._clock() + timedelta(seconds=pause_s) if pause_s < chore.every_s else None
        hand.failures = 0
        return None

    # --- handing over ---

    async def _recover(self, timestamp: int) -> None:
        """Hand over the jobs of workers that are gone."""
        # Where the database was away, nobody's heart was heard.
        if self._connector.undisturbed_s() > self._stalled_s:
            for job in await self._manager.get_stalled_jobs(seconds_since_heartbeat=self._stalled_s):
                await self._hand_over(job)

    async def _recover_own(self, worker_id: int, missed: set[int | None]) -> set[int | None]:
        """Hand over our jobs that we know nothing of, if they were *missed* before; return those that are missed.

        A connection may break after the database has given us a job, or before it learnt of its end.
        """
        doing = await self._manager.list_jobs_async(status=Status.DOING.value, worker_id=worker_id)
        lost = [job for job in doing if job.id not in self._under_way]
        for job in lost:
            if job.id in missed:
                await self._hand_over(job)
        return {job.id for job in lost}

    async def _hand_over(self, job: Job) -> None:
        if job.lock is not None:
            again = job.evolve(id=None, queueing_lock=job.lock, priority=deferring.NOW, scheduled_at=None)
            with contextlib.suppress(AlreadyEnqueued):
                await self._manager.defer_job_async(again)
        await self._manager.finish_job(job, Status.ABORTED, delete_job=True)


class _Worker(Worker):
    async def work(self) -> None:
        await self.run()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        self.stop()  # type: ignore[no-untyped-call]

    def look(self) -> None:
        """Look for jobs at once."""
        self._new_job_event.set()


class _Manager(JobManager):
    """*ended* is called after every job."""

    def __init__(self, connector: PatientConnector, ended: Callable[[], None]) -> None:
        super().__init__(connector)
        self._ended = ended

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        try:
            return await super().fetch_job(queues, worker_id)
        except UniqueViolation:
            return None  # another worker was given the lane's other job in the same moment

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        try:
            await super().finish_job(job, status, delete_job)
        except ConnectorException as error:
            if not isinstance(error.__cause__, psycopg.errors.RaiseException):
                raise
            # It was handed over.
        # Whoever was held back by the job's lock has nobody else to tell them.
        self._ended()


def _chore_job(name: str, when: datetime | None) -> Job:
    return deferring.waiting_job(deferring.CHORE_TASK, name, when, name=name)


def _cron(every_s: float) -> str:
    """Return a plan that comes at least that often, but not more than once a second."""
    seconds = max(1, int(every_s))
    if seconds < 60:
        return f"* * * * * */{seconds}"
    if seconds < 3600:
        return f"*/{seconds // 60} * * * *"
    if seconds < 24 * 3600:
        return f"0 */{seconds // 3600} * * *"
    return "0 0 * * *"
