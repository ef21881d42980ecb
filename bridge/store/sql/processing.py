"""What a source's lane reads and writes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import accumulate
from typing import Any

from bridge import schedule
from bridge.lanes import deliver_lane, process_lane
from bridge.model import AuditEntry, Contact, Delivery, RecordKey, State, Want, iso
from bridge.store.codec import to_json
from bridge.store.looking import Activity
from bridge.store.protocol import Decision, Inbound, InboundResult, Ticket, Work
from bridge.store.sql import catching_up, retries, totals
from bridge.store.sql.database import Db, Row
from bridge.store.sql.facts import add_facts, forget_inbound, forget_person
from bridge.store.sql.lanes import Due, check_fence, keep_open, lane_number, lanes_in_use
from bridge.store.sql.rows import (
    INBOUND,
    LaneCounts,
    Written,
    delivery_of,
    inbound_of,
    linked_to,
    links,
    load_contacts,
    load_deliveries,
    load_delivery,
    lock_contacts,
    lock_deliveries,
    save_contacts,
    save_deliveries,
    save_delivery,
    target_status,
    without_person,
)

BODIES_MAX_BYTES = 32 * 1024 * 1024  # of one round of work: requests can be megabytes each
FEW = 8  # of any size are read at once


def work(db: Db, source: str, now: datetime, limit: int) -> Work:
    inbounds, more = _queued(db, source, limit)
    until = (source, iso(now), limit + 1)
    again = {RecordKey(source, row["source_id"]): bool(row["asked"]) for row in db.execute(_AGAIN, until)}
    reads = [key for row in db.execute(_READS, until) if (key := RecordKey(source, row["source_id"])) not in again]
    keys = [*again, *reads][:limit]
    account = db.execute("SELECT account FROM source_state WHERE source = ?", (source,)).fetchone()
    return Work(
        inbounds=inbounds,
        keys=keys,
        replays=frozenset(key for key in keys if again.get(key)),
        account=account["account"] if account else None,
        more=more or len(again) + len(reads) > limit,
    )


_AGAIN = (
    "SELECT source_id, asked FROM contact WHERE source = ? AND replay_at IS NOT NULL AND replay_at <= ?"
    " ORDER BY replay_at LIMIT ?"
)
_READS = (
    "SELECT source_id FROM contact WHERE source = ? AND read_due IS NOT NULL AND read_due <= ?"
    " ORDER BY read_due LIMIT ?"
)


def _queued(db: Db, source: str, limit: int) -> tuple[list[Inbound], bool]:
    """Return the oldest queued inbounds, up to *limit* or what fits in memory, and whether there are more."""
    inbounds: list[Inbound] = []
    size = 0
    for row in _queued_rows(db, source, limit + 1):
        if len(inbounds) == limit or size > BODIES_MAX_BYTES:
            return inbounds, True
        inbounds.append(inbound_of(row if row["body"] is not None else _with_stray_payload(db, row)))
        size += len(inbounds[-1].body or b"")
    return inbounds, False


def _queued_rows(db: Db, source: str, most: int) -> Iterator[Row]:
    """Yield the oldest queued inbounds, up to *most*, read in parts that fit in memory.

    PostgreSQL sends all that a statement finds before the first row can be looked at.
    """
    last, part = 0, FEW
    while part:
        part = min(part, most)
        rows = db.execute(f"{INBOUND} {_QUEUED}", (source, last, part)).fetchall()
        yield from rows
        most -= len(rows)
        if len(rows) < part or not most:
            return
        last = rows[-1]["id"]
        part = _fitting(db, source, last, most)


def _fitting(db: Db, source: str, last: int, most: int) -> int:
    """Return how many of the next *most* to read: as stored, they fill what they may, and one tells of more."""
    sizes = [row["size"] or 0 for row in db.execute(f"{_SIZES} {_QUEUED}", (source, last, most))]
    return next((n for n, size in enumerate(accumulate(sizes), 2) if size > BODIES_MAX_BYTES), len(sizes))


_QUEUED = "WHERE i.source = ? AND i.outcome = 'accepted' AND i.id > ? ORDER BY i.id LIMIT ?"
_SIZES = (
    "SELECT length(p.body) AS size FROM inbound i"
    " LEFT JOIN payload p ON p.digest = i.digest AND same_day(p, i.received_at)"
)


def _with_stray_payload(db: Db, row: Any) -> Any:
    """Return *row* with a payload that is being moved to the table of its day: our view shows it in no day.

    An inbound that is queued has one, or it would count as processed without ever having been looked at.
    """
    found = db.execute(_ANYWHERE, (row["digest"],)).fetchall()
    return {**row, **found[0]} if found else row


_ANYWHERE = "SELECT p.body, p.url AS whole_url, p.headers AS kept_headers FROM payload p WHERE p.digest = ?"


def contacts(db: Db, keys: Collection[RecordKey]) -> dict[RecordKey, Contact]:
    return load_contacts(db, keys)


def commit(
    db: Db,
    salt: bytes,
    ticket: Ticket,
    decision: Decision,
    contacts: Sequence[Written],
    lanes: LaneCounts,
    now: datetime,
) -> Due:
    """Save *decision*; *contacts* are its contacts as they are written."""
    check_fence(db, ticket)
    for target in sorted({want.target for want in decision.wants}):
        keep_open(db, target)
    _lock_all(db, decision)
    lanes = lanes_in_use(db, lanes)
    moment = iso(now)
    due: Due = {}
    save_contacts(db, contacts, moment)
    for contact in decision.contacts:
        if contact.read_due is not None:
            _sooner(due, process_lane(contact.key.source), contact.read_due)
    unchanged: list[AuditEntry] = []
    for want, stored, planned in _plan_all(db, decision.wants, lanes, now):
        if planned != stored and planned.state in {State.PENDING, State.RETRYING}:
            lane = deliver_lane(planned.target, lane_number(lanes, planned.target, planned.key))
            _sooner(due, lane, planned.due_at or now)
        elif want.desired is not None and planned.state in {State.SYNCED, State.OPTED_OUT}:
            unchanged.append(_unchanged(want, now))
    _close_inbounds(db, decision.results, moment)
    add_facts(db, salt, [*decision.audit, *unchanged])
    totals.count(db, _announced(decision.wants, now))
    _erase(db, decision, lanes, now)
    unasked = {want.key for want in decision.wants if not want.again}
    for key in decision.decided:
        asked_late = key in unasked
        left = db.execute(_DECIDED, (moment, asked_late, asked_late, key.source, key.source_id)).fetchone()
        if left is not None and not left["asked"]:
            retries.decided(db, key)
    if decision.catch_up is not None:
        catching_up.advance(db, decision.catch_up)
    _note_source(db, ticket.lane.removeprefix("process:"), decision.account)
    for lane, when in due.items():
        db.make_due(lane, when)
    return due


def _lock_all(db: Db, decision: Decision) -> None:
    """Have nobody else change a contact or delivery that is decided: least of all finish a push of the erased."""
    keys = {contact.key for contact in decision.contacts} | {*decision.erased, *decision.decided}
    for want in decision.wants:
        keys |= {want.key, *(RecordKey(want.key.source, source_id) for source_id in want.inherit_from)}
    lock_contacts(db, keys)
    lock_deliveries(db, keys)


# What was due to be read and was not (it is deleted, or nothing can be read) must not stay due for ever. What
# somebody asked for while it was being decided without that stays to be decided.
_DECIDED = (
    "UPDATE contact SET read_due = CASE WHEN read_due > ? THEN read_due END,"
    " replay_at = CASE WHEN asked > 0 AND ? THEN replay_at END, asked = CASE WHEN ? THEN asked ELSE 0 END"
    " WHERE source = ? AND source_id = ? RETURNING asked"
)


def _close_inbounds(db: Db, results: Sequence[InboundResult], moment: str) -> None:
    db.lock_rows("inbound", _CHOSEN, (db.array(result.id for result in results),))
    alike: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for result in results:
        alike.setdefault((result.outcome.value, result.reason, result.event_types), []).append(result.id)
    for (outcome, reason, types), ids in alike.items():
        db.execute(
            f"UPDATE inbound SET outcome = ?, reason = ?, event_types = ?, processed_at = ? WHERE {_CHOSEN}",  # noqa: S608
            (outcome, reason, to_json(types), moment, db.array(ids)),
        )
    for result in sorted(results, key=lambda one: one.id):
        if result.forget:
            forget_inbound(db, result.id)


_CHOSEN = "id IN (SELECT i.value FROM each_id(?) i)"


def _sooner(due: Due, lane: str, moment: datetime) -> None:
    due[lane] = min(moment, due.get(lane, moment))


def _announced(wants: Iterable[Want], now: datetime) -> Iterable[tuple[datetime, Activity]]:
    """Yield how many changes were to reach each target; less the attempts, those are the calls that were saved."""
    for want in wants:
        if want.changes and want.desired is not None:
            kind = totals.ANNOUNCED
            yield now, Activity(kind, kind, want.changes, source=want.key.source, target=want.target)


def _unchanged(want: Want, now: datetime) -> AuditEntry:
    """A call that was saved: what came in changed nothing of what this target should hold."""
    return AuditEntry(
        at=now,
        kind="delivery",
        outcome="unchanged",
        reason="The target holds all of it already, so no call was made.",
        source=want.key.source,
        source_id=want.key.source_id,
        target=want.target,
        inbound_id=want.inbound_id,
    )


Planned = tuple[Want, Delivery | None, Delivery]  # with the row before, and the row now


def _plan_all(db: Db, wants: Sequence[Want], lanes: LaneCounts, now: datetime) -> list[Planned]:
    """Save the next rows of all deliveries that *wants* are about."""
    if any(want.inherit_from for want in wants):
        # One contact hands over to another: each must see what the one before it left.
        return [(want, *_plan(db, want, lanes, now)) for want in wants]
    present = load_deliveries(db, {(want.target, want.key): None for want in wants})
    holders = _holders(db, present.values())
    statuses = {target: target_status(db, target) for target in {want.target for want in wants}}
    planned: list[Planned] = []
    changed: dict[tuple[str, RecordKey], Delivery] = {}
    for want in wants:
        pair = (want.target, want.key)
        stored = current = present.get(pair)
        held_by = holders.get(_link(stored), set())
        if held_by - {want.key.source_id} and current is not None:
            current = _found_anew(current)
        after = schedule.plan(current, _as_meant(db, want), held=statuses[want.target], now=now)
        if after != stored:
            present[pair] = changed[pair] = after
            held_by.discard(want.key.source_id)
            if (link := _link(after)) is not None and after.state is not State.REMOVED:
                holders.setdefault(link, set()).add(want.key.source_id)
        planned.append((want, stored, after))
    save_deliveries(db, changed.values(), lanes)
    return planned


Link = tuple[str, str, str]  # target, source, target id


def _link(delivery: Delivery | None) -> Link | None:
    if delivery is None or delivery.target_id is None:
        return None
    return delivery.target, delivery.key.source, delivery.target_id


def _found_anew(delivery: Delivery) -> Delivery:
    """Return the delivery of a removed contact that comes back, when what it was linked to belongs to another."""
    return replace(delivery, target_id=None, accepted=None)


def _as_meant(db: Db, want: Want) -> Want:
    """Return *want*, which sends a failed delivery again only where that one was asked for."""
    if want.again and not retries.meant(db, want.target, want.key):
        return replace(want, again=False)
    return want


def _holders(db: Db, deliveries: Iterable[Delivery]) -> dict[Link | None, set[str]]:
    """Return who holds what *deliveries* are linked to."""
    asked: dict[tuple[str, str], list[str]] = {}
    for one in deliveries:
        if one.target_id is not None:
            asked.setdefault((one.target, one.key.source), []).append(one.target_id)
    return {
        (target, source, target_id): held
        for (target, source), ids in asked.items()
        for target_id, held in links(db, target, source, ids).items()
    }


def _plan(db: Db, want: Want, lanes: LaneCounts, now: datetime) -> tuple[Delivery | None, Delivery]:
    """Save the delivery's next row; return the one before and this one."""
    stored = load_delivery(db, want.target, want.key)
    want = _as_meant(db, want)
    current = _with_inheritance(db, want, stored, lanes, now)
    if current is not None and linked_to(db, want.target, want.key, current.target_id) is not None:
        current = _found_anew(current)
    planned = schedule.plan(current, want, held=target_status(db, want.target), now=now)
    if planned != stored:
        save_delivery(db, planned, lanes)
    return stored, planned


