"""What the web process writes: receipts, and counts of what was refused."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bridge.lanes import process_lane
from bridge.model import AuditEntry, Outcome, iso
from bridge.store.codec import maybe_iso, to_json
from bridge.store.looking import Activity
from bridge.store.protocol import NewInbound, Received, Refusal
from bridge.store.sql import totals
from bridge.store.sql.database import Db
from bridge.store.sql.facts import add_facts, digest, insert_payloads
from bridge.store.sql.rows import VALUES_AT_ONCE, insert_many

REFUSALS_KEPT = 200  # of each source


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with all that can be worked out before it is our turn to write."""

    inbound: NewInbound
    received_at: str
    keys: tuple[bytes, ...]
    payload_key: bytes
    packed: bytes


def prepare(inbound: NewInbound, salt: bytes) -> Prepared:
    if inbound.event_keys:
        scope = f"event\x1f{inbound.source}"
        keys = tuple(
            dict.fromkeys(digest(salt, scope, key.encode("utf-8", "surrogatepass")) for key in inbound.event_keys)
        )
    else:
        keys = (digest(salt, f"body\x1f{inbound.source}", inbound.body),)
    received_at = iso(inbound.received_at)
    # Moment and keys are part of it, so that no two receipts share a payload and each can be erased by itself.
    scope = f"inbound\x1f{inbound.source}\x1f{received_at}"
    payload_key = digest(salt, scope, b"".join(keys) + inbound.body)
    return Prepared(inbound, received_at, keys, payload_key, zlib.compress(inbound.body))


def receive(db: Db, requests: Sequence[Prepared]) -> list[Received]:
    """Save a batch with one statement for each table.

    Each statement lets go of the interpreter's lock, which the request threads then fight over: per receipt, that
    cost several times what SQLite itself takes.
    """
    known = _known(db, [key for request in requests for key in request.keys])
    ids = iter(db.take_ids("inbound", len(requests)))
    received: list[Received] = []
    fresh: list[tuple[int, Prepared, list[bytes]]] = []
    for request in requests:
        new = [key for key in request.keys if key not in known]
        if not new:
            received.append(Received(known[request.keys[0]], duplicate=True))
            continue
        inbound_id = next(ids)
        known |= dict.fromkeys(new, inbound_id)
        received.append(Received(inbound_id, duplicate=False))
        fresh.append((inbound_id, request, new))
    _insert_keys(db, fresh)  # first: whoever has one of them at the same time waits here, and is told so
    insert_payloads(db, [_payload_row(request) for _, request, _ in fresh])
    insert_many(db, "inbound", _INBOUND, [_inbound_row(inbound_id, request) for inbound_id, request, _ in fresh])
    add_facts(db, b"", [_fact(inbound_id, request.inbound) for inbound_id, request, _ in fresh if _ended(request)])
    totals.count(db, [_heard(request.inbound) for _, request, _ in fresh])
    _count_repeats(db, requests, received)
    for request in requests:
        if not _ended(request):
            db.make_due(process_lane(request.inbound.source), request.inbound.received_at)
    _note_sources(db, requests)
    return received


def _heard(inbound: NewInbound) -> tuple[datetime, Activity]:
    return inbound.received_at, Activity(totals.HEARD, totals.HEARD, 1, source=inbound.source)


def _ended(request: Prepared) -> bool:
    """Say whether nothing is to be processed: what came to nothing is told right here."""
    return request.inbound.outcome is not Outcome.ACCEPTED


def _fact(inbound_id: int, inbound: NewInbound) -> AuditEntry:
    return AuditEntry(
        at=inbound.received_at,
        kind="inbound",
        outcome=inbound.outcome.value,
        reason=inbound.reason,
        source=inbound.source,
        inbound_id=inbound_id,
    )


_INBOUND = (
    *("id", "source", "received_at", "method", "url", "headers", "digest", "outcome", "reason", "events"),
    *("secret_index", "signed_at"),
)


def _known(db: Db, keys: Sequence[bytes]) -> dict[bytes, int]:
    """Return the inbounds of those *keys* that were seen before."""
    known: dict[bytes, int] = {}
    for start in range(0, len(keys), VALUES_AT_ONCE):
        part = keys[start : start + VALUES_AT_ONCE]
        marks = ",".join("?" * len(part))
        rows = db.execute(f"SELECT hash, inbound_id FROM event_key WHERE hash IN ({marks})", part)  # noqa: S608
        known |= {bytes(row["hash"]): int(row["inbound_id"]) for row in rows}
    return known


