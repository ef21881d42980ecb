"""What a target's lane reads and writes, the target's quota, and whether the target is open."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from bridge import schedule
from bridge.errors import Ambiguous, LostLane, Superseded
from bridge.lanes import deliver_lane
from bridge.model import AuditEntry, Delivery, Desired, RecordKey, State, from_iso, iso
from bridge.store.codec import exchanges_detail, maybe_iso, maybe_moment, to_json
from bridge.store.protocol import Attempt, Plan, TargetStatus, Ticket
from bridge.store.sql import totals
from bridge.store.sql.database import Db, Row, row_of
from bridge.store.sql.facts import add_facts
from bridge.store.sql.lanes import check_fence, fitted, keep_open, lanes_in_use, next_due, open_or_close, read_lane
from bridge.store.sql.rows import (
    LaneCounts,
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
    return _claim(db, target, number, now, apart, "FOR UPDATE")


def _claim(
    db: Db, target: str, number: int, now: datetime, apart: Collection[str], locking: str
) -> Delivery | None:
    for low in (False, True):  # what came live goes first
        row = db.execute(f"{_DUE} {locking}", (target, number, low, iso(now), 1)).fetchone()
        if row is not None:
            break
    else:
        return None
    stored = delivery_of(row)
    if apart and stored.target_id is None:
        db.lock(f"unlinked {target}")  # two lanes must not each see that the other has not begun
        under_way = _marks_under_way(db, target, apart)
        if _marks(stored, apart) & under_way:
            rows = db.execute(_DUE, (target, number, low, iso(now), LOOKED_AT)).fetchall()
            free = (one["id"] for one in rows if not _marks(delivery_of(one), apart) & under_way)
            row = _still_due(db, next(free, None), now)
            if row is None or _marks(stored := delivery_of(row), apart) & under_way:
                return None
    begun = schedule.begun(stored, now)
    db.execute(
        "UPDATE delivery SET state = 'sending', reason = ?, updated_at = ?, attempted = ? WHERE id = ?",
        (begun.reason, iso(now), to_json(dict(begun.attempted or {})), row["id"]),
    )
    # The caller is told what was in doubt before; from now on, what it tries is as well.
    return replace(begun, attempted=stored.attempted)


_DUE = (
    "SELECT * FROM delivery WHERE target = ? AND lane = ? AND low = ? AND state IN ('pending', 'retrying')"
    " AND due_at <= ? ORDER BY due_at LIMIT ?"
)
# Nobody is waited for who may be waiting for the one that was looked at first.
_STILL_DUE = (
    "SELECT * FROM delivery WHERE id = ? AND state IN ('pending', 'retrying') AND due_at <= ?"
    " FOR UPDATE SKIP LOCKED"
)
LOOKED_AT = 20  # deliveries, for one that has nothing to do with what other lanes are sending


def _still_due(db: Db, delivery_id: int | None, now: datetime) -> Row | None:
    return None if delivery_id is None else db.execute(_STILL_DUE, (delivery_id, iso(now))).fetchone()


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


def next_due_of(db: Db, lane: str) -> datetime | None:
    delivers = read_lane(lane)
    if delivers is None or target_status(db, delivers[0]).mode != "open":
        return None
    return next_due(db, *delivers)


@dataclass(frozen=True, slots=True)
class Next:
    """What `claim` is given, when the end of one push claims the next."""

    now: datetime
    apart: Collection[str]


def finish(
    db: Db,
    salt: bytes,
    ticket: Ticket,
    claimed: Delivery,
    close: Plan,
    attempt: Attempt | None,
    lanes: LaneCounts,
    then: Next | None = None,
) -> tuple[Delivery, Delivery | None]:
    check_fence(db, ticket)
    keep_open(db, claimed.target)
    current = load_delivery(db, claimed.target, claimed.key)
    closed = close(current)
    now = closed.updated_at
    status = target_status(db, claimed.target)
    delivery = _unshared(db, fitted(closed, status, now))
    if is_erased(db, claimed.key):
        # What was under way when the person was erased must not bring back what was deleted.
        delivery = without_person(delivery, now)
    save_delivery(db, delivery, lanes)
    totals.count_lag(db, current, delivery)
    if attempt is not None:
        number = (current.attempts if current else 0) + 1
        add_facts(db, salt, [_fact(claimed, attempt, number)])
        totals.count_push(db, claimed.target, attempt)
        if attempt.error is None and status.refusals:
            db.execute("UPDATE target_status SET refusals = 0 WHERE target = ?", (claimed.target,))
    following = None
    if then is not None and status.mode == "open" and (delivers := read_lane(ticket.lane)) is not None:
        # Skips what somebody else has: that one may wait for the delivery which was just saved.
        following = _claim(db, *delivers, then.now, then.apart, "FOR UPDATE SKIP LOCKED")
    return delivery, following


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

CLOCKS_DIFFER = timedelta(seconds=5)  # of all processes, at most: see `Store.clock`
BACKOFF_MAX = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a target allows: so many calls a second, and so many at once after a rest."""

    target: str
    rate_per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class _Bucket:
    tokens: float
    filled_at: datetime
    closed_s: float = 0.0  # until calls are allowed again at all
    corrected: bool = False  # it was written by a clock that was far ahead

    def pause_s(self, quota: Quota, count: int) -> float:
        if self.closed_s > 0:
            return self.closed_s
        needed = min(count, quota.burst)  # more than the bucket holds goes on credit, or it would never go at all
        return 0.0 if self.tokens >= needed else max((needed - self.tokens) / quota.rate_per_s, 0.001)


