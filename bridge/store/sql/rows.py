"""Rows of the tables as values of the model, and back."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from bridge import schedule
from bridge.lanes import slot_of
from bridge.model import AuditEntry, Contact, Delivery, Outcome, RecordKey, State, from_iso, iso
from bridge.store.codec import (
    contact_from,
    contact_json,
    desired_from,
    desired_json,
    maybe_iso,
    maybe_moment,
    search_terms,
    search_text,
    to_json,
)
from bridge.store.protocol import Inbound, TargetStatus
from bridge.store.sql import totals
from bridge.store.sql.database import Db, Row

LaneCounts = Mapping[str, int]  # target -> how many delivery lanes it has


def digest(salt: bytes, scope: str, content: bytes) -> bytes:
    """Return a keyed digest of *content*; equal contents of different scopes have different ones."""
    return hashlib.blake2b(scope.encode("utf-8", "surrogatepass") + b"\x00" + content, key=salt).digest()[:16]


# --- contacts --------------------------------------------------------------------------------------------


def save_contact(db: Db, contact: Contact, now: str) -> None:
    before = db.execute(
        "SELECT search FROM contact WHERE source = ? AND source_id = ? FOR UPDATE",
        (contact.key.source, contact.key.source_id),
    ).fetchone()
    search = search_text(contact)
    saved = db.execute(
        "INSERT INTO contact (source, source_id, data, search, erased, read_due, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, source_id) DO UPDATE SET data = excluded.data,"
        " search = excluded.search, erased = excluded.erased, read_due = excluded.read_due,"
        " updated_at = excluded.updated_at RETURNING id",
        (
            contact.key.source,
            contact.key.source_id,
            contact_json(contact),
            search,
            contact.erased is not None,
            maybe_iso(contact.read_due),
            now,
        ),
    ).fetchone()
    if saved is not None and (before is None or before["search"] != search):
        _save_terms(db, saved["id"], "" if before is None else before["search"], search)


def _save_terms(db: Db, contact_id: int, before: str, now: str) -> None:
    """Keep where the words of a search text begin. It alone makes them, so that the ones before are known."""
    old, new = search_terms(before), search_terms(now)
    db.executemany(
        "DELETE FROM search_term WHERE term = ? AND contact_id = ?", [(term, contact_id) for term in old - new]
    )
    db.executemany(
        "INSERT INTO search_term (term, contact_id) VALUES (?, ?)", [(term, contact_id) for term in new - old]
    )


def contact_of(row: Row) -> Contact:
    return contact_from(RecordKey(row["source"], row["source_id"]), row["data"])


def is_erased(db: Db, key: RecordKey) -> bool:
    row = db.execute(
        "SELECT erased FROM contact WHERE source = ? AND source_id = ?", (key.source, key.source_id)
    ).fetchone()
    return row is not None and bool(row["erased"])


def lock_contacts(db: Db, keys: Collection[RecordKey]) -> None:
    """Have nobody else change those of *keys* that are known."""
    _lock(db, "contact", keys)


def lock_deliveries(db: Db, keys: Collection[RecordKey]) -> None:
    """Have nobody else change the deliveries of *keys*, to any target."""
    _lock(db, "delivery", keys)


def _lock(db: Db, table: str, keys: Collection[RecordKey]) -> None:
    ids: dict[str, list[str]] = {}
    for key in keys:
        ids.setdefault(key.source, []).append(key.source_id)
    for source, theirs in sorted(ids.items()):
        db.lock_rows(
            table, "source = ? AND source_id IN (SELECT i.value FROM each_text(?) i)", (source, db.array(theirs))
        )


# --- deliveries ------------------------------------------------------------------------------------------

# Which lane an existing one is in is for `processing.deal_out` alone.
_SAVE_DELIVERY = """
INSERT INTO delivery (target, source, source_id, slot, lane, state, reason, updated_at, desired, revision,
  accepted, accepted_opt_out, target_id, due_at, attempts, error, status, unsure_since, left_out, wanted_at,
  attempted, inbound_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (target, source, source_id) DO UPDATE SET
  state = excluded.state, reason = excluded.reason,
  updated_at = excluded.updated_at, desired = excluded.desired, revision = excluded.revision,
  accepted = excluded.accepted, accepted_opt_out = excluded.accepted_opt_out, target_id = excluded.target_id,
  due_at = excluded.due_at, attempts = excluded.attempts, error = excluded.error, status = excluded.status,
  unsure_since = excluded.unsure_since, left_out = excluded.left_out,
  wanted_at = excluded.wanted_at, attempted = excluded.attempted, inbound_id = excluded.inbound_id
"""


def lane_number(lanes: LaneCounts, target: str, key: RecordKey) -> int:
    return slot_of(key) % lanes.get(target, 1)


def lanes_in_use(db: Db, lanes: LaneCounts) -> LaneCounts:
    """Return how many lanes each target of *lanes* has; another process may have dealt them out otherwise."""
    dealt = {row["target"]: row["lanes"] for row in db.execute("SELECT target, lanes FROM lane_count").fetchall()}
    return {target: dealt.get(target, count) for target, count in lanes.items()}


def load_delivery(db: Db, target: str, key: RecordKey) -> Delivery | None:
    """Return the delivery, which nobody else changes until the transaction ends."""
    row = db.execute(
        "SELECT * FROM delivery WHERE target = ? AND source = ? AND source_id = ? FOR UPDATE",
        (target, key.source, key.source_id),
    ).fetchone()
    return None if row is None else delivery_of(row)


def save_delivery(db: Db, delivery: Delivery, lanes: LaneCounts) -> None:
    key = delivery.key
    slot = slot_of(key)
    db.execute(
        _SAVE_DELIVERY,
        (
            delivery.target,
            key.source,
            key.source_id,
            slot,
            slot % lanes.get(delivery.target, 1),
            delivery.state.value,
            delivery.reason,
            iso(delivery.updated_at),
            desired_json(delivery.desired),
            delivery.revision,
            None if delivery.accepted is None else to_json(dict(delivery.accepted)),
            delivery.accepted_opt_out,
            delivery.target_id,
            maybe_iso(delivery.due_at),
            delivery.attempts,
            delivery.error,
            delivery.status,
            maybe_iso(delivery.unsure_since),
            to_json(dict(delivery.left_out)),
            maybe_iso(delivery.wanted_at),
            None if delivery.attempted is None else to_json(dict(delivery.attempted)),
            delivery.inbound_id,
        ),
    )


def delivery_of(row: Row) -> Delivery:
    return Delivery(
        target=row["target"],
        key=RecordKey(row["source"], row["source_id"]),
        state=State(row["state"]),
        reason=row["reason"],
        updated_at=from_iso(row["updated_at"]),
        desired=desired_from(row["desired"]),
        revision=row["revision"],
        accepted=None if row["accepted"] is None else json.loads(row["accepted"]),
        accepted_opt_out=bool(row["accepted_opt_out"]),
        target_id=row["target_id"],
        due_at=maybe_moment(row["due_at"]),
        attempts=row["attempts"],
        error=row["error"],
        status=row["status"],
        unsure_since=maybe_moment(row["unsure_since"]),
        left_out=json.loads(row["left_out"]),
        wanted_at=maybe_moment(row["wanted_at"]),
        attempted=None if row["attempted"] is None else json.loads(row["attempted"]),
        inbound_id=row["inbound_id"],
    )


def linked_to(db: Db, target: str, key: RecordKey, target_id: str | None) -> str | None:
    """Return the source id of another contact of the same source that holds *target_id*, None if there is none."""
    if target_id is None:
        return None
    row = db.execute(
        "SELECT source_id FROM delivery WHERE target = ? AND source = ? AND target_id = ? AND source_id != ?"
        " AND target_id IS NOT NULL AND state != 'removed'",
        (target, key.source, target_id, key.source_id),
    ).fetchone()
    return None if row is None else str(row["source_id"])


# --- targets ---------------------------------------------------------------------------------------------


def target_status(db: Db, target: str) -> TargetStatus:
    row = db.execute("SELECT * FROM target_status WHERE target = ?", (target,)).fetchone()
    if row is None:
        return TargetStatus(target)
    return TargetStatus(
        target=target,
        mode=row["mode"],
        reason=row["reason"],
        since=maybe_moment(row["since"]),
        by=row["by"],
        probe_at=maybe_moment(row["probe_at"]),
        refusals=row["refusals"],
    )


# --- inbounds --------------------------------------------------------------------------------------------

INBOUND = (
    "SELECT i.*, p.body, p.url AS whole_url, p.headers AS kept_headers FROM inbound i"
    " LEFT JOIN payload p ON p.digest = i.digest AND same_day(p, i.received_at)"
)


def inbound_of(row: Row) -> Inbound:
    """Return a row of `INBOUND` as an inbound."""
    return Inbound(
        id=row["id"],
        source=row["source"],
        received_at=from_iso(row["received_at"]),
        method=row["method"],
        url=row["whole_url"] or row["url"],
        headers=json.loads(row["kept_headers"] or row["headers"]),
        body=None if row["body"] is None else zlib.decompress(row["body"]),
        outcome=Outcome(row["outcome"]),
        reason=row["reason"],
        events=row["events"],
        secret_index=row["secret_index"],
        signed_at=maybe_moment(row["signed_at"]),
        processed_at=maybe_moment(row["processed_at"]),
        repeats=row["repeats"],
    )


# --- facts and payloads ----------------------------------------------------------------------------------

AUDIT = "SELECT a.*, p.body FROM audit a LEFT JOIN payload p ON p.digest = a.digest AND same_day(p, a.at)"


def save_payload(db: Db, key: bytes, packed: bytes, created_at: str) -> None:
    """Keep *packed* (zlib) under its digest. What is there already is as young as its newest use."""
    insert_payloads(db, [(key, packed, created_at, None, None)])


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
VALUES_AT_ONCE = 16_000  # SQLite takes 32,766


def insert_many(
    db: Db, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], or_else: str = ""
) -> None:
    """Insert *rows* with few statements: each lets go of the interpreter's lock, which many threads fight over."""
    one = f"({','.join('?' * len(columns))})"
    step = VALUES_AT_ONCE // len(columns)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        db.execute(
            f"INSERT INTO {table} ({','.join(columns)}) VALUES {','.join([one] * len(part))} {or_else}",  # noqa: S608
            [value for row in part for value in row],
        )


