"""Merge a batch of changes into what is known, following records that were merged into others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bridge import contact as contacts
from bridge.model import Change, Contact, Kind, RecordKey


def merge_all(known: dict[RecordKey, Contact], changes: Sequence[Change]) -> set[RecordKey]:
    """Merge *changes* into *known*; return the keys of all contacts that they bear upon."""
    touched: set[RecordKey] = set()
    for change in changes:
        known[change.key] = contacts.merge(known.get(change.key), change)
        touched.add(change.key)
        if change.kind is Kind.MERGED and change.survivor:
            survivor = RecordKey(change.key.source, change.survivor)
            heir = known.get(survivor) or Contact(survivor)
            known[survivor] = contacts.absorb(heir, change.key)
            if change.heir_of:
                known[survivor] = contacts.inherit(known[survivor], known[change.key])
            touched.add(survivor)
    for key in list(touched):
        touched |= _pass_on(known, key)
    return touched


def _pass_on(known: dict[RecordKey, Contact], key: RecordKey) -> set[RecordKey]:
    """Hand what is new of a merged record on to its survivor, and to that one's."""
    passed: set[RecordKey] = set()
    while (loser := known[key]).merged_into:
        survivor = RecordKey(key.source, loser.merged_into)
        if survivor in passed or survivor == key or survivor not in known:
            break
        if key.source_id in known[survivor].inherits:
            known[survivor] = contacts.inherit(known[survivor], loser)
        passed.add(survivor)
        key = survivor
    return passed


def lineage(
    known: Mapping[RecordKey, Contact], contact: Contact, losers: Callable[[Contact], tuple[str, ...]]
) -> list[Contact]:
    """Return the records merged into *contact*, and into those, and so on."""
    found: dict[RecordKey, Contact] = {}
    queue = [contact]
    while queue:
        for source_id in losers(queue.pop()):
            key = RecordKey(contact.key.source, source_id)
            if key in known and key not in found and key != contact.key:
                found[key] = known[key]
                queue.append(known[key])
    return list(found.values())
