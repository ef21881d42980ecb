"""Microsoft Dynamics 365, and whatever else stands on Dataverse: its webhooks about contacts.

A webhook holds the columns that changed. There is no signature: the headers that were registered are all there is.
https://learn.microsoft.com/power-apps/developer/data-platform/use-webhooks
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from bridge.contact import clamp
from bridge.errors import BadPayload, BadSignature
from bridge.model import Event, InboundRequest, RecordKey, Verified
from bridge.outbound import Api
from bridge.sources.base import Answer, Genuine, Proof, Read, SourceType, cannot_read
from bridge.sources.dynamics365.calls import READ_LIMIT, environment
from bridge.sources.dynamics365.payloads import CONTACT, KINDS, Context
from bridge.sources.dynamics365.settings import KEPT_HEADERS, Key, Settings, shown
from bridge.sources.reading import Unclear, event_key, read_json, short
from bridge.sources.sampling import SAMPLE_ID, Sampling, made_up
from bridge.sources.shown import same

__all__ = ["SOURCE", "Dynamics365", "Key", "Settings"]

OTHER_ORGANIZATION = "It is from another organisation than the configured organization_id."
VALIDATION = "URL_VALIDATION"  # what the name of a request is that looks whether the URL answers

KNOWN_FIELDS = (
    "address1_city", "address1_country", "address1_line1", "address1_postalcode", "birthdate", "contactid",
    "createdon", "description", "donotbulkemail", "donotemail", "donotfax", "donotphone", "donotpostalmail",
    "emailaddress1", "emailaddress2", "firstname", "fullname", "jobtitle", "lastname", "mobilephone", "modifiedon",
    "ownerid", "parentcustomerid", "preferredcontactmethodcode", "salutation", "statecode", "statuscode",
    "telephone1", "telephone2", "websiteurl",
)  # fmt: skip


class Dynamics365:
    """One environment's webhooks. Raises `ValueError` where its settings cannot work."""

    def __init__(self, name: str, settings: Settings) -> None:
        settings.check()
        self.name = name
        self._keys = [(key.header.lower(), shown(key.value)) for key in settings.keys]
        self._organization = (settings.organization_id or "").strip("{} ").lower()
        self._environment = environment(name, settings)

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. Every pair is compared, whichever matches."""
        matches = [bool(same(request.headers.get(header), [value.encode()])) for header, value in self._keys]
        if not any(matches):
            raise BadSignature("No header of the request holds what is configured under keys.")
        return Genuine(Verified(request), matches.index(True))

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        header, value = self._keys[0]
        return replace(request, headers={**request.headers, header: value})

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        if not isinstance(body, dict) or "MessageName" not in body:
            raise BadPayload("The body is no context of an operation of Dataverse's: it has no 'MessageName'.")
        return [self._event(Context.of(body), received_at)]

    def _event(self, said: Context, received_at: datetime) -> Event:
        if said.table != CONTACT:
            return Event(said.key, ignored=f"'{short(said.table)}' is not about contacts.", type=said.word)
        if said.message not in KINDS:
            return Event(said.key, ignored=f"'{short(said.message)}' is no change of one contact.", type=said.word)
        if self._organization and said.account and said.account != self._organization:
            return Event(said.key, ignored=OTHER_ORGANIZATION, type=said.word)
        try:
            changes = tuple(clamp(change, received_at) for change in said.changes(self.name))
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(event_key("unreadable", said.key), unreadable=str(error), type=said.word)
        return Event(said.key, changes, type=said.word)

    def can_read(self) -> bool:
        return self._environment is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. At most 50 records a call."""
        if self._environment is None:
            cannot_read(self.name)
        return self._environment.read(api, keys, fields)


def handshake(request: InboundRequest) -> Answer | None:
    """Answer the look whether the URL is there. It says nothing about a contact."""
    named = request.headers.get("x-ms-dynamics-request-name", "")
    return Answer(b"", "text/plain") if named == VALIDATION else None


def sample(wanted: Sampling) -> bytes:
    """Return an update of a contact, with the columns that changed."""
    changed = made_up(wanted.reads) or {"mobilephone": "+14155550123"}
    account = wanted.account or getattr(wanted.settings, "organization_id", None)
    at = int(wanted.at.timestamp() * 1000)
    target = {
        "__type": "Entity:http://schemas.microsoft.com/xrm/2011/Contracts",
        "Attributes": [{"key": name, "value": value} for name, value in changed.items()],
        "Id": SAMPLE_ID,
        "LogicalName": CONTACT,
    }
    body: dict[str, Any] = {
        "Depth": 1,
        "InputParameters": [{"key": "Target", "value": target}],
        "MessageName": "Update",
        "Mode": 1,
        "OperationCreatedOn": f"/Date({at}+0000)/",
        "OperationId": event_key("operation", at)[:32],
        **({"OrganizationId": account} if account else {}),
        "PostEntityImages": [],
        "PrimaryEntityId": SAMPLE_ID,
        "PrimaryEntityName": CONTACT,
        "Stage": 40,
    }
    return json.dumps(body, separators=(",", ":")).encode()


SOURCE = SourceType(
    name="dynamics365",
    title="Dynamics 365",
    settings=Settings,
    make=Dynamics365,
    kept_headers=KEPT_HEADERS,
    proof=Proof.SHOWN,
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.base),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "emailaddress1",
        "phone": "telephone1",
        "mobile": "mobilephone",
        "first_name": "firstname",
        "last_name": "lastname",
        "name": "fullname",
        "opt_out": "donotbulkemail | boolean",
    },
    steps=(
        "Make a long random key of plain letters and digits, and put it into the environment variable that "
        "`bridge.toml` names under `keys`.",
        "Open the *Plugin Registration Tool* (`pac tool prt`), choose *Create New Connection* and sign in to the "
        "environment as a System Administrator or System Customizer.",
        "Choose *Register → Register New Web Hook*. The endpoint URL is the one that `bridge url {name}` prints, "
        "the authentication *HttpHeader*; add the property `X-Bridge-Key` with the key as its value, and save.",
        "Select the new webhook and choose *Register → Register New Step*: message `Create`, primary entity "
        "`contact`, stage *PostOperation*, execution mode *Asynchronous*. Do the same for `Update`, `Delete` and "
        "`Merge`. For `Update` choose under *Filtering Attributes* the columns that rules read. A synchronous "
        "step would let people's saves fail whenever bridge is away.",
        "To read contacts: in the Azure portal open *Microsoft Entra ID → App registrations → New registration*, "
        "and under *Certificates & secrets* make a client secret. In the *Power Platform admin center* open the "
        "environment, *Settings → Users + permissions → Application users → New app user*, choose the "
        "application, and give it a security role that may read contacts of the whole organisation. Put the "
        "values into `tenant_id`, `client_id` and `client_secret`, and start bridge again.",
    ),
    manual="https://learn.microsoft.com/power-apps/developer/data-platform/register-web-hook",
    lister=environment,
    writer=environment,
    handshake=handshake,
)
