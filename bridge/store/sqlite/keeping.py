"""Keeping house: migrations, pruning, replays, signs of life and the tokens of URLs."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlite_utils import Database

from bridge.errors import StoreUnavailable
from bridge.model import AuditEntry, RecordKey, iso
from bridge.store.migrations.sqlite import MIGRATIONS
from bridge.store.protocol import Filter
from bridge.store.sqlite.processing import mark_for_replay, queue_again
from bridge.store.sqlite.reading import delivery_conditions
from bridge.store.sqlite.rows import add_facts, bare_inbounds

BEATS_KEPT = timedelta(days=1)  # of processes that are no more
BEATS_AHEAD = timedelta(minutes=1)  # that clocks of machines may differ


def salt(db: Database) -> bytes:
    return bytes(db.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()["value"])


def migrate(db: Database) -> list[str]:
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


def prune(db: Database, payloads_before: str, keys_before: str, limit: int) -> int:
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
    return len(deleted) + keys


_MARK_MATCHING = (
    "UPDATE contact SET replay_at = ?, asked = 1 WHERE (source, source_id) IN"
    " (SELECT d.source, d.source_id FROM delivery d WHERE {conditions})"
)


def replay(
    db: Database, salt: bytes, now: datetime, by: str, keys: Collection[RecordKey], narrowed: Filter | None
) -> int:
    moment = iso(now)
    marked = mark_for_replay(db, keys, moment)
    reason = f"Asked for by {by}: decided again from what is known now."
    facts = [
        AuditEntry(now, "replay", "requested", reason, source=key.source, source_id=key.source_id)
        for key in marked
    ]
    count = len(marked)
    if narrowed is not None:
        conditions = delivery_conditions(narrowed)
        matching = db.execute(
            _MARK_MATCHING.format(conditions=conditions.sql), [moment, *conditions.values]
        ).rowcount
        what = f"Asked for by {by}: {matching} contacts are decided again from what is known now."
        facts.append(AuditEntry(now, "replay", "requested", what, source=narrowed.source, target=narrowed.target))
        count += matching
    if count:
        add_facts(db, salt, facts)
    return count


def replay_inbound(db: Database, salt: bytes, now: datetime, by: str, inbound_ids: Collection[int]) -> int:
    queued = queue_again(db, inbound_ids)
    reason = f"Asked for by {by}: the stored request is processed again."
    add_facts(
        db,
        salt,
        [
            AuditEntry(now, "replay", "requested", reason, source=source, inbound_id=inbound_id)
            for inbound_id, source in queued.items()
        ],
    )
    return len(queued)


def beat(db: Database, role: str, owner: str, now: datetime) -> None:
    db.execute(
        "INSERT INTO beat (role, owner, seen_at) VALUES (?, ?, ?)"
        " ON CONFLICT (role, owner) DO UPDATE SET seen_at = excluded.seen_at",
        (role, owner, iso(now)),
    )
    # Those of a clock that was ahead would outshine the living for as long as it was.
    db.execute(
        "DELETE FROM beat WHERE seen_at < ? OR seen_at > ?", (iso(now - BEATS_KEPT), iso(now + BEATS_AHEAD))
    )


def add_token(db: Database, source: str, token_id: str, now: datetime) -> None:
    db.execute(
        "INSERT INTO url_token (source, token_id, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (source, token_id, iso(now)),
    )


def revoke_tokens(db: Database, source: str, now: datetime) -> int:
    return db.execute(
        "UPDATE url_token SET revoked_at = ? WHERE source = ? AND revoked_at IS NULL", (iso(now), source)
    ).rowcount


def token_live(db: Database, source: str, token_id: str) -> bool:
    row = db.execute(
        "SELECT 1 FROM url_token WHERE source = ? AND token_id = ? AND revoked_at IS NULL", (source, token_id)
    ).fetchone()
    return row is not None
