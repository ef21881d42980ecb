"""Freshsales (Freshworks CRM): webhooks of workflows, with a body of ours, and the account's contacts.

There is no signature and no way to subscribe by a call: a token in a header is the proof, and each workflow says
in its body what happened. Placeholders are put into it without care for quotes, so it should hold an id and a time
only, and the contact is read. https://crmsupport.freshworks.com/support/solutions/articles/50000002418
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version, iso
from bridge.outbound import Api, Query, Reply, segment
from bridge.sources import shown
from bridge.sources.base import BatchUnreadable, Genuine, Listed, Proof, Read, SourceType
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.paging import Page, page_by_time, read_id
from bridge.sources.reading import (
    Unclear,
    event_key,
    fingerprint,
    moment,
    read_json,
    receipt_key,
    record_id,
    short,
    text_or_none,
)
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling, made_up

CONTACT = "contact"
KINDS = {"created": Kind.CREATED, "updated": Kind.CHANGED, "deleted": Kind.DELETED}
OTHER_ACCOUNT = "It is from another Freshsales account than the configured one."
READ_LIMIT = 10  # a call each
PAGE_SIZE = 100
ALL_CONTACTS = "all contacts"  # the name of the view, in small letters
CUSTOM = "cf_"  # how the names of custom fields begin
_PLACEHOLDER = re.compile(r"\{\{.*\}\}", re.DOTALL)  # one that Freshsales did not know, and left standing
_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")

KNOWN_FIELDS = (
    "address", "city", "country", "created_at", "display_name", "email", "emails", "external_id", "first_name",
    "id", "job_title", "last_name", "lead_score", "mobile_number", "owner_id", "state", "subscription_status",
    "tags", "time_zone", "updated_at", "work_number", "zipcode",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The workflows of a Freshsales account."""

    secrets: tuple[Secret, ...] = field(
        metadata={"help": "what the webhooks show in X-Bridge-Token; several while it is changed: new first"}
    )
    domain: str = field(metadata={"help": "the host of the account", "example": "acme.myfreshworks.com"})
    token: Secret | None = field(
        default=None, metadata={"help": "the API key of a user who sees every contact: contacts are then read"}
    )
    view_id: int | str | None = field(
        default=None, metadata={"help": "the view that lists every contact; default: the one named All Contacts"}
    )
    opt_out_value: bool | str = field(
        default=True, metadata={"help": "what is written into a custom field to say that the person opted out"}
    )
    account: str | None = field(
        default=None,
        metadata={
            "help": "the only account to listen to, as the bodies name it; default: the first that is heard"
        },
    )
    api_base: str | None = field(
        default=None, metadata={"help": "where contacts are read; default: made of the domain"}
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


def base_url(settings: Settings) -> str:
    """Return where the account's API is, without a slash at the end."""
    if settings.api_base:
        return settings.api_base.rstrip("/")
    older = settings.domain.lower().endswith(".freshsales.io")
    return f"https://{settings.domain.lower()}{'/api' if older else '/crm/sales/api'}"


class Freshsales:
    """One account's workflows. Raises `ValueError` where a token is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._account = settings.account.strip() if settings.account else None
        with Complaints() as complaints:
            with complaints.look():
                self._shown = shown.in_header(settings.secrets)
            complaints.unless(bool(settings.secrets), "secrets: at least one is needed, or anyone could send")
            complaints.unless(
                bool(_HOST.fullmatch(settings.domain)), "domain: this is no host such as acme.myfreshworks.com"
            )
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if contacts are not to be read")

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        index = self._shown.match(request)
        return Genuine(Verified(shown.without(request, self._shown.header)), index)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return self._shown.show(request)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        word = body.get("event") if isinstance(body, dict) else None
        if not isinstance(word, str):
            raise BadPayload("The body is not what a workflow is to send to bridge: it has no 'event'.")
        return [self._event(word, body, received_at)]

    def _event(self, word: str, body: Mapping[str, Any], received_at: datetime) -> Event:
        thing, _, action = word.partition(".")
        account = _filled(body.get("account"))
        key = event_key("freshsales", account, word, fingerprint(body))
        if thing != CONTACT:
            return Event(key, ignored=f"'{short(word)}' is not about contacts.", type=word)
        if action not in KINDS:
            return Event(key, ignored=f"'{short(word)}' changes no contact that bridge knows of.", type=word)
        if self._account is not None and account is not None and account != self._account:
            return Event(key, ignored=OTHER_ACCOUNT, type=word)
        contact = body.get(CONTACT)
        try:
            if not isinstance(contact, dict):
                raise Unclear("It does not hold the contact that it speaks of.")
            source_id = record_id(contact.get("id"), "contact.id")
        except Unclear as error:
            return Event(key, unreadable=str(error), type=word)
        at = _moment_or_none(contact.get("updated_at"))
        if at is None:
            # It may repeat an earlier one word for word, and yet be news.
            key = receipt_key(received_at, key)
        change = self._change(KINDS[action], source_id, contact, at, received_at, account)
        return Event(key, (clamp(change, received_at),), type=word)

    def _change(
        self,
        kind: Kind,
        source_id: str,
        contact: Mapping[str, Any],
        at: datetime | None,
        received_at: datetime,
        account: str | None,
    ) -> Change:
        record, event_id = RecordKey(self.name, source_id), fingerprint(contact)
        if kind is Kind.DELETED:
            # Its time, if any, is that of the last change before: a tombstone must be newer than that.
            return Change(record, kind, Version(received_at, event_id), account=account)
        if at is None:
            kind = Kind.CHANGED  # nothing proves that it is newer than a deletion
        # Where the contact is read, that counts: it knows what is empty, and what has quotes in it.
        fields = {} if self.can_read() else _said(contact)
        return Change(record, kind, Version(at or received_at, event_id), fields, thin=True, account=account)

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._settings.token is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. Freshsales gives one record a call, of a thousand calls an hour."""
        if self._settings.token is None:
            raise SourceUnavailable(f"No token is configured for {self.name}, so its contacts cannot be read.")
        account = Account(self.name, self._settings)
        reads: dict[RecordKey, Read] = {}
        trouble = ""
        for key in dict.fromkeys(keys):
            if trouble:
                reads[key] = Read(key, key, None, None, problem=trouble)
                continue
            try:
                reads[key] = account.read(api, key, fields)
            except BatchUnreadable as error:
                reads[key] = Read(key, key, None, None, problem=str(error))
            except SourceUnavailable as error:
                if not reads:
                    raise
                trouble = str(error)  # what was learnt of the others so far is kept
                reads[key] = Read(key, key, None, None, problem=trouble)
        return [reads[key] for key in keys]


# --- a webhook -------------------------------------------------------------------------------------------


def _filled(value: Any) -> str | None:
    """Return a text of the body; None where nothing was put in."""
    text = text_or_none(value)
    return None if text is None or not text.strip() or _PLACEHOLDER.search(text) else text.strip()


def _moment_or_none(value: Any) -> datetime | None:
    try:
        return moment(value, "contact.updated_at")
    except Unclear:  # as people write dates, which leaves the time zone open
        return None


def _said(contact: Mapping[str, Any]) -> dict[str, Value]:
    """Return the fields that a body says something of.

    What is empty there may be a field that was cleared, or a placeholder that gives nothing: that says nothing.
    """
    return {name: value for name, value in _flat(contact).items() if not _says_nothing(value)}


def _says_nothing(value: Value) -> bool:
    if isinstance(value, str):
        return not value.strip() or bool(_PLACEHOLDER.search(value))
    return value is None or value == [] or value == {}


def _flat(contact: Mapping[str, Any]) -> dict[str, Value]:
    """Return a contact's fields, the custom ones (``cf_…``) beside the others."""
    fields: dict[str, Value] = {}
    for name, value in contact.items():
        if name == "custom_field":
            fields |= value if isinstance(value, dict) else {}
        elif name == "emails" and isinstance(value, list):
            texts = [one.get("value") if isinstance(one, dict) else one for one in value]
            if all(isinstance(text, str) for text in texts):  # another shape must not read as cleared
                fields[name] = texts
        elif name == "id":
            fields[name] = text_or_none(value)
        else:
            fields[name] = value
    return fields


# --- the account -----------------------------------------------------------------------------------------


class Account:
    """The contacts of one account, by https://developers.freshworks.com/crm/api."""

    def __init__(self, name: str, settings: Settings) -> None:
        token = settings.token.reveal().strip() if settings.token else ""
        self._name = name
        self._settings = settings
        self._caller = Caller(
            "Freshsales", name, {"Authorization": f"Token token={token}"}, "to see and edit contacts"
        )

    def read(self, api: Api, key: RecordKey, fields: Sequence[str]) -> Read:
        reply = self._caller.call(api, "GET", f"/contacts/{segment(key.source_id)}", expected=(200, 404))
        if reply.status == 404:
            return Read(key, key, None, None)
        contact = object_of(self._json(reply)).get(CONTACT)
        if not isinstance(contact, dict) or text_or_none(contact.get("id")) != key.source_id:
            raise BatchUnreadable("Freshsales's answer is not the contact that was asked for.")
        return self._as_read(key, contact, fields, read_id(reply))

    def _as_read(self, key: RecordKey, contact: Mapping[str, Any], fields: Sequence[str], event_id: str) -> Read:
        if contact.get("is_deleted") is True:
            return Read(key, key, None, None)
        at = _moment_or_none(contact.get("updated_at"))
        if at is None:
            problem = "Freshsales's answer does not say when the contact was last changed."
            return Read(key, key, None, None, problem=problem)
        said = _flat(contact)
        # Null: it is empty. Absent: the account has no such field, or its user may not see it.
        return Read(key, key, {name: said[name] for name in fields if name in said}, Version(at, event_id))

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`.

        Freshsales lists a view by page numbers, and chooses nothing by time. So it is listed in the order of last
        change, each page is looked at again before the next, and the first one after *since* is searched for.
        """
        place = parts_of(after)
        view_id = str(place.get("view") or self._settings.view_id or self._find_view(api))

        def fetch(floor: datetime | None, number: int) -> Page:
            query: Query = {"page": number, "per_page": PAGE_SIZE, "sort": "updated_at", "sort_type": "asc"}
            reply = self._caller.call(api, "GET", f"/contacts/view/{segment(view_id)}", query=query)
            answer = object_of(self._json(reply))
            if not isinstance(answer.get("contacts"), list):
                raise BatchUnreadable("Freshsales's answer is no list of contacts.")
            total = object_of(answer.get("meta")).get("total")
            return Page(self._records(answer["contacts"], fields, reply), total if type(total) is int else None)

        inner = str(place["place"]) if "place" in place else None
        found = page_by_time(fetch, inner, since, chooses=False, title="Freshsales")
        if found.after is None:
            return found
        return Listed(found.records, place_of(view=view_id, place=found.after), found.total)

    def _records(self, contacts: Sequence[Any], fields: Sequence[str], reply: Reply) -> list[Read]:
        event_id = read_id(reply, "list")
        records = []
        for contact in map(object_of, contacts):
            try:
                key = RecordKey(self._name, record_id(contact.get("id"), "id"))
            except Unclear as error:
                raise BatchUnreadable("Freshsales lists a contact without its id.") from error
            records.append(self._as_read(key, contact, fields, event_id))
        return records

    def _find_view(self, api: Api) -> str:
        answer = object_of(self._json(self._caller.call(api, "GET", "/contacts/filters")))
        for view in map(object_of, list_of(answer.get("filters"))):
            name, view_id = view.get("name"), text_or_none(view.get("id"))
            if isinstance(name, str) and name.strip().lower() == ALL_CONTACTS and view_id:
                return view_id
        raise SourceUnavailable(
            f"Freshsales shows {self._name} no view named All Contacts. Give the number of one that lists "
            "everybody as view_id: it stands in the address of its page."
        )

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`. Only custom fields are written: of those the account's people know the meaning."""
        if not name.startswith(CUSTOM):
            raise SourceUnavailable(
                f"'{short(name)}' is no custom field of Freshsales ({CUSTOM}…), and an opt-out is written into "
                "nothing else."
            )
        value = self._settings.opt_out_value
        path = f"/contacts/{segment(source_id)}"
        body = {CONTACT: {"custom_field": {name: value}}}
        reply = self._caller.call(api, "PUT", path, json=body, expected=(200, 204))
        written = _flat(object_of(object_of(reply.json_or_none()).get(CONTACT)))
        if name in written and written[name] != value:
            raise SourceUnavailable(
                f"Freshsales took the opt-out, but '{short(name)}' does not hold it afterwards."
            )

    def _json(self, reply: Reply) -> Any:
        """Return what an answer says; as strict as with webhooks, for it goes where those go."""
        try:
            return read_json(reply.body)
        except BadPayload as error:
            raise BatchUnreadable("Freshsales's answer is not JSON that bridge can read.") from error


def _account(name: str, settings: Settings) -> Account | None:
    return Account(name, settings) if settings.token is not None else None


def sample(wanted: Sampling) -> bytes:
    """Return the body of a workflow on changed contacts."""
    person = {
        "email": "ada@example.com",
        "mobile_number": "+14155550123",
        "first_name": "Ada",
        "last_name": "Lovelace",
    }
    said = made_up(wanted.reads) or person
    custom = {name: value for name, value in said.items() if name.startswith(CUSTOM)}
    account = wanted.account or getattr(wanted.settings, "account", None)
    contact = {
        "id": str(SAMPLE_NUMBER),
        **{name: value for name, value in said.items() if name not in custom},
        **({"custom_field": custom} if custom else {}),
        "updated_at": iso(wanted.at),
    }
    body = {"event": "contact.updated", **({"account": account} if account else {}), CONTACT: contact}
    return json.dumps(body, separators=(",", ":")).encode()


SOURCE = SourceType(
    name="freshsales",
    title="Freshsales",
    settings=Settings,
    make=Freshsales,
    kept_headers=("content-type", "user-agent"),
    proof=Proof.SHOWN,
    read_limit=READ_LIMIT,
    read_base_url=base_url,
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "work_number",
        "mobile": "mobile_number",
        "first_name": "first_name",
        "last_name": "last_name",
        "name": "display_name",
    },
    steps=(
        "Make a long random text, for instance with `openssl rand -hex 32`, and put it into the environment "
        "variable that `bridge.toml` names under `secrets`.",
        "In Freshsales click your picture, then *Settings → API Settings*, as a user who sees every contact. Copy "
        "the API key into the environment variable that `bridge.toml` names under `token`, and the host of the "
        "account into `domain`.",
        "Open *Admin Settings → Workflows* and create one for contacts that are *created*. As its action choose "
        "*Trigger webhook*: request type POST, as callback URL the one that `bridge url {name}` prints, a custom "
        "header `X-Bridge-Token` with the random text, encoding JSON and content *Advanced*.",
        "Paste the body that the page of this source shows, with the event `contact.created`, and pick its "
        "placeholders anew from the editor's menu.",
        "Make a second workflow for contacts that are *updated*, whatever field it is, with `contact.updated`, "
        "and a third for those that are *deleted*, with `contact.deleted`.",
    ),
    manual="https://crmsupport.freshworks.com/support/solutions/articles/50000002418",
    lister=_account,
    writer=_account,
)
