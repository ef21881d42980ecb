"""What other rules than before ask of the rows that are there."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime

from bridge.lanes import process_lane
from bridge.model import AuditEntry, State, iso
from bridge.store.codec import to_json
from bridge.store.protocol import Pair, Rules, Ruling
from bridge.store.sql.database import Db, row_of
from bridge.store.sql.facts import add_facts

CHANGED = "The rules changed; it is decided again by the new ones."

_QUEUED = (State.PENDING, State.RETRYING, State.HELD)
# Without its lanes nobody takes up what a target that is gone was being sent, and nobody can help what went wrong.
_UNFINISHED = (*_QUEUED, State.SENDING, State.FAILED, State.AMBIGUOUS, State.WAITING)


def gone_reason(pair: Pair) -> str:
    source, target = pair
    return f"No route leads from {source} to {target} any more; nothing is sent."


def rules(db: Db) -> Rules | None:
    routes = {
        (row["source"], row["target"]): row["digest"] for row in db.execute("SELECT * FROM route_rules").fetchall()
    }
    reads = {
        row["source"]: frozenset(json.loads(row["fields"]))
        for row in db.execute("SELECT * FROM source_reads").fetchall()
    }
    return Rules(routes, reads) if routes or reads else None


def void(db: Db, asked: Ruling) -> None:
    """Void what is remembered of the routes concerned: whoever takes a lane from now on sees it."""
    for pair in sorted([*asked.changed, *asked.gone]):
        _remember_route(db, pair, "")


def begin(db: Db, asked: Ruling) -> int:
    """Stop who decides by the rules of before; return the last row id to be looked at, 0 for none.

    In a transaction after `void`: who took a lane unseen by this one did not look at the rules yet.
    """
    if not any((asked.changed, asked.gone, asked.unread)):
        return 0
    _take_lanes(db)
    row = row_of(
        db.execute(
            "SELECT greatest(coalesce(c.id, 0), coalesce(d.id, 0)) AS last"
            " FROM (SELECT max(id) AS id FROM contact) c, (SELECT max(id) AS id FROM delivery) d"
        )
    )
    return int(row["last"])


def apply(db: Db, asked: Ruling, ids: range, now: datetime) -> None:
    """Do what *asked* asks for with the contacts and deliveries whose row ids are in *ids*."""
    if asked.unread:
        _take_lanes(db)  # who read a contact before must not save it again as one that was read
    sources = sorted({source for source, _ in (*asked.changed, *asked.gone)} | set(asked.unread))
    for table in ("contact", "delivery"):
        db.lock_rows(table, _OF_SOURCES, (ids.start, ids.stop, db.array(sources)))
    for source in sorted({source for source, _ in asked.changed}):
        db.execute(_DECIDE_AGAIN, (iso(now), ids.start, ids.stop, source))
    for source in asked.unread:
        _unread(db, source, ids, now)
    for pair in asked.changed:
        _let_go(db, pair, _QUEUED, CHANGED, ids, now)
    for pair in asked.gone:
        _let_go(db, pair, _UNFINISHED, gone_reason(pair), ids, now)
        db.execute(_END_RETRIES, (ids.start, ids.stop, *pair))
        db.execute(_FORGET_ERASED, (ids.start, ids.stop, *pair))


def end(db: Db, salt: bytes, asked: Ruling, now: datetime) -> None:
    """Remember the rules: all that they ask for is done."""
    for pair in asked.gone:
        db.execute("DELETE FROM route_rules WHERE source = ? AND target = ?", pair)
    for pair, digest in asked.rules.routes.items():
        _remember_route(db, pair, digest)
    for source, fields in asked.rules.reads.items():
        db.execute(
            "INSERT INTO source_reads (source, fields) VALUES (?, ?)"
            " ON CONFLICT (source) DO UPDATE SET fields = excluded.fields",
            (source, to_json(sorted(fields))),
        )
    for source in sorted({source for source, _ in asked.changed} | set(asked.unread)):
        db.make_due(process_lane(source), now)
    told = [(pair, "The rules changed: all contacts are decided again by the new ones.") for pair in asked.changed]
    told += [(pair, gone_reason(pair)) for pair in asked.gone]
    add_facts(
        db,
        salt,
        [
            AuditEntry(now, "replay", "rules_changed", reason, source=source, target=target)
            for (source, target), reason in told
        ],
    )


_OF_SOURCES = "id >= ? AND id < ? AND source IN (SELECT i.value FROM each_text(?) i)"
# The plus signs keep the database from any index but that of the row ids, which gives just the slice.
_DECIDE_AGAIN = "UPDATE contact SET replay_at = coalesce(replay_at, ?) WHERE id >= ? AND id < ? AND +source = ?"
_READ_BEFORE = "SELECT id, data FROM contact WHERE id >= ? AND id < ? AND +source = ? AND NOT erased"
# Without a desired state, any that is decided is news. What a retry has in hand waits for that again.
_LET_GO = (
    "UPDATE delivery SET state = 'waiting', reason = ?, updated_at = ?, desired = NULL,"
    " revision = revision + CASE WHEN desired IS NULL THEN 0 ELSE 1 END, due_at = NULL, attempts = 0,"
    " error = NULL, status = NULL, wanted_at = NULL, bulk_open = (bulk_id IS NOT NULL)"
    " WHERE id >= ? AND id < ? AND +source = ? AND +target = ?"
    " AND +state IN (SELECT i.value FROM each_text(?) i)"
)
# Nobody decides these again, so no retry waits for that.
_END_RETRIES = (
    "UPDATE delivery SET bulk_open = FALSE WHERE id >= ? AND id < ? AND +source = ? AND +target = ? AND bulk_open"
)
# What an erased person's contact could be found by is kept only as long as it is searched for.
_FORGET_ERASED = (
    "UPDATE delivery SET attempted = '{}' WHERE id >= ? AND id < ? AND +source = ? AND +target = ?"
    " AND attempted IS NOT NULL AND EXISTS (SELECT 1 FROM contact c WHERE c.source = delivery.source"
    " AND c.source_id = delivery.source_id AND c.erased)"
)


def _take_lanes(db: Db) -> None:
    """Take every source's lane from whoever has it."""
    db.execute("SELECT name FROM lane WHERE name LIKE 'process:%' ORDER BY name FOR UPDATE").fetchall()
    db.execute("UPDATE lane SET fence = fence + 1 WHERE name LIKE 'process:%'")


def _remember_route(db: Db, pair: Pair, digest: str) -> None:
    db.execute(
        "INSERT INTO route_rules (source, target, digest) VALUES (?, ?, ?)"
        " ON CONFLICT (source, target) DO UPDATE SET digest = excluded.digest",
        (*pair, digest),
    )


def _unread(db: Db, source: str, ids: range, now: datetime) -> None:
    """Have contacts count as never read: until they are, nothing but an opt-out is built on what is known."""
    rows = db.execute(_READ_BEFORE, (ids.start, ids.stop, source)).fetchall()
    for row in rows:
        known = json.loads(row["data"])  # as JSON: to make contacts of so many takes minutes
        known.pop("read_at", None)
        # One whose reading failed a moment ago is due again when it is; that reading will ask for all fields.
        db.execute(
            "UPDATE contact SET data = ?, read_due = coalesce(read_due, ?) WHERE id = ?",
            (to_json(known), iso(now), row["id"]),
        )


def _let_go(db: Db, pair: Pair, states: Collection[State], reason: str, ids: range, now: datetime) -> None:
    named = db.array(state.value for state in states)
    db.execute(_LET_GO, (reason, iso(now), ids.start, ids.stop, *pair, named))
