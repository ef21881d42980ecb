"""What people and monitors look at: lists, single things and health. Nothing here writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from bridge.model import AuditEntry, Contact, Delivery, RecordKey, from_iso
from bridge.store.codec import maybe_moment, read_cursor, to_json
from bridge.store.protocol import Filter, Health, Inbound, Page, Refusal, SourceStatus, TargetStatus
from bridge.store.sql import listing, totals
from bridge.store.sql.conditions import Conditions
from bridge.store.sql.database import Db, row_of
from bridge.store.sql.facts import AUDIT, audit_of
from bridge.store.sql.lanes import lanes_in_use, next_due
from bridge.store.sql.listing import Place, Search
from bridge.store.sql.rows import INBOUND, LaneCounts, contact_of, delivery_of, inbound_of, target_status

# --- lists -----------------------------------------------------------------------------------------------


def inbound_page(db: Db, narrowed: Filter, cursor: str | None, limit: int) -> Page[Inbound]:
    search = inbound_search(db, narrowed)
    return listing.page(db, listing.INBOUND, INBOUND, search, cursor, limit, inbound_of)


def inbound_search(db: Db, narrowed: Filter) -> Search:
    """Return how to find the inbounds that match."""
    search = Search()
    search.drive.between("i.received_at", narrowed.since, narrowed.until)
    search.drive.equal({"i.id": narrowed.inbound_id})
    if narrowed.source_id is not None:
        search.only = _spoken_of(db, _contacts_named(db, narrowed.source, narrowed.source_id))
        if search.only is None:
            search.rest.add(_SPOKE_OF_ONE.format(term="a.source_id = ?"), narrowed.source_id)
    if narrowed.q:
        term, values = listing.contains(narrowed.q)
        people = None if search.only is not None else listing.hits(db, narrowed.q)
        if people is not None:
            search.only = _spoken_of(db, people)
        if people is None or search.only is None:
            search.rest.add(_SPOKE_OF_ONE.format(term=term), *values)
    given = {"i.source": narrowed.source, "i.outcome": narrowed.outcome}
    if narrowed.outcome == "duplicate":  # a repeat is no row of its own: those that came again
        given.pop("i.outcome")
        search.drive.add("i.repeats > 0")
    elif search.only is None and narrowed.inbound_id is None:
        driver = _rarer(db, narrowed)
        search.drive.equal({driver: given.pop(driver)})
    search.rest.equal(given)
    return search


def _rarer(db: Db, narrowed: Filter) -> str:
    """Return by which of its two columns fewer inbounds are found."""
    if narrowed.source is None or narrowed.outcome is None:
        return "i.outcome" if narrowed.source is None else "i.source"
    of_outcome = _counted(db, "inbound", state=narrowed.outcome)
    return "i.outcome" if of_outcome < _counted(db, "inbound", name=narrowed.source) else "i.source"


# With an offset, PostgreSQL takes it as it is: else it may go through all entries once rather than look each up.
_SPOKE_OF_ONE = (
    "EXISTS (SELECT 1 FROM audit a LEFT JOIN contact c ON c.source = a.source AND c.source_id = a.source_id"
    " WHERE a.inbound_id = i.id AND ({term}) LIMIT 1 OFFSET 0)"
)


def _counted(db: Db, kind: str, **named: str) -> int:
    conditions = Conditions()
    conditions.equal({"kind": kind, **named})
    row = row_of(db.execute(_TALLIED.format(conditions=conditions.sql), conditions.values))
    return int(row["n"] or 0)


_TALLIED = "SELECT sum(n) AS n FROM tally WHERE {conditions}"


def _contacts_named(db: Db, source: str | None, source_id: str) -> list[int]:
    rows = db.execute(_NAMED, (source, source, source_id))
    return [row["id"] for row in rows]


# Of one source, or of all that are known: without its first column an index is of no use.
_SOURCES = "{alias}.source IN (SELECT s.source FROM source_state s WHERE CAST(? AS TEXT) IS NULL OR s.source = ?)"
_NAMED = (
    "SELECT c.id FROM contact c WHERE c.source IN"
    " (SELECT s.source FROM source_state s WHERE CAST(? AS TEXT) IS NULL OR s.source = ?) AND c.source_id = ?"
)


def _spoken_of(db: Db, contacts: Sequence[int]) -> list[int] | None:
    """Return the inbounds that spoke of *contacts*; None when there may be more than can be told quickly."""
    each = max(1, listing.BUDGET // max(1, len(contacts)))
    found: set[int] = set()
    for _, rows in db.for_each(contacts, _INBOUNDS_OF, (each,)):
        if len(rows) == each:
            return None
        found |= {row["inbound_id"] for row in rows if row["inbound_id"] is not None}
    return sorted(found)


_INBOUNDS_OF = (
    "SELECT a.inbound_id FROM contact c JOIN audit a ON a.source = c.source AND a.source_id = c.source_id"
    " WHERE c.id = each.id LIMIT ?"
)


def contact_page(db: Db, narrowed: Filter, cursor: str | None, limit: int) -> Page[Contact]:
    search = Search()
    search.drive.between("c.updated_at", narrowed.since, narrowed.until)
    if narrowed.source_id is not None:
        search.only = _contacts_named(db, narrowed.source, narrowed.source_id)
    if narrowed.q:
        if search.only is None:
            search.only = listing.hits(db, narrowed.q)
        if search.only is None or narrowed.source_id is not None:
            term, values = listing.contains(narrowed.q)
            search.rest.add(f"({term})", *values)
    (search.drive if search.only is None else search.rest).equal({"c.source": narrowed.source})
    select = "SELECT c.* FROM contact c"
    return listing.page(db, listing.CONTACT, select, search, cursor, limit, contact_of)


def delivery_conditions(narrowed: Filter) -> Conditions:
    """Return what *narrowed* means for rows of ``delivery d``, all of which are wanted."""
    conditions = Conditions()
    if narrowed.source_id is not None:
        conditions.add(_SOURCES.format(alias="d"), narrowed.source, narrowed.source)
        conditions.equal({"d.source_id": narrowed.source_id})
    else:
        conditions.equal({"+d.source": narrowed.source})
    conditions.equal({"+d.target": narrowed.target, "d.state": narrowed.state})
    conditions.equal({"+d.error": narrowed.error, "+d.status": narrowed.status})
    conditions.between("d.updated_at", narrowed.since, narrowed.until)
    if narrowed.q:
        statement, values = listing.all_with(narrowed.q)
        conditions.add(
            _OF_ALL_WITH.format(contacts=statement),
            narrowed.q.strip(),
            *values,
        )
    return conditions


_OF_ALL_WITH = """
((d.target_id = ? AND d.target_id IS NOT NULL)
  OR (d.source, d.source_id) IN (SELECT p.source, p.source_id FROM contact p WHERE p.id IN ({contacts})))
