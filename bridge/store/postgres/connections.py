"""Connections to one PostgreSQL database, and its transactions."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, LiteralString, ParamSpec, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from bridge.errors import StoreUnavailable
from bridge.store.postgres.database import TYPES, PostgresDb
from bridge.store.postgres.plain_words import (
    ALL_IN_USE,
    CLOSED,
    NOT_COMMITTED,
    UNCERTAIN,
    UNREADABLE_URL,
    in_plain_words,
    is_misplaced,
    refusal,
)

PATIENCE_S = 8.0  # for a connection, and for trying again: a sender waits some 10 s for its answer
SHORT_OF_PATIENCE_S = 1.0  # while the server is known to be away
LOOK_AGAIN_S = 2.0
PROBE_S = 2
TRIES = 6
PAUSE_S = 0.02
IDLE_S = 300.0
PREPARED = 400  # statements; there are fewer

# What a URL says about them itself goes first. A network that was cut is noticed within some ten seconds.
PARAMETERS: Mapping[str, str | int] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
    "client_encoding": "utf8",
}

# Set in each transaction and for it alone, in one message with its beginning: behind a pooler that hands the
# server's sessions from one to another, settings of a session would be somebody else's.
_SETTINGS: LiteralString = (
    "; SET LOCAL timezone = 'UTC'"
    "; SET LOCAL statement_timeout = '30s'"
    "; SET LOCAL lock_timeout = '10s'"
    # What a process had locked when it froze, or was cut off, is free again when its lanes are handed over.
    "; SET LOCAL idle_in_transaction_session_timeout = '5s'"
)
_READ: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" + _SETTINGS
_WRITE: LiteralString = "BEGIN ISOLATION LEVEL READ COMMITTED" + _SETTINGS
# Said in either case: the server's own default may be any.
_DURABLE: LiteralString = _WRITE + "; SET LOCAL synchronous_commit = on"
_NOT_DURABLE: LiteralString = _WRITE + "; SET LOCAL synchronous_commit = off"

_ALONE: LiteralString = (
    "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"
    "; SET LOCAL idle_in_transaction_session_timeout = '10min'"
    # A process that is frozen while it is alone keeps the others out for no longer than that. Otherwise silence is
    # allowed here, so the server has to look by itself whether the machine is still there: as servers
    # come, they take up to two hours for that.
    "; SET LOCAL tcp_keepalives_idle = 5; SET LOCAL tcp_keepalives_interval = 2"
    "; SET LOCAL tcp_keepalives_count = 3; SET LOCAL tcp_user_timeout = 10000"
)

# Somebody else was quicker: the same transaction succeeds a moment later.
_AGAIN = frozenset({"40001", "40P01", "23505"})  # serialization failure, deadlock, unique violation
# What was prepared on this session is not what the server has: a pooler that we do not know as one.
_NOT_PREPARED = frozenset({"26000", "42P05"})
_CHANGED_PLAN = "0A000"  # a migration added a column to what was prepared
_READ_ONLY = "25006"

P = ParamSpec("P")
T = TypeVar("T")
Verb = Callable[Concatenate[PostgresDb, P], T]
Connection = psycopg.Connection[Any]

# Its warnings tell what is raised in plain words, again for each connection.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class Connections:
    """Up to *max_size* connections to the database at *url*, opened when they are needed.

    *name* is how the server lists them. A statement is prepared on the server when it was used *prepare_threshold*
    times; with None, and behind a pooler, none is.

    A connection is used by one thread at a time, whichever; it is never carried over a fork.
    All methods raise `StoreUnavailable`, with a sentence for a person that holds nothing of the URL.
    """

    def __init__(
        self, url: str, *, max_size: int = 4, name: str = "bridge", prepare_threshold: int | None = 5
    ) -> None:
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error:
            raise StoreUnavailable(UNREADABLE_URL) from None  # the error quotes the URL
        self.conninfo = make_conninfo("", **{**PARAMETERS, "fallback_application_name": name, **given})
        self._max_size = max_size
        self._prepare_threshold = prepare_threshold
        self._pool: ConnectionPool[Connection] | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._away = False
        _ALL.add(self)

    def read(self, verb: Verb[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *verb* with one consistent view of the database."""
        return self._run(_READ, lambda db: verb(db, *args, **kwargs), None)

    def write(
        self,
        verb: Callable[..., T],
        *args: Any,
        durable: bool = True,
        before_commit: Callable[[PostgresDb], None] | None = None,
    ) -> T:
        """Call *verb* with one transaction, committed when it returns and rolled back when it raises.

        It is called again, with the same arguments, when another transaction came in between; so it must change
        nothing but the database. *before_commit* is called last, in the same transaction.

        It is on disk then, unless it is not *durable*: such a one survives the end of any process, and the last
        fraction of a second of them may be lost when the server crashes.
        """
        begin = _DURABLE if durable else _NOT_DURABLE
        return self._run(begin, lambda db: verb(db, *args), before_commit or _nothing)

    @contextlib.contextmanager
    def bare(self) -> Iterator[Connection]:
        """Give a connection in no transaction, for who makes transactions of his own; nothing is tried again."""
        with in_plain_words(), self._connection() as connection:
            yield connection

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Wait until nobody else does *what*, on any machine, and keep others from it until the block ends.

        It takes a connection for as long. A lock of the session's would be lost behind a pooler.
        """
        with self.bare() as connection:
            connection.execute(_ALONE, prepare=False)
            PostgresDb(connection).lock(what)
            yield
            connection.execute("ROLLBACK", prepare=False)

    def close(self) -> None:
        """Close every connection; those in use are closed when their use ends."""
        self._closed = True
        with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _run(
        self,
        begin: LiteralString,
        verb: Callable[[PostgresDb], T],
        before_commit: Callable[[PostgresDb], None] | None,
    ) -> T:
        """Run one transaction, again where that may help; without *before_commit* it is not committed."""
        deadline = time.monotonic() + PATIENCE_S
        tries = 0
        with in_plain_words():
            while True:
                tries += 1
                with self._connection() as connection:
                    try:
                        return _transact(connection, begin, verb, before_commit)
                    except psycopg.Error as error:
                        if error.sqlstate == _READ_ONLY:
                            connection.close()  # by its end that may be over, and the session would never know
                            raise
                        # After a restart of the server, all that were idle have to be found out.
                        # Who was frozen has no time left when he wakes up; once is always tried again.
                        late = tries > 1 and time.monotonic() > deadline
                        over = late or tries >= TRIES + self._max_size
                        if over or not self._may_help(connection, error):
                            raise
                time.sleep(random.uniform(0, PAUSE_S * tries))  # noqa: S311 - so that two do not meet again

    def _may_help(self, connection: Connection, error: psycopg.Error) -> bool:
        """Say whether the same transaction may succeed now; nothing of it was committed."""
        if error.sqlstate in _NOT_PREPARED:
            self._prepare_threshold = None
        if error.sqlstate in _NOT_PREPARED or error.sqlstate == _CHANGED_PLAN:
            connection.close()
        return connection.closed or _is_lost(error) or is_misplaced(error) or error.sqlstate in _AGAIN

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        pool = self._opened()
        connection = self._take(pool)
        try:
            connection.prepare_threshold = self._prepare_threshold
            yield connection
        finally:
            _tidy(connection)
            pool.putconn(connection)

    def _opened(self) -> ConnectionPool[Connection]:
        if self._closed:
            raise StoreUnavailable(CLOSED)
        pool = self._pool
        if pool is None:
            self._probe()  # a wrong address or password is told at once, and not when patience is over
            with self._opening:
                if self._pool is None:
                    self._pool = self._make()
                pool = self._pool
        return pool

    def _make(self) -> ConnectionPool[Connection]:
        pool: ConnectionPool[Connection] = ConnectionPool(
            self.conninfo,
            kwargs={"autocommit": True, "context": TYPES},  # transactions are begun by us
            configure=self._configure,
            min_size=0,
            max_size=self._max_size,
            max_idle=IDLE_S,
            reconnect_timeout=LOOK_AGAIN_S,
            num_workers=1,
            open=False,
        )
        pool.open()
        return pool

    def _take(self, pool: ConnectionPool[Connection]) -> Connection:
        deadline = time.monotonic() + (SHORT_OF_PATIENCE_S if self._away else PATIENCE_S)
        while (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(PoolTimeout):
                connection = pool.getconn(min(left_s, LOOK_AGAIN_S))  # asking anew has it try to connect anew
                self._away = False
                return connection
        self._probe()
        raise StoreUnavailable(ALL_IN_USE)

    def _probe(self) -> None:
        """Connect once, to learn why not."""
        try:
            psycopg.connect(self.conninfo, connect_timeout=PROBE_S).close()
        except psycopg.Error as error:
            self._away = True
            raise StoreUnavailable(refusal(error)) from error
        except UnicodeError:  # of a name that no host can have
            self._away = True
            raise StoreUnavailable(UNREADABLE_URL) from None

    def _configure(self, connection: Connection) -> None:
        connection.prepared_max = PREPARED
        answer = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
        if answer != (connection.info.backend_pid,):
            # A pooler stands between, which may give us another session next. What we prepared here has a name
            # that somebody else's statement may have there, and that one would be run.
            self._prepare_threshold = None

    def _after_fork(self) -> None:
        # A connection must not be used, nor even closed, in a child: both processes would speak on it.
        if self._pool is not None:
            _INHERITED.append(self._pool)
        self._pool = None
        self._opening = threading.Lock()


def _transact(
    connection: Connection,
    begin: LiteralString,
    verb: Callable[[PostgresDb], T],
    before_commit: Callable[[PostgresDb], None] | None,
) -> T:
    connection.execute(begin, prepare=False)
    db = PostgresDb(connection)
    result = verb(db)
    if before_commit is not None:
        before_commit(db)
        _commit(connection)
    return result


def _commit(connection: Connection) -> None:
    try:
        said = connection.execute("COMMIT", prepare=False).statusmessage
    except psycopg.Error as error:
        if connection.closed or _is_lost(error):
            raise StoreUnavailable(UNCERTAIN) from error
        raise
    # Of a transaction in which a statement failed, and the error was kept from us, it says ROLLBACK.
    if said != "COMMIT":
        raise StoreUnavailable(NOT_COMMITTED)


def _is_lost(error: psycopg.Error) -> bool:
    return error.diag.severity_nonlocalized in {"FATAL", "PANIC"}


def _tidy(connection: Connection) -> None:
    """Leave no transaction open, in whichever way the verb ended."""
    status = connection.info.transaction_status
    if status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
        with contextlib.suppress(psycopg.Error):
            connection.execute("ROLLBACK", prepare=False)
            return
    if status is not TransactionStatus.IDLE:
        connection.close()


def _nothing(db: PostgresDb) -> None:
    pass


_ALL: weakref.WeakSet[Connections] = weakref.WeakSet()
_INHERITED: list[ConnectionPool[Connection]] = []


def _after_fork_in_child() -> None:
    for connections in list(_ALL):
        connections._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
