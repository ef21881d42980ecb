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
``FOR UPDATE``             nothing: there is one writer              as it is
``AND same_day(p, at)``    nothing                                   ``AND p.day = the day of at, in UTC``
``+column``                as it is: no index of it is to be used    ``column``
``JOIN … INDEXED BY x``    as it is                                  nothing
``CROSS JOIN a ON …``      as it is: in this order                   ``JOIN a ON …``
=========================  ========================================  ====================================
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
