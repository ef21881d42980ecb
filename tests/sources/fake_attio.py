"""An Attio workspace on loopback: people and companies, the webhooks about them, queries, and webhooks to be made.

https://docs.attio.com/rest-api
"""

from __future__ import annotations

import hmac
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

TYPES = {
    "name": "personal-name", "email_addresses": "email-address", "phone_numbers": "phone-number",
    "job_title": "text", "sms_opt_out": "checkbox", "stage": "status",
}  # fmt: skip
EVENTS = {"record.created", "record.updated", "record.deleted", "record.merged", "note.created"}


@dataclass(slots=True)
class Record:
    id: str
    object: str
    created_at: datetime
    values: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    merged_into: str | None = None
    deleted: bool = False


class Attio(Fake):
    """See the module's docstring. What changes a record returns the events about it, one for each attribute.

    - ``by_ids``: whether a query takes several ids, or refuses them.
    - ``by_time``: whether a query compares ``created_at``, or refuses to.
    - ``page``: how many records a page holds at most, whatever is asked for.
    - ``merge``: whether two records become a new one, or one of them.
    - ``merged``: what a read of a record that was merged gives: nothing, or the one that stays.
    - ``history``: whether values that are over are among those of a record.
    - ``date``: whether answers say when they were made.
    - ``others``: whether a record of another object is given where people are asked for.
    """

    title = "Attio"
    bearer = "demo-attio-token"
    workspace_id = "14beef7a-99f7-4534-a87e-70b564330a4c"
    people = "97052eb9-e65e-443f-a297-f2d9a4a7f795"
    companies = "aa052eb9-e65e-443f-a297-f2d9a4a7f795"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "by_ids": ("found", "refused"),
        "by_time": ("compared", "refused"),
        "page": (500, 40),
        "merge": ("new_record", "primary"),
        "merged": ("not_found", "survivor"),
        "history": ("left_out", "told"),
        "date": ("told", "left_out"),
        "others": ("not_found", "given"),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.records: dict[str, Record] = {}
        self.hooks: dict[str, dict[str, Any]] = {}
        self._number = 0
        super().__init__(**switches)

    # --- what people do in Attio ---

    def create(self, of: str = "", **values: Any) -> list[dict[str, Any]]:
        """Add a record; its id is the ``record_id`` of the events. A list is several values."""
        with self.lock:
            record = Record(self._id(), of or self.people, self.clock())
            self.records[record.id] = record
            self._set(record, values)
            return [self._event("record.created", record), *self._updated(record, values)]

    def change(self, record_id: str, **values: Any) -> list[dict[str, Any]]:
        """Set attributes; None takes the values of one away."""
        with self.lock:
            record = self.records[record_id]
            self._set(record, values)
            return self._updated(record, values)

    def delete(self, record_id: str) -> list[dict[str, Any]]:
        with self.lock:
            record = self.records[record_id]
            record.deleted = True
            return [self._event("record.deleted", record)]

    def merge(self, primary_id: str, secondary_id: str) -> list[dict[str, Any]]:
        """Merge two records; what the primary one holds wins."""
        with self.lock:
            primary, secondary = self.records[primary_id], self.records[secondary_id]
            values = {**secondary.values, **{name: some for name, some in primary.values.items() if _active(some)}}
            if self.switches["merge"] == "primary":
                primary.values, secondary.merged_into = values, primary.id
                return [self._event("record.merged", primary, **self._duplicate(secondary))]
            new = Record(self._id(), primary.object, self.clock(), values)
            self.records[new.id] = new
            primary.merged_into = secondary.merged_into = new.id
            return [self._event("record.merged", new, **self._duplicate(one)) for one in (primary, secondary)]

    @staticmethod
    def webhook(*events: Mapping[str, Any]) -> bytes:
        body = {"webhook_id": "23e42eaf-323a-41da-b5bb-fd67eebda553", "events": events}
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()

    def _id(self) -> str:
        self._number += 1
        return str(uuid.UUID(int=self._number, version=4))

    @staticmethod
    def _duplicate(record: Record) -> dict[str, str]:
        return {"duplicate_object_id": record.object, "duplicate_record_id": record.id}

    def _set(self, record: Record, values: Mapping[str, Any]) -> None:
        now = _iso(self.clock())
        for name, value in values.items():
            for old in record.values.setdefault(name, []):
                old["active_until"] = old["active_until"] or now
            some = [] if value is None else value if isinstance(value, list) else [value]
            record.values[name] += [
                {**_typed(name, one), "active_from": now, "active_until": None} for one in some
            ]

    def _updated(self, record: Record, names: Iterable[str]) -> list[dict[str, Any]]:
        return [self._event("record.updated", record, attribute=name) for name in names]

    def _event(self, kind: str, record: Record, attribute: str = "", **more: Any) -> dict[str, Any]:
        ids = {"workspace_id": self.workspace_id, "object_id": record.object, "record_id": record.id}
        if attribute:
            ids["attribute_id"] = str(uuid.uuid5(uuid.NAMESPACE_DNS, attribute))
        return {"event_type": kind, "id": ids, **more, "actor": {"type": "system", "id": None}}

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.before_request(self._authorise)
        app.after_request(self._dated)
        app.get("/v2/objects")(self._objects)
        app.post("/v2/objects/<of>/records/query")(self._query)
        app.get("/v2/objects/<of>/records/<record_id>")(self._read)
        app.patch("/v2/objects/<of>/records/<record_id>")(self._write)
        app.get("/v2/webhooks")(self._list_hooks)
        app.post("/v2/webhooks")(self._make_hook)
        app.patch("/v2/webhooks/<hook_id>")(self._change_hook)
        app.delete("/v2/webhooks/<hook_id>")(self._delete_hook)

    def _authorise(self) -> Response | None:
        given = request.headers.get("Authorization", "").encode()
        if hmac.compare_digest(given, f"Bearer {self.bearer}".encode()):
            return None
        return _error(401, "unauthorized")

    def _dated(self, response: Response) -> Response:
        if self.switches["date"] == "told":
            response.headers["Date"] = format_datetime(self.clock().replace(microsecond=0), usegmt=True)
        return response

    def _objects(self) -> Response:
        named = (("companies", self.companies), ("people", self.people))
        data = [
            {"id": {"workspace_id": self.workspace_id, "object_id": one}, "api_slug": slug} for slug, one in named
        ]
        return answer(200, {"data": data})

    def _of(self, of: str) -> str | None:
        return {"people": self.people, "companies": self.companies}.get(of, of)

    def _query(self, of: str) -> Response:
        asked = request.get_json()
        if not set(asked) <= {"filter", "sorts", "limit", "offset"} or not 0 < asked["limit"] <= 500:
            return _error(400, "validation_type")
        found = [one for one in self.records.values() if self._is_there(one) and one.object == self._of(of)]
        wanted = asked.get("filter", {})
        if "$or" in wanted:
            if self.switches["by_ids"] == "refused":
                return _error(400, "filter_error")
            ids = {one["record_id"]["$eq"] for one in wanted["$or"]}
            found = [one for one in found if one.id in ids]
        elif "created_at" in wanted:
            if self.switches["by_time"] == "refused":
                return _error(400, "filter_error")
            found = [one for one in found if _iso(one.created_at) >= wanted["created_at"]["$gte"]]
        elif wanted:
            return _error(400, "filter_error")
        if asked.get("sorts") not in (None, [{"attribute": "created_at", "direction": "asc"}]):
            return _error(400, "sort_error")
        found.sort(key=lambda one: one.created_at)
        limit = min(asked["limit"], self.switches["page"])
        page = found[asked["offset"] : asked["offset"] + limit]
        return answer(200, {"data": [self._shown(one) for one in page]})

    def _read(self, of: str, record_id: str) -> Response:
        record = self.records.get(record_id)
        if record is not None and record.merged_into and self.switches["merged"] == "survivor":
            record = self.records[record.merged_into]
        if record is None or not self._is_there(record):
            return _error(404, "not_found")
        if record.object != self._of(of) and self.switches["others"] == "not_found":
            return _error(404, "not_found")
        return answer(200, {"data": self._shown(record)})

    def _write(self, of: str, record_id: str) -> Response:
        record, values = self.records.get(record_id), request.get_json()["data"]["values"]
        if record is None or not self._is_there(record) or record.object != self._of(of):
            return _error(404, "not_found")
        if not set(values) <= TYPES.keys() or not all(isinstance(some, list) for some in values.values()):
            return _error(400, "value_not_found")
        self._set(record, values)
        return answer(200, {"data": self._shown(record)})

    def _list_hooks(self) -> Response:
        limit, offset = int(request.args.get("limit", 10)), int(request.args.get("offset", 0))
        if not 10 <= limit <= 100:
            return _error(400, "validation_type")
        hooks = [{name: hook[name] for name in hook if name != "secret"} for hook in self.hooks.values()]
        return answer(200, {"data": hooks[offset : offset + limit]})

    def _make_hook(self) -> Response:
        asked = request.get_json()["data"]
        if set(asked) != {"target_url", "subscriptions"} or not _subscriptions(asked):
            return _error(400, "validation_type")
        if not asked["target_url"].startswith("https://"):
            return _error(400, "validation_type")
        hook_id = self._id()
        ids = {"workspace_id": self.workspace_id, "webhook_id": hook_id}
        self.hooks[hook_id] = {"id": ids, "status": "active", "secret": f"secret-of-{hook_id}", **asked}
        return answer(200, {"data": self.hooks[hook_id]})

    def _change_hook(self, hook_id: str) -> Response:
        asked = request.get_json()["data"]
        if hook_id not in self.hooks:
            return _error(404, "not_found")
        if not set(asked) <= {"target_url", "subscriptions"} or not _subscriptions(asked):
            return _error(400, "validation_type")
        self.hooks[hook_id].update(asked)
        return answer(200, {"data": {name: self.hooks[hook_id][name] for name in ("id", "status", "target_url")}})

    def _delete_hook(self, hook_id: str) -> Response:
        return answer(200, {}) if self.hooks.pop(hook_id, None) else _error(404, "not_found")

    # --- what it says ---

    @staticmethod
    def _is_there(record: Record) -> bool:
        return not record.deleted and record.merged_into is None

    def _shown(self, record: Record) -> dict[str, Any]:
        told = self.switches["history"] == "told"
        values = {name: some if told else _active(some) for name, some in record.values.items()}
        return {
            "id": {"workspace_id": self.workspace_id, "object_id": record.object, "record_id": record.id},
            "created_at": _iso(record.created_at),
            "web_url": "https://app.attio.com/demo",
            "values": {**{name: [] for name in TYPES}, **values},
        }


def _active(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in values if one["active_until"] is None]


def _typed(name: str, value: Any) -> dict[str, Any]:
    kind = TYPES[name]
    if kind == "personal-name":
        first, _, last = value.partition(" ")
        return {"attribute_type": kind, "first_name": first, "last_name": last, "full_name": value}
    key = {"email-address": "email_address", "phone-number": "phone_number", "status": "status"}.get(kind, "value")
    return {"attribute_type": kind, key: {"title": value} if kind == "status" else value}


def _subscriptions(asked: Mapping[str, Any]) -> bool:
    """Say whether the subscriptions are written as Attio wants them."""
    return all(
        set(one) == {"event_type", "filter"}
        and one["event_type"] in EVENTS
        and all(
            set(part) == {"field", "operator", "value"} and part["operator"] in {"equals", "not_equals"}
            for part in (one["filter"] or {"$and": []})["$and"]
        )
        for one in asked.get("subscriptions", [])
    )


def _error(status: int, code: str) -> Response:
    return answer(status, {"status_code": status, "type": "invalid_request_error", "code": code, "message": "No."})


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
