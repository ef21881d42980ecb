"""What is known of a contact, merged field by field.

Every function here is commutative and idempotent over changes: late, repeated and reordered events end in the
same contact. Nothing is ever decided by the order of arrival.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from bridge.model import Change, Contact, FieldState, Kind, RecordKey, Value, Version

AHEAD_TOLERATED = timedelta(minutes=5)


def is_empty(value: Value) -> bool:
    """Say whether *value* is what a source sends for a cleared field."""
    return value is None or value == "" or value == []


def clamp(change: Change, received_at: datetime) -> Change:
    """Return *change* with a moment that is not far ahead of its receipt.

    A source with a wrong clock would otherwise own the field until its clock comes true.
    """
    if change.version.occurred_at <= received_at + AHEAD_TOLERATED:
        return change
    return replace(change, version=Version(received_at, change.version.event_id))


def merge(contact: Contact | None, change: Change) -> Contact:
    """Return *contact* with what *change* says; the newest wins per field, and for life and death."""
    known = contact or Contact(change.key)
    if change.account and not known.account:
        known = replace(known, account=change.account)
    if change.kind is Kind.ERASED:
        return erase(known, change.version)
    if change.kind is Kind.MERGED:
        known = _merged(known, change)
    if known.erased:
        return known
    if change.kind is Kind.STOPPED or change.kind is Kind.STARTED:
        return _with_consent(known, change)
    created, deleted = known.created, known.deleted
    if change.kind is Kind.CREATED:
        created = _newest(created, change.version)
    elif change.kind is Kind.DELETED:
        deleted = _newest(deleted, change.version)
    return replace(
        known,
        fields=merge_fields(known.fields, _states(change)),
        thin=known.thin or change.thin,
        created=created,
        deleted=deleted,
    )


def _with_consent(known: Contact, change: Change) -> Contact:
    target = change.target or ""
    if change.kind is Kind.STOPPED:
        return replace(known, stops={**known.stops, target: _newest(known.stops.get(target), change.version)})
    return replace(known, starts={**known.starts, target: _newest(known.starts.get(target), change.version)})


def _newest_each(ours: Mapping[str, Version], theirs: Mapping[str, Version]) -> Mapping[str, Version]:
    return {**ours, **{target: _newest(ours.get(target), version) for target, version in theirs.items()}}


def merge_fields(ours: Mapping[str, FieldState], theirs: Mapping[str, FieldState]) -> dict[str, FieldState]:
    """Return both, the newest value winning per field."""
    merged = dict(ours)
    for name, state in theirs.items():
        merged[name] = _newer(merged[name], state) if name in merged else state
    return merged


def erase(contact: Contact, version: Version) -> Contact:
    """Return nothing of *contact* but that it was erased, for good, and the ids of the records merged with it.

    The ids stay because they are one person: what comes late of any of these records is to be erased as well.
    """
    return Contact(
        key=contact.key,
        erased=_newest(contact.erased, version),
        merged_into=contact.merged_into,
        merged=contact.merged,
        inherits=contact.inherits,
        absorbed=contact.absorbed,
        account=contact.account,
    )


def relatives(contact: Contact) -> set[RecordKey]:
    """Return the records that were merged into *contact*, and the one that it was merged into."""
    if not contact.absorbed and not contact.merged_into:
        return set()
    ids = {*contact.absorbed, *([contact.merged_into] if contact.merged_into else [])}
    return {RecordKey(contact.key.source, source_id) for source_id in ids}


def inherit(survivor: Contact, loser: Contact) -> Contact:
    """Return *survivor* with the fields of *loser*, the record that it continues under a new id."""
    heir = absorb(survivor, loser.key)
    heir = replace(heir, inherits=_with(heir.inherits, loser.key.source_id))
    if heir.erased:
        return heir
    return replace(
        heir,
        fields=merge_fields(heir.fields, loser.fields),
        stops=_newest_each(heir.stops, loser.stops),
        starts=_newest_each(heir.starts, loser.starts),
    )


def absorb(survivor: Contact, loser: RecordKey) -> Contact:
    """Return *survivor* knowing that *loser* was merged into it: an opt-out said there counts here."""
    return replace(survivor, absorbed=_with(survivor.absorbed, loser.source_id))


def _with(ids: Iterable[str], added: str) -> tuple[str, ...]:
    return tuple(sorted({*ids, added}))


def _states(change: Change) -> dict[str, FieldState]:
    version = change.version
    return {
        name: FieldState(value, version) if is_empty(value) else FieldState(value, version, value, version)
        for name, value in change.fields.items()
    }


def _newer(ours: FieldState, theirs: FieldState) -> FieldState:
    if theirs.said_version == theirs.version > max(ours.version, ours.said_version or ours.version):
        return theirs  # as nearly always
    value = theirs if _wins(theirs.value, theirs.version, ours.value, ours.version) else ours
    said = theirs if _wins(theirs.said, theirs.said_version, ours.said, ours.said_version) else ours
    return FieldState(value.value, value.version, said.said, said.said_version)


def _wins(value: Value, version: Version | None, other: Value, other_version: Version | None) -> bool:
    """Say whether *value* is to stand instead of the *other*. No version: nothing was said."""
    if version is None or other_version is None:
        return version is not None
    if version != other_version:
        return version > other_version
    # One and the same version: by their text, so that even a contradictory source ends in one state.
    return _text(value) > _text(other)


def _text(value: Value) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def _newest(ours: Version | None, theirs: Version) -> Version:
    return theirs if ours is None else max(ours, theirs)


def _merged(known: Contact, change: Change) -> Contact:
    if known.merged is not None and (known.merged, known.merged_into or "") >= (
        change.version,
        change.survivor or "",
    ):
        return known
    return replace(known, merged=change.version, merged_into=change.survivor)
