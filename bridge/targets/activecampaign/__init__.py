"""ActiveCampaign (API v3): https://developers.activecampaign.com/reference/overview.

What shapes this adapter:

- The e-mail address is the only key. It finds and creates; once the contact's id is known, everything goes by the
  id, because ``/contact/sync`` with a new address would make a second contact.
- A contact is read before it is written. That shows whether it was deleted, what is blank, and which lists the
  person left, so that nothing is written that is there already and no opt-out is ever loosened.
- ``/contact/sync`` is sent with nothing but the address: should the contact exist after all (made by somebody else
  since the search), it changes nothing, and bridge knows whom it deals with before it writes.
- There is no flag for "opted out". A person counts as opted out when they are unsubscribed from at least one list
  and subscribed to none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from bridge.errors import Complaints
from bridge.model import Receipt, Secret
from bridge.outbound import Api, segment
from bridge.targets import feedback
from bridge.targets.activecampaign.account import Account
from bridge.targets.activecampaign.client import TITLE, Client, Gone, NotFound
from bridge.targets.activecampaign.contact import find_contact, opted_out, read_contact
from bridge.targets.activecampaign.push import address_of, push
from bridge.targets.base import FieldKind, Job, TargetField, TargetType

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The section of one ActiveCampaign account."""

    base_url: str = field(
        metadata={"help": "The account's URL, from Settings, Developer: https://acme.api-us1.com"}
    )
    api_key: Secret = field(metadata={"help": "The account's key, from Settings, Developer."})

    def __post_init__(self) -> None:
        with Complaints() as complaints:
            with complaints.look():
                _check_base(self.base_url)
            complaints.unless(bool(self.api_key.reveal().strip()), "api_key: it is empty")

    @property
    def api_base(self) -> str:
        return self.base_url.rstrip("/").removesuffix("/api/3") + "/api/3"


def _check_base(url: str) -> None:
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in {"http", "https"}:
        raise ValueError("base_url: it must be a URL like https://acme.api-us1.com, from Settings, Developer")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError("base_url: it must begin with https://")
    if parts.path.rstrip("/") not in {"", "/api/3"} or parts.query or parts.fragment or parts.username:
        raise ValueError("base_url: it must be the account's host alone, without a path")


class ActiveCampaign:
    """The adapter for one account. What it remembers between pushes is about the account, never about people."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._account = Account()

    def deliver(self, api: Api, job: Job) -> Receipt:
        """Create or update one contact; see `Target.deliver`.

        Raises:
            Ambiguous: several contacts have the e-mail address, or another one has the new address.
        """
        if job.target_id is None:
            job = replace(job, accepted=None)  # whatever was accepted was accepted of somebody else
        try:
            return push(self._client(api), self._account, job)
        except Gone:
            stranger = replace(job, target_id=None, accepted=None)
            return push(self._client(api), self._account, stranger)

    def remove(self, api: Api, job: Job) -> Receipt:
        client, target_id, address = self._client(api), job.target_id, address_of(job)
        if target_id is None:
            target_id = find_contact(client, address) if address else None
            if target_id is None:
                job.check_settled()
                return Receipt("absent")
            job.link(target_id)  # no contact is deleted that is linked to another record
        gone = Receipt("removed", target_id, notes=(f"It was gone from {TITLE} already.",))
        held = read_contact(client, target_id)
        if held is None:
            return gone
        try:
            client.call("DELETE", f"/contacts/{segment(target_id)}", doing="removing the contact")
        except NotFound:
            return gone
        return Receipt("removed", target_id, opted_out=opted_out(held.rows))

    def check(self, api: Api) -> str:
        user = self._client(api).call("GET", "/users/me", doing="checking the key").row("user")
        host = urlsplit(self._settings.base_url).hostname
        return f"{TITLE} at {host} accepts the key; it belongs to user {user.get('id')}."

    def _client(self, api: Api) -> Client:
        return Client(api, self._settings.api_key)


def _api_base(settings: Settings) -> str:
    return settings.api_base


TARGET = TargetType(
    name="activecampaign",
    title=TITLE,
    settings=Settings,
    fields=(
        TargetField("email", FieldKind.EMAIL, clearable=False, help="The address that the contact is known by."),
        TargetField("phone", FieldKind.PHONE, help="A phone number."),
        TargetField("firstName", help="The first name."),
        TargetField("lastName", help="The last name."),
        TargetField("fields.*", FieldKind.ANY, help="A custom field, by its personalization tag or its id."),
        TargetField("tags", FieldKind.NAMES, help="Tags that the contact should have; others are left alone."),
        TargetField(
            "lists.*",
            FieldKind.BOOLEAN,
            clearable=False,
            help="A list, by name or id: true subscribes who was never on it, false unsubscribes.",
        ),
    ),
    identities=(("email",),),
    lanes=2,
    # Five calls a second are allowed to all integrations of an account together:
    # https://developers.activecampaign.com/reference/rate-limits
    rate_per_s=4.0,
    burst=2,
    feedback=feedback.activecampaign,
    make=ActiveCampaign,
    base_url=_api_base,
)
