"""A Dataverse environment on loopback: its contacts, and the login that gives access to them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote
from uuid import UUID

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now

ROOT = "/api/data/v9.2"
TYPES = {
    "contactid": "Uniqueidentifier", "firstname": "String", "lastname": "String", "emailaddress1": "String",
    "telephone1": "String", "mobilephone": "String", "donotbulkemail": "Boolean", "gendercode": "Picklist",
    "parentcustomerid": "Customer", "masterid": "Lookup", "merged": "Boolean", "modifiedon": "DateTime",
    "new_interests": "Virtual", "new_secret": "String",
}  # fmt: skip
LOOKUPS = {"Customer", "Lookup", "Owner"}
IN = re.compile(r"Microsoft\.Dynamics\.CRM\.In\(PropertyName='contactid',PropertyValues=\[(?P<ids>[^\]]*)\]\)")
SINCE = re.compile(r"modifiedon ge ([0-9T:-]+Z)")
TENANT = "11111111-aaaa-bbbb-cccc-222222222222"


class Dynamics365(Fake):
    """Strict: what Dataverse refuses it refuses. What changes a contact returns the body of the webhook.

    - ``in_filter``: whether a list of ids can be asked for, or is refused.
    - ``big_letters``: whether ids come in small letters, or in capital ones.
    """

    title = "Dataverse"
    client_id, client_secret = "app-id", "app-secret"
    organization = "9c1d2e3f-4a5b-4c6d-8e7f-0a1b2c3d4e5f"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "in_filter": ("taken", "refused"),
        "big_letters": (False, True),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.base = ""  # as which it knows itself, in links
        self.rows: dict[str, dict[str, Any]] = {}
        self.tokens: list[str] = []
        self.types = dict(TYPES)
        self._last = 0
        super().__init__(**switches)

    # --- what people do in Dynamics 365 ---

    def create(self, **columns: Any) -> str:
        with self.lock:
            self._last += 1
            # Ids are random, and no later one need be greater.
            source_id = str(UUID(int=(self._last * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128))
            self.rows[source_id] = dict(columns)
            self._touch(source_id)
            return source_id

    def change(self, source_id: str, **columns: Any) -> None:
        with self.lock:
            self.rows[source_id] |= columns
            self._touch(source_id)

    def delete(self, source_id: str) -> None:
        with self.lock:
            del self.rows[source_id]

    def merge(self, survivor: str, loser: str) -> None:
        """Deactivate *loser*, which leads to *survivor* from now on."""
        self.change(loser, merged=True, masterid=survivor)
        self._touch(survivor)

    def webhook(self, message: str, source_id: str, **columns: Any) -> bytes:
        target = {
            "__type": "Entity:http://schemas.microsoft.com/xrm/2011/Contracts",
            "Attributes": [{"key": name, "value": value} for name, value in columns.items()],
            "Id": source_id,
            "LogicalName": "contact",
        }
        body = {
            "InputParameters": [{"key": "Target", "value": target}],
            "MessageName": message,
            "OperationCreatedOn": f"/Date({int(self.clock().timestamp() * 1000)}+0000)/",
            "OperationId": str(UUID(int=len(self.calls) + 1)),
            "OrganizationId": self.organization,
            "PrimaryEntityId": source_id,
            "PrimaryEntityName": "contact",
        }
        return json.dumps(body).encode()

    def _touch(self, source_id: str) -> None:
        at = self.clock().astimezone(UTC)
        self.rows[source_id]["modifiedon"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.post(f"/{TENANT}/oauth2/v2.0/token")(self._token)
        app.get(f"{ROOT}/EntityDefinitions(LogicalName='contact')/Attributes")(self._attributes)
        app.get(f"{ROOT}/contacts")(self._list)
        app.get(f"{ROOT}/contacts(<source_id>)")(self._get)
        app.patch(f"{ROOT}/contacts(<source_id>)")(self._patch)
        app.before_request(self._authorise)

    def _token(self) -> Response:
        given = {name: values[0] for name, values in parse_qs(request.get_data(as_text=True)).items()}
        wanted = {
            "grant_type": "client_credentials",
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "scope": f"{self.base}/.default",
        }
        if given != wanted:
            return answer(401, {"error": "invalid_client", "error_description": "AADSTS7000215"})
        self.tokens.append(f"token-{len(self.tokens)}")
        return answer(200, {"access_token": self.tokens[-1], "expires_in": 3599, "token_type": "Bearer"})

    def _authorise(self) -> Response | None:
        if not request.path.startswith(ROOT):
            return None
        if not self.tokens or request.headers.get("Authorization") != f"Bearer {self.tokens[-1]}":
            return answer(401, {"error": {"code": "0x80040220"}})
        if request.headers.get("OData-Version") != "4.0":
            return answer(400, {"error": {"code": "0x0"}})
        return None

    def _attributes(self) -> Response:
        rows = [
            {
                "LogicalName": name,
                "AttributeType": kind,
                "AttributeTypeName": {"Value": "MultiSelectPicklistType" if kind == "Virtual" else f"{kind}Type"},
                "IsValidForRead": name != "new_secret",
            }
            for name, kind in self.types.items()
        ]
        return answer(200, {"value": rows})

    def _wire(self, name: str) -> str:
        return f"_{name}_value" if self.types.get(name) in LOOKUPS else name

    def _shown(self, source_id: str) -> dict[str, Any] | Response:
        wires = {self._wire(name): name for name in self.types}
        asked = [name for name in request.args.get("$select", "").split(",") if name]
        unknown = [name for name in asked if name not in wires]
        if unknown or not asked:
            return _error(
                f"Could not find a property named '{unknown[:1]}' on type 'Microsoft.Dynamics.CRM.contact'."
            )
        row = {**self.rows[source_id], "contactid": source_id}
        shown = {wire: row.get(wires[wire], False if wire == "merged" else None) for wire in asked}
        if self.switches["big_letters"]:
            shown["contactid"] = source_id.upper()
        return {"@odata.etag": 'W/"1"', **shown}

    def _get(self, source_id: str) -> Response:
        if source_id not in self.rows:
            return answer(
                404, {"error": {"code": "0x80040217", "message": f"Entity 'contact' With Id = {source_id}"}}
            )
        shown = self._shown(source_id)
        return shown if isinstance(shown, Response) else answer(200, shown)

    def _list(self) -> Response:
        if "$skip" in request.args or len(request.url) > 32_768:
            return _error("The query parameter $skip is not supported.")
        chosen = sorted(self.rows)
        if condition := request.args.get("$filter"):
            listed, since = IN.fullmatch(condition), SINCE.fullmatch(condition)
            if listed and self.switches["in_filter"] == "taken":
                wanted = {one.strip("'") for one in listed["ids"].split(",")}
                chosen = [one for one in chosen if one in wanted]
            elif since:
                chosen = [one for one in chosen if self.rows[one]["modifiedon"] >= since[1]]
            else:
                return _error("Query function is not supported.")
        if cookie := request.args.get("$skiptoken"):
            last = re.fullmatch(r'<cookie pagenumber="[0-9]+" last="\{([0-9A-F-]+)\}" />', cookie)
            if last is None:
                return _error("Malformed XML in the Paging Cookie.")
            chosen = [one for one in chosen if one > last[1].lower()]
        found = re.fullmatch(r"odata\.maxpagesize=([0-9]+)", request.headers.get("Prefer", ""))
        size = min(int(found[1]) if found else 5000, 5000)
        rows = [self._shown(one) for one in chosen[:size]]
        for row in rows:
            if isinstance(row, Response):
                return row
        body: dict[str, Any] = {"@odata.context": f"{self.base}{ROOT}/$metadata#contacts", "value": rows}
        if len(chosen) > size:
            kept = "&".join(
                f"{name}={quote(value)}" for name, value in request.args.items() if name != "$skiptoken"
            )
            cookie = quote(f'<cookie pagenumber="2" last="{{{chosen[size - 1].upper()}}}" />')
            body["@odata.nextLink"] = f"{self.base}{ROOT}/contacts?{kept}&$skiptoken={cookie}"
        return answer(200, body)

    def _patch(self, source_id: str) -> Response:
        if source_id not in self.rows:
            if request.headers.get("If-Match") == "*":
                return answer(404, {"error": {"code": "0x80040217"}})
            self.rows[source_id] = {}  # an upsert
        changed = request.get_json()
        if changed.keys() - self.types.keys():
            return _error("Invalid property.")
        self.change(source_id, **changed)
        return Response(b"", 204)


def _error(message: str) -> Response:
    return answer(400, {"error": {"code": "0x80060888", "message": message}})
