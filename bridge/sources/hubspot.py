"""HubSpot: the webhooks of an app, the workflow action "Send a webhook", and reading contacts.

An app's webhook is a list of up to 100 events that hold ids and at most one property each; a workflow sends one
record. https://developers.hubspot.com/docs/api/webhooks
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Literal

from bridge import signing
from bridge.contact import clamp
from bridge.errors import BadPayload, BadSignature, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version
from bridge.outbound import Api
from bridge.sources import hubspot_api
from bridge.sources.base import Genuine, Read, SourceType
from bridge.sources.hubspot_api import as_text
from bridge.sources.reading import (
    Unclear,
    distinct,
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

CONTACTS = "0-1"  # the objectTypeId of contacts in the generic object.* events
READ_LIMIT = 100
MAX_ITEMS = 1_000  # of one body; HubSpot sends 100 at most
OTHER_KIND = "It is about another kind of HubSpot object, not about contacts."
OTHER_ACCOUNT = "It is from another HubSpot account than the configured portal_id."
REDACTED = "REDACTED"  # what HubSpot writes in place of a sensitive value; it is never a value

KINDS = {
    "creation": Kind.CREATED,
    "restore": Kind.CREATED,  # the record is back under the same id
    "deletion": Kind.DELETED,
    # An erasure request under privacy law, not a tidy-up in the CRM. A plain deletion comes beside it.
    "privacyDeletion": Kind.ERASED,
    "propertyChange": Kind.CHANGED,
    "merge": Kind.MERGED,
}

KNOWN_FIELDS = (
    "address", "city", "company", "country", "createdate", "date_of_birth", "email", "fax", "firstname",
    "hs_additional_emails", "hs_email_optout", "hs_language", "hs_lead_status", "hs_object_id", "hubspot_owner_id",
    "jobtitle", "lastmodifieddate", "lastname", "lifecyclestage", "mobilephone", "phone", "salutation", "state",
    "website", "zip",
)  # fmt: skip

SCHEMES = {"v1": signing.HUBSPOT_V1, "v2": signing.HUBSPOT_V2, "v3": signing.HUBSPOT_V3}
SignatureVersion = Literal["v1", "v2", "v3"]


@dataclass(frozen=True, slots=True)
class Settings:
    """A HubSpot app, or the workflows of a portal that sign as that app."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "the app's client secret (no access token); new first, old next",
            "variable": "CLIENT_SECRET",
        }
    )
    token: Secret | None = field(
        default=None, metadata={"help": "an access token that may read contacts: thin events are then completed"}
    )
    api_base: str = field(default="https://api.hubapi.com", metadata={"help": "where contacts are read"})
    portal_id: int | str | None = field(
        default=None, metadata={"help": "the only HubSpot account to listen to; default: the first that is heard"}
    )
    signature_versions: tuple[SignatureVersion, ...] = field(
        default=("v3", "v2"),
        metadata={
            "help": "what may prove a request; v1 is only for apps whose webhooks come without v3, as it has "
            "no timestamp and covers nothing but the body"
        },
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )
    app_id: int | str | None = field(
        default=None,
        metadata={
            "help": "with developer_key: the app of a developer account whose webhooks 'bridge register' sets up; "
            "HubSpot lets nobody do that for a private app"
        },
    )
    developer_key: Secret | None = field(
        default=None,
        metadata={"help": "the developer account's API key, for 'bridge register' only", "rare": True},
    )


