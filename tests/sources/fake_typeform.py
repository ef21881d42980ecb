"""A Typeform account on loopback: the webhooks of its forms. As strict as Typeform is."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer


class Typeform(Fake):
    """See the module's docstring.

    - ``secrets``: whether the list of webhooks tells their secrets.
    - ``events``: whether it tells what they are sent.
    """

    title = "Typeform"
    token = "demo-typeform-token"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {"secrets": ("hidden", "told"), "events": ("told", "hidden")}

    def __init__(self, *forms: str, **switches: Any) -> None:
        self.forms: dict[str, dict[str, dict[str, Any]]] = {form: {} for form in forms}
        super().__init__(**switches)

    def routes(self, app: Flask) -> None:
        app.get("/forms/<form>/webhooks")(self._list)
        app.put("/forms/<form>/webhooks/<tag>")(self._put)
        app.delete("/forms/<form>/webhooks/<tag>")(self._delete)
        app.before_request(self._authorise)

    def _authorise(self) -> Response | None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given, f"Bearer {self.token}"):
            return _refused(401, "AUTHENTICATION_FAILED")
        return None if (request.view_args or {}).get("form") in self.forms else _refused(404, "FORM_NOT_FOUND")

    def _list(self, form: str) -> Response:
        hidden = {name for name in ("secrets", "events") if self.switches[name] == "hidden"}
        keys = {{"secrets": "secret", "events": "event_types"}[name] for name in hidden}
        items = [{key: one[key] for key in one if key not in keys} for one in self.forms[form].values()]
        return answer(200, {"items": items})

    def _put(self, form: str, tag: str) -> Response:
        wanted = request.get_json()
        known = {"url", "enabled", "verify_ssl", "secret", "event_types"}
        if set(wanted) - known or not wanted.get("url", "").startswith("https://"):
            return _refused(400, "VALIDATION_ERROR")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tag):
            return _refused(400, "VALIDATION_ERROR")
        before = self.forms[form].get(tag, {"id": f"01H{tag}", "tag": tag, "form_id": form, "enabled": False})
        self.forms[form][tag] = {**before, **wanted}
        return answer(200, self.forms[form][tag])

    def _delete(self, form: str, tag: str) -> Response:
        if self.forms[form].pop(tag, None) is None:
            return _refused(404, "WEBHOOK_NOT_FOUND")
        return Response(status=204)


def _refused(status: int, code: str) -> Response:
    return answer(status, {"code": code, "description": "…"})
