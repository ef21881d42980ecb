"""A strict Copper on loopback: people one by one and searched, subscriptions, and custom fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

SORTS = {"date_modified", "date_created", "first_name", "name"}


class Copper(Fake):
    title = "Copper"
    key = "a1b2c3d4e5f60718293a4b5c6d7e8f90"
    user_email = "ops@example.com"
    definitions = (100, 200)  # of custom fields
    SWITCHES = {  # noqa: RUF012
        "minimum": ("at_or_after", "after"),  # what minimum_modified_date takes in
        "largest_page": (200, 20),
        "behind_the_last_page": ("empty", "last_page"),
        "total": ("told", "untold"),
        "subscriptions_show": ("all", "pairs", "nothing"),
        "after_put": ("whole", "without_custom_fields", "not_taken"),
    }

    def __init__(self, **switches: Any) -> None:
        self.people: dict[int, dict[str, Any]] = {}
        self.hooks: dict[int, dict[str, Any]] = {}
        self.clock: Callable[[], datetime] = utc_now
        self.calls_left = 1000
        super().__init__(**switches)

    # --- what people do in it ---

    def add(self, at: datetime | None = None, custom: Mapping[int, Any] | None = None, **fields: Any) -> str:
        """Add a person; return the id."""
        number, told_at = 20001 + len(self.people), int((at or self.clock()).timestamp())
        values = {**dict.fromkeys(self.definitions), **(custom or {})}
        self.people[number] = {
            "id": number, "name": "Ada Lovelace", "first_name": "Ada", "last_name": "Lovelace", "address": None,
            "emails": [], "phone_numbers": [], "socials": [], "websites": [], "tags": [], "title": None, **fields,
            "custom_fields": [
                {"custom_field_definition_id": one, "value": value} for one, value in values.items()
            ],
            "date_created": told_at, "date_modified": told_at,
        }  # fmt: skip
        return str(number)

    def change(self, person: str, at: datetime | None = None, **fields: Any) -> None:
        self.people[int(person)] |= {**fields, "date_modified": int((at or self.clock()).timestamp())}

    def delete(self, person: str) -> None:
        del self.people[int(person)]

    def custom(self, person: str) -> dict[int, Any]:
        entries = self.people[int(person)]["custom_fields"]
        return {one["custom_field_definition_id"]: one["value"] for one in entries}

    # --- its API ---

    def routes(self, app: Flask) -> None:
        app.before_request(self._guard)
        app.after_request(self._dated)
        app.add_url_rule("/people/<int:number>", "one", self._one)
        app.add_url_rule("/people/<int:number>", "put", self._put, methods=["PUT"])
        app.add_url_rule("/people/search", "search", self._search, methods=["POST"])
        app.add_url_rule("/webhooks", "hooks", self._hooks)
        app.add_url_rule("/webhooks", "subscribe", self._subscribe, methods=["POST"])
        app.add_url_rule("/webhooks/<int:number>", "update", self._update, methods=["PUT"])
        app.add_url_rule("/webhooks/<int:number>", "unsubscribe", self._unsubscribe, methods=["DELETE"])

    def _guard(self) -> Response | None:
        given = {name: request.headers.get(f"X-Pw-{name}") for name in ("AccessToken", "Application", "UserEmail")}
        if given != {"AccessToken": self.key, "Application": "developer_api", "UserEmail": self.user_email}:
            return self._no(401, "Invalid authentication")
        if self.calls_left <= 0:
            return answer(429, {"success": False, "status": 429}, {"Retry-After": "60"})
        self.calls_left -= 1
        return None

    def _dated(self, response: Response) -> Response:
        response.date = self.clock()
        return response

    def _no(self, status: int, message: str) -> Response:
        return answer(status, {"success": False, "status": status, "message": message})

    def _one(self, number: int) -> Response:
        found = self.people.get(number)
        return answer(200, found) if found else self._no(404, "Resource not found")

    def _put(self, number: int) -> Response:
        found = self.people.get(number)
        if found is None:
            return self._no(404, "Resource not found")
        entries = (request.get_json() or {}).get("custom_fields", [])
        for one in entries:
            if one.get("custom_field_definition_id") not in self.definitions:
                return self._no(422, "Invalid input")
        if self.switches["after_put"] != "not_taken":
            for one in entries:
                for held in found["custom_fields"]:
                    if held["custom_field_definition_id"] == one["custom_field_definition_id"]:
                        held["value"] = one["value"]
            found["date_modified"] = int(self.clock().timestamp())
        whole = self.switches["after_put"] != "without_custom_fields"
        return answer(200, found if whole else {"id": number})

    def _search(self) -> Response:
        asked = request.get_json() or {}
        known = {"page_size", "page_number", "sort_by", "sort_direction", "minimum_modified_date"}
        number, size = asked.get("page_number", 1), asked.get("page_size", 20)
        if set(asked) - known or asked.get("sort_by") not in SORTS or not 0 < size <= 200 or number < 1:
            return self._no(422, "Invalid input")
        if number * size > 100_000:
            return self._no(422, "Only the first 100,000 records are searched")
        size, least = min(size, self.switches["largest_page"]), asked.get("minimum_modified_date", 0)
        least += 1 if self.switches["minimum"] == "after" and "minimum_modified_date" in asked else 0
        rows = sorted(
            (one for one in self.people.values() if one["date_modified"] >= least),
            key=lambda one: (one[asked["sort_by"]], one["id"]),
            reverse=asked.get("sort_direction") == "desc",
        )
        pages = max((len(rows) + size - 1) // size, 1)
        if number > pages and self.switches["behind_the_last_page"] == "last_page":
            number = pages
        total = {"X-PW-TOTAL": str(len(rows))} if self.switches["total"] == "told" else {}
        return answer(200, rows[(number - 1) * size : number * size], total)

    def _hooks(self) -> Response:
        shown = {"all": ("headers", "secret"), "pairs": ("secret",), "nothing": ()}
        kept = {"id", "target", "type", "event", "created_at", *shown[self.switches["subscriptions_show"]]}
        return answer(200, [{name: hook[name] for name in hook if name in kept} for hook in self.hooks.values()])

    def _subscribe(self) -> Response:
        asked = request.get_json() or {}
        right = {"target", "type", "event", "secret", "headers"}
        if set(asked) - right or not str(asked.get("target", "")).startswith("https://") or len(self.hooks) >= 100:
            return self._no(422, "Invalid input: Invalid URI For External Request")
        if asked.get("type") not in {"person", "lead"} or asked.get("event") not in {"new", "update", "delete"}:
            return self._no(422, "Invalid input")
        number = 17065 + len(self.hooks)
        self.hooks[number] = {"id": number, **asked, "created_at": int(self.clock().timestamp())}
        return answer(200, self.hooks[number])

    def _update(self, number: int) -> Response:
        asked = request.get_json() or {}
        if number not in self.hooks:
            return self._no(404, "Resource not found")
        if set(asked) - {"target", "secret", "headers"}:
            return self._no(422, "Invalid input")
        self.hooks[number] |= asked
        return answer(200, self.hooks[number])

    def _unsubscribe(self, number: int) -> Response:
        if self.hooks.pop(number, None) is None:
            return self._no(404, "Resource not found")
        return answer(200, {"id": number, "is_deleted": True})

    # --- its notifications ---

    def notification(self, event: str, *people: str, at: datetime | None = None, **changed: Any) -> dict[str, Any]:
        """Return the body of a notification, without pairs."""
        told_at = (at or self.clock()).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return {
            "ids": [int(person) for person in people],
            "type": "person",
            "event": event,
            "subscription_id": 17065,
            "timestamp": told_at,
            **({"updated_attributes": changed} if changed else {}),
        }
