"""What the API answers. The description at ``/api/openapi.json`` is made from these models."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bridge import schedule
from bridge.model import AuditEntry, Change, Contact, Delivery, Desired, Event, Outcome, State, iso
from bridge.store import protocol
from bridge.store.protocol import Refusal
from bridge.web.trial import Trial

# A field's value as the source gave it or the target takes it: any JSON.
Json = Any


class Output(BaseModel):
    model_config = ConfigDict(frozen=True)


# --- lists -----------------------------------------------------------------------------------------------


EventTypes = Annotated[
    list[str], Field(description="What the CRM calls what happened, as `contact.propertyChange`; at most five.")
]


class InboundItem(Output):
    """A stored webhook."""

    id: int
    source: str
    received_at: datetime
    outcome: Outcome
    reason: Annotated[str, Field(description="Why the outcome is what it is.")]
    events: Annotated[int, Field(description="How many events it holds.")]
    event_types: EventTypes
    repeats: Annotated[int, Field(description="How many times all of it came again.")]
    signed_at: datetime | None
    processed_at: datetime | None
    payload_kept: Annotated[bool, Field(description="False once its payload was pruned or erased.")]


class RefusalItem(Output):
    """A request that failed verification."""

    source: str
    at: datetime
    reason: str
    size_bytes: int


class FieldItem(Output):
    value: Json
    occurred_at: datetime
    event_id: str


class ContactItem(Output):
    """What one source has said about one of its records."""

    source: str
    source_id: str
    alive: Annotated[bool, Field(description="Neither deleted, erased nor merged into another.")]
    fields: dict[str, FieldItem]
    account: str | None
    created_at: datetime | None
    deleted_at: datetime | None
    erased_at: datetime | None
    merged_into: Annotated[str | None, Field(description="The source id it lives on as.")]
    absorbed: Annotated[list[str], Field(description="Source ids that were merged into it.")]
    read_at: Annotated[datetime | None, Field(description="When the whole record was read from the CRM.")]
    read_due_at: datetime | None
    read_note: str


class DesiredItem(Output):
    """What the target should hold. A value of null clears the field."""

    fields: dict[str, Json]
    modes: Annotated[dict[str, str], Field(description="Fields that are not always written, and when they are.")]
    opt_out: bool
    create: bool
    gone: Annotated[bool, Field(description="The contact is to be removed from the target.")]


class Difference(Output):
    wanted: Json
    held: Annotated[Json, Field(description="What the target last accepted; null when nothing is known.")]


class DeliveryItem(Output):
    """One contact on its way to one target."""

    target: str
    source: str
    source_id: str
    state: State
    reason: Annotated[str, Field(description="Why it is in this state and what happens next.")]
    updated_at: datetime
    target_id: str | None
    desired: DesiredItem | None
    accepted: Annotated[dict[str, Json] | None, Field(description="What the target last accepted.")]
    accepted_opt_out: Annotated[bool, Field(description="The target is known to hold the opt-out.")]
    difference: Annotated[
        dict[str, Difference], Field(description="Desired fields the target is not known to hold.")
    ]
    left_out: Annotated[dict[str, str], Field(description="Fields the rules left out, and why.")]
    attempts: Annotated[int, Field(description="Tries since the last success or new state.")]
    next_attempt_at: datetime | None
    error: Annotated[str | None, Field(description="Class of the last attempt's error.")]
    status: Annotated[int | None, Field(description="HTTP status of the last attempt.")]


class AuditItem(Output):
    """A fact. *detail* is personal and goes when it is pruned or erased; the rest stays."""

    id: int | None
    at: datetime
    kind: str
    outcome: str
    reason: str
    source: str | None
    source_id: str | None
    target: str | None
    inbound: int | None
    event_types: EventTypes
    attempt: int | None
    status: int | None
    error: str | None
    duration_ms: int | None
    fields: list[str]
    detail: Json


class ListOf(Output):
    next: Annotated[str | None, Field(description="Give it as `cursor` for the next page; null on the last.")]


class InboundList(ListOf):
    items: list[InboundItem]


class ContactList(ListOf):
    items: list[ContactItem]


class DeliveryList(ListOf):
    items: list[DeliveryItem]


class AuditList(ListOf):
    items: list[AuditItem]


class RefusalList(Output):
    """The last 200 of each source."""

    items: list[RefusalItem]


# --- single things ---------------------------------------------------------------------------------------


class Payload(Output):
    """A body as text where it is UTF-8, else as base64."""

    text: str | None
    base64: str | None
    size_bytes: int


class ChangeItem(Output):
    source_id: str
    kind: str
    occurred_at: datetime
    fields: dict[str, Json]
    thin: Annotated[bool, Field(description="The event says less than the CRM knows.")]
    survivor: str | None
    account: str | None


class EventItem(Output):
    key: str
    type: Annotated[str, Field(description="What the CRM calls it; empty where it does not say.")]
    changes: list[ChangeItem]
    ignored: Annotated[str, Field(description="Why the event is nothing for bridge.")]
    unreadable: Annotated[str, Field(description="Why the event makes no sense.")]


class InboundDetail(InboundItem):
    method: str
    url: str
    headers: dict[str, str]
    body: Annotated[Payload | None, Field(description="null once it was pruned or erased.")]
    parsed: Annotated[list[EventItem], Field(description="What it says, read anew from its bytes.")]
    problem: Annotated[str, Field(description="Why it cannot be read, if it cannot.")]
    audit: list[AuditItem]


class ContactDetail(ContactItem):
    deliveries: Annotated[list[DeliveryItem], Field(description="One for each target.")]
    audit: Annotated[list[AuditItem], Field(description="The newest entries about this contact.")]


class SourceItem(Output):
    name: str
    type: str
    title: str
    url: Annotated[str, Field(description="Where its webhooks go.")]
    needs_token: Annotated[bool, Field(description="The URL takes a token: bridge url SOURCE.")]
    account: str | None
    last_inbound_at: datetime | None
    unprocessed: int
    refused: int
    last_refused_at: datetime | None


class TargetItem(Output):
    name: str
    type: str
    title: str
    mode: Annotated[str, Field(description="open, held (by bridge) or paused (by a person).")]
    reason: str
    since: datetime | None
    by: str
    probe_at: Annotated[datetime | None, Field(description="When bridge tries the credentials again.")]
    deliveries: Annotated[dict[str, int], Field(description="How many are in each state.")]


class RouteItem(Output):
    source: str
    target: str


class CheckItem(Output):
    name: str
    ok: bool
    detail: str
    age_s: float | None


class Status(Output):
    version: str
    now: datetime
    ready: bool
    checks: list[CheckItem]
    inbound: Annotated[dict[str, int], Field(description="Stored webhooks by outcome.")]
    sources: list[SourceItem]
    targets: list[TargetItem]
    routes: list[RouteItem]


class Replayed(Output):
    count: Annotated[int, Field(description="Contacts or inbounds that are evaluated again.")]
    dry_run: bool


class TriedField(Output):
    field: Annotated[str, Field(description="The target's name of it.")]
    value: Annotated[Json, Field(description="What the rules give, even where nothing is sent now.")]
    left_out: Annotated[str, Field(description="Why it is not sent; empty when it is.")]


class TriedRoute(Output):
    target: str
    source_id: str
    decision: Annotated[str, Field(description="send, opt_out, remove or wait.")]
    reason: str
    fields: list[TriedField]


class Tried(Output):
    genuine: Annotated[bool | None, Field(description="The given request passed its check; null for a payload.")]
    refused_because: str
    problem: Annotated[str, Field(description="Why it cannot be read, if it cannot.")]
    events: list[EventItem]
    contacts: Annotated[list[ContactItem], Field(description="The contacts after merging.")]
    routes: list[TriedRoute]


def to_json(answer: Output) -> str:
    """Return *answer* as JSON that every client reads: no NaN, and no half of a surrogate pair as such."""
    return json.dumps(_finite(answer.model_dump()), default=_as_text)


def _finite(value: Json) -> Json:
    """JSON has no NaN and no infinity, yet Python reads them from a webhook: they are shown as text."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {str(name): _finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case _:
            return value


