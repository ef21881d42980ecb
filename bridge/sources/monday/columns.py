"""What a monday.com column holds, as a webhook and as the API write it: two shapes, and one value.

A shape that is not known says nothing: it must not read as cleared.
https://developer.monday.com/api-reference/reference/column-types-reference
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bridge.errors import BadPayload
from bridge.model import Value
from bridge.sources.reading import read_json

# A column's value, and its further parts by what is appended to the field's name.
Parts = Mapping[str, Value]

PARTS = ("_country", "_code")
TYPES = {  # webhook's older words: the API's
    "color": "status",
    "boolean": "checkbox",
    "numeric": "numbers",
    "long-text": "long_text",
    "pulse-name": "name",
}
TEXTS = frozenset({"text", "long_text", "numbers", "rating", "status", "link", "location"})
# What reading asks of each column, beside what all have.
FRAGMENTS = (
    "... on PhoneValue { phone country_short_name } ... on EmailValue { email } ... on CheckboxValue { checked } "
    "... on DropdownValue { values { label } } ... on MirrorValue { display_value } "
    "... on BoardRelationValue { display_value }"
)


def of_webhook(kind: str, value: Any) -> Parts | None:
    """Return what a webhook says a column of a type holds now; None: it cannot be told."""
    kind = TYPES.get(kind, kind)
    if value is None:
        return _empty(kind)
    if not isinstance(value, dict):
        return None
    if kind == "phone":
        return _phone(value.get("phone"), value.get("countryShortName"))
    if kind == "country":
        return _country(value.get("countryName"), value.get("countryCode"))
    if kind == "dropdown":
        return _labels(value.get("chosenValues"), "name")
    if kind == "checkbox":
        return _checked(value.get("checked"))
    if kind == "date":
        return _date(value)
    if kind == "status":
        label = value.get("label")
        return _text(label.get("text")) if isinstance(label, dict) else None
    places = {"email": "email", "long_text": "text", "link": "url", "location": "address", "rating": "rating"}
    return _text(value.get(places.get(kind, "value"))) if kind in TEXTS or kind == "email" else None


def of_unnamed(value: Any) -> Parts | None:
    """Return what a webhook says of a column whose type it leaves open, where the shape tells it."""
    keys = value.keys() if isinstance(value, dict) else ()
    told = {
        "phone": "phone", "email": "email", "label": "status", "checked": "checkbox", "date": "date",
        "chosenValues": "dropdown", "countryName": "country", "value": "text",
    }  # fmt: skip
    kinds = [kind for key, kind in told.items() if key in keys]
    return of_webhook(kinds[0], value) if len(kinds) == 1 else None


# What an answer must hold of a column, by its type: what is missing has not been said to be empty.
_ANSWERED = {
    "phone": "phone", "email": "email", "dropdown": "values", "checkbox": "checked", "mirror": "display_value",
    "board_relation": "display_value", "date": "value", "link": "value", "country": "value",
}  # fmt: skip


def of_api(column: Mapping[str, Any]) -> Parts | None:
    """Return what the API says a column holds; None: it cannot be told."""
    kind = str(column.get("type"))
    if "text" not in column or _ANSWERED.get(kind, "text") not in column:
        return None
    text, told = column["text"], column[_ANSWERED.get(kind, "text")]
    if kind == "phone":
        return _phone(told, column.get("country_short_name"))
    if kind == "dropdown":
        return _labels(told or [], "label")
    if kind == "checkbox":
        return _checked(told or False)
    if kind in {"date", "link", "country"}:
        inside = _raw(told)
        if kind == "country":
            return _country(text, inside.get("countryCode") if inside else "")
        if told is None:
            return _empty(kind)
        return _date(inside) if kind == "date" else _text(inside.get("url"))
    if kind in TEXTS or kind == "email":
        return _text(told or "")
    return _text(told)  # of a mirror, null may mean that it cannot be told


def _empty(kind: str) -> Parts | None:
    """Return what a column of a type holds when it is empty; None where null may mean something else."""
    if kind == "checkbox":
        return {"": False}
    if kind == "dropdown":
        return {"": []}
    if kind == "phone":
        return {"": "", "_country": ""}
    if kind == "country":
        return {"": "", "_code": ""}
    return {"": ""} if kind in TEXTS or kind in {"email", "date"} else None


def _text(value: Any) -> Parts | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return {"": _number(value)}
    return {"": value} if isinstance(value, str) else None


def _number(value: int | float) -> str:
    """Return a number as the API writes it."""
    whole = isinstance(value, float) and abs(value) < 1e15 and value == int(value)
    return json.dumps(int(value) if whole else value)


def _phone(number: Any, country: Any) -> Parts | None:
    if number is None:
        number = ""
    return {"": number, "_country": country if isinstance(country, str) else ""} if _is_text(number) else None


def _country(name: Any, code: Any) -> Parts | None:
    if name is None:
        name = ""
    return {"": name, **({"_code": code} if _is_text(code) else {})} if _is_text(name) else None


def _labels(entries: Any, name: str) -> Parts | None:
    if not isinstance(entries, list):
        return None
    labels = [entry.get(name) if isinstance(entry, dict) else None for entry in entries]
    return {"": labels} if all(map(_is_text, labels)) else None


def _checked(value: Any) -> Parts | None:
    said = {"true": True, "false": False}.get(value, value) if _is_text(value) else value
    return {"": said} if isinstance(said, bool) else None


def _date(value: Mapping[str, Any]) -> Parts | None:
    """Return a day, or a day and a time in UTC: the API's own text has the time where the reader lives."""
    day, time = value.get("date"), value.get("time")
    if not day and "date" in value:
        return _empty("date")
    if not _is_text(day):
        return None
    return {"": f"{day}T{time}Z" if _is_text(time) and time else day}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _raw(value: Any) -> Mapping[str, Any]:
    """Return what a column's ``value`` holds, JSON within JSON."""
    try:
        found = read_json(value.encode("utf-8", "replace")) if isinstance(value, str) else value
    except BadPayload:
        return {}
    return found if isinstance(found, dict) else {}
