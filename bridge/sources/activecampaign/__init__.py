"""ActiveCampaign as a CRM: its webhooks, and its contacts over the API (version 3).

A webhook is a form with one event. Nothing in it proves where it is from, so that the URL has to be a secret.
https://developers.activecampaign.com/page/webhooks
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import parse_qsl, urlencode, urlsplit

from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources.activecampaign.account import (
    OWN_FIELDS,
    SUBSCRIBED,
    TITLE,
    UNSUBSCRIBED,
    Account,
    custom_name,
    several,
)
from bridge.sources.base import Genuine, Proof, Read, SourceType, cannot_read
from bridge.sources.calling import Caller
from bridge.sources.reading import Unclear, check_form, event_key, moment, receipt_key, record_id, short
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling, made_up

READ_LIMIT = 100
MAX_KEYS = 5_000  # of one form

KINDS = {
    "subscribe": Kind.CREATED,  # also: put on one more list
    "update": Kind.CHANGED,
    "unsubscribe": Kind.CHANGED,
    "contact_tag_added": Kind.CHANGED,
    "contact_tag_removed": Kind.CHANGED,
    "sms_unsub": Kind.CHANGED,
    "": Kind.CHANGED,  # the action "Webhook" of an automation, which does not say what happened
}
KNOWN_FIELDS = (*OWN_FIELDS, "tags", "status", "sms_status", "field_1", "list_1")
OTHER_ACCOUNT = "It is from another ActiveCampaign account than the configured account."


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of an ActiveCampaign account, and its contacts."""

    base_url: str = field(
        metadata={"help": "the account's URL, from Settings, Developer: https://acme.api-us1.com"}
    )
    api_key: Secret | None = field(
        default=None,
        metadata={"help": "a key of the account, from Settings, Developer: contacts can then be read and listed"},
    )
    account: str | None = field(
        default=None,
        metadata={
            "help": "the only account to listen to, as webhooks name it (customer_acct_name); default: the first "
            "that is heard"
        },
    )

    @property
    def api_base(self) -> str:
        return self.base_url.strip().rstrip("/").removesuffix("/api/3") + "/api/3"


class ActiveCampaign:
    """One account's webhooks. Raises `ValueError` where a setting is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._wanted = (settings.account or "").strip()
        with Complaints() as complaints:
            complaints.unless(
                urlsplit(settings.api_base).path == "/api/3",
                "base_url: it must be the account's host alone, without a path",
            )
            empty = settings.api_key is not None and not settings.api_key.reveal().strip()
            complaints.unless(not empty, "api_key: it is empty; leave the key out if contacts are not to be read")
        self._account = _account(name, settings)

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. All that proves a request is the token in its URL, which is checked before."""
        return Genuine(Verified(request), 0)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return request

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        form = _form(genuine.request.body)
        if not ({"type", "contact[id]"} & form.keys()):
            raise BadPayload("The body is no ActiveCampaign webhook: it has neither 'type' nor 'contact[id]'.")
        return [self._event(form, genuine.request.body, received_at)]

    def _event(self, form: Mapping[str, list[str]], body: bytes, received_at: datetime) -> Event:
        word = _last(form, "type")
        said_at = _last(form, "date_time")
        # There is no id of the event, and the time has whole seconds.
        lists = ",".join(text for name, texts in form.items() if _LIST.fullmatch(name) for text in texts)
        digest = hashlib.sha256(body).hexdigest()
        parts = ("activecampaign", word, _last(form, "contact[id]"), lists, said_at, digest)
        key = event_key(*parts)
        if word not in KINDS:
            return Event(key, ignored=f"'{short(word)}' changes no field of a contact.", type=word)
        account = _last(form, "contact[customer_acct_name]") or _last(form, "customer_acct_name") or None
        if self._wanted and account and account.casefold() != self._wanted.casefold():
            return Event(key, ignored=OTHER_ACCOUNT, type=word)
        thin = word in {"subscribe", "unsubscribe"}  # of a list; what that means for the person, all lists say
        try:
            occurred_at = moment(said_at, "date_time")
        except Unclear:
            # It is sent once, and soon: the time of receipt is good enough, and another receipt is another event.
            occurred_at, key, thin = received_at, receipt_key(received_at, *parts), True
        try:
            record = RecordKey(self.name, record_id(_last(form, "contact[id]"), "contact[id]"))
        except Unclear as error:
            return Event(key, unreadable=str(error), type=word)
        # Of two events within a second the later to arrive counts; but an opt-out counts more than what is none.
        order = f"{int(word in {'unsubscribe', 'sms_unsub'})}:{iso(received_at)}:{digest[:16]}"
        version, fields = Version(occurred_at, order), _fields(word, form)
        change = Change(record, KINDS[word], version, fields, thin=thin, account=account)
        return Event(key, (clamp(change, received_at),), type=word)

    def can_read(self) -> bool:
        return self._account is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        if self._account is None:
            cannot_read(self.name)
        return self._account.read(api, keys, fields)


# --- a webhook -------------------------------------------------------------------------------------------

