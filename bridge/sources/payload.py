"""Reading contacts out of any body, by a mapping that the configuration declares.

Its entries are expressions over ``body`` (the whole body), ``headers`` (lower-case names, ``headers['x-event']``)
and ``item`` (the part that is about one contact).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints
from bridge.expressions import Expression
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Value, Version, iso
from bridge.outbound import Api
from bridge.sources.base import Genuine, cannot_read, is_confidential
from bridge.sources.reading import (
    Unclear,
    distinct,
    event_key,
    fingerprint,
    moment,
    read_json,
    receipt_key,
    short,
)
from bridge.sources.sampling import SAMPLE_ID, Sampling, made_up
from bridge.values import BadValue

MAX_ITEMS = 5_000  # of one body; the sender waits while they are counted
MAX_ID = 200  # characters
KINDS = {kind.value: kind for kind in (Kind.CHANGED, Kind.CREATED, Kind.DELETED, Kind.ERASED)}
IGNORE = "ignore"
ONE_ITEM = "[body]"


@dataclass(frozen=True, slots=True)
class Payload:
    """Where things are in the sender's body; every entry is an expression over ``body``, ``headers``, ``item``."""

    items: str = field(
        default=ONE_ITEM, metadata={"help": "a list with one item for each contact; default: the body is one item"}
    )
    id: str = field(default="item.data.id", metadata={"help": "the sender's own id of the contact"})
    occurred_at: str = field(
        default="item.timestamp",
        metadata={
            "help": "when it happened: ISO 8601 with an offset, or Unix time; where it gives nothing, the signed "
            "timestamp counts, else the time of receipt"
        },
    )
    kind: str = field(
        default="'changed'", metadata={"help": "gives 'changed', 'created', 'deleted', 'erased' or 'ignore'"}
    )
    fields: str = field(default="item.data", metadata={"help": "an object with the contact's fields"})
    event_id: str = field(
        default="",
        metadata={"help": "what tells repeats of the event; default: the sender's id, else its content"},
    )
    event_type: str = field(
        default="",
        metadata={
            "help": "what the sender calls such events, to be shown; default: 'type' of the item, else of the body"
        },
    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is known of a request beside its body."""

    headers: Mapping[str, str]
    received_at: datetime
    signed_at: datetime | None
    sender_id: str = ""  # the sender's own id of the delivery, the same in all its retries


class Declared:
    """What the sources share whose payload is declared; they differ in what proves a request.

    *content*: what a body says, for the mapping. Raises `ValueError` naming the entry that is no expression.
    """

    def __init__(self, name: str, payload: Payload, content: Callable[[InboundRequest], Any]) -> None:
        self.name = name
        self._content = content
        self._mapped = Mapped(name, payload)

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        headers = {name: value for name, value in genuine.request.headers.items() if not is_confidential(name)}
        delivery = Delivery(headers, received_at, genuine.signed_at, self.sender_id(headers))
        return self._mapped.events_of(self._content(genuine.request), delivery)

    def sender_id(self, headers: Mapping[str, str]) -> str:
        """Return the sender's own id of the delivery, "" where it has none."""
        return ""

    def can_read(self) -> bool:
        return False

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> NoReturn:
        cannot_read(self.name)


def as_json(request: InboundRequest) -> Any:
    """Return what a body of JSON says.

    Raises:
        BadPayload: it is none.
    """
    return read_json(request.body)


class Mapped:
    """A `Payload`, compiled. Raises `ValueError` naming the entry that is no expression."""

    def __init__(self, source: str, payload: Payload) -> None:
        self.source = source
        with Complaints() as complaints:
            with complaints.look():
                self.items = _compile("items", payload.items, {"body", "headers"})
            with complaints.look():
                self.id = _compile("id", payload.id)
            with complaints.look():
                self.occurred_at = _compile("occurred_at", payload.occurred_at)
            with complaints.look():
                self.kind = _compile("kind", payload.kind)
            with complaints.look():
                self.fields = _compile("fields", payload.fields)
            with complaints.look():
                self.event_id = _compile("event_id", payload.event_id) if payload.event_id else None
            with complaints.look():
                self.event_type = _compile("event_type", payload.event_type) if payload.event_type else None
        self._typed = _typed(payload)

    def events(self, body: bytes, delivery: Delivery) -> list[Event]:
        """Return one event for each item of a body of JSON.

        Raises:
            BadPayload: the body is no JSON, or has no list of items.
        """
        return self.events_of(read_json(body), delivery)

    def events_of(self, content: Any, delivery: Delivery) -> list[Event]:
        """Return one event for each item of *content*, which is what the body says.

        Raises:
            BadPayload: it has no list of items.
        """
        common = {"body": content, "headers": dict(delivery.headers)}
        try:
            # The default needs no computing: most bodies are about one contact.
            items = [content] if self.items.text == ONE_ITEM else _value(self.items, common, "items")
        except Unclear as error:
            raise BadPayload(str(error)) from error
        if not isinstance(items, list):
            raise BadPayload("The expression payload.items gives no list for this body.")
        if len(items) > MAX_ITEMS:
            raise BadPayload(f"The body holds more than {MAX_ITEMS:,} items.")
        if not items:
            key, type_ = event_key(fingerprint(content)), self._type({**common, "item": None})
            return [Event(key, ignored="The request is about no contact: no items.", type=type_)]
        return distinct(
            self._event(number, {**common, "item": item}, delivery) for number, item in enumerate(items)
        )

    def _event(self, number: int, variables: Mapping[str, Any], delivery: Delivery) -> Event:
        """Return the event of the item with this *number*; one that makes no sense says why."""
        type_ = self._type(variables)
        try:
            kind = self._kind(variables)
            if kind is None:
                key = _unread(number, variables, delivery)
                return Event(key, ignored="The payload's kind says to ignore it.", type=type_)
            source_id = self._id(variables)
            said_at = self._said_at(variables)
            given_id = self._given_id(variables)
            fields = self._fields(variables) if kind in {Kind.CHANGED, Kind.CREATED} else {}
        except Unclear as error:
            return Event(_unread(number, variables, delivery), unreadable=str(error), type=type_)
        order = f"{number:05d}"  # of two items with one moment, the later in the list counts
        if given_id:
            key, event_id = event_key(given_id, source_id), f"{given_id}:{order}"
        elif delivery.sender_id:
            key, event_id = event_key(delivery.sender_id, number), f"{delivery.sender_id}:{order}"
        elif said_at:
            key = event_id = event_key(source_id, kind, iso(said_at), fingerprint(fields))
        else:
            item = fingerprint(variables["item"])
            seen_at = delivery.signed_at or delivery.received_at
            key, event_id = receipt_key(seen_at, number, item), f"{order}:{item}"
        occurred_at = said_at or delivery.signed_at or delivery.received_at
        change = Change(RecordKey(self.source, source_id), kind, Version(occurred_at, event_id), fields)
        return Event(key, (clamp(change, delivery.received_at),), type=type_)

    def _type(self, variables: Mapping[str, Any]) -> str:
        """Return what the sender calls the event, "" where it has no word for it."""
        if self.event_type is None:
            return next((word for part in self._typed if (word := _type_in(variables[part]))), "")
        try:
            found = self.event_type.evaluate(variables)
        except BadValue:  # it is there to be looked at: nothing else depends on it
            return ""
        return found if isinstance(found, str) else ""

    def _kind(self, variables: Mapping[str, Any]) -> Kind | None:
        word = _value(self.kind, variables, "kind")
        if word == IGNORE:
            return None
        if not isinstance(word, str) or word not in KINDS:
            raise Unclear(f"The expression payload.kind gives '{short(word)}', which is no kind of event.")
        return KINDS[word]

    def _id(self, variables: Mapping[str, Any]) -> str:
        found = _value(self.id, variables, "id")
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if not isinstance(found, str) or not found.strip() or len(found) > MAX_ID:
            raise Unclear("The expression payload.id gives no usable id for this item.")
        return found.strip()

    def _said_at(self, variables: Mapping[str, Any]) -> datetime | None:
        found = _value(self.occurred_at, variables, "occurred_at")
        return None if found is None or found == "" else moment(found, "payload.occurred_at")

    def _given_id(self, variables: Mapping[str, Any]) -> str:
        if self.event_id is None:
            return ""
        found = _value(self.event_id, variables, "event_id")
        return str(found)[:MAX_ID] if isinstance(found, str | int) and not isinstance(found, bool) else ""

    def _fields(self, variables: Mapping[str, Any]) -> Mapping[str, Value]:
        found = _value(self.fields, variables, "fields")
        if not isinstance(found, dict):
            raise Unclear("The expression payload.fields gives no object for this item.")
        return found


def _typed(payload: Payload) -> tuple[str, ...]:
    """Return where the type of an event may stand; where that is the contact as a whole, it is a field of it."""
    contact = payload.fields.strip()
    if contact in {"item", "body"} and payload.items == ONE_ITEM:
        return ()
    return tuple(part for part in ("item", "body") if part != contact)


def _type_in(part: Any) -> str:
    found = part.get("type") if isinstance(part, dict) else None
    return found if isinstance(found, str) else ""


def _unread(number: int, variables: Mapping[str, Any], delivery: Delivery) -> str:
    """Return the key of an item that says nothing to us."""
    return event_key(delivery.sender_id, number, fingerprint(variables["item"]))


def _compile(entry: str, text: str, known: set[str] | None = None) -> Expression:
    try:
        expression = Expression.compile(text)
    except ValueError as error:
        raise ValueError(f"payload.{entry}: {error}") from error
    known = known or {"body", "headers", "item"}
    unknown = sorted(expression.names - known)
    if unknown:
        raise ValueError(f"payload.{entry}: '{unknown[0]}' is not known here; there is {', '.join(sorted(known))}")
    return expression


def _value(expression: Expression, variables: Mapping[str, Any], entry: str) -> Value:
    try:
        return expression.evaluate(variables)
    except BadValue:
        # The cause may speak of the value; what is told for good names the entry only.
        raise Unclear(f"The expression payload.{entry} cannot be computed for this item.") from None


def sample(wanted: Sampling) -> bytes:
    """Return a body of which a `Payload` makes one contact, as far as its entries are plain names."""
    payload = getattr(wanted.settings, "payload", None) or Payload()
    person = {"email": "ada@example.com", "phone": "+14155550123", "firstname": "Ada", "lastname": "Lovelace"}
    item: dict[str, Any] = {"type": "contact.updated"}
    body = item if payload.items.replace(" ", "") == ONE_ITEM else {}
    _put({"body": body}, payload.items, [item])
    where = {"item": item, "body": body}
    _put(where, payload.occurred_at, iso(wanted.at))
    _put(where, payload.fields, {**(made_up(wanted.reads) or person), "updated_by": "bridge send"})
    _put(where, payload.event_id, f"{SAMPLE_ID}-{int(wanted.at.timestamp())}")
    _put(where, payload.id, SAMPLE_ID)
    _put(where, payload.kind, Kind.CHANGED.value)
    return json.dumps(body).encode()


_NAMES = re.compile(r"(item|body)((?:\.[A-Za-z_]\w*)*)")


def _put(where: Mapping[str, dict[str, Any]], expression: str, value: Any) -> None:
    """Put *value* where a mapping's *expression* looks for it; nowhere, where that is more than names."""
    found = _NAMES.fullmatch(expression.strip())
    if found is None or found[1] not in where:
        return
    inside = where[found[1]]
    *outer, last = found[2].lstrip(".").split(".")
    for name in outer:
        part = inside.setdefault(name, {})
        if not isinstance(part, dict):
            return
        inside = part
    if last:
        inside[last] = value
    elif isinstance(value, dict):  # the item itself holds the fields
        inside.update(value)
