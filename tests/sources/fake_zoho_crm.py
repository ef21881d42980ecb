"""A Zoho CRM account on loopback: its contacts, its channels, and the tokens that give access to them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

FIELDS = {"Email", "Phone", "Mobile", "First_Name", "Last_Name", "Email_Opt_Out", "Owner", "Description"}
EVENTS = {f"Contacts.{event}" for event in ("create", "edit", "delete", "all")}
LONGEST_TOKEN = 50
LOCAL = timezone(timedelta(hours=2))  # times come in the time zone of the account
QUERY = re.compile(r"select id from Contacts where \((?P<where>.+)\) order by id asc limit (?P<limit>[0-9]+)")


class ZohoCrm(Fake):
    """Strict: what Zoho refuses it refuses. What changes a contact returns the body of the notification.

    - ``missing_ids``: whether an id that is not there is just not answered, or alone refused.
    - ``more``: whether a list says that more is to come, or leaves it to the next page to be empty.
    - ``lapsed``: whether a channel that lapsed is listed still, is not, or is answered with an error.
    - ``event_names``: how a channel lists its events.
    - ``grants``: whether the answer about a channel says how long it lives.
    """

    title = "Zoho CRM"
    client_id, client_secret, refresh_token = "1000.CLIENT", "client-secret", "1000.refresh"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "missing_ids": ("absent", "invalid"),
        "more": ("told", "untold"),
        "lapsed": ("listed", "absent", "refused"),
        "event_names": ("each", "all"),
        "grants": ("told", "untold"),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.records: dict[str, dict[str, Any]] = {}
        self.channels: dict[str, dict[str, Any]] = {}
        self.tokens: list[str] = []
        self.token_life_s: Any = 3600
        self.scopes = {"modules", "coql", "notifications"}
        self.triggered: list[str] = []  # ids of which workflows heard
        self._last_id = 6_756_839_000_000_575_404
        super().__init__(**switches)

    # --- what people do in Zoho CRM ---

    def create(self, **fields: Any) -> str:
        with self.lock:
            self._last_id += 1
            self.records[str(self._last_id)] = dict(fields)
            self._touch(str(self._last_id))
            return str(self._last_id)

    def change(self, source_id: str, **fields: Any) -> None:
        with self.lock:
            self.records[source_id] |= fields
            self._touch(source_id)

    def delete(self, source_id: str) -> None:
        with self.lock:
            del self.records[source_id]

    def notification(self, operation: str, *ids: str) -> bytes:
        """Return what the one channel sends."""
        (channel,) = self.channels.values()
        body = {
            "server_time": int(self.clock().timestamp() * 1000),
            "query_params": {},
            "module": "Contacts",
            "ids": list(ids),
            "operation": operation,
            "channel_id": channel["channel_id"],
            "token": channel["token"],
        }
        return json.dumps(body).encode()

    def _touch(self, source_id: str) -> None:
        now = self.clock().replace(microsecond=0)
        self.records[source_id]["Modified_Time"] = now.astimezone(LOCAL).isoformat()

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.post("/oauth/v2/token")(self._token)
        app.get("/crm/v8/Contacts")(self._get)
        app.put("/crm/v8/Contacts")(self._put)
        app.post("/crm/v8/coql")(self._coql)
        app.get("/crm/v8/actions/watch")(self._watched)
        app.add_url_rule("/crm/v8/actions/watch", "subscribe", self._subscribe, methods=["POST", "PUT"])
        app.delete("/crm/v8/actions/watch")(self._unsubscribe)
        app.before_request(self._authorise)

    def _token(self) -> Response:
        given = {name: values[0] for name, values in parse_qs(request.get_data(as_text=True)).items()}
        wanted = {
            "grant_type": "refresh_token",
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "refresh_token": self.refresh_token,
        }
        if given != wanted:
            return answer(200, {"error": "invalid_code"})  # with 200, as Zoho does
        self.tokens.append(f"1000.access.{len(self.tokens)}")
        return answer(
            200, {"access_token": self.tokens[-1], "expires_in": self.token_life_s, "token_type": "Bearer"}
        )

    def _authorise(self) -> Response | None:
        if request.path == "/oauth/v2/token":
            return None
        if not self.tokens or request.headers.get("Authorization") != f"Zoho-oauthtoken {self.tokens[-1]}":
            return _error(401, "INVALID_TOKEN")
        part = request.path.removeprefix("/crm/v8/")
        needed = {"coql": "coql", "actions/watch": "notifications"}.get(part, "modules")
        return None if needed in self.scopes else _error(401, "OAUTH_SCOPE_MISMATCH")

    def _get(self) -> Response:
        names = [name for name in request.args.get("fields", "").split(",") if name]
        ids = request.args.get("ids", "").split(",")
        if not names or len(names) > 50:
            return _error(400, "INVALID_DATA", {"param_name": "fields"})
        if len(ids) > 100:
            return _error(400, "LIMIT_EXCEEDED", {"param_name": "ids"})
        found = [one for one in ids if one in self.records]
        if len(found) < len(ids) and self.switches["missing_ids"] == "invalid":
            return _error(400, "INVALID_DATA", {"param_name": "ids"})
        if not found:
            return Response(b"", 204)
        rows = [
            {
                "id": one,
                **{name: self.records[one].get(name) for name in names if name in {*FIELDS, "Modified_Time"}},
            }
            for one in reversed(found)  # no order is promised
        ]
        return answer(200, {"data": rows, "info": {"count": len(rows), "more_records": False}})

    def _put(self) -> Response:
        body = request.get_json()
        (change,) = body["data"]
        if change["id"] not in self.records:
            return answer(202, {"data": [{"code": "INVALID_DATA", "status": "error"}]})
        unknown = change.keys() - FIELDS - {"id"}
        if unknown:
            return answer(202, {"data": [{"code": "INVALID_DATA", "status": "error"}]})
        self.change(change["id"], **{name: value for name, value in change.items() if name != "id"})
        if body.get("trigger") != []:
            self.triggered.append(change["id"])
        return answer(200, {"data": [{"code": "SUCCESS", "details": {"id": change["id"]}, "status": "success"}]})

    def _coql(self) -> Response:
        query = QUERY.fullmatch(request.get_json()["select_query"])
        if query is None or int(query["limit"]) > 2000:
            return _error(400, "SYNTAX_ERROR")
        rows = sorted(self.records, key=int)
        for one in query["where"].split(" and "):
            if more := re.fullmatch(r"id > ([0-9]+)", one):
                rows = [row for row in rows if int(row) > int(more[1])]
            elif since := re.fullmatch(r"Modified_Time >= '([^']+)'", one):
                at = datetime.fromisoformat(since[1])
                rows = [row for row in rows if datetime.fromisoformat(self.records[row]["Modified_Time"]) >= at]
            elif one != "id is not null":
                return _error(400, "SYNTAX_ERROR")
        page = rows[: int(query["limit"])]
        if not page:
            return Response(b"", 204)
        told = self.switches["more"] == "told"
        info = {"info": {"count": len(page), "more_records": len(rows) > len(page)}} if told else {}
        return answer(200, {"data": [{"id": row} for row in page], **info})

    def _watched(self) -> Response:
        channel_id = request.args.get("channel_id", "")
        found = self.channels.get(channel_id)
        lapsed = found is not None and self._lapsed(found)
        if found is None or (lapsed and self.switches["lapsed"] != "listed"):
            refused = self.switches["lapsed"] == "refused"
            return _error(400, "NOT_SUBSCRIBED") if refused else Response(b"", 204)
        events = sorted(found["events"])
        if self.switches["event_names"] == "all" and len(events) == 3:
            events = ["Contacts.all"]
        return answer(200, {"watch": [{**found, "events": events, "resource_name": "Contacts"}]})

    def _lapsed(self, channel: Mapping[str, Any]) -> bool:
        return datetime.fromisoformat(channel["channel_expiry"]) <= self.clock()

    def _subscribe(self) -> Response:
        (wanted,) = request.get_json()["watch"]
        channel_id = wanted["channel_id"]
        known = self.channels.get(channel_id)
        if request.method == "PUT" and (known is None or self._lapsed(known)):
            return _watch(400, "NOT_SUBSCRIBED")
        if request.method == "POST" and known is not None and not self._lapsed(known):
            return _watch(400, "DUPLICATE_DATA")
        if not set(wanted["events"]) <= EVENTS or len(wanted["token"]) > LONGEST_TOKEN:
            return _watch(400, "INVALID_DATA")
        now = self.clock()
        asked = wanted.get("channel_expiry")
        ends = datetime.fromisoformat(asked) if asked else None
        if ends is None or not now < ends <= now + timedelta(days=7):
            ends = now + timedelta(hours=1)
        expiry = ends.astimezone(UTC).isoformat(timespec="seconds")
        self.channels[channel_id] = {**wanted, "channel_expiry": expiry}
        details = {"channel_expiry": expiry, "resource_name": "Contacts", "channel_id": channel_id}
        told = self.switches["grants"] == "told"
        return _watch(200, "SUCCESS", {"events": [details]} if told else {})

    def _unsubscribe(self) -> Response:
        channel_id = request.args.get("channel_ids", "")
        if self.channels.pop(channel_id, None) is None:
            return _watch(400, "NOT_SUBSCRIBED")
        return _watch(200, "SUCCESS")


def _error(status: int, code: str, details: Mapping[str, Any] | None = None) -> Response:
    return answer(status, {"code": code, "details": details or {}, "message": "…", "status": "error"})


def _watch(status: int, code: str, details: Mapping[str, Any] | None = None) -> Response:
    said: Sequence[Any] = [{"code": code, "details": details or {}, "message": "…"}]
    return answer(status, {"watch": said})
