"""A contact method: one e-mail address or one number of a client, and what "the same" means of two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.model import Value

METHODS = ("email", "phone", "mobile", "fax", "other")  # bridge's fields, and the types at Artu


@dataclass(frozen=True, slots=True)
class Method:
    """A contact method, as Artu holds it or as it should be. An *id* of "" is one that is to be made."""

    id: str
    client_id: str
    type: str
    value: str
    is_primary: bool
    label: str
    external_id: str
    metadata: Mapping[str, Any]

    def reaches(self, kind: str, value: str) -> bool:
        """Say whether it is this address or number; ``phone`` and ``mobile`` are both telephones."""
        return _family(self.type) == _family(kind) and plain(self.value) == plain(value)

    def says(self, other: Method) -> bool:
        """Say whether it says the same as *other*, whichever is primary."""
        return (
            (self.type, plain(self.value), self.label, self.external_id)
            == (other.type, plain(other.value), other.label, other.external_id)
        ) and _filled(self.metadata) == _filled(other.metadata)

    def item(self) -> dict[str, Any]:
        """Return it as a sync writes it: whole, since what an update leaves out may be reset."""
        known = {"id": self.id} if self.id else {}
        label = {"label": self.label} if self.label else {}
        return {
            **known,
            "externalId": self.external_id,
            "type": self.type,
            "value": self.value,
            "isPrimary": self.is_primary,
            **label,
            "metadata": dict(self.metadata),
        }

    def deletion(self) -> dict[str, Any]:
        """Return it as a sync deletes it; type and value are there in case they are asked for."""
        return {"id": self.id, "type": self.type, "value": self.value, "_delete": True}


def blank(value: object) -> bool:
    return value is None or value in ("", [])


def plain(value: str) -> str:
    """Return *value* in the one form in which addresses and numbers are compared."""
    text = value.strip().casefold()
    return re.sub(r"[^\d+]", "", text) if re.fullmatch(r"\+?[\d\s().-]+", text) else text


def as_desired(desired: Value, held: Value) -> Value:
    """Return what is held, spelled as desired where it means the same."""
    if blank(desired) or blank(held):
        return desired if blank(desired) and blank(held) else held
    if isinstance(held, str) and plain(held) == plain(str(desired)) and not isinstance(desired, bool):
        return desired
    return held


def _family(kind: str) -> str:
    return "phone" if kind == "mobile" else kind


def _filled(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not blank, numbers as text: whether Artu keeps them as numbers is not documented."""
    return {
        key: value if isinstance(value, bool | list | dict) else str(value)
        for key, value in metadata.items()
        if not blank(value)
    }
