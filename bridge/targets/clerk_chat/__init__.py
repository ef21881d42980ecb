"""Clerk Chat: an SMS and voice inbox with a small public API. https://docs.clerk.chat/api-reference.

What shapes this adapter:

- Nothing there is idempotent: no upsert, no read by id, no version to compare. So every push searches first.
- Whether a PUT replaces or merges is not documented. So the whole contact is written (name, e-mail, visibility and
  all of ``data``), right after it was read, and it is read again afterwards.
- The names of the search's parameters are not documented either. A search that does not search would make
  duplicates without end, so where it looks like that it has to prove itself, and every new contact must be found.
- An opt-out can be read and not written; a phone number can be written in some accounts only; nothing can be
  deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.errors import Complaints, Permanent, Refused, Retryable
from bridge.model import Receipt, Secret
from bridge.outbound import Api
from bridge.targets import feedback
from bridge.targets.base import FieldKind, Job, TargetField, TargetType
from bridge.targets.clerk_chat.push import Push
from bridge.targets.clerk_chat.team import TITLE, Gone, Team


@dataclass(frozen=True, slots=True)
class Settings:
    """The section of one Clerk Chat team."""

    api_key: Secret = field(metadata={"help": "The team's API key, from Settings, API."})
    api_base: str = field(
        default="https://web-api.clerk.chat", metadata={"help": "Where the API is; for tests and proxies."}
    )
    update_phone: bool = field(
        default=False,
        metadata={"help": "Send the phone number in updates. Only newer accounts take it; others need a person."},
    )
    public: bool = field(
        default=False, metadata={"help": "Whether contacts that bridge creates are visible to the whole team."}
    )
    phone_parameter: str = field(
        default="phone", metadata={"help": "The search parameter that takes a phone number."}
    )
    email_parameter: str = field(
        default="email", metadata={"help": "The search parameter that takes an e-mail address."}
    )

    def __post_init__(self) -> None:
        with Complaints() as complaints:
            for name, text in (
                ("api_key", self.api_key.reveal()),
                ("phone_parameter", self.phone_parameter),
                ("email_parameter", self.email_parameter),
            ):
                complaints.unless(bool(text.strip()), f"{name}: it is empty")


@dataclass(frozen=True, slots=True)
class ClerkChat:
    """The adapter for one team."""

    settings: Settings

    def deliver(self, api: Api, job: Job) -> Receipt:
        """Create or update one contact; see `Target.deliver`.

        Raises:
            Ambiguous: several contacts have the phone number or e-mail address.
            Permanent: the phone number changed and may not be updated; everything else was written.
        """
        push = Push(self._team(api), job, self.settings.update_phone, self.settings.public)
        stored = job.target_id
        for _ in range(2):
            found, created = push.find(stored), False
            if found is None:
                if not job.may_create():
                    return Receipt("absent")
                found, created = push.create()
            elif found.id != job.target_id:
                job.link(found.id)
            try:
                return push.update(found, created=created)
            except Gone:
                stored = None  # deleted since it was read: resolve anew, once
        raise Retryable(
            "Clerk Chat's search shows a contact that it then does not know. Bridge looks again later.",
            code="missing",
        )

    def remove(self, api: Api, job: Job) -> Receipt:
        """See `Target.remove`: the public API deletes nothing.

        Raises:
            Permanent: always.
        """
        raise Permanent(
            "Clerk Chat's API cannot delete contacts; somebody has to delete this one in Clerk Chat.",
            code="unsupported",
        )

    def check(self, api: Api) -> str:
        """Search for nobody, and for somebody who is there: both must come out right. See `Target.check`."""
        team = self._team(api)
        team.prove_that_search_filters("phone")
        known = next((person for person in team.some() if person.phone), None)
        if known is None:
            return "Clerk Chat takes the key; with no contact to look for, its search could not be tried."
        if all(hit.id != known.id for hit in team.look_up("phone", known.phone)):
            raise Refused(
                "Clerk Chat's search by phone does not find a contact that is there, so bridge would make "
                "duplicates. Check phone_parameter and email_parameter."
            )
        return "Clerk Chat takes the key, and its search finds contacts by phone."

    def _team(self, api: Api) -> Team:
        parameters = {"phone": self.settings.phone_parameter, "email": self.settings.email_parameter}
        return Team(api, self.settings.api_key, parameters)


TARGET = TargetType(
    name="clerk_chat",
    title=TITLE,
    settings=Settings,
    fields=(
        TargetField("name", clearable=False, help="The whole name: Clerk Chat has only one."),
        TargetField("phone", FieldKind.PHONE, clearable=False, help="What contacts are found by first."),
        TargetField("email", FieldKind.EMAIL, clearable=False, help="What contacts without a phone are found by."),
        TargetField("public", FieldKind.BOOLEAN, clearable=False, help="Visible to the whole team."),
        TargetField("data.*", FieldKind.ANY, help="Any key of the contact's free data."),
    ),
    identities=(("phone",), ("email",)),
    lanes=1,
    rate_per_s=2,
    burst=1,
    feedback=feedback.clerk_chat,
    make=ClerkChat,
    base_url=lambda settings: str(settings.api_base),
    can_remove=False,
    can_opt_out=False,
)
