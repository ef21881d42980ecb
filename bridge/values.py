"""Named value transforms: phone, e-mail, date, choice. Pure functions over what a source said.

Two families. The *filters* are what a rule names behind a bar (``phone | e164``); an empty text passes through
them, for a field that was cleared stays cleared. `normalise` then gives a rule's result the shape that the
target's `FieldKind` promises, whatever the rule did.

What cannot be read is dropped with a reason and never guessed: every failure is a `BadValue`, whose message is one
sentence that does not repeat the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any

from bridge.errors import BridgeError
from bridge.model import Value
from bridge.targets.base import FieldKind

MAX_TEXT = 65_536  # characters of one text; no platform takes a longer one in a contact
MAX_NAMES = 1_000  # tags or lists of one contact
MAX_DIGITS = 30  # of a whole number


class BadValue(BridgeError):
    """A value is not what it has to be. The message is one sentence for a person and never has the value in it."""


# --- text --------------------------------------------------------------------------------------------------------

# What no database or JSON parser is sure to take: control characters (but tab and line ends) and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def text(value: Value) -> str:
    """Return a single value as text: ``true``, ``5`` (also for 5.0), ``2.5``; None is the empty text."""
    if value is None:
        return ""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise BadValue(f"The text is longer than {MAX_TEXT:,} characters.")
        return _UNPRINTABLE.sub("", value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        exact = _finite(value)
        return str(int(exact)) if exact == int(exact) and abs(exact) < 10**MAX_DIGITS else repr(exact)
    kind = "a list" if isinstance(value, list) else "a group of values"
    raise BadValue(f"The value is {kind} where a single text is wanted.")


def _finite(value: int | float) -> int | float:
    if isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            raise BadValue(f"The number has more than {MAX_DIGITS} digits.")
        return value
    if not math.isfinite(value):
        raise BadValue("The value is not a finite number.")
    return value


def is_empty(value: Value) -> bool:
    """Say whether *value* says nothing: null, an empty list, or a text of blanks (two cleared names joined)."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value in ([], {})


# --- phone and e-mail --------------------------------------------------------------------------------------------


def e164(value: Value, region: str | None = None) -> str:
    """Return a phone number as E.164: ``+442071838750``.

    A number without its country is read as one of *region* (ISO 3166, "GB"); without a region it is refused.

    Only numbers that can be in use count (libphonenumber's `is_valid_number`, which knows the ranges of each
    country): "possible" is a matter of length alone and lets typing errors through, and a wrong number is a
    stranger's. A number with an extension is refused: E.164 cannot say it, and without it the number is that of
    a switchboard.
    """
    given = text(value).strip()
    if not given:
        return ""
    # Here, not above: only the worker reads phone numbers, and each country's data is loaded when first met.
    import phonenumbers

    try:
        number = phonenumbers.parse(given, region or None)
    except phonenumbers.NumberParseException as error:
        if error.error_type == phonenumbers.NumberParseException.INVALID_COUNTRY_CODE and not region:
            raise BadValue(
                "The phone number does not say its country (no leading +), and no default_region is configured."
            ) from error
        raise BadValue("The value is not a phone number.") from error
    if number.extension:
        raise BadValue("The phone number has an extension, which a platform for messages cannot reach.")
    if not phonenumbers.is_valid_number(number):
        where = f" in {region}" if region and not given.startswith("+") else ""
        raise BadValue(f"The value is not a phone number that can be in use{where}.")
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def national_digits(phone: str) -> str:
    """Return the digits of an E.164 *phone* that everybody writes, who tells the country and who does not."""
    import phonenumbers

    try:
        return str(phonenumbers.national_significant_number(phonenumbers.parse(phone)))
    except phonenumbers.NumberParseException:
        return phone.removeprefix("+")


def known_region(region: str) -> bool:
    """Say whether phone numbers of *region* ("US") can be read."""
    import phonenumbers

    return region in phonenumbers.SUPPORTED_REGIONS


_ATOM = r"[^\s@<>()\[\]\\,;:\"\x00-\x1f]"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(rf"{_ATOM}{{1,64}}@(?:{_LABEL}\.)+{_LABEL}")


def email(value: Value) -> str:
    """Return one plausible e-mail address in lower case, or "" for none."""
    given = text(value).strip().lower()
    if not given:
        return ""
    local = given.partition("@")[0]
    dotted = local.startswith(".") or local.endswith(".") or ".." in local
    if len(given) > 254 or dotted or _EMAIL.fullmatch(given) is None:
        raise BadValue("The value is not one e-mail address.")
    return given


# --- numbers, yes and no, choices --------------------------------------------------------------------------------

_YES = frozenset({"true", "yes", "y", "on", "1", "t"})
_NO = frozenset({"false", "no", "n", "off", "0", "f"})
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")


def boolean(value: Value) -> bool | str:
    """Return true or false of what CRMs write for them: ``true``, ``"Yes"``, ``1``, ``"0"`` …; "" stays ""."""
    word = text(value).strip().lower()
    if not word:
        return ""
    if word in _YES or word in _NO:
        return word in _YES
    raise BadValue("The value is neither yes nor no.")


def says_no(word: str) -> bool:
    """Say whether *word* is one that `boolean` reads as no."""
    return word.strip().lower() in _NO


