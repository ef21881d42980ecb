"""Close's API: contacts read one by one, listed by the time they were made, and what sends webhooks.

https://developer.close.com/api
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret, Version
from bridge.outbound import Api, segment
from bridge.signing import EPOCH
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.close.shape import (
    CUSTOM,
    close_id,
    contact_fields,
    lead_fields,
    of_contact,
    of_lead,
    utc_moment,
    wants_lead,
)
from bridge.sources.reading import Unclear, short

PAGE = 100
READ_PAGE = 25  # where each contact, and its lead, is a call of its own
HOOKS = "/api/v1/webhook/"
MOST_HOOKS = 1000  # of an organisation; Close allows 40, or 500
SECOND = timedelta(seconds=1)
NO_CONTACT = "Close's answer is not a contact."
NO_TIME = "Close's answer does not say when the contact was last changed."
OTHER_ORDER = "Close's answer is not in the order that was asked for."


def caller(connection: str, key: Secret) -> Caller:
    """Return who calls Close: the API key is the user of HTTP Basic, and there is no password."""
    login = base64.b64encode(f"{key.reveal().strip()}:".encode()).decode()
    return Caller("Close", connection, {"Authorization": f"Basic {login}"}, "an API key of an administrator")


# --- reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads contacts, each with its lead where a rule asks for something of the lead."""

    caller: Caller

    def read(self, api: Api, keys: Sequence[RecordKey], names: Collection[str]) -> list[Read]:
        """Return one `Read` for each key. Close has no call for several contacts."""
        leads: dict[str, Mapping[str, Any] | None] = {}
        reads = {key: self._read(api, key, names, leads) for key in dict.fromkeys(keys)}
        return [reads[key] for key in keys]

    def _read(
        self, api: Api, key: RecordKey, names: Collection[str], leads: dict[str, Mapping[str, Any] | None]
    ) -> Read:
        try:
            contact = self._fetch(api, f"/api/v1/contact/{segment(key.source_id)}/", of_contact(names))
            if contact is None:
                return Read(key, key, None, None)
            return self.as_read(api, contact, names, leads, key)
        except BatchUnreadable as error:
            return Read(key, key, None, None, problem=str(error))

    def as_read(
        self,
        api: Api,
        contact: Mapping[str, Any],
        names: Collection[str],
        leads: dict[str, Mapping[str, Any] | None],
        asked: RecordKey | None = None,
    ) -> Read:
        """Return *contact* as what was read. *leads* holds the leads that were read before, by their id.

        What was read is true since the later of two moments: when the contact, and when its lead was changed.

        Raises:
            BatchUnreadable: it is no contact, or does not say when it was changed.
        """
        try:
            key = RecordKey(self.caller.connection, close_id(contact.get("id"), "id"))
        except Unclear as error:
            raise BatchUnreadable(NO_CONTACT) from error
        lead = self._lead(api, contact, names, leads) if wants_lead(names) else None
        try:
            changed_at = utc_moment(contact.get("date_updated"), "date_updated")
            if lead is not None:
                changed_at = max(changed_at, utc_moment(lead.get("date_updated"), "date_updated"))
        except Unclear as error:
            raise BatchUnreadable(NO_TIME) from error
        known = {**lead_fields(lead or {}), **contact_fields(contact)}
        said = {name: known[name] for name in names if name in known}
        account = contact.get("organization_id")
        return Read(
            asked or key,
            key,
            said,
            Version(changed_at, "read"),
            account=account if isinstance(account, str) and account else None,
        )

    def _lead(
        self,
        api: Api,
        contact: Mapping[str, Any],
        names: Collection[str],
        leads: dict[str, Mapping[str, Any] | None],
    ) -> Mapping[str, Any] | None:
        try:
            lead_id = close_id(contact.get("lead_id"), "lead_id")
        except Unclear:
            return None
        if lead_id not in leads:
            leads[lead_id] = self._fetch(api, f"/api/v1/lead/{segment(lead_id)}/", of_lead(names))
        return leads[lead_id]

    def _fetch(self, api: Api, path: str, wanted: Sequence[str]) -> Mapping[str, Any] | None:
        """Return an object with what is *wanted* of it, None where Close knows none.

        Close does not say what it makes of a name that it does not know. If it refuses, everything is asked for.
        """
        found = (200, 404)
        try:
            reply = self.caller.call(api, "GET", path, query={"_fields": ",".join(wanted)}, expected=found)
        except BatchUnreadable:
            reply = self.caller.call(api, "GET", path, expected=found)
        if reply.status == 404:
            return None
        value = reply.json_or_none()
        if not isinstance(value, dict):
            raise BatchUnreadable(NO_CONTACT)
        return value


