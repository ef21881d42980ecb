"""A Sakari account on loopback: OAuth2, contacts, attributes, and people who text STOP.

Stricter than the vendor (unknown keys and parameters are refused), so that an adapter's mistakes show. What the
vendor does not document stands behind *SWITCHES*. It watches itself: `Sakari.loosened` names every contact of
which a call, not a person, took an opt-out away. https://developer.sakari.io/api-reference
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer

TEXTS = ("email", "firstName", "lastName")
WRITABLE = frozenset({*TEXTS, "mobile", "lists", "attributes", "optIn", "blocked", "tags"})
FILTERS = frozenset({"offset", "limit", "mobile", "email", "firstName", "lastName", "tags"})
STRATEGIES = ("append", "core", "remove")
STOPPED = {"code": "CONT-010", "description": "Contact has requested no further communication"}

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What a contact held of opt-outs after something was done, and whether a call or a person did it."""

    by: str  # "api", "person"
    blocked: str | None
    left: frozenset[str]  # ids of the lists that the person opted out of


@dataclass(slots=True)
class _Hook:
    method: str
    path: str
    action: Callable[[], object]
    after: bool


class _Refusal(Exception):
    """An answer that is no success; raised anywhere in a handler."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Sakari(Fake):
    """See the module's docstring.

    - ``put_mode``: what a PUT does to what it leaves out. ``missing_blocked_in_put``: the same for ``blocked`` and
      the ``optOut`` of a list, in a PUT that replaces everything else.
    - ``blocked_writable``: ``no`` passes over a sent ``blocked``, ``400`` refuses one that differs.
    - ``mobile_filter``: whether the filter finds digits without the plus, or only with it.
    """

    title = "Sakari"
    account = "demo-account"
    client_id = "demo-client"
    client_secret = f"{client_id}-key"  # nobody's
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "put_mode": ("replace", "partial"),
        "missing_blocked_in_put": ("clear", "keep"),
        "merge_default": ("append", "core", "remove", "409"),
        "unknown_attribute": ("ignore", "400"),
        "post_shape": ("list", "object", "upload"),
        "pagination": ("hasNext", "totalCount"),
        "blocked_writable": ("yes", "no", "400"),
        "expires_in": ("absent", "present"),
        "mobile_filter": ("digits", "needs_plus"),
    }

    def __init__(self, **switches: Any) -> None:
        self.contacts: dict[str, Record] = {}
        self.attributes: list[str] = ["tier", "city", "remark"]
        self.lists: dict[str, str] = {"l-clients": "Clients", "l-news": "News", "l-vip": "VIP"}
        self.history: dict[str, list[Glimpse]] = {}
        self.token_life_s = 3600.0
        self.readable_tokens = True  # False: opaque ones, with no `exp` to read
        self._tokens: dict[str, float] = {}
        self._hooks: list[_Hook] = []
        self._ahead_s = 0.0
        self._ids = 0
        super().__init__(**switches)

    # --- for tests and the demo ---

    def clock(self) -> float:
        """Return the fake's Unix time; `advance` moves it."""
        return time.time() + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds

    def revoke_tokens(self) -> None:
        """Let every token handed out so far be refused, however long it had to live."""
        with self.lock:
            self._tokens.clear()

    def hook(self, method: str, path: str, action: Callable[[], object], *, after: bool = False) -> None:
        """Do *action* once, right before (or *after*) the next such call is handled."""
        with self.lock:
            self._hooks.append(_Hook(method, path, action, after))

    def add(self, mobile: str, country: str = "MX", **fields: Any) -> str:
        """Put a contact there, as a person at the keyboard would; return its id."""
        with self.lock:
            contact = self._new({"number": mobile, "country": country})
            contact.update(fields)
            self._seen(contact, "person")
            return str(contact["id"])

    def edit(self, mobile: str, /, **fields: Any) -> None:
        """Change a contact, as a person at the keyboard would; None takes a value away."""
        with self.lock:
            contact = self._by_mobile(mobile)
            contact.update(fields)
            self._seen(contact, "person")

    def stop(self, mobile: str) -> None:
        """The person texts STOP."""
        with self.lock:
            contact = self._by_mobile(mobile)
            contact["blocked"] = contact["blocked"] or self._now()
            self._seen(contact, "person")

    def start(self, mobile: str) -> None:
        """The person texts START."""
        self.edit(mobile, blocked=None)

    def leave(self, mobile: str, list_id: str) -> None:
        """The person opts out of one list."""
        with self.lock:
            contact = self._by_mobile(mobile)
            for entry in contact["lists"]:
                if entry["id"] == list_id:
                    entry["optOut"] = entry["optOut"] or self._now()
            self._seen(contact, "person")

    def person(self, mobile: str) -> dict[str, Any] | None:
        """Return what the account holds of the person, in plain terms; None if nobody has the number."""
        with self.lock:
            contact = next((c for c in self.contacts.values() if c["mobile"]["number"] == mobile), None)
            if contact is None:
                return None
            return {
                "id": contact["id"],
                "mobile": mobile,
                **{name: contact[name] for name in TEXTS},
                "attributes": dict(contact["attributes"]),
                "lists": [entry["id"] for entry in contact["lists"] if not entry["optOut"]],
                "left_lists": [entry["id"] for entry in contact["lists"] if entry["optOut"]],
                "opted_out": bool(contact["blocked"]),
            }

    def loosened(self) -> list[str]:
        """Return the ids of contacts of which a call took away an opt-out that was there before it."""
        with self.lock:
            return [contact_id for contact_id, seen in self.history.items() if _loosened(seen)]

    # --- the account ---

    def routes(self, app: Flask) -> None:
        base = f"/v1/accounts/{self.account}"
        app.before_request(self._run_hooks)
        app.before_request(self._check_token)
        app.after_request(self._run_hooks_after)
        app.register_error_handler(_Refusal, _refuse)
        app.register_error_handler(404, lambda error: _refuse(_Refusal(404, "REQ-404", "Not found")))
        app.add_url_rule("/oauth2/token", view_func=self._token, methods=["POST"])
        app.add_url_rule(base, view_func=self._account)
        app.add_url_rule(f"{base}/attributes/contacts", view_func=self._attributes)
        app.add_url_rule(f"{base}/contacts", view_func=self._list)
        app.add_url_rule(f"{base}/contacts", "create", self._create, methods=["POST"])
        app.add_url_rule(f"{base}/contacts/<contact_id>", "get", self._get)
        app.add_url_rule(f"{base}/contacts/<contact_id>", "put", self._put, methods=["PUT"])
        app.add_url_rule(f"{base}/contacts/<contact_id>", "delete", self._delete, methods=["DELETE"])

    def _run_hooks(self) -> None:
        self._take_hooks(after=False)

    def _run_hooks_after(self, response: Response) -> Response:
        self._take_hooks(after=True)
        return response

    def _take_hooks(self, *, after: bool) -> None:
        due = [
            hook
            for hook in self._hooks
            if hook.after is after and hook.method == request.method and hook.path in request.path
        ]
        for hook in due:
            self._hooks.remove(hook)
            hook.action()

    def _token(self) -> Response:
        given = _body({"grant_type", "client_id", "client_secret"})
        if given.get("grant_type") != "client_credentials":
            raise _Refusal(400, "AUTH-001", "Unsupported grant type")
        if (given.get("client_id"), given.get("client_secret")) != (self.client_id, self.client_secret):
            raise _Refusal(401, "AUTH-002", "Invalid client")
        expires_at = self.clock() + self.token_life_s
        self._ids += 1
        claims = {"exp": int(expires_at), "jti": self._ids}
        token = (
            f"{_part({'alg': 'RS256'})}.{_part(claims)}.c2ln" if self.readable_tokens else f"opaque-{self._ids}"
        )
        self._tokens[token] = expires_at
        said: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
        if self.switches["expires_in"] == "present":
            said["expires_in"] = self.token_life_s
        return answer(200, said)

    def _check_token(self) -> None:
        if not request.path.startswith("/v1/"):
            return
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or self._tokens.get(token, 0.0) <= self.clock():
            raise _Refusal(401, "AUTH-003", "Unauthorized")
        if not f"{request.path}/".startswith(f"/v1/accounts/{self.account}/"):
            raise _Refusal(403, "ACCT-008", "Invalid account id")

    def _account(self) -> Response:
        return answer(200, {"success": True, "data": {"id": self.account, "name": "Demo account"}})

    def _attributes(self) -> Response:
        _query({"offset", "limit"})
        rows = [
            {"id": f"a-{name}", "name": name, "label": name.title(), "type": "contacts", "dataType": "text"}
            for name in self.attributes
        ]
        return self._page(rows)

    # --- contacts ---

    def _list(self) -> Response:
        query = _query(FILTERS)
        return self._page([self._render(c) for c in self.contacts.values() if self._fits(c, query)])

    def _fits(self, contact: Record, query: Mapping[str, str]) -> bool:
        wanted = query.get("mobile", "")
        number = contact["mobile"]["number"]
        if self.switches["mobile_filter"] == "digits":
            number = number.removeprefix("+")
        elif wanted and not wanted.startswith("+"):
            return False
        texts = all(query.get(name, "").lower() in (contact[name] or "").lower() for name in TEXTS)
        return wanted in number and texts

    def _page(self, rows: list[Record]) -> Response:
        offset = _number(request.args.get("offset", "0"), 0, 10**9)
        limit = _number(request.args.get("limit", "10"), 1, 100)
        pagination: dict[str, Any] = {"offset": offset, "limit": limit}
        if self.switches["pagination"] == "hasNext":
            pagination["hasNext"] = offset + limit < len(rows)
        else:
            pagination["totalCount"] = len(rows)
        return answer(200, {"success": True, "pagination": pagination, "data": rows[offset : offset + limit]})

    def _get(self, contact_id: str) -> Response:
        return answer(200, {"success": True, "data": self._render(self._known(contact_id))})

    def _create(self) -> Response:
        strategy = _query({"mergeStrategy"}).get("mergeStrategy", self.switches["merge_default"])
        body = _body(WRITABLE)
        upload = self.switches["post_shape"] == "upload"
        try:
            mobile = _mobile(body.get("mobile"))
            self._check(body)
        except _Refusal as error:
            if not upload:
                raise
            failed = {**body, "valid": False, "error": {"code": error.code, "description": str(error)}}
            summary = {"submitted": 1, "inserted": 0, "updated": 0, "contacts": [], "errors": [failed]}
            return answer(201, {"success": True, "data": summary})
        contact = next((c for c in self.contacts.values() if c["mobile"]["number"] == mobile["number"]), None)
        if contact is not None and strategy == "409":
            raise _Refusal(409, "CONT-002", "A contact with this mobile exists")
        if strategy not in {*STRATEGIES, "409"}:
            raise _Refusal(400, "REQ-001", "Unknown mergeStrategy")
        existed = contact is not None
        contact = contact or self._new(mobile)
        self._merge(contact, body, "append" if not existed else strategy)
        self._seen(contact, "api")
        shown = self._render(contact)
        shapes: dict[str, Any] = {
            "list": [shown],
            "object": shown,
            "upload": {
                "submitted": 1,
                "inserted": int(not existed),
                "updated": int(existed),
                "contacts": [shown],
                "errors": [],
            },
        }
        return answer(201, {"success": True, "data": shapes[self.switches["post_shape"]]})

    def _merge(self, contact: Record, body: Record, strategy: str) -> None:
        for name in TEXTS:
            if name in body:
                contact[name] = body[name]
        if strategy == "core":
            return
        if strategy == "remove":
            contact["attributes"] = {}
            contact["lists"] = []
        contact["attributes"].update(self._defined(body.get("attributes", {})))
        here = {entry["id"] for entry in contact["lists"]}
        contact["lists"] += [
            self._entry(given, None) for given in body.get("lists", []) if given["id"] not in here
        ]

    def _put(self, contact_id: str) -> Response:
        _query(set())
        contact = self._known(contact_id)
        body = _body(WRITABLE)
        self._check(body)
        mobile = _mobile(body.get("mobile", contact["mobile"] if self._partial else None))
        if any(c["mobile"]["number"] == mobile["number"] for c in self.contacts.values() if c is not contact):
            raise _Refusal(409, "CONT-002", "A contact with this mobile exists")
        if (
            self.switches["blocked_writable"] == "400"
            and body.get("blocked", contact["blocked"]) != contact["blocked"]
        ):
            raise _Refusal(400, "REQ-002", "blocked is read-only")
        contact["mobile"] = mobile
        self._put_plain(contact, body)
        self._put_lists(contact, body)
        self._put_blocked(contact, body)
        contact["updated"] = self._stamp()
        self._seen(contact, "api")
        return answer(200, {"success": True, "data": self._render(contact)})

    @property
    def _partial(self) -> bool:
        return bool(self.switches["put_mode"] == "partial")

    def _put_plain(self, contact: Record, body: Record) -> None:
        for name in (*TEXTS, "optIn", "tags"):
            if name in body or not self._partial:
                contact[name] = body.get(name)
        if self._partial:
            contact["attributes"].update(self._defined(body.get("attributes", {})))
        else:
            contact["attributes"] = self._defined(body.get("attributes", {}))

    def _put_lists(self, contact: Record, body: Record) -> None:
        if "lists" in body or not self._partial:
            before = {entry["id"]: entry for entry in contact["lists"]}
            contact["lists"] = [self._entry(given, before.get(given["id"])) for given in body.get("lists", [])]

    def _put_blocked(self, contact: Record, body: Record) -> None:
        if "blocked" in body:
            if self.switches["blocked_writable"] == "yes":
                contact["blocked"] = body["blocked"]
        elif not self._keeps_opt_outs:
            contact["blocked"] = None

    @property
    def _keeps_opt_outs(self) -> bool:
        return self._partial or self.switches["missing_blocked_in_put"] == "keep"

    def _entry(self, given: Record, before: Record | None) -> Record:
        kept = (before or {}).get("optOut") if self._keeps_opt_outs else None
        return {
            "id": given["id"],
            "name": self.lists[given["id"]],
            "optIn": given.get("optIn"),
            "optOut": given.get("optOut", kept),
        }

    def _delete(self, contact_id: str) -> Response:
        self._known(contact_id)
        del self.contacts[contact_id]
        return answer(200, {"success": True})

    # --- helpers ---

    def _check(self, body: Record) -> None:
        if body.get("email") is not None and "@" not in body["email"]:
            raise _Refusal(400, "CONT-004", "Invalid email")
        for entry in body.get("lists", []):
            if not isinstance(entry, dict) or not set(entry) <= {"id", "name", "optIn", "optOut"}:
                raise _Refusal(400, "REQ-003", "Not a list")
            if entry.get("id") not in self.lists:
                raise _Refusal(400, "LIST-001", "Unknown list")
        attributes = body.get("attributes", {})
        if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
            raise _Refusal(400, "REQ-004", "Attributes are texts by name")
        if self.switches["unknown_attribute"] == "400" and not set(attributes) <= set(self.attributes):
            raise _Refusal(400, "CONT-003", "Unknown attribute")

    def _defined(self, attributes: Mapping[str, Any]) -> Record:
        return {name: value for name, value in attributes.items() if name in self.attributes}

    def _new(self, mobile: Record) -> Record:
        self._ids += 1
        contact: Record = {
            "id": f"c-{self._ids}",
            "mobile": mobile,
            "email": None,
            "firstName": None,
            "lastName": None,
            "lists": [],
            "attributes": {},
            "optIn": None,
            "blocked": None,
            "tags": None,
            "created": self._stamp(),
            "updated": self._stamp(),
        }
        self.contacts[contact["id"]] = contact
        return contact

    def _render(self, contact: Record) -> Record:
        """Return the contact as the platform shows it: more than can be written, and null where nothing is."""
        shown = deepcopy(contact)
        shown["mobile"] |= {"verified": None, "valid": True, "lineType": "mobile"}
        shown["valid"] = True
        shown["error"] = dict(STOPPED) if contact["blocked"] else None
        return shown

    def _known(self, contact_id: str) -> Record:
        if contact_id not in self.contacts:
            raise _Refusal(404, "CONT-404", "No such contact")
        return self.contacts[contact_id]

    def _by_mobile(self, mobile: str) -> Record:
        return next(c for c in self.contacts.values() if c["mobile"]["number"] == mobile)

    def _seen(self, contact: Record, by: str) -> None:
        left = frozenset(entry["id"] for entry in contact["lists"] if entry["optOut"])
        self.history.setdefault(contact["id"], []).append(Glimpse(by, contact["blocked"] or None, left))

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _stamp(self) -> Record:
        return {"at": self._now(), "by": {"id": "u1", "name": "API", "source": "api", "subSource": ""}}


