"""A HubSpot account on loopback: its contacts, its app's webhooks, and the events that HubSpot would send.

https://developers.hubspot.com/docs/api/crm/contacts and https://developers.hubspot.com/docs/api/webhooks
"""

from __future__ import annotations

import hmac
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now
from bridge.signing import EPOCH

LIMIT = 100
SEARCH_LIMIT = 200
SEARCH_WINDOW = 10_000  # results of one search, however they are paged
PROPERTIES = (
    "city", "company", "country", "email", "firstname", "hs_email_optout", "lastname", "lifecyclestage",
    "mobilephone", "phone", "tier",
)  # fmt: skip
READ_ONLY = frozenset({"createdate", "hs_email_optout", "hs_object_id", "lastmodifieddate"})
NO_EVENTS = frozenset({"hs_lastmodifieddate", "num_unique_conversion_events"})

WebhookEvent = dict[str, Any]


@dataclass(slots=True)
class Record:
    """A contact. A record that was merged into another stays, and leads there."""

    id: str
    properties: dict[str, str]
    created_at: datetime
    updated_at: datetime
    archived: bool = False
    merged_into: str | None = None


class HubSpot(Fake):
    """See the module's docstring. What changes a contact returns the events that HubSpot sends about it.

    - ``missing_ids``: whether ids that a batch read does not find are named in a 207, or just not answered.
    - ``merged_answer``: whether a batch read that leads to one survivor twice holds it once, or once per input.
    - ``merge_result``: whether a merge makes a new record, or lets the primary one live on.
    - ``search_ties``: in which order a search gives contacts that are equal in what it sorts by.
    - ``no_settings``: what is said of the webhooks of an app that has no address yet.
    """

    title = "HubSpot"
    bearer = "demo-hubspot-token"  # the access token that reads
    developer_key = "demo-hubspot-developer-key"
    portal_id = 62515
    app_id = 1160452
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "missing_ids": ("partial_207", "silently_absent"),
        "merged_answer": ("survivor_once", "per_input"),
        "merge_result": ("new_record", "primary"),
        "search_ties": ("oldest_first", "newest_first"),
        "no_settings": ("not_found", "empty"),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.records: dict[str, Record] = {}
        self.properties = set(PROPERTIES)
        self._last_record_id = 1_246_964
        self._last_event_id = 3_816_279_339
        self.webhook_settings: dict[str, Any] = {}
        self.subscriptions: dict[str, dict[str, Any]] = {}
        super().__init__(**switches)

    # --- what people do in HubSpot ---

    def create(self, **properties: str) -> list[WebhookEvent]:
        """Add a contact; its id is the ``objectId`` of the first event."""
        with self.lock:
            record = self._new(properties)
            return [
                self._event("contact.creation", record, changeFlag="CREATED"),
                *(self._changed(record, name) for name in properties),
            ]

    def change(self, source_id: str, **properties: str) -> list[WebhookEvent]:
        """Set properties of a contact; "" clears one."""
        with self.lock:
            record = self.records[source_id]
            self.properties |= properties.keys()
            record.properties |= properties
            record.updated_at = self.clock()
            return [self._changed(record, name) for name in properties]

    def delete(self, source_id: str) -> list[WebhookEvent]:
        with self.lock:
            record = self._archive(source_id)
            return [self._event("contact.deletion", record, changeFlag="DELETED")]

    def restore(self, source_id: str) -> list[WebhookEvent]:
        with self.lock:
            record = self.records[source_id]
            record.archived = False
            record.updated_at = self.clock()
            return [self._event("contact.restore", record)]

    def erase(self, source_id: str) -> list[WebhookEvent]:
        """Delete a contact for good, under privacy law. HubSpot sends a plain deletion too."""
        with self.lock:
            record = self._archive(source_id)
            record.properties = {}
            return [
                self._event("contact.deletion", record, changeFlag="DELETED"),
                self._event("contact.privacyDeletion", record),
            ]

    def merge(self, primary_id: str, *merged_ids: str) -> list[WebhookEvent]:
        """Merge contacts; what the primary one holds wins."""
        with self.lock:
            primary, merged = self.records[primary_id], [self.records[one] for one in merged_ids]
            properties: dict[str, str] = {}
            for record in (*reversed(merged), primary):
                properties |= {name: value for name, value in record.properties.items() if value}
            if self.switches["merge_result"] == "new_record":
                survivor = self._new(properties)
            else:
                survivor = primary
                survivor.properties |= properties
                survivor.updated_at = self.clock()
            for record in (primary, *merged):
                if record is not survivor:
                    record.merged_into = survivor.id
            created = (
                [] if survivor is primary else [self._event("contact.creation", survivor, changeFlag="CREATED")]
            )
            event = self._event(
                "contact.merge",
                primary,
                primaryObjectId=int(primary_id),
                mergedObjectIds=[int(one) for one in merged_ids],
                newObjectId=int(survivor.id) if survivor is not primary else 0,
                numberOfPropertiesMoved=len(properties),
            )
            return [*created, event]

    @staticmethod
    def webhook(events: Iterable[WebhookEvent]) -> bytes:
        """Return the body that brings *events*."""
        return json.dumps(list(events), separators=(",", ":"), ensure_ascii=False).encode()

    def _new(self, properties: Mapping[str, str]) -> Record:
        self._last_record_id += 1
        now = self.clock()
        record = Record(str(self._last_record_id), dict(properties), now, now)
        self.records[record.id] = record
        self.properties |= properties.keys()
        return record

    def _archive(self, source_id: str) -> Record:
        record = self.records[source_id]
        record.archived = True
        record.updated_at = self.clock()
        return record

    def _changed(self, record: Record, name: str) -> WebhookEvent:
        value = record.properties[name]
        return self._event("contact.propertyChange", record, propertyName=name, propertyValue=value)

    def _event(self, kind: str, record: Record, **more: Any) -> WebhookEvent:
        self._last_event_id += 1
        return {
            "eventId": self._last_event_id,
            "subscriptionId": 20 + len(kind),  # one for each kind
            "portalId": self.portal_id,
            "appId": self.app_id,
            "occurredAt": _milliseconds(self.clock()),
            "subscriptionType": kind,
            "attemptNumber": 0,
            "objectId": int(record.id),
            "changeSource": "CRM_UI",
            "sourceId": "userId:9001",
            **more,
        }

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.post("/crm/v3/objects/contacts/batch/read")(self._batch_read)
        app.post("/crm/v3/objects/contacts/search")(self._search)
        app.get("/crm/v3/objects/contacts")(self._list)
        app.get("/crm/v3/objects/contacts/<source_id>")(self._read)
        app.patch("/crm/v3/objects/contacts/<source_id>")(self._update)
        app.get("/webhooks/v3/<int:app_id>/settings")(self._settings)
        app.put("/webhooks/v3/<int:app_id>/settings")(self._set_settings)
        app.delete("/webhooks/v3/<int:app_id>/settings")(self._clear_settings)
        app.get("/webhooks/v3/<int:app_id>/subscriptions")(self._list_subscriptions)
        app.post("/webhooks/v3/<int:app_id>/subscriptions")(self._subscribe)
        app.patch("/webhooks/v3/<int:app_id>/subscriptions/<number>")(self._activate)
        app.before_request(self._authorise)

    def _authorise(self) -> Response | None:
        if request.path.startswith("/webhooks/"):
            key = request.args.get("hapikey", "")
            if not hmac.compare_digest(key.encode(), self.developer_key.encode()):
                return _error(401, "INVALID_AUTHENTICATION", "This hapikey doesn't exist.")
            if (request.view_args or {}).get("app_id") != self.app_id:
                return _error(404, "OBJECT_NOT_FOUND", "There is no such app.")
            return None
        given = request.headers.get("Authorization", "").encode()
        if hmac.compare_digest(given, f"Bearer {self.bearer}".encode()):
            return None
        return _error(401, "INVALID_AUTHENTICATION", "Authentication credentials not found.")

    def _batch_read(self) -> Response:
        asked = request.get_json()
        ids = [str(one["id"]) for one in asked["inputs"]]
        if len(ids) > LIMIT:
            return _error(400, "VALIDATION_ERROR", "A maximum of 100 inputs is allowed in one request.")
        found = [(source_id, self._resolve(source_id)) for source_id in ids]
        records = [record for _, record in found if record is not None]
        if self.switches["merged_answer"] == "survivor_once":
            records = list({record.id: record for record in records}.values())
        # HubSpot promises no order.
        results = [self._shown(record, asked["properties"]) for record in reversed(records)]
        missing = [source_id for source_id, record in found if record is None]
        body: dict[str, Any] = {"status": "COMPLETE", "results": results}
        if not missing or self.switches["missing_ids"] == "silently_absent":
            return answer(200, body)
        error = {
            "status": "error",
            "category": "OBJECT_NOT_FOUND",
            "message": "Could not get some CONTACT objects, they may be deleted or not exist.",
            "context": {"ids": missing},
        }
        return answer(207, {**body, "numErrors": 1, "errors": [error]})

    def _read(self, source_id: str) -> Response:
        record = self._resolve(source_id)
        if record is None:
            return _error(404, "OBJECT_NOT_FOUND", "resource not found")
        names = request.args.get("properties", "")
        return answer(200, self._shown(record, names.split(",")))

    def _alive(self) -> list[Record]:
        """Return the contacts that lists and searches know, by id."""
        alive = [one for one in self.records.values() if not one.archived and one.merged_into is None]
        return sorted(alive, key=lambda record: int(record.id))

    def _list(self) -> Response:
        limit = int(request.args.get("limit", "10"))
        if not 1 <= limit <= LIMIT:
            return _error(400, "VALIDATION_ERROR", "The limit is between 1 and 100.")
        after = int(request.args.get("after", "0"))
        records = [record for record in self._alive() if int(record.id) >= after]
        names = request.args.get("properties", "").split(",")
        body: dict[str, Any] = {"results": [self._shown(record, names) for record in records[:limit]]}
        if len(records) > limit:
            body["paging"] = {"next": {"after": records[limit].id, "link": "https://api.hubapi.com/elsewhere"}}
        return answer(200, body)

    def _search(self) -> Response:
        asked = request.get_json()
        limit, start = asked.get("limit", 10), int(asked.get("after", "0"))
        if not 1 <= limit <= SEARCH_LIMIT or start + limit > SEARCH_WINDOW:
            return _error(400, "VALIDATION_ERROR", "At most 200 a page, and 10,000 in all.")
        groups, sorts = asked.get("filterGroups", []), asked.get("sorts", [])
        if len(groups) > 5 or any(len(group["filters"]) > 6 for group in groups) or len(sorts) > 1:
            return _error(400, "VALIDATION_ERROR", "Too many filters, or more than one sort.")
        records = [one for one in self._alive() if not groups or any(_fits(one, group) for group in groups)]
        records.sort(key=lambda one: int(one.id), reverse=self.switches["search_ties"] == "newest_first")
        for sort in sorts:
            records.sort(key=lambda one: _sortable(one, sort["propertyName"]))
            if sort["direction"] == "DESCENDING":
                records.reverse()
        found = records[start : start + limit]
        body = {
            "total": len(records),
            "results": [self._shown(record, asked.get("properties", [])) for record in found],
        }
        if start + limit < len(records):
            body["paging"] = {"next": {"after": str(start + limit)}}
        return answer(200, body)

    def _update(self, source_id: str) -> Response:
        record = self._resolve(source_id)
        if record is None:
            return _error(404, "OBJECT_NOT_FOUND", "resource not found")
        properties: dict[str, str] = request.get_json()["properties"]
        for name, value in properties.items():
            if name in READ_ONLY or name not in self.properties or not isinstance(value, str):
                return _error(400, "VALIDATION_ERROR", "A property is read-only, unknown, or no text.")
        record.properties |= properties
        record.updated_at = self.clock()
        return answer(200, self._shown(record, list(properties)))

    # --- the webhooks of the app ---

    def _settings(self, app_id: int) -> Response:
        if self.webhook_settings:
            return answer(200, self.webhook_settings)
        if self.switches["no_settings"] == "empty":
            return answer(200, {"targetUrl": "", "throttling": {"maxConcurrentRequests": 10}})
        return _error(404, "OBJECT_NOT_FOUND", "The app has no webhook settings.")

    def _set_settings(self, app_id: int) -> Response:
        asked = request.get_json()
        at_once = asked.get("throttling", {}).get("maxConcurrentRequests")
        if not asked.get("targetUrl", "").startswith("https://") or not isinstance(at_once, int) or at_once <= 5:
            return _error(400, "VALIDATION_ERROR", "An https address and more than 5 requests at once are needed.")
        self.webhook_settings = {**asked, "createdAt": _iso(self.clock()), "updatedAt": _iso(self.clock())}
        return answer(200, self.webhook_settings)

    def _clear_settings(self, app_id: int) -> Response:
        self.webhook_settings = {}
        return Response(status=204)

    def _list_subscriptions(self, app_id: int) -> Response:
        return answer(200, {"results": list(self.subscriptions.values())})

    def _subscribe(self, app_id: int) -> Response:
        asked = request.get_json()
        name = asked.get("propertyName", "")
        if (asked["eventType"] == "contact.propertyChange") != bool(name):
            return _error(
                400, "VALIDATION_ERROR", "A propertyName goes with propertyChange, and with nothing else."
            )
        if name in NO_EVENTS or (name and name not in self.properties):
            return _error(400, "VALIDATION_ERROR", "There are no events of this property.")
        same = (asked["eventType"], name)
        if same in {(one["eventType"], one.get("propertyName", "")) for one in self.subscriptions.values()}:
            return _error(409, "CONFLICT", "This subscription exists.")
        number = str(len(self.subscriptions) + 25)
        self.subscriptions[number] = {"active": False, **asked, "id": number, "createdAt": _iso(self.clock())}
        return answer(201, self.subscriptions[number])

    def _activate(self, app_id: int, number: str) -> Response:
        if number not in self.subscriptions:
            return _error(404, "OBJECT_NOT_FOUND", "There is no such subscription.")
        self.subscriptions[number]["active"] = bool(request.get_json()["active"])
        return answer(200, self.subscriptions[number])

    def _resolve(self, source_id: str) -> Record | None:
        record = self.records.get(source_id)
        while record is not None and record.merged_into is not None:
            record = self.records.get(record.merged_into)
        return None if record is None or record.archived else record

    def _shown(self, record: Record, names: Sequence[str]) -> dict[str, Any]:
        always = {
            "createdate": _iso(record.created_at),
            "hs_object_id": record.id,
            "lastmodifieddate": _iso(record.updated_at),
        }
        # A property without a value is null; one that the account does not have is left out.
        named = {name: record.properties.get(name) or None for name in names if name in self.properties}
        return {
            "id": record.id,
            "properties": {**named, **always},
            "createdAt": _iso(record.created_at),
            "updatedAt": _iso(record.updated_at),
            "archived": False,
        }


def _fits(record: Record, group: Mapping[str, Any]) -> bool:
    """Say whether *record* passes all filters of a group, as far as contacts are searched for here."""
    tests: dict[str, Callable[[int, int], bool]] = {"GTE": operator.ge, "LTE": operator.le, "GT": operator.gt}
    return all(
        tests[one["operator"]](_sortable(record, one["propertyName"]), int(one["value"]))
        for one in group["filters"]
    )


def _sortable(record: Record, name: str) -> int:
    return {"lastmodifieddate": _milliseconds(record.updated_at), "hs_object_id": int(record.id)}[name]


def _error(status: int, category: str, message: str) -> Response:
    return answer(status, {"status": "error", "category": category, "message": message})


def _milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
