"""Calls to one Keap account: contacts, hooks and opt-outs.

https://developer.keap.com/docs/rest/
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Value, Version
from bridge.outbound import Api, segment
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.reading import Unclear, moment, record_id, short, text_or_none

TITLE = "Keap"
BASE = "/crm/rest/v1"
PAGE = 200  # Keap gives up to 1,000; so many whole contacts may be too large an answer
OVERLAP = 20  # contacts that are read again on the next page
CALLS_MAX = 1_000  # for one page
SINCE_OVERLAP = timedelta(minutes=5)
LOOKED_AFTER = timedelta(hours=2)  # hooks that Keap may have made inactive

CONTACT_EVENTS = ("contact.add", "contact.edit", "contact.delete")
TAG_EVENTS = ("contactGroup.applied", "contactGroup.removed")
VERIFIED = "verified"

# As Keap has them, each a text, a number or true or false.
PLAIN = frozenset({
    "anniversary", "birthday", "contact_type", "date_created", "email_opted_in", "email_status", "family_name",
    "given_name", "id", "job_title", "last_updated", "lead_source_id", "middle_name", "notes", "opt_in_reason",
    "owner_id", "preferred_locale", "preferred_name", "prefix", "source_type", "spouse_name", "suffix",
    "time_zone", "website",
})  # fmt: skip
EMAILS = ("email", "email_2", "email_3")
PHONES = ("phone", "phone_2", "phone_3", "phone_4", "phone_5")
KINDS_OF_PHONES = {"phone_mobile": "mobile", "phone_work": "work", "phone_home": "home"}
PARTS = ("line1", "line2", "locality", "region", "zip_code", "country_code")
ADDRESSES = {f"{kind.lower()}_{part}": (kind, part) for kind in ("BILLING", "SHIPPING", "OTHER") for part in PARTS}
COMPANY = {"company_name": "company_name", "company_id": "id"}
KNOWN_FIELDS = (
    *sorted({*PLAIN, *EMAILS, *PHONES, *KINDS_OF_PHONES, *ADDRESSES, *COMPANY}),
    "custom_1",
    "tag_1",
)
_NUMBERED = re.compile(r"(custom|tag)_([1-9][0-9]{0,18})")

# What Keap leaves out unless it is asked for; it refuses to be asked for what it does not know. Of these three the
# documentation says so; which others there are says the account's own model of a contact.
OPTIONAL = frozenset({"custom_fields", "job_title", "lead_source_id"})

Row = Mapping[str, Any]


def is_field(name: str) -> bool:
    """Say whether a contact can have a field of this name."""
    return name in KNOWN_FIELDS or _NUMBERED.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Account:
    """Reads and lists contacts, registers hooks and writes opt-outs, with one key."""

    source: str  # the connection's name
    caller: Caller

    # --- reading ---

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. Keap gives one contact a call; what was read before it had enough is kept."""
        asked = list(dict.fromkeys(key.source_id for key in keys))
        if not asked:
            return []
        query = self._query(api, fields)
        reads: dict[str, Read] = {}
        refused = ""
        for source_id in asked:
            key = RecordKey(self.source, source_id)
            try:
                found = refused or self._read_one(api, key, query, fields)
            except BatchUnreadable as error:
                found = str(error)
            except SourceUnavailable as error:
                if not reads:
                    raise
                found = refused = str(error)
            reads[source_id] = Read(key, key, None, None, problem=found) if isinstance(found, str) else found
        return [reads[key.source_id] for key in keys]

    def _read_one(self, api: Api, key: RecordKey, query: Mapping[str, str], fields: Sequence[str]) -> Read:
        path = f"{BASE}/contacts/{segment(key.source_id)}"
        reply = self.caller.call(api, "GET", path, query=query, expected=(200, 404))
        if reply.status == 404:
            return Read(key, key, None, None)
        row = object_of(reply.json_or_none())
        if text_or_none(row.get("id")) != key.source_id:
            raise BatchUnreadable(f"{TITLE}'s answer is not the contact that was asked for.")
        return _as_read(key, row, fields)

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`.

        Keap counts: a page begins behind so many contacts, in the order of their ids. Whatever is deleted before
        moves the others up, past that beginning. So each page begins among those who were seen, and if it does
        not, further ahead: a page that holds nobody who was seen may lack somebody who was not.
        """
        place = parts_of(after)
        last: int = place.get("id", 0)
        query: dict[str, str | int] = {"order": "id", "order_direction": "ASCENDING", "limit": PAGE}
        query |= self._query(api, fields)
        if since is not None:
            query["since"] = _moment(since - SINCE_OVERLAP)
        offset = max(place.get("seen", 0) - OVERLAP, 0)
        for _ in range(CALLS_MAX):
            rows, total = self._rows(api, query, offset)
            fresh = [(number, row) for number, row in rows if number > last]
            if offset and (not rows or rows[0][0] > last):
                offset = max(offset - PAGE + OVERLAP, 0)
            elif fresh or len(rows) < 2:
                break
            else:  # all were seen: something came in before them
                offset += len(rows) - 1
        else:
            raise SourceUnavailable(f"{TITLE}'s list of contacts changes faster than it can be read.")
        return Listed(
            [_as_read(RecordKey(self.source, str(number)), row, fields) for number, row in fresh],
            place_of(id=fresh[-1][0], seen=offset + len(rows)) if fresh else None,
            total if after is None else None,
        )

    def _rows(
        self, api: Api, query: Mapping[str, str | int], offset: int
    ) -> tuple[list[tuple[int, Row]], int | None]:
        """Return the contacts behind the first *offset* ones, each with its number, and how many there are."""
        answer = object_of(self.caller.json(api, "GET", f"{BASE}/contacts", query={**query, "offset": offset}))
        if not isinstance(answer.get("contacts"), list):
            raise BatchUnreadable(f"{TITLE}'s answer is no list of contacts.")
        try:
            rows = [(int(record_id(row.get("id"), "id")), row) for row in map(object_of, answer["contacts"])]
        except Unclear as error:
            raise BatchUnreadable(f"{TITLE}'s answer holds a contact without an id.") from error
        if any(here >= following for (here, _), (following, _) in pairwise(rows)):
            raise SourceUnavailable(
                f"{TITLE} does not list contacts in the order of their ids, as it was asked to."
            )
        count = answer.get("count")
        return rows, count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None

    def _query(self, api: Api, fields: Sequence[str]) -> dict[str, str]:
        """Return what Keap has to be asked for so that it tells *fields*."""
        wanted = {"custom_fields" if name.startswith("custom_") else name for name in fields}
        wanted = {name for name in wanted if name == "custom_fields" or name in PLAIN}
        if not wanted - OPTIONAL - _ALWAYS:
            told = OPTIONAL
        else:
            model = object_of(self.caller.json(api, "GET", f"{BASE}/contacts/model"))
            told = OPTIONAL | {str(name) for name in list_of(model.get("optional_properties"))}
        names = sorted(wanted & told)
        return {"optional_properties": ",".join(names)} if names else {}

    # --- hooks ---

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`. One hook for each event; one that is not verified is verified now.

        Keap asks the URL a question each time, which whoever serves it answers: see `handshake`. A hook lasts
        until it fails four times within half an hour, and nobody is told: so it is registered again before long.
        """
        wanted = [*CONTACT_EVENTS, *(TAG_EVENTS if any(name.startswith("tag_") for name in fields) else ())]
        known = self._event_keys(api)
        ours = self._hooks(api, url)
        done: list[str] = []
        for event in wanted:
            if known and event not in known:
                done.append(f"{TITLE} has no event {event} in this account; nothing is done for it.")
                continue
            hooks = [hook for hook in ours if hook.get("eventKey") == event]
            done.append(self._put_right(api, url, event, hooks[0] if hooks else None))
            done += [self._delete(api, hook) for hook in hooks[1:]]  # each would send everything once more
        return Registration(done, expires_at=now + LOOKED_AFTER)

    def _put_right(self, api: Api, url: str, event: str, hook: Row | None) -> str:
        if hook is not None and _is_verified(hook):
            return f"The hook for {event} is there already, and verified."
        what = "Verified"
        if hook is None:
            what = "Created"
            made = {"eventKey": event, "hookUrl": url}
            hook = object_of(self.caller.json(api, "POST", f"{BASE}/hooks", json=made, expected=(200, 201)))
        if not _is_verified(hook):
            path = f"{BASE}/hooks/{segment(_key_of(hook))}/verify"
            hook = object_of(self.caller.json(api, "POST", path, expected=(200, 201, 202)))
        if _is_verified(hook):
            return f"{what} the hook for {event}."
        return (
            f"The hook for {event} is not verified yet: {TITLE} asks the URL a question, which bridge answers "
            "wherever it runs and can be reached. Register again in a minute."
        )

    def remove(self, api: Api, url: str) -> Sequence[str]:
        return [self._delete(api, hook) for hook in self._hooks(api, url)]

    def _hooks(self, api: Api, url: str) -> list[Row]:
        hooks = self.caller.json(api, "GET", f"{BASE}/hooks")
        if not isinstance(hooks, list):
            raise BatchUnreadable(f"{TITLE}'s answer is no list of hooks.")
        return [hook for hook in map(object_of, hooks) if hook.get("hookUrl") == url and _key_of(hook)]

    def _event_keys(self, api: Api) -> set[str]:
        """Return the events that there are; none where Keap does not say."""
        try:
            return {str(one) for one in list_of(self.caller.json(api, "GET", f"{BASE}/hooks/event_keys"))}
        except BatchUnreadable:
            return set()

    def _delete(self, api: Api, hook: Row) -> str:
        self.caller.call(api, "DELETE", f"{BASE}/hooks/{segment(_key_of(hook))}", expected=(200, 204, 404))
        return f"Removed the hook {short(_key_of(hook))} for {short(hook.get('eventKey'))}, which led here."

    # --- opting out ---

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`: *name* is ``custom_<id>`` (it becomes "1") or ``tag_<id>`` (it is applied)."""
        named = _NUMBERED.fullmatch(name)
        if named is None:
            raise SourceUnavailable(
                f"{TITLE} lets nobody write '{short(name)}'. An opt-out goes into 'custom_<id>', a custom field "
                "of the type Yes/No, or 'tag_<id>', a tag."
            )
        path, number = f"{BASE}/contacts/{segment(source_id)}", int(named[2])
        if named[1] == "tag":
            self.caller.call(api, "POST", f"{path}/tags", json={"tagIds": [number]}, expected=(200, 201))
        else:
            said = {"custom_fields": [{"id": number, "content": "1"}]}
            self.caller.call(api, "PATCH", path, json=said)


