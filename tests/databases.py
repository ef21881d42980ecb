"""Empty databases for tests that run on both kinds: files, and one PostgreSQL database that is emptied in between.

Emptying takes a tenth of the time of making another one.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from bridge.database import Database, PostgresDatabase, SqliteDatabase
from tests.postgres import PostgresServer

KINDS = ("sqlite", "postgres")

# For a test whose fixtures run on both kinds of database, and which is not about what is in them.
sqlite_is_enough = pytest.mark.parametrize("fresh", ["sqlite"], indirect=True)

Fresh = Callable[[], Database]  # an empty one; what the one before held may be gone by then

_TABLES: LiteralString = (
    "SELECT relname FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'bridge_migrations'"
)
_SEQUENCES: LiteralString = "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'"


class Files:
    """A new file each time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)

    def __call__(self) -> SqliteDatabase:
        number = next(self._numbers)
        folder = self._folder if number == 1 else self._folder / f"database-{number}"
        folder.mkdir(exist_ok=True)
        return SqliteDatabase(folder / "bridge.db")


class Emptied:
    """The same database each time, as it was after it had been made from *template*."""

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._url = server.create_database("emptied", template)
        self._connect()
        self._kept = {row[0]: row for row in self._connection.execute("SELECT name, value FROM meta")}

    def __call__(self) -> PostgresDatabase:
        if self._pid != self._server.pid or not self._server.running:
            self._server.start()
            self._connection.close()
            self._connect()
        tables = [sql.Identifier(name) for (name,) in self._connection.execute(_TABLES)]
        sequences = [sql.Identifier(name) for (name,) in self._connection.execute(_SEQUENCES)]
        statements = [
            sql.SQL("SET LOCAL session_replication_role = replica"),  # no triggers: facts may go for once
            *(sql.SQL("DELETE FROM {}").format(table) for table in tables),
            *(sql.SQL("ALTER SEQUENCE {} RESTART").format(sequence) for sequence in sequences),
        ]
        with self._connection.transaction():
            self._connection.execute(sql.SQL("; ").join(statements))
            for name, value in self._kept.values():
                self._connection.execute("INSERT INTO meta (name, value) VALUES (%s, %s)", (name, value))
        return PostgresDatabase(self._url)

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> None:
        self._pid = self._server.pid
        # A store that a test left open must not hold everybody up.
        self._connection = psycopg.connect(self._url, autocommit=True, options="-c lock_timeout=10s")


@contextmanager
def emptied(server: PostgresServer, template: str) -> Iterator[Emptied]:
    with closing(Emptied(server, template)) as databases:
        yield databases


def lasting(request: pytest.FixtureRequest, folder: Path) -> Database:
    """Return an empty database for a fixture of more than one test, of the kind that is its parameter."""
    if request.param == "sqlite":
        return SqliteDatabase(folder / "bridge.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return PostgresDatabase(server.create_database(folder.name, request.getfixturevalue("migrated_template")))


def url_of(database: Database) -> str:
    """Return what DATABASE_URL says of it."""
    return f"sqlite:///{database.path}" if isinstance(database, SqliteDatabase) else _postgres(database).url


def readable(database: Database) -> bytes:
    """Return all that whoever gets hold of *database* can read in it; no store may be open."""
    if isinstance(database, SqliteDatabase):
        files = database.path.parent.glob(f"{database.path.name}*")
        return b"".join(file.read_bytes() for file in files if file.is_file())
    with psycopg.connect(_postgres(database).url, row_factory=dict_row) as connection:
        tables = [sql.Identifier(row["relname"]) for row in connection.execute(_TABLES)]
        rows = [row for table in tables for row in connection.execute(sql.SQL("SELECT * FROM {}").format(table))]
    return b"\n".join(_bytes_of(value) for row in rows for value in row.values())


_HEAD = """
import os, sys
from bridge.config import Environment
from bridge.database import database_of
from tests.store_contract import *
store = database_of(Environment(database_url=sys.argv[1])).open(LANES, "web")
"""


def python(script: str, database: Database, *arguments: object) -> subprocess.Popen[str]:
    """Start *script* in another process, where `store` is opened on *database*."""
    return subprocess.Popen(
        [sys.executable, "-c", _HEAD + textwrap.dedent(script), url_of(database), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


def is_sound(database: Database) -> bool:
    """Say whether a file is whole. A server sees to that itself."""
    if not isinstance(database, SqliteDatabase):
        return True
    with closing(sqlite3.connect(database.path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _bytes_of(value: Any) -> bytes:
    if not isinstance(value, bytes):
        return str(value).encode()
    with suppress(zlib.error):
        return zlib.decompress(value)
    return value


def _postgres(database: Database) -> PostgresDatabase:
    assert isinstance(database, PostgresDatabase)
    return database