def number(value: Value) -> int | float | str:
    """Return a number of its digits, with a point for decimals; "" stays "".

    Thousands separators are refused: "1,234" is one number in London and another in Berlin.
    """
    if isinstance(value, bool):
        raise BadValue("The value is yes or no, where a number is wanted.")
    if isinstance(value, int | float):
        return _finite(value)
    digits = text(value).strip()
    if not digits:
        return ""
    match = _NUMBER.fullmatch(digits)
    if match is None:
        raise BadValue("The value is not a plain number such as 1234.5.")
    return _finite(float(digits)) if match[1] or match[2] else int(digits)


def lookup(value: Value, table: Mapping[Any, Any], default: Value = None) -> Any:
    """Return what *table* has for *value*, else *default*. Keys are compared as text, so 1 finds "1"."""
    if not isinstance(table, Mapping):
        raise BadValue("The table of a lookup is not a table such as {'1': 'gold'}.")
    wanted = text(value)
    return next((found for key, found in table.items() if text(key) == wanted), default)


def multi(value: Value, separator: str = ";") -> list[str]:
    """Return the options of a multiple choice ("a;b", or a list) without blanks and repeats, in their order."""
    if not separator:
        raise BadValue("The separator of multi is empty.")
    parts = value if isinstance(value, list) else text(value).split(separator)
    if len(parts) > MAX_NAMES:
        raise BadValue(f"The list has more than {MAX_NAMES:,} entries.")
    return list(dict.fromkeys(name for part in parts if (name := text(part).strip())))


NAME_PARTS = ("first", "last")


def split_name(value: Value, part: str) -> str:
    """Return the ``first`` or the ``last`` part of a whole name.

    "Ada Lovelace" and "Lovelace, Ada" are both Ada and Lovelace. Without a comma the first word is the first name
    and the rest is the last: "Ana García Ruiz" is Ana and García Ruiz. One word is a first name.
    """
    if part not in NAME_PARTS:
        raise BadValue("The part of a name is 'first' or 'last'.")
    whole = " ".join(text(value).split())
    if "," in whole:
        last, _, first = (piece.strip() for piece in whole.partition(","))
    else:
        first, _, last = whole.partition(" ")
    return first if part == "first" else last


# --- moments -----------------------------------------------------------------------------------------------------

_WHOLE = re.compile(r"-?[0-9]{1,15}")
_DAY = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}")
# Only directives without a width: C libraries take "%999999999d" at its word.
_FORMAT = re.compile(r"(?:[^%]|%-?[dmHIMSjyYaAbBpfzZUWuwVG]|%%){1,100}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(value: Value) -> datetime | date:
    """Read a day or a moment: ISO 8601, or milliseconds since 1970 as HubSpot gives them."""
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value).strip()
    try:
        if _DAY.fullmatch(given) and _plausible_day(given):
            return date.fromisoformat(given)
        if _WHOLE.fullmatch(given):
            return _EPOCH + timedelta(milliseconds=int(given))
        return datetime.fromisoformat(given)
    except (ValueError, OverflowError) as error:
        raise BadValue("The value is neither an ISO 8601 date nor milliseconds since 1970.") from error


def _plausible_day(given: str) -> bool:
    """Tell 20260302, a day, from 86400000, the milliseconds of the second day of 1970."""
    return "-" in given or (1 <= int(given[4:6]) <= 12 and 1 <= int(given[6:8]) <= 31)


def day(value: Value, format: str | None = None) -> str:  # noqa: A002 - the name that rules use
    """Return a date as ``2026-03-02``, or as *format* (of `strftime`) wants it; "" stays "".

    A moment counts as the day that it names in its own offset; milliseconds are UTC.
    """
    if is_empty(value):
        return ""
    read = _moment(value)
    if format is None:
        return (read.date() if isinstance(read, datetime) else read).isoformat()
    if _FORMAT.fullmatch(format) is None:
        raise BadValue("The format of a date has a part that bridge does not know; it is like '%d.%m.%Y'.")
    return read.strftime(format)


def moment(value: Value) -> str:
    """Return a moment in UTC as ``2026-03-02T10:11:12Z``; "" stays "". One without an offset is taken as UTC."""
    if is_empty(value):
        return ""
    read = _moment(value)
    if not isinstance(read, datetime):
        read = datetime.combine(read, time.min)
    try:
        exact = (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise BadValue("The value is a moment outside of the calendar.") from error
    shown = exact.isoformat(timespec="milliseconds" if exact.microsecond else "seconds")
    return shown.replace("+00:00", "Z")


# --- the shapes that targets want --------------------------------------------------------------------------------


def _names(value: Value) -> list[str]:
    return multi(value) if isinstance(value, list) else [name] if (name := text(value).strip()) else []


def _any(value: Value) -> Value:
    if isinstance(value, list):
        return [text(part) for part in value]
    if isinstance(value, bool):
        return value
    return _finite(value) if isinstance(value, int | float) else text(value)


_SHAPES: Mapping[FieldKind, Callable[[Value], Value]] = {
    FieldKind.TEXT: text,
    FieldKind.EMAIL: email,
    FieldKind.BOOLEAN: boolean,
    FieldKind.NAMES: _names,
    FieldKind.ANY: _any,
}


def normalise(kind: FieldKind, value: Value, region: str | None = None) -> Value:
    """Return *value* in the shape that *kind* promises, or None when it is empty.

    Raises:
        BadValue: it cannot have that shape.
    """
    if is_empty(value):
        return None
    shape = partial(e164, region=region) if kind is FieldKind.PHONE else _SHAPES[kind]
    shaped = shape(value)
    return None if is_empty(shaped) else shaped
