"""Zendesk: the webhooks of user events and of triggers, and what its API can do for bridge.

An event says which user changed and hardly how, so the user is read. What a trigger or an automation sends, an
administrator wrote. https://developer.zendesk.com/api-reference/webhooks/introduction/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from bridge import signing
from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources.base import Genuine, Lister, Read, Registrar, SourceType, Writer
from bridge.sources.calling import Caller, object_of
from bridge.sources.payload import Delivery, Mapped, Payload
from bridge.sources.reading import (
    Unclear,
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
from bridge.sources.zendesk.calls import Checkbox, Export, Hooks, caller
from bridge.sources.zendesk.users import KNOWN_FIELDS, as_read, stated, users_of, written

READ_LIMIT = 100
OTHER_ACCOUNT = "It is from another Zendesk account than the configured account_id."
NO_USER = (
    "It does not say which user it is about. Have the webhook's body hold user_id, or say under payload where "
    "the id stands."
)
EVENT = re.compile(r"zen:event-type[:/](\w+)\.(\w+)")  # both ways to write it are in Zendesk's own lists

# The secret is a text, although it looks like base64. The time is signed as it is written, and comes in two ways.
SIGNATURE, SIGNED_AT = "x-zendesk-webhook-signature", "x-zendesk-webhook-signature-timestamp"
SCHEMES = {
    unit: signing.Scheme(
        SIGNATURE,
        ("timestamp", "body"),
        encoding=signing.Encoding.BASE64,
        stamp=signing.Stamp(SIGNED_AT, unit=unit),
    )
    for unit in (signing.Unit.ISO, signing.Unit.SECONDS)
}
INVOCATION = "x-zendesk-webhook-invocation-id"
# What Zendesk signs with while a webhook is tried out before it is saved; it stands on its manual's page.
TEST_SECRET = "dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ=="  # noqa: S105 - anybody knows it, so it is refused

# Of user events; all that are not listed here say that something changed, so that the user is read.
KINDS = {"created": Kind.CREATED, "deleted": Kind.DELETED}
NO_FIELD = frozenset(
    {"custom_role_changed", "default_group_changed", "group_membership_created", "group_membership_deleted",
     "last_login_changed", "only_private_comments_changed", "password_changed", "photo_changed"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of a Zendesk account."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "the webhook's signing secret; those of several webhooks, or new first and old next",
            "variable": "SIGNING_SECRET",
        }
    )
    subdomain: str = field(metadata={"help": "of the account's address: acme of acme.zendesk.com"})
    token: Secret | None = field(
        default=None,
        metadata={"help": "an API token, with email, or an OAuth access token: users are then read"},
    )
    email: str = field(
        default="", metadata={"help": "whose API token it is, an admin's; empty: token is an OAuth access token"}
    )
    api_base: str = field(
        default="", metadata={"help": "where users are read; default: https://<subdomain>.zendesk.com"}
    )
    account_id: int | str | None = field(
        default=None,
        metadata={"help": "the only Zendesk account to listen to; default: the first that is heard"},
    )
    payload: Payload | None = field(
        default=None,
        metadata={
            "help": "where things are in the bodies that triggers send; default: user_id and Zendesk's names"
        },
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Zendesk:
    """One account's webhooks. Raises `ValueError` where a setting is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._mapped: Mapped | None = None
        with Complaints() as complaints:
            with complaints.look():
                self._credentials = {
                    unit: signing.credentials("secrets", settings.secrets, partial(_credential, scheme))
                    for unit, scheme in SCHEMES.items()
                }
            if settings.payload is not None:
                with complaints.look():
                    self._mapped = Mapped(name, settings.payload)
            complaints.unless(
                re.fullmatch(r"[A-Za-z0-9][\w-]*", settings.subdomain, re.ASCII) is not None,
                "subdomain: it is the first part of the account's address alone, 'acme' of acme.zendesk.com",
            )
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if users are not to be read")
            complaints.unless(
                not settings.email or settings.token is not None,
                "email: it belongs to an API token, and there is no token",
            )

    # --- verifying ---------------------------------------------------------------------------------------

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        digits = request.headers.get(SIGNED_AT, "").isdigit()
        unit = signing.Unit.SECONDS if digits else signing.Unit.ISO
        proof = signing.verify(request, self._credentials[unit], now)
        return Genuine(Verified(request), proof.index, proof.signed_at)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(request, self._credentials[signing.Unit.ISO][0], now)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        if isinstance(body, dict) and (text_or_none(body.get("type")) or "").startswith("zen:event-type"):
            return [self._event(body, received_at)]
        invocation = genuine.request.headers.get(INVOCATION, "")
        # Not by the invocation alone: whether it is another one each time is not written anywhere.
        delivery = event_key("trigger", invocation, fingerprint(body)) if invocation else ""
        if self._mapped is not None:
            kept = SOURCE.keeps(genuine.request.headers)
            given = Delivery(kept, received_at, genuine.signed_at, delivery)
            return [self._to_be_read(event) for event in self._mapped.events(genuine.request.body, given)]
        if not isinstance(body, dict):
            raise BadPayload("The body is neither an event of Zendesk's nor a JSON object.")
        return [self._of_trigger(body, delivery, genuine.signed_at or received_at, received_at)]

    def _event(self, body: Mapping[str, Any], received_at: datetime) -> Event:
        word = text_or_none(body.get("type")) or ""
        account, event_id = text_or_none(body.get("account_id")), text_or_none(body.get("id"))
        key = event_key(account, event_id) if event_id else fingerprint(body)
        found = EVENT.fullmatch(word)
        if found is None or found[1] != "user":
            return Event(key, ignored=f"'{short(word)}' is not about users.", type=word)
        if found[2] in NO_FIELD:
            return Event(key, ignored=f"'{short(word)}' changes no field of a user.", type=word)
        wanted = self._settings.account_id
        if wanted is not None and account is not None and account != str(wanted).strip():
            return Event(key, ignored=OTHER_ACCOUNT, type=word)
        try:
            version = Version(moment(body.get("time"), "time"), event_id or key)
            changes = [replace(one, account=account) for one in self._changes(found[2], body, version)]
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(fingerprint(body), unreadable=str(error), type=word)
        return Event(key, tuple(clamp(change, received_at) for change in changes), type=word)

    def _changes(self, action: str, body: Mapping[str, Any], version: Version) -> Iterator[Change]:
        detail, event = object_of(body.get("detail")), object_of(body.get("event"))
        subject = (text_or_none(body.get("subject")) or "").rpartition(":")[2]
        key = RecordKey(self.name, record_id(detail.get("id") or subject, "id of a user"))
        kind = KINDS.get(action, Kind.CHANGED)
        if action == "active_changed" and isinstance(event.get("current"), bool):
            kind = Kind.CREATED if event["current"] else Kind.DELETED  # a deleted user is one who is not active
        if kind is Kind.DELETED:
            yield Change(key, kind, version)
            return
        if action == "merged":
            # Which of the two ends is not documented: both are read, and the one that ends is told as deleted.
            other = text_or_none(object_of(event.get("user")).get("id"))
            ids = dict.fromkeys([key.source_id, *([record_id(other, "id of the other user")] if other else [])])
            for source_id in ids:
                yield Change(RecordKey(self.name, source_id), Kind.CHANGED, version, thin=True)
            return
        yield Change(key, kind, version, stated(action, detail, event), thin=True)

    def _to_be_read(self, event: Event) -> Event:
        """Return *event* of a trigger: what its author chose to send is a part of what Zendesk knows."""
        changes = (
            replace(change, thin=change.kind in {Kind.CHANGED, Kind.CREATED} and self.can_read())
            for change in event.changes
        )
        return replace(event, changes=tuple(changes))

    def _of_trigger(
        self, body: Mapping[str, Any], delivery: str, signed_at: datetime, received_at: datetime
    ) -> Event:
        """Return the event of a body that names its user as ``user_id``, or holds it as ``user``.

        A plain ``id`` is not taken: in what a trigger sends it is mostly a ticket's.
        """
        inner = next((body[name] for name in ("user", "requester") if isinstance(body.get(name), dict)), None)
        user = body if inner is None else inner
        word = text_or_none(body.get("type")) or ""
        given = user.get("id") if inner is not None else body.get("user_id", body.get("requester_id"))
        try:
            key = RecordKey(self.name, record_id(given, "id of a user"))
        except Unclear:
            return Event(delivery or fingerprint(body), unreadable=NO_USER, type=word)
        try:
            said_at: datetime | None = moment(user.get("updated_at") or body.get("updated_at"), "updated_at")
        except Unclear:
            said_at = None
        content = fingerprint(body)
        if not delivery:
            same = event_key("trigger", iso(said_at), content) if said_at else ""
            # Without a time of its own a body may repeat an earlier one and yet be news.
            delivery = same or receipt_key(signed_at, "trigger", content)
        version = Version(said_at or signed_at, f"trigger:{content[:16]}")
        change = Change(key, Kind.CHANGED, version, written(user), thin=True)
        return Event(delivery, (clamp(change, received_at),), type=word)

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._settings.token is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. At most 100 users a call, and only those that are there are answered.

        https://developer.zendesk.com/api-reference/ticketing/users/users/#show-many-users
        """
        calling = _caller(self.name, self._settings)
        if calling is None:
            raise SourceUnavailable(f"No token is configured for {self.name}, so its users cannot be read.")
        asked = dict.fromkeys(key.source_id for key in keys if re.fullmatch(r"[1-9][0-9]{0,19}", key.source_id))
        if not asked:
            return [as_read(key, None, fields) for key in keys]
        reply = calling.call(api, "GET", "/api/v2/users/show_many.json", query={"ids": ",".join(asked)})
        users = dict(users_of(object_of(reply.json_or_none())))
        return [as_read(key, users.get(key.source_id), fields, reply) for key in keys]


def _credential(scheme: signing.Scheme, secret: Secret) -> signing.Credential:
    if secret.reveal().strip() == TEST_SECRET:
        raise ValueError(
            "this is Zendesk's public secret for trying a webhook out, so anybody could sign with it; take the "
            "one that the saved webhook shows"
        )
    return signing.credential(scheme, secret.reveal())


def _caller(name: str, settings: Settings) -> Caller | None:
    return caller(name, settings.token, settings.email)


def _base_url(settings: Settings) -> str:
    return settings.api_base or f"https://{settings.subdomain}.zendesk.com"


def _lister(name: str, settings: Settings) -> Lister | None:
    calling = _caller(name, settings)
    return Export(name, calling) if calling else None


def _registrar(name: str, settings: Settings) -> Registrar | None:
    calling = _caller(name, settings)
    return Hooks(calling, settings.secrets) if calling else None


def _writer(name: str, settings: Settings) -> Writer | None:
    calling = _caller(name, settings)
    return Checkbox(calling) if calling else None


def sample(wanted: Sampling) -> bytes:
    """Return the event of a user who has another name now."""
    at = iso(wanted.at)
    account = wanted.account or getattr(wanted.settings, "account_id", None)
    event = {
        "type": "zen:event-type:user.name_changed",
        **({"account_id": int(account) if str(account).isdecimal() else account} if account else {}),
        "id": event_key("event", at)[:32],
        "time": at,
        "zendesk_event_version": "2022-11-06",
        "subject": f"zen:user:{SAMPLE_NUMBER}",
        "detail": {
            "created_at": at,
            "default_group_id": "0",
            "email": "ada@example.com",
            "external_id": "",
            "id": str(SAMPLE_NUMBER),
            "organization_id": "0",
            "role": "end-user",
            "updated_at": at,
        },
        "event": {"current": "Ada Lovelace", "previous": "Ada Byron"},
    }
    return json.dumps(event, separators=(",", ":")).encode()


SOURCE = SourceType(
    name="zendesk",
    title="Zendesk",
    settings=Settings,
    make=Zendesk,
    kept_headers=("content-type", "user-agent", INVOCATION),
    read_limit=READ_LIMIT,
    read_base_url=_base_url,
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={"email": "email", "phone": "phone", "name": "name"},
    steps=(
        "In Zendesk open *Admin Center → Apps and integrations → APIs → API tokens*, add an API token, and put it "
        "into the environment variable that `bridge.toml` names under `token`. Under `email` put the address of "
        "the admin whose token it is.",
        "Open *Admin Center → Apps and integrations → Webhooks → Webhooks* and choose *Create webhook → Zendesk "
        "events*. Choose all events of *User*; those that change no field are ignored.",
        "As endpoint URL take the one that `bridge url {name}` prints, as request method *POST*, as request "
        "format *JSON*. Save it without *Test webhook*: what is tested before saving is signed with a secret that "
        "anybody knows, and bridge refuses it.",
        "Open the saved webhook, choose *Reveal secret* under *Signing secret*, put the secret into the "
        "environment variable that `bridge.toml` names under `secrets`, and start bridge again.",
        "Instead of the second and third step, `bridge register {name}` creates the webhook and tells its signing "
        "secret. Until then any long random text may stand under `secrets`: nothing is accepted with it.",
    ),
    manual="https://developer.zendesk.com/documentation/webhooks",
    lister=_lister,
    registrar=_registrar,
    writer=_writer,
)
