"""A Zendesk account on loopback: users, their export, and webhooks. It is as strict as Zendesk, or stricter.

https://developer.zendesk.com/api-reference/ticketing/users/users/ and
https://developer.zendesk.com/api-reference/webhooks/webhooks-api/webhooks/
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import iso

START = datetime(2026, 9, 21, 14, 0, 0, tzinfo=UTC)
User = dict[str, Any]
WEBHOOK = {"name", "endpoint", "http_method", "request_format", "status", "subscriptions"}


class Zendesk(Fake):
    """See the module's docstring.

    - ``deleted``: whether deleted users are left out of show_many, or shown as not active.
    - ``touched``: whether a change of a custom field moves ``updated_at``.
    - ``unknown_field``: what becomes of an unknown key of ``user_fields``.
    """

    title = "Zendesk"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "deleted": ("left_out", "inactive"),
        "touched": ("by_all", "not_by_custom_fields"),
        "unknown_field": ("ignored", "refused"),
    }
    email, token, oauth = "admin@example.com", "demo-zendesk-token", "demo-zendesk-oauth"
    account_id = 22129848

    def __init__(self, **switches: Any) -> None:
        self.now = START
        self.users: dict[int, User] = {}
        self.webhooks: dict[str, dict[str, Any]] = {}
        self.page_cap = 1000  # of the export: a page may hold fewer than were asked for
        self.exports: list[datetime] = []
        self.custom = {"sms_opt_out": "checkbox", "tier": "tagger", "stop": "text", "phone": "text"}
        self._events = 0
        super().__init__(**switches)

    # --- what people do in Zendesk ---

    def tick(self, seconds: float = 1) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def create(self, **fields: Any) -> str:
        """Add an end-user and return the id."""
        number = 6596848315900 + len(self.users) + 1
        plain = {"name": "", "email": None, "phone": None, "external_id": None, "organization_id": None}
        self.users[number] = {
            "id": number,
            "url": f"https://acme.zendesk.com/api/v2/users/{number}.json",
            **plain,
            "created_at": self._second(),
            "updated_at": self._second(),
            "time_zone": "London",
            "photo": None,
            "role": "end-user",
            "active": True,
            "suspended": False,
            "tags": [],
            "user_fields": {name: False if kind == "checkbox" else None for name, kind in self.custom.items()},
        }
        self.change(str(number), **fields)
        return str(number)

    def change(self, source_id: str, **fields: Any) -> None:
        user = self.users[int(source_id)]
        custom = fields.pop("user_fields", {})
        user["user_fields"] |= custom
        user |= fields
        if fields or self.switches["touched"] == "by_all":
            user["updated_at"] = self._second()

    def delete(self, source_id: str) -> None:
        self.change(source_id, active=False)

    def event(self, action: str, source_id: str, **event: Any) -> bytes:
        """Return the body of the event that Zendesk sends of a user."""
        user = self.users[int(source_id)]
        self._events += 1
        detail = {
            "created_at": user["created_at"],
            "default_group_id": "0",
            "email": user["email"],
            "external_id": user["external_id"] or "",
            "id": source_id,
            "organization_id": str(user["organization_id"] or 0),
            "role": user["role"],
            "updated_at": user["updated_at"],
        }
        return json.dumps(
            {
                "type": f"zen:event-type:user.{action}",
                "account_id": self.account_id,
                "id": f"de305d54-75b4-431b-adb2-{self._events:012d}",
                "time": iso(self.now),
                "zendesk_event_version": "2022-11-06",
                "subject": f"zen:user:{source_id}",
                "detail": detail,
                "event": event,
            }
        ).encode()

    def _second(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.get("/api/v2/users/show_many.json")(self._show_many)
        app.get("/api/v2/incremental/users/cursor.json")(self._export)
        app.put("/api/v2/users/<source_id>.json")(self._update)
        app.get("/api/v2/webhooks")(self._list_webhooks)
        app.post("/api/v2/webhooks")(self._create_webhook)
        app.patch("/api/v2/webhooks/<hook_id>")(self._change_webhook)
        app.delete("/api/v2/webhooks/<hook_id>")(self._remove_webhook)
        app.get("/api/v2/webhooks/<hook_id>/signing_secret")(self._signing_secret)
        app.before_request(self._authorise)

    def _authorise(self) -> Response | None:
        login = base64.b64encode(f"{self.email}/token:{self.token}".encode()).decode()
        if request.headers.get("Authorization") in {f"Basic {login}", f"Bearer {self.oauth}"}:
            return None
        return answer(401, {"error": "Couldn't authenticate you"})

    def _answer(self, body: Any, status: int = 200) -> Response:
        return answer(status, body, {"Date": format_datetime(self.now, usegmt=True)})

    def _show_many(self) -> Response:
        ids = request.args.get("ids", "").split(",")
        if set(request.args) != {"ids"} or not all(one.isdecimal() for one in ids) or len(ids) > 100:
            return answer(400, {"error": "BadRequest"})
        found = [self.users[int(one)] for one in ids if int(one) in self.users]
        if self.switches["deleted"] == "left_out":
            found = [user for user in found if user["active"]]
        # Zendesk promises no order.
        return self._answer({"users": found[::-1], "next_page": None, "previous_page": None, "count": len(found)})

    def _export(self) -> Response:
        self.exports = [at for at in self.exports if at > self.now - timedelta(minutes=1)]
        if len(self.exports) >= 10:
            return answer(429, {"error": "APIRateLimitExceeded"}, {"Retry-After": "37"})
        self.exports.append(self.now)
        query = dict(request.args)
        size = int(query.pop("per_page", "1000"))
        if set(query) not in ({"start_time"}, {"cursor"}) or not 0 < size <= 1000:
            return answer(400, {"error": "BadRequest"})
        place: tuple[str, int]
        if "cursor" in query:
            at, number = json.loads(base64.b64decode(query["cursor"]))
            place = (at, number)
        else:
            start = datetime.fromtimestamp(int(query["start_time"]), UTC)
            if start > self.now - timedelta(minutes=1):
                return answer(400, {"error": "StartTimeTooRecent"})
            place = (start.strftime("%Y-%m-%dT%H:%M:%SZ"), 0)
        settled = (self.now - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        order = sorted(
            (user["updated_at"], user["id"]) for user in self.users.values() if user["updated_at"] <= settled
        )
        rest = [one for one in order if one > place]
        page = rest[: min(size, self.page_cap)]
        last = page[-1] if page else place
        cursor = base64.b64encode(json.dumps(last).encode()).decode()
        body = {
            "users": [self.users[number] for _, number in page],
            "after_url": "https://acme.zendesk.com/api/v2/incremental/users/cursor.json?cursor=…",
            "after_cursor": cursor,
            "end_of_stream": len(page) == len(rest),
        }
        return self._answer(body)

    def _update(self, source_id: str) -> Response:
        user = self.users.get(int(source_id)) if source_id.isdecimal() else None
        if user is None:
            return answer(404, {"error": "RecordNotFound"})
        given = request.get_json()
        if set(given) != {"user"} or set(given["user"]) != {"user_fields"}:
            return answer(422, {"error": "RecordInvalid"})
        for name, value in given["user"]["user_fields"].items():
            kind = self.custom.get(name)
            if kind is None and self.switches["unknown_field"] == "refused":
                return answer(422, {"error": "RecordInvalid"})
            if kind == "checkbox":
                self.change(source_id, user_fields={name: value})
            elif kind is not None:
                return answer(422, {"error": "RecordInvalid"})
        return self._answer({"user": user})

    # --- webhooks ---

    def _list_webhooks(self) -> Response:
        size = int(request.args.get("page[size]", "100"))
        if set(request.args) - {"page[size]", "page[after]"} or size > 100:
            return answer(400, {"error": "BadRequest"})
        begin = int(request.args.get("page[after]", "0"))
        size = min(size, 2)  # so that there are pages
        found = list(self.webhooks.values())
        more = begin + size < len(found)
        meta = {"has_more": more, "after_cursor": str(begin + size) if more else None, "before_cursor": None}
        return self._answer({"webhooks": found[begin : begin + size], "links": {}, "meta": meta})

    def _unfit(self, hook: Mapping[str, Any], needed: set[str]) -> bool:
        names = hook.get("subscriptions", [])
        events = [one for one in names if one.startswith("zen:event-type:")]
        mixed = bool(events) and len(events) != len(names)
        post = hook.get("http_method", "POST") == "POST" and hook.get("request_format", "json") == "json"
        return mixed or not post or not needed <= set(hook) <= WEBHOOK | {"authentication"}

    def add_webhook(self, **hook: Any) -> str:
        hook_id = f"01HABCDEFG{len(self.webhooks):04d}"
        self.webhooks[hook_id] = {"id": hook_id, "created_by": "1", **hook}
        return hook_id

    def _create_webhook(self) -> Response:
        hook = request.get_json()["webhook"]
        if self._unfit(hook, WEBHOOK):
            return answer(400, {"errors": [{"code": "InvalidWebhook"}]})
        return self._answer({"webhook": self.webhooks[self.add_webhook(**hook)]}, 201)

    def _change_webhook(self, hook_id: str) -> Response:
        change = request.get_json()["webhook"]
        if hook_id not in self.webhooks:
            return answer(404, {"errors": [{"code": "WebhookNotFound"}]})
        if self._unfit(change, set()):
            return answer(400, {"errors": [{"code": "InvalidWebhook"}]})
        self.webhooks[hook_id] |= change
        return Response(status=204)

    def _remove_webhook(self, hook_id: str) -> Response:
        if hook_id not in self.webhooks:
            return answer(404, {"errors": [{"code": "WebhookNotFound"}]})
        del self.webhooks[hook_id]
        return Response(status=204)

    def _signing_secret(self, hook_id: str) -> Response:
        if hook_id not in self.webhooks:
            return answer(404, {"errors": [{"code": "WebhookNotFound"}]})
        return self._answer({"signing_secret": {"algorithm": "SHA256", "secret": f"secret-of-{hook_id}=="}})
