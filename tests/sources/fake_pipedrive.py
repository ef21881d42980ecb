"""A Pipedrive company on loopback: its persons by API v2, and its webhooks by v1. As strict as Pipedrive is."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

LIMIT = 500
IDS = 100
CUSTOM = 15
TEXT, OPTIONS = "9dc80c50d78a15643bfc4ca79d76156a73a1ca0e", "a1b2c3d4e5f60718293a4b5c6d7e8f9001122334"

Person = dict[str, Any]


class Pipedrive(Fake):
    """See the module's docstring.

    - ``campaigns``: whether the company has that product; if not, what asking for its fields comes to.
    - ``passwords``: what the list of webhooks tells of their passwords.
    - ``same_url``: whether a second webhook may lead to the same address.
    - ``no_webhooks``: what the list of webhooks is where there are none.
    """

    title = "Pipedrive"
    token = "demo-pipedrive-token"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "campaigns": ("yes", "refused_400", "refused_403", "left_out"),
        "passwords": ("told", "hidden", "stars", "no_logins"),
        "same_url": ("allowed", "refused"),
        "no_webhooks": ("empty", "null"),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.persons: dict[int, Person] = {}
        self.webhooks: dict[int, dict[str, Any]] = {}
        super().__init__(**switches)

    def add(self, **fields: Any) -> int:
        number = 1234 + len(self.persons)
        now = self._now()
        custom = {TEXT: None, OPTIONS: None, **fields.pop("custom_fields", {})}
        self.persons[number] = {
            "id": number,
            "name": "Ada Lovelace",
            "emails": [],
            "phones": [],
            "add_time": now,
            "update_time": now,
            "is_deleted": False,
            "marketing_status": "subscribed",
            **fields,
            "custom_fields": custom,
        }
        return number

    def change(self, number: int, **fields: Any) -> None:
        self.persons[number] |= {**fields, "update_time": self._now()}

    def _now(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.get("/api/v2/persons")(self._list)
        app.patch("/api/v2/persons/<int:number>")(self._update)
        app.get("/v1/webhooks")(self._list_webhooks)
        app.post("/v1/webhooks")(self._add_webhook)
        app.delete("/v1/webhooks/<int:number>")(self._delete_webhook)
        app.before_request(self._authorise)

    def _authorise(self) -> Response | None:
        given = request.headers.get("x-api-token", "")
        return None if hmac.compare_digest(given, self.token) else _refused(401, "unauthorized access")

    def _list(self) -> Response:
        asked = request.args
        limit = int(asked.get("limit", "100"))
        ids = asked["ids"].split(",") if "ids" in asked else []
        custom = asked["custom_fields"].split(",") if "custom_fields" in asked else None
        included = asked.get("include_fields", "").split(",")
        if not 1 <= limit <= LIMIT or len(ids) > IDS or len(custom or []) > CUSTOM:
            return _refused(400, "A limit was exceeded.")
        if not all(re.fullmatch("[0-9]{1,10}", one) for one in ids):
            return _refused(400, "An id is not a number.")
        if "updated_since" in asked and not re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", asked["updated_since"]
        ):
            return _refused(400, "updated_since is not in RFC3339.")
        with_status = "marketing_status" in included
        if with_status and self.switches["campaigns"] == "refused_400":
            return _refused(400, "marketing_status cannot be included.")
        if with_status and self.switches["campaigns"] == "refused_403":
            return _refused(403, "The marketing app is not enabled.")
        sort_by = asked.get("sort_by")
        start = asked.get("cursor", "")
        # The place of the next page is where its first person stands by now.
        begin = _place(self.persons[int(start.removeprefix("c"))], sort_by) if start else ()
        persons = [
            person
            for person in sorted(self.persons.values(), key=lambda one: _place(one, sort_by))
            if (not ids or str(person["id"]) in ids)
            and person["update_time"] >= asked.get("updated_since", "")
            and not person["is_deleted"]
            and _place(person, sort_by) >= begin
        ]
        following = persons[limit]["id"] if len(persons) > limit else None
        with_status = with_status and self.switches["campaigns"] == "yes"
        return answer(
            200,
            {
                "success": True,
                "data": [_shown(person, custom, with_status=with_status) for person in persons[:limit]],
                "additional_data": {"next_cursor": f"c{following}" if following else None},
            },
        )

    def _update(self, number: int) -> Response:
        person, wanted = self.persons.get(number), request.get_json()
        if person is None or person["is_deleted"]:
            return _refused(404, "Person not found")
        if "marketing_status" in wanted:
            if self.switches["campaigns"] != "yes":
                return _refused(400, "Parameter 'marketing_status' is not allowed")
            person["marketing_status"] = wanted["marketing_status"]
        for name, value in wanted.get("custom_fields", {}).items():
            if name not in person["custom_fields"]:
                return _refused(400, "There is no such field.")
            # An option that does not exist empties the field, and that is a success.
            person["custom_fields"][name] = value if name == TEXT else None
        return answer(200, {"success": True, "data": _shown(person, None, with_status=True)})

    # --- webhooks ---

    def _list_webhooks(self) -> Response:
        told = self.switches["passwords"]
        shown = []
        for webhook in self.webhooks.values():
            one = dict(webhook)
            if told == "stars":
                one["http_auth_password"] = "********"
            elif told != "told":
                del one["http_auth_password"]
            if told == "no_logins":
                del one["http_auth_user"]
            shown.append(one)
        empty: list[Any] | None = [] if self.switches["no_webhooks"] == "empty" else None
        return answer(200, {"status": "ok", "success": True, "data": shown or empty})

    def _add_webhook(self) -> Response:
        wanted = request.get_json()
        if not {"subscription_url", "event_action", "event_object"} <= set(wanted):
            return _refused(400, "A parameter is missing.")
        urls = [one["subscription_url"] for one in self.webhooks.values()]
        if self.switches["same_url"] == "refused" and wanted["subscription_url"] in urls:
            return _refused(400, "There is a webhook for this address.")
        number = 55501 + len(self.webhooks)
        webhook = {"http_auth_user": None, "http_auth_password": None, "version": "2.0", **wanted}
        self.webhooks[number] = {**webhook, "id": number, "is_active": 1, "company_id": 7654321}
        return answer(201, {"status": "ok", "success": True, "data": self.webhooks[number]})

    def _delete_webhook(self, number: int) -> Response:
        if self.webhooks.pop(number, None) is None:
            return _refused(404, "Webhook not found")
        return answer(200, {"success": True, "status": "ok"})


def _place(person: Person, sort_by: str | None) -> tuple[Any, ...]:
    return (person["id"],) if sort_by in {None, "id"} else (person[sort_by], person["id"])


def _shown(person: Person, custom: list[str] | None, *, with_status: bool) -> Person:
    shown = {name: value for name, value in person.items() if with_status or name != "marketing_status"}
    fields = shown["custom_fields"]
    named = fields if custom is None else {name: fields[name] for name in custom if name in fields}
    return {**shown, "custom_fields": named}


def _refused(status: int, error: str) -> Response:
    return answer(status, {"success": False, "error": error})
