"""A stand-in for Clerk Chat's public API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from bridge.demo.fakes.base import Fake, answer

WRITABLE = {"name": str, "email": str, "phone": str, "public": bool, "data": dict}
WORDS = {401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict"}
PAGE = 50
# A contact shows every field, set or not.
BLANK = dict.fromkeys(("name", "phone", "email", "externalId", "avatarURL")) | {"optOut": False, "public": False}


class _No(Exception):
    """An answer on its way out."""

    def __init__(self, status: int, *messages: str) -> None:
        super().__init__(*messages)
        self.status = status
        self.messages = messages


class ClerkChat(Fake):
    """One team's contacts. Nothing is unique, nothing is idempotent, and nothing can be read by id."""

    title = "Clerk Chat"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "put_mode": ("partial", "replace"),
        "put_accepts_phone": (False, True),
        "data_mode": ("replace", "merge"),
        "duplicate_phone": ("allow", "409", "return_existing"),
        "search": ("exact", "contains"),
        # What the search parameters are called, and what becomes of one that is called otherwise.
        "search_params": ("phone_email", "search", "query"),
        "unknown_params": ("ignore", "empty", "422"),
        "unknown_fields": ("ignore", "422"),
        "batch_failure": ("all", "partial"),
        "error_style": ("nest", "nest_list", "error_string", "error_object", "code", "empty", "html"),
    }

    def __init__(self, *, key: str = "clerk-chat-key", **switches: Any) -> None:
        self.key = key
        self.contacts: dict[str, dict[str, Any]] = {}
        self._next_id = 48213
        super().__init__(**switches)

    # --- for tests and the demo ---

    def person(self, phone: str) -> dict[str, Any]:
        """Return the contact with this phone in plain terms, or {}."""
        found = next((c for c in self.contacts.values() if c["phone"] == phone), None)
        if found is None:
            return {}
        shown = {name: found[name] for name in ("id", "name", "phone", "email", "public")}
        return {**shown, "opted out": found["optOut"], **{f"data.{k}": v for k, v in found["data"].items()}}

    def add(self, **fields: Any) -> str:
        """Put a contact there as a person in the dashboard would, whatever its fields; return its id."""
        with self.lock:
            return str(self._insert(fields)["id"])

    def block(self, contact_id: str) -> None:
        """The person sent STOP, or somebody turned the contact's switch."""
        with self.lock:
            self.contacts[contact_id]["optOut"] = True

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.before_request(self._guard)
        app.add_url_rule("/public/contacts", view_func=self._search, methods=["GET"])
        app.add_url_rule("/public/contacts", view_func=self._create, methods=["POST"], endpoint="create")
        app.add_url_rule("/public/contacts/batch", view_func=self._create_batch, methods=["POST"])
        app.add_url_rule("/public/contacts/<contact_id>", view_func=self._update, methods=["PUT"])
        app.register_error_handler(_No, self._refusal)
        app.register_error_handler(HTTPException, self._http_refusal)

    def _guard(self) -> None:
        if request.headers.get("apiKey") != self.key:
            raise _No(401, "Invalid API key")

    def _search(self) -> Response:
        names = {
            "phone_email": {"phone": "phone", "email": "email"},
            "search": {"search": ""},
            "query": {"query": ""},
        }
        known: dict[str, str] = names[self.switches["search_params"]]
        unknown = request.args.keys() - known.keys()
        if unknown and self.switches["unknown_params"] == "422":
            raise _No(422, *(f"property {name} should not exist" for name in sorted(unknown)))
        asked = {name: request.args[name] for name in known if name in request.args}
        if not asked and self.switches["unknown_params"] == "empty":
            return answer(200, {"data": []})
        hits = [c for c in self.contacts.values() if all(self._hit(c, known[n], v) for n, v in asked.items())]
        return answer(200, {"data": hits[:PAGE]})

    def _hit(self, contact: Mapping[str, Any], name: str, value: str) -> bool:
        held = [str(contact[one] or "").lower() for one in ([name] if name else ["phone", "email"])]
        if self.switches["search"] == "contains":
            return any(value.lower() in one for one in held)
        return value.lower() in held

    def _create(self) -> Response:
        body = self._body({"phone"})
        phone = body.get("phone")
        twin = next((c for c in self.contacts.values() if phone and c["phone"] == phone), None)
        if twin and self.switches["duplicate_phone"] == "409":
            raise _No(409, "Contact already exists")
        if twin and self.switches["duplicate_phone"] == "return_existing":
            return answer(200, {"data": twin})
        return answer(201, {"data": self._insert(body)})

    def _create_batch(self) -> Response:
        given = request.get_json(silent=True)
        if not isinstance(given, dict) or not isinstance(given.get("contacts"), list):
            raise _No(422, "contacts must be an array")
        good, wrong = [], []
        for number, item in enumerate(given["contacts"]):
            try:
                good.append(self._checked(item, {"phone"}))
            except _No as no:
                wrong += [f"contacts.{number}.{message}" for message in no.messages]
        if wrong and self.switches["batch_failure"] == "all":
            raise _No(422, *wrong)
        return answer(201, {"data": [self._insert(body) for body in good]})

    def _update(self, contact_id: str) -> Response:
        body = self._body({"phone"} if self.switches["put_accepts_phone"] else set())
        contact = self.contacts.get(contact_id)
        if contact is None:
            raise _No(404, "Contact not found")
        if self.switches["put_mode"] == "replace":
            blank: dict[str, Any] = {"name": None, "email": None, "public": False, "data": {}}
            if self.switches["put_accepts_phone"]:
                blank["phone"] = None
            contact.update({name: value for name, value in blank.items() if name not in body})
        if "data" in body and self.switches["data_mode"] == "merge":
            body["data"] = {**contact["data"], **body["data"]}
        contact.update(body, updated=_now())
        return answer(200, {"data": contact})

    def _body(self, also: set[str]) -> dict[str, Any]:
        return self._checked(request.get_json(silent=True), also)

    def _checked(self, body: Any, also: set[str]) -> dict[str, Any]:
        """Return the fields that are taken: name, email, public, data and those in *also*."""
        if not isinstance(body, dict):
            raise _No(422, "body must be an object")
        taken = {"name", "email", "public", "data"} | also
        unknown = sorted(body.keys() - taken)
        if unknown and self.switches["unknown_fields"] == "422":
            raise _No(422, *(f"property {name} should not exist" for name in unknown))
        fields = {name: value for name, value in body.items() if name in taken}
        wrong = [name for name, value in fields.items() if not isinstance(value, WRITABLE[name])]
        wrong += ["phone"] * (
            "phone" not in wrong and re.fullmatch(r"\+\d{5,15}", fields.get("phone", "+00000")) is None
        )
        wrong += ["email"] * ("email" not in wrong and "@" not in fields.get("email", "@"))
        if wrong:
            raise _No(422, *(f"{name} is not valid: {fields[name]}" for name in wrong))
        return fields

    def _insert(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        contact_id = str(self._next_id)
        self._next_id += 1
        self.contacts[contact_id] = {
            **BLANK,
            "id": contact_id,
            "teamId": "17",
            "createdByUserId": "90",
            "data": {},
            "attributes": [],
            "created": _now(),
            "updated": _now(),
            **fields,
        }
        return self.contacts[contact_id]

    # --- refusals, in every shape that clients are known to look for ---

    def _refusal(self, no: _No) -> Response:
        message = "; ".join(no.messages)
        word = WORDS.get(no.status, "Unprocessable Entity")
        shapes: dict[str, Any] = {
            "nest": {"statusCode": no.status, "message": message, "error": word},
            "nest_list": {"statusCode": no.status, "message": list(no.messages), "error": word},
            "error_string": {"error": message},
            "error_object": {"error": {"code": word, "message": message}},
            "code": {"code": word.upper().replace(" ", "_")},
        }
        style = self.switches["error_style"]
        if style in shapes:
            return answer(no.status, shapes[style])
        html = "" if style == "empty" else f"<html><title>{word}</title></html>"
        return Response(html, no.status, {"Content-Type": "text/html"})

    def _http_refusal(self, error: HTTPException) -> Response:
        return self._refusal(_No(error.code or 500, f"Cannot {request.method} {request.path}"))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
