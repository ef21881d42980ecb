"""Clerk Chat, set up for the tests that every platform shares."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from bridge.demo.fakes.clerk_chat import ClerkChat as FakeClerkChat
from bridge.model import Secret, Value
from bridge.outbound import Api
from bridge.targets.base import TargetType
from bridge.targets.clerk_chat import TARGET, ClerkChat, Settings

PARAMETERS = {"phone_email": ("phone", "email"), "search": ("search", "search"), "query": ("query", "query")}


class Harness:
    """The adapter as a user would set it up for an account that behaves as *switches* say."""

    title = TARGET.title
    type: TargetType = TARGET
    fake_type: builtins.type[FakeClerkChat] = FakeClerkChat
    switches: Mapping[str, tuple[Any, ...]] = FakeClerkChat.SWITCHES
    identity = "phone"
    clearable: str | None = "data.tier"
    create_method = "POST"
    create_path = "/public/contacts"
    has_opt_out = True

    def __init__(self, *, settings: Mapping[str, Any] | None = None, **switches: Any) -> None:
        self.fake = self.fake_type(**switches)
        phone, email = PARAMETERS[self.fake.switches["search_params"]]
        fitting = {
            "update_phone": self.fake.switches["put_accepts_phone"],
            "phone_parameter": phone,
            "email_parameter": email,
        }
        self.target = ClerkChat(Settings(Secret(self.fake.key), **{**fitting, **(settings or {})}))

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._url = self._stack.enter_context(self.fake.serve())
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def api(self, **how: Any) -> Api:
        api = Api(self._url, **how)
        self._stack.callback(api.session.close)
        return api

    def person(self, n: int) -> dict[str, Value]:
        return {
            "name": f"Ana Ruiz {n}",
            "phone": f"+5255123400{n:02}",
            "email": f"ana.ruiz{n}@example.com",
            "data.tier": f"gold-{n}",
            "data.visits": 6400 + n,
            "data.interests": ["tea", f"chess-{n}"],
        }

    def changed(self, person: Mapping[str, Value]) -> dict[str, Value]:
        return {**person, "name": "Ana María Ruiz-Soto", "data.tier": "platinum", "data.visits": 9100}

    def stored(self, identity_value: Value) -> dict[str, Value] | None:
        found = next((c for c in self.fake.contacts.values() if c["phone"] == identity_value), None)
        if found is None:
            return None
        data = {f"data.{key}": value for key, value in found["data"].items()}
        return {**{name: found[name] for name in ("name", "phone", "email", "public")}, **data}

    def count(self) -> int:
        return len(self.fake.contacts)

    def opted_out(self, target_id: str) -> bool:
        return bool(self.fake.contacts[target_id]["optOut"])

    def opt_out_in_platform(self, target_id: str) -> None:
        self.fake.block(target_id)

    def set_foreign(self, target_id: str) -> None:
        contact = self.fake.contacts[target_id]
        contact["data"]["staffNote"] = "calls back on Fridays"
        contact["attributes"] = [{"id": "7"}]
        contact["public"] = True

    def foreign_intact(self, target_id: str) -> bool:
        contact = self.fake.contacts[target_id]
        note = contact["data"].get("staffNote") == "calls back on Fridays"
        return bool(note and contact["attributes"] == [{"id": "7"}] and contact["public"] is True)
