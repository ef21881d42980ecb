"""Shopify: the webhooks of a shop about its customers, and reading, listing and writing them.

The signature covers the body alone. What it is about (topic), of which shop and when stand in headers outside it,
so a webhook is what its body shows that it is; a header may only agree.
https://shopify.dev/docs/apps/build/webhooks/subscribe/https
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from bridge import signing
from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources.base import Genuine, Read, SourceType
from bridge.sources.reading import (
    Unclear,
    event_key,
    fingerprint,
    moment,
    read_json,
    receipt_key,
    short,
    text_or_none,
)
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling, made_up
from bridge.sources.shopify import customers
from bridge.sources.shopify.account import READ_LIMIT, Account, Consents, Customers, Subscriptions
from bridge.sources.shopify.customers import Shape

SCHEME = signing.Scheme("x-shopify-hmac-sha256", encoding=signing.Encoding.BASE64)
SHOP = re.compile(r"[a-z0-9][a-z0-9-]*\.myshopify\.com")
TOPIC, EVENT_ID, SHOP_DOMAIN, TRIGGERED_AT, TEST = (
    "x-shopify-topic",
    "x-shopify-event-id",
    "x-shopify-shop-domain",
    "x-shopify-triggered-at",
    "x-shopify-test",
)

# What a body must show that is said to be of this topic.
TOPICS = {
    "customers/create": Shape.CUSTOMER,
    "customers/update": Shape.CUSTOMER,
    "customers/enable": Shape.CUSTOMER,
    "customers/disable": Shape.CUSTOMER,
    "customers/delete": Shape.DELETED,
    "customers/merge": Shape.MERGED,
    "customers_email_marketing_consent/update": Shape.EMAIL_CONSENT,
    "customers/email_marketing_consent_update": Shape.EMAIL_CONSENT,
    "customers_marketing_consent/update": Shape.SMS_CONSENT,
    "customers/marketing_consent_update": Shape.SMS_CONSENT,
    "customer.tags_added": Shape.TAGS,
    "customer.tags_removed": Shape.TAGS,
    "customer_tags_added": Shape.TAGS,
    "customer_tags_removed": Shape.TAGS,
    "customers/redact": Shape.REDACT,
    "customers/data_request": Shape.DATA_REQUEST,
    "shop/redact": Shape.SHOP_REDACT,
}
A_TEST = "It is a test that was sent from the shop's admin, about a customer who does not exist."
OTHER_SHOP = "It is from another shop than the configured one."
DATA_REQUEST = "A customer asks what is stored: bridge answers nothing by itself. Export the contact and send it."
SHOP_REDACT = "The app was removed from the shop. Bridge deletes nothing for that: remove the source, and prune."
NOT_MERGED = "It is a merge that has not come to its end."
UNSUBSCRIBED = "unsubscribed"


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of a Shopify app in one shop."""

    shop: str = field(metadata={"help": "the shop's own domain at Shopify", "example": "acme.myshopify.com"})
    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "the app's client secret, or the one shown for webhooks made in the shop's admin; new first, "
            "old next",
            "variable": "CLIENT_SECRET",
        }
    )
    client_id: str = field(
        default="",
        metadata={"help": "the app's client id: bridge then gets its access by itself, with the first of secrets"},
    )
    token: Secret | None = field(
        default=None, metadata={"help": "instead of client_id: an access token of the Admin API, of an older app"}
    )
    full_access: bool = field(
        default=False,
        metadata={
            "help": "the app may see names, addresses, e-mail addresses and phone numbers: a null is then an "
            "empty field; otherwise it may be one that is withheld, and says nothing"
        },
    )
    api_base: str = field(default="", metadata={"help": "where customers are read; default: the shop"})
    api_version: str = field(default="2026-07", metadata={"help": "the version of Shopify's API to call"})
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Shopify:
    """One shop's webhooks. Raises `ValueError` where the settings cannot work."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._shop = settings.shop.strip().lower()
        with Complaints() as complaints:
            known = SHOP.fullmatch(self._shop) is not None
            complaints.unless(known, "shop: it is the shop's domain at Shopify, such as acme.myshopify.com")
            with complaints.look():
                self._credentials = signing.credentials(
                    "secrets", settings.secrets, lambda secret: signing.credential(SCHEME, secret.reveal())
                )
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if customers are not to be read")
            both = settings.token is not None and bool(settings.client_id.strip())
            complaints.unless(not both, "token: client_id is set as well; one of the two is enough")
        self._account = account_of(name, settings)

    # --- verifying ---------------------------------------------------------------------------------------

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        proof = signing.verify(request, self._credentials, now)
        return Genuine(Verified(request), proof.index, proof.signed_at)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(request, self._credentials[0], now)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        if not isinstance(body, dict):
            raise BadPayload("The body is no webhook of Shopify's: it is not an object.")
        return [self._event(_Sent(genuine.request.headers, body, received_at))]

    def _event(self, sent: _Sent) -> Event:
        if sent.topic and sent.topic not in TOPICS:
            return Event(sent.key, ignored=f"'{short(sent.topic)}' is not about customers.", type=sent.topic)
        if self._is_foreign(sent):
            return Event(sent.key, ignored=OTHER_SHOP, type=sent.topic)
        if sent.is_test:
            return Event(sent.key, ignored=A_TEST, type=sent.topic)
        # Without a topic (a file that somebody sends), a customer is a customer all the same.
        if sent.shape is not TOPICS.get(sent.topic, Shape.CUSTOMER):
            return Event(sent.content_key, unreadable=_disagreement(sent), type=sent.topic)
        ignored = {Shape.DATA_REQUEST: DATA_REQUEST, Shape.SHOP_REDACT: SHOP_REDACT}.get(sent.shape, "")
        if sent.shape is Shape.MERGED and str(sent.body.get("status")).lower() != "completed":
            ignored = NOT_MERGED
        if ignored:
            return Event(sent.key, ignored=ignored, type=sent.topic)
        try:
            changes = self._changes(sent)
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(sent.content_key, unreadable=str(error), type=sent.topic)
        return Event(sent.key, tuple(clamp(change, sent.received_at) for change in changes), type=sent.topic)

    def _is_foreign(self, sent: _Sent) -> bool:
        signed = (text_or_none(sent.body.get("shop_domain")) or "").strip().lower()
        return any(domain and domain != self._shop for domain in (sent.domain, signed))

    def _changes(self, sent: _Sent) -> list[Change]:
        if sent.shape is Shape.CUSTOMER:
            return [self._customer(sent)]
        if sent.shape is Shape.EMAIL_CONSENT:
            return [self._consent(sent, "email", sent.body.get("customer_id"))]
        if sent.shape is Shape.SMS_CONSENT:
            return [self._consent(sent, "phone", sent.body.get("id"))]
        if sent.shape is Shape.TAGS:
            # Those that came or went, and not those that are there.
            key = self._record(sent.body.get("customerId"), "customerId")
            at = moment(sent.body.get("occurredAt"), "occurredAt")
            return [Change(key, Kind.CHANGED, sent.version(at), thin=True)]
        if sent.shape is Shape.MERGED:
            return self._merge(sent)
        if sent.shape is Shape.REDACT:
            key = self._record(sent.body["customer"].get("id"), "id of a customer")
            return [Change(key, Kind.ERASED, sent.version(sent.triggered_at))]
        return [Change(self._record(sent.body.get("id"), "id"), Kind.DELETED, sent.version(sent.triggered_at))]

    def _customer(self, sent: _Sent) -> Change:
        key = self._record(sent.body.get("id"), "id")
        told = customers.of_webhook(sent.body, full_access=self._settings.full_access)
        # A snapshot of what is there by then: a consent may be newer than the rest says that it is.
        at = max(filter(None, [moment(sent.body.get("updated_at"), "updated_at"), customers.consented_at(told)]))
        created = sent.topic == "customers/create"
        # Newer versions of the API tell what was agreed to in webhooks of their own only.
        thin = created and not told.keys() & {"email_marketing_state", "sms_marketing_state"}
        fields: dict[str, Value] = {**told, "id": key.source_id}
        return Change(key, Kind.CREATED if created else Kind.CHANGED, sent.version(at), fields, thin=thin)

    def _consent(self, sent: _Sent, way: str, source_id: Any) -> Change:
        """Return what a consent became.

        Where nothing that is signed says when, the body may be an old one that is sent again: it may take a
        consent away, but it gives none.
        """
        key = self._record(source_id, "id of a customer")
        channel = customers.CHANNELS[way]
        fields = customers.consent(way, sent.body.get(f"{channel}_consent"))
        fields |= customers.newest_consent(fields)
        at = customers.consented_at(fields)
        if at is None and fields.get(f"{channel}_state") != UNSUBSCRIBED:
            fields = {}
        version = sent.version(at or sent.triggered_at)
        return Change(key, Kind.CHANGED, version, fields, thin=at is None)

    def _merge(self, sent: _Sent) -> list[Change]:
        kept, gone = (
            self._record(sent.body.get(name), name)
            for name in ("admin_graphql_api_customer_kept_id", "admin_graphql_api_customer_deleted_id")
        )
        if kept == gone:
            raise Unclear("It is a merge of a customer with itself.")
        version = sent.version(sent.triggered_at)
        return [
            Change(gone, Kind.MERGED, version, survivor=kept.source_id),
            Change(kept, Kind.CHANGED, version, thin=True),
        ]

    def _record(self, value: Any, what: str) -> RecordKey:
        return RecordKey(self.name, customers.customer_id(value, what))

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._account is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. At most 100 customers a call: 250 of them may cost more than one call may."""
        if self._account is None:
            return Account.missing(self.name)
        return Customers(self._account, full_access=self._settings.full_access).read(api, keys, fields)