def take_turn(
    db: Db, quota: Quota, now: datetime, count: int, ticket: Ticket | None, claimed: Delivery | None
) -> float:
    bucket = _bucket(_locked(db, quota.target), quota, now)
    # After whoever was waited for.
    if ticket is not None and claimed is not None:
        _check_push(db, ticket, claimed)
    pause_s = bucket.pause_s(quota, count)
    if pause_s == 0:
        db.execute(
            "UPDATE quota SET tokens = ?, filled_at = ?, rate_per_s = ?, burst = ?, closed_until = NULL"
            " WHERE target = ?",
            (bucket.tokens - count, iso(bucket.filled_at), quota.rate_per_s, quota.burst, quota.target),
        )
    elif bucket.corrected:
        db.execute("UPDATE quota SET filled_at = ? WHERE target = ?", (iso(bucket.filled_at), quota.target))
    return pause_s


def take_turn_to_create(
    db: Db, quota: Quota, now: datetime, count: int, ticket: Ticket, claimed: Delivery
) -> float:
    check_fence(db, ticket)
    # Before it is known that there is a turn: the quota is locked last, and a search too many does no harm.
    db.execute(
        "UPDATE delivery SET unsure_since = ?, attempted = ? WHERE target = ? AND source = ? AND source_id = ?"
        " AND revision = ?",
        (
            iso(now),
            to_json(dict((claimed.desired or Desired()).fields)),
            claimed.target,
            claimed.key.source,
            claimed.key.source_id,
            claimed.revision,
        ),
    )
    return take_turn(db, quota, now, count, ticket, claimed)


def closed_for(db: Db, quota: Quota, now: datetime) -> float:
    """Return how many seconds the target wants to be left alone for."""
    row = db.execute("SELECT * FROM quota WHERE target = ?", (quota.target,)).fetchone()
    return 0.0 if row is None else _bucket(row, quota, now).pause_s(quota, 0)


def _check_push(db: Db, ticket: Ticket, claimed: Delivery) -> None:
    row = db.execute(
        "SELECT d.revision, l.fence, l.owner FROM lane l, delivery d"
        " WHERE l.name = ? AND d.target = ? AND d.source = ? AND d.source_id = ?",
        (ticket.lane, claimed.target, claimed.key.source, claimed.key.source_id),
    ).fetchone()
    if row is not None and row["fence"] != ticket.fence:
        raise LostLane(f"Lane {ticket.lane} was taken over by {row['owner']}; no further call is made.")
    if row is not None and row["revision"] != claimed.revision:
        raise Superseded("Newer state arrived, and is due at once.")


def _locked(db: Db, target: str) -> Row:
    """Return the target's row, which nobody else takes from until the transaction ends."""
    row = db.execute(_OWN, (target,)).fetchone()
    if row is None:  # there must be one, or nothing keeps two from taking all that a full bucket holds
        db.execute("INSERT INTO quota (target) VALUES (?) ON CONFLICT DO NOTHING", (target,))
        row = row_of(db.execute(_OWN, (target,)))
    return row


_OWN = "SELECT * FROM quota WHERE target = ? FOR UPDATE"


