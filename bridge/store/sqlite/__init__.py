"""The store of one machine: one SQLite file, written by one transaction at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlite_utils import Database

from bridge.errors import StoreUnavailable
from bridge.model import iso, utc_now
from bridge.store.migrations.sqlite import MIGRATIONS
from bridge.store.sql import totals
from bridge.store.sql.database import Db
from bridge.store.sql.facts import bare_inbounds
from bridge.store.sql.store import SqlStore
from bridge.store.sqlite.file import SqliteFile
from bridge.store.sqlite.words import SqliteDb

P = ParamSpec("P")
T = TypeVar("T")


class SqliteStore(SqlStore):
    """A `Store` in the file at *path*.

    *lanes* says how many delivery lanes each target has. *pragmas* are further settings of every connection.
    """

    def __init__(
        self, path: str | Path, lanes: Mapping[str, int], *, pragmas: Mapping[str, str | int] | None = None
    ) -> None:
        super().__init__(lanes)
        self._file = SqliteFile(Path(path), pragmas)

    def prune(self, *, payloads_before: datetime, keys_before: datetime, limit: int = 1000) -> int:
        removed = self._write(_prune, iso(payloads_before), iso(keys_before), limit)
        if removed < limit:  # not after each of many slices
            self._file.empty_log()
        return removed

    def clock(self) -> datetime:
        return utc_now()

    def tidy(self, now: datetime) -> bool:
        return False  # every transaction leaves the file as it should be

    def alone(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()  # what only one process may do is the worker's, and there is one

    def migrate(self) -> list[str]:
        self._file.create()
        with self._file.writing() as db:
            return _migrate(db)

    def close(self) -> None:
        self._file.close()

    def _read(self, look: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        with self._file.reading() as db:
            return look(SqliteDb(db.conn), *args, **named)

    def _write(self, change: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        with self._file.writing() as db:
            return change(SqliteDb(db.conn), *args, **named)

    def _write_lazily(self, change: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        with self._file.writing(durable=False) as db:
            return change(SqliteDb(db.conn), *args, **named)

    def _forgotten(self) -> None:
        self._file.empty_log()  # if somebody reads just now, the next pruning does it


def _migrate(db: Database) -> list[str]:
    """Take the steps that are missing, all or none.

    Raises:
        StoreUnavailable: the database has steps that this version of bridge does not know.
    """
    unknown = {step.name for step in MIGRATIONS.applied(db)} - _steps()
    if unknown:
        raise StoreUnavailable(
            f"The database was written by a newer version of bridge (it has {', '.join(sorted(unknown))}). "
            "Run that version, or restore a backup from before the upgrade."
        )
    missing = [step.name for step in MIGRATIONS.pending(db)]
    MIGRATIONS.apply(db)
    return missing


def _steps() -> set[str]:
    """Return the names of all steps that this version knows: those that an empty database lacks."""
    with Database(memory=True) as empty:
        return {step.name for step in MIGRATIONS.pending(empty)}


def _prune(db: Db, payloads_before: str, keys_before: str, limit: int) -> int:
    deleted = db.execute(
        "DELETE FROM payload WHERE id IN (SELECT p.id FROM payload p WHERE p.created_at < ?"
        # What is not processed yet needs its bytes, however old it is.
        " AND NOT EXISTS (SELECT 1 FROM inbound i WHERE i.digest = p.digest AND i.outcome = 'accepted')"
        " ORDER BY p.created_at LIMIT ?) RETURNING digest",
        (payloads_before, limit),
    ).fetchall()
    for row in deleted:
        bare_inbounds(db, row["digest"])
    keys = db.execute(
        "DELETE FROM event_key WHERE id IN ("
        # The oldest first, and only so many are looked at: they stand in the order of their arrival.
        " SELECT k.id FROM (SELECT id, inbound_id FROM event_key ORDER BY id LIMIT ?) k"
        " JOIN inbound i ON i.id = k.inbound_id WHERE i.received_at < ?)",
        (limit, keys_before),
    ).rowcount
    kept_from = totals.minutes_kept_from(db)
    db.execute("DELETE FROM activity WHERE step = ? AND bucket < ?", (totals.MINUTE_S, kept_from))
    return len(deleted) + keys