# What a contact holds without being asked for; the rest of `PLAIN` may have to be.
_ALWAYS = frozenset({
    "date_created", "email_opted_in", "email_status", "family_name", "given_name", "id", "last_updated",
    "middle_name", "owner_id",
})  # fmt: skip


def _key_of(hook: Row) -> str:
    return text_or_none(hook.get("key")) or ""


def _is_verified(hook: Row) -> bool:
    return str(hook.get("status")).lower() == VERIFIED


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- a contact -------------------------------------------------------------------------------------------


def _as_read(key: RecordKey, row: Row, fields: Sequence[str]) -> Read:
    """Return what a contact's *row* says of *fields*: nothing of those that it does not mention."""
    told = dict(_told(row, fields))
    changed_at = next(_moments(row.get("last_updated"), row.get("date_created")), None)
    if changed_at is None:
        return Read(key, key, None, None, problem=f"{TITLE} does not say when the contact was last changed.")
    # Leaving the mail may be no change of the contact: of two readings with one time that with the opt-out counts.
    order = "read:1" if row.get("email_opted_in") is False else "read:0"
    return Read(key, key, {name: told[name] for name in fields if name in told}, Version(changed_at, order))


def _told(row: Row, fields: Sequence[str]) -> Iterator[tuple[str, Value]]:
    for name in PLAIN & row.keys():
        if _is_plain(row[name]):
            yield name, row[name]
    yield from _ways(row.get("email_addresses"), "email", "EMAIL", EMAILS)
    yield from _ways(row.get("phone_numbers"), "number", "PHONE", PHONES)
    yield from _phones_by_kind(row.get("phone_numbers"))
    addresses = row.get("addresses")
    if isinstance(addresses, list):
        for name, (kind, part) in ADDRESSES.items():
            found = next((one for one in map(object_of, addresses) if one.get("field") == kind), {part: ""})
            if part in found and _is_plain(found[part]):
                yield name, found[part]
    if "company" in row and isinstance(row["company"], dict | None):
        company = row["company"] or dict.fromkeys(COMPANY.values(), "")
        for name, part in COMPANY.items():
            if part in company and _is_plain(company[part]):
                yield name, company[part]
    for custom in map(object_of, list_of(row.get("custom_fields"))):
        # One that is not in the list may be empty, or not for us to see: nothing is said of it.
        content = custom.get("content")
        if "content" in custom and (_is_plain(content) or _is_list(content)):
            yield f"custom_{custom.get('id')}", content
    tags = row.get("tag_ids")
    if isinstance(tags, list):
        has = {str(tag) for tag in tags}
        for name in fields:
            if name.startswith("tag_"):
                yield name, name.removeprefix("tag_") in has


