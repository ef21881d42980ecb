"""Wakes of lanes as Procrastinate's jobs, deferred in the transaction of whoever made work due.

A lane has at most two jobs that wait: one for now and one for later. Both have the lane as their lock, so that one
runner at a time takes them, and a queue of the lane's own, so that a worker with another configuration leaves them
to whoever knows the lane. A wake that finds its job there already adds none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.jobs import Job
from procrastinate.manager import JobManager
from procrastinate.sync_psycopg_connector import SyncPsycopgConnector
from psycopg.rows import dict_row

LANE_TASK = "bridge.lane"
CHORE_TASK = "bridge.chore"
# Procrastinate holds a job back while another one of its lock waits that was there earlier, even if that one is
# not due yet; unless it has the higher priority.
LATER, NOW = 0, 1
TRIES = 5  # after each, another transaction has just committed the same wake
# The channel of a queue is "procrastinate_queue_v1#" and its name; channels have at most 63 bytes.
LONGEST_QUEUE = 40
SLACK_S = 0.05  # a job that waits this much too long is not worth replacing

# The one who has the same wake under way may be frozen; rather than wait for that, leave the lane to the sweep.
_BEGIN = "SAVEPOINT bridge_wake; SET LOCAL lock_timeout = '500ms'"
_UNDO = "ROLLBACK TO SAVEPOINT bridge_wake"

# Epochs, because the caller's connection may have loaders of its own for moments.
_WAITING = """
SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
       job.id,
       job.queueing_lock,
       coalesce(extract(epoch FROM job.scheduled_at)::float8, 0) AS due
  FROM (VALUES (1)) AS one (one)
  LEFT JOIN procrastinate_jobs AS job ON job.status = 'todo' AND job.queueing_lock = ANY(%(locks)s)
"""

Make = Callable[[str, datetime | None], Job]
Rows = list[dict[str, Any]]

_manager = JobManager(SyncPsycopgConnector())  # never opened: every call brings its connection


def defer(connection: psycopg.Connection[Any], wakes: Mapping[str, datetime]) -> None:
    """Have each lane run at its moment once the open transaction of *connection* is committed.

    To be the last thing before the commit: another transaction that defers the same wake waits for ours.
    """
    for _ in range(TRIES):
        with connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(_WAITING, {"locks": locks(wakes)}).fetchall()
        jobs, superseded = lacking(rows, wakes, lane_job)
        if not jobs:
            return
        connection.execute(_BEGIN, prepare=False)
        try:
            with _as_psycopg():
                for job_id in superseded:
                    _manager.cancel_job_by_id(job_id, delete_job=True, connection=connection)
                _manager.batch_defer_jobs(jobs, connection=connection)
            return
        except AlreadyEnqueued:
            connection.execute(_UNDO)
        except psycopg.errors.LockNotAvailable:
            connection.execute(_UNDO)
            return


async def defer_now(manager: JobManager, wakes: Mapping[str, datetime], make: Make) -> None:
    """Have each lane (or what else *make* makes jobs of) run at its moment, by the *manager*'s own connection."""
    for _ in range(TRIES):
        rows = await manager.connector.execute_query_all_async(_WAITING, locks=locks(wakes))
        jobs, superseded = lacking(rows, wakes, make)
        if not jobs:
            return
        for job_id in superseded:
            await manager.cancel_job_by_id_async(job_id, delete_job=True)
        try:
            await manager.batch_defer_jobs_async(jobs)
            return
        except AlreadyEnqueued:
            continue


def lane_job(lane: str, when: datetime | None) -> Job:
    return waiting_job(LANE_TASK, lane, when, lane=lane)


def waiting_job(task: str, name: str, when: datetime | None, /, **arguments: Any) -> Job:
    """Return the job that is to run at *when*, None: now, with nothing else under the same *name*."""
    return Job(
        queue=queue_of(name),
        task_name=task,
        task_kwargs=arguments,
        lock=name,
        queueing_lock=name if when is None else _later(name),
        priority=NOW if when is None else LATER,
        scheduled_at=when,
    )


def queue_of(name: str) -> str:
    if len(name) <= LONGEST_QUEUE:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST_QUEUE - 17]}-{digest}"


def locks(names: Iterable[str]) -> list[str]:
    return [lock for name in names for lock in (name, _later(name))]


def lacking(rows: Rows, wakes: Mapping[str, datetime], make: Make) -> tuple[list[Job], list[int]]:
    """Return the jobs that *wakes* need beside those that wait, and the ids of jobs that would come too late."""
    now: float = rows[0]["now"]
    waiting = {row["queueing_lock"]: row for row in rows}
    jobs: list[Job] = []
    superseded: list[int] = []
    # Two transactions that wake the same lanes must not wait for each other crosswise.
    for name, when in sorted(wakes.items()):
        if when.timestamp() <= now:
            if name not in waiting:
                jobs.append(make(name, None))
        else:
            other = waiting.get(_later(name))
            if other is not None and other["due"] <= when.timestamp() + SLACK_S:
                continue
            if other is not None:
                superseded.append(other["id"])
            jobs.append(make(name, when))
    return jobs, superseded


def _later(name: str) -> str:
    return f"{name}@later"


@contextmanager
def _as_psycopg() -> Iterator[None]:
    """Raise psycopg's own errors: whoever has the transaction knows what they mean."""
    try:
        yield
    except ConnectorException as error:
        if isinstance(error.__cause__, psycopg.Error):
            raise error.__cause__ from None
        raise
