"""A Calendly organization on loopback: its webhook subscriptions. As strict as Calendly is."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer

BASE = "https://api.calendly.com"
ORGANIZATION, USER = f"{BASE}/organizations/OOOOOOOOOOOOOOOO", f"{BASE}/users/UUUUUUUUUUUUUUUU"
MOST = 100
EVENTS = {"invitee.created", "invitee.canceled", "invitee_no_show.created", "routing_form_submission.created"}


class Calendly(Fake):
    """See the module's docstring.

    - ``pages``: whether a list comes at once, or one by one.
    - ``created``: which status says that a subscription was made.
    """

    title = "Calendly"
    token = "demo-calendly-token"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {"pages": ("one", "many"), "created": (201, 200)}

    def __init__(self, **switches: Any) -> None:
        self.subscriptions: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}  # the signing keys, which are never told
        super().__init__(**switches)

    def routes(self, app: Flask) -> None:
        app.get("/users/me")(self._me)
        app.get("/webhook_subscriptions")(self._list)
        app.post("/webhook_subscriptions")(self._create)
        app.delete("/webhook_subscriptions/<number>")(self._delete)
        app.before_request(self._authorise)

    def _authorise(self) -> Response | None:
        given = request.headers.get("Authorization", "")
        if hmac.compare_digest(given, f"Bearer {self.token}"):
            return None
        return _refused(401, "Unauthenticated", "The access token is invalid")

    def _me(self) -> Response:
        return answer(200, {"resource": {"uri": USER, "name": "Grace", "current_organization": ORGANIZATION}})

    def _list(self) -> Response:
        asked = request.args
        if not _fits(asked) or not 1 <= int(asked.get("count", "20")) <= MOST:
            return _refused(400, "Invalid Argument", "The supplied parameters are invalid.")
        size = 1 if self.switches["pages"] == "many" else int(asked.get("count", "20"))
        start = int(asked.get("page_token", "t0").removeprefix("t"))
        found = [one for one in self.subscriptions.values() if one["scope"] == asked["scope"]]
        more = f"t{start + size}" if start + size < len(found) else None
        page = {"count": size, "next_page": f"{BASE}/elsewhere?page_token={more}", "next_page_token": more}
        return answer(200, {"collection": found[start : start + size], "pagination": page})

    def _create(self) -> Response:
        wanted = request.get_json()
        if not _fits(wanted) or not set(wanted.get("events", [])) or set(wanted["events"]) - EVENTS:
            return _refused(400, "Invalid Argument", "The supplied parameters are invalid.")
        if not wanted["url"].startswith("https://"):
            return _refused(400, "Invalid Argument", "The url is not https.")
        if wanted["url"] in {one["callback_url"] for one in self.subscriptions.values()}:
            return _refused(409, "Already Exists", "Hook with this url already exists")
        number = f"S{len(self.keys):015d}"
        self.keys[number] = wanted.get("signing_key", "")
        self.subscriptions[number] = {
            "uri": f"{BASE}/webhook_subscriptions/{number}",
            "callback_url": wanted["url"],
            "state": "active",
            "events": wanted["events"],
            "scope": wanted["scope"],
            "organization": wanted["organization"],
            "user": wanted.get("user"),
        }
        return answer(self.switches["created"], {"resource": self.subscriptions[number]})

    def _delete(self, number: str) -> Response:
        if self.subscriptions.pop(number, None) is None:
            return _refused(404, "Resource Not Found", "The server could not find the requested resource.")
        return Response(status=204)


def _fits(asked: Mapping[str, Any]) -> bool:
    """Say whether it is of the token's organization; of the scope of a user its address is needed too."""
    user = asked.get("user") == USER if asked.get("scope") == "user" else asked.get("scope") == "organization"
    return user and asked.get("organization") == ORGANIZATION


def _refused(status: int, title: str, message: str) -> Response:
    return answer(status, {"title": title, "message": message})
