"""An Intercom workspace on loopback: contacts that can be read, searched and changed. Stricter than Intercom.

https://developers.intercom.com/docs/references/rest-api/api.intercom.io/contacts
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

START = datetime(2026, 9, 21, 14, 0, 0, tzinfo=UTC)
DAY = 86_400
Contact = dict[str, Any]


class Intercom(Fake):
    """See the module's docstring.

    - ``archived``: what reading an archived contact gives.
    - ``merged``: what reading a contact gives that was merged into another.
    - ``compares``: whether the search compares whole days, or seconds.
    - ``last_page``: how the last page says that it is the last.
    - ``touched``: whether a tag moves ``updated_at``.
    """

    title = "Intercom"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "archived": ("not_found", "shown"),
        "merged": ("not_found", "survivor"),
        "compares": ("days", "seconds"),
        "last_page": ("no_next", "null"),
        "touched": ("by_all", "not_by_tags"),
    }
    token = "demo-intercom-token"
    app_id = "abc123"

    def __init__(self, **switches: Any) -> None:
        self.now = START
        self.contacts: dict[str, Contact] = {}
        self.merges: dict[str, str] = {}
        self.gone: set[str] = set()
        self.lag: set[str] = set()  # made so lately that the search does not find them
        self.page_cap = 150
        self.attributes = {"plan": str, "stop": str, "no_sms": bool, "name": bool}
        self._events = 0
        super().__init__(**switches)

    # --- what people do in Intercom ---

    @property
    def seconds(self) -> int:
        return int(self.now.timestamp())

    def tick(self, seconds: float = 1) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def create(self, **fields: Any) -> str:
        """Add a contact and return the id."""
        contact_id = f"5ba682d23d7cf92bef{len(self.contacts):06x}"
        plain = {"external_id": None, "email": None, "phone": None, "name": None, "owner_id": None}
        self.contacts[contact_id] = {
            "type": "contact",
            "id": contact_id,
            "workspace_id": self.app_id,
            "role": "user",
            **plain,
            "unsubscribed_from_emails": False,
            "created_at": self.seconds,
            "updated_at": self.seconds,
            "tags": {"type": "list", "data": [], "total_count": 0, "has_more": False},
            "custom_attributes": {},
        }
        self.change(contact_id, **fields)
        return contact_id

    def change(self, contact_id: str, **fields: Any) -> None:
        contact = self.contacts[contact_id]
        contact["custom_attributes"] |= fields.pop("custom_attributes", {})
        contact |= fields
        contact["updated_at"] = self.seconds

    def tag(self, contact_id: str, *tags: str) -> None:
        data = [{"type": "tag", "id": tag, "url": f"/tags/{tag}"} for tag in tags[:10]]
        tagged = {"type": "list", "data": data, "total_count": len(tags), "has_more": len(tags) > 10}
        contact = self.contacts[contact_id]
        contact["tags"] = tagged
        if self.switches["touched"] == "by_all":
            contact["updated_at"] = self.seconds

    def archive(self, contact_id: str) -> None:
        self.gone.add(contact_id)

    def merge(self, lead_id: str, user_id: str) -> None:
        self.merges[lead_id] = user_id
        self.change(user_id)

    def notify(self, topic: str, contact_id: str, **item: Any) -> bytes:
        """Return the body of the notification that Intercom sends of a contact."""
        self._events += 1
        return json.dumps(
            {
                "type": "notification_event",
                "app_id": self.app_id,
                "id": f"notif_{self._events:036d}",
                "topic": topic,
                "delivery_attempts": 1,
                "first_sent_at": self.seconds,
                "created_at": self.seconds,
                "data": {"type": "notification_event_data", "item": {**self.contacts[contact_id], **item}},
            }
        ).encode()

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.get("/contacts/<contact_id>")(self._show)
        app.put("/contacts/<contact_id>")(self._change)
        app.post("/contacts/search")(self._search)
        app.before_request(self._authorise)

    def _authorise(self) -> Response | None:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _errors(401, "unauthorized")
        if request.headers.get("Intercom-Version") != "2.11":
            return _errors(400, "intercom_version_invalid")
        return None

    def _answer(self, body: Any) -> Response:
        return answer(200, body, {"Date": format_datetime(self.now, usegmt=True)})

    def _found(self, contact_id: str) -> Contact | None:
        if contact_id in self.merges and self.switches["merged"] == "survivor":
            contact_id = self.merges[contact_id]
        contact = self.contacts.get(contact_id)
        if contact is None or contact_id in self.merges:
            return None
        if contact_id in self.gone:
            return {**contact, "archived": True} if self.switches["archived"] == "shown" else None
        return contact

    def _show(self, contact_id: str) -> Response:
        contact = self._found(contact_id)
        return _errors(404, "not_found") if contact is None else self._answer(contact)

    def _change(self, contact_id: str) -> Response:
        contact, given = self._found(contact_id), request.get_json()
        if contact is None:
            return _errors(404, "not_found")
        custom = given.get("custom_attributes", {})
        if not set(given) <= {"unsubscribed_from_emails", "custom_attributes"} or not custom.keys() <= set(
            self.attributes
        ):
            return _errors(400, "parameter_invalid")
        if any(not isinstance(value, self.attributes[name]) for name, value in custom.items()):
            return _errors(400, "parameter_invalid")
        self.change(contact_id, **given)
        return self._answer(contact)

    def _search(self) -> Response:
        asked = request.get_json()
        pagination = asked["pagination"]
        size = pagination["per_page"]
        if set(asked) != {"query", "sort", "pagination"} or not 0 < size <= 150:
            return _errors(400, "bad_request")
        if asked["sort"] != {"field": "updated_at", "order": "ascending"}:
            return _errors(400, "bad_request")
        hits = sorted(
            (contact["updated_at"], contact_id)
            for contact_id, contact in self.contacts.items()
            if contact_id not in self.gone | self.lag | set(self.merges) and self._fits(contact, asked["query"])
        )
        total = len(hits)
        if "starting_after" in pagination:
            at, contact_id = json.loads(base64.b64decode(pagination["starting_after"]))
            hits = [hit for hit in hits if hit > (at, contact_id)]
        page = hits[: min(size, self.page_cap)]
        pages: dict[str, Any] = {"type": "pages", "page": 1, "per_page": size, "total_pages": 1}
        if len(page) < len(hits):
            cursor = base64.b64encode(json.dumps(page[-1]).encode()).decode()
            pages["next"] = {"page": 2, "starting_after": cursor}
        elif self.switches["last_page"] == "null":
            pages["next"] = None
        data = [self.contacts[contact_id] for _, contact_id in page]
        return self._answer({"type": "list", "data": data, "total_count": total, "pages": pages})

    def _fits(self, contact: Contact, query: Mapping[str, Any]) -> bool:
        if query["operator"] == "OR":
            assert len(query["value"]) <= 15
            return any(self._fits(contact, one) for one in query["value"])
        if query["field"] == "role":
            assert query["operator"] == "="
            return bool(contact["role"] == query["value"])
        assert (query["field"], query["operator"]) == ("updated_at", ">")
        if self.switches["compares"] == "days":
            return bool(contact["updated_at"] // DAY > query["value"] // DAY)
        return bool(contact["updated_at"] > query["value"])


def _errors(status: int, code: str) -> Response:
    return answer(status, {"type": "error.list", "errors": [{"code": code, "message": code}]})