# --- one webhook -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    """What was sent. The headers are not signed."""

    headers: Mapping[str, str]
    body: Mapping[str, Any]
    received_at: datetime

    @property
    def topic(self) -> str:
        return self.headers.get(TOPIC, "").strip().lower()

    @property
    def domain(self) -> str:
        return self.headers.get(SHOP_DOMAIN, "").strip().lower()

    @property
    def is_test(self) -> bool:
        return self.headers.get(TEST, "").strip().lower() == "true"

    @cached_property
    def shape(self) -> Shape:
        return customers.shape_of(self.body)

    @cached_property
    def content(self) -> str:
        return fingerprint(self.body)

    @property
    def content_key(self) -> str:
        return event_key("shopify", self.topic, self.content)

    @property
    def key(self) -> str:
        """Return what tells repeats: Shopify's id of the event, for all who heard of it.

        All that decides what becomes of it is part of it, as none of these headers is signed: what was sent with
        other ones is no repeat.
        """
        told = (self.topic, self.domain, self.is_test, self.content)
        event_id = self.headers.get(EVENT_ID, "").strip()
        if not event_id and "updated_at" not in self.body:
            return receipt_key(self.received_at, "shopify", *told)
        return event_key("shopify", event_id, *told)

    @property
    def triggered_at(self) -> datetime:
        """Return when it happened, by a header that nobody signed: never later than it was received."""
        at = customers.moment_or_none(self.headers.get(TRIGGERED_AT, "").strip())
        return min(at, self.received_at) if at else self.received_at

    def version(self, at: datetime) -> Version:
        """Return the version of what was said to be so at *at*. Shopify's times are whole seconds.

        Of two customers of one second the one that was sent later counts. What was read counts more: "r".
        """
        sent_at = customers.moment_or_none(self.headers.get(TRIGGERED_AT, "").strip())
        return Version(at, f"{iso(sent_at) if sent_at else '-'}:{self.content[:16]}")


