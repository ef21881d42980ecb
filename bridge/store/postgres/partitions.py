"""Payloads and event keys by day: days are prepared ahead, and go whole when they are old.

A row says its day (UTC) itself. What is of a day that nobody prepared goes to the default partition.

To drop a day, its table must be nobody's for a moment, and so must its parent, to which everybody writes. Who
waits for that has others queue behind, so it is not waited for long: where somebody reads for minutes (a dump,
say), the day goes at a later time. Rows are deleted one by one only where a day cannot go whole: on the day that
the given moment falls on, in the default partition, and beside payloads that are to be processed still.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.errors import LockNotAvailable
from psycopg.rows import tuple_row

from bridge.model import iso

DAYS_AHEAD = 7
LOCK_TIMEOUT_S = 1.0  # for which ingest may have to wait
MOVED_MAX = 10_000  # rows of one day, from the default partition
DAYS_AT_ONCE = 10  # of each table, dropped in one transaction
COUNTED_BYTES = 64 * 1024 * 1024  # how many rows a larger day has is only known about

PAYLOAD, EVENT_KEY = "payload", "event_key"


@dataclass(frozen=True, slots=True)
class _Day:
    table: str
    day: date

    @property
    def name(self) -> str:
        return f"{self.table}_{self.day:%Y%m%d}"

    @property
    def began_at(self) -> datetime:
        return datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC)

    @property
    def ended_at(self) -> datetime:
        return self.began_at + timedelta(days=1)


# --- making ----------------------------------------------------------------------------------------------


def make_days(connection: Connection[Any], first: date, last: date | None = None) -> list[str]:
    """Prepare the days from *first* to *last*, or to `DAYS_AHEAD` behind *first*; return the tables made.

    What the default partition holds of them moves there, unless it is very much: then the day stays where it is.
    One that cannot be made now, because somebody has the default partition for long, can be made at a later time.
    *connection* is in no transaction: each table is made in one of its own.
    """
    end = first + timedelta(days=DAYS_AHEAD) if last is None else last
    wanted = [first + timedelta(days=n) for n in range((end - first).days + 1)]
    made: list[str] = []
    for table in (PAYLOAD, EVENT_KEY):
        there = _days(connection, table)
        missing = [one for day in wanted if (one := _Day(table, day)) not in there]
        with suppress(LockNotAvailable):
            made.extend(one.name for one in missing if _make(connection, one))
    return made


def _make(connection: Connection[Any], one: _Day) -> bool:
    if len(_rows(connection, _MISPLACED.format(table=one.table), one.day, MOVED_MAX + 1)) > MOVED_MAX:
        return False
    with connection.transaction():
        connection.execute(_LITTLE_PATIENCE)
        connection.execute(_ALONE)
        if one in _days(connection, one.table):
            return False  # somebody made it meanwhile
        # To create it as a partition would take its parent from everybody; to attach it does not.
        connection.execute(f"CREATE TABLE {one.name} (LIKE {one.table} INCLUDING ALL)")
        connection.execute(f"LOCK TABLE ONLY {one.table} IN SHARE UPDATE EXCLUSIVE MODE")
        connection.execute(f"LOCK TABLE {one.table}_default IN ACCESS EXCLUSIVE MODE")
        connection.execute(_MOVE.format(table=one.table, name=one.name), (one.day,))
        connection.execute(
            f"ALTER TABLE {one.table} ATTACH PARTITION {one.name}"
            f" FOR VALUES FROM ('{one.day}') TO ('{one.day + timedelta(days=1)}')"
        )
    return True


# A process that freezes half-way is let go of: everybody would wait for what it has locked.
_BRIEFLY = "SET LOCAL idle_in_transaction_session_timeout = '5s'"
_PATIENCE = f"{_BRIEFLY}; SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"
_LITTLE_PATIENCE = f"{_BRIEFLY}; SET LOCAL lock_timeout = '200ms'"  # there are days to try again
_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('bridge partitions', 0))"
_MISPLACED = "SELECT 1 FROM {table}_default WHERE day = %s LIMIT %s"
_MOVE = """
WITH moved AS (DELETE FROM {table}_default WHERE day = %s RETURNING *) INSERT INTO {name} SELECT * FROM moved
"""


def _days(connection: Connection[Any], table: str) -> list[_Day]:
    """Return the days of *table* that have a partition, oldest first."""
    names = [row[0] for row in _rows(connection, _PARTITIONS, table, f"^{table}_[0-9]{{8}}$")]
    return [_Day(table, datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC).date()) for name in names]


_PARTITIONS = """
SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass(%s) AND c.relname ~ %s ORDER BY c.relname
"""


def _rows(connection: Connection[Any], statement: str, *values: object) -> list[tuple[Any, ...]]:
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement.encode(), values).fetchall()


# --- pruning ---------------------------------------------------------------------------------------------


def prune(connection: Connection[Any], payloads_before: datetime, keys_before: datetime, limit: int) -> int:
    """Delete payloads and event keys older than given; return how many went (of large days, about how many).

    Days go whole, some at a time; of other rows, up to *limit* of each. What is not processed yet keeps its
    payload. *connection* is in no transaction.

    Moments at which a day begins (UTC) leave next to nothing to be deleted row by row.
    """
    dropped = _drop_days(connection, PAYLOAD, payloads_before) + _drop_days(connection, EVENT_KEY, keys_before)
    if dropped:
        return dropped
    return _delete_payloads(connection, payloads_before, limit) + _delete_keys(connection, keys_before, limit)


def _drop_days(connection: Connection[Any], table: str, before: datetime) -> int:
    """Drop the oldest days of *table* that ended before *before* and hold nothing that is needed."""
    ended = [one for one in _days(connection, table) if one.ended_at <= before]
    removed = 0
    for one in [one for one in ended if not _needed(connection, one)][:DAYS_AT_ONCE]:
        rows = _count(connection, one)
        try:
            with connection.transaction():
                connection.execute(_PATIENCE)
                connection.execute(_ALONE)
                # The parent, as everybody comes by it: from here on nobody can begin to need a payload.
                connection.execute(f"LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE")
                if not _needed(connection, one):
                    connection.execute(f"DROP TABLE IF EXISTS {one.name}")
                    removed += rows
        except LockNotAvailable:
            break
    return removed


def _needed(connection: Connection[Any], one: _Day) -> bool:
    """Say whether the day has payloads of receipts that are to be processed still."""
    span = (iso(one.began_at), iso(one.ended_at))
    return one.table == PAYLOAD and bool(_rows(connection, _NEEDED, *span))


_NEEDED = """
SELECT 1 FROM inbound i JOIN payload p ON p.digest = i.digest AND p.day = utc_day(i.received_at)
WHERE i.outcome = 'accepted' AND i.received_at >= %s::timestamptz AND i.received_at < %s::timestamptz LIMIT 1
"""


def _count(connection: Connection[Any], one: _Day) -> int:
    [(estimate,)] = _rows(connection, _ESTIMATE, COUNTED_BYTES, one.name)
    if estimate is not None:
        return int(estimate)
    [(count,)] = _rows(connection, f"SELECT count(*) FROM {one.name}")  # noqa: S608
    return int(count)


_ESTIMATE = """
SELECT CASE WHEN pg_relation_size(oid) > %s AND reltuples > 0 THEN reltuples::bigint END
FROM pg_class WHERE oid = to_regclass(%s)
"""


# --- row by row ------------------------------------------------------------------------------------------


def _delete_payloads(connection: Connection[Any], before: datetime, limit: int) -> int:
    removed = 0
    for name in _left_to_rows(connection, PAYLOAD, before):
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(_BRIEFLY)
            found = cursor.execute(_OLD_PAYLOADS.format(name=name), (iso(before), limit - removed)).fetchall()
            # They are looked at once more, as it is now that nobody can begin to need them.
            cursor.execute(_DELETE_PAYLOADS.format(name=name), ([row[0] for row in found],))
            removed += cursor.rowcount
    return removed


_UNNEEDED = "NOT EXISTS (SELECT 1 FROM inbound i WHERE i.digest = p.digest AND i.outcome = 'accepted')"
_OLD_PAYLOADS = f"""
SELECT p.ctid::text FROM {{name}} p WHERE p.created_at < %s::timestamptz AND {_UNNEEDED}
ORDER BY p.created_at LIMIT %s FOR UPDATE OF p SKIP LOCKED
"""  # noqa: S608
_DELETE_PAYLOADS = f"DELETE FROM {{name}} p WHERE p.ctid = ANY (%s::text[]::tid[]) AND {_UNNEEDED}"  # noqa: S608


def _delete_keys(connection: Connection[Any], before: datetime, limit: int) -> int:
    removed = 0
    for name in _left_to_rows(connection, EVENT_KEY, before):
        with connection.transaction():
            connection.execute(_BRIEFLY)
            statement = _DELETE_KEYS.format(name=name)
            removed += connection.execute(statement, (limit - removed, iso(before))).rowcount
    return removed


# The oldest first, and only so many are looked at: inbounds are numbered in the order of their arrival.
_DELETE_KEYS = """
DELETE FROM {name} WHERE ctid = ANY (ARRAY(
  SELECT k.ctid FROM (SELECT ctid, inbound_id FROM {name} ORDER BY inbound_id LIMIT %s) k
  JOIN inbound i ON i.id = k.inbound_id WHERE i.received_at < %s::timestamptz))
"""


def _left_to_rows(connection: Connection[Any], table: str, before: datetime) -> list[str]:
    """Return the partitions that cannot go whole and may hold rows older than *before*."""
    begun = [one for one in _days(connection, table) if one.began_at < before]
    return [
        *(one.name for one in begun if one.ended_at > before or _needed(connection, one)),
        f"{table}_default",
    ]
