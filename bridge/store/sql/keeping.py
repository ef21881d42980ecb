"""Keeping house: migrations, pruning, replays, signs of life and the tokens of URLs."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from bridge.lanes import process_lane
from bridge.model import AuditEntry, RecordKey, iso
from bridge.store.protocol import Filter
from bridge.store.sql.database import Db, row_of
from bridge.store.sql.facts import add_facts
from bridge.store.sql.processing import mark_for_replay, queue_again
from bridge.store.sql.reading import delivery_conditions

BEATS_KEPT = timedelta(days=1)  # of processes that are no more
BEATS_AHEAD = timedelta(minutes=1)  # that clocks of machines may differ


def salt(db: Db) -> bytes:
    return bytes(row_of(db.execute("SELECT value FROM meta WHERE name = 'salt'"))["value"])


_MATCHING = "(source, source_id) IN (SELECT d.source, d.source_id FROM delivery d WHERE {conditions})"
_MARK_MATCHING = f"UPDATE contact SET replay_at = ?, asked = 1 WHERE {_MATCHING}"  # noqa: S608


def replay(
    db: Db, salt: bytes, now: datetime, by: str, keys: Collection[RecordKey], narrowed: Filter | None
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
        db.lock_rows("contact", _MATCHING.format(conditions=conditions.sql), conditions.values)
        matching = db.execute(
            _MARK_MATCHING.format(conditions=conditions.sql), [moment, *conditions.values]
        ).rowcount
        what = f"Asked for by {by}: {matching} contacts are decided again from what is known now."
        facts.append(AuditEntry(now, "replay", "requested", what, source=narrowed.source, target=narrowed.target))
        count += matching
    if count:
        add_facts(db, salt, facts)
        for source in _sources(db, narrowed, marked):
            db.make_due(process_lane(source), now)
    return count


def _sources(db: Db, narrowed: Filter | None, keys: Collection[RecordKey]) -> Collection[str]:
    """Return the sources some of whose contacts may have been marked."""
    named = {key.source for key in keys}
    if narrowed is None:
        return sorted(named)
    known = {row["source"] for row in db.execute("SELECT source FROM source_state").fetchall()}
    return sorted(named | (known if narrowed.source is None else known & {narrowed.source}))


def replay_inbound(db: Db, salt: bytes, now: datetime, by: str, inbound_ids: Collection[int]) -> int:
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
    for source in sorted(set(queued.values())):
        db.make_due(process_lane(source), now)
    return len(queued)


def beat(db: Db, role: str, owner: str, now: datetime) -> None:
    db.execute(
        "INSERT INTO beat (role, owner, seen_at) VALUES (?, ?, ?)"
        " ON CONFLICT (role, owner) DO UPDATE SET seen_at = excluded.seen_at",
        (role, owner, iso(now)),
    )
    # Those of a clock that was ahead would outshine the living for as long as it was.
    db.execute(
        "DELETE FROM beat WHERE seen_at < ? OR seen_at > ?", (iso(now - BEATS_KEPT), iso(now + BEATS_AHEAD))
    )


def add_token(db: Db, source: str, token_id: str, now: datetime) -> None:
    db.execute(
        "INSERT INTO url_token (source, token_id, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (source, token_id, iso(now)),
    )


def revoke_tokens(db: Db, source: str, now: datetime) -> int:
    return db.execute(
        "UPDATE url_token SET revoked_at = ? WHERE source = ? AND revoked_at IS NULL", (iso(now), source)
    ).rowcount


def token_live(db: Db, source: str, token_id: str) -> bool:
    row = db.execute(
        "SELECT 1 FROM url_token WHERE source = ? AND token_id = ? AND revoked_at IS NULL", (source, token_id)
    ).fetchone()
    return row is not None
