"""HubSpot's API, as far as bridge calls it: reading, listing and writing contacts, and the webhooks of an app.

https://developers.hubspot.com/docs/api/crm/contacts and https://developers.hubspot.com/docs/api/webhooks
"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NoReturn

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret, Version
from bridge.outbound import Api, Reply, segment
from bridge.signing import EPOCH
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import OF_THE_BATCH, Caller, list_of, object_of, parts_of, place_of
from bridge.sources.discreet import discreetly
from bridge.sources.reading import Unclear, moment, text_or_none

CONTACTS = "/crm/v3/objects/contacts"
READ_SCOPE = "crm.objects.contacts.read"
WRITE_SCOPE = "crm.objects.contacts.write"
LISTED = 100  # a page; the most that a list of all gives
CODE = re.compile(r"[A-Z_]{1,60}")
MODIFIED = "lastmodifieddate"
ID = "hs_object_id"


class HubSpotCaller(Caller):
    """Names the scope that is missing, and HubSpot's own word for what was wrong where it gives one."""

    __slots__ = ()

    def refuse(self, reply: Reply) -> NoReturn:
        given = f"the token of {self.connection}" if self.headers else f"the developer key of {self.connection}"
        with_scope = f", with the scope {self.scope}" if self.scope else ""
        if reply.status == 401:
            raise SourceUnavailable(
                f"HubSpot refuses {given} (HTTP 401): it is wrong, was replaced or has run out. "
                f"Bridge tries again by itself; it works once there is a good one{with_scope}."
            )
        if reply.status == 403 and self.scope:
            raise SourceUnavailable(
                f"HubSpot refuses {given} (HTTP 403): the app lacks the scope {self.scope}. "
                "Bridge tries again by itself; it works once the app has it."
            )
        code = text_or_none(object_of(reply.json_or_none()).get("category")) or ""
        if reply.status == 429 or not CODE.fullmatch(code):
            super().refuse(reply)
        unreadable = BatchUnreadable if reply.status in OF_THE_BATCH else SourceUnavailable
        raise unreadable(
            f"HubSpot did not do what was asked (HTTP {reply.status}, {code}). Bridge tries again later.",
            retry_after_s=reply.retry_after_s,
        )


def caller(connection: str, token: Secret, scope: str) -> HubSpotCaller:
    """Return what calls with an access token, which must allow *scope*."""
    return HubSpotCaller("HubSpot", connection, {"Authorization": f"Bearer {token.reveal().strip()}"}, scope)


# --- reading ---------------------------------------------------------------------------------------------


