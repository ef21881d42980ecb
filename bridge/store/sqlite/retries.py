"""Retries of many deliveries at once: their causes, the retry itself, how far it is, and calling it off.

A retry marks contacts to be decided again, as a replay does, and from there its deliveries go the usual way.
What a live retry has in hand is marked in ``delivery`` (``bulk_id``; ``bulk_open`` until the rules decided it); a
trigger takes the mark off and counts when a delivery comes to rest, so that only the live ones are counted anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlite_utils import Database

from bridge import schedule
from bridge.model import AuditEntry, RecordKey, State, from_iso, iso
from bridge.store.codec import maybe_moment, to_json
from bridge.store.looking import Bulk, BulkState, FailureGroup
from bridge.store.protocol import Filter
from bridge.store.sqlite.conditions import Conditions
from bridge.store.sqlite.rows import LaneCounts, add_facts, delivery_of, save_delivery

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


def failure_groups(db: Database, matching: Conditions, limit: int) -> list[FailureGroup]:
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


def _examples(db: Database, matching: Conditions, group: sqlite3.Row) -> list[RecordKey]:
    same = [group[name] for name in ("target", "state", "error", "status", "reason")]
    rows = db.execute(_EXAMPLES.format(matching=matching.sql), [*matching.values, *same, EXAMPLES])
    return [RecordKey(row["source"], row["source_id"]) for row in rows]


# --- starting --------------------------------------------------------------------------------------------


def matching_ids(db: Database, matching: Conditions) -> list[int]:
    """Return the row ids of the deliveries to be tried again that no retry has in hand."""
    rows = db.execute(_TO_TAKE.format(matching=matching.sql), matching.values).fetchall()
    return [row["id"] for row in rows]


def begin(db: Database, salt: bytes, narrowed: Filter, what: str, count: int, by: str, now: datetime) -> int:
    """Remember a retry that has nothing in hand yet, and say that *count* deliveries were asked for."""
    started = db.execute("INSERT INTO bulk (at, by, what) VALUES (?, ?, ?)", (iso(now), by, what))
    reason = (
        f"Asked for by {by}: {count} {'delivery is' if count == 1 else 'deliveries are'} tried again ({what})."
    )
    add_facts(
        db,
        salt,
        [AuditEntry(now, "replay", "bulk_requested", reason, source=narrowed.source, target=narrowed.target)],
    )
    return int(started.lastrowid or 0)


def take_some(db: Database, bulk_id: int, ids: Sequence[int], now: datetime) -> None:
    """Take those deliveries of *ids* in hand that still need it; none if the retry was called off meanwhile."""
    chosen = to_json(list(ids))
    taken = db.execute(_TAKE, (bulk_id, chosen, bulk_id)).rowcount
    db.execute(_MARK, (iso(now), chosen, bulk_id))
    db.execute(_CLAIM, (bulk_id, chosen, bulk_id))
    db.execute("UPDATE bulk SET total = total + ? WHERE id = ?", (taken, bulk_id))


_TO_TAKE = """
SELECT d.id FROM delivery d WHERE d.state IN ('failed', 'ambiguous') AND d.bulk_id IS NULL AND {matching}
ORDER BY d.id
"""
# CROSS JOIN keeps SQLite to this order: row by row of what is given.
_TAKE = """
INSERT INTO bulk_item (delivery_id, bulk_id, state, reason, error, status, attempts, revision, marked)
SELECT d.id, ?, d.state, d.reason, d.error, d.status, d.attempts, d.revision, NOT c.asked
FROM json_each(?) i CROSS JOIN delivery d ON d.id = i.value
CROSS JOIN contact c ON c.source = d.source AND c.source_id = d.source_id
WHERE d.state IN ('failed', 'ambiguous') AND d.bulk_id IS NULL
  AND NOT (SELECT b.cancelled FROM bulk b WHERE b.id = ?)
"""
_MARK = """
UPDATE contact SET replay_at = coalesce(replay_at, ?), asked = 2 WHERE NOT asked AND id IN (
  SELECT c.id FROM json_each(?) i CROSS JOIN bulk_item b ON b.delivery_id = i.value AND +b.bulk_id = ?
  CROSS JOIN delivery d ON d.id = b.delivery_id
  CROSS JOIN contact c ON c.source = d.source AND c.source_id = d.source_id)
"""
_CLAIM = """
UPDATE delivery SET bulk_id = ?, bulk_open = 1 WHERE id IN (
  SELECT b.delivery_id FROM json_each(?) i CROSS JOIN bulk_item b ON b.delivery_id = i.value AND +b.bulk_id = ?)