# --- listing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CloseLister:
    """Lists contacts by the second in which they were made, or last changed.

    A search ends at 10,000 results and its cursor after half a minute, so every page is a search of its own that
    begins with the second in which the page before ended. Those of that second come again.

    A search may be some seconds behind what is so. What it tells of a contact is as old as it says; but together
    with a lead that was read just now it would look new, so then the contact is read as well.
    """

    reader: Reader

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        place = parts_of(after)
        by = "date_updated" if since else "date_created"
        begin = utc_moment(place["at"], "place") if place else (since or EPOCH).replace(microsecond=0)
        rows: list[Mapping[str, Any]] = []
        total: int | None = None
        cursor: str | None = None
        while True:
            found = self._search(api, fields, by, begin, cursor, count=not place and cursor is None)
            total = _total(found) if cursor is None else total
            some = [object_of(row) for row in list_of(found.get("data"))]
            ended = _in_order(rows[-1:] + some, by, begin)
            rows += some
            before, cursor = cursor, found.get("cursor") or None
            onward = ended >= begin + SECOND
            if not some or (cursor is None and not (onward and len(some) >= _size(fields))):
                return self._listed(api, rows, fields, None, total)
            if onward:
                at = ended.replace(microsecond=0).isoformat()
                return self._listed(api, rows, fields, place_of(at=at), total)
            # All of them are of the second that the page began with: what is left of it is in this search only.
            if not isinstance(cursor, str) or cursor == before:
                raise BatchUnreadable(OTHER_ORDER)

    def _search(
        self, api: Api, fields: Sequence[str], by: str, begin: datetime, cursor: str | None, *, count: bool
    ) -> Mapping[str, Any]:
        field = {"type": "regular_field", "object_type": "contact", "field_name": by}
        moments = {"type": "fixed_utc", "value": begin.astimezone(UTC).isoformat()}
        search: dict[str, Any] = {
            "query": {
                "type": "and",
                "queries": [
                    {"type": "object_type", "object_type": "contact"},
                    {
                        "type": "field_condition",
                        "field": field,
                        "condition": {"type": "moment_range", "on_or_after": moments},
                    },
                ],
            },
            "sort": [{"direction": "asc", "field": field}],
            "_limit": _size(fields),
            **({"cursor": cursor} if cursor else {}),
        }
        wanted = {"_fields": {"contact": ["id", by] if wants_lead(fields) else sorted({by, *of_contact(fields)})}}
        path = "/api/v1/data/search/"
        try:
            more = {**wanted, **({"include_counts": True} if count else {})}
            return object_of(self.reader.caller.json(api, "POST", path, json={**search, **more}))
        except BatchUnreadable:
            # A name that Close does not know, perhaps: then the contacts are read one by one.
            bare = {**search, "_fields": {"contact": ["id", by]}}
            return object_of(self.reader.caller.json(api, "POST", path, json=bare))

    def _listed(
        self,
        api: Api,
        rows: Iterable[Mapping[str, Any]],
        fields: Sequence[str],
        after: str | None,
        total: int | None,
    ) -> Listed:
        reads: dict[RecordKey, Read] = {}
        alone: list[RecordKey] = []
        for row in rows:
            try:
                key = RecordKey(self.reader.caller.connection, close_id(row.get("id"), "id"))
            except Unclear as error:
                raise BatchUnreadable(NO_CONTACT) from error
            if "lead_id" not in row:  # as it was not asked for
                alone.append(key)
                continue
            try:
                reads[key] = self.reader.as_read(api, row, fields, {})
            except BatchUnreadable as error:
                reads[key] = Read(key, key, None, None, problem=str(error))
        read_alone = self.reader.read(api, alone, fields)
        reads |= {read.key: replace(read, asked=read.key) for read in read_alone}
        # One that was deleted since it was found is none of the list.
        there = [read for read in reads.values() if read.fields is not None or read.problem]
        return Listed(there, after, total)


def _size(fields: Sequence[str]) -> int:
    return READ_PAGE if wants_lead(fields) else PAGE


def _in_order(rows: Sequence[Mapping[str, Any]], by: str, begin: datetime) -> datetime:
    """Return the moment of the last row.

    Raises:
        BatchUnreadable: they are not in the order of their moments, so that some might be left out unseen.
    """
    at = begin
    for row in rows:
        try:
            later = utc_moment(row.get(by), by)
        except Unclear as error:
            raise BatchUnreadable(f"Close's answer does not tell the {by} of its contacts.") from error
        if later < at:
            raise BatchUnreadable(OTHER_ORDER)
        at = later
    return at


