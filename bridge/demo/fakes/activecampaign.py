"""An ActiveCampaign account on loopback: contacts, custom fields, lists, tags and imports.

Stricter than the vendor (unknown keys and parameters are refused), so that an adapter's mistakes show. What the
vendor does not document stands behind *SWITCHES*. Every change of a list status is kept in
`ActiveCampaign.history`, so that a test can prove that no call ever subscribed a person who had left.
https://developers.activecampaign.com/reference/overview
"""

from __future__ import annotations

import itertools
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer

API_KEY = "demo-key"
UNCONFIRMED, SUBSCRIBED, UNSUBSCRIBED, BOUNCED = range(4)
ACCOUNT_ZONE = timezone(timedelta(hours=-6))
TEXTS = ("phone", "firstName", "lastName")
SINGLE_CHOICE = frozenset({"dropdown", "radio"})
MULTIPLE_CHOICE = frozenset({"checkbox", "listbox"})
NOT_TEXT = SINGLE_CHOICE | MULTIPLE_CHOICE | {"date", "datetime"}
CONTACT_PARAMETERS = frozenset(
    {"email", "email_like", "phone", "search", "ids[]", "listid", "tagid", "status", "exclude", "id_greater"}
    | {"id_less", "include", "limit", "offset"}
    | {f"orders[{name}]" for name in ("id", "cdate", "email", "first_name", "last_name")}
)
IMPORT_CONTACTS_MAX = 250
IMPORT_BYTES_MAX = 399_999
LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Login</title></head><body>Please log in</body></html>"

Json = dict[str, Any]


@dataclass(slots=True)
class Contact:
    id: str
    email: str
    created: datetime
    updated: datetime
    texts: dict[str, str] = field(default_factory=lambda: dict.fromkeys(TEXTS, ""))
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class CustomField:
    """*options*: label by value."""

    id: str
    perstag: str
    title: str
    type: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Membership:
    id: str
    status: int
    channel: str = "email"


@dataclass(frozen=True, slots=True)
class ListChange:
    """A change of a list status. *old* None: the contact had never been on the list."""

    contact: str
    list: str  # its name
    old: int | None
    new: int
    by: str  # api, import, automation, person


@dataclass(slots=True)
class Import:
    contacts: list[Json]
    polls: int  # until it is completed
    success: list[str] = field(default_factory=list)
    failure: list[str] = field(default_factory=list)


