"""What Zoho CRM sends: notifications of a channel, which hold ids, and what a workflow's author composed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from bridge.contact import clamp
from bridge.errors import BadPayload
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Value, Version
from bridge.sources.reading import (
    Unclear,
    check_form,
    distinct,
    event_key,
    fingerprint,
    moment,
    read_json,
    receipt_key,
    record_id,
    short,
    text_or_none,
)

MAX_IDS = 5_000  # of one notification; the sender waits while they are counted
MAX_FIELDS = 1_000  # of a form
FORM = "application/x-www-form-urlencoded"
KINDS = {
    "insert": Kind.CREATED,
    "update": Kind.CHANGED,
    "delete": Kind.DELETED,
    # What an author of a workflow, who thinks of the events of a channel, may write.
    "create": Kind.CREATED,
    "edit": Kind.CHANGED,
}
# Parts of a workflow's body that are no fields of the record.
_NOT_FIELDS = frozenset({"id", "ids", "module", "operation", "token", "channel_id"})
_UNRESOLVED = re.compile(r"\$\{[^}]*\}")  # a merge field that Zoho did not fill in
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def content_of(request: InboundRequest) -> Mapping[str, Any]:
    """Return what the body of *request* holds, be it JSON or a form.

    Raises:
        BadPayload: it is neither, or no object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM and not request.body.lstrip().startswith(b"{"):
        return _form(request.body)
    if kind.startswith("multipart/"):
        raise BadPayload("The body is multipart, which bridge does not read: let the webhook send JSON.")
    content = read_json(request.body)
    if not isinstance(content, dict):
        raise BadPayload("The body is neither a notification of Zoho CRM's nor one record of a workflow.")
    return content


def _form(body: bytes) -> Mapping[str, str]:
    check_form(body)
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise BadPayload("The body is no form in UTF-8, or has too many fields.") from error
    if not pairs:
        raise BadPayload("The body is a form without a field.")
    return {_UNSTORABLE.sub("\ufffd", name): _UNSTORABLE.sub("\ufffd", value) for name, value in pairs}


def is_notification(content: Any) -> bool:
    """Say whether *content* is what a channel sends; anything else is a workflow's own."""
    return isinstance(content, dict) and "channel_id" in content and "operation" in content


# --- a channel's notification ------------------------------------------------------------------------------


def notified(source: str, module: str, content: Mapping[str, Any], received_at: datetime) -> list[Event]:
    """Return an event for each record that a notification names. It may hold values too; see `_named`.

    Raises:
        BadPayload: it names no records, or more than make sense.
    """
    ids = content.get("ids")
    if not isinstance(ids, list) or len(ids) > MAX_IDS:
        raise BadPayload("The notification has no list of ids that bridge can read.")
    about, action = (text_or_none(content.get(name)) or "" for name in ("module", "operation"))
    word = ".".join(filter(None, (about, action)))
    whole = event_key("zoho", content.get("channel_id"), fingerprint({**content, "token": None}))
    if about != module:
        return [Event(whole, ignored=f"'{short(about)}' is not the module of the contacts.", type=word)]
    if action not in KINDS:
        return [Event(whole, ignored=f"The operation '{short(action)}' changes no contact.", type=word)]
    if not ids:
        return [Event(whole, ignored="The notification names no record.", type=word)]
    return distinct(_named(source, one, action, content, received_at, word) for one in ids)


def _named(
    source: str, given: Any, action: str, content: Mapping[str, Any], received_at: datetime, word: str
) -> Event:
    """Return the event of one id. The record is to be read: what is sent of its values is left alone.

    ``affected_values`` are of a moment that Zoho does not tell: ``server_time`` is that of sending, and may be
    later than another change that was read meanwhile, which an older value must not overwrite.
    """
    at = content.get("server_time")
    about = ("zoho", content.get("channel_id"), content.get("module"), action, text_or_none(given), at)
    try:
        key = RecordKey(source, record_id(given, "id of a record"))
    except Unclear as error:
        return Event(event_key(*about, fingerprint(given)), unreadable=str(error), type=word)
    try:
        occurred_at, told = moment(at, "server_time"), event_key(*about)
    except Unclear:
        # Nothing tells a repeat from news then, and news must not be dropped.
        occurred_at, told = received_at, receipt_key(received_at, *about)
    kind = KINDS[action]
    change = Change(key, kind, Version(occurred_at, f"hook:{action}"), thin=kind is not Kind.DELETED)
    return Event(told, (clamp(change, received_at),), type=word)


# --- a workflow's webhook ----------------------------------------------------------------------------------


def from_workflow(
    source: str, module: str, content: Mapping[str, Any], received_at: datetime, *, can_read: bool
) -> Event:
    """Return the event of a record that a workflow's author composed."""
    about = _text(content.get("module"))
    action = _text(content.get("operation")).lower() or "update"
    word = ".".join(filter(None, (about, action)))
    print_ = fingerprint(content)
    key = event_key("workflow", print_)
    if about and about != module:
        return Event(key, ignored=f"'{short(about)}' is not the module of the contacts.", type=word)
    if action not in KINDS:
        return Event(key, ignored=f"The operation '{short(action)}' changes no contact.", type=word)
    try:
        record = RecordKey(source, _workflow_id(content))
    except Unclear as error:
        return Event(key, unreadable=str(error), type=word)
    kind = KINDS[action]
    fields = {} if kind is Kind.DELETED else dict(_said(content))
    event_id = f"hook:{print_[:16]}"  # before "read": of two that tell the same moment, what was read counts
    try:
        version = Version(moment(content.get("Modified_Time"), "Modified_Time"), event_id)
    except Unclear:
        # It may repeat an earlier one and yet be news, and it may be late: where the record can be read, that
        # counts, and nothing that is said here.
        key, version = receipt_key(received_at, "workflow", print_), Version(received_at, event_id)
        thin = kind is not Kind.DELETED
        fields = {} if can_read else fields
    else:
        thin = kind is Kind.CREATED  # the author chose some fields; of a new contact all are wanted
        if kind is Kind.DELETED:
            # The time of its last change is before its deletion.
            key, version = receipt_key(received_at, "workflow", print_), Version(received_at, event_id)
    return Event(key, (clamp(Change(record, kind, version, fields, thin=thin), received_at),), type=word)


def _workflow_id(content: Mapping[str, Any]) -> str:
    given = content.get("id")
    if isinstance(given, str):
        given = given.strip().removeprefix("zcrm_")  # as Zoho's exports and merge fields write ids
    if given is None or given == "":
        raise Unclear(
            "It does not say which contact it is about. Let the webhook send the record's id under the name 'id'."
        )
    return record_id(given, "id")


def _said(content: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    """Yield the fields that the body states. What Zoho did not fill in is not empty: nothing is known of it."""
    for name, value in content.items():
        if name in _NOT_FIELDS or value is None:
            continue
        if isinstance(value, str) and (value == "null" or _UNRESOLVED.search(value)):
            continue
        yield name, value


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
