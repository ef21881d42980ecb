"""What a PostgreSQL database remembers of the copy into it: one row of ``meta``, gone on with by the next run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from psycopg import Connection
from psycopg.rows import tuple_row

from bridge.errors import BridgeError, StoreUnavailable

_UNFINISHED = (
    "The copy into this database (bridge copy) is not complete, so nothing may run on it yet. Run the same "
    "bridge copy again: it goes on where it stopped."
)


class CopyError(BridgeError):
    """A copy cannot be made, or is not what it should be. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one part of the copy is: the key of its last row, and how many there are so far."""

    after: Sequence[Any] | None = None
    rows: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    began_at: str
    state: str  # of the SQLite file, as `source.state_of` tells it
    parts: Mapping[str, Progress] = field(default_factory=dict)
    refuted: bool = False  # the rows were found to differ: there is nothing to go on with
    finished_at: str | None = None

    def progress(self, part: str) -> Progress:
        return self.parts.get(part, Progress())

    def at(self, part: str, progress: Progress) -> Mark:
        return replace(self, parts={**self.parts, part: progress})


def read(connection: Connection[Any]) -> Mark | None:
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute("SELECT value FROM meta WHERE name = 'copy'").fetchall()
    return _from_bytes(bytes(rows[0][0])) if rows else None


def add(connection: Connection[Any], mark: Mark) -> None:
    connection.execute("INSERT INTO meta (name, value) VALUES ('copy', %s)", (_to_bytes(mark),))


def change(connection: Connection[Any], before: Mark, after: Mark) -> None:
    """Replace *before*, which nobody else may have changed, in the open transaction.

    Raises:
        CopyError: somebody did.
    """
    changed = connection.execute(
        "UPDATE meta SET value = %s WHERE name = 'copy' AND value = %s", (_to_bytes(after), _to_bytes(before))
    ).rowcount
    if changed != 1:
        raise CopyError("Another bridge copy writes to this PostgreSQL database. Let one of them end.")


def refuse_unfinished(connection: Connection[Any]) -> None:
    """Make sure that no copy into this database is under way or was left half-done.

    Raises:
        StoreUnavailable: there is one; the message says what to do.
    """
    mark = read(connection)
    if mark is not None and mark.finished_at is None:
        raise StoreUnavailable(_UNFINISHED)


def _to_bytes(mark: Mark) -> bytes:
    return json.dumps(asdict(mark), sort_keys=True).encode()


def _from_bytes(value: bytes) -> Mark:
    written = json.loads(value)
    parts = {name: Progress(**progress) for name, progress in written.pop("parts").items()}
    return Mark(parts=parts, **written)
