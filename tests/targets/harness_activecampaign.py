"""ActiveCampaign as the contract suite sees it."""

from __future__ import annotations

import builtins
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from bridge.demo.fakes.activecampaign import API_KEY, ActiveCampaign
from bridge.model import Secret, Value
from bridge.outbound import Api, new_session
from bridge.targets.activecampaign import TARGET, Settings

MULTIPLE = frozenset({"INTERESTS"})


class Harness:
    title = TARGET.title
    type = TARGET
    switches = ActiveCampaign.SWITCHES
    identity = "email"
    clearable: str | None = "fields.RENEWAL"
    create_method = "POST"
    create_path = "/contact/sync"

    def __init__(self, **switches: Any) -> None:
        # An automation of the account puts new contacts on a list, so that there is something to opt out of.
        self.fake = ActiveCampaign(welcome_list="Newsletter", **switches)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        url = self._stack.enter_context(self.fake.serve())
        self._session = self._stack.enter_context(new_session())
        self.settings = Settings(base_url=url, api_key=Secret(API_KEY))
        self.target = TARGET.make(self.settings)
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def api(self) -> Api:
        return Api(TARGET.base_url(self.settings), session=self._session)

    def person(self, n: int) -> dict[str, Value]:
        return {
            "email": f"ana.ruiz+{n}@example.com",
            "phone": f"+5255123456{n:02d}",
            "firstName": "Ana",
            "lastName": f"Ruiz {n}",
            "fields.NICKNAME": "Anita",
            "fields.RENEWAL": "2026-11-30",
            "fields.TIER": "gold",
            "fields.INTERESTS": ["Bikes", "Books"],
        }

    def changed(self, person: dict[str, Value]) -> dict[str, Value]:
        return {
            **person,
            "phone": "+525598765432",
            "lastName": "Ruiz Ortega",
            "fields.RENEWAL": "2027-11-30",
            "fields.TIER": "silver",
            "fields.INTERESTS": ["Boats"],
        }

    def stored(self, identity_value: str) -> dict[str, Value] | None:
        person = self.fake.person(identity_value)
        if not person:
            return None
        fields = {
            f"fields.{tag}": value.strip("|").split("||") if tag in MULTIPLE else value
            for tag, value in person["fields"].items()
        }
        base = {name: person[name] for name in ("email", "phone", "firstName", "lastName")}
        lists = {f"lists.{name}": status == 1 for name, status in person["lists"].items()}
        return {**base, **fields, **lists, "tags": person["tags"]}

    def count(self) -> int:
        return len(self.fake.people())

    def opted_out(self, target_id: str) -> bool:
        return self.fake.opted_out(target_id)

    def opt_out_in_platform(self, target_id: str) -> None:
        self.fake.unsubscribe(target_id)

    def set_foreign(self, target_id: str) -> None:
        self.fake.set_value(target_id, "LANGUAGE", "af")
        self.fake.tag_contact(target_id, "met at the fair")
        self.fake.set_status(target_id, "Product news", 1)

    def foreign_intact(self, target_id: str) -> bool:
        person = next(person for person in self.fake.people() if person["id"] == target_id)
        field = person["fields"].get("LANGUAGE") == "af"
        return field and "met at the fair" in person["tags"] and person["lists"].get("Product news") == 1
