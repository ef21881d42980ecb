"""What DATABASE_URL names, and what comes with it: the store, the engine, and how a worker is woken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from bridge import log
from bridge.engine.bell import Alarm, Bell, Ringer, bell_path
from bridge.engine.embedded import EmbeddedEngine, LockTaken, WorkerLock
from bridge.engine.protocol import Engine
from bridge.environment import Environment
from bridge.errors import BridgeError, ConfigError, Problem
from bridge.store.protocol import Store
from bridge.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from bridge.store.postgres import PostgresStore

LOOK_S = 0.5  # whether another worker has ended
# With the three of its engine a worker has six. Web and worker twice each leave two of the 20 of a small plan.
CONNECTIONS = {"web": 3, "worker": 3}
CONNECTIONS_OF_A_COMMAND = 1

Lanes = Mapping[str, int]  # target -> how many delivery lanes it has


class WorkerRunning(BridgeError):
    """Another worker has this database."""


class Database(Protocol):
    @property
    def place(self) -> str:
        """Where it is, in words for a person and without a password."""
        ...

    @property
    def shared(self) -> bool:
        """Whether web and worker may run in any number, on any machines."""
        ...

    def store(self, lanes: Lanes, role: str) -> Store:
        """Return the store without looking at the database: while that is away, each verb says so."""
        ...

    def open(self, lanes: Lanes, role: str) -> Store:
        """Return the store of a database that is up to date.

        Raises:
            StoreUnavailable: it is not, or cannot be reached.
        """
        ...

    def ring(self) -> None:
        """Tell the workers that work may be due, where the store's verbs do not."""
        ...

    def bell(self) -> Ringer:
        """Return what a worker waits for, beside its own lanes."""
        ...

    def working(self, store: Store, *, patient: bool) -> AbstractContextManager[Engine]:
        """Give the engine of a worker on *store*.

        *patient*: where there can be one worker only, wait for another to end.

        Raises:
            WorkerRunning: there is another one, and we are not to wait.
        """
        ...


def database_of(environment: Environment) -> Database:
    """Return the database that DATABASE_URL names.

    Raises:
        ConfigError: bridge was installed without what that database needs.
    """
    if environment.database_url.startswith("sqlite:"):
        return SqliteDatabase(Path(urlsplit(environment.database_url).path[1:]))
    lacking = [name for name in ("psycopg", "psycopg_pool", "procrastinate") if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            Problem(
                "the environment: DATABASE_URL",
                f"it names a PostgreSQL database, and {', '.join(lacking)} is not installed",
                "install bridge with its extra: pip install 'bridge[postgres]', or what requirements.txt names",
            )
        )
    return PostgresDatabase(environment.database_url)


class SqliteDatabase:
    """A file, with one worker."""

    shared = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bell = Bell(bell_path(path))

    @property
    def place(self) -> str:
        return str(self.path)

    def store(self, lanes: Lanes, role: str) -> SqliteStore:
        return SqliteStore(self.path, lanes)

    def open(self, lanes: Lanes, role: str) -> SqliteStore:
        store = self.store(lanes, role)
        try:
            store.migrate()
        except BaseException:
            store.close()
            raise
        return store

    def ring(self) -> None:
        self._bell.ring()

    def bell(self) -> Ringer:
        return self._bell

    @contextmanager
    def working(self, store: Store, *, patient: bool) -> Iterator[Engine]:
        with self._lock(patient=patient):
            yield EmbeddedEngine(_lane_failed, chore_failed=_chore_failed)

    def _lock(self, *, patient: bool) -> WorkerLock:
        told = False
        while True:
            try:
                return WorkerLock(self.path)
            except LockTaken as error:
                if not patient:
                    raise WorkerRunning(str(error)) from error
                if not told:
                    holder = f"process {error.holder}" if error.holder else "another process"
                    reason = f"The worker waits for {holder} to end, which has this database."
                    log.event("worker.waits", reason=reason)
                told = True
                time.sleep(LOOK_S)  # SIGTERM ends us here at once: nothing was begun
            except ConfigError as error:
                # Nothing is wrong with the configuration: `bridge serve` tries again.
                raise WorkerRunning(str(error)) from error


class PostgresDatabase:
    """A server's database, with as many workers as are started."""

    shared = True

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def place(self) -> str:
        parts = urlsplit(self.url)
        where = parts.hostname or "this machine"
        return f"PostgreSQL database {parts.path.lstrip('/') or '(the default one)'} on {where}"

    def store(self, lanes: Lanes, role: str) -> PostgresStore:
        from bridge.engine.deferring import defer
        from bridge.store.postgres import PostgresStore

        size = CONNECTIONS.get(role, CONNECTIONS_OF_A_COMMAND)
        return PostgresStore(self.url, lanes, wake=defer, max_size=size, name=f"bridge {role}")

    def open(self, lanes: Lanes, role: str) -> PostgresStore:
        store = self.store(lanes, role)
        try:
            store.check()
        except BaseException:
            store.close()
            raise
        return store

    def ring(self) -> None:
        """What makes work due says so to the database, in the same transaction."""

    def bell(self) -> Ringer:
        return Alarm()

    @contextmanager
    def working(self, store: Store, *, patient: bool) -> Iterator[Engine]:
        from bridge.engine.queued import QueuedEngine

        yield QueuedEngine(
            self.url, _lane_failed, chore_failed=_chore_failed, troubled=_troubled, clock=store.clock
        )


def _lane_failed(lane: str, error: Exception) -> None:
    log.bug("lane.failed", error, lane=lane)


def _chore_failed(chore: str, error: Exception) -> None:
    log.bug("worker.housekeeping_failed", error, chore=chore)


def _troubled(error: Exception) -> None:
    # Its text may hold what a log is not to.
    reason = "The database cannot be reached for now. What is due waits; this is tried again by itself."
    log.event("worker.database_away", level="warning", reason=reason, error=type(error).__name__)
