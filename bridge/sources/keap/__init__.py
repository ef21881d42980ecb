"""Keap (formerly Infusionsoft): REST hooks, which name contacts and no more, and the contacts over the API (v1).

Keap believes that a URL wants a hook once it echoed a secret, and nothing in what it sends then proves where
that is from. So the URL has to be a secret, too. https://developer.keap.com/rest-hook-documentation/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources.base import Answer, Genuine, Proof, Read, SourceType, cannot_read
from bridge.sources.calling import Caller, list_of, object_of
from bridge.sources.keap.account import KNOWN_FIELDS, TITLE, Account, is_field
from bridge.sources.reading import (
    Unclear,
    distinct,
    event_key,
    fingerprint,
    moment,
    read_json,
    receipt_key,
    record_id,
    short,
    text_or_none,
)
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling

READ_LIMIT = 20  # a contact costs a call: what was read before the quota ends is kept
MAX_ITEMS = 5_000  # of one request; Keap says up to 1,000

KINDS = {"contact.add": Kind.CREATED, "contact.edit": Kind.CHANGED, "contact.delete": Kind.DELETED}
TAGGED = {"contactGroup.applied": True, "contactGroup.removed": False, "contactGroup.delete": False}

HANDSHAKE = "X-Hook-Secret"
_ECHOED = re.compile(r"[\x21-\x7e]{1,500}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The hooks of a Keap account, and its contacts."""

    access: Literal["api_key", "bearer", "none"] = field(
        metadata={
            "help": "how the token is shown: 'api_key' for a service account key or personal access token "
            "(X-Keap-API-Key), 'bearer' for an access token that does not run out; 'none': contacts are not to be "
            "read, though hooks hold nothing but their ids"
        }
    )
    token: Secret | None = field(
        default=None, metadata={"help": "the service account key, personal access token or access token"}
    )
    api_base: str = field(default="https://api.infusionsoft.com", metadata={"help": "where Keap is called"})


class Keap:
    """One account's hooks. Raises `ValueError` where a setting is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        token = settings.token.reveal().strip() if settings.token else ""
        with Complaints() as complaints:
            wanted = settings.access != "none"
            complaints.unless(bool(token) or not wanted, 'token: it is needed, unless access is "none"')
            complaints.unless(wanted or not token, 'access: with "none" the token is never used; leave it out')
        self._account = _account(name, settings)

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. All that proves a request is the token in its URL, which is checked before."""
        return Genuine(Verified(request), 0)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return request

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        batches = body if isinstance(body, list) else [body]
        if sum(len(list_of(object_of(batch).get("object_keys"))) for batch in batches) > MAX_ITEMS:
            raise BadPayload(f"The body names more than {MAX_ITEMS:,} records.")
        events = [event for batch in batches for event in self._batch(batch, received_at)]
        if len(events) > MAX_ITEMS:
            raise BadPayload(f"The body names more than {MAX_ITEMS:,} records.")
        return distinct(events) or [Event(event_key("keap", "none"), ignored="The request names no records.")]

    def _batch(self, batch: Any, received_at: datetime) -> Iterator[Event]:
        if not (isinstance(batch, dict) and isinstance(batch.get("event_key"), str)):
            raise BadPayload("The body is no Keap hook: it has no 'event_key'.")
        word, items = batch["event_key"], batch.get("object_keys")
        if word not in KINDS and word not in TAGGED:
            yield Event(
                event_key("keap", word, fingerprint(items)),
                ignored=f"'{short(word)}' is not about contacts.",
                type=word,
            )
            return
        if not isinstance(items, list):
            raise BadPayload("The body is no Keap hook: 'object_keys' is no list.")
        for item in map(object_of, items):
            if word in KINDS:
                yield self._event(word, KINDS[word], item, {}, received_at)
            else:
                yield from self._tagged(word, item, received_at)

    def _tagged(self, word: str, item: Mapping[str, Any], received_at: datetime) -> Iterator[Event]:
        """Yield an event for each contact that got or lost a tag. The id beside them is that of the tag."""
        contacts = list_of(item.get("contact_details"))
        try:
            tag = record_id(item.get("id"), "id of a tag")
        except Unclear as error:
            yield Event(event_key("keap", word, fingerprint(item)), unreadable=str(error), type=word)
            return
        if not contacts:
            key = event_key("keap", word, fingerprint(item))
            yield Event(key, ignored="It does not say which contacts have the tag.", type=word)
        for contact in map(object_of, contacts):
            timed = {"timestamp": item.get("timestamp"), **contact}
            yield self._event(word, Kind.CHANGED, timed, {f"tag_{tag}": TAGGED[word]}, received_at)

    def _event(
        self, word: str, kind: Kind, item: Mapping[str, Any], fields: Mapping[str, Value], received_at: datetime
    ) -> Event:
        """Return what is said of one contact. Its ``apiUrl`` is not looked at: a stranger may have written it."""
        said_at, contact_id = text_or_none(item.get("timestamp")), text_or_none(item.get("id"))
        parts = ("keap", word, contact_id, said_at, *fields)
        key = event_key(*parts)
        try:
            occurred_at = moment(said_at, "timestamp")
        except Unclear:
            # An event names who is to be read, and that is so whenever it was.
            occurred_at, key = received_at, receipt_key(received_at, *parts)
        try:
            record = RecordKey(self.name, record_id(item.get("id"), "id of a contact"))
        except Unclear as error:
            return Event(event_key(*parts, fingerprint(item)), unreadable=str(error), type=word)
        thin = kind is not Kind.DELETED and not fields
        change = Change(record, kind, Version(occurred_at, key), fields, thin=thin)
        return Event(key, (clamp(change, received_at),), type=word)

    def can_read(self) -> bool:
        return self._account is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        if self._account is None:
            cannot_read(self.name)
        return self._account.read(api, keys, fields)


