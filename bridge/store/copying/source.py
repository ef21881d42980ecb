"""The SQLite file that is copied: one consistent view of it, as lines."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bridge.store.copying.mark import CopyError
from bridge.store.copying.tables import EARLIER_USES, Columns, Part
from bridge.store.sqlite import SqliteStore
from bridge.store.sqlite.file import SqliteFile


def bring_up_to_date(path: Path) -> None:
    """Take the steps that the file's schema lacks.

    Raises:
        CopyError: it is not a database of bridge.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT 1 FROM meta WHERE name = 'salt'").fetchone()
    except sqlite3.Error:
        found = None
    if found is None:
        raise CopyError(f"{path} is not a database of bridge, or cannot be read. Check the path.")
    with closing(SqliteStore(path, {})) as store:
        store.migrate()


def state_of(path: Path) -> str:
    """Return a text that is another one after every change of the database.

    What was committed stands in the file or in its log; to look at them costs nothing, however large they are.
    """
    looked_at = []
    for file in (path, path.with_name(f"{path.name}-wal")):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        if status.st_size:  # an empty log comes and goes with whoever reads
            looked_at.append([status.st_size, status.st_mtime_ns])
    return json.dumps(looked_at)


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Give one view of the file, whatever is written to it meanwhile."""
    with closing(SqliteFile(path)) as file, file.reading() as db:
        yield Source(db.conn)


class Source:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        for statement in EARLIER_USES.split(";")[:-1]:
            connection.execute(statement)

    @property
    def salt(self) -> bytes:
        [(salt,)] = self._rows("SELECT value FROM meta WHERE name = 'salt'")
        return bytes(salt)

    @property
    def receipts(self) -> int:
        [(last,)] = self._rows("SELECT coalesce(max(id), 0) FROM inbound")
        return int(last)

    def count(self, part: Part) -> int:
        [(count,)] = self._rows(f"SELECT count(*) FROM {part.origin}")  # noqa: S608 - names of ours
        return int(count)

    def days(self) -> set[date]:
        """Return the days that payloads or event keys are of."""
        [(oldest_key,)] = self._rows(
            "SELECT coalesce("
            "(SELECT received_at FROM inbound WHERE id = (SELECT min(inbound_id) FROM event_key)), '9')"
        )
        earlier = {date.fromisoformat(row[0]) for row in self._rows("SELECT DISTINCT day FROM temp.earlier_use")}
        return {
            *earlier,
            *self._days("SELECT min(created_at) FROM payload WHERE created_at >= ?", ""),
            *self._days("SELECT min(received_at) FROM inbound WHERE received_at >= ?", oldest_key),
        }

    def _days(self, next_of: str, after: str) -> Iterator[date]:
        """Yield each day of moments from *after* on; with an index, that looks at one row of each day."""
        while (moment := self._rows(next_of, (after,)).fetchone()[0]) is not None:
            day = date.fromisoformat(moment[:10])
            yield day
            after = (day + timedelta(days=1)).isoformat()

    def lines(
        self, part: Part, columns: Columns, after: Sequence[Any] | None = None
    ) -> Iterator[tuple[tuple[Any, ...], str]]:
        """Yield the rows behind the key *after*, each with its key."""
        statement, order = columns.read_by(part), ", ".join(part.keys)
        if after is not None:
            statement += f" WHERE ({order}) > ({', '.join('?' * len(after))})"
        keys, line = len(part.keys), columns.writer()
        for row in self._rows(f"{statement} ORDER BY {order}", after or ()):
            yield row[:keys], line(row[keys:])

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        cursor.row_factory = None  # plain tuples
        return cursor.execute(statement, values)


def receipts_of(path: Path) -> int:
    """Return the number of the newest receipt, as it is now."""
    with closing(SqliteFile(path)) as file, file.reading() as db:
        row = db.conn.execute("SELECT coalesce(max(id), 0) AS last FROM inbound").fetchone()
    return int(row["last"])
