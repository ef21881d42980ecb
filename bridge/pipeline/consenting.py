"""Consent that was said at a target: hand it to the sources of the contact, and write it back to their CRMs.

A source's contacts are changed by its own lane alone. So what a target tells becomes an inbound of the source, and
is processed, kept, shown and replayed as any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from bridge import log
from bridge.config import SourceConnection, TargetConnection
from bridge.contact import clamp
from bridge.errors import BadPayload, SourceUnavailable, StoreUnavailable
from bridge.model import (
    AuditEntry,
    Change,
    Contact,
    Delivery,
    Event,
    Kind,
    RecordKey,
    Version,
    from_iso,
    iso,
)
from bridge.outbound import Api
from bridge.sources.base import Writer
from bridge.store.protocol import Filter, NewInbound, Store
from bridge.targets.feedback import Consent
from bridge.values import national_digits

METHOD = "CONSENT"  # of such an inbound, in place of HTTP's
PAGE, MOST_PAGES = 50, 20  # of contacts with one phone number
WRITE_PAUSE_S, WRITE_PAUSE_CAP_S = 5.0, 3600.0
TOLD_AT_ONCE = 5  # calls of one round
SOON = timedelta(milliseconds=50)  # after this round: what is due by then would count as dealt with


# --- taking in -------------------------------------------------------------------------------------------


def take_in(
    target: TargetConnection, consents: Sequence[Consent], store: Store, url: str, now: datetime
) -> list[NewInbound]:
    """Return an inbound for each contact that *consents* are about, to be stored before the target is answered."""
    inbounds = []
    for consent in consents:
        for key in _people(target, consent, store):
            said = {
                "target": target.name,
                "channel": consent.channel,
                "type": consent.type,
                "stop": consent.stop,
                "source_id": key.source_id,
                "at": iso(consent.at or now),
                "event_id": consent.event_id,
            }
            inbounds.append(
                NewInbound(
                    source=key.source,
                    received_at=now,
                    method=METHOD,
                    url=url,
                    headers={"content-type": "application/json"},
                    body=json.dumps(said, sort_keys=True).encode(),
                    event_keys=(f"consent {target.name} {consent.event_id} {key.source_id}",),
                )
            )
    return inbounds


def _people(target: TargetConnection, consent: Consent, store: Store) -> Iterable[RecordKey]:
    if consent.target_id is not None:
        linked = store.linked_to(target.name, consent.target_id)
        return _not_ours(target, linked, store) if consent.stop and consent.by_api else linked
    found: dict[RecordKey, None] = {}
    for phone in consent.phones:
        for listed in _written_alike(phone, store):
            for (name, key), delivery in store.deliveries_for(listed).items():
                if name == target.name and _has(delivery, phone):
                    found[key] = None
    return found


def _written_alike(phone: str, store: Store) -> Iterator[list[RecordKey]]:
    """Yield pages of all contacts whose CRM may have meant *phone*: it need not have told the country."""
    narrowed, cursor = Filter(q=national_digits(phone)), None
    for _ in range(MOST_PAGES):
        page = store.contact_page(narrowed, cursor, PAGE)
        yield [one.key for one in page.items]
        if (cursor := page.next) is None:
            return


def _not_ours(target: TargetConnection, keys: Sequence[RecordKey], store: Store) -> list[RecordKey]:
    """Return those of *keys* that bridge did not opt out there itself: its own call is nobody's word."""
    held = store.deliveries_for(keys)
    wanted = {key: one.desired for key in keys if (one := held.get((target.name, key))) is not None}
    return [key for key in keys if not ((desired := wanted.get(key)) and desired.opt_out)]


def _has(delivery: Delivery, phone: str) -> bool:
    wanted = delivery.desired.fields if delivery.desired else {}
    return any(phone in held.values() for held in (wanted, delivery.accepted or {}))


def read(source: str, body: bytes, received_at: datetime) -> list[Event]:
    """Return what `take_in` wrote.

    Raises:
        BadPayload: it is something else.
    """
    try:
        said = json.loads(body)
        key = RecordKey(source, str(said["source_id"]))
        version = Version(from_iso(said["at"]), str(said["event_id"]))
        kind = Kind.STOPPED if said["stop"] else Kind.STARTED
        where = f"{said['target']} {said.get('channel', '')}".strip()  # names of targets hold no blanks
        change = Change(key, kind, version, target=where)
        return [Event(str(said["event_id"]), (clamp(change, received_at),), type=str(said["type"]))]
    except (ValueError, KeyError, TypeError) as error:
        raise BadPayload("It is not what bridge noted of a target's webhook.") from error


# --- writing back ----------------------------------------------------------------------------------------


def owes(contact: Contact) -> bool:
    """Say whether the person said a stop at a target that the CRM was not told of yet."""
    stop = contact.stopped
    return stop is not None and contact.alive and (contact.told is None or contact.told < stop)


def write_back(
    connection: SourceConnection,
    writer: Writer,
    api: Callable[[], Api],
    known: dict[RecordKey, Contact],
    touched: Iterable[RecordKey],
    due: Collection[RecordKey],
    now: datetime,
) -> list[AuditEntry]:
    """Tell the CRM of stops that it was not told of, of those contacts that are *due* for it.

    The others become due: a stop is saved, and holds at every target, before the CRM is asked for anything. A CRM
    that is away, or slow, is asked for no more than a few at a time, for whatever comes live waits meanwhile.
    """
    facts: list[AuditEntry] = []
    calls = 0
    for key in sorted(touched):
        contact = known[key]
        if not owes(contact) or (contact.read_due is not None and contact.read_due > now):
            continue
        if key not in due or calls >= TOLD_AT_ONCE:
            known[key] = replace(contact, read_due=now + SOON)
            continue
        calls += 1
        trouble = _tell(connection, writer, api, contact)
        if trouble is None:
            known[key] = replace(contact, told=contact.stopped, read_due=None, read_tries=0, read_note="")
            outcome, reason = "told", "The CRM was told that the person opted out at a target."
        else:
            calls = TOLD_AT_ONCE  # the next would most likely wait as long for nothing
            known[key] = _later(contact, trouble, now)
            outcome, reason = "not_told", f"The CRM could not be told of the opt-out. {trouble}"
        facts.append(
            AuditEntry(
                now,
                "contact",
                outcome,
                reason,
                source=key.source,
                source_id=key.source_id,
                fields=(connection.write_back,),
            )
        )
    return facts


def _tell(
    connection: SourceConnection, writer: Writer, api: Callable[[], Api], contact: Contact
) -> SourceUnavailable | None:
    """Tell the CRM; return why it could not be told."""
    source_id = contact.key.source_id
    try:
        writer.opt_out(api(), source_id, connection.write_back)
    except SourceUnavailable as error:
        log.event("source.not_told", level="warning", source=connection.name, source_id=source_id)
        return error
    except StoreUnavailable:
        raise
    except Exception as error:  # an answer that our adapter chokes on must not make the contact's round fail
        log.bug("source.not_told", error, source=connection.name, source_id=source_id)
        return SourceUnavailable(f"Bridge failed on what the CRM answered ({type(error).__name__}, a bug).")
    return None


def _later(contact: Contact, trouble: SourceUnavailable, now: datetime) -> Contact:
    pause_s = min(WRITE_PAUSE_S * 2.0 ** min(contact.read_tries, 12), WRITE_PAUSE_CAP_S)
    return replace(
        contact,
        read_due=now + timedelta(seconds=max(pause_s, trouble.retry_after_s)),
        read_tries=min(contact.read_tries + 1, 30),
        read_note=f"The CRM could not be told of the opt-out: {trouble}",
    )