_OWN = re.compile(r"contact\[([a-z_]+)\]")
_CUSTOM = re.compile(r"contact\[fields\]\[([^\[\]]{1,100})\](\[[0-9]*\])?")
_LIST = re.compile(r"list(\[[0-9]*\])?(\[id\])?")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _form(body: bytes) -> Mapping[str, list[str]]:
    """Return a form's values by name, in their order; what is no text has U+FFFD in it.

    Raises:
        BadPayload: it is no form that bridge can read.
    """
    check_form(body)
    try:
        pairs = parse_qsl(
            body.decode("utf-8", "replace"), keep_blank_values=True, errors="replace", max_num_fields=MAX_KEYS
        )
    except ValueError as error:
        raise BadPayload(f"The body is a form with more than {MAX_KEYS:,} fields.") from error
    form: dict[str, list[str]] = {}
    for name, text in pairs:
        form.setdefault(_UNSTORABLE.sub("\ufffd", name), []).append(_UNSTORABLE.sub("\ufffd", text))
    return form


def _last(form: Mapping[str, list[str]], name: str) -> str:
    return form[name][-1].strip() if name in form else ""


def _fields(word: str, form: Mapping[str, list[str]]) -> dict[str, Value]:
    """Return what a webhook says of the contact. A name with nothing behind it is a cleared field."""
    fields: dict[str, Value] = {}
    for name, texts in form.items():
        if any("\ufffd" in text for text in (name, *texts)):
            continue  # it cannot be told what was meant, and it must not be written anywhere
        if (own := _OWN.fullmatch(name)) and own[1] in OWN_FIELDS:
            fields[own[1]] = texts[-1]
        elif custom := _CUSTOM.fullmatch(name):
            fields[custom_name(custom[1])] = list(filter(None, texts)) if custom[2] else several(texts[-1])
    if "contact[tags]" in form:
        fields["tags"] = _tags(word, _last(form, "contact[tags]"), _last(form, "tag"))
    lists = {text for name, texts in form.items() if _LIST.fullmatch(name) for text in texts}
    joined = {number for text in lists if text.isascii() and text.isdigit() and (number := int(text[:18])) > 0}
    if word == "unsubscribe":
        fields |= {f"list_{number}": UNSUBSCRIBED for number in joined} | {"status": UNSUBSCRIBED}
    elif word == "subscribe" and joined:
        fields |= {f"list_{number}": SUBSCRIBED for number in joined}
        if _last(form, "initiated_from") == "public":  # the person said so, and nobody for them
            fields["status"] = SUBSCRIBED
    elif word == "sms_unsub":
        fields["sms_status"] = UNSUBSCRIBED
    return fields


def _tags(word: str, text: str, tag: str) -> list[Value]:
    """Return the tags after an event, whether they are listed as they were before it or after it."""
    tags = [name for part in text.split(",") if (name := part.strip())]
    if word == "contact_tag_removed":
        return [name for name in tags if name != tag]
    return [*tags, tag] if word == "contact_tag_added" and tag and tag not in tags else [*tags]


def _account(name: str, settings: Settings) -> Account | None:
    key = settings.api_key.reveal().strip() if settings.api_key else ""
    scope = "a user who may see and manage contacts and lists"
    return Account(name, Caller(TITLE, name, {"Api-Token": key}, scope)) if key else None


def sample(wanted: Sampling) -> bytes:
    """Return a change of a contact: at least of the e-mail address, or of the fields that rules read."""
    account = wanted.account or getattr(wanted.settings, "account", None)
    person = {"email": "ada@example.com", "phone": "+14155550123", "first_name": "Ada", "last_name": "Lovelace"}
    pairs = {
        "type": "update",
        "date_time": iso(wanted.at),
        "initiated_from": "admin",
        "initiated_by": "admin",
        "list": "0",
        "contact[id]": str(SAMPLE_NUMBER),
        **({"contact[customer_acct_name]": str(account)} if account else {}),
    }
    for name, text in (made_up(wanted.reads) or person).items():
        custom = name.removeprefix("field_")
        pairs[f"contact[{name}]" if custom == name else f"contact[fields][{custom}]"] = text
    return urlencode(pairs).encode()


SOURCE = SourceType(
    name="activecampaign",
    title=TITLE,
    settings=Settings,
    make=ActiveCampaign,
    kept_headers=("content-type", "user-agent"),
    proof=Proof.URL,
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_field=lambda name: name in KNOWN_FIELDS or name.startswith(("field_", "list_")),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "first_name": "first_name",
        "last_name": "last_name",
        "opt_out": "status == 'unsubscribed'",
    },
    steps=(
        "In ActiveCampaign open *Settings → Developer*. Copy the *URL* (`base_url`) and the *key* (`api_key`) "
        "into the environment variables that `bridge.toml` names for them, and start bridge again.",
        "Run `bridge url {name}`: it prints the URL with its secret token. Whoever knows it can send, so show it "
        "to nobody but ActiveCampaign.",
        "Open *Settings → Developer → Manage webhooks* and choose *Add*: that URL, no list, and the events "
        "*Subscribes*, *Unsubscribes*, *Contact updated*, *Tag added*, *Tag removed* and, where you send text "
        "messages, *SMS unsubscribe*.",
        "Under the ways of how it can happen choose *by a contact*, *by an admin user* and *by the system*, and "
        "**not** *by the API*: else all that bridge writes into this account would come back. With `api_key` "
        "`bridge register {name}` does this step and the one before by itself.",
    ),
    manual="https://developers.activecampaign.com/page/webhooks",
    lister=_account,
    registrar=_account,
    writer=_account,
)
