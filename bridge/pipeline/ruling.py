"""At a start: see which rules are not what they were, and have decided again what they bear upon."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from bridge.rules import Route
from bridge.store.protocol import Rules, Ruling, Store


def follow(routes: Sequence[Route], sources: Mapping[str, bool], store: Store, now: datetime) -> Ruling:
    """Put *routes* in force; return what that asked for. Nothing is written where nothing changed.

    *sources* are the names of all, each with whether its records can be read from the CRM. No lane may run yet.
    """
    before = store.rules()
    ruling = compare(before, routes, sources)
    if ruling.rules != before:
        store.put_in_force(ruling, now)
    return ruling


def compare(before: Rules | None, routes: Sequence[Route], sources: Mapping[str, bool]) -> Ruling:
    """Return what it asks for that *routes* follow *before*, which is None at the very first start."""
    digests = {(route.source, route.target): route.digest for route in routes}
    if before is None:
        return Ruling(Rules(digests, {name: _reads(routes, name, can, ()) for name, can in sources.items()}))
    asked = {name: before.reads.get(name, frozenset[str]()) for name in sources}
    # Of a source that is no longer in the file, what was asked for stays remembered.
    reads = {**before.reads, **{name: _reads(routes, name, can, asked[name]) for name, can in sources.items()}}
    return Ruling(
        Rules(digests, reads),
        changed=sorted(pair for pair, digest in digests.items() if before.routes.get(pair) != digest),
        gone=sorted(before.routes.keys() - digests.keys()),
        unread=sorted(name for name in sources if not set(reads[name]) <= set(asked[name])),
    )


def _reads(routes: Sequence[Route], source: str, can_read: bool, asked: Collection[str]) -> frozenset[str]:
    """Return the fields that are asked of the source's CRM: as before while nothing can be."""
    if not can_read:
        return frozenset(asked)
    return frozenset[str]().union(*(route.reads for route in routes if route.source == source))
