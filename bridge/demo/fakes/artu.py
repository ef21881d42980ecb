"""A stand-in for Artu's compliance API: clients and their contact methods, in two environments."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from bridge.demo.fakes.base import Fake, answer

TYPES = ("email", "phone", "mobile", "fax", "other")
CLIENT_TYPES = ("individual", "company", "trust")
ITEM_LIMIT = 250
PAGE_LIMIT = 200
CODES = {400: "VALIDATION_ERROR", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 409: "CONFLICT"}


class _No(Exception):
    """An answer on its way out. An issue is where in the body something is wrong, and what."""

    def __init__(self, status: int, message: str, *issues: tuple[list[Any], str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.issues = issues


@dataclass(slots=True)
class Register:
    """One environment."""

    clients: dict[str, dict[str, Any]] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, client_id: str) -> list[dict[str, Any]]:
        return [method for method in self.methods.values() if method["clientId"] == client_id]


class Artu(Fake):
    """One account. *environments* are those that its key has rights in."""

    title = "Artu"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "sync_requires_type": (True, False),
        "replace_scope": ("all", "listed_types"),
        "omitted_isPrimary": ("false", "keep"),
        "metadata": ("replace", "merge"),
        "unknown_delete": ("ignore", "404"),
        "atomic_failure_status": (400, 422),
        # How an item without an id finds its row, how far an external id is unique, and how values are compared.
        "matching": ("external_id", "id_only"),
        "external_id_scope": ("client", "environment"),
        "value_match": ("exact", "insensitive"),
        # What a client's look-ups say of nobody, and whether there is a list of clients at all.
        "metadata_miss": ("404", "null"),
        "clients_list": (True, False),
        "client_external_id": ("repeatable", "unique"),
        "page_cap": (200, 1),
        "error_style": ("code", "nested", "message", "empty", "html"),
    }

    def __init__(
        self, *, key: str = "artu-key", environments: tuple[str, ...] = ("test", "live"), **switches: Any
    ) -> None:
        self.key = key
        self.environments = environments
        self.registers = {"test": Register(), "live": Register()}
        super().__init__(**switches)

    # --- for tests and the demo ---

    def person(self, client: str, environment: str = "test") -> dict[str, Any]:
        """Return a client in plain terms, by its id or by the value of one of its methods, or {}."""
        register = self.registers[environment]
        owner = next((m["clientId"] for m in register.methods.values() if m["value"] == client), client)
        if owner not in register.clients:
            return {}
        known = register.clients[owner]
        methods = [
            {**{name: one[name] for name in ("type", "value", "label")}, "primary": one["isPrimary"]}
            for one in register.of(owner)
        ]
        return {"id": owner, "name": known["name"], "external id": known["externalId"], "contact methods": methods}

    def add_client(self, environment: str = "test", **fields: Any) -> str:
        """Put a client there as compliance staff would; return its id."""
        with self.lock:
            return str(self._insert_client(self.registers[environment], {"name": "A client", **fields})["id"])

    def add_method(self, client_id: str, environment: str = "test", **fields: Any) -> str:
        """Put a contact method there as compliance staff would; return its id."""
        with self.lock:
            return str(self._insert(self.registers[environment], client_id, fields)["id"])

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.before_request(self._guard)
        views: tuple[tuple[str, str, Callable[..., Response]], ...] = (
            ("POST", "/clients/<client_id>/contact-methods/sync", self._sync),
            ("GET", "/clients/<client_id>/contact-methods/primary/<kind>", self._primary),
            ("PUT", "/contact-methods/external/<path:external_id>", self._put_external),
            ("PUT", "/contact-methods/batch/external", self._put_batch),
            ("POST", "/contact-methods/list", self._list_methods),
            ("POST", "/clients", self._create_client),
            ("GET", "/clients/metadata/<key>/<path:value>", self._client_by_metadata),
        )
        for method, rule, view in views:
            app.add_url_rule(rule, view_func=view, methods=[method])
        if self.switches["clients_list"]:
            app.add_url_rule("/clients/list", view_func=self._list_clients, methods=["POST"])
        app.register_error_handler(_No, self._refusal)
        app.register_error_handler(HTTPException, self._http_refusal)

    def _guard(self) -> None:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            raise _No(401, "Invalid API key")
        environment = request.headers.get("X-Environment", "")
        if environment not in self.registers:
            raise _No(400, "X-Environment must be test or live")
        if environment not in self.environments:
            raise _No(403, f"API key lacks permission: {environment}:contact-methods:read")
        g.environment = environment

    @property
    def _register(self) -> Register:
        return self.registers[str(g.environment)]

    def _sync(self, client_id: str) -> Response:
        """All or nothing: the work is done on a copy."""
        body = _object()
        items = body.get("items")
        if not isinstance(items, list) or len(items) > ITEM_LIMIT:
            raise _invalid(["items"], f"Array must contain at most {ITEM_LIMIT} element(s)")
        if client_id not in self._register.clients:
            raise _No(404, "Client not found")
        before = copy.deepcopy(self._register.methods)
        try:
            return answer(200, self._synced(client_id, items, replace=body.get("replaceMode", False)))
        except _No:
            self._register.methods = before
            raise

    def _synced(self, client_id: str, items: list[Any], *, replace: bool) -> dict[str, Any]:
        register = self._register
        done: dict[str, list[Any]] = {"created": [], "updated": [], "deleted": []}
        named: set[str] = set()
        for number, item in enumerate(items):
            self._check_item(item, ["items", number])
            known = self._row_of(client_id, item)
            if item.get("_delete"):
                if known is not None:
                    del register.methods[known["id"]]
                    done["deleted"].append(known["id"])
                continue
            row = self._save(client_id, known, item)
            done["updated" if known else "created"].append(row)
            named.add(row["id"])
        if replace:
            types = (
                {item.get("type") for item in items} if self.switches["replace_scope"] == "listed_types" else TYPES
            )
            for row in register.of(client_id):
                if row["id"] not in named and row["type"] in types:
                    del register.methods[row["id"]]
                    done["deleted"].append(row["id"])
        return done

    def _check_item(self, item: Any, path: list[Any]) -> None:
        if not isinstance(item, dict):
            raise _invalid(path, "Expected object")
        optional = not self.switches["sync_requires_type"] and item.get("id")
        if item.get("type") not in TYPES and not (optional and "type" not in item):
            raise _invalid([*path, "type"], f"Invalid option: expected one of {', '.join(TYPES)}")
        value = item.get("value")
        if not isinstance(value, str):
            raise _invalid([*path, "value"], "Expected string")
        if not value:
            raise _invalid([*path, "value"], "String must contain at least 1 character")
        shapes = {"isPrimary": bool, "label": str, "externalId": str, "metadata": dict, "id": str, "_delete": bool}
        for name, shape in shapes.items():
            if name in item and not isinstance(item[name], shape):
                raise _invalid([*path, name], f"Expected {shape.__name__}")

    def _row_of(self, client_id: str, item: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the row that an item means: by its id, else by its external id, else none."""
        register = self._register
        if "id" in item:
            row = register.methods.get(item["id"])
            if row is not None and row["clientId"] == client_id:
                return row
            if item.get("_delete") and self.switches["unknown_delete"] == "ignore":
                return None
            raise _No(404, "Contact method not found")
        external_id = item.get("externalId")
        if external_id and self.switches["matching"] == "external_id":
            return next((row for row in register.of(client_id) if row["externalId"] == external_id), None)
        return None

    def _save(self, client_id: str, known: dict[str, Any] | None, item: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: item[name] for name in ("type", "value", "label", "externalId") if name in item}
        self._check_external_id(client_id, fields.get("externalId"))
        if known is None:
            metadata, primary = item.get("metadata", {}), item.get("isPrimary", False)
            return self._insert(self._register, client_id, {**fields, "metadata": metadata, "isPrimary": primary})
        if "metadata" in item:
            old = known["metadata"] if self.switches["metadata"] == "merge" else {}
            fields["metadata"] = {**old, **item["metadata"]}
        if "isPrimary" in item or self.switches["omitted_isPrimary"] == "false":
            fields["isPrimary"] = item.get("isPrimary", False)
        known.update(fields, updatedAt=_now())
        self._only_primary(self._register, known)
        return known

    def _check_external_id(self, client_id: str, external_id: str | None) -> None:
        if external_id and self.switches["external_id_scope"] == "environment":
            rows = self._register.methods.values()
            if any(row["externalId"] == external_id and row["clientId"] != client_id for row in rows):
                raise _No(409, "externalId is taken")

    def _insert(self, register: Register, client_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        row = {
            "id": str(uuid.uuid4()),
            "clientId": client_id,
            "type": "email",
            "isPrimary": False,
            "label": None,
            "externalId": None,
            "metadata": {},
            "isVerified": False,
            "verifiedAt": None,
            "createdAt": _now(),
            "updatedAt": _now(),
            **fields,
        }
        register.methods[row["id"]] = row
        self._only_primary(register, row)
        return row

    @staticmethod
    def _only_primary(register: Register, row: Mapping[str, Any]) -> None:
        """One of a type is primary; making one so takes it from the other, which is in no answer."""
        if row["isPrimary"]:
            for other in register.of(row["clientId"]):
                if other["type"] == row["type"] and other["id"] != row["id"]:
                    other["isPrimary"] = False

    def _put_external(self, external_id: str) -> Response:
        row, action = self._upsert({**_object(), "externalId": external_id}, [])
        return answer(200, {"data": row, "action": action})

    def _put_batch(self) -> Response:
        body = _object()
        items, atomic = body.get("items"), body.get("atomic", True)
        if not isinstance(items, list) or not 1 <= len(items) <= ITEM_LIMIT:
            raise _invalid(["items"], f"Array must contain 1 to {ITEM_LIMIT} element(s)")
        before = copy.deepcopy(self._register.methods)
        done: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        for index, item in enumerate(items):
            try:
                row, action = self._upsert(item, ["items", index])
                done.append({"index": index, "data": row, "action": action})
            except _No as no:
                failed.append({"index": index, "error": {"message": no.message}})
        if not atomic:
            short = [{"index": one["index"], "data": one["data"]} for one in done]
            return answer(200, {"atomic": False, "succeeded": short, "failed": failed})
        if failed:
            self._register.methods = before
            raise _No(self.switches["atomic_failure_status"], "Batch failed")
        return answer(
            200, {"atomic": True, "data": [{"data": one["data"], "action": one["action"]} for one in done]}
        )

    def _upsert(self, item: Any, path: list[Any]) -> tuple[dict[str, Any], str]:
        self._check_item(item, path)
        if item.get("clientId") not in self._register.clients:
            raise _No(404, "Client not found")
        rows = self._register.methods.values()
        known = next((row for row in rows if row["externalId"] == item.get("externalId")), None)
        if known is not None and known["clientId"] != item["clientId"]:
            raise _No(409, "externalId is taken")
        before = dict(known or {})
        row = self._save(item["clientId"], known, item)
        same = {**before, "updatedAt": None} == {**row, "updatedAt": None}
        return row, "skipped" if same else "updated" if known else "created"

    def _list_methods(self) -> Response:
        return self._listed(self._register.methods.values())

    def _list_clients(self) -> Response:
        return self._listed(self._register.clients.values())

    def _listed(self, rows: Any) -> Response:
        body = _object()
        limit = body.get("limit", 20)
        if not isinstance(limit, int) or not 1 <= limit <= PAGE_LIMIT:
            raise _invalid(["limit"], f"Number must be between 1 and {PAGE_LIMIT}")
        limit = min(limit, self.switches["page_cap"])
        narrowed = body.get("filter") or {}
        found = [row for row in rows if all(self._fits(row, name, value) for name, value in narrowed.items())]
        start = int(body.get("cursor") or body.get("offset") or 0)
        more = start + limit < len(found)
        total = len(found) if body.get("includeTotalCount") else None
        pagination = {"hasMore": more, "nextCursor": str(start + limit) if more else None, "totalCount": total}
        return answer(200, {"data": found[start : start + limit], "pagination": pagination})

    def _fits(self, row: Mapping[str, Any], name: str, value: Any) -> bool:
        if name == "metadataFilters":
            return all(row["metadata"].get(one["key"]) == one["value"] for one in value)
        if name not in row:
            raise _invalid(["filter", name], "Unrecognized key")
        if name == "value" and self.switches["value_match"] == "insensitive":
            return str(row[name]).casefold() == str(value).casefold()
        return bool(row[name] == value)

    def _primary(self, client_id: str, kind: str) -> Response:
        if client_id not in self._register.clients:
            raise _No(404, "Client not found")
        rows = self._register.of(client_id)
        return answer(200, next((row for row in rows if row["type"] == kind and row["isPrimary"]), None))

    def _create_client(self) -> Response:
        body = _object()
        if body.get("type") not in CLIENT_TYPES:
            raise _invalid(["type"], f"Invalid option: expected one of {', '.join(CLIENT_TYPES)}")
        if not isinstance(body.get("name"), str) or not body["name"]:
            raise _invalid(["name"], "String must contain at least 1 character")
        if not isinstance(body.get("metadata", {}), dict) or not isinstance(body.get("externalId", ""), str):
            raise _invalid(["metadata"], "Expected object")
        taken = any(one["externalId"] == body.get("externalId") for one in self._register.clients.values())
        if taken and self.switches["client_external_id"] == "unique":
            raise _No(409, "externalId is taken")
        return answer(201, self._insert_client(self._register, body))

    @staticmethod
    def _insert_client(register: Register, fields: Mapping[str, Any]) -> dict[str, Any]:
        client = {
            "id": str(uuid.uuid4()),
            "type": "individual",
            "externalId": None,
            "metadata": {},
            "createdAt": _now(),
            "updatedAt": _now(),
            **fields,
        }
        register.clients[client["id"]] = client
        return client

    def _client_by_metadata(self, key: str, value: str) -> Response:
        for client in self._register.clients.values():
            if client["metadata"].get(key) == value:
                return answer(200, client)
        if self.switches["metadata_miss"] == "null":
            return answer(200, None)
        raise _No(404, "Client not found")

    # --- refusals ---

    def _refusal(self, no: _No) -> Response:
        code = CODES.get(no.status, "VALIDATION_ERROR")
        whole: dict[str, Any] = {"code": code, "message": no.message}
        if no.issues:
            whole["issues"] = [{"path": path, "message": message} for path, message in no.issues]
        shapes: dict[str, Any] = {"code": whole, "nested": {"error": whole}, "message": {"message": no.message}}
        style = self.switches["error_style"]
        if style in shapes:
            return answer(no.status, shapes[style])
        html = "" if style == "empty" else f"<html><title>{code}</title></html>"
        return Response(html, no.status, {"Content-Type": "text/html"})

    def _http_refusal(self, error: HTTPException) -> Response:
        return self._refusal(_No(error.code or 500, f"Cannot {request.method} {request.path}"))


def _object() -> dict[str, Any]:
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        raise _invalid([], "Expected object")
    return body


def _invalid(path: list[Any], message: str) -> _No:
    return _No(400, "Request validation failed", (path, message))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