def _bucket(row: Row, quota: Quota, now: datetime) -> _Bucket:
    """Return what is in the target's bucket now.

    What a clock wrote that was far ahead does not count: the target would wait until it is that late.
    """
    closed_until = maybe_moment(row["closed_until"])
    if closed_until is not None and now < closed_until <= now + BACKOFF_MAX:
        return _Bucket(0.0, now, (closed_until - now).total_seconds())
    if row["tokens"] is None:
        return _Bucket(float(quota.burst), now)
    before = from_iso(row["filled_at"])
    corrected = before > now + CLOCKS_DIFFER
    if corrected:
        before = now
    # Clocks of processes may differ a little: time never runs backwards for the bucket.
    filled_at = max(now, before)
    tokens = row["tokens"] + (filled_at - before).total_seconds() * quota.rate_per_s
    return _Bucket(min(float(quota.burst), tokens), filled_at, corrected=corrected)


def set_backoff(db: Db, target: str, until: datetime, ticket: Ticket | None) -> None:
    if ticket is not None:
        check_fence(db, ticket)
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
    open_or_close(db, target)
    status = target_status(db, target)
    if status.mode == "open":
        return True
    reason = schedule.held_reason(status)
    unheld = _some(db, limit, "target = ? AND state IN ('pending', 'retrying')", target)
    db.execute(
        f"UPDATE delivery SET state = 'held', reason = ?, updated_at = ? WHERE {_CHOSEN}",  # noqa: S608
        (reason, iso(now), unheld.ids),
    )
    # They were held already, for another reason.
    untold = _some(db, limit, "target = ? AND state = 'held' AND reason != ?", target, reason)
    db.execute(
        f"UPDATE delivery SET reason = ?, updated_at = ? WHERE {_CHOSEN}",  # noqa: S608
        (reason, iso(now), untold.ids),
    )
    return max(unheld.count, untold.count) < limit


@dataclass(frozen=True, slots=True)
class _Some:
    count: int
    ids: Any  # for `_CHOSEN`


_CHOSEN = "id IN (SELECT i.value FROM each_id(?) i)"


def _some(db: Db, limit: int, condition: str, *values: object) -> _Some:
    """Return up to *limit* deliveries that match, and go on doing so until the transaction ends.

    A statement that looks for them and changes them at once would change what somebody else has changed since.
    """
    rows = db.execute(
        f"SELECT id FROM delivery WHERE {condition} ORDER BY id LIMIT ? FOR UPDATE",  # noqa: S608
        (*values, limit),
    ).fetchall()
    return _Some(len(rows), db.array(row["id"] for row in rows))


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
    before: TargetStatus,
) -> bool:
    """Make up to *limit* held deliveries due, open the target with the last; return whether that was all.

    Nothing is claimed before: if the process ends half-way, the target is still closed and can be resumed again.
    Somebody who paused it since it was as *before* has the last word: then it stays closed.
    """
    open_or_close(db, target)
    status = target_status(db, target)
    anew = (status.since, status.by, status.reason) != (before.since, before.by, before.reason)
    if status.mode == "open":
        return True
    if status.mode == "paused" and (held_only or anew):
        return True
    # Their own moments are void: what made them wait was the target.
    held = _some(db, limit, "target = ? AND state = 'held'", target)
    db.execute(
        f"UPDATE delivery SET state = 'pending', reason = ?, due_at = ?, updated_at = ? WHERE {_CHOSEN}",  # noqa: S608
        (schedule.DUE_NOW, iso(now), iso(now), held.ids),
    )
    if held.count == limit:
        return False
    _save_status(db, TargetStatus(target, since=now, by=by))
    db.execute("UPDATE target_status SET refusals = 0 WHERE target = ?", (target,))
    reason = f"Opened by {by}; what was held is sent now."
    add_facts(db, salt, [AuditEntry(now, "target", "open", reason, target=target)])
    for number in range(lanes_in_use(db, lanes).get(target, 1)):
        db.make_due(deliver_lane(target, number), now)
    return True


def note_refusal(db: Db, target: str, ticket: Ticket | None) -> int:
    if ticket is not None:
        check_fence(db, ticket)
    row = row_of(
        db.execute(
            "INSERT INTO target_status (target, refusals) VALUES (?, 1) ON CONFLICT (target) DO UPDATE"
            " SET refusals = target_status.refusals + 1 RETURNING refusals",
            (target,),
        )
    )
    return int(row["refusals"])


def _save_status(db: Db, status: TargetStatus) -> None:
    """Save all but the refusals, which are counted whoever else changes the rest."""
    db.execute(
        "INSERT INTO target_status (target, mode, reason, since, by, probe_at)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (target) DO UPDATE SET mode = excluded.mode,"
        " reason = excluded.reason, since = excluded.since, by = excluded.by, probe_at = excluded.probe_at",
        (
            status.target,
            status.mode,
            status.reason,
            maybe_iso(status.since),
            status.by,
            maybe_iso(status.probe_at),
        ),
    )
