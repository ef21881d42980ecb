"""Who appears in the demo, what is to become of each in each platform, and what the platforms hold of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.demo.stage import Platforms
from bridge.model import State

TARGETS = ("marketing", "sms", "inbox", "register")


@dataclass
class Person:
    """A person as the CRM has them. *expected* is the state in each target where it is not `synced`."""

    source: str
    first: str
    last: str
    phone: str = ""  # E.164; "" where the CRM has none that is one
    id: str = ""  # the CRM's, once it is known
    expected: dict[str, State] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    @property
    def email(self) -> str:
        return f"{self.first.lower()}@example.com"

    def state_in(self, target: str) -> State:
        return self.expected.get(target, State.SYNCED)


@dataclass(frozen=True, slots=True)
class Held:
    """What a platform holds of a person; empty texts where it holds nothing."""

    name: str = ""
    email: str = ""
    phone: str = ""
    opted_out: bool = False

    def __str__(self) -> str:
        parts = [part for part in (self.name, self.email, self.phone) if part]
        return ", ".join([*parts, *(["opted out"] if self.opted_out else [])]) or "nothing"


def held(platforms: Platforms, target: str, person: Person) -> Held:
    """Return what the platform behind *target* holds of *person*, by looking into the platform itself."""
    look = {"marketing": _marketing, "sms": _sms, "inbox": _inbox, "register": _register}[target]
    return look(platforms, person)


def _marketing(platforms: Platforms, person: Person) -> Held:
    found = platforms.marketing.person(person.email)
    if not found:
        return Held()
    return Held(
        f"{found['firstName']} {found['lastName']}".strip(),
        found["email"],
        found["phone"],
        platforms.marketing.opted_out(found["id"]),
    )


def _sms(platforms: Platforms, person: Person) -> Held:
    found = platforms.sms.person(person.phone)
    if not found:
        return Held()
    name = f"{found['firstName'] or ''} {found['lastName'] or ''}".strip()
    return Held(name, found["email"] or "", found["mobile"], found["opted_out"])


def _inbox(platforms: Platforms, person: Person) -> Held:
    with platforms.inbox.lock:
        contacts = [dict(contact) for contact in platforms.inbox.contacts.values()]
    found = next((one for one in contacts if one["email"] == person.email), None)
    if found is None:
        return Held()
    return Held(found["name"] or "", found["email"] or "", found["phone"] or "", _said_stop(found))


def _said_stop(contact: Mapping[str, Any]) -> bool:
    return bool(contact["optOut"] or contact["data"].get("crmOptOut"))


def _register(platforms: Platforms, person: Person) -> Held:
    found = platforms.register.person(person.email)
    if not found:
        return Held()
    values = {method["type"]: method["value"] for method in found["contact methods"]}
    return Held(found["name"], values.get("email", ""), values.get("mobile", ""))
