"""Intercom: the webhooks of an app, and what its API can do for bridge.

A notification holds the whole contact, or what was said of it together with the contact.
https://developers.intercom.com/docs/webhooks/webhook-notifications
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bridge import signing
from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version
from bridge.outbound import Api
from bridge.sources.base import Genuine, Lister, Read, SourceType, Writer
from bridge.sources.calling import list_of, object_of
from bridge.sources.intercom.calls import EMAILS, Attribute, Search, caller, read_one
from bridge.sources.intercom.contacts import ID, KNOWN_FIELDS, fields_of
from bridge.sources.reading import Unclear, event_key, fingerprint, moment, read_json, short, text_or_none
from bridge.sources.sampling import SAMPLE_ID, Sampling, made_up

READ_LIMIT = 20  # contacts, each with a call of its own
SIGNATURE = signing.Scheme("x-hub-signature", digest="sha1", prefix="sha1=")
OTHER_WORKSPACE = "It is from another Intercom workspace than the configured app_id."

KINDS = {
    "contact.user.created": Kind.CREATED,
    "contact.lead.created": Kind.CREATED,
    "contact.unarchive": Kind.CREATED,  # it is back under the same id
    "contact.unarchived": Kind.CREATED,
    "contact.archive": Kind.DELETED,
    "contact.archived": Kind.DELETED,
    "contact.deleted": Kind.DELETED,
    "contact.merged": Kind.MERGED,
    "contact.user.updated": Kind.CHANGED,
    "contact.lead.updated": Kind.CHANGED,
    "contact.email.updated": Kind.CHANGED,
    "contact.lead.added_email": Kind.CHANGED,
    "contact.lead.signed_up": Kind.CHANGED,
    "contact.subscribed": Kind.CHANGED,
    "contact.unsubscribed": Kind.CHANGED,
    "contact.unsubscribed_from_sms": Kind.CHANGED,
    "granular.subscribe": Kind.CHANGED,
    "granular.unsubscribe": Kind.CHANGED,
} | {
    f"contact.{role}tag.{action}": Kind.CHANGED
    for role in ("", "user.", "lead.")
    for action in ("created", "deleted")
}
STOPS = {
    "contact.unsubscribed": EMAILS,
    "contact.unsubscribed_from_sms": "unsubscribed_from_sms",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """An Intercom app."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "the app's client secret (no access token); new first, old next",
            "variable": "CLIENT_SECRET",
        }
    )
    token: Secret | None = field(
        default=None, metadata={"help": "the app's access token: contacts can then be read, listed and written to"}
    )
    api_base: str = field(
        default="https://api.intercom.io",
        metadata={
            "help": "where contacts are read; https://api.eu.intercom.io and https://api.au.intercom.io too"
        },
    )
    app_id: str = field(
        default="",
        metadata={"help": "the only Intercom workspace to listen to; default: the first that is heard"},
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Intercom:
    """One app's webhooks. Raises `ValueError` where a secret is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        with Complaints() as complaints:
            with complaints.look():
                self._credentials = signing.credentials("secrets", settings.secrets, _credential)
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if contacts are not to be read")

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        proof = signing.verify(request, self._credentials, now)
        return Genuine(Verified(request), proof.index)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(request, self._credentials[0], now)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        if not isinstance(body, dict) or not isinstance(body.get("topic"), str):
            raise BadPayload("The body is no notification of Intercom's: it has no 'topic'.")
        return [self._event(body, body["topic"], received_at)]

    def _event(self, body: Mapping[str, Any], topic: str, received_at: datetime) -> Event:
        workspace, event_id = text_or_none(body.get("app_id")), text_or_none(body.get("id"))
        key = event_key(workspace, event_id) if event_id else _content_key(body)
        if topic == "ping":
            return Event(key, ignored="It only asks whether bridge is there.", type=topic)
        if topic not in KINDS:
            return Event(key, ignored=f"'{short(topic)}' says nothing of a contact.", type=topic)
        wanted = self._settings.app_id.strip()
        if wanted and workspace is not None and workspace != wanted:
            return Event(key, ignored=OTHER_WORKSPACE, type=topic)
        try:
            changes = [replace(one, account=workspace) for one in self._changes(topic, body, event_id or key)]
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(_content_key(body), unreadable=str(error), type=topic)
        return Event(key, tuple(clamp(change, received_at) for change in changes), type=topic)

    def _changes(self, topic: str, body: Mapping[str, Any], event_id: str) -> Iterator[Change]:
        """Yield what the topic says as of the notification, and the contact as of its own last change.

        Not every topic's change moves the contact's time. Where a token allows it, the contact is read as well:
        times are whole seconds, and of two notifications of one second nobody knows which is the later.
        """
        kind, item = KINDS[topic], object_of(object_of(body.get("data")).get("item"))
        contact = _contact(item)
        key = self._record(contact.get("id"))
        told_at = moment(body.get("created_at"), "created_at")
        order = f"{int(told_at.timestamp()):011d}:{event_id}"
        now = Version(told_at, order)
        if kind is Kind.DELETED:
            yield Change(key, kind, now)
            return
        if kind is Kind.CREATED:
            yield Change(key, kind, now)
        if kind is Kind.MERGED and "merged_from" in item:  # newer versions name who ended
            loser = self._record(object_of(item["merged_from"]).get("id"))
            if loser == key:
                raise Unclear("It is a merge of a contact with itself.")
            yield Change(loser, kind, now, survivor=key.source_id)
        fields = fields_of(contact)
        stated = _stated(topic, item, fields)
        if stated:
            # Of a yes and a no in one second the no counts.
            no = topic in STOPS or topic == "granular.unsubscribe"
            yield Change(key, Kind.CHANGED, Version(told_at, order.replace(":", "~", 1)) if no else now, stated)
        said = {name: value for name, value in fields.items() if name not in stated}
        yield Change(key, Kind.CHANGED, Version(_changed_at(contact, told_at), order), said, thin=self.can_read())

    def _record(self, value: Any) -> RecordKey:
        if not isinstance(value, str) or not ID.fullmatch(value):
            raise Unclear("It has no usable id of a contact.")
        return RecordKey(self.name, value)

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._settings.token is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. Each contact is a call: a search would not find what was made a moment ago.

        https://developers.intercom.com/docs/references/rest-api/api.intercom.io/contacts/showcontact
        """
        calling = caller(self.name, self._settings.token)
        if calling is None:
            raise SourceUnavailable(f"No token is configured for {self.name}, so its contacts cannot be read.")
        reads = {key: read_one(calling, api, key, fields) for key in dict.fromkeys(keys)}
        return [reads[key] for key in keys]


def _credential(secret: Secret) -> signing.Credential:
    return signing.credential(SIGNATURE, secret.reveal())


# --- a notification --------------------------------------------------------------------------------------


def _contact(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the contact that *item* is, or holds: together with a tag, or with what was subscribed to.

    Raises:
        Unclear: it is something else.
    """
    if "contact" in item:
        return object_of(item["contact"])
    if text_or_none(item.get("type", "contact")) not in {"contact", "user", "lead"}:
        raise Unclear("It does not hold the contact that it speaks of.")
    return item


def _content_key(body: Mapping[str, Any]) -> str:
    of_the_attempt = {"delivery_attempts", "delivery_status", "delivered_at", "first_sent_at"}
    return fingerprint({name: value for name, value in body.items() if name not in of_the_attempt})


def _changed_at(contact: Mapping[str, Any], otherwise: datetime) -> datetime:
    try:
        return moment(contact.get("updated_at"), "updated_at")
    except Unclear:
        return otherwise


def _stated(topic: str, item: Mapping[str, Any], fields: Mapping[str, Value]) -> dict[str, Value]:
    """Return what the topic itself says, whether the contact in *item* is of before or after it."""
    if topic in STOPS:
        return {STOPS[topic]: True}
    if topic == "contact.subscribed" and fields.get(EMAILS) is not True:
        return {EMAILS: False}
    if topic.startswith("granular."):
        said = item.get("subscription_types")
        types = said if isinstance(said, list) else list_of(object_of(said).get("data"))
        numbers = (text_or_none(object_of(one).get("id")) for one in types)
        word = "unsubscribed" if topic == "granular.unsubscribe" else "subscribed"
        return {f"subscription_{number}": word for number in numbers if number and number.isalnum()}
    tag, tags = text_or_none(object_of(item.get("tag")).get("id")), fields.get("tags")
    if ".tag." in topic and tag and isinstance(tags, list):
        others = [one for one in tags if one != tag]
        return {"tags": [*others, tag] if topic.endswith(".created") else others}
    return {}


def _lister(name: str, settings: Settings) -> Lister | None:
    calling = caller(name, settings.token)
    return Search(name, calling) if calling else None


def _writer(name: str, settings: Settings) -> Writer | None:
    calling = caller(name, settings.token)
    return Attribute(calling) if calling else None


def sample(wanted: Sampling) -> bytes:
    """Return the notification of a changed contact."""
    at = int(wanted.at.timestamp())
    account = wanted.account or getattr(wanted.settings, "app_id", None)
    person = {"email": "ada@example.com", "phone": "+14155550123", "name": "Ada Lovelace"}
    more = {name: value for name, value in made_up(wanted.reads).items() if name not in KNOWN_FIELDS}
    contact = {"type": "contact", "id": SAMPLE_ID, "role": "user", **person, "created_at": at, "updated_at": at}
    notification = {
        "type": "notification_event",
        **({"app_id": account} if account else {}),
        "id": f"notif_{event_key('event', at)[:32]}",
        "topic": "contact.user.updated",
        "delivery_status": "pending",
        "delivery_attempts": 1,
        "delivered_at": 0,
        "first_sent_at": at,
        "created_at": at,
        "self": None,
        "data": {"type": "notification_event_data", "item": {**contact, "custom_attributes": more}},
    }
    return json.dumps(notification, separators=(",", ":")).encode()


SOURCE = SourceType(
    name="intercom",
    title="Intercom",
    settings=Settings,
    make=Intercom,
    kept_headers=("content-type", "user-agent"),
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "name": "name",
        "opt_out": "unsubscribed_from_emails",
    },
    steps=(
        "In Intercom open *Settings → Integrations → Developer Hub* and choose *New app* for your workspace. "
        "Under *Configure → Authentication* choose the permissions *Read and list users and companies* and *Read "
        "one user and one company*, and *Write users and companies* where opt-outs are to be written back.",
        "Copy the client secret from *Configure → Basic information* (`secrets`) and the access token from "
        "*Configure → Authentication* (`token`) into the environment variables that `bridge.toml` names for "
        "them. Under `app_id` put the workspace's id, the part of Intercom's address behind `/apps/`. Start "
        "bridge again.",
        "Under *Configure → Webhooks* take as endpoint URL the one that `bridge url {name}` prints. Intercom asks "
        "at once whether it is there, so bridge must be running.",
        "Choose all topics that begin with `contact.` or `granular.` and save. All others are ignored, so more "
        "does no harm. Intercom's API cannot do this, so there is nothing that bridge could register.",
    ),
    manual="https://developers.intercom.com/docs/webhooks/setting-up-webhooks",
    lister=_lister,
    writer=_writer,
)
