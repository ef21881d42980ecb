"""A Close organization on loopback: contacts and leads, the webhooks about them, searches that end, subscriptions.

https://developer.close.com/api
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

CONTACT = {"id", "lead_id", "organization_id", "name", "display_name", "title", "emails", "phones", "date_created",
           "date_updated"}  # fmt: skip
LEAD = {"id", "organization_id", "name", "status_label", "status_id", "contact_ids", "contacts", "date_created",
        "date_updated"}  # fmt: skip
CUSTOM = {"custom.cf_tier", "custom.cf_stop"}


@dataclass(slots=True)
class Cursor:
    """The rest of a search, as it was when the search began."""

    ids: list[str]
    given: int


class Close(Fake):
    """See the module's docstring. What changes something returns the body of the webhook about it.

    - ``unknown_fields``: whether a name in ``_fields`` that is none is left out, or refused.
    - ``times``: whether times are written without a zone, or with one.
    - ``last_cursor``: whether the last page of a search has no cursor, or one that leads to an empty page, or
      whether none has one.
    - ``counts``: whether a search tells how many there are, or refuses to.
    - ``lead_lists``: whether a lead names its contacts by ids, by objects, or not.
    """

    title = "Close"
    key = "api_demo.close"
    organization = "orga_demo"
    most = 10_000  # results of one search
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "unknown_fields": ("left_out", "refused"),
        "times": ("naive", "zoned"),
        "last_cursor": ("none", "to_nothing", "never"),
        "counts": ("told", "refused"),
        "lead_lists": ("ids", "objects", "nothing"),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.contacts: dict[str, dict[str, Any]] = {}
        self.leads: dict[str, dict[str, Any]] = {}
        self.hooks: dict[str, dict[str, Any]] = {}
        self.cursors: dict[str, Cursor] = {}
        self.indexed: dict[str, dict[str, Any]] = {}  # what a search tells of a contact that it is behind with
        self._number = 0
        super().__init__(**switches)

    # --- what people do in Close ---

    def lead(self, **fields: Any) -> str:
        return str(self._new("lead", self.leads, fields)["id"])

    def create(self, lead_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Add a contact; its id is the ``object_id`` of the event."""
        with self.lock:
            lead_id = lead_id or self.lead(name="A lead", status_label="Trial")
            whole = {"name": "", "title": "", "emails": [], "phones": [], **fields, "lead_id": lead_id}
            return self._event("contact", "created", self._new("cont", self.contacts, whole))

    def change(self, source_id: str, **fields: Any) -> dict[str, Any]:
        return self._change("contact", self.contacts[source_id], fields)

    def change_lead(self, lead_id: str, **fields: Any) -> dict[str, Any]:
        return self._change("lead", self.leads[lead_id], fields)

    def delete(self, source_id: str) -> dict[str, Any]:
        with self.lock:
            gone = self.contacts.pop(source_id)
            return {**self._event("contact", "deleted", gone), "data": {}, "previous_data": self._shown(gone)}

    def merge_leads(self, source: str, destination: str) -> list[dict[str, Any]]:
        """Move the contacts of one lead to another, and delete it."""
        with self.lock:
            moved = [one["id"] for one in self.contacts.values() if one["lead_id"] == source]
            events = [self.change(one, lead_id=destination) for one in moved]
            gone = self.leads.pop(source)
            events.append({**self._event("lead", "deleted", gone), "data": {}})
            events.append({**self._event("lead", "merged", self.leads[destination]), "object_id": source})
            meta = {"merge_source_lead_id": source, "merge_destination_lead_id": destination}
            return [{**event, "meta": meta} for event in events]

    @staticmethod
    def webhook(event: Mapping[str, Any]) -> bytes:
        body = {"subscription_id": "whsub_demo", "event": event}
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()

    def _new(self, prefix: str, where: dict[str, dict[str, Any]], fields: Mapping[str, Any]) -> dict[str, Any]:
        self._number += 1
        now = self.clock()
        made = {
            "id": f"{prefix}_{self._number:08d}",
            "organization_id": self.organization,
            "created": now,
            "updated": now,
            **fields,
        }
        where[made["id"]] = made
        return made

    def _change(self, thing: str, one: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        with self.lock:
            before = {name: one.get(name) for name in fields}
            one.update(fields)
            for name in [name for name, value in one.items() if name in CUSTOM and value is None]:
                del one[name]
            one["updated"] = self.clock()
            event = self._event(thing, "updated", one)
            return {**event, "changed_fields": list(fields), "previous_data": before}

    def _event(self, thing: str, action: str, one: Mapping[str, Any]) -> dict[str, Any]:
        self._number += 1
        now = self._time(self.clock(), zoned=False)
        return {
            "id": f"ev_{self._number:08d}",
            "date_created": now,
            "date_updated": now,
            "object_type": thing,
            "action": action,
            "object_id": one["id"],
            "lead_id": one.get("lead_id", one["id"]),
            "organization_id": self.organization,
            "changed_fields": [],
            "previous_data": {},
            "data": self._shown(one),
            "meta": {},
        }

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.before_request(self._authorise)
        app.get("/api/v1/contact/<source_id>/")(self._read_contact)
        app.put("/api/v1/contact/<source_id>/")(self._write_contact)
        app.get("/api/v1/lead/<lead_id>/")(self._read_lead)
        app.post("/api/v1/data/search/")(self._search)
        app.get("/api/v1/webhook/")(self._list_hooks)
        app.post("/api/v1/webhook/")(self._make_hook)
        app.put("/api/v1/webhook/<hook_id>/")(self._change_hook)
        app.delete("/api/v1/webhook/<hook_id>/")(self._delete_hook)

    def _authorise(self) -> Response | None:
        expected = "Basic " + base64.b64encode(f"{self.key}:".encode()).decode()
        if hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected.encode()):
            return None
        return answer(401, {"error": "The API key is invalid."})

    def _read_contact(self, source_id: str) -> Response:
        return self._read(self.contacts.get(source_id), CONTACT)

    def _read_lead(self, lead_id: str) -> Response:
        return self._read(self.leads.get(lead_id), LEAD)

    def _read(self, one: Mapping[str, Any] | None, known: set[str]) -> Response:
        if one is None:
            return answer(404, {"error": "The requested object was not found."})
        names = request.args.get("_fields")
        if names is not None and self._refuses(names.split(","), known):
            return _bad("_fields")
        return answer(200, self._shown(one, names.split(",") if names else None))

    def _refuses(self, names: Iterable[str], known: set[str]) -> bool:
        return self.switches["unknown_fields"] == "refused" and not set(names) <= known | CUSTOM

    def _write_contact(self, source_id: str) -> Response:
        if source_id not in self.contacts:
            return answer(404, {"error": "The requested object was not found."})
        fields = request.get_json()
        if not set(fields) <= CUSTOM:
            return _bad(*fields)
        self.change(source_id, **fields)
        return answer(200, self._shown(self.contacts[source_id]))

    def _search(self) -> Response:
        asked = request.get_json()
        if not set(asked) <= {"query", "sort", "_limit", "_fields", "cursor", "include_counts"}:
            return _bad("query")
        if asked.get("include_counts") and self.switches["counts"] == "refused":
            return _bad("include_counts")
        wanted = asked["_fields"]["contact"]
        if not 0 < asked["_limit"] <= 200 or self._refuses(wanted, CONTACT):
            return _bad("_fields")
        if "cursor" in asked:
            cursor = self.cursors.pop(asked["cursor"], None)
            if cursor is None or cursor.given >= self.most:
                return _bad("cursor")
        else:
            by, begin = _window(asked)
            found = sorted((one for one in self.contacts.values() if one[by] >= begin), key=lambda one: one[by])
            cursor = Cursor([one["id"] for one in found], 0)
        total = len(cursor.ids)
        page, rest = cursor.ids[: asked["_limit"]], cursor.ids[asked["_limit"] :]
        after = None
        if self.switches["last_cursor"] != "never" and (rest or (page and self.switches["last_cursor"] != "none")):
            self._number += 1
            after = f"cursor-{self._number}"
            self.cursors[after] = Cursor(rest, cursor.given + len(page))
        found = [self.indexed.get(one, self.contacts[one]) for one in page if one in self.contacts]
        rows = [self._shown(one, wanted) for one in found]
        counts = {"count": {"limited": total, "total": total}} if asked.get("include_counts") else {}
        return answer(
            200, {"data": [{"__object_type": "contact", **row} for row in rows], "cursor": after, **counts}
        )

    def _list_hooks(self) -> Response:
        skip, limit = (int(request.args.get(name, value)) for name, value in (("_skip", 0), ("_limit", 100)))
        if limit > 100:
            return _bad("_limit")
        hooks = list(self.hooks.values())
        shown = [{name: hook[name] for name in hook if name != "signature_key"} for hook in hooks]
        return answer(200, {"data": shown[skip : skip + limit], "has_more": len(shown) > skip + limit})

    def _make_hook(self) -> Response:
        asked = request.get_json()
        if set(asked) != {"url", "events"} or not asked["url"].startswith("https://") or not _events(asked):
            return _bad("events")
        self._number += 1
        hook = {
            "id": f"whsub_{self._number:08d}",
            "status": "active",
            "signature_key": f"{self._number:064x}",
            "organization_id": self.organization,
            **asked,
        }
        self.hooks[hook["id"]] = hook
        return answer(201, hook)

    def _change_hook(self, hook_id: str) -> Response:
        asked = request.get_json()
        if hook_id not in self.hooks:
            return answer(404, {"error": "The requested object was not found."})
        if not set(asked) <= {"url", "events", "status", "verify_ssl"} or not _events(asked):
            return _bad("events")
        self.hooks[hook_id].update(asked)
        return answer(200, {name: self.hooks[hook_id][name] for name in ("id", "url", "events", "status")})

    def _delete_hook(self, hook_id: str) -> Response:
        return answer(200, {}) if self.hooks.pop(hook_id, None) else answer(404, {"error": "not found"})

    # --- what it says ---

    def _shown(self, one: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
        zoned = self.switches["times"] == "zoned"
        shown = {name: value for name, value in one.items() if name not in {"created", "updated"}}
        shown |= {f"date_{name}": self._time(one[name], zoned=zoned) for name in ("created", "updated")}
        if "lead_id" not in one:
            ids = [contact["id"] for contact in self.contacts.values() if contact["lead_id"] == one["id"]]
            if self.switches["lead_lists"] == "ids":
                shown["contact_ids"] = ids
            elif self.switches["lead_lists"] == "objects":
                shown["contacts"] = [{"id": contact_id} for contact_id in ids]
        return {name: shown[name] for name in names if name in shown} if names is not None else shown

    @staticmethod
    def _time(moment: datetime, *, zoned: bool) -> str:
        text = moment.astimezone(UTC).isoformat(timespec="microseconds")
        return text if zoned else text.removesuffix("+00:00")


def _window(asked: Mapping[str, Any]) -> tuple[str, datetime]:
    """Return what a search compares and from when on, having checked that it is written as Close wants it."""
    kind, condition = asked["query"]["queries"]
    (sort,) = asked["sort"]
    field = {"type": "regular_field", "object_type": "contact", "field_name": condition["field"]["field_name"]}
    assert asked["query"]["type"] == "and"
    assert kind == {"type": "object_type", "object_type": "contact"}
    assert sort == {"direction": "asc", "field": field} and condition["field"] == field
    assert condition["type"] == "field_condition" and condition["condition"]["type"] == "moment_range"
    begin = condition["condition"]["on_or_after"]
    assert begin["type"] == "fixed_utc"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", begin["value"])
    return field["field_name"].removeprefix("date_"), datetime.fromisoformat(begin["value"])


def _events(asked: Mapping[str, Any]) -> bool:
    events = asked.get("events")
    return isinstance(events, list) and all(set(one) == {"object_type", "action"} for one in events)


def _bad(*names: str) -> Response:
    return answer(400, {"errors": [], "field-errors": dict.fromkeys(names, "invalid")})
