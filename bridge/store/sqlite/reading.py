"""What people and monitors look at: lists, single things and health. Nothing here writes."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sqlite_utils import Database

from bridge.model import AuditEntry, Contact, Delivery, RecordKey, from_iso, iso
from bridge.store.codec import cursor_of, maybe_moment, needles, read_cursor
from bridge.store.protocol import Filter, Health, Inbound, Page, Refusal, SourceStatus, TargetStatus
from bridge.store.sqlite.processing import next_due
from bridge.store.sqlite.rows import (
    AUDIT,
    INBOUND,
    LaneCounts,
    audit_of,
    contact_of,
    delivery_of,
    inbound_of,
    target_status,
)

T = TypeVar("T")


@dataclass
class Conditions:
    """The ``WHERE`` of a list: terms that all hold, and their values."""

    terms: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, term: str, *values: Any) -> None:
        self.terms.append(term)
        self.values += values

    def equal(self, columns: Mapping[str, Any]) -> None:
        """Narrow each column to its value, where there is one."""
        for column, value in columns.items():
            if value is not None:
                self.add(f"{column} = ?", value)

    def narrowing(self, columns: Mapping[str, Any]) -> None:
        """As `equal`, for columns that most rows share: ``+`` keeps the planner from their indexes.

        It takes every equality for a rare one, and would sort half the table rather than read it in order of time.
        """
        self.equal({f"+{column}": value for column, value in columns.items()})

    def between(self, column: str, since: datetime | None, until: datetime | None) -> None:
        """Narrow to *since* (included) … *until* (excluded)."""
        if since is not None:
            self.add(f"{column} >= ?", iso(since))
        if until is not None:
            self.add(f"{column} < ?", iso(until))

    @property
    def sql(self) -> str:
        return " AND ".join(self.terms) or "1"


def _page(
    db: Database,
    select: str,
    table: str,
    moment: str,
    conditions: Conditions,
    cursor: str | None,
    limit: int,
    make: Callable[[sqlite3.Row], T],
) -> Page[T]:
    """Return one page, newest first by the column *moment* and then by id. Nothing is counted."""
    if cursor is not None:
        conditions.add(f"({table}.{moment}, {table}.id) < (?, ?)", *read_cursor(cursor))
    rows: Sequence[sqlite3.Row] = db.execute(
        f"{select} WHERE {conditions.sql} ORDER BY {table}.{moment} DESC, {table}.id DESC LIMIT ?",
        [*conditions.values, limit + 1],
    ).fetchall()
    shown = rows[:limit]
    following = cursor_of(shown[-1][moment], shown[-1]["id"]) if len(rows) > limit and shown else None
    return Page([make(row) for row in shown], following)


# The statements that look for a text in contacts (``c``) are given two spellings of it: `needles`.


def _of_contact(conditions: Conditions, table: str, narrowed: Filter) -> None:
    """Narrow to a source, or to one contact of it, which has an index of its own."""
    if narrowed.source_id is None:
        conditions.narrowing({f"{table}.source": narrowed.source})
    else:
        conditions.equal({f"{table}.source": narrowed.source, f"{table}.source_id": narrowed.source_id})


# --- lists -----------------------------------------------------------------------------------------------


def inbound_page(db: Database, narrowed: Filter, cursor: str | None, limit: int) -> Page[Inbound]:
    conditions = Conditions()
    conditions.equal({"i.source": narrowed.source, "i.id": narrowed.inbound_id})
    if narrowed.outcome == "duplicate":  # a repeat is no row of its own: those that came again
        conditions.add("i.repeats > 0")
    else:
        conditions.equal({"i.outcome": narrowed.outcome})
    conditions.between("i.received_at", narrowed.since, narrowed.until)
    if narrowed.source_id is not None:
        conditions.add(
            "i.id IN (SELECT inbound_id FROM audit WHERE source_id = ? AND source = i.source)", narrowed.source_id
        )
    if narrowed.q:
        texts = needles(narrowed.q)
        conditions.add(
            "(instr(lower(i.reason), ?) > 0 OR i.id IN (SELECT a.inbound_id FROM contact c JOIN audit a"
            " ON a.source = c.source AND a.source_id = c.source_id"
            " WHERE instr(c.search, ?) > 0 OR instr(c.search, ?) > 0))",
            texts[0],
            *texts,
        )
    return _page(db, INBOUND, "i", "received_at", conditions, cursor, limit, inbound_of)


def contact_page(db: Database, narrowed: Filter, cursor: str | None, limit: int) -> Page[Contact]:
    conditions = Conditions()
    _of_contact(conditions, "c", narrowed)
    conditions.between("c.updated_at", narrowed.since, narrowed.until)
    if narrowed.q:
        conditions.add("(instr(c.search, ?) > 0 OR instr(c.search, ?) > 0)", *needles(narrowed.q))
    return _page(db, "SELECT c.* FROM contact c", "c", "updated_at", conditions, cursor, limit, contact_of)


def delivery_conditions(narrowed: Filter) -> Conditions:
    """Return what *narrowed* means for rows of ``delivery d``."""
    conditions = Conditions()
    _of_contact(conditions, "d", narrowed)
    conditions.narrowing({"d.target": narrowed.target, "d.error": narrowed.error})
    conditions.equal({"d.state": narrowed.state})
    conditions.between("d.updated_at", narrowed.since, narrowed.until)
    if narrowed.q:
        texts = needles(narrowed.q)
        conditions.add(
            "(d.target_id = ? OR instr(lower(d.reason), ?) > 0 OR (d.source, d.source_id) IN (SELECT"
            " c.source, c.source_id FROM contact c WHERE instr(c.search, ?) > 0 OR instr(c.search, ?) > 0))",
            narrowed.q.strip(),
            texts[0],
            *texts,
        )
    return conditions


def delivery_page(db: Database, narrowed: Filter, cursor: str | None, limit: int) -> Page[Delivery]:
    conditions = delivery_conditions(narrowed)
    return _page(db, "SELECT d.* FROM delivery d", "d", "updated_at", conditions, cursor, limit, delivery_of)


def audit_page(db: Database, narrowed: Filter, cursor: str | None, limit: int) -> Page[AuditEntry]:
    conditions = Conditions()
    _of_contact(conditions, "a", narrowed)
    conditions.equal(
        {
            "a.target": narrowed.target,
            "a.outcome": narrowed.outcome,
            "a.error": narrowed.error,
            "a.kind": narrowed.kind,
            "a.inbound_id": narrowed.inbound_id,
        }
    )
    conditions.between("a.at", narrowed.since, narrowed.until)
    if narrowed.q:
        texts = needles(narrowed.q)
        conditions.add(
            "(instr(lower(a.reason), ?) > 0 OR (a.source, a.source_id) IN (SELECT"
            " c.source, c.source_id FROM contact c WHERE instr(c.search, ?) > 0 OR instr(c.search, ?) > 0))",
            texts[0],
            *texts,
        )
    return _page(db, AUDIT, "a", "at", conditions, cursor, limit, audit_of)


# --- single things ---------------------------------------------------------------------------------------


def inbound(db: Database, inbound_id: int) -> Inbound | None:
    row = db.execute(f"{INBOUND} WHERE i.id = ?", (inbound_id,)).fetchone()
    return None if row is None else inbound_of(row)


def refusals(db: Database, source: str) -> list[Refusal]:
    rows = db.execute("SELECT * FROM refusal WHERE source = ? ORDER BY id DESC", (source,))
    return [Refusal(row["source"], from_iso(row["at"]), row["reason"], row["size_bytes"]) for row in rows]


def deliveries_of(db: Database, key: RecordKey) -> list[Delivery]:
    rows = db.execute(
        "SELECT * FROM delivery WHERE source = ? AND source_id = ? ORDER BY target", (key.source, key.source_id)
    )
    return [delivery_of(row) for row in rows]


# --- health ----------------------------------------------------------------------------------------------


def health(db: Database, lanes: LaneCounts, now: datetime) -> Health:
    tally = db.execute("SELECT kind, name, state, n FROM tally WHERE n > 0").fetchall()
    inbounds = [row for row in tally if row["kind"] == "inbound"]
    seen = db.execute("SELECT max(seen_at) AS seen_at FROM beat WHERE role = 'worker'").fetchone()
    waiting = {row["name"]: row["n"] for row in inbounds if row["state"] == "accepted"}
    return Health(
        worker_seen_at=maybe_moment(seen["seen_at"]),
        oldest_unprocessed_at=_oldest(_unprocessed_since(db, source) for source in waiting),
        oldest_due_at=_oldest_due(db, lanes, now),
        inbound=_summed((row["state"], row["n"]) for row in inbounds),
        deliveries={(row["name"], row["state"]): row["n"] for row in tally if row["kind"] == "delivery"},
        sources=_sources(db, waiting),
        targets=_targets(db, lanes),
    )


def _unprocessed_since(db: Database, source: str) -> datetime | None:
    row = db.execute(
        "SELECT received_at FROM inbound WHERE source = ? AND outcome = 'accepted' ORDER BY id LIMIT 1", (source,)
    ).fetchone()
    return None if row is None else from_iso(row["received_at"])


def _oldest_due(db: Database, lanes: LaneCounts, now: datetime) -> datetime | None:
    moments = (
        next_due(db, target, number)
        for target, count in lanes.items()
        if target_status(db, target).mode == "open"
        for number in range(count)
    )
    return _oldest(moment for moment in moments if moment is not None and moment <= now)


def _oldest(moments: Iterable[datetime | None]) -> datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _sources(db: Database, waiting: Mapping[str, int]) -> list[SourceStatus]:
    return [
        SourceStatus(
            source=row["source"],
            account=row["account"],
            last_inbound_at=maybe_moment(row["last_inbound_at"]),
            refused=row["refused"],
            last_refused_at=maybe_moment(row["last_refused_at"]),
            unprocessed=waiting.get(row["source"], 0),
        )
        for row in db.execute("SELECT * FROM source_state ORDER BY source").fetchall()
    ]


def _targets(db: Database, lanes: LaneCounts) -> list[TargetStatus]:
    known = {row["target"] for row in db.execute("SELECT target FROM target_status").fetchall()}
    return [target_status(db, target) for target in sorted(known | lanes.keys())]


def _summed(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in counts:
        total[name] += count
    return dict(total)