"""


def delivery_page(db: Db, narrowed: Filter, cursor: str | None, limit: int) -> Page[Delivery]:
    search = _delivery_search(db, narrowed)
    select = "SELECT d.* FROM delivery d"
    return listing.page(db, listing.DELIVERY, select, search, cursor, limit, delivery_of)


def _delivery_search(db: Db, narrowed: Filter) -> Search:
    search = Search()
    search.drive.between("d.updated_at", narrowed.since, narrowed.until)
    given = {"d.state": narrowed.state, "d.error": narrowed.error, "d.target": narrowed.target}
    people = listing.hits(db, narrowed.q) if narrowed.q and narrowed.source_id is None else None
    if people is not None:
        search.only = [row["id"] for row in db.execute(_DELIVERIES_OF, (db.array(people),))]
    elif narrowed.source_id is not None:
        search.drive.add(_SOURCES.format(alias="d"), narrowed.source, narrowed.source)
        search.drive.equal({"d.source_id": narrowed.source_id})
    elif narrowed.target is not None and _counted(db, "delivery", name=narrowed.target) <= listing.BUDGET:
        # They are few enough to sort. Named, so that nobody looks for them among all by their time.
        rows = db.execute("SELECT id FROM delivery WHERE target = ?", (given.pop("d.target"),))
        search.only = [row["id"] for row in rows]
    elif narrowed.error is not None and narrowed.state in {None, "failed"}:
        search.drive.equal({"d.error": given.pop("d.error")})
    elif narrowed.state is not None:
        search.drive.equal({"d.state": given.pop("d.state")})
    if narrowed.q and people is None:
        term, values = listing.of_contact_with(narrowed.q, "d")
        search.rest.add(term, *values)
    search.rest.equal({**given, "d.source": narrowed.source, "d.status": narrowed.status})
    return search


_DELIVERIES_OF = (
    "SELECT d.id FROM contact c JOIN delivery d ON d.source = c.source AND d.source_id = c.source_id"
    " WHERE c.id IN (SELECT i.value FROM each_id(?) i)"
)


def audit_page(db: Db, narrowed: Filter, cursor: str | None, limit: int) -> Page[AuditEntry]:
    search = audit_search(db, narrowed, None if cursor is None else read_cursor(cursor), limit)
    return listing.page(db, listing.AUDIT, AUDIT, search, cursor, limit, audit_of)


_INDEXED = ("error", "status", "kind", "target", "outcome", "source")
_FREQUENT_KINDS = frozenset({"contact", "delivery"})  # of these kinds there is no index


def audit_search(db: Db, narrowed: Filter, after: Place | None, limit: int) -> Search:
    """Return how to find the audit entries that match, behind *after*."""
    search = Search()
    search.drive.between("a.at", narrowed.since, narrowed.until)
    given = {name: getattr(narrowed, name) for name in _INDEXED}
    people = None
    if narrowed.inbound_id is not None:
        search.drive.equal({"a.inbound_id": narrowed.inbound_id})
    elif narrowed.source_id is not None:
        search.drive.add(_SOURCES.format(alias="a"), narrowed.source, narrowed.source)
        search.drive.equal({"a.source_id": narrowed.source_id})
    else:
        people = listing.hits(db, narrowed.q) if narrowed.q else None
        search.most, driver = totals.outlook(db, narrowed, _useful(narrowed))
        driver = None if people is not None else driver
        if driver is not None:
            search.drive.equal({f"a.{driver}": given.pop(driver)})
            # In these words the database recognises what its index is of.
            search.drive.terms += _PARTIAL.get(driver, [])
    if narrowed.inbound_id is not None:
        search.rest.equal({"a.source_id": narrowed.source_id})
    search.rest.equal({f"a.{name}": value for name, value in given.items()})
    if narrowed.field is not None:
        # In a list written as JSON, a name begins behind a bracket or a comma, and its own quotes are escaped.
        name = to_json(narrowed.field)
        search.rest.add("(strpos(a.fields, ?) > 0 OR strpos(a.fields, ?) > 0)", f"[{name}", f",{name}")
    if narrowed.q and people is None:
        term, values = listing.of_contact_with(narrowed.q, "a")
        search.rest.add(term, *values)
    if people is not None:
        each = max(limit + 1, listing.BUDGET // max(1, len(people)) if search.rest else 0)
        _facts_of(db, search, people, after, each)
    return search


_PARTIAL = {
    "kind": ["a.kind NOT IN ('contact', 'delivery')"],
    "status": ["a.status >= 300"],
}


def _useful(narrowed: Filter) -> list[str]:
    """Return the dimensions for whose value there is an index."""
    without = set()
    if narrowed.kind in _FREQUENT_KINDS:
        without.add("kind")
    if narrowed.status is not None and narrowed.status < 300:
        without.add("status")
    return [name for name in _INDEXED if name not in without]


_NEWEST_OF = """
SELECT a.at, a.id FROM contact c JOIN audit a ON a.source = c.source AND a.source_id = c.source_id
WHERE c.id = each.id AND {span} ORDER BY a.at DESC, a.id DESC LIMIT ?
"""


def _facts_of(db: Db, search: Search, people: Sequence[int], after: Place | None, each: int) -> None:
    """Narrow *search* to the newest entries of *people*, *each* of everybody; remember how far those go back."""
    span = Conditions(list(search.drive.terms), list(search.drive.values))
    if after is not None:
        span.add("(a.at, a.id) < (?, ?)", *after)
    statement = _NEWEST_OF.format(span=span.sql)
    places: list[Place] = []
    known_to: Place | None = None
    for _, rows in db.for_each(people, statement, [*span.values, each]):
        theirs = [(row["at"], row["id"]) for row in rows]
        places += theirs
        if len(theirs) == each:
            known_to = max(known_to or min(theirs), min(theirs))
    # Of somebody there may be more: what is older than the last that is known of him may not be all there is.
    search.only = [row_id for at, row_id in places if known_to is None or (at, row_id) >= known_to]
    search.known_to = known_to


# --- single things ---------------------------------------------------------------------------------------


def inbound(db: Db, inbound_id: int) -> Inbound | None:
    row = db.execute(f"{INBOUND} WHERE i.id = ?", (inbound_id,)).fetchone()
    return None if row is None else inbound_of(row)


def refusals(db: Db, source: str) -> list[Refusal]:
    rows = db.execute("SELECT * FROM refusal WHERE source = ? ORDER BY id DESC", (source,))
    return [Refusal(row["source"], from_iso(row["at"]), row["reason"], row["size_bytes"]) for row in rows]


def deliveries_of(db: Db, key: RecordKey) -> list[Delivery]:
    rows = db.execute(
        "SELECT * FROM delivery WHERE source = ? AND source_id = ? ORDER BY target", (key.source, key.source_id)
    )
    return [delivery_of(row) for row in rows]


def linked_to(db: Db, target: str, target_id: str) -> list[RecordKey]:
    rows = db.execute(
        "SELECT source, source_id FROM delivery WHERE target_id = ? AND target_id IS NOT NULL AND target = ?"
        " ORDER BY source, source_id",
        (target_id, target),
    )
    return [RecordKey(row["source"], row["source_id"]) for row in rows.fetchall()]


def deliveries_for(db: Db, keys: Collection[RecordKey]) -> dict[tuple[str, RecordKey], Delivery]:
    by_source: dict[str, list[str]] = {}
    for key in keys:
        by_source.setdefault(key.source, []).append(key.source_id)
    rows = (
        row
        for source, ids in by_source.items()
        for row in db.execute(_OF_MANY, (source, db.array(ids))).fetchall()
    )
    return {(one.target, one.key): one for one in map(delivery_of, rows)}


_OF_MANY = "SELECT * FROM delivery WHERE source = ? AND source_id IN (SELECT i.value FROM each_text(?) i)"


# --- health ----------------------------------------------------------------------------------------------


def health(db: Db, lanes: LaneCounts, now: datetime) -> Health:
    tally = db.execute("SELECT kind, name, state, n FROM tally WHERE n > 0").fetchall()
    inbounds = [row for row in tally if row["kind"] == "inbound"]
    seen = row_of(db.execute("SELECT max(seen_at) AS seen_at FROM beat WHERE role = 'worker'"))
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


def _unprocessed_since(db: Db, source: str) -> datetime | None:
    row = db.execute(
        "SELECT received_at FROM inbound WHERE source = ? AND outcome = 'accepted' ORDER BY id LIMIT 1", (source,)
    ).fetchone()
    return None if row is None else from_iso(row["received_at"])


def _oldest_due(db: Db, lanes: LaneCounts, now: datetime) -> datetime | None:
    moments = (
        next_due(db, target, number)
        for target, count in lanes_in_use(db, lanes).items()
        if target_status(db, target).mode == "open"
        for number in range(count)
    )
    return _oldest(moment for moment in moments if moment is not None and moment <= now)


def _oldest(moments: Iterable[datetime | None]) -> datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _sources(db: Db, waiting: Mapping[str, int]) -> list[SourceStatus]:
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


def _targets(db: Db, lanes: LaneCounts) -> list[TargetStatus]:
    known = {row["target"] for row in db.execute("SELECT target FROM target_status").fetchall()}
    return [target_status(db, target) for target in sorted(known | lanes.keys())]


def _summed(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in counts:
        total[name] += count
    return dict(total)
