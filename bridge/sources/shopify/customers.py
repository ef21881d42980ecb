"""A Shopify customer, as webhooks and as the API write one: two shapes, and one set of fields.

The names are those of webhooks. https://shopify.dev/docs/api/webhooks and
https://shopify.dev/docs/api/admin-graphql/latest/objects/Customer
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum, auto
from typing import Any

from bridge.model import Value, iso
from bridge.sources.reading import Unclear, moment, record_id

# What the API calls a field. Where a customer lives is a part of its own, and so is what was agreed to.
SIMPLE = {
    "created_at": "createdAt",
    "first_name": "firstName",
    "last_name": "lastName",
    "locale": "locale",
    "note": "note",
    "orders_count": "numberOfOrders",
    "state": "state",
    "tags": "tags",
    "tax_exempt": "taxExempt",
    "updated_at": "updatedAt",
    "verified_email": "verifiedEmail",
}
ADDRESS = "default_address_"
ADDRESS_PARTS = {
    "address1": "address1",
    "address2": "address2",
    "city": "city",
    "company": "company",
    "country": "country",
    "country_code": "countryCodeV2",
    "phone": "phone",
    "province": "province",
    "province_code": "provinceCode",
    "zip": "zip",
}
CHANNELS = {"email": "email_marketing", "phone": "sms_marketing"}
CONSENT = {
    "state": "marketingState",
    "opt_in_level": "marketingOptInLevel",
    "consent_updated_at": "marketingUpdatedAt",
}
WAYS = {"email": ("defaultEmailAddress", "emailAddress"), "phone": ("defaultPhoneNumber", "phoneNumber")}
NEWEST = "consent_updated_at"  # of both channels

CONSENT_FIELDS = {f"{channel}_{part}": (way, part) for way, channel in CHANNELS.items() for part in CONSENT}
KNOWN_FIELDS = tuple(
    sorted([*SIMPLE, *CHANNELS, *CONSENT_FIELDS, *(f"{ADDRESS}{part}" for part in ADDRESS_PARTS), NEWEST, "id"])
)
# What Shopify keeps from an app that may not see it, and then writes as null, as it does what is empty.
WITHHELD = frozenset({"email", "phone", "first_name", "last_name"})
SMALL = ("state", "opt_in_level")  # of a consent; the API writes them in capitals

_GID = re.compile(r"gid://shopify/Customer/([0-9]{1,20})")


def customer_id(value: Any, what: str) -> str:
    """Return the number of a customer as text, also of ``gid://shopify/Customer/1``.

    Raises:
        Unclear: it is none.
    """
    found = _GID.fullmatch(value) if isinstance(value, str) else None
    return record_id(found[1] if found else value, what)


def gid(source_id: str) -> str:
    return f"gid://shopify/Customer/{source_id}"


# --- what a body is --------------------------------------------------------------------------------------


class Shape(Enum):
    """What a webhook's body shows that it is, whatever its headers say: only the body is signed."""

    CUSTOMER = auto()
    DELETED = auto()
    MERGED = auto()
    EMAIL_CONSENT = auto()
    SMS_CONSENT = auto()
    TAGS = auto()
    REDACT = auto()
    DATA_REQUEST = auto()
    SHOP_REDACT = auto()
    OTHER = auto()


_OF_A_CUSTOMER = frozenset({"updated_at", "created_at", "email", "first_name", "last_name", "state"})


def shape_of(body: Mapping[str, Any]) -> Shape:
    """Return what *body* is. No two of Shopify's bodies that mean different things are of one shape."""
    keys = body.keys()
    if "data_request" in keys or "orders_requested" in keys:
        return Shape.DATA_REQUEST
    if isinstance(body.get("customer"), dict) and "orders_to_redact" in keys:
        return Shape.REDACT
    if {"admin_graphql_api_customer_kept_id", "admin_graphql_api_customer_deleted_id"} <= keys:
        return Shape.MERGED
    if {"customer_id", "email_marketing_consent"} <= keys:
        return Shape.EMAIL_CONSENT
    if {"customerId", "tags"} <= keys:
        return Shape.TAGS
    if "id" in keys:
        return _shape_with_id(body)
    return Shape.SHOP_REDACT if "shop_domain" in keys and keys <= {"shop_id", "shop_domain"} else Shape.OTHER


def _shape_with_id(body: Mapping[str, Any]) -> Shape:
    if body.keys() & _OF_A_CUSTOMER:
        return Shape.CUSTOMER
    if isinstance(body.get("sms_marketing_consent"), dict):
        return Shape.SMS_CONSENT
    # Of a customer who is gone, Shopify says the id, and nothing in every other place.
    rest = (value for name, value in body.items() if name not in {"id", "admin_graphql_api_id"})
    return Shape.DELETED if all(value in (None, "", [], {}, False) for value in rest) else Shape.OTHER


