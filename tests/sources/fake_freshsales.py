"""A strict Freshsales on loopback: contacts one by one, a view of them by page numbers, and custom fields."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

SORTS = {"created_at", "updated_at", "lead_score", "last_contacted", "open_deals_amount"}


class Freshsales(Fake):
    title = "Freshsales"
    key = "sfg999666t673t7t82"
    view = 4000031147
    SWITCHES = {  # noqa: RUF012
        "deleted": ("not_found", "flagged"),
        "behind_the_last_page": ("empty", "last_page"),
        "largest_page": (100, 25),
        "order": ("as_asked", "newest_first"),
        "total": ("told", "untold"),
        "after_put": ("whole", "without_custom_fields", "not_taken"),
    }

    def __init__(self, **switches: Any) -> None:
        self.contacts: dict[int, dict[str, Any]] = {}
        self.clock: Callable[[], datetime] = utc_now
        self.calls_left = 1000
        self.views = [{"id": 1, "name": "My contacts"}, {"id": self.view, "name": "All Contacts"}]
        super().__init__(**switches)

    # --- what people do in it ---

    def add(self, at: datetime | None = None, **fields: Any) -> str:
        """Add a contact; return its id."""
        number = 16019420000 + len(self.contacts) + 1
        custom = {name: fields.pop(name) for name in list(fields) if name.startswith("cf_")}
        self.contacts[number] = {
            "id": number, "email": None, "emails": [], "mobile_number": None, "work_number": None,
            "first_name": None, "last_name": None, "is_deleted": False, **fields,
            "custom_field": {"cf_optout": False, **custom},
            "created_at": self._at(at), "updated_at": self._at(at),
        }  # fmt: skip
        return str(number)

    def change(self, contact: str, at: datetime | None = None, **fields: Any) -> None:
        self.contacts[int(contact)] |= {**fields, "updated_at": self._at(at)}

    def delete(self, contact: str) -> None:
        self.contacts[int(contact)]["is_deleted"] = True

    def _at(self, at: datetime | None) -> str:
        return (at or self.clock()).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- its API ---

    def routes(self, app: Flask) -> None:
        app.before_request(self._guard)
        app.after_request(self._dated)
        app.add_url_rule("/contacts/filters", "filters", self._filters)
        app.add_url_rule("/contacts/view/<int:view>", "view", self._view)
        app.add_url_rule("/contacts/<number>", "one", self._one)
        app.add_url_rule("/contacts/<number>", "put", self._put, methods=["PUT"])

    def _guard(self) -> Response | None:
        if request.headers.get("Authorization") != f"Token token={self.key}":
            return answer(401, {"login": "failed", "message": "Invalid API key"})
        if self.calls_left <= 0:
            return answer(429, {"message": "rate limit exceeded"}, {"Retry-After": "30"})
        self.calls_left -= 1
        return None

    def _dated(self, response: Response) -> Response:
        response.date = self.clock()
        return response

    def _filters(self) -> Response:
        return answer(200, {"filters": self.views})

    def _view(self, view: int) -> Response:
        page, size = (int(request.args.get(name, "1")) for name in ("page", "per_page"))
        if view != self.view or request.args.get("sort") not in SORTS or size > 100 or page < 1:
            return answer(400, {"errors": {"code": 400, "message": ["bad request"]}})
        size = min(size, self.switches["largest_page"])
        rows = sorted(
            (one for one in self.contacts.values() if not one["is_deleted"]),
            key=lambda one: (one[request.args["sort"]], one["id"]),
            reverse=request.args.get("sort_type") != "asc" or self.switches["order"] == "newest_first",
        )
        pages = max((len(rows) + size - 1) // size, 1)
        if page > pages and self.switches["behind_the_last_page"] == "last_page":
            page = pages
        meta = {"total_pages": pages, **({"total": len(rows)} if self.switches["total"] == "told" else {})}
        return answer(200, {"contacts": rows[(page - 1) * size : page * size], "meta": meta})

    def _one(self, number: str) -> Response:
        found = self.contacts.get(int(number)) if number.isdigit() else None
        if found is None or (found["is_deleted"] and self.switches["deleted"] == "not_found"):
            return answer(404, {"errors": {"code": 404, "message": "Not found"}})
        return answer(200, {"contact": found})

    def _put(self, number: str) -> Response:
        found = self.contacts.get(int(number)) if number.isdigit() else None
        if found is None or found["is_deleted"]:
            return answer(404, {"errors": {"code": 404, "message": "Not found"}})
        custom = (request.get_json() or {}).get("contact", {}).get("custom_field", {})
        if not custom or set(custom) - set(found["custom_field"]):
            return answer(400, {"errors": {"code": 400, "message": ["unknown field"]}})
        if self.switches["after_put"] != "not_taken":
            found["custom_field"] |= custom
            found["updated_at"] = self._at(None)
        whole = self.switches["after_put"] != "without_custom_fields"
        return answer(200, {"contact": found if whole else {"id": found["id"]}})
