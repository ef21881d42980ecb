"""People who sign in, and the links by which they do."""

from __future__ import annotations

from datetime import datetime, timedelta

from bridge.model import from_iso, iso
from bridge.store.codec import maybe_moment
from bridge.store.looking import Role, User
from bridge.store.sql.database import Db, Row

SEEN_EVERY = timedelta(minutes=1)  # a moment that is looked at by people need not be exact


def users(db: Db) -> list[User]:
    return [_user_of(row) for row in db.execute("SELECT * FROM person ORDER BY name")]


def user(db: Db, name: str) -> User | None:
    row = db.execute("SELECT * FROM person WHERE name = ?", (name,)).fetchone()
    return None if row is None else _user_of(row)


def _user_of(row: Row) -> User:
    return User(
        name=row["name"],
        role=Role(row["role"]),
        password_hash=row["password_hash"],
        epoch=row["epoch"],
        created_at=from_iso(row["created_at"]),
        last_seen_at=maybe_moment(row["last_seen_at"]),
    )


def save(db: Db, user: User, now: datetime) -> None:
    db.execute(
        "INSERT INTO person (name, role, password_hash, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
        " DO UPDATE SET role = excluded.role, password_hash = excluded.password_hash",
        (user.name, user.role.value, user.password_hash, iso(now)),
    )


def remove(db: Db, name: str) -> bool:
    """Remove somebody, with the links that were made for him."""
    db.execute("DELETE FROM login_link WHERE name = ?", (name,))
    return db.execute("DELETE FROM person WHERE name = ?", (name,)).rowcount > 0


def end_sessions(db: Db, name: str) -> None:
    """End the sessions that there are, and those that links not used yet would begin."""
    db.execute("DELETE FROM login_link WHERE name = ?", (name,))
    db.execute("UPDATE person SET epoch = epoch + 1 WHERE name = ?", (name,))


def unseen(db: Db, name: str, now: datetime) -> bool:
    """Say whether it is worth a write that *name* was seen."""
    row = db.execute("SELECT last_seen_at FROM person WHERE name = ?", (name,)).fetchone()
    if row is None:
        return False
    last = maybe_moment(row["last_seen_at"])
    return last is None or abs(now - last) >= SEEN_EVERY


def seen(db: Db, name: str, now: datetime) -> None:
    db.execute("UPDATE person SET last_seen_at = ? WHERE name = ?", (iso(now), name))


def add_login_link(db: Db, link_id: str, name: str, expires_at: datetime) -> None:
    db.execute(
        "INSERT INTO login_link (link_id, name, expires_at) VALUES (?, ?, ?)", (link_id, name, iso(expires_at))
    )


def use_login_link(db: Db, link_id: str, now: datetime) -> str | None:
    """Take the link out, so that it works once, and those that are too old with it."""
    db.execute("DELETE FROM login_link WHERE expires_at <= ?", (iso(now),))
    row = db.execute("DELETE FROM login_link WHERE link_id = ? RETURNING name", (link_id,)).fetchone()
    return None if row is None else str(row["name"])
