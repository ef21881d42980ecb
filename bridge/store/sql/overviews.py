"""What pages show at a glance: groups, bars and neighbours of what lists show one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from bridge.model import AuditEntry, RecordKey, from_iso
from bridge.store.codec import maybe_moment
from bridge.store.looking import Facets, Histogram, Hit, Queue
from bridge.store.protocol import Filter
from bridge.store.sql import listing, reading, totals
from bridge.store.sql.database import Db, row_of
from bridge.store.sql.facts import AUDIT, audit_of
from bridge.store.sql.lanes import lanes_in_use, next_due
from bridge.store.sql.listing import Place
from bridge.store.sql.rows import LaneCounts, target_status

NEWEST = 5000  # entries that are counted one by one where no totals tell
NEWEST_FIELDS = 1000  # entries in which changed fields are counted
FIRST_DUE = 1000  # of a lane's queue
MOST_HITS = 10
GREATEST_ID = 2**63 - 1

# --- the audit log ---------------------------------------------------------------------------------------


def facets(db: Db, narrowed: Filter) -> Facets:
    if totals.told_by_totals(narrowed):
        counts, complete = totals.facets(db, narrowed), True
        places, _ = _newest(db, narrowed, NEWEST_FIELDS)
    else:
        places, complete = _newest(db, narrowed, NEWEST)
        counts = _counted(db, places)
    counts["field"] = _fields(db, places[:NEWEST_FIELDS])
    return totals.as_facets(counts, complete=complete)


def histogram(db: Db, narrowed: Filter, since: datetime, until: datetime, bars: int) -> Histogram:
    if totals.told_by_totals(narrowed):
        return totals.histogram(db, narrowed, since, until, bars)
    places, complete = _newest(db, narrowed, NEWEST)
    step_s = totals.step_of(since, until, bars)
    counts: dict[int, Counter[str]] = {start: Counter() for start in totals.starts_of(since, until, step_s)}
    for row in db.execute(
        "SELECT at, outcome FROM audit WHERE id IN (SELECT i.value FROM each_id(?) i)", [_ids(db, places)]
    ):
        bar = counts.get(totals.start_of(from_iso(row["at"]), step_s))
        if bar is not None:
            bar[row["outcome"]] += 1
    return totals.as_histogram(step_s, counts, complete=complete)


def _newest(db: Db, narrowed: Filter, most: int) -> tuple[Sequence[Place], bool]:
    """Return the newest entries that match, up to *most*, and whether those are all."""
    search = reading.audit_search(db, narrowed, None, most)
    found = listing.look(db, listing.AUDIT, search, None, most)
    return found.places[:most], len(found.places) <= most and found.stopped is None


def _counted(db: Db, places: Sequence[Place]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {name: Counter() for name in totals.DIMENSIONS}
    for row in db.execute(_COUNTED, [_ids(db, places)]):
        for name in totals.DIMENSIONS:
            if row[name] is not None:
                counts[name][str(row[name])] += row["n"]
    return counts


_COUNTED = """
SELECT kind, outcome, source, target, error, status, count(*) AS n FROM audit
WHERE id IN (SELECT i.value FROM each_id(?) i) GROUP BY kind, outcome, source, target, error, status
"""


def _fields(db: Db, places: Sequence[Place]) -> Counter[str]:
    rows = db.execute(
        "SELECT fields FROM audit WHERE id IN (SELECT i.value FROM each_id(?) i)", [_ids(db, places)]
    )
    return Counter(name for row in rows for name in json.loads(row["fields"]))


def _ids(db: Db, places: Iterable[Place]) -> Any:
    return db.array(row_id for _, row_id in places)


def audit_entry(db: Db, entry_id: int) -> AuditEntry | None:
    row = db.execute(f"{AUDIT} WHERE a.id = ?", (entry_id,)).fetchone()
    return None if row is None else audit_of(row)


# --- targets ---------------------------------------------------------------------------------------------


def queues(db: Db, lanes: LaneCounts, now: datetime) -> list[Queue]:
    return [_queue(db, target, count, now) for target, count in sorted(lanes_in_use(db, lanes).items())]


def _queue(db: Db, target: str, lanes: int, now: datetime) -> Queue:
    pushes = db.execute("SELECT * FROM target_push WHERE target = ?", (target,)).fetchone()
    due = [moment for number in range(lanes) if (moment := next_due(db, target, number)) is not None]
    tokens, closed_until = _quota(db, target, now)
    return Queue(
        target=target,
        oldest_wanted_at=_oldest_wanted(db, target, lanes),
        next_due_at=min(due, default=None) if target_status(db, target).mode == "open" else None,
        tokens=tokens,
        closed_until=closed_until,
        last_success_at=maybe_moment(pushes["last_success_at"]) if pushes else None,
        last_error_at=maybe_moment(pushes["last_error_at"]) if pushes else None,
        last_error=pushes["last_error"] if pushes else "",
        last_error_reason=pushes["last_error_reason"] if pushes else "",
    )


def _oldest_wanted(db: Db, target: str, lanes: int) -> datetime | None:
    found = [row_of(db.execute(_OLDEST_WAITING, (target,)))]
    for number in range(lanes):
        found.append(row_of(db.execute(_OLDEST_SENDING, (target, number))))
        found += [row_of(db.execute(_OLDEST_PENDING, (target, number, low, FIRST_DUE))) for low in (False, True)]
    return maybe_moment(min((row["wanted_at"] for row in found if row["wanted_at"]), default=None))


_OLDEST_WAITING = (
    "SELECT min(wanted_at) AS wanted_at FROM delivery WHERE target = ? AND wanted_at IS NOT NULL"
    " AND state IN ('retrying', 'held')"
)
_OLDEST_SENDING = (
    "SELECT min(wanted_at) AS wanted_at FROM delivery WHERE target = ? AND lane = ? AND state = 'sending'"
)
# What was wanted first is due first, or soon after: it is enough to look at the first of the queue.
_OLDEST_PENDING = (
    "SELECT min(wanted_at) AS wanted_at FROM (SELECT wanted_at FROM delivery"
    " WHERE target = ? AND lane = ? AND low = ? AND state IN ('pending', 'retrying')"
    " ORDER BY due_at LIMIT ?) queued"
)


def _quota(db: Db, target: str, now: datetime) -> tuple[float | None, datetime | None]:
    row = db.execute("SELECT * FROM quota WHERE target = ?", (target,)).fetchone()
    if row is None:
        return None, None
    closed_until = maybe_moment(row["closed_until"])
    if closed_until is not None and closed_until <= now:
        closed_until = None
    if row["tokens"] is None or row["rate_per_s"] is None:
        return None, closed_until
    elapsed_s = max(0.0, (now - from_iso(row["filled_at"])).total_seconds())
    return min(float(row["burst"]), row["tokens"] + elapsed_s * row["rate_per_s"]), closed_until


# --- finding ---------------------------------------------------------------------------------------------


def inbound_neighbours(db: Db, narrowed: Filter, inbound_id: int) -> tuple[int | None, int | None]:
    row = db.execute("SELECT received_at FROM inbound WHERE id = ?", (inbound_id,)).fetchone()
    if row is None:
        return None, None
    here = (row["received_at"], inbound_id)
    search = reading.inbound_search(db, narrowed)
    newer = listing.look(db, listing.INBOUND, search, here, 1, ascending=True).places
    older = listing.look(db, listing.INBOUND, search, here, 1).places
    return newer[0][1] if newer else None, older[0][1] if older else None


def lookup(db: Db, text: str) -> list[Hit]:
    found: dict[Hit, None] = {}
    for statement in (_BY_SOURCE_ID, _BY_TARGET_ID):
        for row in db.execute(statement, (text.strip(), MOST_HITS)):
            found[Hit("contact", key=RecordKey(row["source"], row["source_id"]))] = None
    digits = text.strip().removeprefix("#")
    if digits.isascii() and digits.isdigit() and int(digits) <= GREATEST_ID:
        row = db.execute("SELECT id FROM inbound WHERE id = ?", (int(digits),)).fetchone()
        if row is not None:
            found[Hit("webhook", inbound_id=row["id"])] = None
    return list(found)[:MOST_HITS]


_BY_SOURCE_ID = (
    "SELECT source, source_id FROM contact WHERE source IN (SELECT s.source FROM source_state s)"
    " AND source_id = ? ORDER BY source LIMIT ?"
)
_BY_TARGET_ID = (
    "SELECT DISTINCT source, source_id FROM delivery WHERE target_id = ? AND target_id IS NOT NULL"
    " ORDER BY source, source_id LIMIT ?"
)