class _Refusal(Exception):
    """An answer that is no success; raised anywhere in a handler."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(body))
        self.answer = answer(status, body, headers)


def _invalid(title: str, pointer: str, *, code: str = "", error: str = "") -> _Refusal:
    row: Json = {"title": title, "detail": "", "source": {"pointer": f"/data/attributes/{pointer}"}}
    row |= {name: text for name, text in (("code", code), ("error", error)) if text}
    return _Refusal(422, {"errors": [row]})


def _missing(what: str, number: str) -> _Refusal:
    return _Refusal(404, {"message": f"No Result found for {what} with id {number}"})


class ActiveCampaign(Fake):
    """One account, with a few custom fields and lists to begin with.

    *limit* is how many calls a second it takes (None: any number; the vendor's is 5), *imports_per_minute* the
    same for imports, *import_polls* how often an import's status says that it is not done yet. *welcome_list*: an
    automation of the account subscribes every new contact to this list.
    """

    title = "ActiveCampaign"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "null_value": ("clear", "ignore", "422"),
        "empty_date": ("ignore", "clear", "422"),
        "empty_text": ("clear", "ignore"),
        "unknown_option": ("422", "store", "ignore"),
        "bad_key": ("403", "200html"),
        "empty_field_in_read": ("absent", "null"),
        "deleted_read": ("200", "404"),
        "sync_update": (200, 201),
    }

    def __init__(
        self,
        *,
        limit: int | None = None,
        imports_per_minute: int | None = None,
        import_polls: int = 2,
        welcome_list: str = "",
        **switches: Any,
    ) -> None:
        self.limit = limit
        self.imports_per_minute = imports_per_minute
        self.import_polls = import_polls
        self.welcome_list = welcome_list
        self.api_key = API_KEY
        self.contacts: dict[str, Contact] = {}
        self.fields: dict[str, CustomField] = {}
        self.values: dict[tuple[str, str], tuple[str, str | None]] = {}  # (contact, field) -> (row id, value)
        self.lists: dict[str, str] = {}  # name by id
        self.memberships: dict[tuple[str, str], Membership] = {}  # by (contact, list)
        self.tags: dict[str, str] = {}  # text by id
        self.links: dict[str, tuple[str, str]] = {}  # (contact, tag) by the link's id
        self.imports: dict[str, Import] = {}
        self.history: list[ListChange] = []
        self._ids = itertools.count(101)
        self._hits: deque[float] = deque()
        self._import_hits: list[float] = []
        super().__init__(**switches)
        self.add_field("NICKNAME", "Nickname", "text")
        self.add_field("RENEWAL", "Renewal", "date")
        self.add_field("LAST_ORDER", "Last order", "datetime")
        self.add_field("TIER", "Tier", "dropdown", {"gold": "Gold", "silver": "Silver"})
        self.add_field("LANGUAGE", "Language", "radio", {"en": "English", "af": "Afrikaans"})
        self.add_field(
            "INTERESTS", "Interests", "checkbox", {"Bikes": "Bikes", "Boats": "Boats", "Books": "Books"}
        )
        self.add_list("Newsletter")
        self.add_list("Product news")

    # --- what a test or the demo arranges and sees ---

    def add_field(self, perstag: str, title: str, type_: str, options: Mapping[str, str] | None = None) -> str:
        with self.lock:
            number = self._id()
            self.fields[number] = CustomField(number, perstag, title, type_, dict(options or {}))
            return number

    def add_list(self, name: str) -> str:
        with self.lock:
            number = self._id()
            self.lists[number] = name
            return number

    def add_tag(self, text: str) -> str:
        with self.lock:
            number = self._id()
            self.tags[number] = text
            return number

    def add_contact(self, email: str, **texts: str) -> str:
        """Put a contact there, as staff would, and return its id. Two may get the same address in this way."""
        with self.lock:
            contact = self._new(email)
            contact.texts |= texts
            return contact.id

    def age(self, contact_id: str, by: timedelta) -> None:
        """Make a contact look as old as if it had been made *by* earlier."""
        with self.lock:
            self.contacts[contact_id].created -= by

    def set_value(self, contact_id: str, perstag: str, value: str) -> None:
        with self.lock:
            self._store(contact_id, self._field_by_tag(perstag).id, value)

    def tag_contact(self, contact_id: str, text: str) -> None:
        with self.lock:
            number = next((n for n, tag in self.tags.items() if tag == text), None) or self.add_tag(text)
            self.links[self._id()] = (contact_id, number)

    def set_status(self, contact_id: str, list_name: str, status: int, *, by: str = "person") -> None:
        """Set a list status as a person, the platform or staff would."""
        with self.lock:
            number = next(n for n, name in self.lists.items() if name == list_name)
            self._subscribe(contact_id, number, status, by)

    def unsubscribe(self, contact_id: str) -> None:
        """Have the person click "unsubscribe from everything": status 2 on every list they are on."""
        with self.lock:
            for owner, number in list(self.memberships):
                if owner == contact_id:
                    self._subscribe(contact_id, number, UNSUBSCRIBED, "person")

    def delete(self, contact_id: str) -> None:
        """Delete a contact, as staff would."""
        with self.lock:
            self._delete(contact_id)

    def person(self, email: str) -> Json:
        """Return the contact with this address in plain terms; empty when there is none.

        Keys: id, email, phone, firstName, lastName; fields: value by tag; tags: sorted; lists: status by name.
        """
        with self.lock:
            contact = self._by_email(email)
            return self._plain(contact) if contact else {}

    def people(self) -> list[Json]:
        """Return every contact that is not deleted, as `person` does."""
        with self.lock:
            return [self._plain(contact) for contact in self.contacts.values() if not contact.deleted]

    def opted_out(self, contact_id: str) -> bool:
        """Say whether the contact is unsubscribed from a list and subscribed to none."""
        with self.lock:
            statuses = {m.status for (owner, _), m in self.memberships.items() if owner == contact_id}
            return UNSUBSCRIBED in statuses and not statuses & {UNCONFIRMED, SUBSCRIBED}

    @property
    def loosened(self) -> list[ListChange]:
        """Every time that a call, and not a person, subscribed somebody who was on the list in another way."""
        with self.lock:
            changes = [c for c in self.history if c.by in {"api", "import"} and c.new in {UNCONFIRMED, SUBSCRIBED}]
            return [c for c in changes if c.old not in {None, SUBSCRIBED}]

    def _plain(self, contact: Contact) -> Json:
        values = {self.fields[number].perstag: v for (c, number), (_, v) in self.values.items() if c == contact.id}
        return {
            "id": contact.id,
            "email": contact.email,
            **contact.texts,
            "fields": {tag: value for tag, value in values.items() if value},
            "tags": sorted(self.tags[tag] for owner, tag in self.links.values() if owner == contact.id),
            "lists": {self.lists[n]: m.status for (c, n), m in self.memberships.items() if c == contact.id},
        }

    # --- state ---

    def _id(self) -> str:
        return str(next(self._ids))

    def _by_email(self, email: str) -> Contact | None:
        wanted = email.casefold()
        return next((c for c in self.contacts.values() if c.email.casefold() == wanted and not c.deleted), None)

    def _field_by_tag(self, perstag: str) -> CustomField:
        return next(found for found in self.fields.values() if found.perstag == perstag)

    def _new(self, email: str) -> Contact:
        now = datetime.now(UTC)
        contact = Contact(self._id(), email, now, now)
        self.contacts[contact.id] = contact
        if self.welcome_list:
            number = next(n for n, name in self.lists.items() if name == self.welcome_list)
            self._subscribe(contact.id, number, SUBSCRIBED, "automation")
        return contact

    def _delete(self, contact_id: str) -> None:
        contact = self.contacts[contact_id]
        contact.deleted = True
        contact.email = f"deleted+{contact_id}@example.invalid"
        contact.texts = dict.fromkeys(TEXTS, "")
        self.values = {key: row for key, row in self.values.items() if key[0] != contact_id}
        self.links = {number: link for number, link in self.links.items() if link[0] != contact_id}
        self.memberships = {key: row for key, row in self.memberships.items() if key[0] != contact_id}

    def _store(self, contact_id: str, field_id: str, value: str | None) -> None:
        row_id, _ = self.values.get((contact_id, field_id)) or (self._id(), None)
        self.values[contact_id, field_id] = (row_id, value)

    def _subscribe(self, contact_id: str, list_id: str, status: int, by: str) -> Membership:
        row = self.memberships.get((contact_id, list_id))
        old = row.status if row else None
        row = row or Membership(self._id(), status)
        row.status = status
        self.memberships[contact_id, list_id] = row
        if old != status:
            self.history.append(ListChange(contact_id, self.lists[list_id], old, status, by))
        return row

    # --- the wire ---

    def routes(self, app: Flask) -> None:
        app.before_request(self._guard)
        app.after_request(self._count)
        app.register_error_handler(_Refusal, lambda refusal: refusal.answer)
        table: tuple[tuple[str, str, Callable[..., Response]], ...] = (
            ("GET", "/users/me", self._me),
            ("POST", "/contact/sync", self._sync),
            ("POST", "/contacts", self._create),
            ("GET", "/contacts", self._list),
            ("GET", "/contacts/<number>", self._get),
            ("PUT", "/contacts/<number>", self._update),
            ("PATCH", "/contacts/<number>", self._update),
            ("DELETE", "/contacts/<number>", self._remove),
            ("GET", "/contacts/<number>/fieldValues", self._values_of),
            ("GET", "/contacts/<number>/contactLists", self._lists_of),
            ("GET", "/contacts/<number>/contactTags", self._tags_of),
            ("GET", "/fields", self._fields),
            ("POST", "/fieldValues", self._set_value),
            ("PUT", "/fieldValues/<number>", self._put_value),
            ("DELETE", "/fieldValues/<number>", self._remove_value),
            ("GET", "/lists", self._lists),
            ("POST", "/contactLists", self._set_status),
            ("GET", "/tags", self._tags),
            ("POST", "/tags", self._create_tag),
            ("POST", "/contactTags", self._attach),
            ("DELETE", "/contactTags/<number>", self._detach),
            ("POST", "/import/bulk_import", self._import),
            ("GET", "/import/bulk_import", self._import_list),
            ("GET", "/import/info", self._import_info),
        )
        for method, path, handler in table:
            app.add_url_rule(f"/api/3{path}", f"{method} {path}", handler, methods=[method])

    def _guard(self) -> Response | None:
        if request.headers.get("Api-Token") != self.api_key:
            if self.switches["bad_key"] == "200html":
                return Response(LOGIN_PAGE, 200, {"Content-Type": "text/html; charset=utf-8"})
            return answer(403, {"message": "You do not have permission to access this resource."})
        now = time.monotonic()
        while self._hits and now - self._hits[0] >= 1:
            self._hits.popleft()
        if self.limit is not None and len(self._hits) >= self.limit:
            return answer(429, {"message": "Too many requests"}, {"Retry-After": "1"})
        self._hits.append(now)
        return None

    def _count(self, response: Response) -> Response:
        if self.limit is not None:
            response.headers["RateLimit-Limit"] = str(self.limit)
            response.headers["RateLimit-Remaining"] = str(max(0, self.limit - len(self._hits)))
        return response

    # --- reading requests strictly ---

    def _query(self, allowed: Iterable[str]) -> None:
        if unknown := set(request.args) - set(allowed):
            raise _Refusal(400, {"message": f"Unknown parameter: {', '.join(sorted(unknown))}"})

    def _body(self, key: str, allowed: Iterable[str], beside: Iterable[str] = ()) -> Json:
        """Return the object under *key* of the body, which may hold nothing but that and *beside*."""
        body = request.get_json(silent=True)
        if not isinstance(body, dict) or not isinstance(body.get(key), dict):
            row = {"status": 422, "title": "Missing attribute", "source": {"pointer": f"/data/attributes/{key}"}}
            raise _Refusal(422, {"errors": [row]})
        for name in [*(set(body) - {key, *beside}), *(set(body[key]) - set(allowed))]:
            raise _invalid("Unknown attribute.", name, code="unknown_attribute")
        found: Json = body[key]
        return found

    def _reference(self, row: Json, name: str, known: Iterable[str]) -> str:
        """Return the id that *row* names, a number or its text, which must exist."""
        number = row.get(name)
        if isinstance(number, bool) or not isinstance(number, str | int):
            raise _invalid("An id is needed.", name, code="invalid")
        if str(number) not in known:
            raise _invalid("There is no such id.", name, code="related_missing")
        return str(number)

    def _contact(self, number: str) -> Contact:
        contact = self.contacts.get(number)
        if contact is None or contact.deleted:
            raise _missing("Subscriber", number)
        return contact

    def _page(self, rows: list[Json]) -> tuple[list[Json], Json]:
        """Return the rows of the page that the query asks for, and the ``meta`` that goes with them."""
        try:
            limit, offset = int(request.args.get("limit", 20)), int(request.args.get("offset", 0))
        except ValueError:
            raise _Refusal(400, {"message": "limit and offset are numbers"}) from None
        limit = min(max(limit, 1), 100)
        page = {"limit": limit, "offset": offset, "status": int(request.args.get("status", -1))}
        return rows[offset : offset + limit], {"page_input": page, "total": str(len(rows)), "sortable": True}

    # --- contacts ---

    def _me(self) -> Response:
        return answer(200, {"user": {"id": "1", "username": "admin", "email": "admin@example.com"}})

    def _sync(self) -> Response:
        fields = self._contact_body()
        if "email" not in fields:
            raise _invalid("Contact Email Address is not valid.", "email", code="email_invalid")
        contact = self._by_email(fields["email"])
        status = 201 if contact is None else self.switches["sync_update"]
        return self._written(contact or self._new(fields["email"]), fields, status)

    def _create(self) -> Response:
        fields = self._contact_body()
        if "email" not in fields:
            raise _invalid("Contact Email Address is not valid.", "email", code="email_invalid")
        self._free(fields["email"], None)
        contact = self._new(fields["email"])
        self._written(contact, fields, 201)
        short = {name: self._long(contact)[name] for name in ("id", "email", *TEXTS, "cdate", "udate", "links")}
        return answer(201, {"contact": short, "fieldValues": self._sent_values(contact, fields)})

    def _update(self, number: str) -> Response:
        contact, fields = self._contact(number), self._contact_body()
        if "email" in fields:
            self._free(fields["email"], contact)
        return self._written(contact, fields, 200)

    def _written(self, contact: Contact, fields: Json, status: int) -> Response:
        checked = [(*self._checked(value), value) for value in fields.get("fieldValues", [])]
        for name in TEXTS:
            if name in fields and not self._ignored(fields[name]):
                contact.texts[name] = fields[name] or ""
        contact.email = fields.get("email", contact.email)
        for custom, text, _ in checked:
            if text is not None:
                self._store(contact.id, custom.id, text or None)
        contact.updated = datetime.now(UTC)
        return answer(status, {"contact": self._long(contact), "fieldValues": self._sent_values(contact, fields)})

    def _contact_body(self) -> Json:
        fields = self._body("contact", ("email", *TEXTS, "fieldValues"))
        email = fields.get("email", "nobody@example.invalid")
        if not isinstance(email, str) or not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", email):
            raise _invalid(
                "Contact Email Address is not valid.",
                "email",
                code="email_invalid",
                error="must_be_valid_email_address",
            )
        for name in TEXTS:
            text = fields.get(name, "")
            if text is None and self.switches["null_value"] != "422":
                continue
            if not isinstance(text, str) or len(text) > 255:
                raise _invalid("A text of at most 255 characters is needed.", name, code="invalid")
        if not isinstance(fields.get("fieldValues", []), list):
            raise _invalid("A list is needed.", "fieldValues", code="invalid")
        return fields

    def _free(self, email: str, owner: Contact | None) -> None:
        holder = self._by_email(email)
        if holder is not None and holder is not owner:
            raise _invalid("Email address already exists in the system", "email", code="duplicate")

    def _ignored(self, text: str | None) -> bool:
        switch = self.switches["null_value"] if text is None else self.switches["empty_text"]
        return not text and switch == "ignore"

    def _long(self, contact: Contact) -> Json:
        local = {name: getattr(contact, name).astimezone(ACCOUNT_ZONE) for name in ("created", "updated")}
        return {
            "id": contact.id,
            "email": contact.email,
            **contact.texts,
            "cdate": local["created"].isoformat(timespec="seconds"),
            "udate": local["updated"].isoformat(timespec="seconds"),
            # Not UTC, whatever the names say; the platform is like that.
            "created_utc_timestamp": local["created"].strftime("%Y-%m-%d %H:%M:%S"),
            "updated_utc_timestamp": local["updated"].strftime("%Y-%m-%d %H:%M:%S"),
            "deleted": "0",
            "anonymized": "0",
            "hash": uuid.uuid5(uuid.NAMESPACE_OID, contact.id).hex,
            "bounced_hard": "0",
            "bounced_soft": "0",
            "bounced_date": None,
            "sms_consent": None,
            "links": {"fieldValues": f"{request.host_url}api/3/contacts/{contact.id}/fieldValues"},
            "organization": None,
        }

    def _get(self, number: str) -> Response:
        contact = self.contacts.get(number)
        if contact is None or (contact.deleted and self.switches["deleted_read"] == "404"):
            raise _missing("Subscriber", number)
        body = {
            "contact": self._long(contact),
            "contactLists": self._membership_rows(number),
            "fieldValues": self._value_rows(number),
            "contactAutomations": [],
            "deals": [],
            "geoIps": [],
            "accountContacts": [],
        }
        return answer(200, body)

    def _remove(self, number: str) -> Response:
        self._contact(number)
        self._delete(number)
        return answer(200, {})

    def _list(self) -> Response:
        self._query(CONTACT_PARAMETERS)
        args = request.args.to_dict()  # looked at for every contact there is
        found = [c for c in self.contacts.values() if not c.deleted and self._matches(c, args)]
        for name in ("id", "cdate", "email", "first_name", "last_name"):
            if order := request.args.get(f"orders[{name}]"):
                found.sort(key=_ORDERS[name], reverse=order.casefold() == "desc")
        rows, meta = self._page([self._long(contact) for contact in found])
        body: Json = {"scoreValues": [], "contacts": rows, "meta": meta}
        for part in filter(None, request.args.get("include", "").split(",")):
            make = {"contactLists": self._membership_rows, "fieldValues": self._value_rows}.get(part)
            if make is None:
                raise _Refusal(400, {"message": "Unknown include"})
            body[part] = [row for contact in rows for row in make(contact["id"])]
        return answer(200, body)

    def _matches(self, contact: Contact, args: Mapping[str, str]) -> bool:
        if "email" in args and args["email"].casefold() != contact.email.casefold():
            return False  # as nearly always: nothing else is looked at
        statuses = {m.status for (owner, _), m in self.memberships.items() if owner == contact.id}
        lists = {number for owner, number in self.memberships if owner == contact.id}
        tags = {tag for owner, tag in self.links.values() if owner == contact.id}
        everything = " ".join((contact.email, *contact.texts.values())).casefold()
        status = int(args.get("status", -1))
        return (
            args.get("email_like", "").casefold() in contact.email.casefold()
            and contact.texts["phone"].startswith(args.get("phone", ""))
            and args.get("search", "").casefold() in everything
            and ("ids[]" not in args or contact.id in request.args.getlist("ids[]"))
            and ("listid" not in args or args["listid"] in lists)
            and ("tagid" not in args or args["tagid"] in tags)
            and (status == -1 or status in statuses)
            and args.get("exclude") != contact.id
            and int(args.get("id_greater", 0)) < int(contact.id) < int(args.get("id_less", 1 << 60))
        )

    # --- custom fields ---

    def _fields(self) -> Response:
        self._query({"limit", "offset", "filters[perstag]"})
        wanted = request.args.get("filters[perstag]")
        options = self._option_rows()
        rows = [
            {
                "id": custom.id,
                "title": custom.title,
                "type": custom.type,
                "perstag": custom.perstag,
                "isrequired": "0",
                "defval": None,
                "visible": "1",
                "ordernum": "1",
                "options": [row["id"] for row in options if row["field"] == custom.id],
                "relations": [],
            }
            for custom in self.fields.values()
            if wanted in {None, custom.perstag}
        ]
        page, meta = self._page(rows)
        shown = {row["id"] for row in page}
        return answer(
            200,
            {
                "fields": page,
                "fieldOptions": [row for row in options if row["field"] in shown],
                "fieldRels": [],
                "meta": {"total": meta["total"]},
            },
        )

    def _option_rows(self) -> list[Json]:
        return [
            {
                "id": f"{custom.id}{place:03d}",
                "field": custom.id,
                "value": value,
                "label": label,
                "orderid": str(place),
                "isdefault": "0",
            }
            for custom in self.fields.values()
            for place, (value, label) in enumerate(custom.options.items(), 1)
        ]

    def _checked(self, row: Any) -> tuple[CustomField, str | None]:
        """Return the field that *row* sets and what to store; None: nothing, since it is ignored."""
        if not isinstance(row, dict) or set(row) - {"field", "value", "contact"}:
            raise _invalid("Unknown attribute.", "fieldValues", code="unknown_attribute")
        custom = self.fields[self._reference(row, "field", self.fields)]
        value = row.get("value")
        if value is None:
            return custom, self._switched("null_value")
        if not isinstance(value, str):
            raise _invalid("A text is needed.", "fieldValues", code="invalid")
        if not value:
            return custom, self._switched("empty_date" if custom.type in NOT_TEXT else "empty_text")
        return custom, self._formatted(custom, value)

    def _switched(self, switch: str) -> str | None:
        how = self.switches[switch]
        if how == "422":
            raise _invalid("The value must not be empty.", "fieldValues", code="invalid")
        return "" if how == "clear" else None

    def _formatted(self, custom: CustomField, value: str) -> str | None:
        try:
            if custom.type == "date":
                return date.fromisoformat(value).isoformat()
            if custom.type == "datetime":
                moment = datetime.fromisoformat(value)
                if moment.tzinfo is not None:
                    return moment.astimezone(ACCOUNT_ZONE).isoformat(timespec="seconds")
                raise _invalid("The time needs an offset.", "fieldValues", code="invalid")
        except ValueError:
            raise _invalid("The date is not valid.", "fieldValues", code="invalid") from None
        if custom.type in SINGLE_CHOICE | MULTIPLE_CHOICE:
            return self._chosen(custom, value)
        return value

    def _chosen(self, custom: CustomField, value: str) -> str | None:
        parts = [value]
        if custom.type in MULTIPLE_CHOICE:
            if not re.fullmatch(r"\|\|.+\|\|", value):
                raise _invalid("Options stand between bars.", "fieldValues", code="invalid")
            parts = value[2:-2].split("||")
        if all(part in custom.options for part in parts):
            return value
        if self.switches["unknown_option"] == "422":
            raise _invalid("There is no such option.", "fieldValues", code="invalid")
        return value if self.switches["unknown_option"] == "store" else None

    def _value_row(self, contact_id: str, field_id: str) -> Json:
        row_id, value = self.values.get((contact_id, field_id), (f"9{contact_id}{field_id}", None))
        links = {"field": f"{request.host_url}api/3/fieldValues/{row_id}/field"}
        return {"id": row_id, "contact": contact_id, "field": field_id, "value": value, "links": links}

    def _value_rows(self, contact_id: str) -> list[Json]:
        rows = [self._value_row(contact_id, number) for number in self.fields]
        return [row for row in rows if row["value"] or self.switches["empty_field_in_read"] == "null"]

    def _sent_values(self, contact: Contact, fields: Json) -> list[Json]:
        return [self._value_row(contact.id, str(row["field"])) for row in fields.get("fieldValues", [])]

    def _values_of(self, number: str) -> Response:
        self._contact(number)
        return answer(200, {"fieldValues": self._value_rows(number)})

    def _set_value(self) -> Response:
        row = self._body("fieldValue", ("contact", "field", "value"), beside=("useDefaults",))
        contact = self._contact(self._reference(row, "contact", self.contacts))
        custom, text = self._checked(row)
        if text is not None:
            self._store(contact.id, custom.id, text or None)
        found = self._value_row(contact.id, custom.id)
        return answer(200, {"contacts": [self._long(contact)], "fieldValue": found})

    def _put_value(self, number: str) -> Response:
        self._value_key(number)
        return self._set_value()

    def _remove_value(self, number: str) -> Response:
        del self.values[self._value_key(number)]
        return answer(200, {})

    def _value_key(self, number: str) -> tuple[str, str]:
        key = next((key for key, (row_id, _) in self.values.items() if row_id == number), None)
        if key is None:
            raise _missing("FieldValue", number)
        return key

    # --- lists ---

    def _lists(self) -> Response:
        self._query({"limit", "offset", "filters[name]"})
        wanted = request.args.get("filters[name]", "").casefold()
        rows = [{"id": n, "name": name, "stringid": name} for n, name in self.lists.items()]
        page, meta = self._page([row for row in rows if wanted in row["name"].casefold()])
        return answer(200, {"lists": page, "meta": {"total": meta["total"]}})

    def _membership_rows(self, contact_id: str) -> list[Json]:
        return [
            {
                "id": row.id,
                "contact": contact_id,
                "list": number,
                "status": str(row.status),  # a text here, a number in the answer to a write
                "channel": row.channel,
                "sourceid": "0",
            }
            for (owner, number), row in self.memberships.items()
            if owner == contact_id
        ]

    def _lists_of(self, number: str) -> Response:
        self._contact(number)
        return answer(200, {"contactLists": self._membership_rows(number)})

    def _set_status(self) -> Response:
        row = self._body("contactList", ("list", "contact", "status", "sourceid"))
        contact = self._contact(self._reference(row, "contact", self.contacts))
        number = self._reference(row, "list", self.lists)
        status = row.get("status")
        if isinstance(status, bool) or status not in (SUBSCRIBED, UNSUBSCRIBED):
            raise _invalid("The status is 1 or 2.", "status", code="invalid")
        membership = self._subscribe(contact.id, number, status, "api")
        found = {"id": membership.id, "contact": contact.id, "list": number, "status": status, "sourceid": "4"}
        return answer(200, {"contactList": found})

    # --- tags ---

    def _tags(self) -> Response:
        self._query({"limit", "offset", "search", "filters[search][eq]"})
        part = request.args.get("search", "").casefold()
        exact = request.args.get("filters[search][eq]")
        rows = [
            {"id": number, "tag": text, "tagType": "contact", "description": ""}
            for number, text in self.tags.items()
            if part in text.casefold() and exact in {None, text}
        ]
        page, meta = self._page(rows)
        return answer(200, {"tags": page, "meta": {"total": meta["total"]}})

    def _create_tag(self) -> Response:
        tag = self._body("tag", ("tag", "tagType", "description"))
        text = tag.get("tag")
        if not isinstance(text, str) or not text.strip() or tag.get("tagType") != "contact":
            raise _invalid("A tag has a text and the type contact.", "tag", code="invalid")
        if any(text.casefold() == known.casefold() for known in self.tags.values()):
            raise _invalid("The tag exists already.", "tag", code="duplicate")
        return answer(201, {"tag": {"id": self.add_tag(text), **tag}})

    def _tags_of(self, number: str) -> Response:
        self._contact(number)
        rows = [
            {"id": link, "contact": owner, "tag": tag}
            for link, (owner, tag) in self.links.items()
            if owner == number
        ]
        return answer(200, {"contactTags": rows})

    def _attach(self) -> Response:
        row = self._body("contactTag", ("contact", "tag"))
        contact = self._contact(self._reference(row, "contact", self.contacts))
        tag = self._reference(row, "tag", self.tags)
        link = next((n for n, pair in self.links.items() if pair == (contact.id, tag)), None)
        status = 201 if link is None else 200
        link = link or self._id()
        self.links[link] = (contact.id, tag)
        return answer(status, {"contactTag": {"id": link, "contact": contact.id, "tag": tag}})

    def _detach(self, number: str) -> Response:
        if self.links.pop(number, None) is None:
            raise _missing("SubscriberTag", number)
        return answer(200, {})

    # --- imports ---

    def _import(self) -> Response:
        body = request.get_json(silent=True)
        contacts = body.get("contacts") if isinstance(body, dict) else None
        now = time.monotonic()
        self._import_hits = [at for at in self._import_hits if now - at < 60]
        if self.imports_per_minute is not None and len(self._import_hits) >= self.imports_per_minute:
            why = f"Up to {self.imports_per_minute} imports may be requested per minute"
            raise _Refusal(400, {"success": 0, "message": "Rate limit exceeded.", "failureReasons": [why]})
        self._import_hits.append(now)
        reasons = [{"contact": -1, "failureReason": "'contacts' is a list of 1 to 250."}]
        if isinstance(contacts, list) and 0 < len(contacts) <= IMPORT_CONTACTS_MAX:
            reasons = [
                {"contact": place, "failureReason": why}
                for place, contact in enumerate(contacts)
                if (why := self._import_problem(contact))
            ]
        if reasons or len(request.get_data()) > IMPORT_BYTES_MAX:
            text = "JSON payload did not pass validation. No contacts were imported."
            raise _Refusal(400, {"success": 0, "message": text, "failureReasons": reasons})
        batch = str(uuid.uuid4())
        self.imports[batch] = Import(json.loads(json.dumps(contacts)), self.import_polls)
        text = "Contact import queued"
        return answer(
            200, {"Success": 1, "queued_contacts": len(contacts or ()), "batchId": batch, "message": text}
        )

    def _import_problem(self, contact: Any) -> str:
        allowed = {"email", "first_name", "last_name", "phone", "tags", "fields", "subscribe", "unsubscribe"}
        if not isinstance(contact, dict) or set(contact) - allowed - {"exclude_automations"}:
            return "Unknown key."
        if "@" not in str(contact.get("email", "")):
            return "The email is not valid."
        lists = [row for part in ("subscribe", "unsubscribe") for row in contact.get(part, [])]
        if any(str(row.get("listid")) not in self.lists for row in lists):
            return "There is no such list."
        if any(str(row.get("id")) not in self.fields for row in contact.get("fields", [])):
            return "There is no such field."
        return ""

    def _import_list(self) -> Response:
        waiting = [batch for batch in self.imports.values() if batch.polls > 0]
        outstanding = [{"batches": len(waiting), "contacts": sum(len(batch.contacts) for batch in waiting)}]
        done = [number for number, batch in self.imports.items() if batch.polls <= 0]
        return answer(200, {"outstanding": outstanding if waiting else [], "recentlyCompleted": done})

    def _import_info(self) -> Response:
        batch = self.imports.get(request.args.get("batchId", ""))
        if batch is None:
            raise _Refusal(400, {"success": 0, "message": "'batchId' is a required field."})
        batch.polls -= 1
        if batch.polls >= 0:
            return answer(200, {"status": "waiting", "success": [], "failure": []})
        for contact in batch.contacts[len(batch.success) + len(batch.failure) :]:
            self._import_one(batch, contact)
        return answer(200, {"status": "completed", "success": batch.success, "failure": batch.failure})

    def _import_one(self, batch: Import, row: Json) -> None:
        contact = self._by_email(row["email"]) or self._new(row["email"])
        for name, key in (("firstName", "first_name"), ("lastName", "last_name"), ("phone", "phone")):
            contact.texts[name] = row.get(key, contact.texts[name])
        for value in row.get("fields", []):
            self._store(contact.id, str(value["id"]), str(value["value"]))
        for text in row.get("tags", []):
            self.tag_contact(contact.id, text)
        for wanted in row.get("unsubscribe", []):
            self._subscribe(contact.id, str(wanted["listid"]), UNSUBSCRIBED, "import")
        for wanted in row.get("subscribe", []):
            known = self.memberships.get((contact.id, str(wanted["listid"])))
            if known is not None and known.status == UNSUBSCRIBED:
                batch.failure.append(contact.email)
                return
            self._subscribe(contact.id, str(wanted["listid"]), SUBSCRIBED, "import")
        batch.success.append(contact.id)


_ORDERS: Mapping[str, Callable[[Contact], Any]] = {
    "id": lambda contact: int(contact.id),
    "cdate": lambda contact: contact.created,
    "email": lambda contact: contact.email,
    "first_name": lambda contact: contact.texts["firstName"],
    "last_name": lambda contact: contact.texts["lastName"],
}
