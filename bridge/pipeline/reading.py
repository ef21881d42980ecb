"""Read from the CRM what its events left out, and merge it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from bridge import contact as contacts
from bridge import log
from bridge.config import SourceConnection
from bridge.errors import SourceUnavailable
from bridge.model import Change, Contact, Kind, RecordKey, Want
from bridge.outbound import Api
from bridge.pipeline.merging import load, merge_all
from bridge.rules import Route
from bridge.sources.base import BatchUnreadable, Read
from bridge.store.protocol import Store

READ_PAUSE_S = 5.0  # before the CRM is read again after a failure, doubled each time
READ_PAUSE_CAP_S = 900.0
# What spoils a batch is found by halving it. So many failures without one success mean that it is not the records.
SPOILT_IN_A_ROW = 32


def fields_of(routes: Iterable[Route]) -> list[str]:
    """Return the names of the CRM's fields that any rule needs."""
    return sorted({name for route in routes for name in route.reads})


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
    """Read *keys* from the CRM and merge the answers; what cannot be read now is due again later.

    A record that spoils the answer for its whole batch is found, and waits alone.
    """
    fields = fields_of(routes)
    touched: set[RecordKey] = set()
    limit = connection.type.read_limit
    batches = deque(keys[start : start + limit] for start in range(0, len(keys), limit))
    spoilt = 0
    while batches:
        batch = batches.popleft()
        try:
            answers = connection.source.read(api, batch, fields)
        except SourceUnavailable as error:
            spoilt += 1
            if isinstance(error, BatchUnreadable) and spoilt < SPOILT_IN_A_ROW:
                if len(batch) > 1:
                    middle = len(batch) // 2
                    batches += [batch[:middle], batch[middle:]]
                else:
                    _put_off(connection, known, batch, error, now)
                continue
            _put_off(connection, known, [*batch, *(key for one in batches for key in one)], error, now)
            break
        spoilt = 0
        for answer in answers:
            touched |= _take_answer(known, store, answer, now)
    return touched


def _put_off(
    connection: SourceConnection,
    known: dict[RecordKey, Contact],
    keys: Sequence[RecordKey],
    error: SourceUnavailable,
    now: datetime,
) -> None:
    log.event("source.unreadable", level="warning", source=connection.name, records=len(keys))
    for key in keys:
        known[key] = _read_later(known[key], str(error), now, error.retry_after_s)


def _read_later(contact: Contact, why: str, now: datetime, retry_after_s: float = 0) -> Contact:
    pause_s = max(min(READ_PAUSE_S * 2**contact.read_tries, READ_PAUSE_CAP_S), retry_after_s)
    return replace(
        contact,
        thin=True,
        read_due=now + timedelta(seconds=pause_s),
        read_tries=min(contact.read_tries + 1, 30),
        read_note=why,
    )


def _take_answer(known: dict[RecordKey, Contact], store: Store, answer: Read, now: datetime) -> set[RecordKey]:
    asked = known[answer.asked]
    if answer.problem:
        known[answer.asked] = _read_later(asked, answer.problem, now)
        return set()
    done = replace(asked, thin=False, read_at=now, read_due=None, read_tries=0, read_note="")
    if answer.fields is None or answer.version is None:
        note = "The CRM does not know this record: it was deleted, or the event was a test."
        known[answer.asked] = replace(done, read_note=note)
        return set()
    if answer.key == answer.asked:
        change = contacts.clamp(
            Change(answer.key, Kind.CHANGED, answer.version, answer.fields, account=answer.account), now
        )
        known[answer.asked] = replace(contacts.merge(done, change), thin=False)
        return set()
    # The record lives on under another id: the same as a merge event that has not reached us.
    known[answer.asked] = done
    # With all that was merged into the survivor before: what those said of an opt-out counts now.
    for key, contact in load(store.contacts, {answer.key}).items():
        known.setdefault(key, contact)
    loser = Change(
        answer.asked,
        Kind.MERGED,
        answer.version,
        survivor=answer.key.source_id,
        heir_of=True,
        account=answer.account,
    )
    survivor = Change(answer.key, Kind.CHANGED, answer.version, answer.fields, account=answer.account)
    touched = merge_all(known, [contacts.clamp(loser, now), contacts.clamp(survivor, now)])
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
