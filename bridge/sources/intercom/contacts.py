"""An Intercom contact, as notifications and the API have one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.model import RecordKey, Value, Version
from bridge.outbound import Reply
from bridge.sources.base import Read
from bridge.sources.calling import object_of
from bridge.sources.reading import Unclear, moment, text_or_none

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
KNOWN_FIELDS = (
    "avatar", "browser", "browser_language", "created_at", "email", "external_id", "has_hard_bounced", "id",
    "language_override", "last_contacted_at", "last_email_clicked_at", "last_email_opened_at", "last_replied_at",
    "last_seen_at", "location_city", "location_country", "location_region", "marked_email_as_spam", "name", "os",
    "owner_id", "phone", "referrer", "role", "signed_up_at", "sms_consent", "tags", "unsubscribed_from_emails",
    "unsubscribed_from_sms", "updated_at", "utm_campaign", "utm_source",
)  # fmt: skip
NO_FIELDS = frozenset({"type", "workspace_id", "tags", "location", "custom_attributes"})  # as they stand there


def is_contact(contact: Mapping[str, Any]) -> bool:
    found = contact.get("id")
    return (
        isinstance(found, str) and ID.fullmatch(found) is not None and contact.get("type", "contact") == "contact"
    )


def fields_of(contact: Mapping[str, Any]) -> dict[str, Value]:
    """Return a contact's fields, flat.

    A custom attribute is named as in Intercom; behind ``custom_`` where Intercom has a field of that name itself.
    Of its lists there are the tags, as ids, where they are all there: Intercom shows ten.
    """
    flat: dict[str, Any] = {name: value for name, value in contact.items() if name not in NO_FIELDS}
    flat |= {
        f"location_{name}": value for name, value in object_of(contact.get("location")).items() if name != "type"
    }
    custom = object_of(contact.get("custom_attributes"))
    flat |= {rule_name(name): value for name, value in custom.items()}
    fields: dict[str, Value] = {name: value for name, value in flat.items() if _is_value(value)}
    if isinstance(fields.get("owner_id"), int):
        fields["owner_id"] = str(fields["owner_id"])
    tags = object_of(contact.get("tags"))
    data, total = tags.get("data"), tags.get("total_count")
    if isinstance(data, list) and tags.get("has_more") is not True and total in (None, len(data)):
        fields["tags"] = [one for tag in data if (one := text_or_none(object_of(tag).get("id")))]
    return fields


def _is_value(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def as_read(key: RecordKey, contact: Mapping[str, Any], names: Sequence[str], reply: Reply | None = None) -> Read:
    """Return what the API says of a contact. *reply*: the answer to a question about this very contact.

    What comes in a list has none, and loses against such an answer with the same moment.
    """
    if contact.get("archived") is True:
        return Read(key, key, None, None)
    try:
        at = moment(contact.get("updated_at"), "updated_at")
    except Unclear:
        problem = "Intercom's answer does not say when the contact was last changed."
        return Read(key, key, None, None, problem=problem)
    fields = fields_of(contact)
    said = {name: fields[name] for name in names if name in fields}
    return Read(key, RecordKey(key.source, contact["id"]), said, Version(at + _later(reply, at), "read"))


def _later(reply: Reply | None, at: datetime) -> timedelta:
    """Return a part of a second that grows with the time of the answer.

    Intercom's moments are whole seconds, and not every change moves them: of two answers with one and the same
    moment, the later one counts.
    """
    try:
        answered_at = parsedate_to_datetime(reply.headers.get("date", "") if reply else "")
        return timedelta(microseconds=min(max(int((answered_at - at).total_seconds()), 0), 999_999))
    except (ValueError, TypeError, OverflowError):
        return timedelta()


def rule_name(custom: str) -> str:
    """Return what rules call a custom attribute."""
    return f"custom_{custom}" if custom in KNOWN_FIELDS else custom


def custom_name(name: str) -> str | None:
    """Return the custom attribute that rules call *name*, None where it is a field of Intercom's own."""
    if name in KNOWN_FIELDS:
        return None
    custom = name.removeprefix("custom_")
    return custom if custom in KNOWN_FIELDS else name
