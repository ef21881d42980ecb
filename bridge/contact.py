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
    if change.kind is Kind.ERASED or known.erased:
        return _erased(known, change)
    known = replace(
        known,
        fields=merge_fields(known.fields, _states(change)),
        account=known.account or change.account,
        thin=known.thin or change.thin,
    )
    match change.kind:
        case Kind.CREATED:
            return replace(known, created=_newest(known.created, change.version))
        case Kind.DELETED:
            return replace(known, deleted=_newest(known.deleted, change.version))
        case Kind.MERGED:
            return _merged(known, change)
        case _:
            return known


def merge_fields(ours: Mapping[str, FieldState], theirs: Mapping[str, FieldState]) -> dict[str, FieldState]:
    """Return both, the newest value winning per field."""
    merged = dict(ours)
    for name, state in theirs.items():
        merged[name] = _newer(merged[name], state) if name in merged else state
    return merged


def inherit(survivor: Contact, loser: Contact) -> Contact:
    """Return *survivor* with the fields of *loser*, the record that it continues under a new id."""
    if survivor.erased:
        return survivor
    return replace(
        absorb(survivor, loser.key),
        fields=merge_fields(survivor.fields, loser.fields),
        inherits=_with(survivor.inherits, loser.key.source_id),
    )


def absorb(survivor: Contact, loser: RecordKey) -> Contact:
    """Return *survivor* knowing that *loser* was merged into it: an opt-out said there counts here."""
    if survivor.erased:
        return survivor
    return replace(survivor, absorbed=_with(survivor.absorbed, loser.source_id))


def _with(ids: Iterable[str], added: str) -> tuple[str, ...]:
    return tuple(sorted({*ids, added}))


def _states(change: Change) -> dict[str, FieldState]:
    return {
        name: FieldState(
            value=value,
            version=change.version,
            said=None if is_empty(value) else value,
            said_version=None if is_empty(value) else change.version,
        )
        for name, value in change.fields.items()
    }


def _newer(ours: FieldState, theirs: FieldState) -> FieldState:
    value = max(ours, theirs, key=lambda state: (state.version, _text(state.value)))
    said = max(
        (state for state in (ours, theirs) if state.said_version is not None),
        key=lambda state: (state.said_version, _text(state.said)),
        default=ours,
    )
    return FieldState(value.value, value.version, said.said, said.said_version)


def _text(value: Value) -> str:
    """Order two values of one and the same version, so that even a contradictory source ends in one state."""
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


def _erased(known: Contact, change: Change) -> Contact:
    """Keep nothing but the fact. Erased is for good: a later event of the same record changes nothing."""
    erased = known.erased
    if change.kind is Kind.ERASED:
        erased = _newest(known.erased, change.version)
    return Contact(
        key=known.key,
        erased=erased,
        account=known.account or change.account,
        merged_into=None,
    )
