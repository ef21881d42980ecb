"""The store of any number of machines: one PostgreSQL database, and many transactions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg

from bridge.store.copying.mark import refuse_unfinished
from bridge.store.migrations import postgres as schema
from bridge.store.postgres import folding, partitions
from bridge.store.postgres.clock import DatabaseClock
from bridge.store.postgres.connections import Connections
from bridge.store.postgres.database import PostgresDb
from bridge.store.sql import totals
from bridge.store.sql.database import Db
from bridge.store.sql.store import SqlStore

P = ParamSpec("P")
T = TypeVar("T")

Wake = Callable[[psycopg.Connection[Any], Mapping[str, datetime]], None]


DAYS_EVERY = timedelta(hours=1)


class PostgresStore(SqlStore):
    """A `Store` in the database at *url*, whose schema must be up to date (see `check`).

    *lanes* says how many delivery lanes each target has. *wake* is given the connection of each transaction that
    made lanes due, just before its commit. The other arguments are those of `Connections`.
    """

    def __init__(
        self,
        url: str,
        lanes: Mapping[str, int],
        *,
        wake: Wake = lambda connection, lanes: None,
        max_size: int = 4,
        name: str = "bridge",
    ) -> None:
        super().__init__(lanes)
        self._connections = Connections(url, max_size=max_size, name=name)
        self._clock = DatabaseClock(self._connections)
        self._wake = wake
        self._days_due: datetime | None = None

    def check(self) -> None:
        """Make sure that this version of bridge can work with the schema.

        Raises:
            StoreUnavailable: it cannot, or the database cannot be reached; the message says what to do.
        """
        with self._connections.bare() as connection:
            schema.check(connection)
            refuse_unfinished(connection)

    def migrate(self) -> list[str]:
        today = self.clock().date()  # by a connection of its own, and there may be one only
        with self._connections.bare() as connection:
            taken = schema.migrate(connection)
            partitions.make_days(connection, today)
            return taken

    def clock(self) -> datetime:
        return self._clock()

    def tidy(self, now: datetime) -> bool:
        with self._connections.bare() as connection:
            if self._days_due is None or now >= self._days_due:  # they are made for a week ahead
                partitions.make_days(connection, now.date())
                self._days_due = now + DAYS_EVERY
            return folding.fold(connection)

    def prune(self, *, payloads_before: datetime, keys_before: datetime, limit: int = 1000) -> int:
        kept_from = self._read(totals.minutes_kept_from)
        with self._connections.bare() as connection:
            folding.fold(connection)  # what is not in the sums cannot be forgotten
            folding.forget_minutes(connection, kept_from)
            return partitions.prune(connection, payloads_before, keys_before, limit)

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        with self._connections.alone(what):
            yield

    def close(self) -> None:
        self._connections.close()

    def _read(self, look: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        return self._connections.read(look, *args, **named)

    def _write(self, change: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        return self._connections.write(partial(change, **named), *args, before_commit=self._wake_due)

    def _write_lazily(self, change: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        return self._connections.write(
            partial(change, **named), *args, durable=False, before_commit=self._wake_due
        )

    def _wake_due(self, db: PostgresDb) -> None:
        if db.due:
            self._wake(db.connection, db.due)
