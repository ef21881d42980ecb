"""Access tokens of targets, sealed, and who is to renew them."""

from __future__ import annotations

from datetime import datetime

from bridge.model import from_iso, iso
from bridge.store.protocol import AccessToken
from bridge.store.sql.database import Db


def token(db: Db, target: str) -> AccessToken | None:
    row = db.execute(
        "SELECT sealed, use_until FROM access_token WHERE target = ? AND sealed IS NOT NULL", (target,)
    ).fetchone()
    return None if row is None else AccessToken(bytes(row["sealed"]), from_iso(row["use_until"]))


def renew(db: Db, target: str, seen: AccessToken | None, now: datetime, until: datetime) -> bool:
    row = db.execute(
        "INSERT INTO access_token (target, renewed_by) VALUES (?, ?) ON CONFLICT (target) DO UPDATE"
        " SET renewed_by = excluded.renewed_by WHERE access_token.sealed IS ?"
        " AND (access_token.renewed_by IS NULL OR access_token.renewed_by <= ?) RETURNING target",
        (target, iso(until), None if seen is None else seen.sealed, iso(now)),
    ).fetchone()
    return row is not None


def keep(db: Db, target: str, token: AccessToken | None) -> None:
    if token is None:
        db.execute("DELETE FROM access_token WHERE target = ?", (target,))
        return
    # Whoever thaws after its time was over may put an older one back: that is as good, until it is refused.
    db.execute(
        "INSERT INTO access_token (target, sealed, use_until) VALUES (?, ?, ?) ON CONFLICT (target) DO UPDATE"
        " SET sealed = excluded.sealed, use_until = excluded.use_until, renewed_by = NULL",
        (target, token.sealed, iso(token.use_until)),
    )
