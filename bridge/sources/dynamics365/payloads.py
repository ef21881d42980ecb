"""What Dataverse sends: the context of an operation, as it is given to plug-ins.

https://learn.microsoft.com/power-apps/developer/data-platform/use-webhooks
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bridge.model import Change, Kind, RecordKey, Value, Version
from bridge.signing import EPOCH
from bridge.sources.calling import list_of, object_of
from bridge.sources.reading import Unclear, event_key, fingerprint, moment, text_or_none
from bridge.sources.sampling import SAMPLE_ID

CONTACT = "contact"
KINDS = {
    "Create": Kind.CREATED,
    "Update": Kind.CHANGED,
    "Upsert": Kind.CHANGED,
    "Delete": Kind.DELETED,
    "Restore": Kind.CREATED,  # from the recycle bin
    "Merge": Kind.MERGED,
}
_GUID = re.compile(r"\{?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\}?")
_NIL = "00000000-0000-0000-0000-000000000000"
_DATE = re.compile(r"/Date\((-?[0-9]{1,15})(?:[+-][0-9]{4})?\)/")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True, slots=True)
class Context:
    """What a webhook says, not checked yet."""

    message: str
    table: str
    account: str | None
    inputs: Mapping[str, Any]
    images: tuple[Mapping[str, Any], ...]  # of the record after the operation, where they were registered
    body: Mapping[str, Any]

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Context:
        images = [object_of(image) for image in _pairs(body.get("PostEntityImages")).values()]
        return cls(
            text_or_none(body.get("MessageName")) or "",
            (text_or_none(body.get("PrimaryEntityName")) or "").lower(),
            (text_or_none(body.get("OrganizationId")) or "").lower() or None,
            _pairs(body.get("InputParameters")),
            tuple(images),
            body,
        )

    @property
    def word(self) -> str:
        return ".".join(filter(None, (self.table, self.message)))

    @property
    def key(self) -> str:
        """What tells repeats. The operation has an id; where it has none, or one for two, the content tells."""
        about = ("OperationId", "PrimaryEntityId", "MessageName", "OperationCreatedOn")
        said = [text_or_none(self.body.get(name)) for name in about]
        return event_key("dynamics365", self.account, *said, fingerprint(self.body.get("InputParameters")))

    def changes(self, source: str) -> Iterator[Change]:
        """Yield what the operation did to contacts.

        Raises:
            Unclear: it does not say to which, or when.
        """
        kind = KINDS[self.message]
        key = RecordKey(source, self._primary_id())
        version = Version(_moment(self.body.get("OperationCreatedOn")), self._event_id())
        if kind is Kind.MERGED:
            yield from self._merge(key, version)
        elif kind is Kind.DELETED:
            yield Change(key, kind, version, account=self.account)
        else:
            fields, whole = _attributes(object_of(self.inputs.get("Target")))
            for image in self.images:
                fields = {**_attributes(image)[0], **fields}
            # Above 256 KB what changed is left out.
            yield Change(key, kind, version, fields, thin=not (fields and whole), account=self.account)

    def _merge(self, survivor: RecordKey, version: Version) -> Iterator[Change]:
        """Yield what a merge means for the record that is deactivated, and for the one that takes its place."""
        subordinate = self.inputs.get("SubordinateId")
        if subordinate is not None:
            loser = RecordKey(survivor.source, guid(subordinate, "SubordinateId"))
            if loser == survivor:
                raise Unclear("It is a merge of a contact with itself.")
            yield Change(loser, Kind.MERGED, version, survivor=survivor.source_id, account=self.account)
        yield Change(survivor, Kind.CHANGED, version, thin=True, account=self.account)

    def _primary_id(self) -> str:
        target = object_of(self.inputs.get("Target"))
        for given in (self.body.get("PrimaryEntityId"), target.get("Id")):
            try:
                return guid(given, "PrimaryEntityId")
            except Unclear:
                continue
        raise Unclear("It does not say which contact it is about.")

    def _event_id(self) -> str:
        """Return a text that puts operations of one millisecond into one order, before what was read then."""
        return f"op:{text_or_none(self.body.get('OperationId')) or ''}:{self.message}"[:200]


def guid(value: Any, what: str) -> str:
    """Return the id that *value* is, as the Web API writes it.

    Raises:
        Unclear: it is none.
    """
    if value == SAMPLE_ID:
        return SAMPLE_ID
    found = _GUID.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[1] == _NIL:
        raise Unclear(f"Its {what} is no id of a record.")
    return found[1].lower()


def is_guid(text: str) -> bool:
    return _GUID.fullmatch(text) is not None


def _moment(value: Any) -> datetime:
    at = _date(value)
    return moment(value if at is None else at.isoformat(), "OperationCreatedOn")


def _date(value: Any) -> datetime | None:
    """Return the moment of ``/Date(ms±zone)/``: milliseconds of UTC; the zone is how it was shown to somebody."""
    found = _DATE.fullmatch(value) if isinstance(value, str) else None
    try:
        return EPOCH + timedelta(milliseconds=int(found[1])) if found else None
    except OverflowError:
        return None


def _pairs(value: Any) -> dict[str, Any]:
    """Return a list of keys and values as a mapping."""
    pairs = [one for one in map(object_of, list_of(value)) if isinstance(one.get("key"), str) and "value" in one]
    return {one["key"]: one["value"] for one in pairs}


def _attributes(entity: Mapping[str, Any]) -> tuple[dict[str, Value], bool]:
    """Return the columns of an entity by their names, and whether they are all that it told.

    What has a shape that bridge does not know is left out: nothing is known of it.
    """
    told = {name: value for name, value in _pairs(entity.get("Attributes")).items() if _COLUMN.fullmatch(name)}
    fields: dict[str, Value] = {}
    for name, value in told.items():
        with suppress(Unclear):
            fields[name] = _plain(value)
    return fields, len(fields) == len(told)


def _plain(value: Any) -> Value:
    """Return a column's value as the Web API would give it.

    Raises:
        Unclear: it is none that bridge knows.
    """
    if isinstance(value, str) and value.startswith("/Date("):
        at = _date(value)
        if at is None:
            raise Unclear("It is no moment.")
        return at.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):  # a choice of several
        return [_plain(one) for one in value]
    if "Value" in value:  # an option set, an amount of money
        return _plain(value["Value"])
    return guid(value.get("Id"), "lookup")