def _as_text(value: object) -> str:
    return iso(value) if isinstance(value, datetime) else str(value)


# --- from the store's values -----------------------------------------------------------------------------


def inbound_item(inbound: protocol.Inbound) -> InboundItem:
    return InboundItem(**_inbound(inbound))


def _inbound(inbound: protocol.Inbound) -> dict[str, Any]:
    return {
        "id": inbound.id,
        "source": inbound.source,
        "received_at": inbound.received_at,
        "outcome": inbound.outcome,
        "reason": inbound.reason,
        "events": inbound.events,
        "event_types": list(inbound.event_types),
        "repeats": inbound.repeats,
        "signed_at": inbound.signed_at,
        "processed_at": inbound.processed_at,
        "payload_kept": inbound.body is not None,
    }


def inbound_detail(
    inbound: protocol.Inbound, events: Sequence[Event], problem: str, audit: Sequence[AuditEntry]
) -> InboundDetail:
    return InboundDetail(
        **_inbound(inbound),
        method=inbound.method,
        url=inbound.url,
        headers=dict(inbound.headers),
        body=None if inbound.body is None else payload(inbound.body),
        parsed=[event_item(event) for event in events],
        problem=problem,
        audit=[audit_item(entry) for entry in audit],
    )


def payload(body: bytes) -> Payload:
    try:
        return Payload(text=body.decode(), base64=None, size_bytes=len(body))
    except UnicodeDecodeError:
        return Payload(text=None, base64=base64.b64encode(body).decode(), size_bytes=len(body))


