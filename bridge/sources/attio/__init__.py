"""Attio: webhooks that name a record and hold no values and no time, so that every record is read.

https://docs.attio.com/rest-api/guides/webhooks
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from bridge import signing
from bridge.errors import BadPayload, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Verified, Version
from bridge.outbound import Api
from bridge.sources.attio.api import AttioLister, AttioRegistrar, AttioWriter, Reader, account_of
from bridge.sources.attio.shape import attio_id, merge_of
from bridge.sources.base import Genuine, Read, SourceType
from bridge.sources.reading import (
    Unclear,
    distinct,
    event_key,
    fingerprint,
    read_json,
    receipt_key,
    short,
    text_or_none,
)
from bridge.sources.sampling import SAMPLE_ID, Sampling

READ_LIMIT = 50  # a query takes 500, but each is one call more where Attio refuses to find several
MAX_EVENTS = 5_000  # of one body; Attio sends one
SCHEME = signing.Scheme("attio-signature")
COPY = replace(SCHEME, header="x-attio-signature")  # the same signature once more, for proxies that drop the first
ONCE = "idempotency-key"  # the same in all tries of a delivery; it is not signed
# Attio never brings a record back, and a late repeat of its creation must not: it is a change like any other.
KINDS = {
    "created": Kind.CHANGED,
    "updated": Kind.CHANGED,
    "deleted": Kind.DELETED,
    "merged": Kind.MERGED,
}
OTHER_OBJECT = "It is about another kind of record than the configured object_id."
OTHER_WORKSPACE = "It is from another Attio workspace than the configured workspace_id."
OUR_OWN = "It was done with the token whose id is configured as actor_id."

KNOWN_FIELDS = (
    "company", "description", "email_addresses", "email_addresses_all", "first_name", "job_title", "last_name",
    "name", "phone_numbers", "phone_numbers_all", "primary_location", "record_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of an Attio workspace."""

    secrets: tuple[Secret, ...] = field(
        metadata={"help": "the secret of the webhook, as it is shown; several while it is being changed"}
    )
    token: Secret | None = field(
        default=None,
        metadata={
            "help": "an access token that may read people; without it nothing is known but that they changed"
        },
    )
    object: str = field(
        default="people", metadata={"help": "the slug or id of the object whose records are the contacts"}
    )
    object_id: str | None = field(
        default=None,
        metadata={"help": "that object's id: events of other objects are then ignored before anything is read"},
    )
    workspace_id: str | None = field(
        default=None, metadata={"help": "the only workspace to listen to; default: the first that is heard"}
    )
    actor_id: str | None = field(
        default=None,
        metadata={
            "help": "the id of the token itself: what is done with it, such as writing opt-outs, is ignored"
        },
    )
    opt_out_value: bool | str = field(
        default=True, metadata={"help": "what is written into an attribute to say that the person opted out"}
    )
    api_base: str = field(default="https://api.attio.com", metadata={"help": "where people are read"})
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Attio:
    """One workspace's webhooks. Raises `ValueError` where a secret is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._object_id = _id(settings.object_id)
        self._workspace_id = _id(settings.workspace_id)
        self._actor_id = _id(settings.actor_id)
        self._reader: Reader | None = None
        with Complaints() as complaints:
            with complaints.look():
                self._credentials, self._copies = (
                    signing.credentials("secrets", settings.secrets, partial(_credential, scheme))
                    for scheme in (SCHEME, COPY)
                )
            complaints.unless(bool(settings.object.strip()), "object: it is empty; leave it out for people")
            if settings.token is not None:
                given = bool(settings.token.reveal().strip())
                complaints.unless(given, "token: it is empty; leave the key out if people are not to be read")
                self._reader = Reader(account_of(name, settings.token, settings.object, settings.object_id))

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. Of the two copies of the signature, the first that is there must be right."""
        first = SCHEME.header in request.headers or COPY.header not in request.headers
        proof = signing.verify(request, self._credentials if first else self._copies, now)
        return Genuine(Verified(request), proof.index)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(signing.sign(request, self._credentials[0], now), self._copies[0], now)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        if not isinstance(body, dict):
            raise BadPayload("The body is no Attio webhook: it is not an object.")
        # Older pages of Attio's show the event alone.
        events = [body] if "event_type" in body else body.get("events")
        if not isinstance(events, list):
            raise BadPayload("The body is no Attio webhook: it has no 'events'.")
        if not events:
            return [Event(event_key("no events"), ignored="The request holds no events.")]
        if len(events) > MAX_EVENTS:
            raise BadPayload(f"The body holds more than {MAX_EVENTS} events.")
        once = genuine.request.headers.get(ONCE, "")
        return distinct(self._event(event, once, number, received_at) for number, event in enumerate(events))

    def _event(self, event: Any, once: str, number: int, received_at: datetime) -> Event:
        if not isinstance(event, dict):
            return Event(fingerprint(event), unreadable="It is no event: an entry of the list is not an object.")
        word = text_or_none(event.get("event_type")) or ""
        key = _key(event, once, number, received_at)
        if not word:
            return Event(key, unreadable="It does not say what happened (no event_type).")
        thing, _, action = word.partition(".")
        if thing != "record":
            return Event(key, ignored=f"'{short(word)}' is not about records.", type=word)
        if action not in KINDS:
            return Event(key, ignored=f"'{short(word)}' changes no record.", type=word)
        ids = event.get("id")
        if not isinstance(ids, dict):
            return Event(key, unreadable="It does not say which record it is about.", type=word)
        if why := self._foreign(event, ids):
            return Event(key, ignored=why, type=word)
        version = Version(received_at, key[:32])
        try:
            changes = self._changes(KINDS[action], event, ids, version)
        except Unclear as error:
            return Event(key, unreadable=str(error), type=word)
        account = _id(text_or_none(ids.get("workspace_id"))) or None
        return Event(key, tuple(replace(change, account=account) for change in changes), type=word)

    def _foreign(self, event: Mapping[str, Any], ids: Mapping[str, Any]) -> str:
        """Return why an event is none of ours; what it does not say does not speak against it."""
        actor = event.get("actor")
        by = actor.get("id") if isinstance(actor, dict) else None
        for configured, said, why in (
            (self._object_id, ids.get("object_id"), OTHER_OBJECT),
            (self._workspace_id, ids.get("workspace_id"), OTHER_WORKSPACE),
        ):
            if configured and said is not None and _id(text_or_none(said)) != configured:
                return why
        return OUR_OWN if self._actor_id and _id(text_or_none(by)) == self._actor_id else ""

    def _changes(
        self, kind: Kind, event: Mapping[str, Any], ids: Mapping[str, Any], version: Version
    ) -> list[Change]:
        if kind is not Kind.MERGED:
            key = self._record(attio_id(ids.get("record_id"), "id of a record"))
            return [Change(key, kind, version, thin=kind is Kind.CHANGED)]
        survivor, ended = merge_of(event, ids)
        # The record that stays is usually a new one, which continues those that ended.
        merged = [
            Change(self._record(one), Kind.MERGED, version, survivor=survivor, heir_of=True) for one in ended
        ]
        return [*merged, Change(self._record(survivor), Kind.CHANGED, version, thin=True)]

    def _record(self, source_id: str) -> RecordKey:
        return RecordKey(self.name, source_id)

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._reader is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        if self._reader is None:
            raise SourceUnavailable(f"No token is configured for {self.name}, so its people cannot be read.")
        return self._reader.read(api, keys, fields)


