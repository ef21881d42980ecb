"""Artu: a compliance register. https://docs.artu.ai/guides/contact-methods.

What shapes this adapter:

- Bridge writes *contact methods* (one address or number each) of *clients*. The target id is the client's.
- A client is found, never guessed, and created only if the configuration says so: it is a compliance register.
- Bridge's own methods have an external id that names the record. Those of other people are never changed.
- Every write names the methods it is about, because a sync that replaces would remove all others, and every method
  is sent whole, because what an update leaves out may be reset. Afterwards they are read again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bridge.errors import Complaints, Permanent, Retryable
from bridge.model import Receipt, Secret
from bridge.outbound import Api
from bridge.targets.artu.finding import Finder
from bridge.targets.artu.method import METHODS
from bridge.targets.artu.owner import Owner
from bridge.targets.artu.plan import Plan
from bridge.targets.artu.push import Push
from bridge.targets.artu.register import TITLE, Gone, Moved, Register, refuse
from bridge.targets.base import FieldKind, Job, TargetField, TargetType

NO_CLIENT = "No Artu client fits this person, and bridge creates none unless create_clients is set."


@dataclass(frozen=True, slots=True)
class Settings:
    """The section of one environment of an Artu account."""

    api_key: Secret = field(metadata={"help": "An API key with rights to list and update contact methods."})
    environment: Literal["test", "live"] = field(
        metadata={"help": "Which register is written to: test or live. There is no default on purpose."}
    )
    api_base: str = field(
        default="https://api.artu.ai", metadata={"help": "Where the API is; for tests and proxies."}
    )
    create_clients: bool = field(
        default=False,
        metadata={"help": "Create a client for a person who has none. Needs a rule for client_name."},
    )
    client_type: Literal["individual", "company", "trust"] = field(
        default="individual", metadata={"help": "What kind of client bridge creates."}
    )
    client_metadata_key: str = field(
        default="",
        metadata={"help": "Look client_external_id up in this key of the clients' metadata, not as external id."},
    )
    external_id_prefix: str = field(
        default="crm", metadata={"help": "How the external ids of bridge's contact methods begin."}
    )
    phone_type: Literal["phone", "mobile"] = field(
        default="phone", metadata={"help": "The type of contact method that the field phone becomes."}
    )
    mobile_type: Literal["mobile", "phone"] = field(
        default="mobile", metadata={"help": "The type of contact method that the field mobile becomes."}
    )

    def __post_init__(self) -> None:
        with Complaints() as complaints:
            complaints.unless(bool(self.api_key.reveal().strip()), "api_key: it is empty")
            complaints.unless(
                bool(self.external_id_prefix.strip(": ")),
                "external_id_prefix: it is empty; bridge knows its own contact methods by it",
            )


@dataclass(frozen=True, slots=True)
class Artu:
    """The adapter for one register: an account's test or live environment."""

    settings: Settings

    def deliver(self, api: Api, job: Job) -> Receipt:
        """Make the client hold the desired contact methods; see `Target.deliver`.

        Raises:
            Ambiguous: several clients fit, or bridge's own methods of this person belong to another one.
        """
        push, finder = self._push(api, job), self._finder(api, job)
        stored = job.target_id
        for _ in range(2):
            client = finder.resolve(stored)
            if client is None:
                wanted = job.desired.create and not job.desired.opt_out
                return Receipt("absent", notes=(NO_CLIENT,) if wanted else ())
            try:
                return push.update(client)
            except Gone:
                if client.id == job.desired.fields.get("client_id"):
                    raise Permanent(
                        f"Artu's {self.settings.environment} environment has no client with this client_id."
                    ) from None
                stored = None  # removed there: resolve anew, once
        raise Retryable("Artu lists contact methods of a client that it then does not know.", code="missing")

    def remove(self, api: Api, job: Job) -> Receipt:
        """Delete bridge's own contact methods of the record; the client and all other methods stay."""
        push, finder = self._push(api, job), self._finder(api, job)
        removed = False
        for last in (False, True):
            listed = push.register.methods_of(job.target_id) if job.target_id else finder.own_methods()
            own = [method for method in listed if push.owner.has(method)]
            removed = removed or bool(own)
            try:
                for client_id in {method.client_id for method in own}:
                    push.apply(client_id, Plan(deletes=[one for one in own if one.client_id == client_id]))
                break
            except Moved as moved:
                if last:
                    refuse(moved.reply, None, doing="deleting contact methods")
            except Gone:
                continue  # one of them, or the client: look again what is left
        return Receipt("removed" if removed or job.target_id else "absent", job.target_id)

    def check(self, api: Api) -> str:
        """List one contact method. See `Target.check`."""
        self._register(api).probe()
        return f"Artu takes the key for its {self.settings.environment} environment."

    def _register(self, api: Api) -> Register:
        return Register(api, self.settings.api_key, self.settings.environment)

    def _owner(self, job: Job) -> Owner:
        types = {"phone": self.settings.phone_type, "mobile": self.settings.mobile_type}
        return Owner(self.settings.external_id_prefix, job.key, types)

    def _push(self, api: Api, job: Job) -> Push:
        return Push(self._register(api), self._owner(job), job)

    def _finder(self, api: Api, job: Job) -> Finder:
        settings = self.settings
        create = settings.client_type if settings.create_clients else ""
        return Finder(self._register(api), self._owner(job), job, settings.client_metadata_key, create)


def _method_fields() -> tuple[TargetField, ...]:
    kinds = {"email": FieldKind.EMAIL, "other": FieldKind.TEXT}
    values = [TargetField(name, kinds.get(name, FieldKind.PHONE), help="A contact method.") for name in METHODS]
    labels = [TargetField(f"{name}.label", clearable=False, help="Its label, like office.") for name in METHODS]
    return (*values, *labels)


TARGET = TargetType(
    name="artu",
    title=TITLE,
    settings=Settings,
    fields=(
        TargetField("client_id", clearable=False, help="Artu's own id of the client, where the CRM knows it."),
        TargetField("client_external_id", clearable=False, help="The client's external id; it only finds."),
        TargetField("client_name", clearable=False, help="For clients that bridge creates; never updated."),
        TargetField("client_middle_name", clearable=False, help="As client_name."),
        TargetField("client_last_name", clearable=False, help="As client_name."),
        *_method_fields(),
        TargetField("metadata.*", FieldKind.ANY, help="Kept in each of bridge's contact methods of the person."),
    ),
    identities=(("client_id",), ("client_external_id",), ("email",), ("phone",), ("mobile",)),
    lanes=2,
    rate_per_s=5,
    burst=2,
    make=Artu,
    base_url=lambda settings: str(settings.api_base),
    can_opt_out=False,
)
