"""A contact as Clerk Chat holds it, and what "the same" means of two."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.model import Value

# What every contact has. Without one of these it is not shown whole, and writing it back could lose what was not.
WHOLE = frozenset({"id", "name", "phone", "email", "public", "data"})
# The keys of ``data`` that are bridge's own: the API cannot write the contact's external id, nor its opt-out.
CRM_ID, BRIDGE, CRM_OPT_OUT = "crmId", "bridge", "crmOptOut"

Key = tuple[str, str]  # ("phone", "+442071838750") or ("email", …): what a contact is searched by


@dataclass(frozen=True, slots=True)
class Person:
    """A contact, read or as it should be."""

    id: str
    name: str
    email: str
    phone: str
    public: bool | None
    opted_out: bool
    data: Mapping[str, Any]

    def holds(self, kind: str, value: str) -> bool:
        """Say whether its phone or e-mail is exactly *value*, in whatever way it is written there."""
        return plain(kind, getattr(self, kind)) == plain(kind, value)

    def resembles(self, kind: str, value: str) -> bool:
        """Say whether a search for *value* may find it, as a part of its phone or e-mail."""
        return plain(kind, value) in plain(kind, getattr(self, kind))

    def value(self, name: str) -> Value:
        """Return what it holds of a target field, by the field's name in the rules."""
        if name.startswith("data."):
            return self.data.get(name.removeprefix("data."))
        found: Value = getattr(self, name)
        return found

    def lacks(self, wanted: Person, cleared: Collection[str] = ()) -> list[str]:
        """Return the names of the fields in which it is not what was *wanted*; whatever else it has is free.

        *cleared*: keys of ``data`` that should be blank.
        """
        names = [name for name in ("name", "email", "phone", "public") if not blank(wanted.value(name))]
        names += [f"data.{key}" for key in sorted({*wanted.data, *cleared})]
        return [name for name in names if not same(name, self.value(name), wanted.value(name))]

    @property
    def keys(self) -> list[Key]:
        return keys_of({"phone": self.phone, "email": self.email})


def person_of(raw: Any) -> Person | None:
    """Read one contact of an answer; None if it is none, or not all of it."""
    if not isinstance(raw, dict) or not raw.keys() >= WHOLE or not isinstance(raw["data"] or {}, dict):
        return None
    texts = {name: str(raw[name] or "") for name in ("name", "email", "phone")}
    public = raw["public"] if isinstance(raw["public"], bool) else None
    opted_out = raw.get("optOut") not in (None, False, "", 0, "false")
    return Person(str(raw["id"]), **texts, public=public, opted_out=opted_out, data=raw["data"] or {})


def keys_of(fields: Mapping[str, Value]) -> list[Key]:
    """Return what a contact with these fields can be searched by, the phone first."""
    found = ((kind, fields.get(kind)) for kind in ("phone", "email"))
    return [(kind, value) for kind, value in found if isinstance(value, str) and value]


def same(name: str, one: Value, other: Value) -> bool:
    """Compare two values of a field; blanks are alike, and so are spellings that mean the same."""
    if blank(one) or blank(other):
        return blank(one) and blank(other)
    if name in {"name", "email", "phone"}:
        return plain(name, str(one)) == plain(name, str(other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other or (isinstance(one, str | int | float) and str(one) == str(other))


def plain(kind: str, text: str) -> str:
    if kind == "phone":
        return re.sub(r"[^\d+]", "", text)
    return text.strip().casefold() if kind == "email" else " ".join(text.split())


def blank(value: object) -> bool:
    return value is None or value in ("", [])


def word_for(kind: str) -> str:
    return "phone number" if kind == "phone" else "e-mail address"
