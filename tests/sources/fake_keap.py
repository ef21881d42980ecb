"""A Keap account on loopback: contacts, tags, and hooks, whose URLs it asks whether they want them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

Json = dict[str, Any]
EVENTS = (
    "contact.add", "contact.edit", "contact.delete", "contactGroup.applied", "contactGroup.removed", "order.add",
)  # fmt: skip
OPTIONAL = ("custom_fields", "job_title", "lead_source_id", "notes", "website", "birthday")
PARAMETERS = {"limit", "offset", "order", "order_direction", "since", "until", "optional_properties"}
API = "https://api.infusionsoft.com/crm/rest/v1"


class Keap(Fake):
    """Strict: what Keap refuses it refuses. *asks*: calls a URL with a secret; says whether it was echoed.

    - ``custom_fields``: whether those without a value are there, with null.
    - ``page_cap``: how many contacts a page has at most.
    - ``order``: whether it is kept to.
    - ``offset_of_times``: how times are written.
    - ``verifies``: whether the URL is asked while a hook is created, or only when that is asked for, or in vain.
    - ``event_keys``, ``model``: whether they are told.
    """

    title = "Keap"
    key = "KeapAK-0123456789"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "custom_fields": ("all", "filled"),
        "page_cap": (1000, 3),
        "order": ("kept", "ignored"),
        "offset_of_times": ("Z", "+0000"),
        "verifies": ("at_once", "when_asked"),
        "event_keys": ("told", "missing"),
        "model": ("told", "missing"),
        "deletes": (204, 200),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.contacts: dict[int, Json] = {}
        self.custom: set[int] = {7, 9}
        self.hooks: dict[str, Json] = {}
        self.asks: Callable[[str, str], bool] = lambda _url, _secret: True
        self.bearer = False
        self._last_id = 100
        super().__init__(**switches)

    # --- what people do in Keap ---

    def create(self, **fields: Any) -> int:
        with self.lock:
            self._last_id += 1
            at = self.clock()
            self.contacts[self._last_id] = {
                "given_name": None,
                "family_name": None,
                "email_addresses": [],
                "phone_numbers": [],
                "addresses": [],
                "company": None,
                "email_opted_in": True,
                "email_status": "SingleOptIn",
                "owner_id": 1,
                "tag_ids": [],
                "custom": {},
                "created": at,
                "updated": at,
                **fields,
            }
            return self._last_id

    def change(self, number: int, *, quietly: bool = False, **fields: Any) -> None:
        """Set fields of a contact; *quietly*: what does not count as a change of it."""
        with self.lock:
            self.contacts[number] |= fields
            if not quietly:
                self.contacts[number]["updated"] = self.clock()

    def tag(self, number: int, tag: int) -> None:
        self.change(number, quietly=True, tag_ids=[*self.contacts[number]["tag_ids"], tag])

    def delete(self, number: int) -> None:
        with self.lock:
            del self.contacts[number]

    def hook(self, event: str, *numbers: int) -> bytes:
        """Return the body that tells of what was done to contacts."""
        at = self._time(self.clock())
        keys = [{"apiUrl": f"{API}/contacts/{number}", "id": number, "timestamp": at} for number in numbers]
        return json.dumps({"event_key": event, "object_type": "contact", "object_keys": keys}).encode()

    def hook_of_tag(self, tag: int, *numbers: int, event: str = "contactGroup.applied") -> bytes:
        at = self._time(self.clock())
        details = [{"id": number, "timestamp": at} for number in numbers]
        keys = [{"apiUrl": f"{API}/tags/{tag}", "id": tag, "timestamp": at, "contact_details": details}]
        return json.dumps({"event_key": event, "object_type": "contactGroup", "object_keys": keys}).encode()

    # --- the API ---

    def routes(self, app: Flask) -> None:
        base = "/crm/rest/v1"
        app.before_request(self._authorise)
        app.get(f"{base}/contacts")(self._list)
        app.get(f"{base}/contacts/model")(self._model)
        app.get(f"{base}/contacts/<int:number>")(self._read)
        app.patch(f"{base}/contacts/<int:number>")(self._write)
        app.post(f"{base}/contacts/<int:number>/tags")(self._apply)
        app.get(f"{base}/hooks")(self._hook_list)
        app.post(f"{base}/hooks")(self._hook_create)
        app.get(f"{base}/hooks/event_keys")(self._event_keys)
        app.post(f"{base}/hooks/<key>/verify")(self._hook_verify)
        app.delete(f"{base}/hooks/<key>")(self._hook_delete)

    def _authorise(self) -> Response | None:
        given = request.headers.get("Authorization" if self.bearer else "X-Keap-API-Key")
        if given == (f"Bearer {self.key}" if self.bearer else self.key):
            return None
        return answer(401, {"fault": {"faultstring": "Invalid Access Token"}})

    def _wanted(self) -> set[str] | Response:
        names = set(filter(None, request.args.get("optional_properties", "").split(",")))
        if unknown := names - set(OPTIONAL):
            return answer(400, {"message": f"The following optional-properties are unrecognized: {unknown}"})
        return names

    def _read(self, number: int) -> Response:
        wanted = self._wanted()
        if isinstance(wanted, Response):
            return wanted
        if number not in self.contacts:
            return answer(404, {"message": "Unrecognized contact"})
        return answer(200, self._shown(number, wanted))

    def _list(self) -> Response:
        wanted, args = self._wanted(), request.args
        if isinstance(wanted, Response):
            return wanted
        limit, offset = int(args.get("limit", 1000)), int(args.get("offset", 0))
        if set(args) - PARAMETERS or not (1 <= limit <= 1000 and offset >= 0):
            return answer(400, {"message": "Bad parameters"})
        since = datetime.fromisoformat(args.get("since", "1970-01-01T00:00:00Z"))
        numbers = [number for number, contact in self.contacts.items() if contact["updated"] >= since]
        if self.switches["order"] == "kept":
            assert args["order"] in {"id", "date_created", "last_updated", "name", "first_name", "email"}
            assert args["order_direction"] in {"ASCENDING", "DESCENDING"}
            numbers.sort()
        else:
            numbers.sort(reverse=True)
        page = numbers[offset : offset + min(limit, self.switches["page_cap"])]
        body = {
            "contacts": [self._shown(number, wanted) for number in page],
            "count": len(numbers),
            "next": "http://169.254.169.254/latest/meta-data",  # is it ever called?
            "previous": "",
        }
        return answer(200, body)

    def _shown(self, number: int, wanted: set[str]) -> Json:
        contact = {name: value for name, value in self.contacts[number].items() if name not in OPTIONAL}
        custom, created, updated = (contact.pop(name) for name in ("custom", "created", "updated"))
        contact |= {"id": number, "date_created": self._time(created), "last_updated": self._time(updated)}
        contact |= {name: self.contacts[number].get(name) for name in wanted if name != "custom_fields"}
        if "custom_fields" in wanted:
            shown = sorted(self.custom) if self.switches["custom_fields"] == "all" else sorted(custom)
            contact["custom_fields"] = [{"id": one, "content": custom.get(one)} for one in shown]
        return contact

    def _time(self, at: datetime) -> str:
        written = at.astimezone(UTC).isoformat(timespec="milliseconds")
        return written.replace("+00:00", self.switches["offset_of_times"])

    def _model(self) -> Response:
        if self.switches["model"] == "missing":
            return answer(200, {})
        return answer(
            200, {"custom_fields": [{"id": one} for one in self.custom], "optional_properties": OPTIONAL}
        )

    def _write(self, number: int) -> Response:
        said = request.get_json()
        if number not in self.contacts:
            return answer(404, {"message": "Unrecognized contact"})
        if set(said) != {"custom_fields"} or {one["id"] for one in said["custom_fields"]} - self.custom:
            return answer(400, {"message": "Unrecognized custom field"})
        self.contacts[number]["custom"] |= {one["id"]: one["content"] for one in said["custom_fields"]}
        self.contacts[number]["updated"] = self.clock()
        return answer(200, self._shown(number, set()))

    def _apply(self, number: int) -> Response:
        tags = request.get_json()["tagIds"]
        if number not in self.contacts:
            return answer(404, {"message": "Unrecognized contact"})
        held = self.contacts[number]["tag_ids"]
        held += [tag for tag in tags if tag not in held]
        return answer(200, {str(tag): "SUCCESS" for tag in tags})

    # --- hooks ---

    def _event_keys(self) -> Response:
        return answer(200, EVENTS) if self.switches["event_keys"] == "told" else answer(400, {"message": "Bad"})

    def _hook_list(self) -> Response:
        return answer(200, list(self.hooks.values()))

    def _hook_create(self) -> Response:
        said = request.get_json()
        if set(said) != {"eventKey", "hookUrl"} or said["eventKey"] not in EVENTS:
            return answer(400, {"message": "Bad hook"})
        self._last_id += 1
        key = str(self._last_id)
        self.hooks[key] = {**said, "key": key, "status": "Unverified"}
        if self.switches["verifies"] == "at_once":
            self._ask(key)
        return answer(200, self.hooks[key])

    def _hook_verify(self, key: str) -> Response:
        if key not in self.hooks:
            return answer(404, {"message": "Unrecognized hook"})
        self._ask(key)
        return answer(200, self.hooks[key])

    def _ask(self, key: str) -> None:
        hook = self.hooks[key]
        if self.asks(hook["hookUrl"], f"secret-{key}"):
            hook["status"] = "Verified"

    def _hook_delete(self, key: str) -> Response:
        if self.hooks.pop(key, None) is None:
            return answer(404, {"message": "Unrecognized hook"})
        return Response(b"", self.switches["deletes"])
