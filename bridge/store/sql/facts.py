"""Facts, the personal payloads that they refer to, and how those are forgotten without touching the facts."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Sequence
from typing import Any

from bridge.model import AuditEntry, RecordKey, from_iso, iso
from bridge.store.codec import to_json
from bridge.store.sql import totals
from bridge.store.sql.database import Db, Row
from bridge.store.sql.rows import insert_many, is_erased


def digest(salt: bytes, scope: str, content: bytes) -> bytes:
    """Return a keyed digest of *content*; equal contents of different scopes have different ones."""
    return hashlib.blake2b(scope.encode("utf-8", "surrogatepass") + b"\x00" + content, key=salt).digest()[:16]


# Looked up for each entry, which are few; joined, a database might go through all inbounds.
AUDIT = (
    "SELECT a.*, p.body, (SELECT i.event_types FROM inbound i WHERE i.id = a.inbound_id) AS event_types"
    " FROM audit a LEFT JOIN payload p ON p.digest = a.digest AND same_day(p, a.at)"
)


PAYLOAD = ("digest", "body", "created_at", "url", "headers")


def insert_payloads(db: Db, rows: Sequence[tuple[Any, ...]]) -> None:
    """Keep *rows* of the columns `PAYLOAD`."""
    if db.by_day:
        insert_many(db, "payload", (*PAYLOAD, "day"), [(*row, row[2][:10]) for row in rows], _USED_AGAIN_THAT_DAY)
    else:
        insert_many(db, "payload", PAYLOAD, rows, _USED_AGAIN)


_USED_AGAIN = "ON CONFLICT (digest) DO UPDATE SET created_at = greatest(payload.created_at, excluded.created_at)"
_USED_AGAIN_THAT_DAY = (
    "ON CONFLICT (digest, day) DO UPDATE SET created_at = greatest(payload.created_at, excluded.created_at)"
)


def add_facts(db: Db, salt: bytes, entries: Collection[AuditEntry]) -> None:
    """Append *entries*, and count them. Nothing personal is kept of a person who was erased."""
    totals.count(db, map(totals.of_entry, entries))
    payloads: dict[tuple[bytes, str], tuple[Any, ...]] = {}  # two facts of a day can say the same of a person
    rows = []
    for entry in entries:
        key = None
        if entry.detail is not None and not _of_erased(db, entry):
            content = to_json(entry.detail).encode()
            # The scope is the person: equal details of two people are two payloads, and one can be erased.
            key = digest(salt, f"audit\x1f{entry.source}\x1f{entry.source_id}", content)
            at = iso(entry.at)
            known = payloads.get((key, at[:10]))
            if known is None or known[2] < at:
                payloads[key, at[:10]] = (key, zlib.compress(content), at, None, None)
        rows.append(
            (
                iso(entry.at),
                entry.kind,
                entry.outcome,
                entry.reason,
                entry.source,
                entry.source_id,
                entry.target,
                entry.inbound_id,
                entry.attempt,
                entry.status,
                entry.error,
                entry.duration_ms,
                to_json(list(entry.fields)),
                key,
            )
        )
    insert_payloads(db, list(payloads.values()))
    insert_many(db, "audit", FACT, rows)


FACT = (
    *("at", "kind", "outcome", "reason", "source", "source_id", "target", "inbound_id", "attempt", "status"),
    *("error", "duration_ms", "fields", "digest"),
)


def _of_erased(db: Db, entry: AuditEntry) -> bool:
    if entry.source is None or entry.source_id is None:
        return False
    return is_erased(db, RecordKey(entry.source, entry.source_id))


def audit_of(row: Row) -> AuditEntry:
    """Return a row of `AUDIT` as an entry."""
    detail: Any = None if row["body"] is None else json.loads(zlib.decompress(row["body"]))
    return AuditEntry(
        at=from_iso(row["at"]),
        kind=row["kind"],
        outcome=row["outcome"],
        reason=row["reason"],
        source=row["source"],
        source_id=row["source_id"],
        target=row["target"],
        inbound_id=row["inbound_id"],
        attempt=row["attempt"],
        status=row["status"],
        error=row["error"],
        duration_ms=row["duration_ms"],
        fields=tuple(json.loads(row["fields"])),
        detail=detail,
        id=row["id"],
        event_types=tuple(json.loads(row["event_types"] or "[]")),
    )


def forget_person(db: Db, key: RecordKey) -> None:
    """Delete every payload that a fact ties to the person: bodies of webhooks, and what platforms were told."""
    person = (key.source, key.source_id)
    # Before their payloads are: one that is queued for a replay just now shows up below.
    db.lock_rows(
        "inbound", "id IN (SELECT a.inbound_id FROM audit a WHERE a.source = ? AND a.source_id = ?)", person
    )
    rows = db.execute(
        "SELECT digest FROM audit WHERE source = ? AND source_id = ? AND digest IS NOT NULL"
        " UNION SELECT i.digest FROM audit a JOIN inbound i ON i.id = a.inbound_id"
        " WHERE a.source = ? AND a.source_id = ?",
        person * 2,
    ).fetchall()
    for row in rows:
        _forget_payload(db, row["digest"])
    # One of them may be queued for a replay: without its bytes there is nothing to process again.
    db.execute(
        "UPDATE inbound SET outcome = 'processed', reason = 'Its payload was erased; it is not processed again.'"
        " WHERE outcome = 'accepted' AND id IN (SELECT inbound_id FROM audit WHERE source = ? AND source_id = ?)"
        " AND NOT EXISTS (SELECT 1 FROM payload p WHERE p.digest = inbound.digest)",
        person,
    )


def forget_inbound(db: Db, inbound_id: int) -> None:
    row = db.execute("SELECT digest FROM inbound WHERE id = ?", (inbound_id,)).fetchone()
    if row is not None:
        _forget_payload(db, row["digest"])


def _forget_payload(db: Db, key: bytes) -> None:
    db.execute("DELETE FROM payload WHERE digest = ?", (key,))
    bare_inbounds(db, key)


def bare_inbounds(db: Db, key: bytes) -> None:
    """Take headers and query from the inbounds whose payload was deleted, where they do not stand in it."""
    db.execute(
        "UPDATE inbound SET headers = '{}', url = substr(url, 1, strpos(url || '?', '?') - 1)"
        " WHERE digest = ? AND (headers != '{}' OR strpos(url, '?') > 0)",
        (key,),
    )