def _total(found: Mapping[str, Any]) -> int | None:
    total = object_of(found.get("count")).get("total")
    return total if isinstance(total, int) and not isinstance(total, bool) and total >= 0 else None


# --- subscriptions ---------------------------------------------------------------------------------------

OF_CONTACTS = frozenset({("contact", "created"), ("contact", "updated"), ("contact", "deleted")})
OF_LEADS = frozenset({("lead", "created"), ("lead", "updated"), ("lead", "merged")})


@dataclass(frozen=True, slots=True)
class CloseRegistrar:
    """Subscribes to what happens to contacts, and to leads where a rule reads a field of the lead."""

    caller: Caller

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        wanted = OF_CONTACTS | (OF_LEADS if wants_lead(fields) else frozenset())
        ours = self._ours(api, url)
        if any(_covers(hook, wanted) for hook in ours):
            return Registration(["Close sends to this URL already; nothing was changed."])
        if ours:
            body = {"events": _events(wanted | _subscribed(ours[0])), "status": "active"}
            self.caller.call(api, "PUT", f"{HOOKS}{segment(ours[0]['id'])}/", json=body)
            return Registration(
                ["The subscription that leads to this URL was brought up to date. Its key is the one it had."]
            )
        body = {"url": url, "events": _events(wanted)}
        made = object_of(self._confidential(api, "POST", HOOKS, json=body, expected=(200, 201)))
        key = made.get("signature_key")
        if not isinstance(key, str) or not _is_hex(key):
            raise SourceUnavailable(
                "Close made the subscription, but did not tell its signature key. Delete it in Close, and "
                "register again."
            )
        done = "Close sends what happens to contacts to this URL. It tells the signature key now and never again."
        return Registration([done], secrets={"secrets": Secret(key)})

    def remove(self, api: Api, url: str) -> Sequence[str]:
        ours = self._ours(api, url)
        for hook in ours:
            self.caller.call(api, "DELETE", f"{HOOKS}{segment(hook['id'])}/", expected=(200, 204, 404))
        return ["A subscription of Close that led to this URL was removed." for _ in ours]

    def _ours(self, api: Api, url: str) -> list[Mapping[str, Any]]:
        """Return the subscriptions that lead to *url*, each with an id."""
        hooks: list[Mapping[str, Any]] = []
        while len(hooks) < MOST_HOOKS:
            answer = object_of(
                self._confidential(api, "GET", HOOKS, query={"_limit": PAGE, "_skip": len(hooks)}, expected=(200,))
            )
            some = [object_of(hook) for hook in list_of(answer.get("data"))]
            hooks += some
            if not some or answer.get("has_more") is not True:
                break
        return [hook for hook in hooks if hook.get("url") == url and isinstance(hook.get("id"), str)]

    def _confidential(self, api: Api, method: str, path: str, **named: Any) -> Any:
        """Return the JSON of an answer that may hold a key, and keep none of it."""
        try:
            return self.caller.json(api, method, path, **named)
        finally:
            if api.exchanges:
                api.exchanges[-1] = replace(api.exchanges[-1], response_body="(not kept)")


def _subscribed(hook: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Return what *hook* sends in any case; events that a filter narrows down are not among them."""
    events = [object_of(event) for event in list_of(hook.get("events"))]
    return frozenset(
        (str(event.get("object_type")), str(event.get("action")))
        for event in events
        if not event.get("extra_filter")
    )


def _covers(hook: Mapping[str, Any], wanted: frozenset[tuple[str, str]]) -> bool:
    return hook.get("status", "active") == "active" and wanted <= _subscribed(hook)


def _events(wanted: Collection[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"object_type": thing, "action": action} for thing, action in sorted(wanted)]


def _is_hex(text: str) -> bool:
    try:
        return bool(bytes.fromhex(text.strip()))
    except ValueError:
        return False


# --- writing back ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CloseWriter:
    """Writes an opt-out into a custom field of the contact. Nothing of a lead: it stands for other people, too."""

    caller: Caller
    value: bool | str

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        if not name.startswith(CUSTOM):
            raise SourceUnavailable(
                f"Bridge writes an opt-out into a custom field of the contact only (custom.cf_…), and "
                f"'{short(name)}' is none."
            )
        path = f"/api/v1/contact/{segment(source_id)}/"
        self.caller.call(api, "PUT", path, json={name: self.value})
        # Whether Close refuses a field that it does not know is not said.
        held = object_of(self.caller.json(api, "GET", path)).get(name)
        if held != self.value and not (isinstance(held, list) and self.value in held):
            raise SourceUnavailable(f"Close took the opt-out, but '{short(name)}' does not hold it.")
