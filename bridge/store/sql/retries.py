"""Retries of many deliveries at once: their causes, the retry itself, how far it is, and calling it off.

A retry marks contacts to be decided again, as a replay does, and from there its deliveries go the usual way.
What a live retry has in hand is marked in ``delivery`` (``bulk_id``; ``bulk_open`` until the rules decided it); a
trigger takes the mark off and counts when a delivery comes to rest, so that only the live ones are counted anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from bridge import schedule
from bridge.lanes import process_lane
from bridge.model import AuditEntry, RecordKey, State, from_iso, iso
from bridge.store.codec import maybe_moment
from bridge.store.looking import Bulk, BulkState, FailureGroup
from bridge.store.protocol import Filter
from bridge.store.sql.conditions import Conditions
from bridge.store.sql.database import Db, Row
from bridge.store.sql.facts import add_facts
from bridge.store.sql.rows import LaneCounts, delivery_of, save_delivery

EXAMPLES = 3

# --- causes ----------------------------------------------------------------------------------------------

_GROUPS = """
SELECT d.target, d.state, d.error, d.status, d.reason, count(*) AS n, min(d.updated_at) AS oldest,
  max(d.updated_at) AS newest
FROM delivery d INDEXED BY delivery_failing WHERE d.state IN ('failed', 'ambiguous') AND {matching}
GROUP BY d.target, d.state, d.error, d.status, d.reason ORDER BY n DESC, newest DESC LIMIT ?
"""
_EXAMPLES = """
SELECT d.source, d.source_id FROM delivery d WHERE d.state IN ('failed', 'ambiguous') AND {matching}
  AND d.target = ? AND d.state = ? AND d.error IS ? AND d.status IS ? AND d.reason = ?
ORDER BY d.updated_at DESC LIMIT ?
"""


def failure_groups(db: Db, matching: Conditions, limit: int) -> list[FailureGroup]:
    rows = db.execute(_GROUPS.format(matching=matching.sql), [*matching.values, limit]).fetchall()
    return [
        FailureGroup(
            target=row["target"],
            state=State(row["state"]),
            error=row["error"],
            status=row["status"],
            reason=row["reason"],
            count=row["n"],
            oldest_at=from_iso(row["oldest"]),
            newest_at=from_iso(row["newest"]),
            examples=_examples(db, matching, row),
        )
        for row in rows
    ]


def _examples(db: Db, matching: Conditions, group: Row) -> list[RecordKey]:
    same = [group[name] for name in ("target", "state", "error", "status", "reason")]
    rows = db.execute(_EXAMPLES.format(matching=matching.sql), [*matching.values, *same, EXAMPLES])
    return [RecordKey(row["source"], row["source_id"]) for row in rows]


# --- starting --------------------------------------------------------------------------------------------


def matching_ids(db: Db, matching: Conditions) -> list[int]:
    """Return the row ids of the deliveries to be tried again that no retry has in hand."""
    rows = db.execute(_TO_TAKE.format(matching=matching.sql), matching.values).fetchall()
    return [row["id"] for row in rows]


def begin(
    db: Db, salt: bytes, narrowed: Filter, matching: Conditions, what: str, by: str, now: datetime
) -> tuple[int, list[int]]:
    """Remember a retry that has nothing in hand yet; return its id, and the deliveries that it is to take."""
    ids = matching_ids(db, matching)
    count = len(ids)
    [bulk_id] = db.take_ids("bulk", 1)
    db.execute("INSERT INTO bulk (id, at, by, what) VALUES (?, ?, ?, ?)", (bulk_id, iso(now), by, what))
    reason = (
        f"Asked for by {by}: {count} {'delivery is' if count == 1 else 'deliveries are'} tried again ({what})."
    )
    add_facts(
        db,
        salt,
        [AuditEntry(now, "replay", "bulk_requested", reason, source=narrowed.source, target=narrowed.target)],
    )
    return bulk_id, ids


def take_some(db: Db, bulk_id: int, ids: Sequence[int], now: datetime) -> None:
    """Take those deliveries of *ids* in hand that still need it; none if the retry was called off meanwhile."""
    chosen = db.array(ids)
    db.lock(_name(bulk_id))  # it is not called off meanwhile
    _lock_all(db, chosen)
    taken = db.execute(_TAKE, (bulk_id, chosen, bulk_id)).rowcount
    db.execute(_MARK, (iso(now), chosen, bulk_id))
    db.execute(_CLAIM, (bulk_id, chosen, bulk_id))
    db.execute("UPDATE bulk SET total = total + ? WHERE id = ?", (taken, bulk_id))
    for row in db.execute(_SOURCES_OF, (chosen,)).fetchall():
        db.make_due(process_lane(row["source"]), now)


def _name(bulk_id: int) -> str:
    return f"bulk {bulk_id}"


def _lock_all(db: Db, chosen: object) -> None:
    """Have nobody else change the deliveries of *chosen* ids, nor their contacts."""
    db.lock_rows("contact", _CONTACTS_OF, (chosen,))
    db.lock_rows("delivery", "id IN (SELECT i.value FROM each_id(?) i)", (chosen,))


_CONTACTS_OF = (
    "id IN (SELECT c.id FROM each_id(?) i JOIN delivery d ON d.id = i.value"
    " JOIN contact c ON c.source = d.source AND c.source_id = d.source_id)"
)
_SOURCES_OF = "SELECT DISTINCT d.source FROM delivery d WHERE d.id IN (SELECT i.value FROM each_id(?) i)"


_TO_TAKE = """
SELECT d.id FROM delivery d WHERE d.state IN ('failed', 'ambiguous') AND d.bulk_id IS NULL AND {matching}
ORDER BY d.id
"""
# CROSS JOIN keeps SQLite to this order: row by row of what is given.
_TAKE = """
INSERT INTO bulk_item (delivery_id, bulk_id, state, reason, error, status, attempts, revision, marked)
SELECT d.id, ?, d.state, d.reason, d.error, d.status, d.attempts, d.revision, c.asked = 0
FROM each_id(?) i CROSS JOIN delivery d ON d.id = i.value
CROSS JOIN contact c ON c.source = d.source AND c.source_id = d.source_id
WHERE d.state IN ('failed', 'ambiguous') AND d.bulk_id IS NULL
  AND NOT (SELECT b.cancelled FROM bulk b WHERE b.id = ?)
