"""Salesforce: Outbound Messages, the HTTP callouts of flows, and its contacts through the REST API.

Neither is signed: the secret is the URL. Both tell what a record holds, and not what happened to it; deletions and
merges are told by neither. https://developer.salesforce.com/docs/atlas.en-us.api.meta/api/sforce_api_om_outboundmessaging.htm
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from bridge.contact import clamp
from bridge.errors import BadPayload, BadSignature
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Value, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources.base import Genuine, Proof, Read, SourceType, cannot_read
from bridge.sources.reading import (
    Unclear,
    distinct,
    event_key,
    fingerprint,
    moment,
    read_json,
    receipt_key,
    short,
    text_or_none,
)
from bridge.sources.salesforce.ids import contact_id
from bridge.sources.salesforce.messages import ACK, Notification, is_xml, read_message, redacted, write_message
from bridge.sources.salesforce.records import FIELD
from bridge.sources.salesforce.settings import KEPT_HEADERS, Settings, check, contacts_of, organization
from bridge.sources.sampling import SAMPLE_ID, Sampling, made_up

CONTACT = "Contact"
READ_LIMIT = 200  # of the 2,000 that one call takes; an answer must fit into 4 MiB
LOGIN = "https://login.salesforce.com"  # where there is nothing to be read, and nothing is called
NO_ORGANIZATION = "It does not say which Salesforce organization it is from."
OTHER_ORGANIZATION = "It is from another Salesforce organization than the configured organization_id."
GONE = "The record was deleted before Salesforce sent the message: it holds no data."
UNTIMED = (
    "It does not say when the contact was changed, so it could put older values over newer ones. Tick Last "
    "Modified Date in the outbound message (in a callout: send changed_at), or let bridge read contacts."
)

SAMPLE_ORGANIZATION = "00D1I000003qqqEUAQ"  # where no settings say which: a made-up one

KINDS = {  # what a flow's or a trigger's JSON may call an event
    "contact.created": Kind.CREATED,
    "contact.restored": Kind.CREATED,
    "contact.updated": Kind.CHANGED,
    "contact.deleted": Kind.DELETED,
}

KNOWN_FIELDS = (
    "AccountId", "Birthdate", "CreatedDate", "Department", "Description", "DoNotCall", "Email", "Fax",
    "FirstName", "HasOptedOutOfEmail", "HasOptedOutOfFax", "HomePhone", "Id", "LastModifiedById",
    "LastModifiedDate", "LastName", "LeadSource", "MailingCity", "MailingCountry", "MailingPostalCode",
    "MailingState", "MailingStreet", "MobilePhone", "Name", "OtherPhone", "OwnerId", "Phone",
    "Salutation", "SystemModstamp", "Title",
)  # fmt: skip


class Salesforce:
    """One organization. Raises `ValueError` where a setting is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        check(settings)
        self._organization = organization(settings.organization_id)
        shown = settings.callouts.secrets if settings.callouts else ()
        self._secrets = tuple(secret.reveal().strip().encode() for secret in shown)
        self._contacts = contacts_of(name, settings)

    # --- verifying ---------------------------------------------------------------------------------------

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. The token of the URL, which was looked at before, is what proves most.

        What is returned, and stored, holds no session.
        """
        if (certificate := self._settings.client_certificate) is not None:
            allowed = [subject.encode() for subject in certificate.subjects]
            _shown(request.headers, certificate.header, allowed, "client certificate")
        index = 0
        if (callouts := self._settings.callouts) is not None:
            index = _shown(request.headers, callouts.header, self._secrets, "secret")
        return Genuine(Verified(replace(request, body=redacted(request.body))), index)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        headers = dict(request.headers)
        if is_xml(request.body):
            headers |= {"content-type": "text/xml; charset=UTF-8", "soapaction": '""'}
        if (certificate := self._settings.client_certificate) is not None:
            headers[certificate.header.lower()] = certificate.subjects[0]
        if (callouts := self._settings.callouts) is not None:
            headers[callouts.header.lower()] = self._secrets[0].decode()
        return replace(request, headers=headers)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = genuine.request.body
        if not is_xml(body):
            return [self._callout(read_json(body), received_at)]
        message = read_message(body)
        try:
            sender = organization(message.organization_id)
        except ValueError as error:
            raise BadPayload(NO_ORGANIZATION) from error
        if not message.notifications:
            return [Event(event_key("no notifications"), ignored="The message holds no notifications.")]
        return distinct(self._notification(sender, one, received_at) for one in message.notifications)

    def _notification(self, sender: str, one: Notification, received_at: datetime) -> Event:
        """Return the event of one notification. Salesforce asks to tell repeats by its id.

        A repeat may hold the data of a later moment: then it is news.
        """
        said_at = one.values.get("SystemModstamp") or one.values.get("LastModifiedDate")
        told = fingerprint([one.values, sorted(one.unclear)])
        key = event_key(sender, one.id or told, said_at)
        if sender != self._organization:
            return Event(key, ignored=OTHER_ORGANIZATION, type=one.kind)
        if one.kind not in {"", CONTACT}:
            return Event(key, ignored=f"'{short(one.kind)}' is not about contacts.", type=one.kind)
        if "Id" not in one.values:
            return Event(key, ignored=GONE, type=one.kind)
        try:
            change = self._change(one, said_at, received_at)
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(event_key(sender, one.id, told), unreadable=str(error), type=one.kind)
        return Event(key, (clamp(change, received_at),), type=one.kind)

    def _change(self, one: Notification, said_at: str | None, received_at: datetime) -> Change:
        created_at = one.values.get("CreatedDate")
        new = created_at is not None and created_at == one.values.get("LastModifiedDate")
        # What has no value is left out of a message, as is what was not ticked.
        empty = [name for name in self._settings.selected_fields if name not in one.unclear]
        source_id = contact_id(one.values["Id"])
        return self._told(
            Kind.CREATED if new else Kind.CHANGED,
            source_id,
            moment(said_at, "time of last change") if said_at else None,
            one.id,
            {**dict.fromkeys(empty, ""), **one.values, "Id": source_id},
            received_at,
        )

    def _callout(self, body: Any, received_at: datetime) -> Event:
        """Return the event of a flow's callout, or of a trigger's. Neither is repeated: each receipt counts."""
        if not isinstance(body, dict) or "record_id" not in body:
            raise BadPayload("The body is neither an Outbound Message nor the JSON that bridge asks flows for.")
        content, word = fingerprint(body), text_or_none(body.get("event")) or ""
        key = receipt_key(received_at, "callout", content)
        try:
            if organization(text_or_none(body.get("org_id"))) != self._organization:
                return Event(key, ignored=OTHER_ORGANIZATION, type=word)
        except ValueError:
            return Event(key, unreadable=NO_ORGANIZATION, type=word)
        if word not in KINDS:
            return Event(key, ignored=f"'{short(word)}' changes no contact.", type=word)
        try:
            change = self._called(KINDS[word], body, content, received_at)
        except Unclear as error:
            return Event(key, unreadable=str(error), type=word)
        return Event(key, (clamp(change, received_at),), type=word)

    def _called(self, kind: Kind, body: Mapping[str, Any], content: str, received_at: datetime) -> Change:
        source_id = contact_id(body["record_id"])
        at = _moment_or_none(body.get("changed_at"))
        event_id = f"callout:{iso(received_at)}:{content[:16]}"
        if kind is Kind.DELETED:
            if at is None:
                raise Unclear("It does not say when the contact was deleted (changed_at).")
            return Change(RecordKey(self.name, source_id), kind, Version(at, event_id))
        return self._told(kind, source_id, at, event_id, self._chosen(body.get("fields")), received_at)

    def _chosen(self, fields: Any) -> dict[str, Value]:
        """Return the fields that the author of a flow chose to send.

        An empty one may be one that the flow cannot see: it is cleared only where `selected_fields` names it.
        """
        if not isinstance(fields, dict):
            return {}
        texts = {name: _as_text(value) for name, value in fields.items()}
        may_be_empty = set(self._settings.selected_fields)
        return {name: text for name, text in texts.items() if text or (text is not None and name in may_be_empty)}

    def _told(
        self,
        kind: Kind,
        source_id: str,
        at: datetime | None,
        event_id: str,
        fields: Mapping[str, Value],
        received_at: datetime,
    ) -> Change:
        """Return what was told of a contact, to be read in any case: hardly anything is told as it is cleared.

        Raises:
            Unclear: it has fields and no time, and nothing better can be read.
        """
        key = RecordKey(self.name, source_id)
        if at is not None:
            return Change(key, kind, Version(at, event_id), fields, thin=True)
        if set(fields) <= {"Id"} or self.can_read():
            return Change(key, kind, Version(received_at, event_id), thin=True)
        raise Unclear(UNTIMED)

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._contacts is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        if self._contacts is None:
            cannot_read(self.name)
        return self._contacts.read(api, keys, fields)


# --- parts of a request ----------------------------------------------------------------------------------


def _shown(headers: Mapping[str, str], header: str, allowed: Sequence[bytes], what: str) -> int:
    """Return which of the *allowed* values a header holds; all are compared, whichever it is.

    Raises:
        BadSignature: none.
    """
    given = headers.get(header.lower(), "").encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(given, one) for one in allowed]
    if not any(matches):
        raise BadSignature(f"The header {header.lower()} does not show the {what} that is configured.")
    return matches.index(True)


def _moment_or_none(value: Any) -> datetime | None:
    """Return the moment, None where it is written in any way that leaves the time zone or the order open."""
    try:
        return moment(value, "changed_at")
    except Unclear:
        return None


def _as_text(value: Any) -> str | None:
    """Return a value as messages have it; None for a list or an object, which no field is."""
    if value is None:
        return ""
    return text_or_none(value) if not isinstance(value, bool | float) else str(value).lower()


def sample(wanted: Sampling) -> bytes:
    """Return an Outbound Message about a contact that does not exist."""
    at = f"{iso(wanted.at)[:23]}Z"
    person = {
        "Email": "ada@example.com",
        "FirstName": "Ada",
        "LastName": "Lovelace",
        "MobilePhone": "+14155550123",
    }
    told = {name: value for name, value in made_up(wanted.reads).items() if FIELD.fullmatch(name)} or person
    values = {"Id": SAMPLE_ID, "LastModifiedDate": at, **told}
    sender = getattr(wanted.settings, "organization_id", None) or SAMPLE_ORGANIZATION
    return write_message(str(sender), {f"bridge-sample-{at}": values})


SOURCE = SourceType(
    name="salesforce",
    title="Salesforce",
    settings=Settings,
    make=Salesforce,
    kept_headers=KEPT_HEADERS,
    proof=Proof.URL,
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.app.instance_url if settings.app else LOGIN),
    # Custom fields end in __c, and everything may have any name.
    known_field=lambda name: FIELD.fullmatch(name) is not None,
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "Email",
        "phone": "Phone",
        "mobile": "MobilePhone",
        "first_name": "FirstName",
        "last_name": "LastName",
        "opt_out": "HasOptedOutOfEmail | boolean",
    },
    accepted=ACK,
    lister=contacts_of,
    writer=contacts_of,
    steps=(
        "In Salesforce open *Setup → Company Settings → Company Information* and copy the *Salesforce.com "
        "Organization ID* into the environment variable that `bridge.toml` names under `organization_id`.",
        "Open *Setup → Process Automation → Workflow Actions → Outbound Messages*, choose *New Outbound "
        "Message* and the object *Contact*. The endpoint URL is the one that `bridge url {name}` prints; it "
        "is a password, so keep it nowhere else. Leave *Send Session ID* unticked. *User to send as* is "
        "somebody who sees every contact and every field.",
        "Under *Contact fields to send* choose *Last Modified Date*, *System Modstamp*, *Created Date* and "
        "each field that a rule reads.",
        "Open *Setup → Process Automation → Flows → New Flow* and choose *Record-Triggered Flow*: object "
        "*Contact*, trigger *A record is created or updated*, no entry conditions, optimized for *Actions and "
        "Related Records*. Add an *Action* of the type *Outbound Message*, choose your message, *Save* and "
        "*Activate*.",
        "So that whole contacts can be read, open *Setup → Apps → External Client Apps → External Client App "
        "Manager* and create an app with the OAuth scope *Manage user data via APIs (api)* and the *Client "
        "Credentials Flow*, run as a user who sees every contact. Copy its consumer key and secret into "
        "`client_id` and `client_secret`, and the address under *Setup → Company Settings → My Domain*, with "
        "`https://`, into `instance_url`, all of the section `app`. Start bridge again.",
    ),
    manual="https://developer.salesforce.com/docs/atlas.en-us.api.meta/api/sforce_api_om_outboundmessaging_setting_up.htm",
)
