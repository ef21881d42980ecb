"""What a target's lane reads and writes, the target's quota, and whether the target is open."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

from bridge import schedule
from bridge.errors import Ambiguous
from bridge.lanes import deliver_lane
from bridge.model import AuditEntry, Delivery, Desired, RecordKey, State, from_iso, iso
from bridge.store.codec import exchanges_detail, maybe_iso, maybe_moment, to_json
from bridge.store.protocol import Attempt, Plan, TargetStatus, Ticket
from bridge.store.sql import totals
from bridge.store.sql.database import Db
from bridge.store.sql.processing import check_fence, fitted, keep_open, next_due, open_or_close, read_lane
from bridge.store.sql.rows import (
    LaneCounts,
    add_facts,
    delivery_of,
    is_erased,
    linked_to,
    load_delivery,
    save_delivery,
    target_status,
    without_person,
)

# --- one push --------------------------------------------------------------------------------------------


def claim(db: Db, ticket: Ticket, now: datetime, apart: Collection[str]) -> Delivery | None:
    check_fence(db, ticket)
    delivers = read_lane(ticket.lane)
    if delivers is None:
        return None
    target, number = delivers
    keep_open(db, target)
    if target_status(db, target).mode != "open":
        return None
    row = db.execute(_DUE, (target, number, iso(now), 1)).fetchone()
    if row is None:
        return None
    stored = delivery_of(row)
    if apart and stored.target_id is None:
        db.lock(f"unlinked {target}")  # two lanes must not each see that the other has not begun
        under_way = _marks_under_way(db, target, apart)
        if _marks(stored, apart) & under_way:
            rows = db.execute(_DUE, (target, number, iso(now), LOOKED_AT)).fetchall()
            free = (one for one in rows if not _marks(delivery_of(one), apart) & under_way)
            row = next(free, None)
            if row is None:
                return None
            stored = delivery_of(row)
    begun = schedule.begun(stored, now)
    db.execute(
        "UPDATE delivery SET state = 'sending', reason = ?, updated_at = ?, attempted = ? WHERE id = ?",
        (begun.reason, iso(now), to_json(dict(begun.attempted or {})), row["id"]),
    )
    # The caller is told what was in doubt before; from now on, what it tries is as well.
    return replace(begun, attempted=stored.attempted)


_DUE = (
    "SELECT * FROM delivery WHERE target = ? AND lane = ? AND state IN ('pending', 'retrying')"
    " AND due_at <= ? ORDER BY due_at LIMIT ? FOR UPDATE"
)
LOOKED_AT = 20  # deliveries, for one that has nothing to do with what other lanes are sending


def _marks_under_way(db: Db, target: str, apart: Collection[str]) -> set[str]:
    rows = db.execute(
        "SELECT * FROM delivery WHERE target = ? AND state = 'sending' AND target_id IS NULL", (target,)
    )
    return {mark for row in rows.fetchall() for mark in _marks(delivery_of(row), apart)}


def _marks(delivery: Delivery, apart: Collection[str]) -> set[str]:
    """Return the values by which a contact that is not linked yet may be found, or is about to be created."""
    if delivery.target_id is not None:
        return set()
    wanted = delivery.desired.fields if delivery.desired else {}
    found = [held.get(name) for held in (wanted, delivery.attempted or {}) for name in apart]
    return {value for value in found if isinstance(value, str) and value}


def link(db: Db, ticket: Ticket, claimed: Delivery, target_id: str) -> None:
    check_fence(db, ticket)
    other = linked_to(db, claimed.target, claimed.key, target_id)
    if other is not None:
        raise Ambiguous(_taken(claimed.key, target_id, other))
    db.execute(
        "UPDATE delivery SET target_id = ? WHERE target = ? AND source = ? AND source_id = ?",
        (target_id, claimed.target, claimed.key.source, claimed.key.source_id),
    )


def mark_unsure(db: Db, ticket: Ticket, claimed: Delivery, at: datetime) -> None:
    check_fence(db, ticket)
    db.execute(
        "UPDATE delivery SET unsure_since = ?, attempted = ? WHERE target = ? AND source = ? AND source_id = ?",
        (
            iso(at),
            to_json(dict((claimed.desired or Desired()).fields)),
            claimed.target,
            claimed.key.source,
            claimed.key.source_id,
        ),
    )


def revision(db: Db, claimed: Delivery) -> int:
    row = db.execute(
        "SELECT revision FROM delivery WHERE target = ? AND source = ? AND source_id = ?",
        (claimed.target, claimed.key.source, claimed.key.source_id),
    ).fetchone()
    return claimed.revision if row is None else int(row["revision"])


def next_due_of(db: Db, lane: str) -> datetime | None:
    delivers = read_lane(lane)
    if delivers is None or target_status(db, delivers[0]).mode != "open":
        return None
    return next_due(db, *delivers)


def finish(
    db: Db,
    salt: bytes,
    ticket: Ticket,
    claimed: Delivery,
    close: Plan,
    attempt: Attempt | None,
    lanes: LaneCounts,
) -> Delivery:
    check_fence(db, ticket)
    keep_open(db, claimed.target)
    current = load_delivery(db, claimed.target, claimed.key)
    closed = close(current)
    now = closed.updated_at
    delivery = _unshared(db, fitted(closed, target_status(db, claimed.target), now))
    if is_erased(db, claimed.key):
        # What was under way when the person was erased must not bring back what was deleted.
        delivery = without_person(delivery, now)
    save_delivery(db, delivery, lanes)
    totals.count_lag(db, current, delivery)
    if attempt is not None:
        number = (current.attempts if current else 0) + 1
        add_facts(db, salt, [_fact(claimed, attempt, number)])
        totals.count_push(db, claimed.target, attempt)
    return delivery


def _unshared(db: Db, delivery: Delivery) -> Delivery:
    """Return *delivery* without a link that another contact holds by now: that one came first."""
    if delivery.state is State.REMOVED:
        return delivery
    other = linked_to(db, delivery.target, delivery.key, delivery.target_id)
    if other is None:
        return delivery
    unlinked = replace(delivery, target_id=None, accepted=None)
    if delivery.desired is None:  # merged into the other one: there is nothing to decide
        return unlinked
    reason = f"{_taken(delivery.key, delivery.target_id or '', other)} A person decides."
    return replace(unlinked, state=State.AMBIGUOUS, reason=reason, error=Ambiguous.code, due_at=None)


def _taken(key: RecordKey, target_id: str, other: str) -> str:
    return (
        f"The target's contact {target_id} belongs to the {key.source} contact {other} already, so it cannot "
        f"belong to {key.source_id} as well."
    )


def _fact(claimed: Delivery, attempt: Attempt, number: int) -> AuditEntry:
    return AuditEntry(
        at=attempt.at,
        kind="delivery",
        outcome=attempt.outcome,
        reason=attempt.reason,
        source=claimed.key.source,
        source_id=claimed.key.source_id,
        target=claimed.target,
        attempt=number,
        status=attempt.status,
        error=attempt.error,
        duration_ms=attempt.duration_ms,
        fields=attempt.fields,
        detail=exchanges_detail(tuple(attempt.exchanges)),
        inbound_id=claimed.inbound_id,
    )


# --- quota -----------------------------------------------------------------------------------------------

CLOCKS_DIFFER = timedelta(seconds=5)  # of the processes of one machine, at most
BACKOFF_MAX = timedelta(days=1)


def take_turn(db: Db, target: str, rate_per_s: float, burst: int, now: datetime, count: int) -> float:
    _correct_clock(db, target, now)
    row = db.execute("SELECT * FROM quota WHERE target = ? FOR UPDATE", (target,)).fetchone()
    tokens, filled_at = float(burst), now
    if row is not None:
        closed_until = maybe_moment(row["closed_until"])
        if closed_until is not None and closed_until > now:
            return (closed_until - now).total_seconds()
        if row["tokens"] is not None:
            # Clocks of processes may differ a little: time never runs backwards for the bucket.
            filled_at = max(now, from_iso(row["filled_at"]))
            elapsed_s = (filled_at - from_iso(row["filled_at"])).total_seconds()
            tokens = min(float(burst), row["tokens"] + elapsed_s * rate_per_s)
    needed = min(count, burst)  # more than the bucket holds goes on credit, or it would never go at all
    if tokens < needed:
        return max((needed - tokens) / rate_per_s, 0.001)
    if count == 0:
        return 0.0  # only asked
    db.execute(
        "INSERT INTO quota (target, tokens, filled_at, rate_per_s, burst) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (target) DO UPDATE SET tokens = excluded.tokens, filled_at = excluded.filled_at,"
        " rate_per_s = excluded.rate_per_s, burst = excluded.burst",
        (target, tokens - count, iso(filled_at), rate_per_s, burst),
    )
    return 0.0


def _correct_clock(db: Db, target: str, now: datetime) -> None:
    """Set right what was written by a clock that was far ahead: the target would wait until it is that late."""
    db.execute(
        "UPDATE quota SET filled_at = ? WHERE target = ? AND filled_at > ?",
        (iso(now), target, iso(now + CLOCKS_DIFFER)),
    )
    db.execute(
        "UPDATE quota SET closed_until = NULL WHERE target = ? AND closed_until > ?",
        (target, iso(now + BACKOFF_MAX)),
    )


def set_backoff(db: Db, target: str, until: datetime) -> None:
    db.execute(
        "INSERT INTO quota (target, closed_until) VALUES (?, ?) ON CONFLICT (target) DO UPDATE"
        " SET closed_until = greatest(coalesce(quota.closed_until, excluded.closed_until), excluded.closed_until)",
        (target, iso(until)),
    )


# --- targets ---------------------------------------------------------------------------------------------


def hold(db: Db, salt: bytes, target: str, reason: str, now: datetime, probe_at: datetime) -> None:
    open_or_close(db, target)
    current = target_status(db, target)
    if current.mode == "paused":
        return
    since = current.since if current.mode == "held" else now
    held = replace(current, mode="held", reason=reason, since=since, by="", probe_at=probe_at)
    _close(db, salt, current, held, now)


def pause(db: Db, salt: bytes, target: str, reason: str, by: str, now: datetime) -> None:
    open_or_close(db, target)
    current = target_status(db, target)
    since = current.since if current.mode == "paused" else now
    paused = replace(current, mode="paused", reason=reason, since=since, by=by, probe_at=None)
    _close(db, salt, current, paused, now)


def _close(db: Db, salt: bytes, current: TargetStatus, closed: TargetStatus, now: datetime) -> None:
    """Save the closed status, from which on nothing is claimed. A fact is written when it is news for a person."""
    _save_status(db, closed)
    if (current.mode, current.reason) == (closed.mode, closed.reason):
        return
    by = f" by {closed.by}" if closed.by else ""
    reason = f"Paused{by}: {closed.reason or 'no reason given'}" if closed.mode == "paused" else closed.reason
    add_facts(db, salt, [AuditEntry(now, "target", closed.mode, reason, target=closed.target)])


def hold_some(db: Db, target: str, now: datetime, limit: int) -> bool:
    """Have up to *limit* deliveries of a closed target say that they are held; return whether that was all."""
    keep_open(db, target)
    status = target_status(db, target)
    if status.mode == "open":
        return True
    reason = schedule.held_reason(status)
    held = db.execute(
        "UPDATE delivery SET state = 'held', reason = ?, updated_at = ? WHERE id IN"
        " (SELECT id FROM delivery WHERE target = ? AND state IN ('pending', 'retrying') LIMIT ?)",
        (reason, iso(now), target, limit),
    ).rowcount
    retold = db.execute(  # they were held already, for another reason
        "UPDATE delivery SET reason = ?, updated_at = ? WHERE id IN"
        " (SELECT id FROM delivery WHERE target = ? AND state = 'held' AND reason != ? LIMIT ?)",
        (reason, iso(now), target, reason, limit),
    ).rowcount
    return max(held, retold) < limit


def resume_some(
    db: Db,
    salt: bytes,
    target: str,
    by: str,
    now: datetime,
    limit: int,
    lanes: LaneCounts,
    *,
    held_only: bool,
) -> bool:
    """Make up to *limit* held deliveries due, open the target with the last of them; return whether it is open.

    Nothing is claimed before: if the process ends half-way, the target is still closed and can be resumed again.
    """
    open_or_close(db, target)
    mode = target_status(db, target).mode
    if mode == "open" or (held_only and mode == "paused"):
        return True
    # Their own moments are void: what made them wait was the target.
    released = db.execute(
        "UPDATE delivery SET state = 'pending', reason = ?, due_at = ?, updated_at = ? WHERE id IN"
        " (SELECT id FROM delivery WHERE target = ? AND state = 'held' LIMIT ?)",
        (schedule.DUE_NOW, iso(now), iso(now), target, limit),
    ).rowcount
    if released == limit:
        return False
    _save_status(db, TargetStatus(target, since=now, by=by))
    reason = f"Opened by {by}; what was held is sent now."
    add_facts(db, salt, [AuditEntry(now, "target", "open", reason, target=target)])
    for number in range(lanes.get(target, 1)):
        db.make_due(deliver_lane(target, number), now)
    return True


def note_refusal(db: Db, target: str) -> int:
    open_or_close(db, target)
    current = target_status(db, target)
    noted = replace(current, refusals=current.refusals + 1)
    _save_status(db, noted)
    return noted.refusals


def clear_refusals(db: Db, target: str) -> None:
    db.execute("UPDATE target_status SET refusals = 0 WHERE target = ?", (target,))


def _save_status(db: Db, status: TargetStatus) -> None:
    db.execute(
        "INSERT INTO target_status (target, mode, reason, since, by, probe_at, refusals)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (target) DO UPDATE SET mode = excluded.mode,"
        " reason = excluded.reason, since = excluded.since, by = excluded.by, probe_at = excluded.probe_at,"
        " refusals = excluded.refusals",
        (
            status.target,
            status.mode,
            status.reason,
            maybe_iso(status.since),
            status.by,
            maybe_iso(status.probe_at),
            status.refusals,
        ),
    )
