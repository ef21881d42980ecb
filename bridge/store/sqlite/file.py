"""One SQLite file: its connections, the turns at writing it, and what its errors mean to a person."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlite_utils import Database

from bridge.errors import StoreUnavailable, Unstorable

BUSY_S = 5.0  # for programs that lock the database without queueing for our file lock (a backup, a shell)
EMPTYING_MS = 500  # for those who read while the log is to be emptied
TURN_S = 30.0  # for the other threads of this process
KEPT_OPEN = 16  # idle connections

PRAGMAS: Mapping[str, str | int] = {
    "journal_mode": "WAL",
    "secure_delete": "ON",  # an erased person's bytes are overwritten, not only forgotten
    "journal_size_limit": 64 * 1024 * 1024,
    "cache_size": -4_000,  # KiB, of each connection; behind it is the cache of the operating system
    "temp_store": "MEMORY",
}


@dataclass(slots=True, eq=False)
class _Connection:
    db: Database
    identity: tuple[int, int]  # device and inode of the file it was opened on
    synchronous: str = ""  # as it was last set

    def set_synchronous(self, how: str) -> None:
        if self.synchronous != how:
            self.db.conn.execute(f"PRAGMA synchronous = {how}")
            self.synchronous = how


class SqliteFile:
    """Connections to the file at *path*, which must exist (see `create`).

    A connection is used by one thread at a time, whichever; it is never carried over a fork. *pragmas* are set on
    every connection, beside ours.

    All methods raise `StoreUnavailable`, with a sentence for a person.
    """

    def __init__(self, path: Path, pragmas: Mapping[str, str | int] | None = None) -> None:
        self.path = path
        self._pragmas = {**PRAGMAS, **(pragmas or {})}
        self._idle: list[_Connection] = []
        self._closed = False
        self._writing = threading.Lock()
        _FILES.add(self)

    def create(self) -> None:
        """Make an empty file, with its folder, where there is none. Only its owner may read it."""
        with _in_plain_words():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))

    @contextlib.contextmanager
    def reading(self) -> Iterator[Database]:
        """Give one consistent view of the database."""
        with _in_plain_words(), self._connection() as connection:
            raw = connection.db.conn
            raw.execute("BEGIN")
            try:
                yield connection.db
            finally:
                raw.rollback()

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Database]:
        """Give one transaction, committed when the block ends and rolled back when it raises.

        It is on disk then, unless it is not *durable*: such a one survives the end of the process, and may be lost
        with everything after it that is not durable either when the machine loses power.
        """
        with _in_plain_words(), self._turn(), self._connection() as connection:
            connection.set_synchronous("FULL" if durable else "NORMAL")
            raw = connection.db.conn
            # The lock comes before the first read: a reader that wants to write later could be refused at once.
            raw.execute("BEGIN IMMEDIATE")
            try:
                yield connection.db
                raw.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    raw.rollback()
                raise

    def empty_log(self) -> bool:
        """Move everything from the write-ahead log into the database and cut it to nothing; say whether it went.

        Old versions of pages stand in the log, erased payloads among them. Somebody who reads them keeps it
        as it is: that is no error, and is not waited for long.
        """
        try:
            with self._turn(), self._connection() as connection:
                db = connection.db
                db.execute(f"PRAGMA busy_timeout = {EMPTYING_MS}")
                try:
                    return not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                finally:
                    db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        except (sqlite3.Error, OSError, StoreUnavailable):
            return False

    def close(self) -> None:
        """Close every connection that is not in use; the others are closed when their use ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().db.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the right to write: first among the threads of this process, then among the processes.

        SQLite's own waiting polls at random, so that one of many writers may starve; the file lock queues.
        """
        if not self._writing.acquire(timeout=TURN_S):
            raise StoreUnavailable(SENTENCES[sqlite3.SQLITE_BUSY])
        try:
            lock = os.open(f"{self.path}-lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                # A child that was forked meanwhile has this descriptor too: closing alone would not let go.
                fcntl.flock(lock, fcntl.LOCK_UN)
                os.close(lock)
        finally:
            self._writing.release()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        connection = self._take()
        sound = True
        try:
            yield connection
        except (sqlite3.Error, OSError):
            sound = False
            raise
        finally:
            if (
                sound
                and not connection.db.conn.in_transaction
                and not self._closed
                and len(self._idle) < KEPT_OPEN
            ):
                self._idle.append(connection)
            else:
                connection.db.close()

    def _take(self) -> _Connection:
        if self._closed:
            raise StoreUnavailable("The database is closed because bridge is stopping.")
        identity = self._identity()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._open(identity)
            if connection.identity == identity:
                return connection
            connection.db.close()  # the file was replaced: what is written to the old one would be lost

    def _identity(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _open(self, identity: tuple[int, int]) -> _Connection:
        # "rw" does not create the file: one that vanished is an error, not a fresh start.
        uri = f"file:{quote(str(self.path))}?mode=rw"
        opened = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            opened.row_factory = sqlite3.Row
            for name, value in self._pragmas.items():
                opened.execute(f"PRAGMA {name} = {value}")
            return _Connection(Database(opened, execute_plugins=False), identity)
        except BaseException:
            opened.close()
            raise

    def _after_fork(self) -> None:
        # A connection must not be used, nor even closed, in a child: both processes think they hold its locks.
        _INHERITED.extend(self._idle)
        self._idle = []
        self._writing = threading.Lock()


_FILES: weakref.WeakSet[SqliteFile] = weakref.WeakSet()
_INHERITED: list[_Connection] = []


def _after_fork_in_child() -> None:
    for file in list(_FILES):
        file._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


# --- errors in plain words -------------------------------------------------------------------------------

_READ_ONLY = (
    "The database file may not be written. Let the user that runs bridge write to it and to its folder; until "
    "then nothing is taken in, and senders try again."
)
_GONE = (
    "The database file cannot be opened. Check that it is there and that the user that runs bridge may read and "
    "write it; until then nothing is taken in, and senders try again."
)
_FULL = "The disk is full. Make room; until then nothing is taken in, and senders try again."
_DAMAGED = "The database file is damaged. Stop bridge and restore the file from a backup."
_BUSY = "Another program keeps the database busy. This is tried again by itself; if it lasts, look what holds it."
SENTENCES: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_PROTOCOL: _BUSY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: _GONE,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_IOERR: (
        "The disk cannot be read or written. Check it; until then nothing is taken in, and senders try again."
    ),
    sqlite3.SQLITE_NOMEM: "The machine has no memory left for the database. This is tried again by itself.",
}


@contextlib.contextmanager
def _in_plain_words() -> Iterator[None]:
    """Let every error of the database or its file leave as `StoreUnavailable`, or as `Unstorable`."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError) as error:
        # A number too large for a column leaves as it is: who asks for a list with one is told so.
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise Unstorable(f"The database refuses what bridge asks for ({name}): a bug of bridge.") from error
    except sqlite3.Error as error:
        raise StoreUnavailable(_sentence(error)) from error
    except OSError as error:
        raise StoreUnavailable(_file_sentence(error)) from error


def _sentence(error: sqlite3.Error) -> str:
    if str(error).startswith("no such table"):
        return "The database was not set up yet. Run: bridge migrate"
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, without the extension
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    return SENTENCES.get(code, f"The database reports an error ({name}). This is tried again by itself.")


def _file_sentence(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return _FULL
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return _READ_ONLY
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}:
        return _GONE
    return SENTENCES[sqlite3.SQLITE_IOERR]