def read(caller: Caller, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
    """See `Source.read`. At most 100 records a call.

    https://developers.hubspot.com/docs/api-reference/crm-contacts-v3/batch/post-crm-v3-objects-contacts-batch-read
    """
    asked = list(dict.fromkeys(key.source_id for key in keys))
    if not asked:
        return []
    names = sorted(set(fields))
    wanted = {
        "properties": names,
        "propertiesWithHistory": [],
        "inputs": [{"id": source_id} for source_id in asked],
    }
    answer = object_of(caller.json(api, "POST", f"{CONTACTS}/batch/read", json=wanted, expected=(200, 207)))
    records = {
        record["id"]: record for record in map(object_of, list_of(answer.get("results"))) if _is_record(record)
    }
    unknown = _not_found(answer)
    reads = {}
    for source_id in asked:
        record = records.get(source_id)
        if record is None and source_id not in unknown:
            # It may have been merged: then HubSpot answers with the survivor, and by position nothing is sure.
            try:
                record = _read_one(caller, api, source_id, names)
            except BatchUnreadable as error:
                key = RecordKey(caller.connection, source_id)
                reads[source_id] = Read(key, key, None, None, problem=str(error))
                continue
        reads[source_id] = _as_read(RecordKey(caller.connection, source_id), record, names)
    return [replace(reads[key.source_id], asked=key) for key in keys]


def _read_one(caller: Caller, api: Api, source_id: str, names: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the record that *source_id* leads to, None where HubSpot knows none.

    Raises:
        BatchUnreadable: it has no usable answer for this one record.
    """
    query = {"properties": ",".join(names)} if names else None
    reply = caller.call(api, "GET", f"{CONTACTS}/{segment(source_id)}", query=query, expected=(200, 404))
    if reply.status == 404:
        return None
    return _record(reply.json_or_none())


def _as_read(asked: RecordKey, record: Mapping[str, Any] | None, names: Collection[str]) -> Read:
    if record is None or record.get("archived") is True:
        return Read(asked, asked, None, None)
    properties = object_of(record.get("properties"))
    try:
        changed_at = moment(record.get("updatedAt") or properties.get(MODIFIED), "updatedAt")
    except Unclear:
        problem = "HubSpot's answer does not say when the contact was last changed."
        return Read(asked, asked, None, None, problem=problem)
    # Null: HubSpot knows the property and it is empty. Absent: there is no such property.
    try:
        said = {name: as_text(properties[name]) for name in names if name in properties}
    except Unclear:
        problem = "HubSpot's answer holds a property that is not a text."
        return Read(asked, asked, None, None, problem=problem)
    return Read(asked, RecordKey(asked.source, record["id"]), said, Version(changed_at, "read"))


def as_text(value: Any) -> str:
    """Return a property's value as HubSpot writes it everywhere: as text, "" where it is empty.

    Raises:
        Unclear: it is none.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return jsonlib.dumps(value)
    raise Unclear("The value of a property is not a text.")


def _is_record(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("id"), str) and isinstance(record.get("properties"), dict)


def _record(value: Any) -> Mapping[str, Any]:
    record = object_of(value)
    if not _is_record(record):
        raise BatchUnreadable("HubSpot's answer is not a contact.")
    return record


def _not_found(answer: Mapping[str, Any]) -> set[str]:
    """Return the ids of which HubSpot says in so many words that it does not know them."""
    found: set[str] = set()
    for error in map(object_of, list_of(answer.get("errors"))):
        if error.get("category") == "OBJECT_NOT_FOUND":
            found.update(str(one) for one in list_of(object_of(error.get("context")).get("ids")))
    return found


# --- listing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContactLister:
    """Lists contacts: all of them in the order of their ids, or those that changed, oldest change first.

    What changed is searched for. A search gives no more than 10,000 contacts, sorts by one property only, and
    counts its pages by position, so that a contact that changes meanwhile shifts all behind it. Therefore every
    page is a search of its own, from the moment at which the last one ended; and where all of a page changed in
    one and the same millisecond, as those of an import do, that millisecond is gone through by id. A search knows
    of a change only some seconds later.
    https://developers.hubspot.com/docs/api/crm/search
    """

    caller: Caller = field(repr=False)

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`."""
        names = sorted(set(fields))
        return self._all(api, names, after) if since is None else self._changed(api, names, after, since)

    def _all(self, api: Api, names: Sequence[str], after: str | None) -> Listed:
        query: dict[str, str | int] = {"limit": LISTED, "archived": "false"}
        if names:
            query["properties"] = ",".join(names)
        if place := parts_of(after).get("after"):
            query["after"] = place
        answer = object_of(self.caller.json(api, "GET", CONTACTS, query=query))
        records, more = _page(answer)
        return Listed(self._reads(records, names), place_of(after=more) if more else None)

    def _changed(self, api: Api, names: Sequence[str], after: str | None, since: datetime) -> Listed:
        place = parts_of(after)
        from_ms = place.get("from_ms", _milliseconds(since))
        among = place.get("among")  # None: of any later moment; else of this one, with a greater id
        filters = [_filter(MODIFIED, "GTE", from_ms)]
        if among is not None:
            filters += [_filter(MODIFIED, "LTE", from_ms), _filter(ID, "GT", among)]
        wanted = {
            "filterGroups": [{"filters": filters}],
            "sorts": [{"propertyName": MODIFIED if among is None else ID, "direction": "ASCENDING"}],
            "properties": sorted({*names, MODIFIED}),
            "limit": LISTED,
        }
        answer = object_of(self.caller.json(api, "POST", f"{CONTACTS}/search", json=wanted))
        records, more = _page(answer)
        if among is None:
            next_place = _next_by_time(records, from_ms, more=bool(more))
        else:
            next_place = _next_by_id(records, from_ms, among, more=bool(more))
        total = answer.get("total") if after is None else None
        return Listed(
            self._reads(records, names),
            next_place,
            total if isinstance(total, int) else None,
        )

    def _reads(self, records: Sequence[Mapping[str, Any]], names: Collection[str]) -> list[Read]:
        return [_as_read(RecordKey(self.caller.connection, record["id"]), record, names) for record in records]


def _page(answer: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str]:
    """Return the records of a page, and where the next one begins: "" where there is none."""
    results = answer.get("results")
    if not isinstance(results, list):
        raise BatchUnreadable("HubSpot's answer is not a list of contacts.")
    more = text_or_none(object_of(object_of(answer.get("paging")).get("next")).get("after")) or ""
    if more and not results:
        raise BatchUnreadable("HubSpot's answer is an empty page, with more behind it.")
    return [_record(one) for one in results], more


def _next_by_time(records: Sequence[Mapping[str, Any]], from_ms: int, *, more: bool) -> str | None:
    if not more:
        return None
    times = [from_ms, *map(_modified_ms, records)]
    _ordered(times)
    if times[1] < times[-1]:
        return place_of(from_ms=times[-1])
    return place_of(from_ms=times[-1], among="0")


def _next_by_id(records: Sequence[Mapping[str, Any]], from_ms: int, among: str, *, more: bool) -> str | None:
    if not more:
        return place_of(from_ms=from_ms + 1)
    ids = [int(one) if one.isdecimal() else -1 for one in (among, *(record["id"] for record in records))]
    _ordered(ids)
    if ids[0] == ids[-1]:
        raise BatchUnreadable("HubSpot's answer is the page before, once again.")
    return place_of(from_ms=from_ms, among=str(ids[-1]))


def _ordered(values: Sequence[int]) -> None:
    """Go on only behind a page that is sorted: else there is no saying what the next one would leave out."""
    if list(values) != sorted(values):
        raise SourceUnavailable(
            "HubSpot's search is not in order, as contacts change while it is read. Bridge asks again later."
        )


def _filter(name: str, operator: str, value: object) -> dict[str, str]:
    return {"propertyName": name, "operator": operator, "value": str(value)}


def _modified_ms(record: Mapping[str, Any]) -> int:
    try:
        return _milliseconds(moment(record["properties"].get(MODIFIED) or record.get("updatedAt"), MODIFIED))
    except Unclear as error:
        raise BatchUnreadable("HubSpot's answer does not say when a contact was last changed.") from error


def _milliseconds(at: datetime) -> int:
    return max(0, (at - EPOCH) // timedelta(milliseconds=1))


# --- writing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContactWriter:
    """Sets one property, a single checkbox of the account's own, to ``true``."""

    caller: Caller = field(repr=False)

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`."""
        if name.startswith("hs_email_optout"):
            raise SourceUnavailable(
                f"HubSpot lets nobody write {name}. Name a single checkbox of your own for the opt-outs."
            )
        path = f"{CONTACTS}/{segment(source_id)}"
        reply = self.caller.call(api, "PATCH", path, json={"properties": {name: "true"}}, expected=(200, 404))
        if reply.status == 404:
            raise SourceUnavailable("HubSpot does not know this contact (HTTP 404); nothing was written.")
        held = object_of(_record(reply.json_or_none())["properties"]).get(name, "true")
        if held not in ("true", True):
            raise SourceUnavailable(f"HubSpot did not take the opt-out: {name} holds something else afterwards.")


# --- registering -----------------------------------------------------------------------------------------

WHOLE = tuple(f"contact.{kind}" for kind in ("creation", "deletion", "merge", "privacyDeletion", "restore"))
PROPERTY = "contact.propertyChange"
NO_EVENTS = frozenset({"num_unique_conversion_events", "hs_lastmodifieddate", MODIFIED, ID})
AT_ONCE = 10  # requests; HubSpot's default


@dataclass(frozen=True, slots=True)
class AppRegistrar:
    """Sets where an app's webhooks go, and what it subscribes to.

    For the app of a developer account only: the webhooks of a private app, and of a project on the newer developer
    platform, have no such calls. An app has one address for all accounts that installed it.
    """

    connection: str
    app_id: str
    key: Secret = field(repr=False)

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`."""
        done = [self._point(api, url)]
        there = {
            (text_or_none(one.get("eventType")), text_or_none(one.get("propertyName")) or ""): one
            for one in self._subscriptions(api)
        }
        made = 0
        wanted = [(kind, "") for kind in WHOLE] + [(PROPERTY, name) for name in sorted({*fields} - NO_EVENTS)]
        for kind, name in wanted:
            one = there.get((kind, name))
            if one is not None and one.get("active") is not False:
                continue
            try:
                self._subscribe(api, kind, name, one)
            except BatchUnreadable:
                if not name:
                    raise
                done.append(f"HubSpot takes no subscription to the property {name}: is it the internal name?")
                continue
            made += 1
        done.append(f"Subscribed to {made} more kinds of events." if made else "All subscriptions are there.")
        return Registration(done)

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """See `Registrar.remove`. The subscriptions stay, and rest."""
        if not self._leads_to(self._settings(api), url):
            return []
        self._call(api, "DELETE", "settings", expected=(200, 204, 404))
        return [f"The app {self.app_id} sends nowhere now; its subscriptions rest."]

    def _point(self, api: Api, url: str) -> str:
        settings = self._settings(api)
        target = text_or_none(settings.get("targetUrl")) or ""
        if target == url:
            return f"The app {self.app_id} sends here already."
        if target and not self._leads_to(settings, url):
            raise SourceUnavailable(
                f"The app {self.app_id} sends to another address already, and an app has only one. "
                "Clear it in HubSpot, or use another app, and register again."
            )
        at_once = object_of(settings.get("throttling")).get("maxConcurrentRequests")
        throttling = {"maxConcurrentRequests": at_once if isinstance(at_once, int) else AT_ONCE}
        self._call(api, "PUT", "settings", json={"targetUrl": url, "throttling": throttling})
        return f"The app {self.app_id} sends here now."

    def _settings(self, api: Api) -> Mapping[str, Any]:
        reply = self._call(api, "GET", "settings", expected=(200, 404))
        return object_of(reply.json_or_none()) if reply.status == 200 else {}

    def _leads_to(self, settings: Mapping[str, Any], url: str) -> bool:
        """Say whether the app sends to this connection, be it with another token at the end."""
        ours = f"/hooks/{self.connection}"
        head, found, rest = (text_or_none(settings.get("targetUrl")) or "").partition(ours)
        return bool(found) and head == url.partition(ours)[0] and (not rest or rest.startswith("/"))

    def _subscriptions(self, api: Api) -> list[Mapping[str, Any]]:
        results = object_of(self._call(api, "GET", "subscriptions").json_or_none()).get("results")
        if not isinstance(results, list):
            raise SourceUnavailable("HubSpot's answer is not a list of subscriptions.")
        return [object_of(one) for one in results]

    def _subscribe(self, api: Api, kind: str, name: str, there: Mapping[str, Any] | None) -> None:
        number = text_or_none(there.get("id")) if there else None
        if number:
            path = f"subscriptions/{segment(number)}"
            self._call(api, "PATCH", path, json={"active": True})
            return
        wanted = {"eventType": kind, "active": True, **({"propertyName": name} if name else {})}
        self._call(api, "POST", "subscriptions", json=wanted, expected=(200, 201))

    def _call(
        self, api: Api, method: str, path: str, *, json: Any = None, expected: Sequence[int] = (200,)
    ) -> Reply:
        query = {"hapikey": self.key.reveal().strip()}  # HubSpot wants it there
        with discreetly(api):
            return HubSpotCaller("HubSpot", self.connection).call(
                api,
                method,
                f"/webhooks/v3/{segment(self.app_id)}/{path}",
                json=json,
                query=query,
                expected=expected,
            )