# --- a webhook's customer --------------------------------------------------------------------------------


def of_webhook(body: Mapping[str, Any], *, full_access: bool) -> dict[str, Value]:
    """Return the fields of a whole customer. What is not told is left out, and so is what may be withheld."""
    fields: dict[str, Value] = {}
    for name in (*SIMPLE, *CHANNELS):
        if name in body:
            _put(fields, name, body[name], full_access=full_access)
    address = body.get("default_address", {})
    if address is None or isinstance(address, dict):
        for part in ADDRESS_PARTS:
            if address is None or part in address:
                value = None if address is None else address[part]
                _put(fields, f"{ADDRESS}{part}", value, full_access=full_access)
    for way, channel in CHANNELS.items():
        fields |= consent(way, body.get(f"{channel}_consent"))
    fields |= newest_consent(fields)
    return fields


def _put(fields: dict[str, Value], name: str, value: Any, *, full_access: bool) -> None:
    if name == "tags":
        if isinstance(value, str):
            value = [tag for tag in map(str.strip, value.split(",")) if tag]
        if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
            return
    elif not isinstance(value, str | int | float | None):
        return  # of another shape than it should be: that would read as something that nobody said
    if value is None and not full_access and (name in WITHHELD or name.startswith(ADDRESS)):
        return
    if name in {"created_at", "updated_at"}:
        fields |= _time(name, value)
    elif name == "orders_count":
        fields |= {name: str(value)} if isinstance(value, str | int) else {}
    else:
        fields[name] = value.lower() if name == "state" and isinstance(value, str) else value


def _time(name: str, value: Any) -> dict[str, Value]:
    """Return a time, which webhooks write as it is in the shop and the API in UTC, in one way."""
    at = moment_or_none(value)
    return {} if at is None else {name: iso(at)}


def consent(way: str, said: Any) -> dict[str, Value]:
    """Return the fields of one consent: nothing where no state is told."""
    if not isinstance(said, dict) or not isinstance(said.get("state"), str) or not said["state"]:
        return {}
    channel = CHANNELS[way]
    told: dict[str, Value] = {
        f"{channel}_{part}": said[part].lower() for part in SMALL if isinstance(said.get(part), str)
    }
    return told | _time(f"{channel}_{NEWEST}", said.get(NEWEST))


def newest_consent(fields: Mapping[str, Value]) -> dict[str, Value]:
    """Return when the newest of the consents among *fields* was given or withdrawn."""
    said = [fields.get(f"{channel}_{NEWEST}") for channel in CHANNELS.values()]
    known = [(at, text) for text in said if (at := moment_or_none(text)) is not None]
    return {NEWEST: max(known)[1]} if known else {}


def consented_at(fields: Mapping[str, Value]) -> datetime | None:
    return moment_or_none(fields.get(NEWEST))


def moment_or_none(value: Any) -> datetime | None:
    try:
        return moment(value, "time")
    except Unclear:
        return None


# --- the API's customer ----------------------------------------------------------------------------------


def selection(fields: Sequence[str]) -> str:
    """Return what is asked of each customer, so that *fields* are known, and since when."""
    chosen = [SIMPLE[name] for name in SIMPLE if name in fields and name != "updated_at"]
    for way, (thing, value) in WAYS.items():
        parts = [value] if way in fields else []
        if any(name in fields for name, (of, _) in CONSENT_FIELDS.items() if of == way) or NEWEST in fields:
            parts += CONSENT.values()
        if parts:
            chosen.append(f"{thing} {{ {' '.join(parts)} }}")
    address = [known for part, known in ADDRESS_PARTS.items() if f"{ADDRESS}{part}" in fields]
    if address:
        chosen.append(f"defaultAddress {{ {' '.join(address)} }}")
    return " ".join(["id", "updatedAt", *chosen])


def of_api(customer: Mapping[str, Any], *, full_access: bool) -> dict[str, Value]:
    """Return the fields of a customer that the API gave; see `of_webhook`."""
    as_webhook: dict[str, Any] = {name: customer[theirs] for name, theirs in SIMPLE.items() if theirs in customer}
    for way, (thing, value) in WAYS.items():
        if thing not in customer:
            continue
        held = customer[thing]
        if held is None:
            as_webhook[way] = None
        elif isinstance(held, dict):
            if value in held:
                as_webhook[way] = held[value]
            as_webhook[f"{CHANNELS[way]}_consent"] = {part: held.get(theirs) for part, theirs in CONSENT.items()}
    address = customer.get("defaultAddress", {})
    if isinstance(address, dict):
        address = {part: address[theirs] for part, theirs in ADDRESS_PARTS.items() if theirs in address}
    return of_webhook({**as_webhook, "default_address": address}, full_access=full_access)