def _disagreement(sent: _Sent) -> str:
    if not sent.topic:
        return "It does not say what happened (no X-Shopify-Topic), and its body is no whole customer."
    return (
        f"Its topic is '{short(sent.topic)}', but its body is not what Shopify sends then. The topic is not "
        "signed and the body is, so nothing was done."
    )


def account_of(name: str, settings: Settings) -> Account | None:
    return Account.of(
        name,
        base_url=base_of(settings),
        version=settings.api_version,
        token=settings.token,
        client_id=settings.client_id,
        secret=settings.secrets[0] if settings.secrets else None,
    )


def base_of(settings: Settings) -> str:
    return settings.api_base or f"https://{settings.shop.strip().lower()}"


def sample(wanted: Sampling) -> bytes:
    """Return a whole customer, as webhooks have one since 2025: what was agreed to is not in it."""
    at = wanted.at.isoformat(timespec="milliseconds")
    values = made_up({name for name in wanted.reads if name in customers.KNOWN_FIELDS})
    values = values or {"email": "ada@example.com", "phone": "+14155550123"}
    own = {name: value for name, value in values.items() if not name.startswith(customers.ADDRESS)}
    address = {
        name.removeprefix(customers.ADDRESS): value
        for name, value in values.items()
        if name.startswith(customers.ADDRESS)
    }
    customer = {
        "id": SAMPLE_NUMBER,
        "created_at": at,
        "updated_at": at,
        "first_name": "Ada",
        "last_name": "Lovelace",
        "state": "enabled",
        "verified_email": True,
        **own,
        **({"default_address": address} if address else {}),
        "admin_graphql_api_id": customers.gid(str(SAMPLE_NUMBER)),
    }
    return json.dumps(customer, separators=(",", ":")).encode()


