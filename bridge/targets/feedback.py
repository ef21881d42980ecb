"""What targets' own webhooks tell of consent: somebody said stop there, or took it back.

None of them is signed in a way that is documented, so they are only taken at a URL with a secret token. What is
told of a stranger, or made up by whoever knows the URL, can only tighten: a start takes back what was said at that
target and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from bridge.errors import BadPayload

STOP_WORDS = frozenset({"STOP", "STOPALL", "CANCEL", "END", "OPTOUT", "OPT-OUT", "QUIT", "REVOKE", "UNSUBSCRIBE"})
START_WORDS = frozenset({"START", "UNSTOP"})
LONGEST_WORD = 40  # characters of a message that may be one
E164 = re.compile(r"\+[1-9][0-9]{6,14}")
ID = re.compile(r"[\x21-\x7e]{1,200}")  # what every database takes, and nothing that JSON can spell beside it
MOST_FIELDS = 2000
MOST_BYTES = 256 * 1024  # of a body, which is about one person or one message
MOST_ESCAPES = 20_000  # "%" in a form


@dataclass(frozen=True, slots=True)
class Consent:
    """What one person said at a target: *stop*, or that messages are welcome again.

    The person is known by the target's own id, or by *phones* (E.164) of which one is theirs. *at* None: it is not
    told. *event_id* tells repeats.
    """

    stop: bool
    event_id: str
    type: str  # what the target calls it
    target_id: str | None = None
    phones: tuple[str, ...] = ()
    at: datetime | None = None
    by_api: bool = False  # some program called the target's API for it: bridge perhaps
    channel: str = ""  # what was said no to, where a yes to something else does not take it back


def activecampaign(body: bytes) -> list[Consent]:
    """Read a form: ``type``, ``date_time``, ``initiated_from``, ``contact[id]``.

    https://developers.activecampaign.com/page/webhooks

    Raises:
        BadPayload: it is no such form.
    """
    form = _form(body)
    kind, target_id = form.get("type", ""), form.get("contact[id]", "")
    if not kind or not re.fullmatch(r"[0-9]{1,19}", target_id):
        raise BadPayload("The body is no webhook of ActiveCampaign about a contact.")
    # Whoever subscribes somebody else, or has an automation do it, takes nothing back for them.
    starts = kind == "subscribe" and form.get("initiated_from") == "public"
    if kind not in {"unsubscribe", "sms_unsub"} and not starts:
        return []
    return [
        Consent(
            not starts,
            _fingerprint(body),
            kind,
            target_id,
            at=_moment(form.get("date_time", "")),
            by_api=form.get("initiated_from") == "api",
            channel="sms" if kind == "sms_unsub" else "",
        )
    ]


def sakari(body: bytes) -> list[Consent]:
    """Read JSON: ``type``, ``eventId``, ``data.id``.

    https://developer.sakari.io/api-reference/webhooks/subscribe-to-message-events

    Raises:
        BadPayload: it is none.
    """
    told = _object(body, "Sakari")
    kind = told.get("type")
    if kind not in {"contact-opt-out", "contact-opt-in"}:
        return []
    data = told.get("data")
    contact_id = data.get("id") if isinstance(data, dict) else None
    if not isinstance(contact_id, str | int) or isinstance(contact_id, bool) or not ID.fullmatch(str(contact_id)):
        raise BadPayload("It does not say which contact it is about.")
    return [Consent(kind == "contact-opt-out", _event_id(told, body), str(kind), str(contact_id))]


def clerk_chat(body: bytes) -> list[Consent]:
    """Read JSON: an inbound ``message.received`` whose whole text is a word such as STOP.

    How its parts are spelled differs, so every phone number of its addresses comes into question; ours is nobody's
    contact. https://docs.clerk.chat/integrations/webhooks

    Raises:
        BadPayload: it is none.
    """
    told = _object(body, "Clerk Chat")
    data = told.get("data")
    if told.get("type") != "message.received" or not isinstance(data, dict):
        return []
    if str(data.get("direction", "inbound")).lower() not in {"inbound", "in", "received"}:
        return []
    text = data.get("body", data.get("text"))
    word = text.strip().strip(".!").upper() if isinstance(text, str) and len(text) <= LONGEST_WORD else ""
    if word not in STOP_WORDS | START_WORDS:
        return []
    phones = tuple(
        dict.fromkeys(_phones({name: part for name, part in data.items() if name not in {"body", "text"}}))
    )
    if not phones:
        raise BadPayload("It does not say whose message it is.")
    return [Consent(word in STOP_WORDS, _event_id(told, body), "message.received", phones=phones[:20])]


# --- parts -----------------------------------------------------------------------------------------------


def _form(body: bytes) -> Mapping[str, str]:
    if len(body) > MOST_BYTES or body.count(b"%") > MOST_ESCAPES:
        raise BadPayload("The body is larger than any webhook about one contact.")
    try:
        return dict(
            parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
        )
    except ValueError as error:  # no UTF-8, or far too many fields
        raise BadPayload("The body is no form.") from error


def _object(body: bytes, title: str) -> Mapping[str, Any]:
    if len(body) > MOST_BYTES:
        raise BadPayload(f"The body is larger than any webhook of {title}.")
    try:
        told = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadPayload(f"The body is no JSON, as {title} sends it.") from error
    if not isinstance(told, dict):
        raise BadPayload(f"The body is no webhook of {title}.")
    return told


def _phones(value: Any, depth: int = 6) -> Iterator[str]:
    if isinstance(value, str):
        if E164.fullmatch(value):
            yield value
    elif depth and isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _phones(part, depth - 1)


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):  # the latter: it is in no year that there is, in UTC
        return None


def _event_id(told: Mapping[str, Any], body: bytes) -> str:
    event_id = told.get("eventId")
    return event_id if isinstance(event_id, str) and ID.fullmatch(event_id) else _fingerprint(body)


def _fingerprint(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:40]
