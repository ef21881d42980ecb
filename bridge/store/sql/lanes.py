"""Who holds which lane, which contacts fall into it, and from when it has something to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from bridge import schedule
from bridge.errors import LostLane
from bridge.lanes import deliver_lane, process_lane, slot_of
from bridge.model import Delivery, RecordKey, State, from_iso, iso
from bridge.store.protocol import TargetStatus, Ticket
from bridge.store.sql.database import Db
from bridge.store.sql.rows import LaneCounts, delivery_of, save_delivery, target_status

Due = dict[str, datetime]  # lane -> from when it has something to do


def lane_number(lanes: LaneCounts, target: str, key: RecordKey) -> int:
    return slot_of(key) % lanes.get(target, 1)


def lanes_in_use(db: Db, lanes: LaneCounts) -> LaneCounts:
    """Return how many lanes each target of *lanes* has; another process may have dealt them out otherwise."""
    dealt = {row["target"]: row["lanes"] for row in db.execute("SELECT target, lanes FROM lane_count").fetchall()}
    return {target: dealt.get(target, count) for target, count in lanes.items()}


def read_lane(lane: str) -> tuple[str, int] | None:
    """Return the target and number of a lane that delivers; None for one that processes."""
    kind, _, rest = lane.partition(":")
    target, _, number = rest.rpartition(":")
    return (target, int(number)) if kind == "deliver" else None


def acquire(db: Db, lane: str, owner: str, lanes: LaneCounts, now: datetime) -> Ticket:
    taken = db.execute(
        "INSERT INTO lane (name, owner, fence, taken_at) VALUES (?, ?, 1, ?) ON CONFLICT (name) DO UPDATE"
        " SET owner = excluded.owner, fence = lane.fence + 1, taken_at = excluded.taken_at RETURNING fence",
        (lane, owner, iso(now)),
    ).fetchone()
    if (delivers := read_lane(lane)) is not None:
        _take_up(db, *delivers, lanes, now)
    return Ticket(lane, 0 if taken is None else taken["fence"])


def deal_out(db: Db, target: str, count: int) -> None:
    """Give every contact its lane anew when the number of lanes is no longer what it was.

    All of the target's lanes are taken from whoever has them: what is being sent may be in another lane then.
    """
    if _dealt(db, target) == count:
        return
    lanes = (deliver_lane(target, 0).removesuffix("0"),)
    db.execute("SELECT name FROM lane WHERE strpos(name, ?) = 1 ORDER BY name FOR UPDATE", lanes).fetchall()
    open_or_close(db, target)
    if _dealt(db, target) == count:
        return  # another process of the same configuration was quicker
    db.execute("UPDATE lane SET fence = fence + 1 WHERE strpos(name, ?) = 1", lanes)
    db.lock_rows("delivery", "target = ?", (target,))
    db.execute("UPDATE delivery SET lane = slot % ? WHERE target = ?", (count, target))
    db.execute(
        "INSERT INTO lane_count (target, lanes) VALUES (?, ?)"
        " ON CONFLICT (target) DO UPDATE SET lanes = excluded.lanes",
        (target, count),
    )


def _dealt(db: Db, target: str) -> int | None:
    row = db.execute("SELECT lanes FROM lane_count WHERE target = ?", (target,)).fetchone()
    return None if row is None else int(row["lanes"])


def _take_up(db: Db, target: str, number: int, lanes: LaneCounts, now: datetime) -> None:
    """Make due again what the previous runner was sending when it ended."""
    if db.execute(f"{_SENDING} LIMIT 1", (target, number)).fetchone() is None:
        return  # nor will anything be: whoever had the lane can claim no more
    keep_open(db, target)
    status = target_status(db, target)
    for row in db.execute(f"{_SENDING} ORDER BY id FOR UPDATE", (target, number)).fetchall():
        save_delivery(db, fitted(schedule.interrupted(delivery_of(row), now), status, now), lanes)


_SENDING = "SELECT * FROM delivery WHERE target = ? AND lane = ? AND state = 'sending'"


def check_fence(db: Db, ticket: Ticket) -> None:
    """Raise `LostLane` unless *ticket* is the newest, which it stays until the transaction ends."""
    row = db.execute("SELECT owner, fence FROM lane WHERE name = ? FOR UPDATE", (ticket.lane,)).fetchone()
    if row is None or row["fence"] != ticket.fence:
        raise LostLane(
            f"Lane {ticket.lane} was taken over by {row['owner'] if row else 'nobody'}; nothing was saved."
        )


def keep_open(db: Db, target: str) -> None:
    """Have *target* stay as open or closed as it is until the transaction ends."""
    db.lock(_door(target), shared=True)


def open_or_close(db: Db, target: str) -> None:
    """Wait until nobody builds on whether *target* is open, and have nobody do so until the transaction ends."""
    db.lock(_door(target))


def _door(target: str) -> str:
    return f"target {target}"


def fitted(delivery: Delivery, status: TargetStatus, now: datetime) -> Delivery:
    """Return *delivery* in a state that fits whether the target is open, which may have changed a moment ago."""
    closed = status.mode != "open"
    if closed and delivery.state in {State.PENDING, State.RETRYING}:
        return replace(delivery, state=State.HELD, reason=schedule.held_reason(status))
    if not closed and delivery.state is State.HELD:
        return replace(delivery, state=State.PENDING, reason=schedule.DUE_NOW, due_at=now)
    return delivery


def due_lanes(db: Db, lanes: LaneCounts, now: datetime) -> Due:
    due: Due = {}
    for row in db.execute("SELECT source FROM source_state").fetchall():
        source = row["source"]
        found = [db.execute(sql, (source,)).fetchone() for sql in _SOURCE_DUE]
        moments = [row["due"] for row in found if row is not None and row["due"]]
        if moments:
            due[process_lane(source)] = max(from_iso(min(moments)), now)
    in_use = lanes_in_use(db, lanes)
    for target in lanes:
        if target_status(db, target).mode != "open":
            continue
        for number in range(in_use[target]):
            moment = next_due(db, target, number)
            if moment is not None:
                due[deliver_lane(target, number)] = max(moment, now)
    return due


_SOURCE_DUE = (
    # The oldest by id, not the least moment: the index finds it without looking at the others.
    "SELECT (SELECT received_at FROM inbound WHERE source = ? AND outcome = 'accepted' ORDER BY id LIMIT 1)"
    " AS due",
    "SELECT min(replay_at) AS due FROM contact WHERE source = ? AND replay_at IS NOT NULL",
    "SELECT min(read_due) AS due FROM contact WHERE source = ? AND read_due IS NOT NULL",
    "SELECT min(due_at) AS due FROM catch_up WHERE source = ? AND state = 'running' AND due_at IS NOT NULL",
)


def next_due(db: Db, target: str, number: int) -> datetime | None:
    found = [db.execute(_SOONEST, (target, number, low)).fetchone() for low in (False, True)]
    moments = [row["due_at"] for row in found if row is not None and row["due_at"] is not None]
    return from_iso(min(moments)) if moments else None


_SOONEST = (
    "SELECT min(due_at) AS due_at FROM delivery"
    " WHERE target = ? AND lane = ? AND low = ? AND state IN ('pending', 'retrying')"
)
