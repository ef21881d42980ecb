"""A Pipedrive person as fields, whether a webhook brought it or the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.model import Value

LABELS = ("work", "home", "mobile", "other")  # of phones and e-mail addresses, in Pipedrive's own lists


def fields_of(person: Mapping[str, Any]) -> dict[str, Value]:
    """Return a person's fields, flat. A custom field is named by its 40-character key."""
    fields: dict[str, Value] = {}
    for name, value in person.items():
        if name in {"emails", "email"}:
            fields |= _ways("email", value)
        elif name in {"phones", "phone"}:
            fields |= _ways("phone", value)
        elif name == "custom_fields":
            if isinstance(value, dict):
                for hashed, custom in value.items():
                    fields |= _custom(hashed, custom)
        else:
            fields[name] = value
    return fields


def _ways(name: str, value: Any) -> dict[str, Value]:
    """Return the ways to reach a person: the primary one, all, and the first under each of Pipedrive's labels.

    Nothing is returned where the value has another shape than Pipedrive's: that would read as cleared.
    """
    entries = [value] if isinstance(value, str) else value or []
    if not isinstance(entries, list):
        return {}
    ways = [entry if isinstance(entry, dict) else {"value": entry} for entry in entries]
    if not all(isinstance(way.get("value"), str | None) for way in ways):
        return {}
    ways = [way for way in ways if way.get("value")]  # an empty line of the form is no way
    first = next((way for way in ways if way.get("primary") is True), ways[0] if ways else {"value": ""})
    labelled = {
        f"{name}_{label}": next((way["value"] for way in ways if way.get("label") == label), "")
        for label in LABELS
    }
    return {name: first["value"], f"{name}s": [way["value"] for way in ways], **labelled}


def _custom(name: str, custom: Any) -> dict[str, Value]:
    """Return one custom field. Options come as ids: their labels are not in the webhook."""
    if not isinstance(custom, dict):
        return {name: custom}
    rest = {part: value for part, value in custom.items() if part != "type"}
    if isinstance(rest.get("values"), list):
        chosen = [option.get("id") for option in rest["values"] if isinstance(option, dict)]
        return {name: [one for one in chosen if isinstance(one, str | int)]}
    main = next((part for part in ("value", "id", "from") if part in rest), None)
    fields: dict[str, Value] = {name: rest.pop(main) if main else None}
    # "<key>_currency", "<key>_until", "<key>_timezone_id", and the parts of an address.
    return fields | {f"{name}_{part}": value for part, value in rest.items()}
