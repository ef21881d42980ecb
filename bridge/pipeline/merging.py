"""Merge a batch of changes into what is known, following records that were merged into others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from bridge import contact as contacts
from bridge.model import Change, Contact, Kind, RecordKey


def load(
    find: Callable[[Collection[RecordKey]], Mapping[RecordKey, Contact]], keys: Iterable[RecordKey]
) -> dict[RecordKey, Contact]:
    """Return the contacts of *keys* and all that they are merged with, as far as *find* knows them."""
    known: dict[RecordKey, Contact] = {}
    asked: set[RecordKey] = set()
    wanted = set(keys)
    while wanted:
        found = find(wanted)
        known |= found
        asked |= wanted
        wanted = set[RecordKey]().union(*map(contacts.relatives, found.values())) - asked
    return known


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
    return touched | _erase_together(known, touched)


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


def _erase_together(known: dict[RecordKey, Contact], touched: Iterable[RecordKey]) -> set[RecordKey]:
    """Erase every record of a person of whom one was erased, whichever it was; return what changed by that.

    Merged records are one person, and parts of each live on in the others. All of them get the newest moment, so
    that the order in which erasures and merges arrive does not show.
    """
    changed: set[RecordKey] = set()
    if not any(contact.erased for contact in known.values()):
        return changed
    seen: set[RecordKey] = set()
    for key in touched:
        if key in seen:
            continue
        person = _person(known, key)
        seen |= person
        newest = max((erased for one in person if (erased := known[one].erased)), default=None)
        if newest is None:
            continue
        for one in person:
            if known[one].erased != newest:
                known[one] = contacts.erase(known[one], newest)
                changed.add(one)
    return changed


def _person(known: Mapping[RecordKey, Contact], key: RecordKey) -> set[RecordKey]:
    """Return the keys of all known records that are one person with *key*, itself included."""
    found = {key}
    queue = [key]
    while queue:
        near = (contacts.relatives(known[queue.pop()]) & known.keys()) - found
        found |= near
        queue.extend(near)
    return found


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