def _loosened(seen: list[Glimpse]) -> bool:
    return any(
        now.by == "api" and ((before.blocked and not now.blocked) or before.left - now.left)
        for before, now in pairwise(seen)
    )


def _refuse(error: _Refusal) -> Response:
    return answer(error.status, {"success": False, "error": {"code": error.code, "message": str(error)}})


def _part(claims: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()


def _body(known: Iterable[str]) -> Record:
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        raise _Refusal(400, "REQ-005", "The body is not a JSON object")
    if unknown := set(body) - set(known):
        raise _Refusal(400, "REQ-006", f"Unknown keys: {', '.join(sorted(unknown))}")
    return body


def _query(known: Iterable[str]) -> dict[str, str]:
    query = request.args.to_dict()
    if unknown := set(query) - set(known):
        raise _Refusal(400, "REQ-007", f"Unknown parameters: {', '.join(sorted(unknown))}")
    return query


def _number(text: str, least: int, most: int) -> int:
    if not text.isdigit() or not least <= int(text) <= most:
        raise _Refusal(400, "REQ-008", "A parameter is out of range")
    return int(text)


def _mobile(given: Any) -> Record:
    if (
        not isinstance(given, dict)
        or not set(given) <= {"country", "number"}
        or not re.fullmatch(r"\+[1-9]\d{6,14}", str(given.get("number", "")))
        or not re.fullmatch(r"[A-Z]{2}", str(given.get("country", "")))
    ):
        raise _Refusal(400, "CONT-001", "Invalid mobile number")
    return {"country": given["country"], "number": given["number"]}