"""
_MARK = """
UPDATE contact SET replay_at = coalesce(replay_at, ?), asked = 2 WHERE asked = 0 AND id IN (
  SELECT c.id FROM each_id(?) i CROSS JOIN bulk_item b ON b.delivery_id = i.value AND +b.bulk_id = ?
  CROSS JOIN delivery d ON d.id = b.delivery_id
  CROSS JOIN contact c ON c.source = d.source AND c.source_id = d.source_id)
"""
_CLAIM = """
UPDATE delivery SET bulk_id = ?, bulk_open = TRUE WHERE id IN (
  SELECT b.delivery_id FROM each_id(?) i CROSS JOIN bulk_item b ON b.delivery_id = i.value AND +b.bulk_id = ?)
"""


def meant(db: Db, target: str, key: RecordKey) -> bool:
    """Say whether the delivery is among those that somebody asked to be tried again.

    A replay means all deliveries of a contact; a retry only those that it has in hand.
    """
    row = db.execute(
        "SELECT c.asked = 1 OR d.bulk_open AS meant FROM contact c LEFT JOIN delivery d"
        " ON d.target = ? AND d.source = c.source AND d.source_id = c.source_id"
        " WHERE c.source = ? AND c.source_id = ? AND c.asked > 0",
        (target, key.source, key.source_id),
    ).fetchone()
    return row is not None and bool(row["meant"])


def decided(db: Db, key: RecordKey) -> None:
    """The rules decided *key* again: what a retry has in hand of it goes its way."""
    db.execute(
        "UPDATE delivery SET bulk_open = FALSE WHERE source = ? AND source_id = ? AND bulk_open",
        (key.source, key.source_id),
    )


# --- calling it off --------------------------------------------------------------------------------------


def call_off_some(
    db: Db, salt: bytes, bulk_id: int, lanes: LaneCounts, by: str, now: datetime, *, limit: int, before: int
) -> tuple[int, bool]:
    """Let go of up to *limit* deliveries after *before* others; end the retry with the last.

    Return how many, and whether that was all.
    """
    db.lock(_name(bulk_id))
    some = put_back_some(db, bulk_id, lanes, now, limit)
    if some and db.execute(_IN_HAND, (bulk_id, 1)).fetchone() is not None:
        return some, False
    end(db, salt, bulk_id, before + some, by, now)
    return some, True


def put_back_some(db: Db, bulk_id: int, lanes: LaneCounts, now: datetime, limit: int) -> int:
    """Let go of up to *limit* deliveries that are not on their way, as they were before; return how many."""
    chosen = db.array(row["id"] for row in db.execute(_IN_HAND, (bulk_id, limit)).fetchall())
    _lock_all(db, chosen)
    rows = db.execute(_DECIDED, (chosen, bulk_id)).fetchall()
    for row in rows:
        current = delivery_of(row)
        before = replace(
            current,
            state=State(row["state_before"]),
            reason=row["reason_before"],
            error=row["error_before"],
            status=row["status_before"],
            attempts=row["attempts_before"],
            revision=row["revision_before"],
        )
        current = schedule.called_off(current, before, now)
        _let_go(db, bulk_id, current.state.value, [row["id"]])
        save_delivery(db, current, lanes)
    undecided = db.execute(_UNDECIDED, (chosen, bulk_id)).fetchall()
    # Nobody asks for these any more, unless another retry does for another target of theirs. They stay to be
    # decided: the rules may have changed meanwhile.
    db.execute(_UNMARK, (db.array(row["id"] for row in undecided if row["marked"]), bulk_id))
    for state in sorted({row["state"] for row in undecided}):
        _let_go(db, bulk_id, state, [row["id"] for row in undecided if row["state"] == state])
    return len(rows) + len(undecided)


_IN_HAND = "SELECT id FROM delivery WHERE bulk_id = ? AND state != 'sending' ORDER BY id LIMIT ?"
_DECIDED = """
SELECT d.*, b.state AS state_before, b.reason AS reason_before, b.error AS error_before,
  b.status AS status_before, b.attempts AS attempts_before, b.revision AS revision_before
