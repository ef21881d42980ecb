"""Zoho CRM: notifications of a channel, the webhooks of workflows, and the account's contacts.

A notification holds ids only, so contacts are read. There is no signature: a secret comes back in the body of
every notification, and in a header of a workflow's webhook.
https://www.zoho.com/crm/developer/docs/api/v8/notifications/overview.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from bridge.errors import BadPayload, BadSignature
from bridge.model import Event, InboundRequest, RecordKey, Verified, iso
from bridge.outbound import Api
from bridge.sources.base import Genuine, Proof, Read, SourceType, cannot_read
from bridge.sources.reading import MAX_UNPROVEN, read_json
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling, made_up
from bridge.sources.shown import same
from bridge.sources.zoho_crm.calls import READ_LIMIT, SCOPES, account, with_asked
from bridge.sources.zoho_crm.payloads import content_of, from_workflow, is_notification, notified
from bridge.sources.zoho_crm.settings import KEPT_HEADERS, Settings

__all__ = ["SOURCE", "Settings", "ZohoCrm"]

NOT_KEPT = "(not kept)"  # stands for the secret in what is stored

KNOWN_FIELDS = (
    "Account_Name", "Assistant", "Created_Time", "Date_of_Birth", "Department", "Description", "Email",
    "Email_Opt_Out", "Fax", "First_Name", "Full_Name", "Home_Phone", "Last_Name", "Lead_Source", "Mailing_City",
    "Mailing_Country", "Mailing_State", "Mailing_Street", "Mailing_Zip", "Mobile", "Modified_Time", "Other_Phone",
    "Owner", "Phone", "Salutation", "Secondary_Email", "Tag", "Title", "id",
)  # fmt: skip


class ZohoCrm:
    """One account. Raises `ValueError` where its settings cannot work."""

    def __init__(self, name: str, settings: Settings) -> None:
        settings.check()
        self.name = name
        self._settings = settings
        self._keys = settings.keys
        self._channel_id = settings.channel(name)
        self._header = settings.header.lower()
        self._account = account(name, settings)

    # --- verifying ---------------------------------------------------------------------------------------

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. A header with the secret must be right wherever it is there.

        What a notification shows is a credential, so the request that is returned no longer holds it.
        """
        given = request.headers.get(self._header)
        if given is not None:
            index = self._which(given)  # before anything of a stranger's body is read
            return Genuine(Verified(self._without_keys(request)), index)
        if len(request.body) > MAX_UNPROVEN:
            raise BadSignature(
                "The request shows no secret in a header, and its body is too large to look for one."
            )
        try:
            content = read_json(request.body)
        except BadPayload as error:
            raise BadSignature("The request shows no secret: neither a header nor a body that has one.") from error
        if not is_notification(content):
            raise BadSignature(f"The request shows no secret: it has no header {self._header}.")
        token, channel_id = content.get("token"), content["channel_id"]
        if not isinstance(token, str) or not isinstance(channel_id, str):
            raise BadSignature("The notification's token and channel_id are no texts.")
        index = self._which(token)
        if not same(channel_id, [self._channel_id.encode()]):
            raise BadSignature("The notification is of another channel than ours.")
        return Genuine(Verified(self._without_keys(request)), index)

    def _which(self, given: str) -> int:
        """Return the index of the secret that was *given*. All are compared, whichever matches."""
        matches = same(given, [key.encode() for key in self._keys])
        if not matches:
            raise BadSignature("The secret that the request shows is not ours.")
        return matches[0]

    def _without_keys(self, request: InboundRequest) -> InboundRequest:
        """Return *request* with each of our secrets replaced in its body."""
        body = request.body
        for key in self._keys:
            body = body.replace(key.encode(), NOT_KEPT.encode())
        if b"\\" in body:
            # Letters may be written as escapes, and a secret spelled so is a secret still.
            try:
                content = read_json(body)
            except BadPayload:
                return replace(request, body=body)
            plain = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            if any(_quoted(key) in plain for key in self._keys):
                for key in self._keys:
                    plain = plain.replace(_quoted(key), NOT_KEPT)
                body = plain.encode()
        return replace(request, body=body)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        """See `Source.sign`. A notification gets the number and the token of the channel, all else the header."""
        try:
            content = read_json(request.body)
        except BadPayload:
            content = None
        if not is_notification(content):
            return replace(request, headers={**request.headers, self._header: self._keys[0]})
        shown = {"channel_id": self._channel_id, "token": self._keys[0]}
        if all(content.get(name) == value for name, value in shown.items()):
            return request
        body = json.dumps({**content, **shown}, separators=(",", ":"), ensure_ascii=False)
        return replace(request, body=body.encode())

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        content = content_of(genuine.request)
        if is_notification(content):
            return notified(self.name, self._settings.module, content, received_at)
        can_read = self.can_read()
        return [from_workflow(self.name, self._settings.module, content, received_at, can_read=can_read)]

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._account is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. At most 100 records a call; a merged record is not told from a deleted one."""
        if self._account is None:
            cannot_read(self.name)
        return with_asked(self._account.read(api, [key.source_id for key in keys], fields), keys)


def _quoted(key: str) -> str:
    """Return *key* as it stands within a JSON text."""
    return json.dumps(key, ensure_ascii=False)[1:-1]


def sample(wanted: Sampling) -> bytes:
    """Return a change as the webhook of a workflow sends it, composed as the page of this source says."""
    fields = made_up(wanted.reads) or {
        "First_Name": "Ada",
        "Last_Name": "Lovelace",
        "Email": "ada@example.com",
        "Phone": "+14155550123",
    }
    body: dict[str, Any] = {
        "module": getattr(wanted.settings, "module", "Contacts"),
        "operation": "update",
        "id": str(SAMPLE_NUMBER),
        "Modified_Time": iso(wanted.at),
        **fields,
    }
    return json.dumps(body, separators=(",", ":")).encode()


SOURCE = SourceType(
    name="zoho_crm",
    title="Zoho CRM",
    settings=Settings,
    make=ZohoCrm,
    kept_headers=KEPT_HEADERS,
    proof=Proof.SHOWN,
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "Email",
        "phone": "Phone",
        "mobile": "Mobile",
        "first_name": "First_Name",
        "last_name": "Last_Name",
        "name": "Full_Name",
        "opt_out": "Email_Opt_Out | boolean",
    },
    steps=(
        "Make a long random secret of 16 to 50 letters and digits, and put it into the environment variable that "
        "`bridge.toml` names under `secrets`.",
        "In the API console of your data centre (`api-console.zoho.com`, `api-console.zoho.eu`, …) choose *Add "
        "Client → Self Client → Create*. Copy the client id and the client secret.",
        f"Under *Generate Code* give the scopes `{SCOPES.replace(', ', ',')}`, choose ten minutes and the CRM "
        "account, and exchange the code for a refresh token within them, as the page of this source shows. Put "
        "the three into `client_id`, `client_secret` and `refresh_token`, and the hosts of your data centre into "
        "`accounts_base` and `api_base`.",
        "Only where bridge has no access to the API: in Zoho CRM open *Setup → Automation → Actions → Webhooks → "
        "Configure Webhook*. The URL is the one that `bridge url {name}` prints, the method POST, the module "
        "Contacts. Add the header `X-Bridge-Token` with the secret. As body choose *Raw* and *JSON*, with `id`, "
        "`module`, `operation` and a line for each field that a rule reads, as the page of this source shows.",
        "Then under *Setup → Automation → Workflow Rules* add a rule for Contacts that runs on *Create or Edit* "
        "with the webhook as its instant action, and one that runs on *Delete* with a second webhook whose "
        "`operation` is `delete`.",
        "Start bridge again. Where it has access to the API, `bridge register {name}` creates the notification "
        "channel, which lives for a week at most: it has to be registered again before.",
    ),
    manual="https://www.zoho.com/crm/developer/docs/api/v8/notifications/overview.html",
    lister=account,
    registrar=account,
    writer=account,
)