def _with_inheritance(
    db: Db, want: Want, current: Delivery | None, lanes: LaneCounts, now: datetime
) -> Delivery | None:
    """Return *current* with the link of a record that was merged into this one, which lets go of it."""
    if current is not None and current.target_id is not None:
        return current
    for source_id in want.inherit_from:
        loser = load_delivery(db, want.target, RecordKey(want.key.source, source_id))
        if loser is None or loser.target_id is None:
            continue
        save_delivery(db, replace(loser, target_id=None, accepted=None, updated_at=now), lanes)
        heir = current or Delivery(want.target, want.key, State.WAITING, "", now)
        return replace(
            heir,
            target_id=loser.target_id,
            # What the target is known to hold goes with the link, and so does an opt-out.
            accepted=loser.accepted,
            accepted_opt_out=heir.accepted_opt_out or loser.accepted_opt_out,
            attempted=loser.attempted,
            unsure_since=None,
        )
    return _with_doubt(db, want, current, now)


def _with_doubt(db: Db, want: Want, current: Delivery | None, now: datetime) -> Delivery | None:
    """Return *current* with the create of unknown fate of a record that was merged into this one."""
    if current is not None and current.unsure_since is not None:
        return current
    for source_id in want.inherit_from:
        loser = load_delivery(db, want.target, RecordKey(want.key.source, source_id))
        if loser is not None and loser.unsure_since is not None:
            heir = current or Delivery(want.target, want.key, State.WAITING, "", now)
            return replace(heir, unsure_since=loser.unsure_since, attempted=loser.attempted)
    return current


