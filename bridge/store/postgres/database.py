"""What the shared statements become on PostgreSQL, and how values and rows travel."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import RawCursor
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import Format
from psycopg.rows import DictRow, dict_row
from psycopg.types.numeric import Int8BinaryDumper, NumericBinaryLoader
from psycopg.types.string import StrDumperUnknown

from bridge.store.sql.database import TOTALS

# In this order, outside of quotes; see the table in `bridge.store.sql.database`.
_WORDS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"\beach_id\(\?\)\s+(\w+)"), r"unnest(?::bigint[]) \1(value)"),
    (re.compile(r"\beach_text\(\?\)\s+(\w+)"), r"unnest(?::text[]) \1(value)"),
    (re.compile(r"\bsame_day\((\w+),\s*([\w.]+)\)"), r"\1.day = (\2 AT TIME ZONE 'UTC')::date"),
    (re.compile(r"\bIS NOT \?"), "IS DISTINCT FROM ?"),
    (re.compile(r"\bIS \?"), "IS NOT DISTINCT FROM ?"),
    (re.compile(r"\bINDEXED BY \w+"), ""),
    (re.compile(r"\bCROSS JOIN\b"), "JOIN"),
    (re.compile(r"(?<=[\s(])\+(?=[A-Za-z_])"), ""),
)
_QUOTED = re.compile(r"('(?:[^']|'')*')")
_UNFIT = re.compile("[\x00\ud800-\udfff]")
_INSTEAD = "\ufffd"


@lru_cache(maxsize=1024)
def converted(statement: str) -> bytes:
    """Return a shared statement in PostgreSQL's words, its values numbered ``$1``, ``$2`` and so on."""
    parts = _QUOTED.split(statement)
    numbers = iter(range(1, statement.count("?") + 1))
    for place in range(0, len(parts), 2):  # what is in quotes stands between
        for pattern, word in _WORDS:
            parts[place] = pattern.sub(word, parts[place])
        parts[place] = re.sub(r"\?", lambda _: f"${next(numbers)}", parts[place])
    return "".join(parts).encode()


class PostgresDb:
    """One open transaction: the `Db` of the shared statements.

    *due* gathers which lanes somebody is to run once it is committed, and when at the earliest.
    """

    by_day = True

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.due: dict[str, datetime] = {}

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> RawCursor[DictRow]:
        cursor = RawCursor(self.connection, row_factory=dict_row)
        # Binary, so that payloads come as they are and moments without a look at the session's settings.
        return cursor.execute(converted(sql), values, binary=True)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        if rows:
            RawCursor(self.connection).executemany(converted(sql), rows)

    def for_each(
        self, ids: Sequence[int], sql: str, values: Sequence[Any] = (), /
    ) -> Iterable[tuple[int, list[DictRow]]]:
        # At once: each statement is a way to the server and back.
        found: dict[int, list[DictRow]] = {}
        for row in self.execute(_FOR_EACH.format(sql=sql), (list(ids), *values)):
            found.setdefault(row["each_id"], []).append(row)
        return found.items()

    def array(self, values: Iterable[Any], /) -> list[Any]:
        return list(values)

    def add(self, table: str, sums: Mapping[tuple[Any, ...], Sequence[int]], /) -> None:
        # Nobody waits for anybody's row: a chore folds these into the totals later.
        self.executemany(_addition(table), [(*key, *numbers) for key, numbers in sums.items()])

    def take_ids(self, table: str, count: int, /) -> list[int]:
        rows = self.execute(_TAKE_IDS, (table, count))
        return sorted(row["id"] for row in rows)

    def lock(self, name: str, /, *, shared: bool = False) -> None:
        self.execute(_LOCK_SHARED if shared else _LOCK, (name,))

    def lock_rows(self, table: str, condition: str, values: Sequence[Any], /) -> None:
        self.execute(_LOCK_ROWS.format(table=table, condition=condition), values)

    def make_due(self, lane: str, when: datetime, /) -> None:
        self.due[lane] = min(when, self.due.get(lane, when))


_FOR_EACH = (
    "SELECT each.id AS each_id, found.* FROM unnest(?::bigint[]) each(id) JOIN LATERAL ({sql}) found ON TRUE"
)
_TAKE_IDS = "SELECT nextval(pg_get_serial_sequence(?, 'id')) AS id FROM generate_series(1, ?)"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('bridge ' || ?, 0))"
_LOCK_SHARED = "SELECT pg_advisory_xact_lock_shared(hashtextextended('bridge ' || ?, 0))"
# They are sorted first and locked then, one by one; only their number is sent.
_LOCK_ROWS = "SELECT count(*) FROM (SELECT id FROM {table} WHERE {condition} ORDER BY id FOR UPDATE) locked"


@lru_cache
def _addition(table: str) -> str:
    keys, sums = TOTALS[table]
    columns = (*keys, *sums)
    values = ", ".join("?" * len(columns))
    return f"INSERT INTO {table}_delta ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 - names of ours


# --- types -----------------------------------------------------------------------------------------------


class _Text(StrDumperUnknown):
    """Any text, of no type, so that the column decides; what PostgreSQL cannot hold becomes U+FFFD."""

    def dump(self, obj: str) -> bytes:
        try:
            encoded = obj.encode()
        except UnicodeEncodeError:
            encoded = b"\0"
        return _UNFIT.sub(_INSTEAD, obj).encode() if b"\0" in encoded else encoded


class _Moment(Loader):
    """A timestamptz as `bridge.model.iso` writes it."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return _iso(_MICROSECONDS.unpack(data)[0])


class _Number(NumericBinaryLoader):
    """A sum of integers comes as numeric; it is an int again, and a float where it has a fraction."""

    def load(self, data: Buffer) -> Any:
        value = super().load(data)
        return int(value) if value == value.to_integral_value() else float(value)


_MICROSECONDS = struct.Struct(">q")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's


@lru_cache(maxsize=4096)  # many rows of a list have their moments in common
def _iso(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")[:26] + "Z"


def _adapters() -> AdaptersMap:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_dumper(str, _Text)
    # Of one size, so that a statement is prepared once and not for each size of each of its values.
    adapters.register_dumper(int, Int8BinaryDumper)
    adapters.register_loader("timestamptz", _Moment)
    adapters.register_loader("numeric", _Number)
    return adapters


@dataclass(frozen=True, slots=True)
class Types:
    """What a connection is made with (`psycopg.abc.AdaptContext`), so that values travel as said here."""

    adapters: AdaptersMap
    connection: None = None


TYPES = Types(_adapters())
