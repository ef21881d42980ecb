"""Close: webhooks that hold whole contacts, signed with a key that each subscription has of its own.

What a contact's lead says (its status, many custom fields) comes in events of the lead, which name its contacts.
https://developer.close.com/api/resources/webhooks
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bridge import signing
from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources.base import Genuine, Read, SourceType
from bridge.sources.close.api import CloseLister, CloseRegistrar, CloseWriter, Reader, caller
from bridge.sources.close.shape import LEAD, cleared, close_id, contact_fields, lead_fields, utc_moment
from bridge.sources.reading import Unclear, event_key, fingerprint, read_json, short, text_or_none
from bridge.sources.sampling import SAMPLE_ID, Sampling

READ_LIMIT = 20  # each is a call of its own, and Close allows some 20 a second
HOUR_S = 3600
# Close repeats a webhook for 72 hours and does not say whether with a fresh time. An hour more for the last try.
SCHEME = signing.Scheme(
    "close-sig-hash",
    ("timestamp", "body"),
    stamp=signing.Stamp("close-sig-timestamp", past_s=73 * HOUR_S, future_s=300, lasting=True),
)
KINDS = {"created": Kind.CREATED, "updated": Kind.CHANGED, "deleted": Kind.DELETED}
OF_LEADS = frozenset({"created", "updated", "merged"})  # all of them hold the lead as it is now
OTHER_ORGANIZATION = "It is from another Close organization than the configured organization_id."
NO_CONTACTS = "It names no contacts of the lead, so it changes none."

KNOWN_FIELDS = (
    "date_created", "date_updated", "display_name", "email", "email_direct", "email_home", "email_office",
    "email_other", "email_unsubscribed", "emails", "id", "lead_id", "lead_name", "lead_status_id",
    "lead_status_label", "name", "phone", "phone_direct", "phone_home", "phone_mobile", "phone_office",
    "phone_other", "phone_sms_blocked", "phones", "timezone", "title",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhook subscriptions of a Close organization."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "the signature_key of each subscription, as Close shows it (hexadecimal)",
            "variable": "SIGNATURE_KEY",
        }
    )
    api_key: Secret | None = field(
        default=None, metadata={"help": "an API key: contacts and their leads can then be read"}
    )
    organization_id: str | None = field(
        default=None,
        metadata={"help": "the only Close organization to listen to (orga_…); default: the first that is heard"},
    )
    opt_out_value: bool | str = field(
        default=True,
        metadata={"help": "what is written into a contact's custom field to say that the person opted out"},
    )
    api_base: str = field(default="https://api.close.com", metadata={"help": "where contacts are read"})
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Close:
    """One organization's webhooks. Raises `ValueError` where a secret is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._reader: Reader | None = None
        with Complaints() as complaints:
            with complaints.look():
                self._credentials = signing.credentials(
                    "secrets", settings.secrets, lambda secret: signing.credential(SCHEME, secret.reveal(), "hex")
                )
            if settings.api_key is not None:
                given = bool(settings.api_key.reveal().strip())
                complaints.unless(given, "api_key: it is empty; leave the key out if contacts are not to be read")
                self._reader = Reader(caller(name, settings.api_key))

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. All keys are tried: the subscription's id is in a body that is not proven yet."""
        proof = signing.verify(request, self._credentials, now)
        return Genuine(Verified(request), proof.index, proof.signed_at)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(request, self._credentials[0], now)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        event = body.get("event") if isinstance(body, dict) else None
        if not isinstance(event, dict):
            raise BadPayload("The body is no Close webhook: it has no 'event'.")
        return [self._event(event, received_at)]

    def _event(self, event: Mapping[str, Any], received_at: datetime) -> Event:
        thing, action = (text_or_none(event.get(name)) or "" for name in ("object_type", "action"))
        word = ".".join(filter(None, (thing, action)))
        key = _key(event)
        if thing not in {"contact", "lead"}:
            return Event(key, ignored=f"'{short(thing)}' is not about contacts.", type=word)
        if action not in (KINDS if thing == "contact" else OF_LEADS):
            return Event(key, ignored=f"'{short(word)}' changes no field of a contact.", type=word)
        account = text_or_none(event.get("organization_id")) or None
        wanted = self._settings.organization_id
        if wanted is not None and account is not None and account != wanted.strip():
            return Event(key, ignored=OTHER_ORGANIZATION, type=word)
        try:
            version = Version(_moment(event), text_or_none(event.get("id")) or key)
            if thing == "contact":
                changes = [self._of_contact(KINDS[action], event, version, account)]
            else:
                changes = self._of_lead(event, version, account)
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(fingerprint(event), unreadable=str(error), type=word)
        if not changes:
            return Event(key, ignored=NO_CONTACTS, type=word)
        return Event(key, tuple(clamp(change, received_at) for change in changes), type=word)

    def _of_contact(self, kind: Kind, event: Mapping[str, Any], version: Version, account: str | None) -> Change:
        key = self._record(event.get("object_id"))
        if kind is Kind.DELETED:
            return Change(key, kind, version, account=account)
        contact = event.get("data")
        if not isinstance(contact, dict):
            return Change(key, kind, version, thin=True, account=account)
        if contact.get("id", key.source_id) != key.source_id:
            raise Unclear("It speaks of one contact and holds another.")
        changed = event.get("changed_fields")
        fields = contact_fields(contact) | cleared(changed, event.get("previous_data"), contact)
        # With another lead, all that is known of the old one is wrong.
        moved = kind is Kind.CHANGED and isinstance(changed, list) and "lead_id" in changed
        return Change(key, kind, version, fields, thin=moved, account=account)

    def _of_lead(self, event: Mapping[str, Any], version: Version, account: str | None) -> list[Change]:
        """Return what a lead says, of each of its contacts."""
        lead = event.get("data")
        if not isinstance(lead, dict):
            raise Unclear("It does not hold the lead that it speaks of.")
        gone = cleared(event.get("changed_fields"), event.get("previous_data"), lead)
        fields = lead_fields(lead) | {f"{LEAD}{name}": value for name, value in gone.items()}
        # Of a merge it is the lead that stays.
        fields[f"{LEAD}id"] = close_id(lead.get("id") or event.get("lead_id"), "id of a lead")
        keys = dict.fromkeys(self._record(one) for one in _contacts(lead))
        return [Change(key, Kind.CHANGED, version, fields, account=account) for key in keys]

    def _record(self, source_id: Any) -> RecordKey:
        return RecordKey(self.name, close_id(source_id, "id of a contact"))

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._reader is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        if self._reader is None:
            raise SourceUnavailable(f"No api_key is configured for {self.name}, so its contacts cannot be read.")
        return self._reader.read(api, keys, fields)


