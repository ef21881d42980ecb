"""Lists of any length: a bounded number of rows is looked at for a page, however many there are.

What the fewest rows have in common *drives* the look: an index gives those rows, newest first. The *rest* is
checked row by row, for at most `BUDGET` of them; then the page says how far it came, and can be gone on with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bridge.model import from_iso
from bridge.store.codec import Needle, cursor_of, needles, read_cursor
from bridge.store.protocol import Page
from bridge.store.sql.conditions import Conditions
from bridge.store.sql.database import Db, Row

T = TypeVar("T")
Place = tuple[str, int]  # a row's moment and id: lists are sorted by both, newest first

BUDGET = 10_000  # rows looked at for a page
ONE_OF = "{id} IN (SELECT i.value FROM each_id(?) i)"
# A subquery with a limit is run as a co-routine: it ends as soon as the page is full, and gives its rows in order.
# It tells whether a row fits, rather than the columns to tell it by, so that few of those are read.
_LOOK = """
SELECT moment, id FROM (
  SELECT {t}.{moment} AS moment, {t}.id AS id, ({fits}) AS fits FROM {table} {t}
  WHERE {drive} ORDER BY {t}.{moment} {order}, {t}.id {order} LIMIT ?
) looked WHERE fits LIMIT ?
"""
_LAST = """
SELECT {t}.{moment} AS moment, {t}.id AS id FROM {table} {t}
WHERE {drive} ORDER BY {t}.{moment} {order}, {t}.id {order} LIMIT 1 OFFSET ?
"""
# Not with EXISTS: for several rows, PostgreSQL would go through all contacts once rather than look each up.
_OF_CONTACT = """
(SELECT {term} FROM contact c WHERE c.source = {alias}.source AND c.source_id = {alias}.source_id)
"""

MOST_HITS = 1000  # contacts that a text finds; a text that finds more is so frequent that newest rows have it


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    alias: str
    moment: str  # the column that a list is sorted by


AUDIT = Table("audit", "a", "at")
INBOUND = Table("inbound", "i", "received_at")
CONTACT = Table("contact", "c", "updated_at")
DELIVERY = Table("delivery", "d", "updated_at")


@dataclass
class Search:
    """What is looked for.

    *only*: no other rows come into question; those are known as far back as *known_to*.
    """

    drive: Conditions = field(default_factory=Conditions)
    rest: Conditions = field(default_factory=Conditions)
    only: Sequence[int] | None = None
    known_to: Place | None = None
    most: int | None = None  # there are no more than so many rows that match


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that match, in order, up to one more than asked for; *stopped*: the last looked at, if not all."""

    places: Sequence[Place]
    stopped: Place | None = None


def page(
    db: Db,
    table: Table,
    select: str,
    search: Search,
    cursor: str | None,
    limit: int,
    make: Callable[[Row], T],
) -> Page[T]:
    """Return one page of what *search* finds; *select* gives whole rows."""
    found = look(db, table, search, None if cursor is None else read_cursor(cursor), limit)
    shown = found.places[:limit]
    items = [make(row) for row in rows_at(db, table, select, shown)]
    if len(found.places) > limit and shown:
        return Page(items, cursor_of(*shown[-1]))
    if found.stopped is not None:
        return Page(items, cursor_of(*found.stopped), from_iso(found.stopped[0]))
    return Page(items)


def rows_at(db: Db, table: Table, select: str, places: Sequence[Place]) -> list[Row]:
    """Return the whole rows of *places*, in their order."""
    if not places:
        return []
    ids = [row_id for _, row_id in places]
    rows = db.execute(f"{select} WHERE {ONE_OF.format(id=f'{table.alias}.id')}", (db.array(ids),)).fetchall()
    by_id = {row["id"]: row for row in rows}
    return [by_id[row_id] for _, row_id in places if row_id in by_id]


