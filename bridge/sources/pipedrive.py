"""Pipedrive: webhooks of version 2, and of version 1 as older accounts still send them.

Each holds one whole person, but for what Campaigns knows of it. There is no signature: HTTP Basic is all that
Pipedrive has. https://pipedrive.readme.io/docs/guide-for-webhooks-v2
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bridge import signing
from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources import pipedrive_api
from bridge.sources.base import Genuine, Proof, Read, SourceType
from bridge.sources.pipedrive_person import fields_of
from bridge.sources.reading import (
    Unclear,
    event_key,
    fingerprint,
    moment,
    read_json,
    record_id,
    short,
    text_or_none,
)
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling

PERSON = "person"
KINDS = {
    "create": Kind.CREATED,
    "change": Kind.CHANGED,
    "delete": Kind.DELETED,
    # Version 1
    "added": Kind.CREATED,
    "updated": Kind.CHANGED,
    "deleted": Kind.DELETED,
    "merged": Kind.CHANGED,  # sent of the person that stays
}
OTHER_COMPANY = "It is from another Pipedrive company than the configured company_id."

KNOWN_FIELDS = (
    "add_time", "email", "emails", "email_home", "email_other", "email_work", "first_name", "id", "label",
    "label_ids", "last_name", "marketing_status", "name", "org_id", "owner_id", "phone", "phone_home",
    "phone_mobile", "phone_other", "phone_work", "phones", "update_time", "visible_to",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Login:
    """What a webhook's fields "HTTP Auth username" and "HTTP Auth password" hold."""

    user: str = field(metadata={"help": "the webhook's HTTP Auth username; it holds no colon"})
    password: Secret = field(metadata={"help": "the webhook's HTTP Auth password"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of a Pipedrive company."""

    credentials: tuple[Login, ...] = field(
        metadata={"help": "{ user, password } as typed into the webhook; several while they are being changed"}
    )
    company_id: int | str | None = field(
        default=None,
        metadata={"help": "the only Pipedrive company to listen to; default: the first that is heard"},
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )
    token: Secret | None = field(
        default=None,
        metadata={
            "help": "the API token of a user who sees every person, for reading, listing and 'bridge register'"
        },
    )
    api_base: str = field(
        default="https://api.pipedrive.com", metadata={"help": "where Pipedrive's API is called"}
    )


class Pipedrive:
    """One company's webhooks. Raises `ValueError` where a login is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._company_id = None if settings.company_id is None else str(settings.company_id).strip()
        self._token = settings.token
        with Complaints() as complaints:
            with complaints.look():
                self._credentials = signing.credentials(
                    "credentials",
                    settings.credentials,
                    lambda login: signing.basic_credential(login.user, login.password.reveal()),
                )
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if persons are not to be read")

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        proof = signing.verify(request, self._credentials, now)
        return Genuine(Verified(request), proof.index)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(request, self._credentials[0], now)

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        meta = body.get("meta") if isinstance(body, dict) else None
        if not isinstance(meta, dict):
            raise BadPayload("The body is no Pipedrive webhook: it has no 'meta'.")
        old = body.get("v") == 1 and text_or_none(meta.get("version")) != "2.0"
        said = _first_version(meta, body) if old else _second_version(meta, body)
        return [self._event(said, received_at)]

    def _event(self, said: _Said, received_at: datetime) -> Event:
        word = ".".join(filter(None, (said.action, said.entity)))
        if said.entity != PERSON:
            return Event(said.key, ignored=f"'{short(said.entity)}' is not about persons.", type=word)
        if said.action not in KINDS:
            return Event(said.key, ignored=f"The action '{short(said.action)}' changes no person.", type=word)
        if self._company_id is not None and said.account is not None and said.account != self._company_id:
            return Event(said.key, ignored=OTHER_COMPANY, type=word)
        try:
            change = self._change(said)
        except Unclear as error:
            return Event(said.key, unreadable=str(error), type=word)
        return Event(said.key, (clamp(change, received_at),), type=word)

    def _change(self, said: _Said) -> Change:
        kind = KINDS[said.action]
        key = RecordKey(self.name, record_id(said.person_id, "id of a person"))
        version = Version(moment(said.at, "meta.timestamp"), said.event_id)
        if kind is Kind.DELETED:
            if said.merged_to is None:
                return Change(key, kind, version, account=said.account)
            survivor = record_id(said.merged_to, "merged_to_id")
            if survivor == key.source_id:
                raise Unclear("It is a merge of a person with itself.")
            return Change(key, Kind.MERGED, version, survivor=survivor, account=said.account)
        if not isinstance(said.person, dict):
            raise Unclear("It does not hold the person that it speaks of.")
        return Change(key, kind, version, fields_of(said.person), account=said.account)

    def can_read(self) -> bool:
        return self._token is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`."""
        if self._token is None:
            raise SourceUnavailable(f"No token is configured for {self.name}, so its persons cannot be read.")
        return pipedrive_api.read(pipedrive_api.caller(self.name, self._token), api, keys, fields)


# --- the two versions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Said:
    """What a webhook says, whichever its version; nothing of it is checked yet."""

    key: str
    event_id: str
    entity: str
    action: str
    account: str | None
    person_id: Any
    person: Any
    at: Any
    merged_to: Any = None


def _second_version(meta: Mapping[str, Any], body: Mapping[str, Any]) -> _Said:
    webhook_id, event_id = text_or_none(meta.get("webhook_id")), text_or_none(meta.get("id"))
    if not event_id:
        # `attempt` counts the retries and is no part of what tells events apart.
        once = {name: value for name, value in meta.items() if name != "attempt"}
        event_id = fingerprint({**body, "meta": once})
    person = body.get("data")
    known = person if isinstance(person, dict) else body.get("previous")
    return _Said(
        key=event_key(webhook_id, event_id),
        event_id=event_id,
        entity=text_or_none(meta.get("entity")) or "",
        action=text_or_none(meta.get("action")) or "",
        account=text_or_none(meta.get("company_id")),
        person_id=meta.get("entity_id") or (known.get("id") if isinstance(known, dict) else None),
        person=person,
        at=meta.get("timestamp"),
        merged_to=meta.get("merged_to_id") or None,
    )


def _first_version(meta: Mapping[str, Any], body: Mapping[str, Any]) -> _Said:
    """Read version 1, whose ``meta.id`` is the person's id: its events have none of their own."""
    at = meta.get("timestamp_micro") or meta.get("timestamp")
    person = body.get("current")
    about = [text_or_none(meta.get(name)) for name in ("webhook_id", "object", "id", "action")]
    key = event_key(*about, text_or_none(at), fingerprint(person))
    return _Said(
        key=key,
        event_id=key,
        entity=about[1] or "",
        action=about[3] or "",
        account=text_or_none(meta.get("company_id")),
        person_id=meta.get("id"),
        person=person,
        at=at,
    )


# --- what the type declares ------------------------------------------------------------------------------


def sample(wanted: Sampling) -> bytes:
    """Return a change of a person's mobile number, version 2."""
    at = iso(wanted.at)
    account = wanted.account or getattr(wanted.settings, "company_id", None)
    meta = {
        "action": "change",
        "entity": PERSON,
        **({"company_id": str(account)} if account else {}),
        "correlation_id": event_key("correlation", at)[:32],
        "entity_id": str(SAMPLE_NUMBER),
        "id": event_key("event", at)[:32],
        "is_bulk_edit": False,
        "timestamp": at,
        "type": "general",
        "user_id": "9001",
        "version": "2.0",
        "webhook_id": "55501",
        "change_source": "app",
        "attempt": 1,
        "host": "acme.pipedrive.com",
    }
    person = {
        "id": SAMPLE_NUMBER,
        "name": "Ada Lovelace",
        "first_name": "Ada",
        "last_name": "Lovelace",
        "emails": [{"label": "work", "value": "ada@example.com", "primary": True}],
        "phones": [{"label": "mobile", "value": "+14155550123", "primary": True}],
        "org_id": 77,
        "owner_id": 9001,
        "update_time": at,
        "custom_fields": {},
    }
    previous = {"phones": [{"label": "mobile", "value": "+14155550100", "primary": True}]}
    return json.dumps({"meta": meta, "data": person, "previous": previous}, separators=(",", ":")).encode()


def _lister(name: str, settings: Settings) -> pipedrive_api.PersonLister | None:
    if settings.token is None:
        return None
    return pipedrive_api.PersonLister(pipedrive_api.caller(name, settings.token))


def _writer(name: str, settings: Settings) -> pipedrive_api.PersonWriter | None:
    if settings.token is None:
        return None
    return pipedrive_api.PersonWriter(pipedrive_api.caller(name, settings.token))


def _registrar(name: str, settings: Settings) -> pipedrive_api.WebhookRegistrar | None:
    if settings.token is None:
        return None
    login = settings.credentials[0]
    return pipedrive_api.WebhookRegistrar(pipedrive_api.caller(name, settings.token), login.user, login.password)


SOURCE = SourceType(
    name="pipedrive",
    title="Pipedrive",
    settings=Settings,
    make=Pipedrive,
    kept_headers=("content-type", "user-agent"),
    proof=Proof.SHOWN,
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "first_name": "first_name",
        "last_name": "last_name",
        "name": "name",
        "opt_out": "marketing_status == 'unsubscribed'",
    },
    steps=(
        "Make a long random password of plain letters and digits, and put it into the environment variable "
        "that `bridge.toml` names under `credentials`.",
        "In Pipedrive open *Settings → Tools and apps → Webhooks* and choose *Create new webhook*: event "
        "action `*`, event object `person`, version 2, as endpoint the URL that `bridge url {name}` prints, "
        "and user and password of `credentials` under *HTTP Auth*.",
        "Choose as *user* somebody who sees every person: the webhook tells only what that user may see.",
        "With `token`, the command `bridge register {name}` does the second step, as the user whose token it is "
        "(*Personal preferences → API*), and the worker looks every day whether Pipedrive has deleted the "
        "webhook.",
    ),
    manual="https://pipedrive.readme.io/docs/guide-for-webhooks-v2",
    read_limit=pipedrive_api.READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    lister=_lister,
    registrar=_registrar,
    writer=_writer,
)
