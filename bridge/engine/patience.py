"""Procrastinate's way to the database, for a worker that outlives the database's restarts.

As it comes, Procrastinate's worker ends with the first query that fails. Here a query that could not reach the
database is asked again until it does, at growing intervals; other errors pass through.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, LiteralString, TypeVar

import psycopg
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.psycopg_connector import PsycopgConnector
from psycopg_pool import AsyncConnectionPool

# A network that was cut is noticed within some ten seconds. Nothing that a pooler between could not keep: no
# prepared statements, no settings of the session.
CONNECT: Mapping[str, Any] = {
    "application_name": "bridge engine",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "prepare_threshold": None,
}
CONNECTIONS = 2  # and one more that listens
ANSWER_S = 30.0  # for a query, with waiting for a connection
LAST_ANSWER_S = 1.0  # when in a hurry
CONNECTION_S = 2.0
# The pool tries again by itself at intervals that double without a bound. Having it give up soon leaves the
# intervals to us: the next query has it begin anew.
RECONNECT_S = 1.0
PAUSE_S = (0.1, 1.0)

# What passes: the server is away, starts, stops, was cut off, has no connection left, or is the standby of before.
_PASSING = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)

T = TypeVar("T")


def open_pool(url: str, connect: Mapping[str, Any]) -> AsyncConnectionPool:
    """Return a pool to be used as a context; entering it waits for nothing."""
    return AsyncConnectionPool(
        url,
        kwargs=dict(connect),
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        min_size=1,
        max_size=CONNECTIONS,
        timeout=CONNECTION_S,
        reconnect_timeout=RECONNECT_S,
        open=False,
    )


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)  # every query of Procrastinate's is one statement


class PatientConnector(PsycopgConnector):
    """*troubled* is told once when the database cannot be reached, and again only after it answered."""

    def __init__(self, troubled: Callable[[Exception], None]) -> None:
        super().__init__()
        self._troubled = troubled
        self._told = False
        self._last_trouble = float("-inf")
        self._hurrying = asyncio.Event()

    def hurry(self) -> None:
        """From now on, let queries fail rather than wait for the database."""
        self._hurrying.set()

    def undisturbed_s(self) -> float:
        """Return for how long no query has failed to reach the database."""
        return time.monotonic() - self._last_trouble

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        await self._insist(lambda: super(PatientConnector, self).execute_query_async(query, **arguments))

    async def execute_query_one_async(self, query: LiteralString, **arguments: Any) -> dict[str, Any]:
        return await self._insist(
            lambda: super(PatientConnector, self).execute_query_one_async(query, **arguments)
        )

    async def execute_query_all_async(self, query: LiteralString, **arguments: Any) -> list[dict[str, Any]]:
        return await self._insist(
            lambda: super(PatientConnector, self).execute_query_all_async(query, **arguments)
        )

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        names = list(channels)
        await self._insist(
            lambda: super(PatientConnector, self).listen_notify(on_notification, names), answer_s=None
        )

    async def _insist(self, ask: Callable[[], Awaitable[T]], answer_s: float | None = ANSWER_S) -> T:
        pause_s, longest_s = PAUSE_S
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(LAST_ANSWER_S if self._hurrying.is_set() else answer_s):
                    answer = await ask()
            except (ConnectorException, TimeoutError) as error:
                if not _passes(error):
                    raise
                self._note(error)
                if self._hurrying.is_set():
                    raise
                if isinstance(error.__cause__, psycopg.errors.ReadOnlySqlTransaction):
                    await self._close_connections()
                if time.monotonic() - began > longest_s:
                    pause_s = PAUSE_S[0]
            else:
                self._told = False
                return answer
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurrying.wait(), pause_s)
            pause_s = min(2 * pause_s, longest_s)

    async def _close_connections(self) -> None:
        """Have the pool make others: a session may stay read-only when the database no longer is."""
        with contextlib.suppress(psycopg.Error):
            for _ in range(CONNECTIONS):  # which come in turn
                async with self.pool.connection() as connection:
                    await connection.close()

    def _note(self, error: Exception) -> None:
        self._last_trouble = time.monotonic()
        if not self._told:
            self._told = True
            self._troubled(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _passes(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or isinstance(error.__cause__, _PASSING)
