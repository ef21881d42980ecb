"""What the web process writes: receipts, and counts of what was refused."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from bridge.model import iso
from bridge.store.codec import maybe_iso, to_json
from bridge.store.protocol import NewInbound, Received, Refusal
from bridge.store.sqlite.rows import digest, save_payload

REFUSALS_KEPT = 200  # of each source


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with all that can be worked out before it is our turn to write."""

    inbound: NewInbound
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
    # Moment and keys are part of it, so that no two receipts share a payload and each can be erased by itself.
    scope = f"inbound\x1f{inbound.source}\x1f{iso(inbound.received_at)}"
    payload_key = digest(salt, scope, b"".join(keys) + inbound.body)
    return Prepared(inbound, keys, payload_key, zlib.compress(inbound.body))


def receive(db: Database, requests: Sequence[Prepared]) -> list[Received]:
    received = [_receive(db, request) for request in requests]
    latest: dict[str, str] = {}
    for request in requests:
        source, at = request.inbound.source, iso(request.inbound.received_at)
        latest[source] = max(at, latest.get(source, at))
    for source, at in latest.items():
        db.execute(
            "INSERT INTO source_state (source, last_inbound_at) VALUES (?, ?) ON CONFLICT (source) DO UPDATE"
            " SET last_inbound_at = max(coalesce(last_inbound_at, ''), excluded.last_inbound_at)",
            (source, at),
        )
    return received


def _receive(db: Database, request: Prepared) -> Received:
    seen = {
        bytes(row["hash"]): int(row["inbound_id"])
        for key in request.keys
        for row in db.execute("SELECT hash, inbound_id FROM event_key WHERE hash = ?", (key,))
    }
    new = [key for key in request.keys if key not in seen]
    if not new:
        first = seen[request.keys[0]]
        db.execute("UPDATE inbound SET repeats = repeats + 1 WHERE id = ?", (first,))
        _count(db, "inbound", request.inbound.source, "duplicate", 1)
        return Received(first, duplicate=True)
    inbound_id = _insert(db, request)
    for key in new:
        db.execute("INSERT INTO event_key (hash, inbound_id) VALUES (?, ?)", (key, inbound_id))
    return Received(inbound_id, duplicate=False)


def _insert(db: Database, request: Prepared) -> int:
    inbound = request.inbound
    received_at = iso(inbound.received_at)
    save_payload(db, request.payload_key, request.packed, received_at)
    cursor = db.execute(
        "INSERT INTO inbound (source, received_at, method, url, headers, digest, outcome, reason, events,"
        " secret_index, signed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            inbound.source,
            received_at,
            inbound.method,
            inbound.url,
            to_json(dict(inbound.headers)),
            request.payload_key,
            inbound.outcome.value,
            inbound.reason,
            len(inbound.event_keys),
            inbound.secret_index,
            maybe_iso(inbound.signed_at),
        ),
    )
    return cursor.lastrowid or 0  # an INSERT always has one


def refuse(db: Database, refusals: Iterable[Refusal]) -> None:
    by_source: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        by_source.setdefault(refusal.source, []).append(refusal)
    for source, theirs in by_source.items():
        db.execute(
            "INSERT INTO source_state (source, refused, last_refused_at) VALUES (?, ?, ?)"
            " ON CONFLICT (source) DO UPDATE SET refused = refused + excluded.refused,"
            " last_refused_at = max(coalesce(last_refused_at, ''), excluded.last_refused_at)",
            (source, len(theirs), max(iso(refusal.at) for refusal in theirs)),
        )
        _count(db, "inbound", source, "refused", len(theirs))
        db.conn.executemany(
            "INSERT INTO refusal (source, at, reason, size_bytes) VALUES (?, ?, ?, ?)",
            [(source, iso(one.at), one.reason, one.size_bytes) for one in theirs[-REFUSALS_KEPT:]],
        )
        db.execute(
            "DELETE FROM refusal WHERE source = ? AND id <="
            " (SELECT id FROM refusal WHERE source = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (source, source, REFUSALS_KEPT),
        )


def _count(db: Database, kind: str, name: str, state: str, more: int) -> None:
    db.execute(
        "INSERT INTO tally VALUES (?, ?, ?, ?) ON CONFLICT (kind, name, state) DO UPDATE SET n = n + excluded.n",
        (kind, name, state, more),
    )
