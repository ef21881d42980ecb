"""Rows of the tables as values of the model, and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from bridge import schedule
from bridge.lanes import slot_of
from bridge.model import Contact, Delivery, Outcome, RecordKey, State, from_iso, iso
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
from bridge.store.sql.database import Db, Row

LaneCounts = Mapping[str, int]  # target -> how many delivery lanes it has


# --- contacts --------------------------------------------------------------------------------------------


CONTACT = ("source", "source_id", "data", "search", "erased", "read_due", "updated_at")
_INSTEAD = (
    "ON CONFLICT (source, source_id) DO UPDATE SET data = excluded.data, search = excluded.search,"
    " erased = excluded.erased, read_due = excluded.read_due, updated_at = excluded.updated_at"
)


@dataclass(frozen=True, slots=True)
class Written:
    """A contact as it is written. It is made before the transaction, which others wait for."""

    contact: Contact
    data: str
    search: str


def written(contact: Contact) -> Written:
    return Written(contact, contact_json(contact), search_text(contact))


def save_contacts(db: Db, contacts: Sequence[Written], now: str) -> None:
    """Save *contacts*, which are all different, and locked."""
    by_source: dict[str, dict[str, Written]] = {}
    for one in contacts:
        by_source.setdefault(one.contact.key.source, {})[one.contact.key.source_id] = one
    for source, some in by_source.items():
        texts = {source_id: one.search for source_id, one in some.items()}
        before = {
            row["source_id"]: row["search"] for row in db.execute(_SEARCHED, (source, db.array(some))).fetchall()
        }
        insert_many(
            db,
            "contact",
            CONTACT,
            [
                (
                    source,
                    source_id,
                    one.data,
                    one.search,
                    one.contact.erased is not None,
                    maybe_iso(one.contact.read_due),
                    now,
                )
                for source_id, one in some.items()
            ],
            _INSTEAD,
        )
        changed = {source_id: text for source_id, text in texts.items() if before.get(source_id) != text}
        _save_terms(db, source, before, changed)


_SEARCHED = (
    "SELECT source_id, search FROM contact WHERE source = ? AND source_id IN (SELECT i.value FROM each_text(?) i)"
)


def _save_terms(db: Db, source: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Keep where the words of search texts begin. It alone makes them, so that the ones before are known."""
    old: list[tuple[str, int]] = []
    new: list[tuple[str, int]] = []
    for row in db.execute(_IDS, (source, db.array(now))).fetchall():
        had = search_terms(before.get(row["source_id"], ""))
        has = search_terms(now[row["source_id"]])
        old += [(term, row["id"]) for term in had - has]
        new += [(term, row["id"]) for term in has - had]
    db.executemany("DELETE FROM search_term WHERE term = ? AND contact_id = ?", old)
    insert_many(db, "search_term", ("term", "contact_id"), new)


_IDS = "SELECT id, source_id FROM contact WHERE source = ? AND source_id IN (SELECT i.value FROM each_text(?) i)"


def load_contacts(db: Db, keys: Collection[RecordKey]) -> dict[RecordKey, Contact]:
    """Return those of *keys* that are known."""
    found = {}
    for source in {key.source for key in keys}:
        ids = db.array(key.source_id for key in keys if key.source == source)
        for row in db.execute(_CONTACTS, (source, ids)).fetchall():
            contact = contact_of(row)
            found[contact.key] = contact
    return found


_CONTACTS = (
    "SELECT source, source_id, data FROM contact WHERE source = ?"
    " AND source_id IN (SELECT i.value FROM each_text(?) i)"
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

DELIVERY = (
    *("target", "source", "source_id", "slot", "lane", "state", "reason", "updated_at", "desired", "revision"),
    *("accepted", "accepted_opt_out", "target_id", "due_at", "attempts", "error", "status", "unsure_since"),
    *("left_out", "wanted_at", "attempted", "inbound_id", "low"),
)
# Which lane an existing one is in is for `lanes.deal_out` alone.
_IN_ITS_PLACE = "ON CONFLICT (target, source, source_id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in DELIVERY[DELIVERY.index("state") :]
)


def load_delivery(db: Db, target: str, key: RecordKey) -> Delivery | None:
    """Return the delivery, which nobody else changes until the transaction ends."""
    row = db.execute(
        "SELECT * FROM delivery WHERE target = ? AND source = ? AND source_id = ? FOR UPDATE",
        (target, key.source, key.source_id),
    ).fetchone()
    return None if row is None else delivery_of(row)


def load_deliveries(db: Db, pairs: Iterable[tuple[str, RecordKey]]) -> dict[tuple[str, RecordKey], Delivery]:
    """Return those deliveries of target and contact that there are; they should be locked."""
    ids: dict[tuple[str, str], list[str]] = {}
    for target, key in pairs:
        ids.setdefault((target, key.source), []).append(key.source_id)
    found = {}
    for (target, source), some in ids.items():
        for row in db.execute(_DELIVERIES, (target, source, db.array(some))).fetchall():
            delivery = delivery_of(row)
            found[target, delivery.key] = delivery
    return found


_DELIVERIES = (
    "SELECT * FROM delivery WHERE target = ? AND source = ? AND source_id IN (SELECT i.value FROM each_text(?) i)"
)


def save_delivery(db: Db, delivery: Delivery, lanes: LaneCounts) -> None:
    save_deliveries(db, [delivery], lanes)


def save_deliveries(db: Db, deliveries: Iterable[Delivery], lanes: LaneCounts) -> None:
    """Save *deliveries*, which are all different."""
    insert_many(db, "delivery", DELIVERY, [_delivery_row(one, lanes) for one in deliveries], _IN_ITS_PLACE)


def _delivery_row(delivery: Delivery, lanes: LaneCounts) -> tuple[Any, ...]:
    key = delivery.key
    slot = slot_of(key)
    return (
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
        delivery.low,
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
        low=bool(row["low"]),
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


def links(db: Db, target: str, source: str, target_ids: Collection[str]) -> dict[str, set[str]]:
    """Return for each of *target_ids* the source ids of the contacts of *source* that hold it."""
    held: dict[str, set[str]] = {}
    for row in db.execute(_LINKS, (target, source, db.array(target_ids))).fetchall():
        held.setdefault(row["target_id"], set()).add(row["source_id"])
    return held


_LINKS = (
    "SELECT source_id, target_id FROM delivery WHERE target = ? AND source = ?"
    " AND target_id IN (SELECT i.value FROM each_text(?) i) AND target_id IS NOT NULL AND state != 'removed'"
)


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
        event_types=tuple(json.loads(row["event_types"])),
    )


# --- statements ------------------------------------------------------------------------------------------

VALUES_AT_ONCE = 16_000  # SQLite takes 32,766
ROWS_AT_ONCE, MANY_ROWS = 32, 1000


def insert_many(
    db: Db, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], or_else: str = ""
) -> None:
    """Insert *rows* with few statements: each lets go of the interpreter's lock, which many threads fight over.

    They come in few sizes, so that a database has them ready: to read one anew takes as long as to run it.
    """
    step = ROWS_AT_ONCE if len(rows) <= MANY_ROWS else VALUES_AT_ONCE // len(columns)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        statement = _insertion(table, tuple(columns), len(part), or_else)
        db.execute(statement, [value for row in part for value in row])


@lru_cache(maxsize=512)
def _insertion(table: str, columns: tuple[str, ...], count: int, or_else: str) -> str:
    one = f"({','.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({','.join(columns)}) VALUES {','.join([one] * count)} {or_else}"  # noqa: S608
