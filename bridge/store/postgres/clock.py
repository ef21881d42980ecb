"""The database's clock, which all machines share."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from bridge.errors import StoreUnavailable
from bridge.model import from_iso
from bridge.store.postgres.connections import Connections
from bridge.store.postgres.database import PostgresDb

EVERY_S = 60.0
AGAIN_S = 5.0  # after the server could not be asked
TRIES = 3
STEP_S = 0.5


class DatabaseClock:
    """Tells the time in UTC, as the database's server has it.

    The difference between this machine's clock and the server's is measured by whoever asks first, again each
    minute and whenever this machine's clock was set. While the server cannot be asked, the last one holds.
    """

    def __init__(self, connections: Connections, *, every_s: float = EVERY_S) -> None:
        self._connections = connections
        self._every_s = every_s
        self._ahead = timedelta()  # what the server is ahead of us
        self._due = 0.0  # by `time.monotonic`
        self._started = 0.0  # when this machine's monotonic clock was zero, by its other one

    def __call__(self) -> datetime:
        steady = time.monotonic()
        if steady >= self._due or abs(time.time() - steady - self._started) > STEP_S:
            self._measure()
        return datetime.now(UTC) + self._ahead

    def _measure(self) -> None:
        self._due = time.monotonic() + AGAIN_S  # the other threads go on with what is known
        self._started = time.time() - time.monotonic()
        try:
            self._ahead = self._connections.read(_ahead)
        except StoreUnavailable:
            return
        self._due = time.monotonic() + self._every_s


def _ahead(db: PostgresDb) -> timedelta:
    """Return the difference as the quickest of a few answers has it: the least time for it to be wrong by."""
    return min(_look(db) for _ in range(TRIES))[1]


def _look(db: PostgresDb) -> tuple[float, timedelta]:
    """Return how long the answer took, and the difference if it was given half-way."""
    asked, started = datetime.now(UTC), time.perf_counter()
    row = db.execute("SELECT clock_timestamp() AS at").fetchone()
    took_s = time.perf_counter() - started
    assert row is not None  # noqa: S101 - a SELECT of one row
    return took_s, from_iso(row["at"]) - asked - timedelta(seconds=took_s / 2)