def _erase(db: Db, decision: Decision, lanes: LaneCounts, now: datetime) -> None:
    planned = {(want.target, want.key) for want in decision.wants}
    for key in decision.erased:
        forget_person(db, key)
        rows = db.execute(
            "SELECT * FROM delivery WHERE source = ? AND source_id = ? FOR UPDATE", (key.source, key.source_id)
        ).fetchall()
        for row in rows:
            delivery = delivery_of(row)
            wiped = (
                schedule.forgotten(delivery, delivery.desired)
                if (delivery.target, key) in planned
                else without_person(delivery, now)
            )
            if wiped != delivery:
                save_delivery(db, wiped, lanes)


def _note_source(db: Db, source: str, account: str | None) -> None:
    """Have the source known, and remember its first account."""
    row = db.execute("SELECT account FROM source_state WHERE source = ?", (source,)).fetchone()
    if row is not None and (account is None or row["account"] is not None):
        return  # receipts change this row all the time: they need not wait for us
    db.execute(
        "INSERT INTO source_state (source, account) VALUES (?, ?) ON CONFLICT (source) DO UPDATE"
        " SET account = coalesce(source_state.account, excluded.account)",
        (source, account),
    )


def mark_for_replay(db: Db, keys: Collection[RecordKey], now: str) -> list[RecordKey]:
    """Mark those of *keys* that are known, and return them."""
    lock_contacts(db, keys)
    return [
        key
        for key in dict.fromkeys(keys)
        if db.execute(
            "UPDATE contact SET replay_at = ?, asked = 1 WHERE source = ? AND source_id = ?",
            (now, key.source, key.source_id),
        ).rowcount
    ]


def queue_again(db: Db, inbound_ids: Collection[int]) -> Mapping[int, str]:
    """Queue those inbounds whose bytes are still there; return the source of each."""
    queued = {}
    chosen = db.array(dict.fromkeys(inbound_ids))
    db.lock_rows("inbound", "id IN (SELECT i.value FROM each_id(?) i)", (chosen,))
    for inbound_id in dict.fromkeys(inbound_ids):
        row = db.execute(
            "SELECT i.source FROM inbound i JOIN payload p ON p.digest = i.digest AND same_day(p, i.received_at)"
            " WHERE i.id = ? FOR UPDATE OF p",  # so that it is not pruned meanwhile
            (inbound_id,),
        ).fetchone()
        if row is not None:
            # What was said of it last is no longer so, until it is processed.
            db.execute(
                "UPDATE inbound SET outcome = 'accepted', reason = '', processed_at = NULL WHERE id = ?",
                (inbound_id,),
            )
            queued[inbound_id] = row["source"]
    return queued