def _insert_keys(db: Db, fresh: Sequence[tuple[int, Prepared, list[bytes]]]) -> None:
    """Keep them in one order, whoever else has the same ones in another: two would wait for each other."""
    if db.by_day:
        rows = [(key, day, number) for number, one, new in fresh for day in _days(one) for key in new]
        insert_many(db, "event_key", ("hash", "day", "inbound_id"), sorted(rows))
    else:
        keys = [(key, inbound_id) for inbound_id, _, new in fresh for key in new]
        insert_many(db, "event_key", ("hash", "inbound_id"), sorted(keys))


def _days(request: Prepared) -> Sequence[str]:
    """Return the days that its keys are kept under.

    A key is unique within a day. Of two that come at the same time around midnight, one has the day before.
    """
    if _DAWN <= (time := request.received_at[11:19]) < _DUSK:
        return (request.received_at[:10],)
    other = request.inbound.received_at + (timedelta(days=1) if time >= _DUSK else timedelta(days=-1))
    return (request.received_at[:10], iso(other)[:10])


# Receipts are stored within seconds, and clocks of processes differ by less.
_DAWN, _DUSK = "00:02:00", "23:58:00"


def _count_repeats(db: Db, requests: Sequence[Prepared], received: Sequence[Received]) -> None:
    again = Counter(one.id for one in received if one.duplicate)
    for inbound_id, more in sorted(again.items()):
        db.execute("UPDATE inbound SET repeats = repeats + ? WHERE id = ?", (more, inbound_id))
    of_sources = Counter(
        request.inbound.source for request, one in zip(requests, received, strict=True) if one.duplicate
    )
    for source, more in of_sources.items():
        _count(db, source, "duplicate", more)


def _payload_row(request: Prepared) -> tuple[object, ...]:
    """Headers and query may name a person: they are kept, and go, with the body."""
    inbound = request.inbound
    return request.payload_key, request.packed, request.received_at, inbound.url, to_json(dict(inbound.headers))


def _inbound_row(inbound_id: int, request: Prepared) -> tuple[object, ...]:
    inbound = request.inbound
    return (
        inbound_id,
        inbound.source,
        request.received_at,
        inbound.method,
        inbound.url.partition("?")[0],
        "{}",
        request.payload_key,
        inbound.outcome.value,
        inbound.reason,
        len(inbound.event_keys),
        inbound.secret_index,
        maybe_iso(inbound.signed_at),
    )


def _note_sources(db: Db, requests: Sequence[Prepared]) -> None:
    latest: dict[str, str] = {}
    for request in requests:
        source, at = request.inbound.source, request.received_at
        latest[source] = max(at, latest.get(source, at))
    for source, at in sorted(latest.items()):
        db.execute(
            "INSERT INTO source_state (source, last_inbound_at) VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET"
            " last_inbound_at = greatest(coalesce(source_state.last_inbound_at, excluded.last_inbound_at),"
            " excluded.last_inbound_at)",
            (source, at),
        )


def refuse(db: Db, refusals: Iterable[Refusal]) -> None:
    by_source: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        by_source.setdefault(refusal.source, []).append(refusal)
    for source, theirs in sorted(by_source.items()):
        db.execute(
            "INSERT INTO source_state (source, refused, last_refused_at) VALUES (?, ?, ?)"
            " ON CONFLICT (source) DO UPDATE SET refused = source_state.refused + excluded.refused,"
            " last_refused_at = greatest(coalesce(source_state.last_refused_at, excluded.last_refused_at),"
            " excluded.last_refused_at)",
            (source, len(theirs), max(iso(refusal.at) for refusal in theirs)),
        )
        _count(db, source, "refused", len(theirs))
        db.executemany(
            "INSERT INTO refusal (source, at, reason, size_bytes) VALUES (?, ?, ?, ?)",
            [(source, iso(one.at), one.reason, one.size_bytes) for one in theirs[-REFUSALS_KEPT:]],
        )
        db.execute(
            "DELETE FROM refusal WHERE source = ? AND id <="
            " (SELECT id FROM refusal WHERE source = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (source, source, REFUSALS_KEPT),
        )


def _count(db: Db, source: str, outcome: str, more: int) -> None:
    db.add("tally", {("inbound", source, outcome): (more,)})