class HubSpot:
    """One app's webhooks. Raises `ValueError` where a secret is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        with Complaints() as complaints:
            some = bool(settings.signature_versions)
            complaints.unless(some, "signature_versions: at least one of v1, v2 and v3 is needed")
            with complaints.look():
                self._credentials = {
                    version: signing.credentials("secrets", settings.secrets, partial(_credential, scheme))
                    for version, scheme in SCHEMES.items()
                }
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if contacts are not to be read")
            both = (settings.app_id is None) == (settings.developer_key is None)
            complaints.unless(both, "app_id: it goes with developer_key; give both, or neither")
            empty = settings.developer_key is not None and not settings.developer_key.reveal().strip()
            complaints.unless(not empty, "developer_key: it is empty; leave the key out if it is not needed")

    # --- verifying ---------------------------------------------------------------------------------------

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. A v3 signature that is there must be right, whatever else is there."""
        version = _signature_version(request.headers)
        if version not in self._settings.signature_versions:
            raise BadSignature(
                f"The request is signed by HubSpot's version {version}, which signature_versions does not allow."
            )
        proof = signing.verify(request, self._credentials[version], now)
        return Genuine(Verified(request), proof.index, proof.signed_at)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        """See `Source.sign`. As HubSpot does, v1 goes beside v3."""
        old = signing.sign(request, self._credentials["v1"][0], now)
        old = replace(old, headers={**old.headers, "x-hubspot-signature-version": "v1"})
        return signing.sign(old, self._credentials["v3"][0], now)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        if isinstance(body, dict) and not ("subscriptionType" in body or "eventType" in body):
            return [self._workflow(body, received_at)]
        items = [body] if isinstance(body, dict) else body
        if not isinstance(items, list):
            raise BadPayload("The body is neither HubSpot's list of events nor a workflow's record.")
        if not items:
            return [Event(event_key("no events"), ignored="The request holds no events.")]
        if len(items) > MAX_ITEMS:
            raise BadPayload(f"The body holds more than {MAX_ITEMS:,} events.")
        return distinct(self._event(item, received_at) for item in items)

    def _event(self, item: Any, received_at: datetime) -> Event:
        """Return one event of the webhooks API; one that makes no sense says why."""
        if not isinstance(item, dict):
            return Event(fingerprint(item), unreadable="It is no event: an entry of the list is not an object.")
        word = text_or_none(item.get("subscriptionType")) or text_or_none(item.get("eventType")) or ""
        thing, _, action = word.partition(".")
        key = _key(item)
        if thing not in {"contact", "object"} or not action:
            if not word:
                return Event(_content_key(item), unreadable="It does not say what happened (no subscriptionType).")
            return Event(key, ignored=f"'{short(word)}' is not about contacts.", type=word)
        if thing == "object" and item.get("objectTypeId") != CONTACTS:
            return Event(key, ignored=OTHER_KIND, type=word)
        if action not in KINDS:
            return Event(key, ignored=f"'{short(word)}' changes no field of a contact.", type=word)
        account = text_or_none(item.get("portalId"))
        if self._is_foreign(account):
            return Event(key, ignored=OTHER_ACCOUNT, type=word)
        try:
            version = Version(moment(item.get("occurredAt"), "occurredAt"), _event_id(item))
            changes = tuple(self._changes(KINDS[action], item, version))
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(_content_key(item), unreadable=str(error), type=word)
        clamped = tuple(clamp(replace(change, account=account), received_at) for change in changes)
        return Event(key, clamped, type=word)

    def _changes(self, kind: Kind, item: Mapping[str, Any], version: Version) -> Iterator[Change]:
        if kind is Kind.MERGED:
            yield from self._merge(item, version)
            return
        key = self._record(record_id(item.get("objectId"), "objectId"))
        if kind is Kind.CHANGED:
            fields = _property(item)
            yield Change(key, kind, version, fields, thin=not fields)
        else:
            yield Change(key, kind, version, thin=kind is Kind.CREATED)

    def _merge(self, item: Mapping[str, Any], version: Version) -> Iterator[Change]:
        """Yield what a merge means for the records that end, and for the one they live on as.

        HubSpot now makes a new record of two; its id is newObjectId. Older merges kept the primary one.
        """
        primary = record_id(item.get("primaryObjectId", item.get("objectId")), "primaryObjectId")
        merged = item.get("mergedObjectIds")
        if not isinstance(merged, list):
            raise Unclear("It is a merge that does not name the merged records.")
        losers = [record_id(loser, "mergedObjectIds") for loser in merged]
        new = item.get("newObjectId")
        survivor = record_id(new, "newObjectId") if new not in (None, "", 0, "0") else primary
        ended = [loser for loser in dict.fromkeys([primary, *losers]) if loser != survivor]
        if not ended:
            raise Unclear("It is a merge of a record with itself.")
        for loser in ended:
            yield Change(
                self._record(loser),
                Kind.MERGED,
                version,
                survivor=survivor,
                heir_of=loser == primary,  # the new record is the primary one under another id
            )
        yield Change(self._record(survivor), Kind.CHANGED, version, thin=True)

    def _workflow(self, body: Mapping[str, Any], received_at: datetime) -> Event:
        """Return the event of a workflow: the record as the object API has it, or what its author chose to send.

        https://developers.hubspot.com/docs/methods/workflows/webhook_information
        """
        content = fingerprint(body)
        account = text_or_none(body.get("portal-id")) or text_or_none(body.get("portalId"))
        key = event_key("workflow", account, content)
        if body.get("objectTypeId") not in (None, CONTACTS) or body.get("is-contact") is False:
            return Event(key, ignored=OTHER_KIND)
        if self._is_foreign(account):
            return Event(key, ignored=OTHER_ACCOUNT)
        properties = body["properties"] if isinstance(body.get("properties"), dict) else _flat(body)
        try:
            record = self._record(_workflow_id(body, properties))
        except Unclear as error:
            return Event(key, unreadable=str(error))
        said = _said(properties)
        timed = bool(said) and None not in said
        if not timed:
            # Without a time of its own a body may repeat an earlier one and yet be news, and it may be days old
            # (a retry): each receipt counts, and the record is read where that is possible.
            key = receipt_key(received_at, "workflow", account, content)
        changes = [
            Change(
                record,
                Kind.CHANGED,
                Version(at or received_at, f"workflow:{content[:16]}"),
                fields,
                thin=not timed,
                account=account,
            )
            for at, fields in (said or {None: {}}).items()
        ]
        return Event(key, tuple(clamp(change, received_at) for change in changes))

    def _record(self, source_id: str) -> RecordKey:
        return RecordKey(self.name, source_id)

    def _is_foreign(self, account: str | None) -> bool:
        wanted = self._settings.portal_id
        return wanted is not None and account is not None and account != str(wanted).strip()

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._settings.token is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`."""
        if self._settings.token is None:
            raise SourceUnavailable(f"No token is configured for {self.name}, so its contacts cannot be read.")
        caller = hubspot_api.caller(self.name, self._settings.token, hubspot_api.READ_SCOPE)
        return hubspot_api.read(caller, api, keys, fields)


# --- headers ---------------------------------------------------------------------------------------------


def _credential(scheme: signing.Scheme, secret: Secret) -> signing.Credential:
    return signing.credential(scheme, secret.reveal())


def _signature_version(headers: Mapping[str, str]) -> str:
    """Return which version proves the request: v3 wherever it is there, else what the request says."""
    if "x-hubspot-signature-v3" in headers:
        return "v3"
    named = headers.get("x-hubspot-signature-version", "")
    if named in {"v1", "v2"}:
        return named
    raise BadSignature("The request holds no signature of HubSpot's.")


# --- one event of the webhooks API -----------------------------------------------------------------------


def _key(item: Mapping[str, Any]) -> str:
    """Return what tells repeats of an event. HubSpot's eventId alone is not unique; attemptNumber is no part."""
    parts = [text_or_none(item.get(name)) for name in ("portalId", "subscriptionId", "eventId")]
    object_id = text_or_none(item.get("objectId"))
    pair = [text_or_none(item.get(name)) for name in ("fromObjectId", "toObjectId")]
    about = [object_id] if object_id else pair
    rest = [text_or_none(item.get(name)) for name in ("propertyName", "occurredAt")]
    if not parts[2] or not rest[1]:
        return _content_key(item)  # not an event as HubSpot documents it
    return event_key(*parts, *about, *rest)


def _content_key(item: Mapping[str, Any]) -> str:
    return fingerprint({name: value for name, value in item.items() if name != "attemptNumber"})


def _event_id(item: Mapping[str, Any]) -> str:
    """Return a text that puts events of one millisecond into one order, whatever order they arrive in."""
    number = text_or_none(item.get("eventId")) or ""
    return f"{number:0>20}:{text_or_none(item.get('propertyName')) or ''}"


def _property(item: Mapping[str, Any]) -> dict[str, Value]:
    """Return the property that changed; nothing where HubSpot withholds its value."""
    name = item.get("propertyName")
    if not isinstance(name, str) or not name:
        raise Unclear("It is a change of a property that it does not name.")
    if "propertyValue" not in item or item.get("isSensitive") is True or item["propertyValue"] == REDACTED:
        return {}
    return {name: as_text(item["propertyValue"])}


# --- a workflow's record ---------------------------------------------------------------------------------

# Keys of a record that are not properties of the contact.
_NOT_PROPERTIES = frozenset({"vid", "objectId", "portalId", "portal-id", "objectTypeId", "is-contact"})


def _flat(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in body.items() if name not in _NOT_PROPERTIES}


def _workflow_id(body: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    for name in ("vid", "objectId", "hs_object_id", "id"):
        if body.get(name) is not None:
            return record_id(body[name], name)
    if "hs_object_id" in fields:
        return record_id(_with_moment(fields["hs_object_id"])[0], "hs_object_id")
    raise Unclear(
        "It does not say which contact it is about. Add the property 'Record ID' (hs_object_id) to what the "
        "workflow sends."
    )


def _said(properties: Mapping[str, Any]) -> dict[datetime | None, dict[str, Value]]:
    """Return the properties by the moment they were set; by None those of which nothing says when.

    What cannot be read as a property (a list that the author added) is left out.
    """
    said: dict[datetime | None, dict[str, Value]] = {}
    modified_at = _modified_at(properties)
    for name, value in properties.items():
        try:
            text, at = _with_moment(value)
        except Unclear:
            continue
        if text != REDACTED:
            said.setdefault(at or modified_at, {})[name] = text
    return said


def _modified_at(properties: Mapping[str, Any]) -> datetime | None:
    """Return when the record was last changed, where the workflow sends that property."""
    for name in ("lastmodifieddate", "hs_lastmodifieddate"):
        try:
            return moment(_with_moment(properties.get(name))[0], name)
        except Unclear:
            continue
    return None


def _with_moment(value: Any) -> tuple[str, datetime | None]:
    """Return a property's value and when it was set: it is a text, or an object with its history.

    Raises:
        Unclear: it is neither.
    """
    if not isinstance(value, dict):
        return as_text(value), None
    if "value" not in value:
        raise Unclear("A property of the record holds no value.")
    history = value.get("versions")
    newest = history[0] if isinstance(history, list) and history else None
    at = value.get("timestamp") or (newest.get("timestamp") if isinstance(newest, dict) else None)
    return as_text(value["value"]), moment(at, "timestamp") if at else None


# --- what the type declares ------------------------------------------------------------------------------


def sample(wanted: Sampling) -> bytes:
    """Return a batch as the webhooks API sends it: changed properties, at least a phone number."""
    at = int(wanted.at.timestamp() * 1000)
    account = wanted.account or getattr(wanted.settings, "portal_id", None)
    changed = made_up(wanted.reads) or {"mobilephone": "+14155550123"}
    events = [
        {
            "eventId": at + number,
            "subscriptionId": 26,
            **({"portalId": account} if account else {}),
            "appId": 1160452,
            "occurredAt": at,
            "subscriptionType": "contact.propertyChange",
            "attemptNumber": 0,
            "objectId": SAMPLE_NUMBER,
            "propertyName": name,
            "propertyValue": value,
            "changeSource": "CRM_UI",
            "sourceId": "userId:9001",
        }
        for number, (name, value) in enumerate(changed.items())
    ]
    return json.dumps(events, separators=(",", ":")).encode()


def _lister(name: str, settings: Settings) -> hubspot_api.ContactLister | None:
    if settings.token is None:
        return None
    return hubspot_api.ContactLister(hubspot_api.caller(name, settings.token, hubspot_api.READ_SCOPE))


def _writer(name: str, settings: Settings) -> hubspot_api.ContactWriter | None:
    if settings.token is None:
        return None
    return hubspot_api.ContactWriter(hubspot_api.caller(name, settings.token, hubspot_api.WRITE_SCOPE))


def _registrar(name: str, settings: Settings) -> hubspot_api.AppRegistrar | None:
    if settings.app_id is None or settings.developer_key is None:
        return None
    return hubspot_api.AppRegistrar(name, str(settings.app_id).strip(), settings.developer_key)


SOURCE = SourceType(
    name="hubspot",
    title="HubSpot",
    settings=Settings,
    make=HubSpot,
    kept_headers=("content-type", "user-agent", "x-hubspot-signature-version", "x-hubspot-request-timestamp"),
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "mobile": "mobilephone",
        "first_name": "firstname",
        "last_name": "lastname",
        "opt_out": "hs_email_optout | boolean",
    },
    steps=(
        "In HubSpot open *Settings → Integrations → Private apps* (or your app in the developer account) and "
        "choose *Create*. Under *Scopes* choose `crm.objects.contacts.read`.",
        "Under *Webhooks → Edit webhooks* the target URL is the one that `bridge url {name}` prints. Copy it "
        "exactly: HubSpot signs it, so a missing slash or `http://` makes every check fail.",
        "Subscribe to contacts: *Created*, *Deleted*, *Restored*, *Merged*, *Deleted for privacy*, and "
        "*Property changed* for each property that a rule reads. Everything else is ignored, so more does no "
        "harm.",
        "From the tab *Auth* copy the client secret (`secrets`) and the access token (`token`) into the "
        "environment variables that `bridge.toml` names for them, and start bridge again.",
        "With the app of a developer account, `app_id` and `developer_key`, the command `bridge register {name}` "
        "does the second and third step. HubSpot has no such call for a private app.",
    ),
    manual="https://developers.hubspot.com/docs/api/webhooks",
    lister=_lister,
    registrar=_registrar,
    writer=_writer,
)
