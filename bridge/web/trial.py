"""A dry run: what a webhook would come to. Nothing is stored or sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from bridge import contact as contacts
from bridge import rules
from bridge.config import SourceConnection
from bridge.errors import BadPayload, BadSignature
from bridge.expressions import TooMuch
from bridge.model import Change, Contact, Event, InboundRequest, Kind, RecordKey, Value, Verified, Version, Want
from bridge.pipeline.merging import lineage, merge_all
from bridge.rules import FieldRule, Route
from bridge.sources.base import Genuine
from bridge.store.protocol import Store

NEVER_SAID = "The source has not mentioned what it is made of, so the target's value is left alone."
NOTHING_SENT = "It is not sent, because nothing of this contact is."
WOULD_READ = "Bridge would first read the rest of the record from the CRM; give it as 'fields' to see the whole."


@dataclass(frozen=True, slots=True)
class FieldOutcome:
    """A target field: its value, or why it is left out; both, where the value is known and nothing is sent."""

    field: str
    value: Value
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class RouteOutcome:
    """What a route's target would be asked for. *decision*: ``send``, ``opt_out``, ``remove`` or ``wait``."""

    target: str
    key: RecordKey
    decision: str
    reason: str
    fields: Sequence[FieldOutcome]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a request would come to."""

    events: Sequence[Event] = ()
    contacts: Sequence[Contact] = ()
    routes: Sequence[RouteOutcome] = ()
    problem: str = ""  # why it cannot be read


def request_of(url: str, payload: object) -> InboundRequest:
    """Return a request that carries *payload* as JSON."""
    body = json.dumps(payload).encode()
    return InboundRequest("POST", url, {"content-type": "application/json"}, body)


def why_refused(connection: SourceConnection, request: InboundRequest, now: datetime) -> str:
    """Return why the source's check would refuse *request*, "" when it would pass."""
    try:
        connection.source.verify(request, now)
    except BadSignature as error:
        return str(error)
    return ""


def run(
    connection: SourceConnection,
    routes: Sequence[Route],
    request: InboundRequest,
    *,
    extra: Mapping[str, Value],
    store: Store | None,
    now: datetime,
    would_read: str = WOULD_READ,
    received_at: datetime | None = None,
    signed_at: datetime | None = None,
) -> Trial:
    """Parse *request* as if it had passed its check, merge it, and apply the rules of *routes*.

    *extra* is what else the CRM knows of each contact. *store*: merge into what it knows; None: start empty.
    *would_read* is what to tell whoever could have given more. *received_at* and *signed_at* are those of a stored
    request, which is older than what was said since; None: it comes at this moment.
    """
    came_at = received_at or now
    try:
        genuine = Genuine(Verified(request), 0, signed_at if received_at else now)
        events = connection.source.parse(genuine, came_at)
    except BadPayload as error:
        return Trial(problem=str(error))
    except TooMuch:
        raise
    except Exception as error:  # the same that the worker would say of it
        return Trial(problem=f"Bridge failed to read it ({type(error).__name__}, a bug).")
    changes = [contacts.clamp(change, came_at) for event in events for change in event.changes]
    known = _known(store, changes) if store else {}
    touched = merge_all(known, changes)
    if extra:
        touched |= merge_all(known, [_whole(key, extra, now) for key in sorted(touched) if known[key].alive])
    hint = would_read if connection.source.can_read() and not extra else ""
    return Trial(
        events=events,
        contacts=[known[key] for key in sorted(touched)],
        routes=[_outcome(route, known, key, hint) for key in sorted(touched) for route in routes],
    )


def _known(store: Store, changes: Sequence[Change]) -> dict[RecordKey, Contact]:
    wanted = {change.key for change in changes}
    wanted |= {RecordKey(change.key.source, change.survivor) for change in changes if change.survivor}
    known = store.contacts(wanted)
    related = {RecordKey(one.key.source, loser) for one in known.values() for loser in one.absorbed}
    return known | store.contacts(related - wanted)


def _whole(key: RecordKey, extra: Mapping[str, Value], now: datetime) -> Change:
    return Change(key, Kind.CHANGED, Version(now, "try"), extra)


def _outcome(route: Route, known: Mapping[RecordKey, Contact], key: RecordKey, hint: str) -> RouteOutcome:
    contact = known[key]
    want = rules.decide(route, contact, lineage(known, contact, lambda one: one.absorbed))
    reason = want.reason
    if hint and contact.alive and contact.read_at is None:
        reason = f"{reason} {hint}".strip()
    given = rules.decide(_unstopped(route), contact)
    fields = [_field(rule, want, given) for rule in route.fields]
    return RouteOutcome(route.target, key, _decision(want), reason, fields)


def _unstopped(route: Route) -> Route:
    """Return *route* without anything that makes a contact wait: it tells what the field rules come to."""
    return replace(route, when=None, opt_out=None, type=replace(route.type, identities=((),)))


def _decision(want: Want) -> str:
    if want.desired is None:
        return "wait"
    if want.desired.gone:
        return "remove"
    return "opt_out" if want.desired.opt_out else "send"


def _field(rule: FieldRule, want: Want, given: Want) -> FieldOutcome:
    """Return what comes of *rule* where *want* is asked for; *given* is what the rules give in any case."""
    name = rule.target
    if want.desired is not None and name in want.desired.fields:
        return FieldOutcome(name, want.desired.fields[name])
    if name in want.dropped:
        return FieldOutcome(name, None, want.dropped[name])
    if name in given.dropped:
        return FieldOutcome(name, None, given.dropped[name])
    if given.desired is not None and name in given.desired.fields:
        return FieldOutcome(name, given.desired.fields[name], NOTHING_SENT)
    if given.desired is not None and not given.desired.gone:
        return FieldOutcome(name, None, NEVER_SAID)
    return FieldOutcome(name, None, NOTHING_SENT)
