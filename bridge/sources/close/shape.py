"""How Close writes a contact and a lead, and the fields that rules see of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from bridge.model import Value
from bridge.sources.reading import Unclear, moment

LEAD = "lead_"  # what the names of a lead's fields begin with; `lead_id` is the contact's own
CUSTOM = "custom."
LABELS = ("office", "mobile", "home", "direct", "fax", "other")
# What says "no more of that" beside a way to reach somebody, and the field that rules see.
FLAGS = {
    "email": ("is_unsubscribed", "email_unsubscribed"),
    "phone": ("outbound_sms_blocked", "phone_sms_blocked"),
}
# Lists of other objects, which are no fields of the lead itself.
_NOT_OF_THE_LEAD = frozenset({"contacts", "contact_ids", "opportunities", "tasks", "integration_links", "id"})

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_NAIVE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?")
_SELECTABLE = re.compile(r"[A-Za-z0-9_.]{1,200}")


def close_id(value: Any, what: str) -> str:
    """Return an id of Close's.

    Raises:
        Unclear: it is none.
    """
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise Unclear(f"It has no usable {what}.")


def utc_moment(value: Any, what: str) -> datetime:
    """Return the moment that *value* names. Close leaves the zone out, and means UTC.

    Raises:
        Unclear: it names none.
    """
    if isinstance(value, str) and _NAIVE.fullmatch(value):
        value += "Z"
    return moment(value, what)


# --- fields ----------------------------------------------------------------------------------------------


def contact_fields(contact: Mapping[str, Any]) -> dict[str, Value]:
    """Return a contact's fields, flat. A custom field is named as Close does: ``custom.cf_…``."""
    fields: dict[str, Value] = {}
    for name, value in contact.items():
        if name in {"emails", "phones"}:
            fields |= _ways(name.removesuffix("s"), value)
        else:
            fields[name] = value
    return fields


def lead_fields(lead: Mapping[str, Any]) -> dict[str, Value]:
    """Return a lead's fields as those of its contacts: ``lead_status_label``, ``lead_custom.cf_…``."""
    return {f"{LEAD}{name}": value for name, value in lead.items() if name not in _NOT_OF_THE_LEAD}


def cleared(changed: Any, before: Any, now: Mapping[str, Any]) -> dict[str, Value]:
    """Return the custom fields that an event says were emptied.

    Close leaves out custom fields without a value. So one that is named as changed, that had a value, and that the
    whole object does not hold any more has none now. Nothing else that is left out reads as cleared.
    """
    if not isinstance(changed, list) or not isinstance(before, dict):
        return {}
    names = [name for name in changed if isinstance(name, str) and name.startswith(CUSTOM)]
    return {name: None for name in names if before.get(name) is not None and name not in now}


def _ways(name: str, value: Any) -> dict[str, Value]:
    """Return the ways to reach a contact: the first, all, the first under each of Close's labels, and its flag.

    Nothing is returned where the value has another shape than Close's: that would read as cleared.
    """
    entries = [] if value is None else value
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get(name), str | None) for entry in entries
    ):
        return {}
    ways = [entry for entry in entries if entry.get(name)]  # an empty line of the form is no way
    labelled = {
        f"{name}_{label}": next((way[name] for way in ways if way.get("type") == label), "") for label in LABELS
    }
    said = {name: ways[0][name] if ways else "", f"{name}s": [way[name] for way in ways], **labelled}
    return said | _flag(name, ways)


def _flag(name: str, ways: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Return whether any way is barred. Not whether none is, unless Close says so of each."""
    theirs, ours = FLAGS[name]
    flags = [way.get(theirs) for way in ways]
    if any(flag is True for flag in flags):
        return {ours: True}
    return {ours: False} if flags and all(flag is False for flag in flags) else {}


# --- what to ask for -------------------------------------------------------------------------------------


def wants_lead(names: Collection[str]) -> bool:
    return any(name.startswith(LEAD) and name != "lead_id" for name in names)


def of_contact(names: Collection[str]) -> list[str]:
    """Return what to ask of a contact, in Close's own names, for the fields *names*."""
    own = {_own(name) for name in names if not wants_lead((name,)) and _SELECTABLE.fullmatch(name)}
    return sorted(own | {"id", "lead_id", "organization_id", "date_updated"})


def of_lead(names: Collection[str]) -> list[str]:
    """Return what to ask of a lead, in Close's own names, for the fields *names*."""
    own = {name.removeprefix(LEAD) for name in names if wants_lead((name,)) and _SELECTABLE.fullmatch(name)}
    return sorted(own | {"id", "date_updated"})


def _own(name: str) -> str:
    kind = name.partition("_")[0].removesuffix("s")
    return f"{kind}s" if kind in FLAGS else name