def _credential(scheme: signing.Scheme, secret: Secret) -> signing.Credential:
    return signing.credential(scheme, secret.reveal())


def _id(text: str | None) -> str:
    return (text or "").strip().lower()


def _key(event: Mapping[str, Any], once: str, number: int, received_at: datetime) -> str:
    """Return what tells repeats of an event.

    The same edit made twice is the same bytes twice, so only the header of the delivery tells a repeat. As the
    header is not signed, the content counts too: a header that was made up repeats nothing but what it came with.
    """
    content = fingerprint(event)
    return event_key(once, number, content) if once else receipt_key(received_at, number, content)


def sample(wanted: Sampling) -> bytes:
    """Return a change of one attribute of a person."""
    settings = wanted.settings
    workspace_id = wanted.account or getattr(settings, "workspace_id", None)
    object_id = getattr(settings, "object_id", None)
    event = {
        "event_type": "record.updated",
        "id": {
            **({"workspace_id": workspace_id} if workspace_id else {}),
            **({"object_id": object_id} if object_id else {}),
            "record_id": SAMPLE_ID,
            "attribute_id": "41252299-f8c7-4b5e-99c9-4ff8321d2f96",
        },
        "actor": {"type": "workspace-member", "id": "50cf242c-7fa3-4cad-87d0-75b1af71c57b"},
    }
    body = {"webhook_id": "23e42eaf-323a-41da-b5bb-fd67eebda553", "events": [event]}
    return json.dumps(body, separators=(",", ":")).encode()


# --- what the API lets bridge do -------------------------------------------------------------------------


def _lister(name: str, settings: Settings) -> AttioLister | None:
    if settings.token is None:
        return None
    return AttioLister(account_of(name, settings.token, settings.object, settings.object_id))


def _registrar(name: str, settings: Settings) -> AttioRegistrar | None:
    if settings.token is None:
        return None
    account = account_of(name, settings.token, settings.object, settings.object_id)
    return AttioRegistrar(account, _id(settings.actor_id))


def _writer(name: str, settings: Settings) -> AttioWriter | None:
    if settings.token is None:
        return None
    account = account_of(name, settings.token, settings.object, settings.object_id)
    return AttioWriter(account, settings.opt_out_value)


SOURCE = SourceType(
    name="attio",
    title="Attio",
    settings=Settings,
    make=Attio,
    kept_headers=("content-type", "user-agent", ONCE),
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email_addresses",
        "phone": "phone_numbers",
        "first_name": "first_name",
        "last_name": "last_name",
        "name": "name",
    },
    steps=(
        "In Attio open *Workspace settings → Developers*, choose *Create a new integration* and add the scopes "
        "`record_permission:read`, `object_configuration:read` and `webhook:read-write`. Put its access token "
        "into the environment variable that `bridge.toml` names under `token`.",
        "Under *Webhooks* choose *Create webhook*, with the URL that `bridge url {name}` prints and the events "
        "`record.created`, `record.updated`, `record.deleted` and `record.merged`.",
        "Put its secret into the environment variable that `bridge.toml` names under `secrets`, and start "
        "bridge again.",
        "Instead of the last two, `bridge register {name}` makes the webhook, narrowed down to people, tells its "
        "secret and the `object_id` of people. Put that into `bridge.toml`: without it the events of companies "
        "and deals are taken for people that cannot be found. Until there is a secret, let `secrets` hold a "
        "random one: `openssl rand -hex 32` makes it.",
    ),
    manual="https://docs.attio.com/rest-api/guides/webhooks",
    lister=_lister,
    registrar=_registrar,
    writer=_writer,
)
