"""A Shopify shop on loopback: customers that can be read, listed and opted out, and subscriptions to webhooks.

https://shopify.dev/docs/api/admin-graphql
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now
from tests.sources.graphql_of_monday_and_shopify import KIND, Invalid, Schema, execute, fields_chosen

VERSION = "2026-07"
MOST_NODES = 250
MOST_COST = 1000
FIRST_ID = 706405506930370084
TOPICS = {
    "CUSTOMERS_CREATE", "CUSTOMERS_UPDATE", "CUSTOMERS_DELETE", "CUSTOMERS_ENABLE", "CUSTOMERS_DISABLE",
    "CUSTOMERS_MERGE", "CUSTOMERS_EMAIL_MARKETING_CONSENT_UPDATE", "CUSTOMERS_MARKETING_CONSENT_UPDATE",
    "CUSTOMER_TAGS_ADDED", "CUSTOMER_TAGS_REMOVED", "ORDERS_CREATE",
}  # fmt: skip

_CONSENT = {"marketingState": "", "marketingOptInLevel": "", "marketingUpdatedAt": ""}
_ERRORS = {"userErrors": "UserError"}
SCHEMA: Schema = {
    "Query": {"nodes": "Node", "customers": "Customers", "webhookSubscriptions": "Subscriptions"},
    "Mutation": {
        "customerEmailMarketingConsentUpdate": "CustomerPayload",
        "customerSmsMarketingConsentUpdate": "CustomerPayload",
        "webhookSubscriptionCreate": "SubscriptionPayload",
        "webhookSubscriptionUpdate": "SubscriptionPayload",
        "webhookSubscriptionDelete": "Deleted",
    },
    "Node": {"id": ""},
    "Customer": {
        "id": "", "createdAt": "", "updatedAt": "", "firstName": "", "lastName": "", "locale": "", "note": "",
        "numberOfOrders": "", "state": "", "tags": "", "taxExempt": "", "verifiedEmail": "",
        "defaultEmailAddress": "Email", "defaultPhoneNumber": "Phone", "defaultAddress": "Address",
    },
    "Email": {**_CONSENT, "emailAddress": ""},
    "Phone": {**_CONSENT, "phoneNumber": "", "marketingCollectedFrom": ""},
    "Address": {
        "address1": "", "address2": "", "city": "", "company": "", "country": "", "countryCodeV2": "", "phone": "",
        "province": "", "provinceCode": "", "zip": "",
    },
    "Customers": {"nodes": "Customer", "pageInfo": "PageInfo"},
    "PageInfo": {"hasNextPage": "", "endCursor": ""},
    "Subscriptions": {"nodes": "Subscription", "pageInfo": "PageInfo"},
    "Subscription": {"id": "", "topic": "", "uri": "", "format": "", "includeFields": "", "filter": ""},
    "CustomerPayload": {"customer": "Customer", **_ERRORS},
    "SubscriptionPayload": {"webhookSubscription": "Subscription", **_ERRORS},
    "Deleted": {"deletedWebhookSubscriptionId": "", **_ERRORS},
    "UserError": {"code": "", "field": "", "message": ""},
}  # fmt: skip


class Failed(Exception):
    """What is asked for cannot be done: an error in a 200."""

    def __init__(self, code: str, *, path: tuple[str, ...] = (), cost: Mapping[str, Any] | None = None) -> None:
        self.code, self.path, self.cost = code, path, cost


@dataclass(slots=True)
class Consent:
    state: str = "NOT_SUBSCRIBED"
    at: datetime | None = None


@dataclass(slots=True)
class Customer:
    id: int
    email: str | None
    phone: str | None
    first_name: str | None
    last_name: str | None
    created_at: datetime
    updated_at: datetime
    tags: list[str] = field(default_factory=list)
    note: str | None = None
    city: str = ""
    email_consent: Consent = field(default_factory=Consent)
    sms_consent: Consent = field(default_factory=Consent)


@dataclass(slots=True)
class Subscription:
    id: str
    topic: str
    uri: str
    format: str = "JSON"
    fields: list[str] = field(default_factory=list)
    filter: str = ""


class Shopify(Fake):
    """See the module's docstring. What changes a customer returns the webhook's topic and body.

    - ``nodes``: whether customers come in the order in which they were asked for.
    - ``protected``: whether what the app may not see is null, or makes the call fail. (It may, by default.)
    - ``touches``: whether a new consent makes the customer a changed one.
    """

    title = "Shopify"
    token = "demo-shopify-token"
    client_id = "demo-client-id"
    client_secret = "hush"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "nodes": ("as_asked", "in_any_order"),
        "protected": ("shown", "null", "denied"),
        "touches": (True, False),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.customers: dict[int, Customer] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.tokens = {self.token}  # that are good now
        self.may_hear_of_merges = True
        self.most = 250  # at most so many come on a page
        self.available = 2000.0
        self._given = 0
        super().__init__(**switches)

    # --- what people do in the shop ---

    def create(self, email: str | None = "ada@example.com", **more: Any) -> int:
        with self.lock:
            now = self.clock()
            known = {"phone": None, "first_name": "Ada", "last_name": "Lovelace", **more}
            customer = Customer(FIRST_ID + len(self.customers), email, created_at=now, updated_at=now, **known)
            self.customers[customer.id] = customer
            return customer.id

    def change(self, customer_id: int, **values: Any) -> bytes:
        """Return the body of customers/update."""
        with self.lock:
            customer = self.customers[customer_id]
            for name, value in values.items():
                setattr(customer, name, value)
            customer.updated_at = self.clock()
            return self.webhook(customer_id)

    def consent(self, customer_id: int, state: str, way: str = "email") -> bytes:
        """Return the body of customers_email_marketing_consent/update, or of that for text messages."""
        with self.lock:
            customer = self.customers[customer_id]
            told = self._consent(customer, way, state)
            channel = "email_marketing_consent" if way == "email" else "sms_marketing_consent"
            said = {
                "state": told.state.lower(),
                "opt_in_level": "single_opt_in",
                "consent_updated_at": _iso(self.clock()),
            }
            if way == "email":
                return _json({"customer_id": customer.id, "email_address": customer.email, channel: said})
            return _json({"id": customer.id, "phone": customer.phone, channel: said})

    def _consent(self, customer: Customer, way: str, state: str) -> Consent:
        consent = customer.email_consent if way == "email" else customer.sms_consent
        consent.state, consent.at = state, self.clock()
        if self.switches["touches"]:
            customer.updated_at = self.clock()
        return consent

    def webhook(self, customer_id: int) -> bytes:
        customer = self.customers[customer_id]
        told = {
            "id": customer.id,
            "created_at": _iso(customer.created_at),
            "updated_at": _iso(customer.updated_at),
            "first_name": customer.first_name,
            "last_name": customer.last_name,
            "state": "enabled",
            "note": customer.note,
            "verified_email": True,
            "tax_exempt": False,
            "email": customer.email,
            "phone": customer.phone,
            "addresses": [],
            "admin_graphql_api_id": _gid(customer.id),
        }
        return _json(told)

    def delete(self, customer_id: int) -> bytes:
        with self.lock:
            del self.customers[customer_id]
            return _json({"id": customer_id, "tax_exemptions": [], "admin_graphql_api_id": _gid(customer_id)})

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.post("/admin/oauth/access_token")(self._give_token)
        app.post(f"/admin/api/{VERSION}/graphql.json")(self._ask)

    def _give_token(self) -> Response:
        form = request.form
        wanted = ("client_credentials", self.client_id, self.client_secret)
        if (form.get("grant_type"), form.get("client_id"), form.get("client_secret")) != wanted:
            return answer(400, {"error": "invalid_request"})
        self._given += 1
        given = f"given-{self._given}"
        self.tokens = {given}
        return answer(200, {"access_token": given, "scope": "read_customers", "expires_in": 86399})

    def _ask(self) -> Response:
        given = request.headers.get("X-Shopify-Access-Token", "").encode()
        if not any(hmac.compare_digest(given, one.encode()) for one in self.tokens):
            return answer(401, {"errors": "[API] Invalid API key or access token (unrecognized login)"})
        asked = request.get_json()
        try:
            self._charge(asked["query"], asked["variables"])
            return answer(200, {"data": execute(asked["query"], asked["variables"], SCHEMA, self._resolve)})
        except Invalid as error:
            return answer(200, {"errors": [{"message": str(error), "extensions": {"code": "undefinedField"}}]})
        except Failed as error:
            said = {"message": "Ada Lovelace", "path": list(error.path), "extensions": {"code": error.code}}
            return answer(200, {"errors": [said], "data": None, "extensions": {"cost": error.cost}})

    def _charge(self, query: str, variables: Mapping[str, Any]) -> None:
        """Refuse what costs too much: each customer, and each object within one, costs a point."""
        found = re.search(r"first: ([0-9]+)", query)
        many = int(found[1]) if found else len(variables.get("ids", [1]))
        inner = fields_chosen(query) & {"defaultEmailAddress", "defaultPhoneNumber", "defaultAddress"}
        cost = many * (1 + len(inner))
        if cost > MOST_COST:
            raise Failed("MAX_COST_EXCEEDED")
        if cost > self.available:
            status = {"maximumAvailable": 2000.0, "currentlyAvailable": self.available, "restoreRate": 100.0}
            raise Failed("THROTTLED", cost={"requestedQueryCost": cost, "throttleStatus": status})
        denied = self.switches["protected"] == "denied" and fields_chosen(query) & {"firstName", "emailAddress"}
        if denied:
            raise Failed("ACCESS_DENIED", path=("customers", min(denied)))

    def _resolve(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return getattr(self, f"_{name}")(arguments)

    def _nodes(self, arguments: Mapping[str, Any]) -> list[Any]:
        ids = arguments["ids"]
        if len(ids) > MOST_NODES:
            raise Failed("MAX_INPUT_SIZE")
        found = [self._shown(self.customers.get(_number(one))) for one in ids]
        return found[::-1] if self.switches["nodes"] == "in_any_order" else found

    def _customers(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments.get("sortKey") != "ID":
            raise Invalid("customers without an order come in any")
        after = int(str(arguments.get("after") or "after-0").removeprefix("after-"))
        there = sorted(one.id for one in self.customers.values() if self._matches(one, arguments.get("query")))
        later = [one for one in there if one > after]
        size = min(arguments["first"], self.most)
        page = later[:size]
        info = {"hasNextPage": len(later) > size, "endCursor": f"after-{page[-1]}" if page else None}
        return {"nodes": [self._shown(self.customers[one]) for one in page], "pageInfo": info}

    @staticmethod
    def _matches(customer: Customer, query: str | None) -> bool:
        if not query:
            return True
        found = re.fullmatch(r"updated_at:>='([0-9TZ:.-]+)'", query)
        if found is None:
            raise Invalid(f"no search that is known: {query}")
        return customer.updated_at >= datetime.fromisoformat(found[1])

    def _shown(self, customer: Customer | None) -> dict[str, Any] | None:
        if customer is None:
            return None
        seen = self.switches["protected"] != "null"
        email = {"emailAddress": customer.email, **_marketing(customer.email_consent)}
        phone = {"phoneNumber": customer.phone, **_marketing(customer.sms_consent)}
        address = dict.fromkeys(SCHEMA["Address"]) | {"city": customer.city}
        return {
            KIND: "Customer",
            "id": _gid(customer.id),
            "createdAt": _iso(customer.created_at),
            "updatedAt": _iso(customer.updated_at),
            "firstName": customer.first_name if seen else None,
            "lastName": customer.last_name if seen else None,
            "locale": "en",
            "note": customer.note,
            "numberOfOrders": "3",
            "state": "ENABLED",
            "tags": customer.tags,
            "taxExempt": False,
            "verifiedEmail": True,
            "defaultEmailAddress": email if seen and customer.email else None,
            "defaultPhoneNumber": phone if seen and customer.phone else None,
            "defaultAddress": address if seen and customer.city else None,
        }

    def _customerEmailMarketingConsentUpdate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._opt_out(arguments["input"], "email", "emailMarketingConsent")

    def _customerSmsMarketingConsentUpdate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._opt_out(arguments["input"], "phone", "smsMarketingConsent")

    def _opt_out(self, given: Mapping[str, Any], way: str, part: str) -> dict[str, Any]:
        if given.keys() != {"customerId", part} or given[part] != {"marketingState": "UNSUBSCRIBED"}:
            raise Invalid("the input is of another shape")
        customer = self.customers.get(_number(given["customerId"]))
        if customer is None or getattr(customer, way) is None:
            error = {"code": "INVALID", "field": ["input", part], "message": "Ada Lovelace has none"}
            return {"customer": None, "userErrors": [error]}
        self._consent(customer, way, "UNSUBSCRIBED")
        return {"customer": self._shown(customer), "userErrors": []}

    def _webhookSubscriptions(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        size = min(arguments["first"], self.most)
        ids = sorted(one for one in self.subscriptions if one > (arguments.get("after") or ""))
        nodes = [self._subscription(self.subscriptions[one]) for one in ids[:size]]
        info = {"hasNextPage": len(ids) > size, "endCursor": ids[:size][-1] if ids else None}
        return {"nodes": nodes, "pageInfo": info}

    @staticmethod
    def _subscription(one: Subscription) -> dict[str, Any]:
        return {
            "id": one.id, "topic": one.topic, "uri": one.uri, "format": one.format, "includeFields": one.fields,
            "filter": one.filter,
        }  # fmt: skip

    def _webhookSubscriptionCreate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        topic, wanted = arguments["topic"], arguments["webhookSubscription"]
        taken = any((one.topic, one.uri) == (topic, wanted["uri"]) for one in self.subscriptions.values())
        refused = topic == "CUSTOMERS_MERGE" and not self.may_hear_of_merges
        if taken or refused or topic not in TOPICS or not wanted["uri"].startswith("https://"):
            error = {"field": ["webhookSubscription", "uri"], "message": f"{wanted['uri']} cannot be taken"}
            return {"webhookSubscription": None, "userErrors": [error]}
        made = Subscription(f"gid://shopify/WebhookSubscription/{100 + len(self.subscriptions)}", topic, **wanted)
        self.subscriptions[made.id] = made
        return {"webhookSubscription": self._subscription(made), "userErrors": []}

    def _webhookSubscriptionUpdate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        one, wanted = self.subscriptions[arguments["id"]], arguments["webhookSubscription"]
        one.uri, one.format = wanted["uri"], wanted["format"]
        one.fields, one.filter = wanted["includeFields"], wanted["filter"]
        return {"webhookSubscription": self._subscription(one), "userErrors": []}

    def _webhookSubscriptionDelete(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        del self.subscriptions[arguments["id"]]
        return {"deletedWebhookSubscriptionId": arguments["id"], "userErrors": []}


def _gid(number: int) -> str:
    return f"gid://shopify/Customer/{number}"


def _number(gid: str) -> int:
    found = re.fullmatch(r"gid://shopify/Customer/([0-9]+)", gid)
    if found is None:
        raise Invalid(f"{gid} is no id of a customer")
    return int(found[1])


def _marketing(consent: Consent) -> dict[str, Any]:
    at = _iso(consent.at) if consent.at else None
    return {"marketingState": consent.state, "marketingOptInLevel": "SINGLE_OPT_IN", "marketingUpdatedAt": at}


def _iso(moment: datetime) -> str:
    """Return a moment in whole seconds, as Shopify has them."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
