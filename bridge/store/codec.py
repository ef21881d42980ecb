"""How values of the model are written into a database and read back, the same for every store."""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Any

from bridge.model import Contact, Desired, Exchange, FieldState, Mode, RecordKey, Version, from_iso, iso


def to_json(value: Any) -> str:
    """Return *value* as JSON in ASCII, so that no text of a source can be unfit for the database."""
    return _ENCODER.encode(value)


# `json.dumps` would make one for every call.
_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


def maybe_iso(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


def maybe_moment(text: str | None) -> datetime | None:
    return None if text is None else from_iso(text)


# --- contacts --------------------------------------------------------------------------------------------


def contact_json(contact: Contact) -> str:
    """Return all of *contact* but its key; what is empty is left out."""
    written = {
        "fields": {name: _field(state) for name, state in contact.fields.items()},
        "created": _version(contact.created),
        "deleted": _version(contact.deleted),
        "erased": _version(contact.erased),
        "merged_into": contact.merged_into,
        "merged": _version(contact.merged),
        "inherits": list(contact.inherits),
        "absorbed": list(contact.absorbed),
        "account": contact.account,
        "stops": {target: _written(version) for target, version in contact.stops.items()},
        "starts": {target: _written(version) for target, version in contact.starts.items()},
        "told": _version(contact.told),
        "thin": contact.thin,
        "read_at": maybe_iso(contact.read_at),
        "read_due": maybe_iso(contact.read_due),
        "read_tries": contact.read_tries,
        "read_note": contact.read_note,
    }
    return to_json({name: value for name, value in written.items() if value})


def contact_from(key: RecordKey, text: str) -> Contact:
    """Return the contact that `contact_json` wrote."""
    read: Mapping[str, Any] = json.loads(text)
    return Contact(
        key=key,
        fields={name: _field_from(state) for name, state in read.get("fields", {}).items()},
        created=_version_from(read.get("created")),
        deleted=_version_from(read.get("deleted")),
        erased=_version_from(read.get("erased")),
        merged_into=read.get("merged_into"),
        merged=_version_from(read.get("merged")),
        inherits=tuple(read.get("inherits", ())),
        absorbed=tuple(read.get("absorbed", ())),
        account=read.get("account"),
        stops=_versions_from(read.get("stops", {})),
        starts=_versions_from(read.get("starts", {})),
        told=_version_from(read.get("told")),
        thin=read.get("thin", False),
        read_at=maybe_moment(read.get("read_at")),
        read_due=maybe_moment(read.get("read_due")),
        read_tries=read.get("read_tries", 0),
        read_note=read.get("read_note", ""),
    )


def _versions_from(written: Mapping[str, Any]) -> dict[str, Version]:
    read = ((target, _version_from(version)) for target, version in written.items())
    return {target: version for target, version in read if version is not None}


def _version(version: Version | None) -> tuple[str, str] | None:
    return None if version is None else _written(version)


def _version_from(read: list[str] | None) -> Version | None:
    return None if read is None else _version_of(*read)


# All that one event said has one version.


@lru_cache(maxsize=4096)
def _written(version: Version) -> tuple[str, str]:
    return iso(version.occurred_at), version.event_id


@lru_cache(maxsize=4096)
def _version_of(moment: str, event_id: str) -> Version:
    return Version(from_iso(moment), event_id)


def _field(state: FieldState) -> dict[str, Any]:
    written: dict[str, Any] = {"value": state.value, "version": _written(state.version)}
    if state.said_version is not None:
        written |= {"said": state.said, "said_version": _written(state.said_version)}
    return written


def _field_from(read: Mapping[str, Any]) -> FieldState:
    version = _version_of(*read["version"])
    if "said_version" not in read:
        return FieldState(read["value"], version)
    return FieldState(read["value"], version, read["said"], _version_of(*read["said_version"]))


# --- deliveries and attempts -----------------------------------------------------------------------------


def desired_json(desired: Desired | None) -> str | None:
    if desired is None:
        return None
    return to_json(
        {
            "fields": dict(desired.fields),
            "modes": {name: mode.value for name, mode in desired.modes.items()},
            "opt_out": desired.opt_out,
            "create": desired.create,
            "gone": desired.gone,
        }
    )


def desired_from(text: str | None) -> Desired | None:
    if text is None:
        return None
    read: Mapping[str, Any] = json.loads(text)
    return Desired(
        fields=read["fields"],
        modes={name: Mode(mode) for name, mode in read["modes"].items()},
        opt_out=read["opt_out"],
        create=read["create"],
        gone=read["gone"],
    )


def exchanges_detail(exchanges: tuple[Exchange, ...]) -> dict[str, Any] | None:
    """Return what an attempt's audit entry keeps as its `detail`: the calls as they went over the wire."""
    return {"exchanges": [_exchange(one) for one in exchanges]} if exchanges else None


def _exchange(exchange: Exchange) -> dict[str, Any]:
    return {name: getattr(exchange, name) for name in _EXCHANGE}


_EXCHANGE = tuple(one.name for one in fields(Exchange))  # `asdict` would copy every text


# --- searching -------------------------------------------------------------------------------------------

# In a search text, this stands before each word, so that where a word begins can be looked for as a mere text.
WORD = "\x1f"
DIGIT = "\x1e"  # and this before each digit of a phone number, which is found by its inner digits, too
LONGEST_TERM = 40
MOST_TERMS = 300  # of one contact
FEWEST_DIGITS = 4
USUAL_LENGTH = 120  # of a value: what is made of it is remembered

_NO_DIGIT = re.compile(r"\D+")
_WORDS = re.compile(r"[^\W_]+")
_PHONE = re.compile(r"\+?[\d\s().\-/]{6,}")
_DIGITS = re.compile(r"\+?[\d\s().\-/]+")


@dataclass(frozen=True, slots=True)
class Needle:
    """One way in which a person may have written what is looked for."""

    term: str  # what a term begins with: see `search_terms`
    text: str  # what a `search_text` holds

    @property
    def cut(self) -> bool:
        """Say whether the term is too short to tell, so that the text has to be looked at as well."""
        return len(self.term) == LONGEST_TERM


def search_text(contact: Contact) -> str:
    """Return the text in which a person looks a contact up: its ids and its values, folded; a line for each."""
    values = sorted((word for state in contact.fields.values() for word in _words(state.value)), key=len)
    lines = [line for value in (contact.key.source_id, *contact.absorbed, *values) for line in _lines_of(value)]
    return "\n".join(dict.fromkeys(lines))


def search_terms(text: str) -> frozenset[str]:
    """Return where each word of a `search_text` begins, with what follows it; of phone numbers, each digit.

    What somebody looks for is the beginning of one of them.
    """
    terms: set[str] = set()
    for line in text.split("\n"):
        for term in _usual_terms(line) if len(line) <= USUAL_LENGTH else _terms(line):
            if len(terms) == MOST_TERMS:
                return frozenset(terms)
            terms.add(term)
    return frozenset(terms)


def _lines_of(value: str) -> Iterable[str]:
    return _usual_lines(value) if len(value) <= USUAL_LENGTH else _lines(value)


# In a burst the same contacts change again and again, and most of their values stay.


@lru_cache(maxsize=4096)
def _usual_lines(value: str) -> tuple[str, ...]:
    return tuple(_lines(value))


@lru_cache(maxsize=4096)
def _usual_terms(line: str) -> tuple[str, ...]:
    return tuple(_terms(line))


def _lines(value: str) -> Iterator[str]:
    plain = _plain(value)
    yield _marked(plain)
    if _PHONE.fullmatch(plain):
        yield "".join(DIGIT + digit for digit in _digits(plain))


def _terms(line: str) -> Iterator[str]:
    mark = DIGIT if line.startswith(DIGIT) else WORD
    before, *parts = line.split(mark)
    plain = line.replace(mark, "")
    last = len(plain) - (FEWEST_DIGITS if mark == DIGIT else 1)
    place = len(before)
    for part in parts:
        if place <= last:
            yield plain[place : place + LONGEST_TERM]
        place += len(part)


def needles(q: str) -> tuple[Needle, ...]:
    """Return the ways to find *q*: as it is, and as digits of a phone number; none where it holds no word."""
    plain = _plain(q)
    found = {}
    if (word := _WORDS.search(plain)) is not None:
        text = plain[word.start() :]
        found[text[:LONGEST_TERM]] = Needle(text[:LONGEST_TERM], _marked(text))
    if _DIGITS.fullmatch(plain):
        for digits in (_digits(plain), _digits(plain).lstrip("0")):  # as dialled, and without a prefix
            if len(digits) >= FEWEST_DIGITS:
                spaced = "".join(DIGIT + digit for digit in digits)
                found["phone " + digits] = Needle(digits[:LONGEST_TERM], spaced)
    return tuple(found.values())


def fold(text: str) -> str:
    """Return *text* as it is compared in searches: in no case of letters, and fit for any database."""
    if text.isascii():  # as most is: then this is all there is to do
        return text.lower().replace("\x00", "")
    plain = unicodedata.normalize("NFKC", text).casefold()
    return plain.replace("\x00", "").encode("utf-8", "replace").decode()


def _plain(text: str) -> str:
    """Return *text* folded on one line; our marks count as blanks, so that none is left."""
    return " ".join(fold(text).split())


def _marked(plain: str) -> str:
    return _WORDS.sub(_mark, plain)


def _mark(word: re.Match[str]) -> str:
    return WORD + word[0]


def _words(value: Any) -> list[str]:
    if value is None or isinstance(value, bool):
        return []
    if isinstance(value, Mapping):
        return [word for one in value.values() for word in _words(one)]
    if isinstance(value, list):
        return [word for one in value for word in _words(one)]
    return [str(value)]


def _digits(text: str) -> str:
    if text.isascii():
        return _NO_DIGIT.sub("", text)
    return "".join(str(unicodedata.digit(letter)) for letter in text if letter.isdigit())


# --- cursors ---------------------------------------------------------------------------------------------


def cursor_of(moment: str, row_id: int) -> str:
    """Return where a list goes on, as text that is safe in a URL: after the row of that moment and id."""
    return base64.urlsafe_b64encode(f"{moment} {row_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[str, int]:
    """Return the moment and row id of a cursor.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        moment, _, row_id = text.rpartition(" ")
        return iso(from_iso(moment)), int(row_id)
    except (binascii.Error, UnicodeError, ValueError, OverflowError) as error:
        raise ValueError("The cursor is not one that this list gave out.") from error
