"""Copper: notifications that hold ids and what changed, and the account's people by its API.

There is no signature. A subscription names headers and pairs that come with each of its notifications: the headers
of the request, the pairs somewhere in its body. A notification is sent once, up to a quarter of an hour late, and
never again: what it missed is found by listing. https://developer.copper.com/webhooks/overview.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bridge.contact import clamp
from bridge.errors import BadPayload, BadSignature, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources import shown
from bridge.sources.base import Genuine, Proof, Read, SourceType
from bridge.sources.copper_api import Account, flat
from bridge.sources.reading import (
    MAX_UNPROVEN,
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
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling, made_up

PERSON = "person"
KINDS = {"new": Kind.CREATED, "update": Kind.CHANGED, "delete": Kind.DELETED}
# Of one moment, a deletion is newer than a change, and that is newer than the creation. What is read is newest.
ORDER = {Kind.CREATED: "0", Kind.CHANGED: "1", Kind.DELETED: "2"}
OWN_PAIR = "bridge_token"  # the name of the pair that `bridge register` asks for
HIDDEN = "(hidden)"  # stands in for a secret in what is stored
MAX_IDS = 1_000  # Copper sends 30 at most
WRONG = -1
_OF_COPPER = ("ids", "type", "event", "subscription_id", "timestamp", "updated_attributes")

KNOWN_FIELDS = (
    "address_city", "address_country", "address_postal_code", "address_state", "address_street", "assignee_id",
    "company_id", "company_name", "contact_type_id", "date_created", "date_modified", "details", "email", "emails",
    "email_other", "email_personal", "email_work", "first_name", "id", "last_name", "middle_name", "name", "phone",
    "phone_home", "phone_mobile", "phone_other", "phone_work", "phones", "prefix", "socials", "suffix", "tags",
    "title", "websites",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of subscriptions that were made elsewhere: the first name goes with the first value, and so on."""

    names: tuple[str, ...] = field(metadata={"help": "of the pairs", "example": ["secret", "key"]})
    values: tuple[Secret, ...] = field(
        metadata={"help": "one for each name; a name may come twice while its value is being changed"}
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """The subscriptions of a Copper account."""

    secrets: tuple[Secret, ...] = field(
        metadata={"help": "what notifications show in X-Bridge-Token; several while it is changed: new first"}
    )
    user_email: str = field(
        metadata={
            "help": "the e-mail address of the user whose API key is the token: Copper wants both",
            "example": "ops@example.com",
        }
    )
    token: Secret | None = field(
        default=None, metadata={"help": "an API key: people are then read, which notifications do not hold"}
    )
    pairs: Pairs | None = field(
        default=None,
        metadata={"help": "the secret pairs of subscriptions that bridge did not make, as they stand in the body"},
    )
    opt_out_value: bool | str = field(
        default=True,
        metadata={
            "help": "what is written into a custom field to say that the person opted out; a text of digits is "
            "the number of an option"
        },
    )
    api_base: str = field(
        default="https://api.copper.com/developer_api/v1", metadata={"help": "where people are read"}
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Copper:
    """One account's subscriptions. Raises `ValueError` where a secret is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        with Complaints() as complaints:
            with complaints.look():
                self._shown = shown.in_header(settings.secrets)
            complaints.unless(bool(settings.secrets), "secrets: at least one is needed, or anyone could send")
            with complaints.look():
                self._pairs = _pairs(settings.pairs)
            complaints.unless(bool(settings.user_email.strip()), "user_email: it is empty")
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if people are not to be read")

    # --- verifying ---------------------------------------------------------------------------------------

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. The header counts; what is found of the pairs must be right, too.

        Without the header the pairs prove it, where they are found: Copper says that it sends both, and not where
        in the body the pairs are.
        """
        shows = self._shown.header in request.headers
        if shows:
            self._shown.match(request)  # before anything of a stranger's body is read
        elif len(request.body) > MAX_UNPROVEN:
            raise BadSignature(
                "The request shows no secret in a header, and its body is too large to look for one."
            )
        body = _body(request)
        own, others = self._own_pair(body), self._other_pairs(body)
        if own == WRONG or WRONG in others:
            raise BadSignature("A pair in the body is not the configured one.")
        if shows:
            index = self._shown.match(request)
        elif own is not None:
            index = own
        elif others and None not in others:
            index = len(self._shown.values)
        else:
            raise BadSignature("Neither the header nor the pairs in the body are the configured ones.")
        return Genuine(Verified(_without_secrets(shown.without(request, self._shown.header), body)), index)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return self._shown.show(request)

    def _own_pair(self, body: Mapping[str, Any]) -> int | None:
        """Return which secret bridge's own pair shows, `WRONG` where it is none; None: there is no such pair."""
        found = [shown.same(value, self._shown.values) for value in _found(body, OWN_PAIR)]
        if not found:
            return None
        return found[0][0] if all(found) else WRONG

    def _other_pairs(self, body: Mapping[str, Any]) -> list[int | None]:
        """Return 0 for each configured pair that is right, `WRONG` where it is not; None: it is not there."""
        told: list[int | None] = []
        for name, values in self._pairs.items():
            found = [shown.same(value, values) for value in _found(body, name)]
            told.append(None if not found else 0 if all(found) else WRONG)
        return told

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        if not isinstance(body, dict) or not isinstance(body.get("ids"), list):
            raise BadPayload("The body is no notification of Copper's: it has no list of ids.")
        if len(body["ids"]) > MAX_IDS:
            raise BadPayload(f"The body names more than {MAX_IDS:,} records.")
        thing, action = (text_or_none(body.get(name)) or "" for name in ("type", "event"))
        word = ".".join(filter(None, (thing, action)))
        ignored = ""
        if thing != PERSON:
            ignored = f"'{short(thing)}' is not about people."
        elif action not in KINDS:
            ignored = f"The event '{short(action)}' changes no person."
        elif not body["ids"]:
            ignored = "The notification names no person."
        said = fingerprint({name: body.get(name) for name in _OF_COPPER})
        if ignored:
            return [Event(event_key("copper", said), ignored=ignored, type=word)]
        fields = self._fields(body)
        return distinct(self._event(word, said, one, body, fields, received_at) for one in body["ids"])

    def _event(
        self,
        word: str,
        said: str,
        given_id: Any,
        body: Mapping[str, Any],
        fields: Mapping[str, Value],
        received_at: datetime,
    ) -> Event:
        """Return what is said of one person; *said* is the content of the notification, as a short text."""
        kind = KINDS[body["event"]]
        try:
            source_id = record_id(given_id, "id of a person")
        except Unclear as error:
            return Event(event_key("copper", said, fingerprint(given_id)), unreadable=str(error), type=word)
        try:
            at = moment(body.get("timestamp"), "timestamp")
            key = event_key("copper", said, source_id)
        except Unclear:
            at, key = received_at, receipt_key(received_at, "copper", said, source_id)
            # Nothing proves that it is newer than a deletion.
            kind = Kind.CHANGED if kind is Kind.CREATED else kind
        version = Version(at, f"{ORDER[kind]}:{said[:16]}")
        record = RecordKey(self.name, source_id)
        if kind is Kind.DELETED:
            change = Change(record, kind, version)
        else:
            change = Change(record, kind, version, fields, thin=True)
        return Event(key, (clamp(change, received_at),), type=word)

    def _fields(self, body: Mapping[str, Any]) -> dict[str, Value]:
        """Return what is said of the person, where it can be nobody else's, and where nobody can be asked.

        The time of a notification may be that of its sending: beside what is read, it would look too new.
        """
        changed = body.get("updated_attributes")
        if self.can_read() or len(body["ids"]) != 1 or not isinstance(changed, dict):
            return {}
        return dict(_changed(changed))

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._settings.token is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        account = _account(self.name, self._settings)
        if account is None:
            raise SourceUnavailable(f"No token is configured for {self.name}, so its people cannot be read.")
        return account.read(api, keys, fields)


# --- pairs -----------------------------------------------------------------------------------------------


def _pairs(given: Pairs | None) -> dict[str, tuple[bytes, ...]]:
    """Return the values that each name may have.

    Raises:
        ValueError: one is unusable.
    """
    if given is None:
        return {}
    if not given.names or len(given.names) != len(given.values):
        raise ValueError("pairs: as many values are needed as there are names, and one at least")
    pairs: dict[str, tuple[bytes, ...]] = {}
    for name, value in zip(given.names, given.values, strict=True):
        if not name or name in _OF_COPPER:
            raise ValueError(f"pairs.names: '{name}' is a name that Copper uses itself")
        if not value.reveal().strip():
            raise ValueError("pairs.values: one is empty: anyone could send with it")
        pairs[name] = (*pairs.get(name, ()), value.reveal().strip().encode())
    return pairs


def _body(request: InboundRequest) -> Mapping[str, Any]:
    """Return the body as far as it can hold pairs."""
    try:
        body = read_json(request.body)
    except BadPayload:
        return {}
    return body if isinstance(body, dict) else {}


def _found(body: Mapping[str, Any], name: str) -> list[Any]:
    """Return what the pair *name* holds: it stands beside Copper's own names, or in an object of all the pairs."""
    places = (body, body.get("secret"), body.get("secrets"))
    found = [inside[name] for inside in places if isinstance(inside, dict) and name in inside]
    return [value for value in found if not isinstance(value, dict)]


def _without_secrets(request: InboundRequest, body: Mapping[str, Any]) -> InboundRequest:
    """Return *request* as it may be stored: whatever text in its body is none of Copper's may be a pair."""
    names = [
        name for name, value in body.items() if name not in _OF_COPPER and isinstance(value, str | dict | list)
    ]
    if not names:
        return request
    hidden = {**body, **dict.fromkeys(names, HIDDEN)}
    return replace(request, body=json.dumps(hidden, ensure_ascii=False).encode("utf-8", "replace"))


# --- a notification --------------------------------------------------------------------------------------


def _changed(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    """Yield the fields that changed, of ``{name: [old, new]}``."""
    for name, pair in attributes.items():
        if name == "custom_fields" and isinstance(pair, dict):
            for number, inner in pair.items():
                if isinstance(inner, list) and len(inner) == 2 and re.fullmatch(r"[0-9]{1,20}", number):
                    yield f"cf_{number}", inner[1]
        elif isinstance(pair, list) and len(pair) == 2:
            yield from flat(name, pair[1]).items()


def sample(wanted: Sampling) -> bytes:
    """Return a notification of a changed person."""
    person = {"email": "ada@example.com", "phone_mobile": "+14155550123", "first_name": "Ada"}
    said = made_up(wanted.reads) or person
    changed: dict[str, list[Any]] = {}
    for name, value in said.items():
        way, _, category = name.partition("_")
        if way in {"email", "phone"}:
            listed, part = ("emails", "email") if way == "email" else ("phone_numbers", "number")
            changed.setdefault(listed, [[], []])[1].append({part: value, "category": category or "work"})
        else:
            changed[name] = [None, value]
    body = {
        "ids": [SAMPLE_NUMBER],
        "type": PERSON,
        "event": "update",
        "subscription_id": 17065,
        "timestamp": iso(wanted.at),
        "updated_attributes": changed,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _account(name: str, settings: Settings) -> Account | None:
    """Return the account, where its API can be called."""
    if settings.token is None:
        return None
    secrets = tuple(secret.reveal().strip() for secret in settings.secrets)
    return Account(
        name, settings.token.reveal().strip(), settings.user_email.strip(), secrets, settings.opt_out_value
    )


SOURCE = SourceType(
    name="copper",
    title="Copper",
    settings=Settings,
    make=Copper,
    kept_headers=("content-type", "user-agent"),
    proof=Proof.SHOWN,
    read_limit=20,  # a call each
    read_base_url=lambda settings: str(settings.api_base).rstrip("/"),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "mobile": "phone_mobile",
        "first_name": "first_name",
        "last_name": "last_name",
        "name": "name",
    },
    steps=(
        "Make a long random text, for instance with `openssl rand -hex 32`, and put it into the environment "
        "variable that `bridge.toml` names under `secrets`.",
        "In Copper open *Settings → Integrations → API Keys*, as a user who sees everybody, and choose *Generate "
        "API key*. Put it into the environment variable that `bridge.toml` names under `token`, and that user's "
        "e-mail address into `user_email`.",
        "Start bridge again, and run `bridge register {name}`: it makes the three subscriptions, for people who "
        "are new, updated and deleted.",
        "Copper has no page for subscriptions. To make them yourself, post the body that the page of this source "
        "shows to `https://api.copper.com/developer_api/v1/webhooks` three times, with the events `new`, `update` "
        "and `delete`, and as target the URL that `bridge url {name}` prints.",
    ),
    manual="https://developer.copper.com/webhooks/create-new-subscription.html",
    lister=_account,
    registrar=_account,
    writer=_account,
)
