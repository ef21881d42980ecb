"""Sakari for the tests that every target keeps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

import requests

from bridge.demo.fakes import sakari as fakes
from bridge.demo.fakes.base import Call
from bridge.model import Secret, Value
from bridge.outbound import Api, new_session
from bridge.targets.base import TargetType
from bridge.targets.sakari import TARGET, Sakari, Settings

FOREIGN_LIST = {"id": "l-vip", "name": "VIP", "optIn": "2026-01-04T09:00:00Z", "optOut": None}
FOREIGN = {
    "optIn": "2026-01-04T09:00:00Z",
    "tags": [{"tag": "handpicked", "visible": True}],
    "hubspot": {"id": 12},
}


class Harness:
    """The fake, served, with an adapter that uses it."""

    title = "Sakari"
    switches: Mapping[str, tuple[Any, ...]] = fakes.Sakari.SWITCHES
    type: TargetType = TARGET
    identity = "mobile"
    clearable: str | None = "lastName"
    create_method = "POST"
    create_path = "/contacts"

    def __init__(self, **switches: Any) -> None:
        self.fake = fakes.Sakari(**switches)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.url = self._stack.enter_context(self.fake.serve())
        self._session: requests.Session = self._stack.enter_context(new_session())
        self.settings = Settings(
            self.fake.account, Secret(self.fake.client_id), Secret(self.fake.client_secret), api_base=self.url
        )
        self.target = Sakari(self.settings, clock=self.fake.clock)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def api(self, **hooks: Any) -> Api:
        return Api(TARGET.base_url(self.settings), session=self._session, **hooks)

    def fresh_api(self) -> Api:
        """Return one with a session of its own, to be closed by the caller: a session is for one thread."""
        return Api(TARGET.base_url(self.settings))

    def reads(self, call: Call) -> bool:
        """Say whether a call that is no GET only reads: asking for a token does."""
        return call.path == "/oauth2/token"

    def person(self, n: int) -> dict[str, Value]:
        return {
            "mobile": f"+52551234{n:04d}",
            "email": f"person{n}@example.com",
            "firstName": f"Ana{n}",
            "lastName": f"Ruiz{n}",
            "attributes.tier": "gold",
            "attributes.city": f"Town {n}",
            "lists": ["l-clients"],
        }

    def changed(self, person: dict[str, Value]) -> dict[str, Value]:
        return {
            **person,
            "email": f"new.{person['email']}",
            "firstName": f"{person['firstName']} María",
            "attributes.tier": "silver",
        }

    def stored(self, identity_value: str) -> dict[str, Value] | None:
        person = self.fake.person(identity_value)
        if person is None:
            return None
        attributes = {f"attributes.{name}": value for name, value in person["attributes"].items()}
        fields = {name: person[name] for name in ("mobile", "email", "firstName", "lastName", "lists")}
        return {**fields, **attributes}

    def stale_id(self, target_id: str) -> str:
        """Return an id that the platform does not know (any more)."""
        return f"{target_id}-gone"

    def count(self) -> int:
        return len(self.fake.contacts)

    def opted_out(self, target_id: str) -> bool:
        return bool(self.fake.contacts[target_id]["blocked"])

    def opt_out_in_platform(self, target_id: str) -> None:
        self.fake.stop(self._mobile(target_id))

    def set_foreign(self, target_id: str) -> None:
        contact = self.fake.contacts[target_id]
        self.fake.edit(
            self._mobile(target_id),
            lists=[*contact["lists"], dict(FOREIGN_LIST)],
            attributes={**contact["attributes"], "remark": "prefers mornings"},
            **FOREIGN,
        )

    def foreign_intact(self, target_id: str) -> bool:
        contact = self.fake.contacts[target_id]
        return (
            FOREIGN_LIST in contact["lists"]
            and contact["attributes"].get("remark") == "prefers mornings"
            and all(contact.get(name) == value for name, value in FOREIGN.items())
        )

    def _mobile(self, target_id: str) -> str:
        return str(self.fake.contacts[target_id]["mobile"]["number"])