"""


def meant(db: Database, target: str, key: RecordKey) -> bool:
    """Say whether the delivery is among those that somebody asked to be tried again.

    A replay means all deliveries of a contact; a retry only those that it has in hand.
    """
    row = db.execute(
        "SELECT c.asked = 1 OR d.bulk_open FROM contact c LEFT JOIN delivery d"
        " ON d.target = ? AND d.source = c.source AND d.source_id = c.source_id"
        " WHERE c.source = ? AND c.source_id = ? AND c.asked",
        (target, key.source, key.source_id),
    ).fetchone()
    return row is not None and bool(row[0])


def decided(db: Database, key: RecordKey) -> None:
    """The rules decided *key* again: what a retry has in hand of it goes its way."""
    db.execute(
        "UPDATE delivery SET bulk_open = 0 WHERE source = ? AND source_id = ? AND bulk_open",
        (key.source, key.source_id),
    )


# --- calling it off --------------------------------------------------------------------------------------


def put_back_some(db: Database, bulk_id: int, lanes: LaneCounts, now: datetime, limit: int) -> int:
    """Let go of up to *limit* deliveries that are not on their way, as they were before; return how many."""
    rows = db.execute(_DECIDED, (bulk_id, limit)).fetchall()
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
    undecided = db.execute(_UNDECIDED, (bulk_id, limit - len(rows))).fetchall()
    # Nobody asks for these any more, unless another retry does for another target of theirs. They stay to be
    # decided: the rules may have changed meanwhile.
    db.execute(_UNMARK, (to_json([row["id"] for row in undecided if row["marked"]]), bulk_id))
    for state in sorted({row["state"] for row in undecided}):
        _let_go(db, bulk_id, state, [row["id"] for row in undecided if row["state"] == state])
    return len(rows) + len(undecided)


_DECIDED = """
SELECT d.*, b.state AS state_before, b.reason AS reason_before, b.error AS error_before,
  b.status AS status_before, b.attempts AS attempts_before, b.revision AS revision_before
FROM delivery d CROSS JOIN bulk_item b ON b.delivery_id = d.id
WHERE d.bulk_id = ? AND d.bulk_open = 0 AND d.state != 'sending' LIMIT ?
"""
_UNDECIDED = """
SELECT d.id, d.state, b.marked FROM delivery d CROSS JOIN bulk_item b ON b.delivery_id = d.id
WHERE d.bulk_id = ? AND d.bulk_open = 1 AND d.state != 'sending' LIMIT ?
"""
_UNMARK = """
UPDATE contact SET asked = 0 WHERE asked = 2 AND id IN (
  SELECT c.id FROM json_each(?) i CROSS JOIN delivery d ON d.id = i.value
  CROSS JOIN contact c ON c.source = d.source AND c.source_id = d.source_id)
AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.source = contact.source AND d.source_id = contact.source_id
  AND d.bulk_open AND d.bulk_id != ?)
"""


def _let_go(db: Database, bulk_id: int, state: str, ids: Sequence[int]) -> None:
    """A retry no longer has the deliveries of *ids* in hand, which are in *state*."""
    chosen = to_json(list(ids))
    db.execute(
        "UPDATE delivery SET bulk_id = NULL, bulk_open = 0 WHERE id IN (SELECT value FROM json_each(?))", (chosen,)
    )
    db.execute("DELETE FROM bulk_item WHERE delivery_id IN (SELECT value FROM json_each(?))", (chosen,))
    db.execute(
        "INSERT INTO bulk_tally VALUES (?, ?, ?) ON CONFLICT (bulk_id, state) DO UPDATE SET n = n + excluded.n",
        (bulk_id, state, len(ids)),
    )


def end(db: Database, salt: bytes, bulk_id: int, put_back: int, by: str, now: datetime) -> None:
    """Remember that a retry was called off, after *put_back* deliveries were let go of."""
    row = db.execute("SELECT what FROM bulk WHERE id = ?", (bulk_id,)).fetchone()
    db.execute(
        "UPDATE bulk SET cancelled = 1, ended_at = ?, ended_by = ? WHERE id = ?",
        (iso(now), by, bulk_id),
    )
    reason = (
        f"Cancelled by {by}: {put_back} {'delivery is' if put_back == 1 else 'deliveries are'} not tried again "
        f"({row['what']}); what was being sent already ends as it does."
    )
    add_facts(db, salt, [AuditEntry(now, "replay", "bulk_cancelled", reason)])


# --- looking ---------------------------------------------------------------------------------------------


def bulk(db: Database, bulk_id: int) -> Bulk | None:
    row = db.execute("SELECT * FROM bulk WHERE id = ?", (bulk_id,)).fetchone()
    return None if row is None else _bulk_of(db, row)


def bulks(db: Database, limit: int) -> Sequence[Bulk]:
    return [_bulk_of(db, row) for row in db.execute("SELECT * FROM bulk ORDER BY id DESC LIMIT ?", (limit,))]


def _bulk_of(db: Database, row: sqlite3.Row) -> Bulk:
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
