"""Running totals: what writers appended is added up, so that there are few rows to read.

Writers only append to ``<name>_delta``, so that no two of them wait for each other at a counter. Whoever reads the
view ``<name>`` sees sums and appended rows together, and so the same numbers before and after a fold.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import tuple_row

from bridge.store.sql.database import TOTALS

ROWS_AT_ONCE = 20_000  # appended rows of one total: some tens of milliseconds

# A process that freezes half-way is let go of, and what it had taken with it.
_BRIEFLY = "SET LOCAL idle_in_transaction_session_timeout = '5s'"
_ALONE = "SELECT pg_try_advisory_xact_lock(hashtextextended('bridge fold', 0))"
# Sums are entered in the order of their keys, so that this never waits crosswise for anybody who prunes them. A
# physical address is enough to find rows again that nobody else changes.
_FOLD = """
WITH taken AS (
  DELETE FROM {name}_delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM {name}_delta LIMIT %s)) RETURNING *
), added AS (
  INSERT INTO {name}_sum AS s ({keys}, {numbers})
  SELECT {keys}, {sums} FROM taken GROUP BY {keys} ORDER BY {keys}
  ON CONFLICT ({keys}) DO UPDATE SET {grown}
)
SELECT count(*) FROM taken
"""


def fold(connection: Connection[Any], limit: int = ROWS_AT_ONCE) -> bool:
    """Add up to *limit* appended rows of each total to its sums; return whether there may be more of them.

    One transaction. Where somebody else is folding, it is left to them.
    """
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(_BRIEFLY)
        if cursor.execute(_ALONE).fetchall() != [(True,)]:
            return False
        taken = [cursor.execute(statement, (limit,)).fetchall() for statement in _FOLDS]
    return [(limit,)] in taken


_FOLDS = tuple(
    _FOLD.format(
        name=name,
        keys=", ".join(keys),
        numbers=", ".join(numbers),
        sums=", ".join(f"sum({one})" for one in numbers),
        grown=", ".join(f"{one} = s.{one} + excluded.{one}" for one in numbers),
    )
    for name, (keys, numbers) in TOTALS.items()
)


def forget_minutes(connection: Connection[Any], before: int, limit: int = ROWS_AT_ONCE) -> int:
    """Delete up to *limit* totals of minutes that began before *before*, in Unix time; return how many.

    One that was appended and not folded yet goes at a later time.
    """
    with connection.transaction():
        connection.execute(_BRIEFLY)
        return connection.execute(_FORGET_MINUTES, (before, limit)).rowcount


_FORGET_MINUTES = """
DELETE FROM activity_sum WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM activity_sum WHERE step = 60 AND bucket < %s LIMIT %s FOR UPDATE SKIP LOCKED))
"""