def look(
    db: Db, table: Table, search: Search, after: Place | None, limit: int, *, ascending: bool = False
) -> Found:
    """Look for rows behind *after*, newest first (or oldest, *ascending*)."""
    alias, moment = table.alias, table.moment
    drive = Conditions(list(search.drive.terms), list(search.drive.values))
    if search.only is not None:
        drive.add(ONE_OF.format(id=f"{alias}.id"), db.array(search.only))
    if after is not None:
        drive.add(f"({alias}.{moment}, {alias}.id) {'>' if ascending else '<'} (?, ?)", *after)
    budget = max(BUDGET, limit + 1)
    order = "ASC" if ascending else "DESC"
    named = {"table": table.name, "t": alias, "moment": moment, "order": order, "drive": drive.sql}
    rows = db.execute(
        _LOOK.format(fits=search.rest.sql, **named),
        [
            *search.rest.values,
            *drive.values,
            budget,
            limit + 1 if search.most is None else min(limit + 1, search.most),
        ],
    ).fetchall()
    places = sorted(((row["moment"], row["id"]) for row in rows), reverse=not ascending)
    if len(places) > limit or len(places) == search.most:
        return Found(places)
    if search.known_to is not None and not ascending:
        return Found(places, search.known_to)
    if not search.rest:
        return Found(places)
    last = db.execute(_LAST.format(**named), [*drive.values, budget - 1]).fetchone()
    return Found(places, None if last is None else (last["moment"], last["id"]))


# --- text ------------------------------------------------------------------------------------------------


def contains(q: str, contact: str = "c") -> tuple[str, list[str]]:
    """Return a term, with its values, that says whether a row of *contact* has *q*."""
    texts = [needle.text for needle in needles(q)]
    return " OR ".join([f"strpos({contact}.search, ?) > 0"] * len(texts)) or "FALSE", texts


def of_contact_with(q: str, alias: str) -> tuple[str, list[str]]:
    """Return a term, with its values, that says whether a row of *alias* is about a contact with *q*."""
    term, values = contains(q)
    return _OF_CONTACT.format(alias=alias, term=term), values


def all_with(q: str) -> tuple[str, list[str]]:
    """Return a statement, with its values, that gives the ids of all contacts with *q*, however many."""
    parts, values = [], []
    for needle in needles(q):
        part, more = _hits_of(needle)
        parts.append(part)
        values += more
    return " UNION ".join(parts) or "SELECT id FROM contact WHERE FALSE", values


def hits(db: Db, q: str) -> list[int] | None:
    """Return the ids of the contacts with *q*, or that a target knows by it; None when they are too many."""
    found = {
        row["id"]
        for row in db.execute(
            "SELECT c.id FROM delivery d JOIN contact c ON c.source = d.source AND c.source_id = d.source_id"
            " WHERE d.target_id = ? AND d.target_id IS NOT NULL LIMIT 10",
            (q.strip(),),
        )
    }
    for needle in needles(q):
        if db.execute(_MANY, (*_span(needle), MANY_TERMS)).fetchone():
            return None
        statement, values = _hits_of(needle)
        found |= {row["contact_id"] for row in db.execute(f"{statement} LIMIT ?", [*values, MOST_HITS + 1])}
        if len(found) > MOST_HITS:
            return None
    return sorted(found)


# One contact can have a text in several terms, and none has it in more than a few.
MANY_TERMS = 10 * MOST_HITS
_MANY = "SELECT 1 FROM search_term WHERE term >= ? AND term < ? LIMIT 1 OFFSET ?"


def _span(needle: Needle) -> list[str]:
    return [needle.term, needle.term + "\U0010ffff"]


def _hits_of(needle: Needle) -> tuple[str, list[str]]:
    values = _span(needle)
    if not needle.cut:
        return "SELECT DISTINCT contact_id FROM search_term WHERE term >= ? AND term < ?", values
    return (
        "SELECT DISTINCT t.contact_id FROM search_term t JOIN contact c ON c.id = t.contact_id"
        " WHERE t.term >= ? AND t.term < ? AND strpos(c.search, ?) > 0",
        [*values, needle.text],
    )
