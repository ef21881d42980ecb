"""What the statements in this package ask of a database, whichever it is.

They are written once, in SQL that SQLite and PostgreSQL share, with ``?`` for values. Each database's `Db` turns
into its own words what the two call differently:

=========================  ========================================  ====================================
here                       SQLite                                    PostgreSQL
=========================  ========================================  ====================================
``each_id(?) i``           ``json_each(?) i``                        ``unnest(?::bigint[]) i(value)``
``each_text(?) i``         ``json_each(?) i``                        ``unnest(?::text[]) i(value)``
``greatest(a, b)``         ``max(a, b)``                             as it is
``strpos(text, part)``     ``instr(text, part)``                     as it is
``IS ?``                   as it is                                  ``IS NOT DISTINCT FROM ?``
``FOR UPDATE``             nothing: there is one writer              as it is (also ``… SKIP LOCKED``)
``AND same_day(p, at)``    nothing                                   ``AND p.day = the day of at, in UTC``
``+column``                as it is: no index of it is to be used    ``column``
``JOIN … INDEXED BY x``    as it is                                  nothing
``CROSS JOIN a ON …``      as it is: in this order                   ``JOIN a ON …``
=========================  ========================================  ====================================

**Who waits for whom.** On PostgreSQL many transactions run at a time, and each statement sees what was committed
before it began. So a verb that writes what follows from what it read takes locks before it reads, and all of them
in this order, so that no two ever wait for each other:

1. the row of a lane (`check_fence`; a run of it writes under this lock, and so never after somebody took it over),
   several by their names;
2. the door of a target (`keep_open`, `open_or_close`; whether it is open), several by their names;
3. a bulk retry (its name, by `Db.lock`);
4. contacts, by their ids;
5. deliveries, by their ids. Who needs several takes them with `Db.lock_rows` before anything is read of them, and
   their contacts before that, unless the door is shut behind it. Only who claims takes a name after a delivery (of
   a target's unlinked contacts), and behind that waits for no row; `finish`, which has a delivery when it claims
   the next one, skips those that somebody else has;
6. event keys, by their digests; inbounds, by their ids; payloads;
7. how far a CRM's list was gone through (its name, by `Db.lock`);
8. rows that are written once, near the end (of a source, a target's last push, a quota), and last the wakes.

What breaks that order is found out by the database after a second, and the transaction runs again. So does the
second of two that write the same key (of an event, a link). It is called with the same arguments: a verb changes
nothing but the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol


class Row(Protocol):
    def __getitem__(self, name: str, /) -> Any: ...


class Result(Protocol):
    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Row | None: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Db(Protocol):
    """One open transaction. Moments are text as `bridge.model.iso` writes it, in values and in rows."""

    by_day: bool  # payloads and event keys are kept by day, and say which in a column of that name

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Result: ...

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None: ...

    def for_each(
        self, ids: Sequence[int], sql: str, values: Sequence[Any] = (), /
    ) -> Iterable[tuple[int, list[Any]]]:
        """Return the rows of *sql* for each of *ids*, which it calls ``each.id`` before any of its *values*.

        Who has none may be left out.
        """
        ...

    def array(self, values: Iterable[Any], /) -> Any:
        """Return *values* as the one value that ``each_id(?)`` and ``each_text(?)`` take."""
        ...

    def add(self, table: str, sums: Mapping[tuple[Any, ...], Sequence[int]], /) -> None:
        """Add to running totals: for each key of *table* (see `TOTALS`), what its numbers grow by."""
        ...

    def take_ids(self, table: str, count: int, /) -> Sequence[int]:
        """Return *count* ids for new rows of *table*, in ascending order."""
        ...

    def lock(self, name: str, /, *, shared: bool = False) -> None:
        """Wait until nobody else has *name*, and keep it until the transaction ends."""
        ...

    def lock_rows(self, table: str, condition: str, values: Sequence[Any], /) -> None:
        """Wait until nobody else has the rows of *table* that match, by their ids, and keep them until the end."""
        ...

    def make_due(self, lane: str, when: datetime, /) -> None:
        """Have somebody run *lane* at *when*, if the transaction is committed."""
        ...


# What each running total is counted by; what is summed follows.
TOTALS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "activity": (
        ("step", "bucket", "kind", "outcome", "source", "target", "error", "status"),
        ("n", "calls", "duration_ms"),
    ),
    "latency": (("target", "bucket_ms"), ("n", "total_ms")),
    "lag": (("target", "bucket_ms"), ("n", "total_ms")),
    "tally": (("kind", "name", "state"), ("n",)),
    "bulk_tally": (("bulk_id", "state"), ("n",)),
}


def row_of(result: Result) -> Row:
    """Return the row of a statement that always gives one: a sum, say."""
    row = result.fetchone()
    if row is None:
        raise LookupError("The statement gave no row.")
    return row