FROM each_id(?) i CROSS JOIN delivery d ON d.id = i.value CROSS JOIN bulk_item b ON b.delivery_id = d.id
WHERE d.bulk_id = ? AND d.bulk_open = FALSE AND d.state != 'sending'
"""
_UNDECIDED = """
SELECT d.id, d.state, b.marked
FROM each_id(?) i CROSS JOIN delivery d ON d.id = i.value CROSS JOIN bulk_item b ON b.delivery_id = d.id
WHERE d.bulk_id = ? AND d.bulk_open = TRUE AND d.state != 'sending'
"""
_UNMARK = """
UPDATE contact SET asked = 0 WHERE asked = 2 AND id IN (
  SELECT c.id FROM each_id(?) i CROSS JOIN delivery d ON d.id = i.value
  CROSS JOIN contact c ON c.source = d.source AND c.source_id = d.source_id)
AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.source = contact.source AND d.source_id = contact.source_id
  AND d.bulk_open AND d.bulk_id != ?)
"""


def _let_go(db: Db, bulk_id: int, state: str, ids: Sequence[int]) -> None:
    """A retry no longer has the deliveries of *ids* in hand, which are in *state*."""
    chosen = db.array(ids)
    db.execute(
        "UPDATE delivery SET bulk_id = NULL, bulk_open = FALSE WHERE id IN (SELECT i.value FROM each_id(?) i)",
        (chosen,),
    )
    db.execute("DELETE FROM bulk_item WHERE delivery_id IN (SELECT i.value FROM each_id(?) i)", (chosen,))
    db.add("bulk_tally", {(bulk_id, state): (len(ids),)})


def end(db: Db, salt: bytes, bulk_id: int, put_back: int, by: str, now: datetime) -> None:
    """Remember that a retry was called off, after *put_back* deliveries were let go of."""
    row = db.execute(
        "UPDATE bulk SET cancelled = TRUE, ended_at = ?, ended_by = ? WHERE id = ? AND NOT cancelled"
        " RETURNING what",
        (iso(now), by, bulk_id),
    ).fetchone()
    if row is None:
        return  # somebody else called it off at the same time, and was quicker
    reason = (
        f"Cancelled by {by}: {put_back} {'delivery is' if put_back == 1 else 'deliveries are'} not tried again "
        f"({row['what']}); what was being sent already ends as it does."
    )
    add_facts(db, salt, [AuditEntry(now, "replay", "bulk_cancelled", reason)])


# --- looking ---------------------------------------------------------------------------------------------


def bulk(db: Db, bulk_id: int) -> Bulk | None:
    row = db.execute("SELECT * FROM bulk WHERE id = ?", (bulk_id,)).fetchone()
    return None if row is None else _bulk_of(db, row)


def bulks(db: Db, limit: int) -> Sequence[Bulk]:
    return [_bulk_of(db, row) for row in db.execute("SELECT * FROM bulk ORDER BY id DESC LIMIT ?", (limit,))]


def _bulk_of(db: Db, row: Row) -> Bulk:
    states: dict[str, int] = {}
    undecided = 0
    live = db.execute(
        "SELECT bulk_open, state, count(*) AS n FROM delivery WHERE bulk_id = ? GROUP BY bulk_open, state",
        (row["id"],),
    ).fetchall()
    for group in live:
        if group["bulk_open"]:
            undecided += group["n"]
        else:
            states[group["state"]] = group["n"]
    for group in db.execute("SELECT state, n FROM bulk_tally WHERE bulk_id = ?", (row["id"],)):
        states[group["state"]] = states.get(group["state"], 0) + group["n"]
    state = BulkState.CANCELLED if row["cancelled"] else BulkState.RUNNING if live else BulkState.DONE
    return Bulk(
        id=row["id"],
        at=from_iso(row["at"]),
        by=row["by"],
        what=row["what"],
        state=state,
        total=row["total"],
        states=states,
        undecided=undecided,
        ended_at=None if state is BulkState.RUNNING else maybe_moment(row["ended_at"] or row["at"]),
        ended_by=row["ended_by"],
    )
