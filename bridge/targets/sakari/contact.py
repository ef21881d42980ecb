"""A contact as Sakari shows it: what it holds, what of it is an opt-out, and how it is sent back unchanged."""

from __future__ import annotations

import re
from typing import Any

from bridge import values
from bridge.errors import Permanent
from bridge.targets.sakari.account import STOPPED, Json, code_of

# What a PUT takes of a contact that was read. ``tags`` is of the older API; a replacing PUT would drop it.
ECHOED = ("email", "firstName", "lastName", "lists", "attributes", "optIn", "blocked", "tags")


def is_contact(data: Any) -> bool:
    """Say whether *data* is a whole contact in the shapes that are built upon."""
    return (
        isinstance(data, dict)
        and isinstance(data.get("mobile"), dict)
        and isinstance(data.get("lists") or [], list)
        and isinstance(data.get("attributes") or {}, dict)
    )


def opted_out(contact: Json) -> bool:
    return bool(contact.get("blocked")) or code_of(contact.get("error")) == STOPPED


def _list_id(entry: Any) -> str:
    found = entry.get("id") if isinstance(entry, dict) else entry
    return str(found)


def entries_of(contact: Json) -> dict[str, Any]:
    return {_list_id(entry): entry for entry in contact.get("lists") or []}


def lists_left(contact: Json) -> set[str]:
    """Return the ids of the lists that the person opted out of."""
    entries = entries_of(contact).items()
    return {list_id for list_id, entry in entries if isinstance(entry, dict) and entry.get("optOut")}


def lost(before: Json, after: Json) -> list[str]:
    """Name the opt-outs that were there *before* and are not *after*: none, unless something is very wrong."""
    missing = ["blocked"] if before.get("blocked") and not after.get("blocked") else []
    if not missing and "error" in after and opted_out(before) and not opted_out(after):
        missing = [STOPPED]
    return missing + [f"list {list_id}" for list_id in sorted(lists_left(before) - lists_left(after))]


def echo(contact: Json) -> Json:
    """Return what a PUT has to hold so that it changes nothing: as read, and absent what was absent or null.

    A null would take away what came in since, such as an opt-out.
    """
    mobile = {name: contact["mobile"].get(name) for name in ("country", "number")}
    body: Json = {"mobile": {name: value for name, value in mobile.items() if value is not None}}
    body |= {name: contact[name] for name in ECHOED if contact.get(name) is not None}
    if "lists" in body:
        body["lists"] = [without_nulls(entry) for entry in body["lists"]]
    if "attributes" in body:
        body["attributes"] = without_nulls(body["attributes"])
    return body


def without_nulls(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {name: value for name, value in entry.items() if value is not None}


def number_of(mobile: Any) -> str | None:
    """Return a contact's number as E.164, None if it has none that can be compared."""
    if not isinstance(mobile, dict) or not isinstance(mobile.get("number"), str):
        return None
    compact = re.sub(r"[\s()./-]", "", mobile["number"])
    if re.fullmatch(r"\+\d+", compact):
        return compact
    country = mobile.get("country")
    try:
        return values.e164(mobile["number"], country if isinstance(country, str) else None)
    except values.BadValue:
        return None


def mobile_of(number: str) -> Json:
    """Return an E.164 number as the platform wants it, beside the country that it is of.

    Raises:
        Permanent: it belongs to no country.
    """
    # Only here: nothing else in the targets has to know the world's dialling plans, and loading them takes time.
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException as error:
        raise Permanent("The mobile number is not an international one.", code="invalid") from error
    # A number of a range that is not handed out (yet) still has a calling code.
    by_code = phonenumbers.region_code_for_country_code(parsed.country_code or 0)
    region = phonenumbers.region_code_for_number(parsed) or by_code
    if not re.fullmatch(r"[A-Z]{2}", region) or region == "ZZ":
        raise Permanent("The mobile number belongs to no country, and Sakari wants one.", code="invalid")
    return {"country": region, "number": number}
