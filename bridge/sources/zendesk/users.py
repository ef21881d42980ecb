"""A Zendesk user, as events, the bodies of triggers and the API have one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.model import RecordKey, Value, Version
from bridge.outbound import Reply
from bridge.sources.base import BatchUnreadable, Read
from bridge.sources.calling import object_of
from bridge.sources.reading import Unclear, moment, record_id

KNOWN_FIELDS = (
    "active", "alias", "created_at", "default_group_id", "details", "email", "external_id", "id", "locale",
    "name", "notes", "organization_id", "phone", "role", "shared_phone_number", "suspended", "tags", "time_zone",
    "updated_at", "verified", "whatsapp_phone_number",
)  # fmt: skip
NUMBERS = frozenset({"id", "organization_id", "default_group_id"})  # of records; nobody counts with them
NOT_FIELDS = frozenset({"id", "user_id", "requester_id", "updated_at", "type"})  # of a trigger's body


# --- what webhooks say -----------------------------------------------------------------------------------


def stated(action: str, detail: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Value]:
    """Return what an event states of a user. Nothing is taken for cleared: Zendesk writes "" and "0" for none."""
    said = {name: detail.get(name) for name in ("email", "external_id", "organization_id", "role")}
    if action == "name_changed":
        said["name"] = event.get("current")
    return {name: value for name, value in said.items() if isinstance(value, str) and value not in {"", "0"}}


def written(user: Mapping[str, Any]) -> dict[str, Value]:
    """Return the fields in a trigger's body. What is empty may be a placeholder that came to nothing."""
    said = {**object_of(user.get("user_fields")), **object_of(user.get("custom_fields")), **user}
    return {
        name: value
        for name, value in said.items()
        if name not in NOT_FIELDS and isinstance(value, str | int | float) and value != ""
    }


# --- what the API says -----------------------------------------------------------------------------------


def fields_of(user: Mapping[str, Any]) -> dict[str, Value]:
    """Return a user's fields, flat.

    A custom field is named by its key; behind ``custom_`` where Zendesk has a field of that name itself.
    """
    custom = object_of(user.get("user_fields"))
    flat = {f"custom_{name}" if name in KNOWN_FIELDS else name: value for name, value in custom.items()}
    flat |= {name: user[name] for name in KNOWN_FIELDS if name in user}
    return {name: _as_text(name, value) for name, value in flat.items() if _is_value(value)}


def custom_key(name: str) -> str | None:
    """Return the key of the custom field that rules call *name*, None where it is a field of Zendesk's own."""
    if name in KNOWN_FIELDS:
        return None
    key = name.removeprefix("custom_")
    return key if key in KNOWN_FIELDS else name


def _as_text(name: str, value: Any) -> Value:
    return str(value) if name in NUMBERS and isinstance(value, int) else value


def _is_value(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    words = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return words or value is None or isinstance(value, str | int)


def users_of(answer: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the users of an answer with their ids.

    Raises:
        BatchUnreadable: it is no list of users.
    """
    users = answer.get("users")
    if not isinstance(users, list):
        raise BatchUnreadable("Zendesk's answer is not a list of users.")
    for user in map(object_of, users):
        try:
            yield record_id(user.get("id"), "id"), user
        except Unclear:
            continue


def as_read(
    key: RecordKey, user: Mapping[str, Any] | None, names: Sequence[str], reply: Reply | None = None
) -> Read:
    """Return what the API says of a user. *reply*: the answer to a question about this very user.

    What comes in a list has none, and loses against such an answer with the same moment.
    """
    if user is None or user.get("active") is False:
        return Read(key, key, None, None)
    try:
        at = moment(user.get("updated_at"), "updated_at")
    except Unclear:
        problem = "Zendesk's answer does not say when the user was last changed."
        return Read(key, key, None, None, problem=problem)
    fields = fields_of(user)
    said = {name: fields[name] for name in names if name in fields}
    return Read(key, key, said, Version(at + _later(reply, at), "read"))


def _later(reply: Reply | None, at: datetime) -> timedelta:
    """Return a part of a second by which an answer counts as later than the moment it names.

    Zendesk's moments are whole seconds, those of events are finer, and perhaps not every change moves them: an
    answer that was given later knows of all that happened in that second, and of two answers the later one counts.
    """
    try:
        answered_at = parsedate_to_datetime(reply.headers.get("date", "") if reply else "")
        seconds = int((answered_at - at).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return timedelta()
    return timedelta(microseconds=min(900_000 + seconds, 999_999)) if seconds > 0 else timedelta()