def event_item(event: Event) -> EventItem:
    return EventItem(
        key=event.key,
        type=event.type,
        changes=[change_item(change) for change in event.changes],
        ignored=event.ignored,
        unreadable=event.unreadable,
    )


def change_item(change: Change) -> ChangeItem:
    return ChangeItem(
        source_id=change.key.source_id,
        kind=change.kind.value,
        occurred_at=change.version.occurred_at,
        fields=dict(change.fields),
        thin=change.thin,
        survivor=change.survivor,
        account=change.account,
    )


def refusal_item(refusal: Refusal) -> RefusalItem:
    return RefusalItem(source=refusal.source, at=refusal.at, reason=refusal.reason, size_bytes=refusal.size_bytes)


def contact_item(contact: Contact) -> ContactItem:
    return ContactItem(**_contact(contact))


def _contact(contact: Contact) -> dict[str, Any]:
    return {
        "source": contact.key.source,
        "source_id": contact.key.source_id,
        "alive": contact.alive,
        "fields": {
            name: FieldItem(
                value=state.value, occurred_at=state.version.occurred_at, event_id=state.version.event_id
            )
            for name, state in sorted(contact.fields.items())
        },
        "account": contact.account,
        "created_at": contact.created and contact.created.occurred_at,
        "deleted_at": contact.deleted and contact.deleted.occurred_at,
        "erased_at": contact.erased and contact.erased.occurred_at,
        "merged_into": contact.merged_into,
        "absorbed": list(contact.absorbed),
        "read_at": contact.read_at,
        "read_due_at": contact.read_due,
        "read_note": contact.read_note,
    }


def contact_detail(contact: Contact, deliveries: Sequence[Delivery], audit: Sequence[AuditEntry]) -> ContactDetail:
    return ContactDetail(
        **_contact(contact),
        deliveries=[delivery_item(delivery) for delivery in deliveries],
        audit=[audit_item(entry) for entry in audit],
    )


def delivery_item(delivery: Delivery) -> DeliveryItem:
    return DeliveryItem(
        target=delivery.target,
        source=delivery.key.source,
        source_id=delivery.key.source_id,
        state=delivery.state,
        reason=delivery.reason,
        updated_at=delivery.updated_at,
        target_id=delivery.target_id,
        desired=desired_item(delivery.desired),
        accepted=None if delivery.accepted is None else dict(delivery.accepted),
        accepted_opt_out=delivery.accepted_opt_out,
        difference=difference(delivery.desired, delivery.accepted),
        left_out=dict(delivery.left_out),
        attempts=delivery.attempts,
        next_attempt_at=delivery.due_at,
        error=delivery.error,
        status=delivery.status,
    )


def desired_item(desired: Desired | None) -> DesiredItem | None:
    if desired is None:
        return None
    return DesiredItem(
        fields=dict(desired.fields),
        modes={name: mode.value for name, mode in desired.modes.items()},
        opt_out=desired.opt_out,
        create=desired.create,
        gone=desired.gone,
    )


def difference(desired: Desired | None, accepted: Mapping[str, Json] | None) -> dict[str, Difference]:
    if desired is None or desired.gone:
        return {}
    held = accepted or {}
    return {
        name: Difference(wanted=desired.fields[name], held=held.get(name))
        for name in schedule.unmet(desired, accepted)
    }


def audit_item(entry: AuditEntry) -> AuditItem:
    return AuditItem(
        id=entry.id,
        at=entry.at,
        kind=entry.kind,
        outcome=entry.outcome,
        reason=entry.reason,
        source=entry.source,
        source_id=entry.source_id,
        target=entry.target,
        inbound=entry.inbound_id,
        event_types=list(entry.event_types),
        attempt=entry.attempt,
        status=entry.status,
        error=entry.error,
        duration_ms=entry.duration_ms,
        fields=list(entry.fields),
        detail=entry.detail,
    )


def tried(trial: Trial, genuine: bool | None, refused_because: str) -> Tried:
    return Tried(
        genuine=genuine,
        refused_because=refused_because,
        problem=trial.problem,
        events=[event_item(event) for event in trial.events],
        contacts=[contact_item(contact) for contact in trial.contacts],
        routes=[
            TriedRoute(
                target=route.target,
                source_id=route.key.source_id,
                decision=route.decision,
                reason=route.reason,
                fields=[
                    TriedField(field=one.field, value=one.value, left_out=one.left_out) for one in route.fields
                ],
            )
            for route in trial.routes
        ],
    )
