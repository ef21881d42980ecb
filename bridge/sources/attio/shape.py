"""How Attio writes a record: for each attribute a list of typed values, some of which may be over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.model import Value
from bridge.sources.reading import Unclear

ALL = "_all"  # what the name of a field ends with that holds every value of its attribute
NAME = "name"  # the attribute of people whose parts have names of their own

# Of each type of value: what it is known by, and its further parts.
# https://docs.attio.com/docs/attribute-types
_TYPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "actor-reference": ("referenced_actor_id", ("referenced_actor_type",)),
    "currency": ("currency_value", ("currency_code",)),
    "domain": ("domain", ("root_domain",)),
    "email-address": ("email_address", ("original_email_address",)),
    "interaction": ("interacted_at", ("interaction_type",)),
    "location": (
        "locality",
        ("line_1", "line_2", "line_3", "line_4", "region", "postcode", "country_code", "latitude", "longitude"),
    ),
    "personal-name": ("full_name", ("first_name", "last_name")),
    "phone-number": ("phone_number", ("original_phone_number", "country_code")),
    "record-reference": ("target_record_id", ("target_object",)),
    "select": ("option", ()),
    "status": ("status", ()),
}
_PARTS = sorted({part for _, parts in _TYPES.values() for part in parts})
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


def attio_id(value: Any, what: str) -> str:
    """Return an id of Attio's, in one spelling.

    Raises:
        Unclear: it is none.
    """
    if isinstance(value, str) and _ID.fullmatch(value):
        return value.lower()
    raise Unclear(f"It has no usable {what}.")


# --- fields ----------------------------------------------------------------------------------------------


def fields_of(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Value]:
    """Return those of *names* that a record's *values* say something of.

    A field is the first value of the attribute of that name, ``<attribute>_all`` the list of all, and
    ``<attribute>_<part>`` a part of the first. An attribute without values is empty; one that the record does not
    have, or whose values have another shape than Attio's, is left out.
    """
    wanted = set(names)
    found: dict[str, Value] = {}
    for attribute, entries in values.items():
        if any(name.startswith(attribute) for name in wanted) or attribute == NAME:
            found |= _fields(attribute, entries)
    return {name: found[name] for name in wanted if name in found}


def _fields(attribute: str, entries: Any) -> dict[str, Value]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return {}
    active = [entry for entry in entries if entry.get("active_until") is None]
    if not active:
        return {
            attribute: "",
            attribute + ALL: [],
            **{_part(attribute, part): "" for part in _PARTS},
        }
    try:
        known = [_known_by(entry) for entry in active]
    except Unclear:
        return {}
    first = active[0]
    _, parts = _TYPES.get(str(first.get("attribute_type")), ("", ()))
    told = {part: first[part] for part in parts if isinstance(first.get(part, ()), str | int | float | None)}
    return {
        attribute: known[0],
        attribute + ALL: known,
        **{_part(attribute, part): "" if value is None else value for part, value in told.items()},
    }


def _part(attribute: str, part: str) -> str:
    own = attribute == NAME and part in _TYPES["personal-name"][1]
    return part if own else f"{attribute}_{part}"


def _known_by(entry: Mapping[str, Any]) -> Value:
    """Return what a value is known by.

    Raises:
        Unclear: it is of a type that is not known here, and has no plain value.
    """
    key, _ = _TYPES.get(str(entry.get("attribute_type")), ("value", ()))
    if key not in entry:
        raise Unclear("A value has another shape than Attio's.")
    value = entry[key]
    if isinstance(value, dict):  # an option or a status: an object with its title
        if not isinstance(value.get("title"), str):
            raise Unclear("A value has another shape than Attio's.")
        return str(value["title"])
    return _plain(value)


def _plain(value: Any) -> Value:
    """Return a value that is none of several things; an empty text for null."""
    if value is None:
        return ""
    if isinstance(value, str | bool | int | float):
        return value
    raise Unclear("A value has another shape than Attio's.")


def newest(values: Mapping[str, Any]) -> str:
    """Return when a value began or ended last, as Attio writes it; "" where no value says so."""
    entries = [entry for some in values.values() if isinstance(some, list) for entry in some]
    moments = [
        str(entry[name])
        for entry in entries
        if isinstance(entry, dict)
        for name in ("active_from", "active_until")
        if isinstance(entry.get(name), str)
    ]
    return max(moments, default="")


# --- merges ----------------------------------------------------------------------------------------------

# What an event of a merge may call the record that stays, and those that end. Attio's own pages differ: by the
# newer ones `id.record_id` is a new record, and each of two events names one that ended; by the older ones it is
# the one of the two that stays.
_SURVIVOR = ("new_record_id", "merged_into_record_id", "target_record_id")
_ENDED = (
    "duplicate_record_id", "duplicate_record_ids", "merged_record_id", "merged_record_ids", "primary_record_id",
    "secondary_record_id",
)  # fmt: skip


def merge_of(event: Mapping[str, Any], ids: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the record that stays after a merge, and those that ended, whatever the event calls them.

    Raises:
        Unclear: an id in it is none, or it is a merge of a record with itself.
    """
    named = attio_id(ids.get("record_id"), "id of a record")
    survivors = _ids(event, ids, _SURVIVOR)
    survivor = survivors[0] if survivors else named
    ended = [one for one in dict.fromkeys([*_ids(event, ids, _ENDED), named]) if one != survivor]
    if not ended and _ids(event, ids, _ENDED):
        raise Unclear("It is a merge of a record with itself.")
    return survivor, ended


def _ids(event: Mapping[str, Any], ids: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        for place in (event, ids):
            value = place.get(name)
            if value is not None:
                some = value if isinstance(value, list) else [value]
                found += [attio_id(one, name) for one in some]
    return found
