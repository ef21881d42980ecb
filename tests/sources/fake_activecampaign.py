"""An ActiveCampaign account on loopback that webhooks come from: the target's, and what only a source asks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from flask import Flask, Response, request

from bridge.demo.fakes.activecampaign import ACCOUNT_ZONE, ActiveCampaign, Contact, Json
from bridge.demo.fakes.base import answer

EVENTS = frozenset({
    "subscribe", "unsubscribe", "update", "contact_tag_added", "contact_tag_removed", "subscriber_note", "bounce",
    "click", "forward", "open", "reply", "sent", "share", "list_add", "sms_reply", "sms_sent", "sms_unsub",
    "deal_add", "deal_update",
})  # fmt: skip
NAMES = {"first_name": "firstName", "last_name": "lastName", "phone": "phone"}


class Crm(ActiveCampaign):
    """See `ActiveCampaign`. Strict in what only a source asks, too.

    - ``ids``: whether the filter by ids holds, is not known at all, or takes so many only.
    - ``page_cap``: how many contacts a page has at most.
    - ``beside``: whether custom fields and lists stand beside the contacts of a list, do not, or not all of them,
      which the contacts then tell.
    - ``updated_after``: whether it compares moments, or days in the account's time zone, that day left out.
    - ``event_list``: whether the events of the plan are listed, and whether text messages are among them.
    - ``order``, ``id_greater``: whether they are kept to.
    """

    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        **ActiveCampaign.SWITCHES,
        "ids": ("kept", "ignored", "first_2"),
        "page_cap": (100, 2),
        "beside": ("whole", "absent", "cut"),
        "updated_after": ("moment", "day"),
        "event_list": ("whole", "no_sms", "missing"),
        "order": ("kept", "ignored"),
        "id_greater": ("kept", "ignored"),
    }

    def __init__(self, **switches: Any) -> None:
        self.webhooks: dict[str, Json] = {}
        self.whole_pages = 0
        super().__init__(**switches)

    # --- what people do ---

    def add(self, email: str, *, updated: datetime | None = None, **texts: str) -> str:
        """Add a contact, by default changed just now."""
        number = self.add_contact(email, **texts)
        self.contacts[number].updated = updated or datetime.now(UTC)
        return number

    def webhook(self, kind: str, contact_id: str, **more: str) -> bytes:
        """Return the form that tells of what was done to a contact."""
        contact = self.contacts[contact_id]
        pairs = {
            "type": kind,
            "date_time": contact.updated.astimezone(ACCOUNT_ZONE).isoformat(timespec="seconds"),
            "initiated_from": "admin",
            "initiated_by": "admin",
            "list": "0",
            "contact[id]": contact.id,
            "contact[email]": contact.email,
            "contact[customer_acct_name]": "acme",
        }
        if kind != "unsubscribe":
            pairs |= {f"contact[{name}]": contact.texts[theirs] for name, theirs in NAMES.items()}
            pairs |= {
                f"contact[fields][{number}]": value or ""
                for (owner, number), (_, value) in self.values.items()
                if owner == contact.id
            }
        return urlencode(pairs | more).encode()

    # --- the API ---

    def routes(self, app: Flask) -> None:
        super().routes(app)
        app.get("/api/3/webhook/events")(self._event_list)
        app.get("/api/3/webhooks")(self._webhook_list)
        app.post("/api/3/webhooks")(self._webhook_create)
        app.put("/api/3/webhooks/<number>")(self._webhook_update)
        app.delete("/api/3/webhooks/<number>")(self._webhook_delete)

    def _query(self, allowed: Iterable[str]) -> None:
        super()._query({*allowed, "filters[updated_after]"})

    def _matches(self, contact: Contact, args: Mapping[str, str]) -> bool:
        if "ids[]" in args:
            ids = request.args.getlist("ids[]")
            if self.switches["ids"] == "first_2" and contact.id not in ids[:2]:
                return False
            if self.switches["ids"] == "ignored":
                args = {name: text for name, text in args.items() if name != "ids[]"}
        if self.switches["id_greater"] == "ignored":
            args = {name: text for name, text in args.items() if name != "id_greater"}
        return self._is_after(contact, args.get("filters[updated_after]", "")) and super()._matches(contact, args)

    def _is_after(self, contact: Contact, text: str) -> bool:
        if not text:
            return True
        updated, bound = contact.updated.astimezone(ACCOUNT_ZONE), datetime.fromisoformat(text)
        if self.switches["updated_after"] == "day":
            return updated.date() > bound.date()
        return updated > (bound if bound.tzinfo else bound.replace(tzinfo=ACCOUNT_ZONE))

    def _page(self, rows: list[Json]) -> tuple[list[Json], Json]:
        if self.switches["order"] == "ignored" and request.path.endswith("/contacts"):
            rows.reverse()
        page, meta = super()._page(rows)
        return page[: self.switches["page_cap"]], meta

    def _list(self) -> Response:
        found = super()._list()
        body = json.loads(found.get_data())
        for part in ("fieldValues", "contactLists"):
            if self.switches["beside"] == "absent":
                body.pop(part, None)
            elif part in body:
                for contact in body["contacts"]:
                    contact[part] = [row["id"] for row in body[part] if row["contact"] == contact["id"]]
                if self.switches["beside"] == "cut":
                    body[part] = body[part][:1]
        return answer(found.status_code, body)

    # --- webhooks ---

    def _event_list(self) -> Response:
        how = self.switches["event_list"]
        if how == "missing":
            return answer(404, {"message": "No Result found"})
        return answer(200, {"webhookEvents": sorted(EVENTS - ({"sms_unsub"} if how == "no_sms" else set()))})

    def _webhook_list(self) -> Response:
        self._query({"limit", "offset"})
        page, meta = self._page([self._shown(number) for number in self.webhooks])
        return answer(200, {"webhooks": page, "meta": {"total": meta["total"]}})

    def _shown(self, number: str) -> Json:
        return {
            "id": number,
            "listid": "0",
            "cdate": "2026-09-21T09:13:20-05:00",
            "links": {},
            **self.webhooks[number],
        }

    def _webhook_create(self) -> Response:
        number = self._id()
        self.webhooks[number] = self._webhook_body()
        return answer(201, {"webhook": self._shown(number)})

    def _webhook_update(self, number: str) -> Response:
        if number not in self.webhooks:
            return answer(404, {"message": f"No Result found for Webhook with id {number}"})
        self.webhooks[number] = self._webhook_body()
        return answer(200, {"webhook": self._shown(number)})

    def _webhook_delete(self, number: str) -> Response:
        if self.webhooks.pop(number, None) is None:
            return answer(404, {"message": f"No Result found for Webhook with id {number}"})
        return answer(200, {})

    def _webhook_body(self) -> Json:
        row = self._body("webhook", ("name", "url", "events", "sources", "listid"))
        known = EVENTS - ({"sms_unsub"} if self.switches["event_list"] == "no_sms" else set())
        assert row["url"].startswith("https://")
        assert set(row["events"]) <= known, row["events"]
        assert set(row["sources"]) <= {"public", "admin", "api", "system"}
        return row