def _ways(entries: Any, part: str, kind: str, names: Sequence[str]) -> Iterator[tuple[str, Value]]:
    """Yield the ways to reach a person: of all kinds that Keap has of them, empty where there is none.

    Nothing is yielded where the list is missing or of another shape: that would read as cleared.
    """
    if not isinstance(entries, list):
        return
    ways = [object_of(one) for one in entries]
    if not all(isinstance(way.get(part), str | None) and isinstance(way.get("field"), str) for way in ways):
        return
    for number, name in enumerate(names, 1):
        yield name, next((way.get(part) or "" for way in ways if way["field"] == f"{kind}{number}"), "")


def _phones_by_kind(entries: Any) -> Iterator[tuple[str, Value]]:
    if not isinstance(entries, list):
        return
    phones = [object_of(one) for one in entries]
    if not all(isinstance(one.get("number"), str | None) for one in phones):
        return
    for name, kind in KINDS_OF_PHONES.items():
        of_kind = (one.get("number") or "" for one in phones if str(one.get("type")).lower() == kind)
        yield name, next(filter(None, of_kind), "")


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int | None)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_plain, value))


def _moments(*values: Any) -> Iterator[datetime]:
    for value in values:
        try:
            yield moment(value, "last_updated")
        except Unclear:
            continue
