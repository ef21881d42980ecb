"""Calls to one ActiveCampaign account: contacts, webhooks and opt-outs. The base of all paths is its ``/api/3``.

https://developers.activecampaign.com/reference/overview
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NoReturn

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Value, Version
from bridge.outbound import Api, Query, segment
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.reading import Unclear, moment, record_id, short, text_or_none

TITLE = "ActiveCampaign"
PAGE = 100  # the most that a list gives at once
PAGES_MAX = 100  # of fields or webhooks: a list that goes on for longer makes no sense

SUBSCRIBED, UNSUBSCRIBED = "subscribed", "unsubscribed"
STATUSES = {"0": "unconfirmed", "1": SUBSCRIBED, "2": UNSUBSCRIBED, "3": "bounced"}
IN_ORDER = (SUBSCRIBED, "unconfirmed", UNSUBSCRIBED, "bounced")  # what counts of several lists, the first of these

# What `register` asks for. The account's API is no source: what bridge itself writes would come back.
EVENTS = ("subscribe", "update", "unsubscribe", "contact_tag_added", "contact_tag_removed", "sms_unsub")
SOURCES = ("public", "admin", "system")

# By what webhooks, and so rules, call them: what the API calls them. Tags have no names there, only numbers.
OWN_FIELDS = {
    "id": "id",
    "email": "email",
    "phone": "phone",
    "first_name": "firstName",
    "last_name": "lastName",
    "orgname": "orgname",
}
BESIDE: Sequence[tuple[str, str | int]] = (("include", "fieldValues,contactLists"),)
ANSWERS = ("true", "yes", "1")  # an option of a custom field that says so, by its value or label
MULTIPLE = frozenset({"checkbox", "listbox", "multiselect"})
CHOICES = MULTIPLE | {"dropdown", "radio"}

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Account:
    """Reads and lists contacts, registers webhooks and writes opt-outs, with one key.

    Five calls a second are allowed to all integrations of an account together, and a valid key is refused (403)
    now and then: both end in `SourceUnavailable`, and the call is made again later.
    """

    source: str  # the connection's name
    caller: Caller

    # --- reading ---

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. Whom the list by ids leaves out is read alone: only that tells for sure."""
        asked = list(dict.fromkeys(key.source_id for key in keys))
        if not asked:
            return []
        names = self._names(api, fields)
        query = [*BESIDE, ("status", -1), ("limit", len(asked)), *(("ids[]", one) for one in asked)]
        found = {read.key.source_id: read for read in self._contacts(api, query, names)[0]}
        for source_id in asked:
            if source_id not in found or found[source_id].problem:
                found[source_id] = self._read_one(api, source_id, names)
        return [found[key.source_id] for key in keys]

    def _read_one(self, api: Api, source_id: str, names: Mapping[str, str]) -> Read:
        key = RecordKey(self.source, source_id)
        path = f"/contacts/{segment(source_id)}"
        try:
            answer = self._json(api, "GET", path, query=BESIDE, expected=(200, 404))
        except BatchUnreadable as error:
            return Read(key, key, None, None, problem=str(error))
        row = answer.get("contact")
        if answer and not (isinstance(row, dict) and str(row.get("id")) == source_id):
            return Read(key, key, None, None, problem=f"{TITLE}'s answer is not the contact that was asked for.")
        return _as_read(key, object_of(row), answer, names) if answer else Read(key, key, None, None)

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`: by growing ids, so that it matters to no page what was deleted before it.

        *since* is taken as a day, two days earlier: in which time zone the account reads it, and whether days or
        moments are compared, is not documented.
        """
        last: int = parts_of(after).get("id", 0)
        query = [*BESIDE, ("status", -1), ("limit", PAGE), ("orders[id]", "ASC"), ("id_greater", last)]
        if since is not None:
            query.append(("filters[updated_after]", (since - timedelta(days=2)).date().isoformat()))
        names = self._names(api, fields)
        reads, meta = self._contacts(api, query, names)
        ids = [int(read.key.source_id) for read in reads]
        if any(here >= following for here, following in zip([last, *ids], ids, strict=False)):
            raise SourceUnavailable(f"{TITLE} does not list contacts by growing ids, as it was asked to.")
        # Whoever's lists or custom fields are not there is read alone: nobody may be left out.
        whole = [self._read_one(api, read.key.source_id, names) if read.problem else read for read in reads]
        return Listed(
            [read for read in whole if read.fields is not None or read.problem],
            place_of(id=ids[-1]) if ids else None,  # a short page may be the account's own limit
            _count(meta.get("total")) if after is None else None,
        )

    def _contacts(self, api: Api, query: Query, names: Mapping[str, str]) -> tuple[list[Read], Row]:
        """Return the contacts that *query* finds, and what the answer says about itself."""
        answer = self._json(api, "GET", "/contacts", query=query)
        if not isinstance(answer.get("contacts"), list):
            raise BatchUnreadable(f"{TITLE}'s answer is no list of contacts.")
        reads = []
        for row in map(object_of, answer["contacts"]):
            try:
                key = RecordKey(self.source, record_id(row.get("id"), "id"))
            except Unclear as error:
                raise BatchUnreadable(f"{TITLE}'s answer holds a contact without an id.") from error
            reads.append(_as_read(key, row, answer, names))
        return reads, object_of(answer.get("meta"))

    def _names(self, api: Api, fields: Sequence[str]) -> Mapping[str, str]:
        """Return for each of *fields* what the API calls it: custom fields have numbers there, in every call.

        "" is for what it has no name for.
        """
        names = {name: OWN_FIELDS.get(name, "") for name in fields}
        if any(name.startswith("field_") for name in fields):
            for row in self._rows(api, "/fields", "fields"):
                for key in (str(row["id"]), str(row.get("perstag"))):
                    if custom_name(key) in names:
                        names[custom_name(key)] = str(row["id"])
        return names

    # --- webhooks ---

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`. One webhook for all events, of which the account's API is no source."""
        events = self._events(api)
        wanted = {"webhook": {"name": "bridge", "url": url, "events": events, "sources": list(SOURCES)}}
        ours = self._webhooks(api, url)
        if not ours:
            self._json(api, "POST", "/webhooks", json=wanted, expected=(200, 201))
            return Registration(["Created a webhook. What is written over the API does not come back by it."])
        number = str(ours[0]["id"])
        done = f"Webhook {short(number)} is there already, as it should be."
        if not _as_wanted(ours[0], events):
            self._json(api, "PUT", f"/webhooks/{segment(number)}", json=wanted)
            done = f"Changed webhook {short(number)}: its events, sources or list were others."
        # Each further one would send everything once more.
        return Registration([done, *(self._delete(api, row) for row in ours[1:])])

    def remove(self, api: Api, url: str) -> Sequence[str]:
        return [self._delete(api, row) for row in self._webhooks(api, url)]

    def _events(self, api: Api) -> list[str]:
        """Return those of our events that the account's plan has; all of them where it does not say."""
        try:
            answer = self._json(api, "GET", "/webhook/events", expected=(200, 404))
        except BatchUnreadable:
            answer = {}
        known = {str(one) for one in list_of(answer.get("webhookEvents"))} or set(EVENTS)
        return [event for event in EVENTS if event in known] or list(EVENTS)

    def _webhooks(self, api: Api, url: str) -> list[Row]:
        return [row for row in self._rows(api, "/webhooks", "webhooks") if row.get("url") == url]

    def _delete(self, api: Api, row: Row) -> str:
        self._json(api, "DELETE", f"/webhooks/{segment(str(row['id']))}", expected=(200, 204, 404))
        return f"Removed webhook {short(row['id'])}, which led here."

    # --- opting out ---

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`: *name* is ``status`` (every list), ``list_<id>`` or ``field_<id or tag>``."""
        kind, _, number = name.partition("_")
        if name == "status":
            path = f"/contacts/{segment(source_id)}/contactLists"
            for row in map(object_of, list_of(self._json(api, "GET", path).get("contactLists"))):
                if str(row.get("status")) in {"0", "1"} and _by_mail(row):
                    self._unsubscribe(api, source_id, str(row.get("list")))
        elif kind == "list" and number.isascii() and number.isdigit():
            self._unsubscribe(api, source_id, number)
        elif kind == "field":
            self._say_yes(api, source_id, name)
        else:
            _cannot_write(name)

    def _unsubscribe(self, api: Api, source_id: str, list_id: str) -> None:
        row = {"list": list_id, "contact": source_id, "status": 2}
        self._json(api, "POST", "/contactLists", json={"contactList": row}, expected=(200, 201))

    def _say_yes(self, api: Api, source_id: str, name: str) -> None:
        """Write "true" into a custom field, or the option of it that says so."""
        for answer in self._pages(api, "/fields", "fields"):
            for row in map(object_of, list_of(answer.get("fields"))):
                number = str(row.get("id"))
                if name in {custom_name(number), custom_name(str(row.get("perstag")))}:
                    text = _yes(str(row.get("type")), number, answer) or _cannot_write(name)
                    said = {"contact": {"fieldValues": [{"field": number, "value": text}]}}
                    self._json(api, "PUT", f"/contacts/{segment(source_id)}", json=said)
                    return
        _cannot_write(name)

    # --- calling ---

    def _rows(self, api: Api, path: str, key: str) -> Iterator[Row]:
        for answer in self._pages(api, path, key):
            yield from (row for row in map(object_of, answer[key]) if row.get("id") is not None)

    def _pages(self, api: Api, path: str, key: str) -> Iterator[Row]:
        """Yield the answers that have the parts of a list under *key*."""
        seen = 0
        for _ in range(PAGES_MAX):
            answer = self._json(api, "GET", path, query={"limit": PAGE, "offset": seen})
            if not isinstance(answer.get(key), list):
                raise BatchUnreadable(f"{TITLE}'s answer is no list of {key}.")
            yield answer
            seen += len(answer[key])
            total = _count(object_of(answer.get("meta")).get("total"))
            if not answer[key] or (total is not None and seen >= total):
                return
        raise SourceUnavailable(f"A list of {TITLE} has no end.")

    def _json(self, api: Api, method: str, path: str, **named: Any) -> Row:
        """Return the object that is answered; an empty one for a 404 that was expected."""
        reply = self.caller.call(api, method, path, **named)
        if reply.status == 404 or (method == "DELETE" and not reply.body.strip()):
            return {}
        if reply.content_type == "text/html" or reply.body.lstrip()[:1] == b"<":
            raise SourceUnavailable(
                f"{TITLE} answers {self.source} with a web page instead of data: base_url or api_key is wrong. "
                "Bridge tries again by itself."
            )
        body = reply.json_or_none()
        if not isinstance(body, dict):
            raise BatchUnreadable(f"{TITLE}'s answer is not JSON that makes sense.")
        return body


def custom_name(key: str) -> str:
    """Return what rules call a custom field: by its number, or by its personalization tag."""
    return f"field_{key.strip('%').lower()}"


def several(text: str) -> Value:
    """Return a value of a custom field; ``||a||b||`` is a list."""
    if text.startswith("||") and text.endswith("||"):
        return [part for part in text.split("||") if part] or ""
    return text


# --- a contact -------------------------------------------------------------------------------------------


def _as_read(key: RecordKey, row: Row, answer: Row, names: Mapping[str, str]) -> Read:
    """Return what a contact's *row* says, with the rows about it that stand beside it in the *answer*."""
    email = text_or_none(row.get("email")) or ""
    if "1" in {str(row.get("deleted")), str(row.get("anonymized"))} or email.startswith("deleted+"):
        return Read(key, key, None, None)
    values = _about(row, answer, "fieldValues", key.source_id)
    lists = _about(row, answer, "contactLists", key.source_id)
    said: dict[str, Value] = {}
    for name, theirs in names.items():
        if name in OWN_FIELDS and theirs in row and isinstance(row[theirs], str | None):
            said[name] = row[theirs] or ""
        elif name.startswith("field_") and theirs:
            if values is None:
                return Read(key, key, None, None, problem=f"{TITLE}'s answer lacks the contact's custom fields.")
            # A field without a value is left out, or null.
            found = next((one.get("value") for one in values if str(one.get("field")) == theirs), None)
            if isinstance(found, str | None):
                said[name] = several(found or "")
        elif name == "status" or name.startswith("list_"):
            if lists is None:
                return Read(key, key, None, None, problem=f"{TITLE}'s answer lacks the contact's lists.")
            said[name] = _status(lists, name.removeprefix("list_") if name != "status" else None)
    changed = sorted(_moments([row, *(values or ())]))
    if not changed:
        return Read(key, key, None, None, problem=f"{TITLE} does not say when the contact was last changed.")
    # Leaving a list may be no change of the contact: of two readings with one time that with the opt-out counts.
    order = "read:1" if UNSUBSCRIBED in said.values() else "read:0"
    return Read(key, key, said, Version(changed[-1], order))


def _about(row: Row, answer: Row, part: str, source_id: str) -> list[Row] | None:
    """Return the rows about one contact that stand under *part*; None where they are not all there."""
    if not isinstance(answer.get(part), list):
        return None
    rows = [one for one in map(object_of, answer[part]) if str(one.get("contact")) == source_id]
    named = {str(one) for one in list_of(row.get(part)) if isinstance(one, str | int)}
    return rows if named <= {str(one.get("id")) for one in rows} else None


def _status(lists: Sequence[Row], number: str | None) -> str:
    """Return what a person is on the list with this *number*, or (None) on all; "" where on none.

    Who left one list and is on no other is unsubscribed.
    """
    rows = [one for one in lists if _by_mail(one) and number in {None, str(one.get("list"))}]
    told = {STATUSES.get(str(one.get("status"))) for one in rows}
    return next((word for word in IN_ORDER if word in told), "")


def _by_mail(row: Row) -> bool:
    """Say whether a subscription is to mail; some are to text messages."""
    return row.get("channel") in {None, "", "email"}


def _moments(rows: Sequence[Row]) -> Iterator[datetime]:
    for row in rows:
        try:
            yield moment(row.get("udate"), "udate")
        except Unclear:
            continue


def _count(value: Any) -> int | None:
    text = text_or_none(value) or ""
    return int(text[:12]) if text.isascii() and text.isdigit() else None


# --- answers to a field ----------------------------------------------------------------------------------


def _yes(kind: str, number: str, answer: Row) -> str:
    """Return what a custom field takes for yes; "" where it takes nothing of the kind."""
    if kind in {"date", "datetime"}:
        return ""
    if kind not in CHOICES:
        return ANSWERS[0]
    for option in map(object_of, list_of(answer.get("fieldOptions"))):
        words = {str(option.get(part)).casefold() for part in ("value", "label")}
        if str(option.get("field")) == number and words & set(ANSWERS):
            text = str(option.get("value"))
            return f"||{text}||" if kind in MULTIPLE else text
    return ""


def _cannot_write(name: str) -> NoReturn:
    raise SourceUnavailable(
        f"{TITLE} has nothing called '{short(name)}' that can say that a person opted out. There are 'status', "
        "'list_<id>', and 'field_<id>' of a text or of a choice that has 'Yes'."
    )


def _as_wanted(row: Row, events: Sequence[str]) -> bool:
    told = {str(one) for one in list_of(row.get("events"))}
    sources = {str(one) for one in list_of(row.get("sources"))}
    return told >= set(events) and sources == set(SOURCES) and str(row.get("listid") or "0") == "0"
