"""What PostgreSQL's errors mean to a person."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

import psycopg
from psycopg_pool import PoolClosed

from bridge.errors import StoreUnavailable, Unstorable

CLOSED = "The database is closed because bridge is stopping."
ALL_IN_USE = "All connections to the database are in use. This is tried again by itself."
UNCERTAIN = (
    "The connection to the database broke while something was being stored, so that nobody knows whether it was. "
    "This is tried again by itself, and what is there already is not stored twice."
)
NOT_COMMITTED = "The database did not store it, because a part of it failed: a bug of bridge."
UNREADABLE_URL = (
    "DATABASE_URL cannot be read. Write it as postgresql://user:password@host:5432/database, with the special "
    "characters of the password percent-encoded (%40 for @)."
)
_AWAY = (
    "The database server cannot be reached. Check that it runs, and its address in DATABASE_URL; until then "
    "nothing is taken in, and senders try again."
)
_UNKNOWN_HOST = "The database server's name in DATABASE_URL is not known here. Check it for mistakes."
_STARTING = "The database server is starting or stopping. This is tried again by itself."
_LOST = "The connection to the database broke. This is tried again by itself."
_TOO_MANY = (
    "The database server has no connection left. This is tried again by itself; if it lasts, run fewer processes "
    "or allow more connections."
)
_PASSWORD = "The database server refuses the user or the password of DATABASE_URL. Correct it."  # noqa: S105
_NO_DATABASE = (
    "The database that DATABASE_URL names does not exist on that server. Create it, or correct the name."
)
_NOT_ALLOWED = (
    "The database server does not let this machine or this user in. Allow it there (pg_hba.conf, or the list of "
    "trusted addresses), or correct DATABASE_URL."
)
_ENCRYPTION = (
    "The database server and bridge do not agree on encryption. Check sslmode in DATABASE_URL and the server's "
    "certificate."
)
_FULL = "The database server's disk is full. Make room; until then nothing is taken in, and senders try again."
_MEMORY = "The database server has no memory left. This is tried again by itself."
_READ_ONLY = (
    "The database only lets itself be read: it is a standby, or was made read-only. Point DATABASE_URL to one "
    "that can be written; until then nothing is taken in, and senders try again."
)
_NOT_SET_UP = "The database is not set up for this version of bridge. Run: bridge migrate"
_NO_RIGHT = (
    "The database user may not do what bridge needs. Make it the owner of bridge's tables, or grant it the "
    "right to them."
)
_SLOW = "The database took too long. This is tried again by itself; if it lasts, look what keeps it busy."
_BUSY = "Another session keeps the database busy. This is tried again by itself; if it lasts, look what holds it."
_DAMAGED = "The database is damaged. Stop bridge and restore the database from a backup."
_DISK = (
    "The database server's disk cannot be read or written. Check it; until then nothing is taken in, and senders "
    "try again."
)
_ENCODING = "The database cannot hold every character. Create it anew with the encoding UTF8."

# By SQLSTATE, or by its first two characters where all of a class mean the same.
SENTENCES: Mapping[str, str] = {
    "08": _LOST,
    "22P05": _ENCODING,
    "25006": _READ_ONLY,
    "25P03": _SLOW,
    "28": _NOT_ALLOWED,
    "28P01": _PASSWORD,
    "3D000": _NO_DATABASE,
    "3F000": _NOT_SET_UP,
    "40001": _BUSY,
    "40P01": _BUSY,
    "42501": _NO_RIGHT,
    "42703": _NOT_SET_UP,
    "42P01": _NOT_SET_UP,
    "53100": _FULL,
    "53200": _MEMORY,
    "53300": _TOO_MANY,
    "55P03": _BUSY,
    "57014": _SLOW,
    "57P": _STARTING,
    "58": _DISK,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}

# A connection that could not be made has no SQLSTATE, only words; they are looked for in this order.
_REFUSALS: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(words), meaning)
    for words, meaning in (
        ("authentication failed|no password supplied|password missing", _PASSWORD),
        ("pg_hba.conf (entry|rejects)|permission denied for database|not allowed to connect", _NOT_ALLOWED),
        ("too many (clients|connections)|remaining connection slots|no more connections allowed", _TOO_MANY),
        ("is (starting up|shutting down)|in recovery mode|not (yet|currently) accepting connections", _STARTING),
        ('role ".*" (does not exist|is not permitted)', _PASSWORD),
        ('database ".*" does not exist|no such database', _NO_DATABASE),
        ("translate host name|resolve host|name or service not known", _UNKNOWN_HOST),
        ("ssl (error|connection)|certificate|not support ssl|sslmode", _ENCRYPTION),
    )
)


@contextlib.contextmanager
def in_plain_words() -> Iterator[None]:
    """Let every error of the database leave as `StoreUnavailable`, or `Unstorable` where it is the data."""
    try:
        yield
    except PoolClosed as error:
        raise StoreUnavailable(CLOSED) from error
    except psycopg.Error as error:
        # What these two quote are values, which may be a person's; the sentence names all that is ours.
        if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
            raise (Unstorable if is_refused(error) else StoreUnavailable)(sentence(error)) from None
        if is_refused(error):
            raise Unstorable(sentence(error)) from error
        raise StoreUnavailable(sentence(error)) from error


def is_refused(error: psycopg.Error) -> bool:
    """Say whether the database refuses what it was given for good, whoever else writes at the same time."""
    if isinstance(error, psycopg.errors.UniqueViolation) or is_misplaced(error):
        return False
    return isinstance(error, psycopg.DataError | psycopg.IntegrityError | psycopg.errors.ProgramLimitExceeded)


def is_misplaced(error: psycopg.Error) -> bool:
    """Say whether a row was on its way to the default partition when its day got one of its own."""
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None


def sentence(error: psycopg.Error) -> str:
    if error.sqlstate is None:
        return _LOST if isinstance(error, psycopg.OperationalError) else _mistake(error)
    for key in (error.sqlstate, error.sqlstate[:3], error.sqlstate[:2]):
        if key in SENTENCES:
            return SENTENCES[key]
    if isinstance(error, psycopg.OperationalError) and not is_refused(error):
        return f"The database reports an error ({_name(error)}). This is tried again by itself."
    return _mistake(error)


def refusal(error: psycopg.Error) -> str:
    """Return the sentence for a connection that could not be made."""
    said = str(error).lower()
    for words, meaning in _REFUSALS:
        if words.search(said):
            return meaning
    return _AWAY


def _mistake(error: psycopg.Error) -> str:
    where = [name for name in (error.diag.table_name, error.diag.column_name, error.diag.constraint_name) if name]
    place = f" at {', '.join(where)}" if where else ""
    return f"The database refuses what bridge asks for ({_name(error)}{place}): a bug of bridge."


def _name(error: psycopg.Error) -> str:
    return " ".join(part for part in (type(error).__name__, error.sqlstate) if part)
