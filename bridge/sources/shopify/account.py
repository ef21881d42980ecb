"""Calls to Shopify's Admin API: reading and listing customers, subscriptions to webhooks, and writing an opt-out.

One address takes everything, as GraphQL. Errors come in a 200.
https://shopify.dev/docs/api/admin-graphql and https://shopify.dev/docs/api/usage/limits
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NoReturn

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret, Version
from bridge.outbound import Api, Reply
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.oauth import AccessTokens
from bridge.sources.reading import Unclear, moment, text_or_none
from bridge.sources.shopify import customers

TITLE = "Shopify"
READ_LIMIT = 100
PAGE = 100
SCOPE = "the scope read_customers and access to protected customer data; write_customers to write opt-outs"
LATE = timedelta(minutes=5)  # by which Shopify's search may be behind what was changed
PAUSE_S = 5.0  # where it asks for fewer calls and does not say for how long
WORD = re.compile(r"[A-Za-z_]{1,60}")

# What is registered. Customers themselves first: without those nothing works.
TOPICS = (
    "CUSTOMERS_CREATE",
    "CUSTOMERS_UPDATE",
    "CUSTOMERS_DELETE",
    "CUSTOMERS_ENABLE",
    "CUSTOMERS_DISABLE",
    "CUSTOMERS_EMAIL_MARKETING_CONSENT_UPDATE",
    "CUSTOMERS_MARKETING_CONSENT_UPDATE",
)
TAG_TOPICS = ("CUSTOMER_TAGS_ADDED", "CUSTOMER_TAGS_REMOVED")  # only where a rule reads them
MERGE_TOPIC = "CUSTOMERS_MERGE"  # needs a scope that not every app has
BY_HAND = (
    "Nobody can register customers/redact, by which Shopify has a person erased: give the same URL for it in the "
    "app's configuration."
)


class Account:
    """What one app may see and do in one shop."""

    def __init__(self, connection: str, version: str, token: Secret | None, tokens: AccessTokens | None) -> None:
        self.connection = connection
        self._path = f"/admin/api/{version.strip()}/graphql.json"
        self._token = token
        self._tokens = tokens

    @classmethod
    def of(
        cls,
        connection: str,
        *,
        base_url: str,
        version: str,
        token: Secret | None,
        client_id: str,
        secret: Secret | None,
    ) -> Account | None:
        """Return the account that these give access to; None where they give none.

        https://shopify.dev/docs/apps/build/authentication-authorization/access-tokens/client-credentials-grant
        """
        if token is not None:
            return cls(connection, version, token, None)
        if not client_id.strip() or secret is None:
            return None
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id.strip(),
            "client_secret": secret.reveal().strip(),
        }
        return cls(
            connection, version, None, AccessTokens(TITLE, connection, base_url, "/admin/oauth/access_token", form)
        )

    @staticmethod
    def missing(connection: str) -> NoReturn:
        raise SourceUnavailable(
            f"Neither client_id nor token is configured for {connection}, so its customers cannot be read."
        )

    def ask(self, api: Api, query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what *query* gives.

        Raises:
            BatchUnreadable: this one is refused, or answered with nonsense.
            SourceUnavailable: Shopify cannot be called now, or refuses whoever calls.
        """
        reply = self._send(api, {"query": query, "variables": variables})
        answer = object_of(reply.json_or_none())
        errors = answer.get("errors")
        if errors:
            self._refuse(errors, object_of(answer.get("extensions")))
        data = answer.get("data")
        if not isinstance(data, dict):
            raise BatchUnreadable("Shopify's answer holds no data.")
        return data

    def change(self, api: Api, name: str, query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the mutation *name* gives.

        Raises:
            NotDone: Shopify does not do it, and says why.
            SourceUnavailable: as `ask` does.
        """
        done = object_of(self.ask(api, query, variables).get(name))
        errors = [object_of(error) for error in list_of(done.get("userErrors"))]
        if errors:
            # The message may quote whatever was sent; the code and the place do not.
            place = [part for part in list_of(errors[0].get("field")) if isinstance(part, str)]
            words = [text_or_none(errors[0].get("code")) or "", place[-1] if place else ""]
            known = ", ".join(word for word in words if WORD.fullmatch(word))
            raise NotDone(f"Shopify refuses it{f' ({known})' if known else ''}.")
        if not done:
            raise SourceUnavailable("Shopify did not say that it did what was asked. Bridge tries again later.")
        return done

    def _send(self, api: Api, content: Mapping[str, Any]) -> Reply:
        """Send *content*. An access token that ran out before its time, or was taken back, is replaced once."""
        for again in (False, True):
            token = self._tokens.current(api) if self._tokens else (self._token or Secret("")).reveal().strip()
            caller = Caller(TITLE, self.connection, {"X-Shopify-Access-Token": token}, SCOPE)
            reply = caller.call(api, "POST", self._path, json=content, expected=(200, 401))
            if reply.status == 200:
                return reply
            if again or self._tokens is None:
                caller.refuse(reply)
            self._tokens.drop(token)
        raise AssertionError("the second try returned or raised")

    def _refuse(self, errors: Any, extensions: Mapping[str, Any]) -> NoReturn:
        """Raise what the first error of an answer means; no message of Shopify's own is passed on."""
        first = object_of(list_of(errors)[0] if list_of(errors) else None)
        code = text_or_none(object_of(first.get("extensions")).get("code")) or ""
        said = f" ({code})" if WORD.fullmatch(code) else ""
        if code == "THROTTLED":
            raise SourceUnavailable(
                "Shopify asks for fewer calls (THROTTLED). Bridge calls again later.",
                retry_after_s=_pause_s(object_of(extensions.get("cost"))),
            )
        if code in {"ACCESS_DENIED", "FORBIDDEN", "UNAUTHORIZED"}:
            path = [part for part in list_of(first.get("path")) if isinstance(part, str) and WORD.fullmatch(part)]
            where = f" to '{path[-1]}'" if path else ""
            raise SourceUnavailable(
                f"Shopify gives the app of {self.connection} no access{where}{said}. Needed: {SCOPE}. Bridge "
                "tries again by itself."
            )
        if code in {"INTERNAL_SERVER_ERROR", "SHOP_INACTIVE"}:
            raise SourceUnavailable(f"Shopify did not do what was asked{said}. Bridge tries again later.")
        raise BatchUnreadable(f"Shopify did not do what was asked{said}. Bridge tries again later.")


class NotDone(SourceUnavailable):
    """Shopify understood a change, and does not make it."""


def _pause_s(cost: Mapping[str, Any]) -> float:
    """Return how long it takes until what was asked for can be paid."""
    status = object_of(cost.get("throttleStatus"))
    numbers = [cost.get("requestedQueryCost"), status.get("currentlyAvailable"), status.get("restoreRate")]
    known = [float(one) for one in numbers if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(known) < 3 or known[2] <= 0:
        return PAUSE_S
    return min(max((known[0] - known[1]) / known[2], 1.0), 3600.0)


# --- customers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Customers:
    """Reads and lists the customers of a shop."""

    account: Account
    full_access: bool

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`."""
        asked = list(dict.fromkeys(key.source_id for key in keys))
        if not asked:
            return []
        shape = customers.selection(fields)
        query = f"query ($ids: [ID!]!) {{ nodes(ids: $ids) {{ ... on Customer {{ {shape} }} }} }}"
        nodes = self.account.ask(api, query, {"ids": [customers.gid(one) for one in asked]}).get("nodes")
        if not isinstance(nodes, list):
            raise BatchUnreadable("Shopify's answer is no list of customers.")
        # By what they say they are, and not by their place in the list.
        found = {_id_of(node): node for node in map(object_of, nodes)}
        return [self._as_read(key, found.get(key.source_id), fields) for key in keys]

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`. By id, so that no page shifts whatever is changed, and none is too far on."""
        query = (
            "query ($after: String, $query: String) "
            f"{{ customers(first: {PAGE}, after: $after, sortKey: ID, query: $query) "
            f"{{ nodes {{ {customers.selection(fields)} }} pageInfo {{ hasNextPage endCursor }} }} }}"
        )
        changed = f"updated_at:>='{since - LATE:%Y-%m-%dT%H:%M:%SZ}'" if since else None
        variables = {"after": parts_of(after).get("cursor"), "query": changed}
        found = object_of(self.account.ask(api, query, variables).get("customers"))
        nodes, more = found.get("nodes"), object_of(found.get("pageInfo"))
        if not isinstance(nodes, list):
            raise BatchUnreadable("Shopify's answer is no list of customers.")
        records = []
        for node in map(object_of, nodes):
            if not (source_id := _id_of(node)):
                raise BatchUnreadable("Shopify's list holds a customer without an id.")
            records.append(self._as_read(RecordKey(self.account.connection, source_id), node, fields))
        going_on = text_or_none(more.get("endCursor")) if more.get("hasNextPage") is True else None
        if more.get("hasNextPage") is True and not going_on:
            raise BatchUnreadable("Shopify's list goes on, but does not say where.")
        return Listed(records, place_of(cursor=going_on) if going_on else None)

    def _as_read(self, key: RecordKey, node: Mapping[str, Any] | None, fields: Sequence[str]) -> Read:
        if node is None:
            return Read(key, key, None, None)
        told = customers.of_api(node, full_access=self.full_access)
        try:
            changed_at = moment(node.get("updatedAt"), "updatedAt")
        except Unclear:
            problem = "Shopify's answer does not say when the customer was last changed."
            return Read(key, key, None, None, problem=problem)
        # What was agreed to may change without the customer being changed: the newest of the two is how new it is.
        at = max(filter(None, [changed_at, customers.consented_at(told)]))
        known = {**told, "id": key.source_id}
        return Read(key, key, {name: known[name] for name in fields if name in known}, Version(at, "read"))


def _id_of(node: Mapping[str, Any]) -> str:
    try:
        return customers.customer_id(node.get("id"), "id")
    except Unclear:
        return ""


# --- subscriptions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Subscription:
    id: str
    topic: str
    right: bool  # it sends JSON, all of it, and always


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Makes and removes the app's subscriptions to webhooks that lead to one URL."""

    account: Account

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`."""
        there = {one.topic: one for one in self._there(api, url)}
        wanted = [*TOPICS, *(TAG_TOPICS if "tags" in fields else ()), MERGE_TOPIC]
        return Registration([*(self._have(api, url, topic, there.get(topic)) for topic in wanted), BY_HAND])

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """See `Registrar.remove`."""
        query = (
            "mutation ($id: ID!) { webhookSubscriptionDelete(id: $id) "
            "{ deletedWebhookSubscriptionId userErrors { field message } } }"
        )
        done = []
        for one in list(self._there(api, url)):
            self.account.change(api, "webhookSubscriptionDelete", query, {"id": one.id})
            done.append(f"Removed the subscription to {one.topic}.")
        return done

    def _have(self, api: Api, url: str, topic: str, there: _Subscription | None) -> str:
        """Make the subscription to *topic* what it should be, and say what was done."""
        if there and there.right:
            return f"The subscription to {topic} is there already."
        wanted = {"uri": url, "format": "JSON"}
        if there:
            query = (
                "mutation ($id: ID!, $wanted: WebhookSubscriptionInput!) "
                "{ webhookSubscriptionUpdate(id: $id, webhookSubscription: $wanted) "
                "{ webhookSubscription { id } userErrors { field message } } }"
            )
            wanted_too = {**wanted, "includeFields": [], "filter": ""}
            self.account.change(api, "webhookSubscriptionUpdate", query, {"id": there.id, "wanted": wanted_too})
            return f"Changed the subscription to {topic}: it sent less than bridge needs."
        query = (
            "mutation ($topic: WebhookSubscriptionTopic!, $wanted: WebhookSubscriptionInput!) "
            "{ webhookSubscriptionCreate(topic: $topic, webhookSubscription: $wanted) "
            "{ webhookSubscription { id } userErrors { field message } } }"
        )
        try:
            self.account.change(api, "webhookSubscriptionCreate", query, {"topic": topic, "wanted": wanted})
        except NotDone as error:
            if topic == MERGE_TOPIC:
                return f"No subscription to {topic}: {error} It needs the scope read_customer_merge."
            raise SourceUnavailable(f"The subscription to {topic} could not be made. {error}") from error
        return f"Made the subscription to {topic}."

    def _there(self, api: Api, url: str) -> Iterator[_Subscription]:
        """Yield the app's subscriptions that lead to *url*, and no others."""
        query = (
            "query ($after: String) { webhookSubscriptions(first: 100, after: $after) "
            "{ nodes { id topic uri format includeFields filter } pageInfo { hasNextPage endCursor } } }"
        )
        cursor: str | None = None
        while True:
            found = object_of(self.account.ask(api, query, {"after": cursor}).get("webhookSubscriptions"))
            if not isinstance(found.get("nodes"), list):
                raise BatchUnreadable("Shopify's answer is no list of subscriptions.")
            for node in map(object_of, found["nodes"]):
                subscription_id, topic = text_or_none(node.get("id")), text_or_none(node.get("topic"))
                if node.get("uri") == url and subscription_id and topic:
                    right = (
                        node.get("format") == "JSON" and not node.get("includeFields") and not node.get("filter")
                    )
                    yield _Subscription(subscription_id, topic, right)
            more = object_of(found.get("pageInfo"))
            following = text_or_none(more.get("endCursor"))
            if more.get("hasNextPage") is not True or not following or following == cursor:
                return
            cursor = following


# --- opting out ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Consents:
    """Writes an opt-out from one channel."""

    account: Account

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`. Shopify dates it by itself."""
        changes = {
            "email_marketing_state": ("customerEmailMarketingConsentUpdate", "emailMarketingConsent"),
            "sms_marketing_state": ("customerSmsMarketingConsentUpdate", "smsMarketingConsent"),
        }
        if name not in changes:
            raise SourceUnavailable(
                f"'{name}' cannot be written in Shopify: an opt-out goes into {' or '.join(changes)}."
            )
        mutation, part = changes[name]
        kind = f"{mutation[0].upper()}{mutation[1:]}Input"
        query = (
            f"mutation ($input: {kind}!) {{ {mutation}(input: $input) "
            "{ customer { id } userErrors { code field message } } }"
        )
        wanted = {"customerId": customers.gid(source_id), part: {"marketingState": "UNSUBSCRIBED"}}
        try:
            done = self.account.change(api, mutation, query, {"input": wanted})
        except NotDone as error:
            raise SourceUnavailable(f"The opt-out could not be written. {error}") from error
        if _id_of(object_of(done.get("customer"))) != source_id:
            raise SourceUnavailable("Shopify did not say that it wrote the opt-out. Bridge tries again later.")
