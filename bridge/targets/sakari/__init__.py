"""Sakari: https://developer.sakari.io/api-reference.

What shapes this adapter:

- A PUT replaces the contact, the person's opt-out (``blocked``, and ``optOut`` of each list) with it. So a contact
  is read right before it is written, sent back whole, and read again after; an opt-out that is gone then is put
  back and raises an alarm.
- The mobile number is the only key, and the search finds parts of numbers: every page is read, and each number
  compared exactly.
- A POST for a number that is there already overwrites that contact, so a search always comes first.
- What the vendor leaves open (how far PUT replaces, in which shape POST answers, whether ``blocked`` can be set)
  is never relied upon: what was written is read back, and what did not come about is said in a note.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bridge.errors import Complaints, Permanent
from bridge.model import Receipt, Secret
from bridge.outbound import Api, segment
from bridge.targets import feedback
from bridge.targets.base import FieldKind, Job, TargetField, TargetType
from bridge.targets.sakari.account import TITLE, Account, Gone, Tokens, body_of
from bridge.targets.sakari.contact import opted_out
from bridge.targets.sakari.fields import attributes_of
from bridge.targets.sakari.finding import find
from bridge.targets.sakari.learnt import Learnt
from bridge.targets.sakari.push import Push
from bridge.targets.sakari.writing import read

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The section of one Sakari account in ``bridge.toml``."""

    account_id: str = field(
        metadata={"help": "The account id, beside the API credentials in hub.sakari.io.", "variable": "ACCOUNT"}
    )
    client_id: Secret = field(metadata={"help": "The client id of the API credentials."})
    client_secret: Secret = field(metadata={"help": "The client secret of the API credentials."})
    api_base: str = field(
        default="https://api.sakari.io", metadata={"help": "Where the API is; only to be changed for a proxy."}
    )

    def __post_init__(self) -> None:
        with Complaints() as complaints:
            for name, text in (
                ("account_id", self.account_id),
                ("client_id", self.client_id.reveal()),
                ("client_secret", self.client_secret.reveal()),
            ):
                complaints.unless(bool(text.strip()), f"{name}: it is empty")
            parts = urlsplit(self.api_base)
            safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
            complaints.unless(safe, "api_base: it must begin with https://")


class Sakari:
    """The adapter for one account. One instance serves all threads of the process."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._account_id = settings.account_id
        self._tokens = Tokens(settings.client_id, settings.client_secret, clock)
        self._learnt = Learnt(clock)

    def deliver(self, api: Api, job: Job) -> Receipt:
        """Create or update one contact; see `Target.deliver`.

        Raises:
            Ambiguous: several contacts have the number, or another one has the new number.
            Refused: also with the code ``loosened``, when the platform lost an opt-out; a person has to look.
        """
        account = self._account(api)
        try:
            return Push(account, self._learnt, job).run()
        except Permanent as error:
            # Perhaps an attribute was deleted in the account since its attributes were read.
            if (
                error.code != Permanent.code
                or not attributes_of(job)
                or not self._learnt.attributes.changed(account)
            ):
                raise
            return Push(account, self._learnt, job).run()

    def remove(self, api: Api, job: Job) -> Receipt:
        account, target_id = self._account(api), job.target_id
        if target_id is None:
            number = job.desired.fields.get("mobile") or job.last("mobile")
            target_id = find(account, self._learnt, number) if isinstance(number, str) else None
            if target_id is None:
                job.check_settled()
                return Receipt("absent")
            job.link(target_id)  # no contact is deleted that is linked to another record
        said_stop = False
        try:
            # With the contact its opt-out goes, too: from now on it is remembered here alone.
            said_stop = opted_out(read(account, target_id))
            reply = account.call("DELETE", f"/contacts/{segment(target_id)}")
            if reply.status not in {404, 410}:
                body_of(reply, doing="removing the contact")
        except Gone:
            pass
        return Receipt("removed", target_id, opted_out=said_stop)

    def check(self, api: Api) -> str:
        body_of(self._account(api).call("GET"), doing="reading the account")
        return f"{TITLE} gives access to the account {self._account_id}."

    def _account(self, api: Api) -> Account:
        return Account(api, self._tokens, f"/v1/accounts/{segment(self._account_id)}")


def _api_base(settings: Settings) -> str:
    return settings.api_base


TARGET = TargetType(
    name="sakari",
    title=TITLE,
    settings=Settings,
    fields=(
        TargetField("mobile", FieldKind.PHONE, clearable=False, help="The number that the contact is known by."),
        TargetField("email", FieldKind.EMAIL, help="The e-mail address."),
        TargetField("firstName", help="The first name."),
        TargetField("lastName", help="The last name."),
        TargetField("attributes.*", FieldKind.ANY, help="An attribute that the account defines, by its name."),
        TargetField(
            "lists", FieldKind.NAMES, clearable=False, help="Ids of lists to be on; nobody is taken off one."
        ),
    ),
    identities=(("mobile",),),
    lanes=2,
    rate_per_s=5.0,  # there are limits, but the vendor gives no numbers
    burst=2,
    feedback=feedback.sakari,
    make=Sakari,
    base_url=_api_base,
)