def _key(event: Mapping[str, Any]) -> str:
    """Return what tells repeats of an event.

    Close adds further edits to an event for a short while: it has the same id then, and a later ``date_updated``.
    """
    event_id = text_or_none(event.get("id"))
    if not event_id:
        return fingerprint(event)
    return event_key(event_id, *(text_or_none(event.get(name)) for name in ("organization_id", "date_updated")))


def _moment(event: Mapping[str, Any]) -> datetime:
    name = "date_updated" if event.get("date_updated") else "date_created"
    return utc_moment(event.get(name), name)


def _contacts(lead: Mapping[str, Any]) -> list[Any]:
    """Return the ids of a lead's contacts, as an event or the API writes them."""
    ids, contacts = lead.get("contact_ids"), lead.get("contacts")
    if isinstance(ids, list):
        return ids
    if isinstance(contacts, list):
        return [one.get("id") if isinstance(one, dict) else one for one in contacts]
    return []


def sample(wanted: Sampling) -> bytes:
    """Return a change of a contact's phone number."""
    at = iso(wanted.at).removesuffix("Z")
    account = wanted.account or getattr(wanted.settings, "organization_id", None)
    contact = {
        "id": SAMPLE_ID,
        "lead_id": "lead_bridge-sample",
        "name": "Ada Lovelace",
        "title": "",
        "emails": [{"type": "office", "email": "ada@example.com"}],
        "phones": [{"type": "mobile", "phone": "+14155550123", "country": "US"}],
        "date_created": at,
        "date_updated": at,
    }
    event: dict[str, Any] = {
        "id": f"ev_{event_key('event', at)[:22]}",
        "date_created": at,
        "date_updated": at,
        "action": "updated",
        "object_type": "contact",
        "object_id": SAMPLE_ID,
        "lead_id": "lead_bridge-sample",
        **({"organization_id": account} if account else {}),
        "changed_fields": ["phones"],
        "previous_data": {"phones": []},
        "data": contact,
        "meta": {},
    }
    return json.dumps({"subscription_id": "whsub_bridge", "event": event}, separators=(",", ":")).encode()


# --- what the API lets bridge do -------------------------------------------------------------------------


def _lister(name: str, settings: Settings) -> CloseLister | None:
    return CloseLister(Reader(caller(name, settings.api_key))) if settings.api_key else None


def _registrar(name: str, settings: Settings) -> CloseRegistrar | None:
    return CloseRegistrar(caller(name, settings.api_key)) if settings.api_key else None


def _writer(name: str, settings: Settings) -> CloseWriter | None:
    return CloseWriter(caller(name, settings.api_key), settings.opt_out_value) if settings.api_key else None


SOURCE = SourceType(
    name="close",
    title="Close",
    settings=Settings,
    make=Close,
    kept_headers=("content-type", "user-agent"),
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone",
        "mobile": "phone_mobile",
        "first_name": "name | split_name('first')",
        "last_name": "name | split_name('last')",
        "name": "name",
        "opt_out": "email_unsubscribed or phone_sms_blocked",
    },
    steps=(
        "In Close open *Settings → Developer → API Keys*, as an administrator, and choose *New API key*. Put it "
        "into the environment variable that `bridge.toml` names under `api_key`.",
        "Subscriptions are made by calls, not by clicks: post to `https://api.close.com/api/v1/webhook/`, with "
        "the key as user and no password, the `url` that `bridge url {name}` prints and as `events` the actions "
        "`created`, `updated` and `deleted` of the object type `contact`.",
        "Where rules read fields of the lead (`lead_status_label`), add the actions `created`, `updated` and "
        "`merged` of the object type `lead`.",
        "The answer holds the `signature_key`, this once. Put it into the environment variable that "
        "`bridge.toml` names under `secrets`, and start bridge again.",
        "Instead of the last three, `bridge register {name}` makes the subscription, with what the rules need, "
        "and tells the key. Until there is one, let `secrets` hold a random one: `openssl rand -hex 32` makes it.",
    ),
    manual="https://developer.close.com/api/resources/webhooks",
    lister=_lister,
    registrar=_registrar,
    writer=_writer,
)
