"""Copper's API: people one by one and in the order of last change, subscriptions, and custom fields.

https://developer.copper.com
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bridge.errors import BadPayload, SourceUnavailable
from bridge.model import RecordKey, Value, Version
from bridge.outbound import Api, Reply, segment
from bridge.signing import EPOCH
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, object_of
from bridge.sources.discreet import discreetly
from bridge.sources.paging import Page, page_by_time, read_id
from bridge.sources.reading import Unclear, moment, read_json, record_id, short, text_or_none
from bridge.sources.shown import HEADER

PAGE_SIZE = 200
EVENTS = {"new": "new people", "update": "updated people", "delete": "deleted people"}
WAYS = {
    # the list in Copper: the field in rules, where the way stands in an entry, Copper's categories
    "emails": ("email", "email", ("work", "personal", "other")),
    "phone_numbers": ("phone", "number", ("mobile", "work", "home", "other")),
}
ADDRESS = ("street", "city", "state", "postal_code", "country")
_CUSTOM = re.compile(r"cf_([0-9]{1,18})")


def flat(name: str, value: Any) -> dict[str, Value]:
    """Return the fields of rules that an attribute of a person comes to.

    Nothing is returned where it has another shape than Copper's: that would read as cleared.
    """
    if name in WAYS:
        return _ways(name, value)
    if name == "custom_fields":
        entries = map(object_of, value if isinstance(value, list) else ())
        numbers = ((text_or_none(one.get("custom_field_definition_id")), one) for one in entries)
        return {f"cf_{number}": one["value"] for number, one in numbers if number and "value" in one}
    if name == "address":
        parts = dict.fromkeys(ADDRESS) if value is None else value
        return (
            {f"address_{part}": parts[part] for part in ADDRESS if part in parts}
            if isinstance(parts, dict)
            else {}
        )
    if name in {"websites", "socials"}:
        urls = [object_of(one).get("url") for one in value] if isinstance(value, list) else [None]
        return {name: urls} if all(isinstance(url, str) for url in urls) else {}
    if name == "id":
        return {name: text_or_none(value)}
    return {name: value}


def _ways(listed: str, value: Any) -> dict[str, Value]:
    """Return the ways to reach a person: the first, all, and the first of each category."""
    name, part, categories = WAYS[listed]
    entries = [] if value is None else value
    if not isinstance(entries, list) or not all(isinstance(object_of(one).get(part), str) for one in entries):
        return {}
    ways = [one for one in entries if one[part].strip()]
    labelled = {
        f"{name}_{category}": next((one[part] for one in ways if one.get("category") == category), "")
        for category in categories
    }
    return {name: ways[0][part] if ways else "", f"{name}s": [one[part] for one in ways], **labelled}


@dataclass(frozen=True)
class Account:
    """One account, by the API key of one of its users."""

    name: str
    key: str = field(repr=False)
    user_email: str
    secrets: Sequence[str] = field(repr=False)  # what notifications show
    opt_out_value: bool | str = True

    @property
    def _caller(self) -> Caller:
        headers = {
            "X-PW-AccessToken": self.key,
            "X-PW-Application": "developer_api",
            "X-PW-UserEmail": self.user_email,
        }
        return Caller("Copper", self.name, headers)

    # --- people ------------------------------------------------------------------------------------------

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. A call for each: searches may be behind, and what is read here was just changed."""
        reads: dict[RecordKey, Read] = {}
        trouble = ""
        for key in dict.fromkeys(keys):
            if trouble:
                reads[key] = Read(key, key, None, None, problem=trouble)
                continue
            try:
                reads[key] = self._read_one(api, key, fields)
            except BatchUnreadable as error:
                reads[key] = Read(key, key, None, None, problem=str(error))
            except SourceUnavailable as error:
                if not reads:
                    raise
                trouble = str(error)  # what was learnt of the others so far is kept
                reads[key] = Read(key, key, None, None, problem=trouble)
        return [reads[key] for key in keys]

    def _read_one(self, api: Api, key: RecordKey, fields: Sequence[str]) -> Read:
        reply = self._caller.call(api, "GET", f"/people/{segment(key.source_id)}", expected=(200, 404))
        if reply.status == 404:
            return Read(key, key, None, None)
        person = object_of(_json(reply))
        if text_or_none(person.get("id")) != key.source_id:
            raise BatchUnreadable("Copper's answer is not the person that was asked for.")
        return _as_read(key, person, fields, read_id(reply))

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`. Each page begins at the last change that was seen, so that no number grows large."""

        def fetch(floor: datetime | None, number: int) -> Page:
            search = {
                "page_size": PAGE_SIZE,
                "page_number": number,
                "sort_by": "date_modified",
                "sort_direction": "asc",
                **({"minimum_modified_date": int((floor - EPOCH).total_seconds())} if floor else {}),
            }
            reply = self._caller.call(api, "POST", "/people/search", json=search)
            people = _json(reply)
            if not isinstance(people, list):
                raise BatchUnreadable("Copper's answer is no list of people.")
            total = reply.headers.get("x-pw-total", "")
            return Page(
                self._records(people, fields, reply), int(total) if re.fullmatch("[0-9]{1,9}", total) else None
            )

        return page_by_time(fetch, after, since, chooses=True, title="Copper")

    def _records(self, people: Sequence[Any], fields: Sequence[str], reply: Reply) -> list[Read]:
        event_id = read_id(reply, "list")
        records = []
        for person in map(object_of, people):
            try:
                key = RecordKey(self.name, record_id(person.get("id"), "id"))
            except Unclear as error:
                raise BatchUnreadable("Copper lists a person without an id.") from error
            records.append(_as_read(key, person, fields, event_id))
        return records

    # --- subscriptions -----------------------------------------------------------------------------------

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`. Three subscriptions: of each, Copper tells one kind of event."""
        wanted = {"headers": {HEADER: self.secrets[0]}, "secret": {"bridge_token": self.secrets[0]}}
        own = [one for one in self._subscriptions(api, url) if one.get("type") == "person"]
        done = []
        for event, whom in EVENTS.items():
            found = next((one for one in own if one.get("event") == event), None)
            if found is None:
                made = {"target": url, "type": "person", "event": event, **wanted}
                self._call(api, "POST", "/webhooks", made)
                done.append(f"Copper now tells of {whom}: a subscription was made.")
            elif all(found.get(name) == value for name, value in wanted.items()):
                done.append(f"Copper tells of {whom} already: subscription {_number(found)} is as it should be.")
            else:
                # What it shows is another token, or Copper does not say.
                self._call(api, "PUT", f"/webhooks/{_number(found)}", {"target": url, **wanted})
                done.append(
                    f"Copper tells of {whom}: subscription {_number(found)} now shows the first of the secrets."
                )
        return Registration(done)

    def remove(self, api: Api, url: str) -> Sequence[str]:
        done = []
        for one in self._subscriptions(api, url):
            number = _number(one)
            self._caller.call(api, "DELETE", f"/webhooks/{number}", expected=(200, 204, 404))
            done.append(f"Subscription {number} of Copper was removed.")
        return done

    def _subscriptions(self, api: Api, url: str) -> list[Mapping[str, Any]]:
        """Return the subscriptions that lead to *url*."""
        found = _json(self._call(api, "GET", "/webhooks"))
        if not isinstance(found, list):
            raise BatchUnreadable("Copper's answer is no list of subscriptions.")
        return [one for one in map(object_of, found) if one.get("target") == url]

    def _call(self, api: Api, method: str, path: str, body: Any = None) -> Reply:
        """Make a call of which nothing is kept: subscriptions hold the token that proves their notifications."""
        with discreetly(api):
            return self._caller.call(api, method, path, json=body, expected=(200, 201))

    # --- writing -----------------------------------------------------------------------------------------

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`. Only custom fields are written: of those the account's people know the meaning."""
        custom = _CUSTOM.fullmatch(name)
        if custom is None:
            raise SourceUnavailable(
                f"'{short(name)}' is no custom field of Copper (cf_ and its number), and an opt-out is written "
                "into nothing else."
            )
        text = self.opt_out_value
        value = int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,18}", text) else text
        entry = {"custom_field_definition_id": int(custom[1]), "value": value}
        path, body = f"/people/{segment(source_id)}", {"custom_fields": [entry]}
        reply = self._caller.call(api, "PUT", path, json=body, expected=(200, 204))
        written = flat("custom_fields", object_of(reply.json_or_none()).get("custom_fields"))
        if name in written and written[name] not in (value, [value]):
            raise SourceUnavailable(f"Copper took the opt-out, but '{short(name)}' does not hold it afterwards.")


def _as_read(key: RecordKey, person: Mapping[str, Any], fields: Sequence[str], event_id: str) -> Read:
    try:
        at = moment(person.get("date_modified"), "date_modified")
    except Unclear:
        problem = "Copper's answer does not say when the person was last changed."
        return Read(key, key, None, None, problem=problem)
    said: dict[str, Value] = {}
    for name, value in person.items():
        said |= flat(name, value)
    # Null: it is empty. Absent: Copper has no such field, or the key's user may not see it.
    return Read(key, key, {name: said[name] for name in fields if name in said}, Version(at, event_id))


def _json(reply: Reply) -> Any:
    """Return what an answer says; as strict as with webhooks, for it goes where those go."""
    try:
        return read_json(reply.body)
    except BadPayload as error:
        raise BatchUnreadable("Copper's answer is not JSON that bridge can read.") from error


def _number(subscription: Mapping[str, Any]) -> str:
    try:
        return record_id(subscription.get("id"), "id")
    except Unclear as error:
        raise BatchUnreadable("Copper lists a subscription without its number.") from error
