"""Read from the CRM what its events left out, and merge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from bridge import contact as contacts
from bridge import log
from bridge.config import SourceConnection
from bridge.errors import SourceUnavailable
from bridge.model import Change, Contact, Kind, RecordKey, Want
from bridge.outbound import Api
from bridge.pipeline.merging import merge_all
from bridge.rules import Route
from bridge.sources.base import Read
from bridge.store.protocol import Store

READ_PAUSE_S = 5.0  # before the CRM is read again after a failure, doubled each time
READ_PAUSE_CAP_S = 900.0


def wants_read(contact: Contact | None, now: datetime) -> bool:
    """Say whether the whole record should be read from the CRM: it is new to us, or was left thin."""
    if contact is None or not contact.alive:
        return False
    if contact.read_due is not None and contact.read_due > now:
        return False
    return contact.thin or contact.read_at is None


def unless_readable(contact: Contact, *, can_read: bool) -> Contact:
    """Return *contact* no longer due to be read, where it never will be: it is gone, or no token is configured."""
    if contact.read_due is None or (can_read and contact.alive):
        return contact
    return replace(contact, read_due=None)


def read(
    connection: SourceConnection,
    routes: Sequence[Route],
    api: Api,
    known: dict[RecordKey, Contact],
    store: Store,
    keys: Sequence[RecordKey],
    now: datetime,
) -> set[RecordKey]:
    """Read *keys* from the CRM and merge the answers; what cannot be read now is due again later."""
    fields = sorted({name for route in routes for name in route.reads})
    touched: set[RecordKey] = set()
    limit = connection.type.read_limit
    for start in range(0, len(keys), limit):
        batch = keys[start : start + limit]
        try:
            answers = connection.source.read(api, batch, fields)
        except SourceUnavailable as error:
            log.event("source.unreadable", level="warning", source=connection.name, records=len(keys) - start)
            for key in keys[start:]:
                known[key] = _read_later(known[key], error, now)
            break
        for answer in answers:
            touched |= _take_answer(known, store, answer, now)
    return touched


def _read_later(contact: Contact, error: SourceUnavailable, now: datetime) -> Contact:
    pause_s = max(min(READ_PAUSE_S * 2**contact.read_tries, READ_PAUSE_CAP_S), error.retry_after_s)
    return replace(
        contact,
        thin=True,
        read_due=now + timedelta(seconds=pause_s),
        read_tries=min(contact.read_tries + 1, 30),
        read_note=str(error),
    )


def _take_answer(known: dict[RecordKey, Contact], store: Store, answer: Read, now: datetime) -> set[RecordKey]:
    asked = known[answer.asked]
    done = replace(asked, thin=False, read_at=now, read_due=None, read_tries=0, read_note="")
    if answer.fields is None or answer.version is None:
        note = "The CRM does not know this record: it was deleted, or the event was a test."
        known[answer.asked] = replace(done, read_note=note)
        return set()
    if answer.key == answer.asked:
        change = Change(answer.key, Kind.CHANGED, answer.version, answer.fields, account=answer.account)
        known[answer.asked] = replace(contacts.merge(done, change), thin=False)
        return set()
    # The record lives on under another id: the same as a merge event that has not reached us.
    known[answer.asked] = done
    if answer.key not in known:
        known |= store.contacts([answer.key])
    loser = Change(
        answer.asked,
        Kind.MERGED,
        answer.version,
        survivor=answer.key.source_id,
        heir_of=True,
        account=answer.account,
    )
    survivor = Change(answer.key, Kind.CHANGED, answer.version, answer.fields, account=answer.account)
    touched = merge_all(known, [loser, survivor])
    known[answer.key] = replace(known[answer.key], thin=False, read_at=now, read_due=None, read_tries=0)
    return touched


def after_reading(want: Want, contact: Contact) -> Want:
    """Nothing is built on half a record: until it was read once, only an opt-out goes out."""
    if not contact.alive or (want.desired and want.desired.opt_out):
        return want
    if contact.read_at is None:
        reason = f"Waiting to be read from the CRM. {contact.read_note} Bridge tries again by itself."
        return replace(want, desired=None, reason=" ".join(reason.split()))
    if want.desired is None and contact.read_note:
        return replace(want, reason=f"{want.reason} {contact.read_note}")
    return want
