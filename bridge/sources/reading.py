"""What sources share in reading a body: strict JSON, moments, ids and the keys of events."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from bridge.errors import BadPayload
from bridge.model import Event, iso
from bridge.signing import EPOCH

MAX_DEPTH = 50  # of nested lists and objects; no CRM comes near it, and deeper ones break what comes after
# What one body may cost: the sender waits while it is read, and may be a stranger still.
MAX_MARKS = 50_000  # commas and beginnings of lists and objects; 1,000 contacts with 45 fields have fewer
MAX_ESCAPES = 50_000  # "%" in a form
MAX_GROUPS = 20_000  # "[" in a form
MAX_UNPROVEN = 256 * 1024  # bytes, where what proves a request stands in its body
_ESCAPED_ODDITY = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)
_LONG_NUMBER = re.compile(rb"[:,\[]\s{0,99}-?[0-9]{99}")
_EPOCH_DIGITS = re.compile(r"[0-9]{10}|[0-9]{13}|[0-9]{16}")
_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?\s?(Z|[+-][0-9]{2}:?[0-9]{2})"
)
_DIGITS = re.compile(r"[0-9]{1,20}")


class Unclear(ValueError):
    """A part of an event makes no sense. The message is a sentence without values."""


# --- the body --------------------------------------------------------------------------------------------


def read_json(body: bytes) -> Any:
    """Return what *body* holds, with texts that every database can store.

    Raises:
        BadPayload: it is not UTF-8, not JSON, or larger or nested beyond reason.
    """
    if len(body) > MAX_MARKS and sum(map(body.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise BadPayload("The body holds more values than any webhook has.")
    if len(body) > MAX_UNPROVEN and _LONG_NUMBER.search(body):
        raise BadPayload("The body holds a number that is longer than any.")
    try:
        text = body.decode("utf-8")  # strict: it also stops padding smuggled behind a plain SHA-256
    except UnicodeDecodeError as error:
        raise BadPayload("The body is not UTF-8 text.") from error
    try:
        value = _DECODER.decode(text)
        # Both are rare, and looking costs less than walking through every body.
        if text.count("[") + text.count("{") > MAX_DEPTH or _ESCAPED_ODDITY.search(text):
            return _storable(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise BadPayload("The body is not JSON that bridge can read.") from error
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)
_PLAIN = frozenset({int, float, bool, type(None)})  # in which there is nothing to look for
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _storable(value: Any, depth: int) -> Any:
    """Return *value* with U+FFFD for lone surrogates and NULs, which JSON can spell but no database takes."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, (dict, list)) and depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {
            _storable(name, 1): one if type(one) in _PLAIN else _storable(one, depth - 1)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [one if type(one) in _PLAIN else _storable(one, depth - 1) for one in value]
    return value


def check_form(body: bytes) -> None:
    """Refuse a form that costs more to read than any sender's.

    Raises:
        BadPayload: it is one.
    """
    if body.count(b"%") > MAX_ESCAPES or body.count(b"[") > MAX_GROUPS:
        raise BadPayload("The body is larger than any form that is sent about a contact.")


# --- parts of an event -----------------------------------------------------------------------------------


def record_id(value: Any, what: str) -> str:
    """Return a CRM's own number for a record as text.

    Raises:
        Unclear: it is none.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**20:
        return str(value)
    if isinstance(value, str) and _DIGITS.fullmatch(value) and int(value) > 0:
        return str(int(value))
    raise Unclear(f"It has no usable {what}.")


def moment(value: Any, what: str) -> datetime:
    """Return the moment that *value* names: ISO 8601 with an offset, or Unix time with 10, 13 or 16 digits.

    Raises:
        Unclear: it names none, or leaves the time zone open.
    """
    if isinstance(value, float) and 1e9 <= value < 1e10:
        return EPOCH + timedelta(seconds=value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        value = str(value) if value < 10**16 else ""
    if isinstance(value, str) and _EPOCH_DIGITS.fullmatch(value):
        return EPOCH + timedelta(microseconds=int(value) * 10 ** (16 - len(value)))
    if isinstance(value, str) and _ISO.fullmatch(value):
        try:
            return _after_epoch(datetime.fromisoformat(value.replace(" ", "T", 1).replace(" ", "")))
        except (ValueError, OverflowError):
            pass
    raise Unclear(f"Its {what} is no moment in time that names its time zone.")


def _after_epoch(read: datetime) -> datetime:
    if read.year < EPOCH.year or read.year > 9998:
        raise ValueError("not in a time that has computers")
    return read.astimezone(UTC)


def text_or_none(value: Any) -> str | None:
    """Return a text or number as text; None for anything else: for fields whose type varies by example."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**40:
        return str(value)
    return None


# --- keys ------------------------------------------------------------------------------------------------


def event_key(*parts: object) -> str:
    """Return one short text for *parts*, in which None counts as empty."""
    joined = "\x1f".join("" if part is None else str(part) for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "replace")).hexdigest()


def fingerprint(value: Any) -> str:
    """Return one short text for a JSON value, the same however its keys are ordered."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def receipt_key(received_at: datetime, *parts: object) -> str:
    """Return the key of an event that tells itself apart by nothing: each receipt is another event.

    A person who opts out, in, and out again may send the same bytes twice; dropping the second as a repeat of the
    first would lose an opt-out, while taking in a true repeat costs nothing.
    """
    return event_key(*parts, iso(received_at))


def distinct(events: Iterable[Event]) -> list[Event]:
    """Return *events* without those whose key came before in the same request."""
    kept: dict[str, Event] = {}
    for event in events:
        kept.setdefault(event.key, event)
    return list(kept.values())


def short(value: object) -> str:
    """Return a word of the sender's own vocabulary for a message, cut to 40 printable characters."""
    return "".join(letter for letter in str(value)[:40] if letter.isprintable())
