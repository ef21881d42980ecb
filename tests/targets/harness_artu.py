"""Artu, set up for the tests that every platform shares."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from bridge.demo.fakes.artu import Artu as FakeArtu
from bridge.model import Secret, Value
from bridge.outbound import Api
from bridge.targets.artu import TARGET, Artu, Settings
from bridge.targets.base import TargetType


class Harness:
    """The adapter in the test environment, allowed to create clients."""

    title = TARGET.title
    type: TargetType = TARGET
    fake_type: builtins.type[FakeArtu] = FakeArtu
    switches: Mapping[str, tuple[Any, ...]] = FakeArtu.SWITCHES
    identity = "email"
    clearable: str | None = "phone"
    create_method = "POST"
    create_path = "/clients"  # a part of other paths too, but the create is the first POST to any of them
    has_opt_out = False

    def __init__(self, *, settings: Mapping[str, Any] | None = None, **switches: Any) -> None:
        self.fake = self.fake_type(**switches)
        self.register = self.fake.registers["test"]
        base = {"environment": "test", "create_clients": True}
        self.target = Artu(Settings(Secret(self.fake.key), **{**base, **(settings or {})}))

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
            "client_name": f"Ana-{n}",
            "client_last_name": f"Ruiz-{n}",
            "email": f"ana.ruiz{n}@example.com",
            "email.label": f"office-{n}",
            "phone": f"+5255123400{n:02}",
            "mobile": f"+5255987600{n:02}",
            "metadata.tier": f"gold-{n}",
            "metadata.visits": 6400 + n,
        }

    def changed(self, person: Mapping[str, Value]) -> dict[str, Value]:
        return {**person, "email.label": "headquarters", "metadata.tier": "platinum", "metadata.visits": 9100}

    def stored(self, identity_value: Value) -> dict[str, Value] | None:
        found = next((row for row in self.register.methods.values() if row["value"] == identity_value), None)
        if found is None:
            return None
        client = self.register.clients[found["clientId"]]
        held: dict[str, Value] = {"client_name": client["name"], "client_last_name": client.get("lastName")}
        for row in self.register.of(client["id"]):
            if str(row["externalId"] or "").startswith("crm:"):
                held |= {row["type"]: row["value"], f"{row['type']}.label": row["label"]}
                held |= {f"metadata.{key}": value for key, value in row["metadata"].items()}
        return held

    def count(self) -> int:
        return len(self.register.clients)

    def opted_out(self, target_id: str) -> bool:
        return False

    def set_foreign(self, target_id: str) -> None:
        self.fake.add_method(
            target_id,
            type="phone",
            value="+525500001111",
            label="assistant",
            isPrimary=True,
            metadata={"by": "staff"},
        )
        self.fake.add_method(target_id, type="fax", value="+525500002222", externalId="erp:9")
        self._own(target_id)["metadata"]["reviewed"] = "yes"

    def foreign_intact(self, target_id: str) -> bool:
        kept = {(row["value"], row["label"], row["externalId"]): row for row in self.register.of(target_id)}
        staff = kept.get(("+525500001111", "assistant", None))
        fax = kept.get(("+525500002222", None, "erp:9"))
        return bool(
            staff
            and fax
            and staff["isPrimary"]
            and staff["metadata"] == {"by": "staff"}
            and self._own(target_id)["metadata"].get("reviewed") == "yes"
        )

    def _own(self, target_id: str) -> dict[str, Any]:
        return next(row for row in self.register.of(target_id) if str(row["externalId"]).endswith(":email"))
