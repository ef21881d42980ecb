"""A contact as a person speaks of it: what to call it, what became of it, and where its values are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from bridge.config import Config
from bridge.model import AuditEntry, Contact, Kind, Value
from bridge.pipeline.processing import parse
from bridge.store.protocol import Filter, Store

# The names that CRMs commonly have for these, without signs and in lower case.
FULL_NAMES = ("name", "fullname", "displayname")
FIRST_NAMES = ("firstname", "first", "givenname")
LAST_NAMES = ("lastname", "last", "surname", "familyname")
OTHERS = ("email", "emails", "workemail", "phone", "phones", "mobile", "mobilephone", "company")
LONGEST_NAME = 120

ALIVE = "alive"
READ = "read"  # the event id of what bridge read from the CRM by itself
ENTRIES = 50  # of the audit log, looked through for where values are from
WEBHOOKS = 10  # read again for that
BYTES = 2_000_000  # of them together


def life_of(contact: Contact) -> str:
    """Return `ALIVE`, or what became of it: ``erased``, ``merged``, ``deleted``."""
    if contact.erased:
        return Kind.ERASED.value
    if contact.merged_into:
        return Kind.MERGED.value
    return ALIVE if contact.alive else Kind.DELETED.value


def name_of(contact: Contact) -> str:
    """Return what to call a person: a name, else an address or a number, else ""."""
    known: dict[str, str] = {}
    for name, state in contact.fields.items():
        known["".join(filter(str.isalnum, name)).lower()] = _first_text(state.value)

    def first(names: Sequence[str]) -> str:
        return next((known[name] for name in names if known.get(name)), "")

    given, family = first(FIRST_NAMES) or first(FULL_NAMES), first(LAST_NAMES)
    whole = given if family in given else f"{given} {family}"
    return (whole.strip() or first(OTHERS))[:LONGEST_NAME]


def _first_text(value: Value) -> str:
    """Return the text of a value; of a list of texts, or of ``{"value": …}`` as Pipedrive has it, the first."""
    match value:
        case str():
            return " ".join(value.split())
        case [first, *_]:
            return _first_text(first)
        case {"value": first}:
            return _first_text(first)
    return ""


def said_at(contact: Contact) -> datetime | None:
    """Return when the source last said something of the contact, by its own clock."""
    versions = [state.version for state in contact.fields.values()]
    versions += [one for one in (contact.created, contact.deleted, contact.erased, contact.merged) if one]
    return max((version.occurred_at for version in versions), default=None)


def origins(store: Store, config: Config, contact: Contact) -> Mapping[str, int]:
    """Return which webhook brought each value that is known: field -> inbound id, as far as it can be told.

    The newest webhooks are read again for the ids of their events; of one without its payload, the audit log knows
    which fields it spoke of.
    """
    key = contact.key
    page = store.audit_page(Filter(source=key.source, source_id=key.source_id, kind="contact"), None, ENTRIES)
    spoke = [entry for entry in page.items if entry.inbound_id is not None]
    by_event = _events(store, config, contact, spoke)
    found = {}
    for name, state in contact.fields.items():
        event_id = state.version.event_id
        if event_id in by_event:
            found[name] = by_event[event_id]
        elif event_id != READ and page.next is None:
            named = {entry.inbound_id for entry in spoke if name in entry.fields}
            if len(named) == 1 and (only := named.pop()) is not None:
                found[name] = only
    return found


def _events(store: Store, config: Config, contact: Contact, spoke: Sequence[AuditEntry]) -> Mapping[str, int]:
    """Return the events of the contact's newest webhooks: event id -> inbound id."""
    connection = config.sources.get(contact.key.source)
    wanted = {state.version.event_id for state in contact.fields.values()} - {READ}
    found: dict[str, int] = {}
    size = 0
    for inbound_id in list(dict.fromkeys(entry.inbound_id for entry in spoke))[:WEBHOOKS]:
        if connection is None or inbound_id is None or size > BYTES or wanted <= found.keys():
            break
        inbound = store.inbound(inbound_id)
        if inbound is None or inbound.body is None:
            continue
        size += len(inbound.body)
        for event in parse(connection, inbound).events:
            for change in event.changes:
                if change.version.event_id in wanted and change.key == contact.key:
                    found.setdefault(change.version.event_id, inbound_id)
    return found