def _account(name: str, settings: Settings) -> Account | None:
    token = settings.token.reveal().strip() if settings.token else ""
    if not token or settings.access == "none":
        return None
    shown = {"Authorization": f"Bearer {token}"} if settings.access == "bearer" else {"X-Keap-API-Key": token}
    return Account(name, Caller(TITLE, name, shown, "a user who may see and edit contacts"))


def handshake(request: InboundRequest) -> Answer | None:
    """Return the secret that Keap asks with whether this URL wants its hooks; None where it asks nothing.

    What holds events is none, whatever its headers: answered as a question, they would be lost.
    """
    secret = request.headers.get(HANDSHAKE.lower(), "")
    if not _ECHOED.fullmatch(secret) or _holds_events(request.body):
        return None
    return Answer(b"{}", "application/json", {HANDSHAKE: secret})


def _holds_events(body: bytes) -> bool:
    if not body.strip():
        return False
    try:
        found = read_json(body)
    except BadPayload:
        return False
    return any(object_of(one).get("object_keys") for one in (found if isinstance(found, list) else [found]))


def sample(wanted: Sampling) -> bytes:
    """Return the edit of a contact that hardly anybody has, who got a tag: hooks hold no fields."""
    at = iso(wanted.at)
    keys = [{"apiUrl": "", "id": SAMPLE_NUMBER, "timestamp": at}]
    return json.dumps({"event_key": "contact.edit", "object_type": "contact", "object_keys": keys}).encode()


SOURCE = SourceType(
    name="keap",
    title=TITLE,
    settings=Settings,
    make=Keap,
    kept_headers=("content-type", "user-agent"),
    proof=Proof.URL,
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_field=is_field,
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "mobile": "phone_mobile",
        "first_name": "given_name",
        "last_name": "family_name",
        "opt_out": "not email_opted_in",
    },
    steps=(
        "In Keap open *Settings → API settings* (an administrator must do it) and create a *service account key*. "
        "Copy it into the environment variable that `bridge.toml` names under `token`, and start bridge again: it "
        "must run and be reachable before the next step, for Keap asks it a question.",
        "Run `bridge url {name}`: it prints the URL with its secret token. Whoever knows it can send, so show it "
        "to nobody but Keap.",
        "Run `bridge register {name}`: it creates a hook for each of `contact.add`, `contact.edit` and "
        "`contact.delete`, and for tags where a rule reads one, and says of each whether Keap has verified it. "
        "Keap has no page for hooks: by hand it is a `POST` to `/crm/rest/v1/hooks` for each event, with "
        "`eventKey` and `hookUrl`.",
        "Leave the rest to the worker: Keap makes a hook inactive after four failures within half an hour, so the "
        "worker looks every hour and has it verified anew. `bridge register {name}` does so at once.",
    ),
    manual="https://developer.keap.com/rest-hook-documentation/",
    lister=_account,
    registrar=_account,
    writer=_account,
    handshake=handshake,
)
