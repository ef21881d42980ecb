"""Contacts through Salesforce's REST API: read by id, listed by time of change, and told of an opt-out.

https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Value, Version, iso
from bridge.outbound import Api, Query, Reply
from bridge.sources.base import BatchUnreadable, Listed, Read
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.reading import Unclear, moment
from bridge.sources.salesforce.ids import CONTACT, full_id

CHANGED_AT = "SystemModstamp"  # unlike LastModifiedDate it moves with every change, whoever or whatever makes it
PAGE = 1000  # of the 2,000 that a query answers with; an answer must fit into 4 MiB
DAY_USED_UP_S = 900.0  # until bridge asks again once the day's calls are used up; the day is a rolling one
HOPS = 5  # of records merged into records merged into records
FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")
_CODE = re.compile(r"[A-Z_]{1,60}")
_NO_COLUMN = re.compile(r"No such column '([A-Za-z0-9_]{1,80})'")
_OFFSET = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3})\+0000")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A record as an answer has it. *as_of* puts two answers in order that tell of the same second."""

    record: Mapping[str, Any]
    as_of: str


@dataclass(frozen=True, slots=True)
class Contacts:
    """The contacts of one organization: its `Lister` and its `Writer`, and what `Source.read` is made of."""

    connection: str  # as in ``[sources.<name>]``
    path: str  # of the API's version: "/services/data/v63.0"
    caller: Caller

    # --- by id -------------------------------------------------------------------------------------------

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. A contact that was merged into another is read as that one.

        https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/resources_composite_sobjects_collections_retrieve.htm
        """
        ids = {key: one for key in keys if (one := _id_of(key.source_id))}
        found, heirs = self._found(api, dict.fromkeys(ids.values()), fields), dict[str, str]()
        lost = [one for one, record in found.items() if record is None]
        for _ in range(HOPS):
            if not lost:
                break
            heirs |= (survivors := self._survivors(api, lost))
            fresh = [one for one in dict.fromkeys(survivors.values()) if one not in found]
            found |= self._found(api, fresh, fields)
            lost = [one for one in fresh if found[one] is None]
        reads = []
        for key in keys:
            one = ids.get(key, "")
            for _ in range(HOPS):
                one = heirs.get(one, one)
            reads.append(self._as_read(key, one, found.get(one), fields))
        return reads

    def _found(self, api: Api, ids: Iterable[str], fields: Sequence[str]) -> dict[str, _Seen | None]:
        """Return the record of each id; None where Salesforce knows none, or shows none."""
        asked = list(ids)
        if not asked:
            return {}
        path = f"{self.path}/composite/sobjects/Contact"
        reply = self._call(api, "POST", path, json={"ids": asked, "fields": _columns(fields)})
        answer, as_of = _json(reply), _as_of(reply)
        # In place of what it does not know stands null. Whose record it is, is said in the record.
        if not isinstance(answer, list) or len(answer) != len(asked):
            raise BatchUnreadable("Salesforce's answer does not tell of each contact that was asked for.")
        found: dict[str, _Seen | None] = {
            one: None for one, record in zip(asked, answer, strict=True) if record is None
        }
        for record in map(object_of, answer):
            if (one := _id_of(record.get("Id"))) in asked:
                found[one] = _Seen(record, as_of)
        if len(found) != len(asked):
            raise BatchUnreadable("Salesforce's answer holds something else than the contacts asked for.")
        return found

    def _survivors(self, api: Api, ids: Sequence[str]) -> dict[str, str]:
        """Return what contacts live on as, of those that were merged into another one."""
        listed = ", ".join(f"'{one}'" for one in ids)
        query = _select(
            ["Id", "MasterRecordId"], f"Id IN ({listed}) AND IsDeleted = true AND MasterRecordId != null"
        )
        answer = object_of(_json(self._query(api, query, "queryAll")))
        survivors = {}
        for row in map(object_of, list_of(answer.get("records"))):
            loser, survivor = _id_of(row.get("Id")), _id_of(row.get("MasterRecordId"))
            if loser in ids and survivor and survivor != loser:
                survivors[loser] = survivor
        return survivors

    def _as_read(self, asked: RecordKey, one: str, seen: _Seen | None, names: Sequence[str]) -> Read:
        if seen is None:
            return Read(asked, asked, None, None)
        try:
            changed_at = moment(seen.record.get(CHANGED_AT), CHANGED_AT)
        except Unclear:
            problem = "Salesforce's answer does not say when the contact was last changed."
            return Read(asked, asked, None, None, problem=problem)
        key = asked if _id_of(asked.source_id) == one else RecordKey(self.connection, one)
        return Read(asked, key, _values(seen.record, names), Version(changed_at, seen.as_of))

    # --- all of them -------------------------------------------------------------------------------------

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`. Each page is a query of its own, which begins behind the last row of the one before.

        A contact that is changed meanwhile moves to the end, where it is met again. Deleted ones are not listed.
        """
        place, where = parts_of(after), ""
        if place:
            at, last = place["at"], place["id"]
            where = f"{CHANGED_AT} > {at} OR ({CHANGED_AT} = {at} AND Id > '{last}')"
        elif since is not None:
            where = f"{CHANGED_AT} >= {_literal(since)}"
        order = f"ORDER BY {CHANGED_AT} ASC, Id ASC LIMIT {PAGE}"
        reply = self._query(api, _select(_columns(fields), where, order))
        answer, as_of = object_of(_json(reply)), _as_of(reply)
        rows = answer.get("records")
        if not isinstance(rows, list) or not isinstance(answer.get("done"), bool):
            raise BatchUnreadable("Salesforce's answer is not a page of contacts.")
        records = [self._listed(_Seen(object_of(row), as_of), fields) for row in rows]
        # It may hold fewer rows than were asked for and not be the last: then it says so.
        ended = answer["done"] and len(rows) < PAGE
        following = None if ended else _place_behind(records)
        if following is not None and following == after:
            raise BatchUnreadable("Salesforce answers with the same page of contacts again.")
        return Listed(records, following, None if place else self._total(api, where))

    def _listed(self, row: _Seen, names: Sequence[str]) -> Read:
        one = _id_of(row.record.get("Id"))
        read = self._as_read(RecordKey(self.connection, one), one, row, names)
        if not one or read.problem:
            raise BatchUnreadable("Salesforce's answer holds a contact without its id or its time of change.")
        return read

    def _total(self, api: Api, where: str) -> int | None:
        try:
            answer = _json(self._query(api, _select(["COUNT()"], where)))
        except SourceUnavailable:  # it is for a progress bar; the list does not depend on it
            return None
        total = object_of(answer).get("totalSize")
        return total if isinstance(total, int) and not isinstance(total, bool) and total >= 0 else None

    # --- opting out --------------------------------------------------------------------------------------

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`.

        https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/dome_update_fields.htm
        """
        one = _id_of(source_id)
        if not one:
            raise SourceUnavailable("This is no id of a contact in Salesforce, so nothing can be written to it.")
        path = f"{self.path}/sobjects/Contact/{one}"
        reply = self._call(api, "PATCH", path, json={name: stop_of(name)}, expected=(200, 204, 404))
        if reply.status == 404:
            raise SourceUnavailable(
                "Salesforce does not know this contact any more, so the opt-out could not be written to it."
            )

    # --- calling -----------------------------------------------------------------------------------------

    def _query(self, api: Api, query: str, resource: str = "query") -> Reply:
        return self._call(api, "GET", f"{self.path}/{resource}", query={"q": query})

    def _call(
        self,
        api: Api,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Query | None = None,
        expected: Sequence[int] = (200,),
    ) -> Reply:
        reply = self.caller.call(api, method, path, json=json, query=query, expected=(*expected, 400, 403))
        if reply.status not in expected:
            self._refuse(reply)
        return reply

    def _refuse(self, reply: Reply) -> NoReturn:
        """Raise what a 400 or a 403 means; Salesforce says it in words beside the status."""
        errors = [object_of(one) for one in list_of(reply.json_or_none())]
        codes = [code for one in errors if isinstance(code := one.get("errorCode"), str) and _CODE.fullmatch(code)]
        if "REQUEST_LIMIT_EXCEEDED" in codes:
            raise SourceUnavailable(
                "The day's calls of the Salesforce API are used up (REQUEST_LIMIT_EXCEEDED). Bridge calls again "
                "later.",
                retry_after_s=max(reply.retry_after_s, DAY_USED_UP_S),
            )
        if "INVALID_FIELD" in codes:
            # The name is a rule's own, as it stands in the query; the rest of the message is not repeated.
            named = (_NO_COLUMN.search(str(one.get("message"))) for one in errors)
            name = next((f" '{match[1]}'" for match in named if match), "")
            raise SourceUnavailable(
                f"Salesforce shows {self.connection} no field{name} of contacts: correct the rule that reads it, "
                "or let the integration's user see it. Bridge tries again by itself."
            )
        if reply.status == 400 and codes:
            raise BatchUnreadable(
                f"Salesforce did not do what was asked (HTTP 400, {codes[0]}). Bridge tries again later."
            )
        self.caller.refuse(reply)


def _json(reply: Reply) -> Any:
    if (body := reply.json_or_none()) is None:
        raise BatchUnreadable("Salesforce's answer is not JSON.")
    return body


def _as_of(reply: Reply) -> str:
    """Return the event id of what an answer tells.

    Salesforce's times have seconds only, and a record may change twice in one: then what was read last counts, and
    a read counts more than a message ("04l…"), for each message is followed by a read.
    """
    try:
        return f"read:{iso(parsedate_to_datetime(reply.headers.get('date', '')).astimezone(UTC))}"
    except (ValueError, OverflowError):
        return "read"


def stop_of(name: str) -> bool:
    """Return the value of a checkbox that means "opted out".

    Raises:
        SourceUnavailable: the name does not tell what a tick means, and the wrong value would be consent.
    """
    plain = name.removesuffix("__c").replace("_", "").lower()
    if not FIELD.fullmatch(name):
        raise SourceUnavailable("This is no name of a field in Salesforce, so no opt-out can be written to it.")
    out, into = re.search("optedout|optout|donot|unsubscri", plain), re.search("optedin|optin", plain)
    if bool(out) == bool(into):
        raise SourceUnavailable(
            f"Bridge cannot tell whether a tick in '{name}' means yes or no, so it writes no opt-out there. Name "
            "a field with 'OptOut' or 'OptIn' in its name."
        )
    return bool(out)


# --- queries ---------------------------------------------------------------------------------------------


def _select(columns: Sequence[str], where: str, rest: str = "") -> str:
    """Return a query. All that is put into one was looked at letter by letter: names, ids and moments."""
    parts = ["SELECT", ", ".join(columns), "FROM Contact", where and f"WHERE {where}", rest]
    return " ".join(filter(None, parts))


def _columns(names: Sequence[str]) -> list[str]:
    """Return what to ask for: each field once, whatever the case of its letters; nothing that is no name."""
    columns = {name.lower(): name for name in sorted(names) if FIELD.fullmatch(name)}
    return [*(columns | {"id": "Id", CHANGED_AT.lower(): CHANGED_AT}).values()]


def _literal(at: datetime) -> str:
    """Return a moment for a query, cut to the second as Salesforce cuts the times of its records."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _place_behind(records: Sequence[Read]) -> str:
    if not records or (version := records[-1].version) is None:
        raise BatchUnreadable("Salesforce's answer is an empty page of contacts that is not the last one.")
    at = version.occurred_at
    milliseconds = at.microsecond // 1000
    return place_of(at=f"{at:%Y-%m-%dT%H:%M:%S}.{milliseconds:03}Z", id=records[-1].key.source_id)


def _id_of(value: Any) -> str:
    """Return the 18 characters of a contact's id, "" where *value* is none."""
    try:
        return full_id(value, CONTACT, "id")
    except Unclear:
        return ""


# --- values ----------------------------------------------------------------------------------------------


def _values(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Value]:
    """Return the named fields that the record holds; null is an empty one, and one that is absent says nothing.

    To Salesforce the names are the same in any case of letters. What consists of parts is left out.
    """
    held = {name.lower(): value for name, value in record.items()}
    texts = {name: _as_text(held[name.lower()]) for name in names if name.lower() in held}
    return {name: text for name, text in texts.items() if text is not None}


def _as_text(value: Any) -> str | None:
    """Return a value as messages have it: all of it text, and times with a Z."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"{match[1]}Z" if (match := _OFFSET.fullmatch(value)) else value
    return json.dumps(value) if isinstance(value, bool | int | float) else None