def add_facts(db: Db, salt: bytes, entries: Collection[AuditEntry]) -> None:
    """Append *entries*, and count them. Nothing personal is kept of a person who was erased."""
    totals.count(db, map(totals.of_entry, entries))
    for entry in entries:
        key = None
        if entry.detail is not None and not _of_erased(db, entry):
            content = to_json(entry.detail).encode()
            # The scope is the person: equal details of two people are two payloads, and one can be erased.
            key = digest(salt, f"audit\x1f{entry.source}\x1f{entry.source_id}", content)
            save_payload(db, key, zlib.compress(content), iso(entry.at))
        db.execute(
            "INSERT INTO audit (at, kind, outcome, reason, source, source_id, target, inbound_id, attempt, status,"
            " error, duration_ms, fields, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            ),
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


def without_person(delivery: Delivery, now: datetime) -> Delivery:
    """Return *delivery* of an erased person with nothing left to say, but that the contact is to be removed."""
    desired = delivery.desired
    delivery = schedule.forgotten(delivery, desired)
    if desired is not None and desired.gone:
        return replace(delivery, desired=replace(desired, fields={}, modes={}))
    wiped = replace(delivery, desired=None)
    if desired is None:
        return wiped
    wiped = replace(wiped, revision=delivery.revision + 1, updated_at=now)
    if delivery.state is State.SENDING:
        return wiped  # what is under way ends first, and sees that there is newer state
    reason = "The person was erased in the CRM, so nothing is sent any more."
    return replace(wiped, state=State.WAITING, reason=reason, due_at=None)
