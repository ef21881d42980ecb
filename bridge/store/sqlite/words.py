"""SQLite's words for what `bridge.store.sql.database` lists."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from bridge.store.codec import to_json
from bridge.store.sql.database import TOTALS

_WORDS = (
    (re.compile(r"\beach_(?:id|text)\("), "json_each("),
    (re.compile(r"\bgreatest\("), "max("),
    (re.compile(r"\bstrpos\("), "instr("),
    (re.compile(r"\s+FOR UPDATE(?: OF \w+)?(?: SKIP LOCKED)?\b"), ""),
    (re.compile(r"\s+AND same_day\([^)]*\)"), ""),
)


@lru_cache(maxsize=1024)  # statements of lists are put together of parts, in bounded variety
def in_its_words(sql: str) -> str:
    for pattern, word in _WORDS:
        sql = pattern.sub(word, sql)
    return sql


class SqliteDb:
    """One open transaction of a SQLite file; see `bridge.store.sql.database.Db`."""

    by_day = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> sqlite3.Cursor:
        return self._connection.execute(in_its_words(sql), values)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        self._connection.executemany(in_its_words(sql), rows)

    def for_each(
        self, ids: Sequence[int], sql: str, values: Sequence[Any] = (), /
    ) -> Iterator[tuple[int, list[sqlite3.Row]]]:
        statement = sql.replace("each.id", "?")
        for one in ids:
            yield one, self.execute(statement, (one, *values)).fetchall()

    def array(self, values: Iterable[Any], /) -> str:
        return to_json(list(values))

    def add(self, table: str, sums: Mapping[tuple[Any, ...], Sequence[int]], /) -> None:
        self._connection.executemany(_adding(table), [(*key, *more) for key, more in sums.items()])

    def take_ids(self, table: str, count: int, /) -> Sequence[int]:
        # There is one writer, and ids of rows that were deleted are never given again (AUTOINCREMENT).
        row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        last: int = row["seq"] if row else 0
        return range(last + 1, last + 1 + count)

    def lock(self, name: str, /, *, shared: bool = False) -> None:
        """There is one writer, who has everything."""

    def lock_rows(self, table: str, condition: str, values: Sequence[Any], /) -> None:
        """The same holds for rows."""

    def make_due(self, lane: str, when: datetime, /) -> None:
        """The one worker is woken by a bell, and by what the verbs return."""


@lru_cache
def _adding(table: str) -> str:
    keys, sums = TOTALS[table]
    marks = ", ".join("?" * (len(keys) + len(sums)))
    more = ", ".join(f"{name} = {name} + excluded.{name}" for name in sums)
    return (
        f"INSERT INTO {table} ({', '.join((*keys, *sums))}) VALUES ({marks})"  # noqa: S608
        f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {more}"
    )