def _lister(name: str, settings: Settings) -> Customers | None:
    account = account_of(name, settings)
    return Customers(account, full_access=settings.full_access) if account else None


def _registrar(name: str, settings: Settings) -> Subscriptions | None:
    account = account_of(name, settings)
    return Subscriptions(account) if account else None


def _writer(name: str, settings: Settings) -> Consents | None:
    account = account_of(name, settings)
    return Consents(account) if account else None


SOURCE = SourceType(
    name="shopify",
    title="Shopify",
    settings=Settings,
    make=Shopify,
    kept_headers=(
        "content-type",
        "user-agent",
        TOPIC,
        EVENT_ID,
        SHOP_DOMAIN,
        TRIGGERED_AT,
        TEST,
        "x-shopify-webhook-id",
        "x-shopify-api-version",
    ),
    read_limit=READ_LIMIT,
    read_base_url=base_of,
    known_field=frozenset(customers.KNOWN_FIELDS).__contains__,
    known_fields=customers.KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "first_name": "first_name",
        "last_name": "last_name",
        "opt_out": "email_marketing_state == 'unsubscribed' or sms_marketing_state == 'unsubscribed'",
    },
    steps=(
        "In Shopify's *Dev Dashboard* create an app for your shop, choose the scopes `read_customers` (and "
        "`write_customers` if bridge shall write opt-outs, `read_customer_merge` to hear of merges), and install "
        "it.",
        "Under *API access → Protected customer data* ask for name, e-mail, phone and address. Only once all four "
        "are granted, set `full_access` to `true`.",
        "From *Settings* copy the client id (`client_id`) and the client secret (`secrets`) into the environment "
        "variables that `bridge.toml` names for them, and start bridge again.",
        "Run `bridge register {name}`: it makes the webhooks. By hand instead: in the shop's admin under "
        "*Settings → Notifications → Webhooks* make one each for *Customer creation*, *Customer update* and "
        "*Customer deletion*, as JSON, with the URL that `bridge url {name}` prints, and put the secret that is "
        "shown there under `secrets`, behind the app's.",
        "In the app's configuration give the same URL for *Customer data erasure* (`customers/redact`), which "
        "nobody can register: bridge then erases whoever Shopify says must be.",
    ),
    manual="https://shopify.dev/docs/apps/build/webhooks/subscribe/https",
    lister=_lister,
    registrar=_registrar,
    writer=_writer,
)
