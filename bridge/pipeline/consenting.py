"""Consent that was said at a target: hand it to the sources of the contact, and write it back to their CRMs.

A source's contacts are changed by its own lane alone. So what a target tells becomes an inbound of the source, and
is processed, kept, shown and replayed as any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from bridge import log
from bridge.config import SourceConnection, TargetConnection
from bridge.contact import clamp
from bridge.errors import BadPayload, SourceUnavailable
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

METHOD = "CONSENT"  # of such an inbound, in place of HTTP's
MOST_FOUND = 50  # contacts with one phone number
WRITE_PAUSE_S, WRITE_PAUSE_CAP_S = 5.0, 3600.0


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
                    event_keys=(f"consent {target.name} {consent.event_id} {key.source_id}"[:300],),
                )
            )
    return inbounds


def _people(target: TargetConnection, consent: Consent, store: Store) -> Iterable[RecordKey]:
    if consent.target_id is not None:
        return store.linked_to(target.name, consent.target_id)
    found: dict[RecordKey, None] = {}
    for phone in consent.phones:
        listed = [one.key for one in store.contact_page(Filter(q=phone), None, MOST_FOUND).items]
        for (name, key), delivery in store.deliveries_for(listed).items():
            if name == target.name and _has(delivery, phone):
                found[key] = None
    return found


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
        change = Change(key, kind, version, target=str(said["target"]))
        return [Event(str(said["event_id"]), (clamp(change, received_at),), type=str(said["type"]))]
    except (ValueError, KeyError, TypeError) as error:
        raise BadPayload("It is not what bridge noted of a target's webhook.") from error


# --- writing back ----------------------------------------------------------------------------------------


def write_back(
    connection: SourceConnection,
    writer: Writer,
    api: Api,
    known: dict[RecordKey, Contact],
    touched: Iterable[RecordKey],
    now: datetime,
) -> list[AuditEntry]:
    """Tell the CRM of stops that it was not told of; who cannot be told now is due again later."""
    facts = []
    for key in sorted(touched):
        contact = known[key]
        stop = contact.stopped
        if stop is None or not contact.alive or (contact.told is not None and contact.told >= stop):
            continue
        if contact.read_due is not None and contact.read_due > now:
            continue
        try:
            writer.opt_out(api, key.source_id, connection.write_back)
        except SourceUnavailable as error:
            log.event("source.not_told", level="warning", source=connection.name, source_id=key.source_id)
            pause_s = max(
                min(WRITE_PAUSE_S * 2.0 ** min(contact.read_tries, 12), WRITE_PAUSE_CAP_S), error.retry_after_s
            )
            known[key] = replace(
                contact,
                read_due=now + timedelta(seconds=pause_s),
                read_tries=min(contact.read_tries + 1, 30),
                read_note=f"The CRM could not be told of the opt-out: {error}",
            )
            outcome, reason = "not_told", f"The CRM could not be told of the opt-out. {error}"
        else:
            known[key] = replace(contact, told=stop, read_due=None, read_tries=0, read_note="")
            outcome, reason = "told", "The CRM was told that the person opted out at a target."
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
