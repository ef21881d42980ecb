"""The PostgreSQL database that is copied into, and its rows as lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from psycopg import Connection
from psycopg.rows import tuple_row

from bridge.model import iso, utc_now
from bridge.store.copying import mark as marks
from bridge.store.copying.mark import Mark
from bridge.store.copying.tables import AS_LINES, PARTS, Columns, Part
from bridge.store.migrations import postgres as schema
from bridge.store.postgres.partitions import make_days
from bridge.store.sql.database import TOTALS

_PATIENT = (
    "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
    "; SET LOCAL lock_timeout = '10s'"
)
# What is lost with the server is lost with its mark; the last transaction has all of it on disk.
_WRITING = f"{_PATIENT}; SET LOCAL bridge.copying = 'on'; SET LOCAL synchronous_commit = off"
_ENDING = f"{_PATIENT}; SET LOCAL bridge.copying = 'on'; SET LOCAL synchronous_commit = on"
_READING = f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; {_PATIENT}; {AS_LINES}"

TABLES: Sequence[str] = (
    *dict.fromkeys(part.into for part in PARTS),
    *(f"{name}_delta" for name in TOTALS),
)
_APPEND_ONLY: Mapping[str, str] = {"audit": "audit_never_changes", "inbound": "inbound_never_goes"}

# Whoever began to run on this database before the copy did would not notice it: they find it read-only.
_GUARD = """
CREATE OR REPLACE FUNCTION copy_unfinished() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('bridge.copying', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'the copy into this database is not complete' USING ERRCODE = 'read_only_sql_transaction';
  END IF;
  RETURN NULL;
END $$
"""
_GUARD_TABLE = """
CREATE TRIGGER copy_unfinished BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
  FOR EACH STATEMENT EXECUTE FUNCTION copy_unfinished()
"""


class Target:
    """*connection* is in no transaction; the schema is up to date."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def mark(self) -> Mark | None:
        return marks.read(self._connection)

    def salt(self) -> bytes:
        [(salt,)] = self._rows("SELECT value FROM meta WHERE name = 'salt'")
        return bytes(salt)

    def in_use(self) -> list[str]:
        """Return the tables that hold something."""
        return [name for name in TABLES if self._rows(f"SELECT 1 FROM {name} LIMIT 1")]  # noqa: S608

    def columns(self, part: Part) -> Columns:
        return Columns(dict(self._rows(_COLUMNS, part.into)))

    # --- writing ---

    def begin(self, salt: bytes, mark: Mark) -> None:
        """Make this the database of the installation that has *salt*, read-only to all others."""
        with self._connection.transaction():
            self._connection.execute(_WRITING)
            marks.add(self._connection, mark)
            self._connection.execute("UPDATE meta SET value = %s WHERE name = 'salt'", (salt,))
            self._connection.execute(_GUARD)
            for table in TABLES:
                self._connection.execute(_GUARD_TABLE.format(table=table))

    def begin_anew(self, before: Mark, mark: Mark) -> None:
        """Let go of what was copied so far."""
        with self._connection.transaction():
            self._connection.execute(_WRITING)
            marks.change(self._connection, before, mark)
            # They protect what happened to this installation, and nothing did yet.
            for table, trigger in _APPEND_ONLY.items():
                self._connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
            self._connection.execute(f"TRUNCATE {', '.join(TABLES)}")
            for table, trigger in _APPEND_ONLY.items():
                self._connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER {trigger}")

    def make_days(self, days: Iterable[date]) -> None:
        """Prepare a partition for each of *days*, so that old ones can go whole later."""
        for day in days:
            make_days(self._connection, day, day)

    def write(self, part: Part, columns: Columns, lines: Sequence[str], before: Mark, after: Mark) -> None:
        """Add rows and remember how far that is, in one transaction."""
        with self._connection.transaction():
            self._connection.execute(_WRITING)
            marks.change(self._connection, before, after)
            if part.first and before.progress(part.name).after is None:
                self._connection.execute(part.first)
            if lines:
                statement = f"COPY {part.into} ({columns.names}) FROM STDIN"
                with self._connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
                    copy.write("".join(lines).encode())

    def refute(self, before: Mark) -> None:
        """Remember that this copy is not to be gone on with."""
        with self._connection.transaction():
            marks.change(self._connection, before, replace(before, refuted=True))

    def analyze(self) -> None:
        """Have the planner know the tables: until the server does that by itself, lists could be slow."""
        with self._connection.transaction():
            self._connection.execute(_PATIENT)
            self._connection.execute(f"ANALYZE {', '.join(TABLES)}")

    def finish(self, before: Mark) -> Mark:
        """Let everybody run on this database."""
        after = replace(before, finished_at=iso(utc_now()))
        with self._connection.transaction():
            self._connection.execute(_ENDING)
            marks.change(self._connection, before, after)
            schema.set_sequences(self._connection)
            self._connection.execute("DROP FUNCTION copy_unfinished CASCADE")
        return after

    # --- reading ---

    def lines(self, part: Part, columns: Columns) -> Iterator[bytes]:
        """Yield all rows of the table that *part* goes into, in any order."""
        statement = f"COPY (SELECT {columns.as_lines} FROM {part.seen_in or part.into}) TO STDOUT"  # noqa: S608
        with self._connection.transaction():
            self._connection.execute(_READING)
            with self._connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
                for line in copy:
                    yield bytes(line)

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._connection.transaction(), self._connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(statement.encode(), values).fetchall()


_COLUMNS = """
SELECT a.attname::text, t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
