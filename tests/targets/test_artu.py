"""Artu's own traps; what every platform keeps is in ``test_contract.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import requests
from flask import Response

from bridge.demo.fakes.artu import Artu as FakeArtu
from bridge.errors import Ambiguous, Permanent, Refused, Retryable, Superseded
from bridge.model import Desired, Mode, Receipt, RecordKey, Secret, Value, utc_now
from bridge.targets.artu import Settings
from bridge.targets.base import Job
from tests.targets.harness_artu import Harness

EMAIL, PHONE, MOBILE = "ana.ruiz@example.com", "+525512345678", "+525598765432"
ANA: dict[str, Value] = {"email": EMAIL, "phone": PHONE}
SYNC = "/contact-methods/sync"
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def h() -> Iterator[Harness]:
    with Harness(settings={"create_clients": False}) as harness:
        yield harness


def job(fields: Mapping[str, Value] = ANA, **how: Any) -> Job:
    wishes = {name: how.pop(name) for name in ("opt_out", "modes", "create") if name in how}
    given = {"accepted": None, "target_id": None, "now": utc_now(), **how}
    return Job(given.pop("key", RecordKey("hub", "84213")), Desired(fields=dict(fields), **wishes), **given)


def push(h: Harness, fields: Mapping[str, Value] = ANA, **how: Any) -> Receipt:
    return h.target.deliver(h.api(), job(fields, **how))


def own(name: str, source_id: str = "84213") -> str:
    return f"crm:hub:{source_id}:{name}"


def rows(h: Harness, client_id: str) -> dict[str, dict[str, Any]]:
    """Return a client's methods by their external id, or by their value where they have none."""
    return {str(row["externalId"] or row["value"]): row for row in h.register.of(client_id)}


def items(h: Harness) -> list[dict[str, Any]]:
    return [item for call in h.fake.made("POST", SYNC) for item in call.json["items"]]


# --- what goes over the wire ---


def test_every_call_names_the_environment_and_the_other_one_is_untouched() -> None:
    with Harness(settings={"environment": "live"}) as h:
        receipt = push(h, {"client_name": "Ana", **ANA})
        assert {call.headers["X-Environment"] for call in h.fake.calls} == {"live"}
        assert {call.headers["Authorization"] for call in h.fake.calls} == {"Bearer artu-key"}
        assert h.fake.person(EMAIL, "live")["id"] == receipt.target_id
        assert not h.register.clients
        assert not h.register.methods


def test_the_environment_has_no_default() -> None:
    [environment] = [one for one in dataclasses.fields(Settings) if one.name == "environment"]
    assert environment.default is environment.default_factory is dataclasses.MISSING


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="api_key: it is empty"):
        Settings(Secret(" "), "test")
    with pytest.raises(ValueError, match="external_id_prefix"):
        Settings(Secret("key"), "test", external_id_prefix=":")


def test_a_sync_replaces_nothing_and_every_item_is_whole(h: Harness) -> None:
    client = h.fake.add_client()
    push(h, {"client_id": client, **ANA, "email.label": "office", "metadata.tier": "gold"})
    [sync] = h.fake.made("POST", SYNC)
    whole = {"isPrimary": True, "metadata": {"tier": "gold"}}
    assert sync.json == {
        "replaceMode": False,
        "items": [
            {"externalId": own("email"), "type": "email", "value": EMAIL, "label": "office", **whole},
            {"externalId": own("phone"), "type": "phone", "value": PHONE, **whole},
        ],
    }


def test_an_update_names_the_row_and_keeps_what_it_does_not_change(h: Harness) -> None:
    client = h.fake.add_client()
    first = push(h, {"client_id": client, **ANA, "email.label": "office"})
    row = rows(h, client)[own("email")]
    row.update(isPrimary=False, metadata={"reviewed": True})
    h.fake.calls.clear()
    push(h, {**ANA, "email": "new@example.com"}, target_id=first.target_id, accepted=first.accepted)
    assert items(h) == [
        {
            "id": row["id"],
            "externalId": own("email"),
            "type": "email",
            "value": "new@example.com",
            "isPrimary": False,
            "label": "office",
            "metadata": {"reviewed": True},
        }
    ]
    assert [call.method for call in h.fake.calls] == ["POST"] * 3  # list, sync, list


def test_nothing_is_written_where_nothing_differs(h: Harness) -> None:
    client = h.fake.add_client()
    first = push(h, {"client_id": client, **ANA})
    rows(h, client)[own("email")]["value"] = EMAIL.upper()
    rows(h, client)[own("phone")]["value"] = "+52 (55) 1234-5678"
    h.fake.calls.clear()
    receipt = push(h, target_id=first.target_id)
    assert (receipt.outcome, receipt.accepted) == ("unchanged", ANA)
    assert len(h.fake.calls) == 1


def test_the_record_in_external_ids_cannot_be_mistaken(h: Harness) -> None:
    client = h.fake.add_client()
    push(h, {"client_id": client, "email": EMAIL}, key=RecordKey("a:b", "1:2/3"))
    assert rows(h, client).keys() == {"crm:a%3Ab:1%3A2%2F3:email"}


# --- which client ---


@pytest.mark.parametrize("name", ["email", "phone", "mobile"])
def test_an_exact_address_or_number_finds_the_client(h: Harness, name: str) -> None:
    value = EMAIL if name == "email" else PHONE
    client, other = h.fake.add_client(), h.fake.add_client()
    h.fake.add_method(client, type="email" if name == "email" else "phone", value=value)
    h.fake.add_method(other, type="fax" if name != "email" else "other", value=value)
    linked: list[str] = []
    assert push(h, {name: value, "metadata.a": 1}, link=linked.append).target_id == client
    assert linked == [client]


def test_two_clients_with_the_address_are_for_a_person_to_decide(h: Harness) -> None:
    for _ in range(2):
        h.fake.add_method(h.fake.add_client(), type="email", value=EMAIL)
    with pytest.raises(Ambiguous, match="2 clients"):
        push(h)
    assert items(h) == []


def test_an_address_here_and_a_number_there_are_ambiguous(h: Harness) -> None:
    h.fake.add_method(h.fake.add_client(), type="email", value=EMAIL)
    h.fake.add_method(h.fake.add_client(), type="mobile", value=PHONE)
    with pytest.raises(Ambiguous):
        push(h)
    assert items(h) == []


def test_values_are_compared_again_here() -> None:
    with Harness(value_match="insensitive", settings={"create_clients": False}) as h:
        client = h.fake.add_client()
        h.fake.add_method(client, type="email", value="Ana.Ruiz@Example.com")
        assert push(h).target_id == client
        assert rows(h, client).keys() == {"Ana.Ruiz@Example.com", own("phone")}


@pytest.mark.parametrize("key", ["", "crmId"])
def test_the_external_id_of_the_crm_finds_the_client(key: str) -> None:
    with Harness(settings={"create_clients": False, "client_metadata_key": key}) as h:
        client = h.fake.add_client(**({"metadata": {"crmId": "K-7"}} if key else {"externalId": "K-7"}))
        h.fake.add_client(externalId="K-77", metadata={"crmId": "K-77"})
        receipt = push(h, {"client_external_id": "K-7", **ANA})
        assert (receipt.target_id, receipt.accepted["client_external_id"]) == (client, "K-7")
        assert push(h, {"client_external_id": "K-8"}).outcome == "absent"


def test_an_external_id_is_not_outvoted_by_an_address(h: Harness) -> None:
    h.fake.add_method(h.fake.add_client(externalId="K-1"), type="email", value=EMAIL)
    with pytest.raises(Ambiguous, match="not the external id"):
        push(h, {"client_external_id": "K-7", **ANA})


def test_two_clients_with_the_external_id_are_ambiguous(h: Harness) -> None:
    for _ in range(2):
        h.fake.add_client(externalId="K-7")
    with pytest.raises(Ambiguous, match="external id"):
        push(h, {"client_external_id": "K-7"})


def test_without_a_list_of_clients_the_way_out_is_named() -> None:
    with Harness(clients_list=False) as h, pytest.raises(Permanent, match="client_metadata_key"):
        push(h, {"client_external_id": "K-7", **ANA})


def test_a_client_id_of_the_crm_that_is_unknown_is_said_to_be(h: Harness) -> None:
    with pytest.raises(Permanent, match="test environment has no client"):
        push(h, {"client_id": NOBODY, **ANA})


def test_the_crm_naming_another_client_stops_everything(h: Harness) -> None:
    client, other = h.fake.add_client(externalId="K-7"), h.fake.add_client(externalId="K-8")
    first = push(h, {"client_external_id": "K-7", **ANA})
    assert first.target_id == client
    for named in ({"client_external_id": "K-8"}, {"client_id": other}):
        with pytest.raises(Ambiguous, match="another Artu client"):
            push(h, {**ANA, **named}, target_id=client, accepted=first.accepted)
    assert rows(h, other) == {}
    # Once the old client is gone from Artu, the new one is taken.
    del h.register.clients[client]
    for method in h.register.of(client):
        del h.register.methods[method["id"]]
    receipt = push(h, {**ANA, "client_id": other}, target_id=client, accepted=first.accepted)
    assert (receipt.target_id, len(rows(h, other))) == (other, 2)


def test_an_external_id_that_no_client_has_any_more_stops_everything(h: Harness) -> None:
    client = h.fake.add_client(externalId="K-7")
    first = push(h, {"client_external_id": "K-7", **ANA})
    changed: dict[str, Value] = {"client_external_id": "K-9", "email": "new@example.com"}
    with pytest.raises(Permanent, match="no client in Artu has it"):
        push(h, changed, target_id=client, accepted=first.accepted)
    h.register.clients[client]["externalId"] = "K-9"
    assert push(h, changed, target_id=client, accepted=first.accepted).outcome == "updated"


def test_our_methods_at_another_client_stop_everything(h: Harness) -> None:
    stored, other = h.fake.add_client(), h.fake.add_client()
    h.fake.add_method(other, type="email", value=EMAIL, externalId=own("email"))
    for how in ({"target_id": stored}, {"fields": {"client_id": stored, **ANA}}):
        with pytest.raises(Ambiguous, match="belong to another client"):
            push(h, **how)
    assert items(h) == []


def test_our_methods_find_the_client_before_anything_else(h: Harness) -> None:
    mine, other = h.fake.add_client(), h.fake.add_client()
    h.fake.add_method(mine, type="email", value="old@example.com", externalId=own("email"))
    h.fake.add_method(other, type="email", value=EMAIL)
    receipt = push(h, {"email": EMAIL})
    assert receipt.target_id == mine
    assert rows(h, mine)[own("email")]["value"] == EMAIL


# --- creating clients ---


def test_clients_are_not_created_by_default(h: Harness) -> None:
    receipt = push(h, {"client_name": "Ana", **ANA})
    assert receipt.outcome == "absent"
    assert any("create_clients" in note for note in receipt.notes)
    assert h.count() == 0
    assert Settings(Secret("key"), "test").create_clients is False


def test_a_new_client_needs_a_name() -> None:
    with Harness() as h, pytest.raises(Permanent, match="client_name"):
        push(h)


@pytest.mark.parametrize("key", ["", "crmId"])
def test_a_new_client_can_be_found_again(key: str) -> None:
    with Harness(settings={"client_type": "trust", "client_metadata_key": key}) as h:
        names = {"client_name": "Ana", "client_middle_name": "María", "client_last_name": "Ruiz"}
        receipt = push(h, {**names, "client_external_id": "K-7", **ANA})
        [create] = [call for call in h.fake.made("POST") if call.path == "/clients"]
        assert create.json == {
            "type": "trust",
            "name": "Ana",
            "middleName": "María",
            "lastName": "Ruiz",
            "externalId": "K-7",
            "metadata": {"bridge": "crm:hub:84213", **({"crmId": "K-7"} if key else {})},
        }
        h.register.methods.clear()
        assert push(h, {**names, "client_external_id": "K-7", **ANA}).target_id == receipt.target_id
        assert h.count() == 1


def test_a_client_that_exists_after_all_is_taken() -> None:
    with Harness(client_external_id="unique") as h:
        client = h.fake.add_client(externalId="crm:hub:84213", metadata={"bridge": "crm:hub:84213"})
        h.fake.trouble(status=404, body={"code": "NOT_FOUND"}, method="GET", path="/clients/metadata")
        assert push(h, {"client_name": "Ana", **ANA}).target_id == client
        h.register.clients[client]["metadata"] = {}
        h.register.methods.clear()
        with pytest.raises(Permanent, match="says that this client exists"):
            push(h, {"client_name": "Ana", **ANA})


def test_a_client_of_unknown_fate_is_searched_for_and_created_only_when_settled() -> None:
    fields: dict[str, Value] = {"client_name": "Ana", **ANA}
    with Harness() as h:
        noted: list[int] = []
        h.fake.trouble(how="drop", method="POST", path="/clients")
        with pytest.raises(Retryable):
            h.target.deliver(h.api(before_create=lambda: noted.append(1)), job(fields))
        assert noted == [1]
        with pytest.raises(Retryable, match="searches again"):
            push(h, fields, unsure_since=utc_now(), settled=False)
        assert push(h, fields, unsure_since=utc_now(), settled=True).outcome == "created"
        assert h.count() == 1


@pytest.mark.parametrize("matching", ["external_id", "id_only"])
def test_a_sync_that_timed_out_adds_nothing_twice(matching: str) -> None:
    with Harness(matching=matching, settings={"create_clients": False}) as h:
        client = h.fake.add_client()
        h.fake.trouble(how="drop_after", path=SYNC)
        with pytest.raises(Retryable):
            push(h, {"client_id": client, **ANA})
        assert push(h, ANA, target_id=client).outcome == "unchanged"
        assert len(rows(h, client)) == len(h.register.methods) == 2


# --- methods that people entered ---


def test_a_method_of_the_staff_is_neither_changed_nor_repeated(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="phone", value=PHONE, label="assistant", isPrimary=True)
    before = dict(rows(h, client)[PHONE])
    receipt = push(h, {"client_id": client, "mobile": PHONE, "mobile.label": "mine", "email": EMAIL})
    assert receipt.accepted["mobile"] == PHONE
    assert receipt.accepted["mobile.label"] == "assistant"
    assert any(note.startswith("mobile: the client has it already") for note in receipt.notes)
    assert rows(h, client).keys() == {PHONE, own("email")}
    assert rows(h, client)[PHONE] == before
    # The CRM's number changes: the staff's stays, ours is added beside it.
    push(h, {"mobile": MOBILE}, target_id=client, accepted=receipt.accepted)
    assert rows(h, client)[PHONE] == before
    assert rows(h, client)[own("mobile")]["value"] == MOBILE


@pytest.mark.parametrize("taken", [True, False])
def test_a_new_method_is_primary_only_where_none_is(h: Harness, taken: bool) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="email", value="staff@example.com", isPrimary=taken)
    push(h, {"client_id": client, **ANA})
    assert rows(h, client)["staff@example.com"]["isPrimary"] is taken
    assert rows(h, client)[own("email")]["isPrimary"] is not taken
    assert rows(h, client)[own("phone")]["isPrimary"] is True


def test_metadata_needs_a_method_of_our_own(h: Harness) -> None:
    client = h.fake.add_client()
    receipt = push(h, {"client_id": client, "metadata.tier": "gold"})
    assert receipt.outcome == "unchanged"
    assert receipt.accepted["metadata.tier"] is None
    assert any(note.startswith("metadata: left out") for note in receipt.notes)
    receipt = push(h, {**ANA, "metadata.tier": "gold"}, target_id=client)
    assert receipt.notes == ()
    assert {row["metadata"]["tier"] for row in rows(h, client).values()} == {"gold"}


def test_if_blank_adds_no_second_method_of_a_type(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="email", value="staff@example.com")
    fields = {"client_id": client, **ANA}
    receipt = push(h, fields, modes={"email": Mode.IF_BLANK, "phone": Mode.IF_BLANK})
    assert rows(h, client).keys() == {"staff@example.com", own("phone")}
    assert receipt.accepted["email"] is None


def test_create_only_methods_are_not_added_later(h: Harness) -> None:
    client = h.fake.add_client()
    push(h, ANA, target_id=client, accepted={"email": EMAIL}, modes={"phone": Mode.CREATE_ONLY})
    assert rows(h, client).keys() == {own("email")}
    push(h, ANA, target_id=client, accepted=None, modes={"phone": Mode.CREATE_ONLY})
    assert rows(h, client).keys() == {own("email"), own("phone")}


# --- types ---


def test_one_number_in_two_fields_is_one_method(h: Harness) -> None:
    client = h.fake.add_client()
    receipt = push(h, {"client_id": client, "phone": PHONE, "mobile": PHONE})
    assert rows(h, client).keys() == {own("phone")}
    assert receipt.accepted["mobile"] == PHONE
    assert receipt.notes == ()


def test_the_type_of_a_number_is_configured_and_can_be_changed() -> None:
    with Harness(settings={"create_clients": False, "mobile_type": "phone", "phone_type": "mobile"}) as h:
        client = h.fake.add_client()
        h.fake.add_method(client, type="mobile", value="+525500001111", isPrimary=True)
        h.fake.add_method(client, type="phone", value="+525500002222", isPrimary=True, externalId=own("phone"))
        push(h, {"phone": "+525500002222", "mobile": MOBILE}, target_id=client)
        held = rows(h, client)
        assert (held[own("phone")]["type"], held[own("phone")]["isPrimary"]) == ("mobile", False)
        assert (held[own("mobile")]["type"], held[own("mobile")]["isPrimary"]) == ("phone", False)
        assert held["+525500001111"]["isPrimary"] is True


# --- clearing and removing ---


@pytest.mark.parametrize("unknown_delete", ["ignore", "404"])
def test_a_cleared_field_deletes_our_method_alone(unknown_delete: str) -> None:
    with Harness(unknown_delete=unknown_delete, settings={"create_clients": False}) as h:
        client = h.fake.add_client()
        h.fake.add_method(client, type="email", value="staff@example.com")
        first = push(h, {"client_id": client, **ANA})
        deleted = rows(h, client)[own("email")]["id"]
        receipt = push(h, {**ANA, "email": None}, target_id=client, accepted=first.accepted)
        assert rows(h, client).keys() == {"staff@example.com", own("phone")}
        assert receipt.accepted == {"email": None, "phone": PHONE}
        assert items(h)[-1] == {"id": deleted, "type": "email", "value": EMAIL, "_delete": True}
        assert push(h, {**ANA, "email": None}, target_id=client).outcome == "unchanged"


@pytest.mark.parametrize("metadata", ["replace", "merge"])
def test_cleared_metadata_is_blank_afterwards(metadata: str) -> None:
    with Harness(metadata=metadata, settings={"create_clients": False}) as h:
        client = h.fake.add_client()
        fields = {**ANA, "metadata.tier": "gold", "metadata.vip": "yes"}
        first = push(h, fields, target_id=client)
        cleared = {**fields, "metadata.tier": None, "metadata.vip": None}
        modes = {"metadata.vip": Mode.IF_BLANK}
        receipt = push(h, cleared, target_id=client, accepted=first.accepted, modes=modes)
        assert receipt.accepted["metadata.tier"] is None
        for row in rows(h, client).values():
            assert row["metadata"].get("tier", "") == ""
            assert row["metadata"]["vip"] == "yes"
        assert push(h, cleared, target_id=client, modes=modes).outcome == "unchanged"


def test_newer_state_stops_no_write_between_its_parts_and_its_proof() -> None:
    with Harness(metadata="merge") as h:
        first = push(h, {"client_name": "Ana", **ANA, "metadata.tier": "gold"})
        before = len(h.fake.made("POST", SYNC))

        def take() -> None:
            if len(h.fake.made("POST", SYNC)) > before:
                raise Superseded

        wanted: dict[str, Value] = {"client_name": "Ana", **ANA, "metadata.tier": None}
        later = job(wanted, accepted=first.accepted, target_id=first.target_id)
        h.target.deliver(h.api(take=take, turn=lambda: None), later)
        assert len(h.fake.made("POST", SYNC)) == before + 2
        assert not any(row["metadata"].get("tier") for row in h.register.of(str(first.target_id)))


def test_metadata_that_somebody_adds_meanwhile_is_no_failure() -> None:
    class Busy(FakeArtu):
        def _sync(self, client_id: str) -> Response:
            answered = super()._sync(client_id)
            for row in self.registers["test"].of(client_id):
                row["metadata"] = {**row["metadata"], "seen": "now"}
            return answered

    class BusyHarness(Harness):
        fake_type = Busy

    with BusyHarness(settings={"create_clients": False}) as h:
        client = h.fake.add_client()
        assert push(h, {"client_id": client, **ANA, "metadata.tier": "gold"}).outcome == "updated"
        assert push(h, {"client_id": client, **ANA, "metadata.tier": "gold"}).outcome == "unchanged"


def test_removing_leaves_the_client_and_all_other_methods(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="email", value="staff@example.com")
    push(h, {"client_id": client, **ANA})
    h.fake.add_method(client, type="email", value="other@example.com", externalId=own("email", "7"))
    for target_id, outcome in ((None, "removed"), (client, "removed"), (None, "absent")):
        assert h.target.remove(h.api(), job({}, target_id=target_id)).outcome == outcome
        assert rows(h, client).keys() == {"staff@example.com", own("email", "7")}
    assert h.count() == 1


def test_no_call_has_more_than_250_items(h: Harness) -> None:
    client = h.fake.add_client()
    for number in range(510):
        h.fake.add_method(client, type="other", value=str(number), externalId=own(f"other:{number}"))
    assert h.target.remove(h.api(), job({}, target_id=client)).outcome == "removed"
    assert [len(call.json["items"]) for call in h.fake.made("POST", SYNC)] == [250, 250, 10]
    assert rows(h, client) == {}


def test_a_removal_looks_again_when_something_is_gone_or_moved(h: Harness) -> None:
    client = h.fake.add_client()
    push(h, {"client_id": client, **ANA})
    h.fake.trouble(status=409, body={}, path=SYNC, times=2)
    with pytest.raises(Permanent, match="deleting contact methods"):
        h.target.remove(h.api(), job({}, target_id=client))
    for status in (404, 409):
        h.fake.trouble(status=status, body={}, path=SYNC)
        assert h.target.remove(h.api(), job({}, target_id=client)).outcome == "removed"
        assert rows(h, client) == {}
        push(h, {"client_id": client, **ANA})
    del h.register.clients[client]
    assert h.target.remove(h.api(), job({}, target_id=client)).outcome == "removed"


# --- opt-outs ---


def test_an_opted_out_person_gets_no_new_method(h: Harness) -> None:
    client = h.fake.add_client()
    first = push(h, {"client_id": client, "email": EMAIL})
    fields: dict[str, Value] = {"email": "new@example.com", "phone": PHONE}
    receipt = push(h, fields, target_id=client, accepted=first.accepted, opt_out=True)
    assert rows(h, client).keys() == {own("email")}
    assert receipt.accepted == {"email": "new@example.com", "phone": None}
    assert any(note.startswith("phone: not added") for note in receipt.notes)
    assert any("Artu has no opt-out" in note and "a rule can keep it" in note for note in receipt.notes)
    assert receipt.opted_out is False


def test_an_opt_out_travels_in_the_metadata_if_a_rule_says_so(h: Harness) -> None:
    client = h.fake.add_client()
    fields: dict[str, Value] = {"email": EMAIL, "metadata.optOut": True}
    first = push(h, {"client_id": client, "email": EMAIL})
    receipt = push(h, fields, target_id=client, accepted=first.accepted, opt_out=True)
    assert rows(h, client)[own("email")]["metadata"] == {"optOut": True}
    assert any("it is kept in metadata.optOut" in note for note in receipt.notes)
    # A rule that contradicts the opt-out lifts nothing; the person's own later "yes" does.
    contrary = {**fields, "metadata.optOut": False}
    receipt = push(h, contrary, target_id=client, accepted=first.accepted, opt_out=True)
    assert receipt.accepted["metadata.optOut"] is True
    push(h, contrary, target_id=client, accepted=first.accepted)
    assert rows(h, client)[own("email")]["metadata"] == {"optOut": False}


# --- records that were merged, and accidents ---


def test_a_record_that_absorbed_another_takes_over_its_methods(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="email", value="old@example.com", externalId=own("email", "7"), isPrimary=True)
    before = rows(h, client)[own("email", "7")]["id"]
    push(h, {"email": EMAIL}, target_id=client)
    row = rows(h, client)[own("email")]
    assert (row["id"], row["value"], row["isPrimary"]) == (before, EMAIL, True)
    assert len(rows(h, client)) == 1


def test_a_client_that_holds_methods_of_another_record_is_not_taken_over(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="email", value=EMAIL, externalId=own("email", "7"))
    linked: list[str] = []
    with pytest.raises(Ambiguous, match="another record of the same CRM"):
        push(h, link=linked.append)
    assert linked == []
    assert items(h) == []


def test_the_methods_of_another_source_are_not_ours(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="email", value="old@example.com", externalId="crm:other:84213:email")
    push(h, {"email": EMAIL}, target_id=client)
    assert rows(h, client).keys() == {"crm:other:84213:email", own("email")}


def test_what_an_accident_made_twice_is_put_right(h: Harness) -> None:
    client = h.fake.add_client()
    for primary in (False, True):
        h.fake.add_method(client, type="email", value=EMAIL, externalId=own("email"), isPrimary=primary)
    push(h, {"email": EMAIL}, target_id=client)
    assert [row["isPrimary"] for row in h.register.of(client)] == [True]


# --- answers that cannot be trusted ---


def test_a_conflict_is_tried_again_once(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.trouble(status=409, body={"code": "CONFLICT"}, path=SYNC)
    assert push(h, {"client_id": client, **ANA}).outcome == "updated"
    h.fake.trouble(status=409, body={"code": "CONFLICT"}, path=SYNC, times=2)
    with pytest.raises(Permanent, match=r"updating contact methods \(HTTP 409\): CONFLICT"):
        push(h, {"client_id": client, "email": "new@example.com"})


def test_a_client_that_is_gone_is_resolved_anew_once(h: Harness) -> None:
    old, new = h.fake.add_client(), h.fake.add_client()
    first = push(h, {"client_id": old, **ANA})
    for method in h.register.of(old):
        del h.register.methods[method["id"]]
    del h.register.clients[old]
    assert push(h, target_id=old, accepted=first.accepted).outcome == "absent"
    h.fake.add_method(new, type="email", value=EMAIL)
    receipt = push(h, target_id=old, accepted=first.accepted)
    assert receipt.target_id == new
    assert rows(h, new).keys() == {EMAIL, own("phone")}


def test_a_client_that_is_listed_but_unknown_is_not_tried_for_ever(h: Harness) -> None:
    client = h.fake.add_client()
    h.fake.add_method(client, type="email", value=EMAIL)
    h.fake.trouble(status=404, body={"code": "NOT_FOUND"}, path=SYNC, times=9)
    with pytest.raises(Retryable, match="does not know") as caught:
        push(h)
    assert caught.value.code == "missing"


def test_a_sync_that_was_answered_but_not_made_is_not_a_success(h: Harness) -> None:
    client = h.fake.add_client()
    empty: dict[str, list[Any]] = {"created": [], "updated": [], "deleted": []}
    h.fake.trouble(status=200, body=empty, path=SYNC)
    with pytest.raises(Permanent, match=r"does not take: email, phone\."):
        push(h, {"client_id": client, **ANA})
    push(h, {"client_id": client, **ANA})
    h.fake.trouble(status=200, body=empty, path=SYNC)
    with pytest.raises(Permanent, match="deletion of email"):
        push(h, {"email": None}, target_id=client)


def test_a_sync_that_does_not_show_yet_is_looked_at_again(h: Harness) -> None:
    client = h.fake.add_client()
    push(h, {"client_id": client, **ANA})
    row = {**rows(h, client)[own("email")], "value": "new@example.com"}
    h.fake.trouble(status=200, body={"updated": [row]}, path=SYNC)
    with pytest.raises(Retryable, match=r"not show the new contact methods yet: email\.") as caught:
        push(h, {"email": "new@example.com"}, target_id=client)
    assert caught.value.code == "unverified"


@pytest.mark.parametrize("body", [[], {"created": [{}]}, {"updated": ["x"]}])
def test_nonsense_in_answer_to_a_sync_is_an_error_of_ours(h: Harness, body: Any) -> None:
    client = h.fake.add_client()
    h.fake.trouble(status=200, body=body, path=SYNC)
    with pytest.raises(Retryable) as caught:
        push(h, {"client_id": client, **ANA})
    assert caught.value.code == "nonsense"


def test_all_pages_are_read() -> None:
    with Harness(page_cap=1, settings={"create_clients": False}) as h:
        for _ in range(2):
            h.fake.add_method(h.fake.add_client(), type="email", value=EMAIL)
        with pytest.raises(Ambiguous):
            push(h)


def test_a_list_without_a_way_to_its_next_page_is_no_list(h: Harness) -> None:
    h.fake.trouble(status=200, body={"data": [], "pagination": {"hasMore": True, "nextCursor": None}})
    with pytest.raises(Retryable) as caught:
        push(h)
    assert caught.value.code == "nonsense"


def test_a_list_without_an_end_holds_the_target(h: Harness) -> None:
    h.fake.trouble(status=200, body={"data": [], "pagination": {"hasMore": True, "nextCursor": "1"}}, times=99)
    with pytest.raises(Refused, match="filter"):
        push(h)


def test_a_client_found_by_metadata_is_compared_again() -> None:
    with Harness(settings={"client_metadata_key": "crmId", "create_clients": False}) as h:
        wrong = {"id": NOBODY, "metadata": {"crmId": "K-77"}}
        for body, outcome in ((wrong, None), ({"data": {**wrong, "metadata": {"crmId": "K-7"}}}, NOBODY)):
            h.fake.trouble(status=200, body=body, path="/clients/metadata")
            assert push(h, {"client_external_id": "K-7"}).target_id == outcome
        for status, error in ((503, Retryable), (200, Retryable), (403, Refused)):
            h.fake.trouble(status=status, body="{}", path="/clients/metadata")
            with pytest.raises(error):
                push(h, {"client_external_id": "K-7"})


# --- errors ---


@pytest.mark.parametrize("style", FakeArtu.SWITCHES["error_style"])
def test_an_error_of_any_shape_is_understood_and_repeats_no_value(style: str) -> None:
    with Harness(error_style=style, settings={"client_type": "Ana-Sofía"}) as h:
        with pytest.raises(Permanent, match="creating a client") as caught:
            push(h, {"client_name": "Ana-Sofía", **ANA})
        assert caught.value.status == 400
        assert "Ana-Sofía" not in str(caught.value)
        assert ("Request validation failed" in str(caught.value)) == (style in {"code", "nested", "message"})
        assert ("type: Invalid option" in str(caught.value)) == (style in {"code", "nested"})


def test_a_refused_item_is_named_by_its_place(h: Harness) -> None:
    client = h.fake.add_client()
    issue = {"path": ["items", 0, "value"], "message": f"{EMAIL} is blocked"}
    other = {"path": ["items", 1, "value"], "message": "Must be shorter"}
    body = {"code": "VALIDATION_ERROR", "message": "Request validation failed", "issues": [issue, other, None]}
    h.fake.trouble(status=422, body=body, path=SYNC)
    with pytest.raises(Permanent) as caught:
        push(h, {"client_id": client, **ANA})
    said = "VALIDATION_ERROR; Request validation failed; items.0.value; items.1.value: Must be shorter"
    assert str(caught.value) == f"Artu refused updating contact methods (HTTP 422): {said}."


def test_a_key_without_rights_in_the_environment_holds_the_target(h: Harness) -> None:
    h.fake.environments = ("live",)
    with pytest.raises(Refused, match="lacks permission: test:contact-methods:read"):
        h.target.check(h.api())


def test_a_wrong_base_holds_the_target(h: Harness) -> None:
    h.fake.trouble(status=404, body="<html>", path="/contact-methods/list")
    with pytest.raises(Refused, match="api_base"):
        push(h)


def test_the_check_writes_nothing_and_names_the_environment(h: Harness) -> None:
    assert "test environment" in h.target.check(h.api())
    assert [call.json for call in h.fake.calls] == [{"limit": 1}]


# --- the fake is as strict as the platform may be ---


class Wire:
    """The fake's API, called directly."""

    def __init__(self, h: Harness) -> None:
        self.h, self.url = h, h.api().base_url
        self.client = h.fake.add_client()

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        sent = {"Authorization": "Bearer artu-key", "X-Environment": "test", **headers}
        return requests.request(method, self.url + path, json=body, headers=sent, timeout=5)

    def sync(self, *items: Any, replace: bool = False) -> requests.Response:
        body = {"items": list(items), "replaceMode": replace}
        return self("POST", f"/clients/{self.client}{SYNC}", body)

    def values(self) -> set[str]:
        return {row["value"] for row in self.h.register.of(self.client)}


def test_the_fake_asks_for_both_headers(h: Harness) -> None:
    wire = Wire(h)
    path = "/contact-methods/list"
    assert wire("POST", path, {}, Authorization="Bearer no").status_code == 401
    assert wire("POST", path, {}, **{"X-Environment": "prod"}).status_code == 400
    assert wire("POST", path, {}, **{"X-Environment": "live"}).json()["data"] == []
    assert wire("DELETE", "/contact-methods/x").status_code == 404


GOOD = {"type": "email", "value": EMAIL}


@pytest.mark.parametrize(
    "items",
    [
        [GOOD] * 251,
        ["text"],
        [{"value": EMAIL}],
        [{"type": "telegram", "value": EMAIL}],
        [{"type": "email", "value": ""}],
        [{"type": "email", "value": 5}],
        [GOOD, {**GOOD, "metadata": "x"}],
        [GOOD, {**GOOD, "isPrimary": "yes"}],
    ],
)
def test_the_fake_takes_all_of_a_sync_or_nothing(h: Harness, items: list[Any]) -> None:
    wire = Wire(h)
    assert wire.sync(*items).status_code == 400
    assert wire.values() == set()


@pytest.mark.parametrize(("scope", "left"), [("all", {EMAIL}), ("listed_types", {EMAIL, PHONE})])
def test_the_fake_replaces_as_feared(scope: str, left: set[str]) -> None:
    with Harness(replace_scope=scope) as h:
        wire = Wire(h)
        wire.sync({**GOOD, "value": "old@example.com"}, {"type": "phone", "value": PHONE})
        assert wire.sync(GOOD, replace=True).status_code == 200
        assert wire.values() == left


@pytest.mark.parametrize(("omitted", "primary"), [("false", False), ("keep", True)])
def test_the_fake_may_reset_what_is_left_out(omitted: str, primary: bool) -> None:
    with Harness(omitted_isPrimary=omitted, sync_requires_type=False) as h:
        wire = Wire(h)
        [made] = wire.sync({**GOOD, "isPrimary": True}).json()["created"]
        [row] = wire.sync({"id": made["id"], "value": EMAIL}).json()["updated"]
        assert row["isPrimary"] is primary
        shown = wire("GET", f"/clients/{wire.client}/contact-methods/primary/email").json()
        assert (shown or {}).get("id") == (made["id"] if primary else None)


def test_the_fake_inserts_anew_where_only_ids_match() -> None:
    with Harness(matching="id_only") as h:
        wire = Wire(h)
        for _ in range(2):
            wire.sync({**GOOD, "externalId": "x"})
        assert len(h.register.of(wire.client)) == 2
        assert wire.sync({**GOOD, "id": NOBODY}).status_code == 404


def test_the_fake_upserts_by_external_id(h: Harness) -> None:
    wire = Wire(h)
    body = {**GOOD, "clientId": wire.client}
    actions = [wire("PUT", "/contact-methods/external/crm%3A1%2F2", body).json()["action"] for _ in range(2)]
    body["value"] = "new@example.com"
    assert [*actions, wire("PUT", "/contact-methods/external/crm%3A1%2F2", body).json()["action"]] == [
        "created",
        "skipped",
        "updated",
    ]
    body["clientId"] = h.fake.add_client()
    assert wire("PUT", "/contact-methods/external/crm%3A1%2F2", body).status_code == 409
    assert wire("PUT", "/contact-methods/external/x", {**GOOD, "clientId": NOBODY}).status_code == 404


@pytest.mark.parametrize("status", FakeArtu.SWITCHES["atomic_failure_status"])
def test_the_fake_takes_batches(status: int) -> None:
    with Harness(atomic_failure_status=status) as h:
        wire = Wire(h)
        good = {**GOOD, "clientId": wire.client, "externalId": "a"}
        path = "/contact-methods/batch/external"
        assert wire("PUT", path, {"items": [good, {}]}).status_code == status
        assert wire.values() == set()
        said = wire("PUT", path, {"items": [good, {}], "atomic": False}).json()
        assert [one["index"] for one in said["succeeded"]] == [0]
        assert [one["index"] for one in said["failed"]] == [1]
        assert wire("PUT", path, {"items": [good]}).json()["data"][0]["action"] == "skipped"
        assert wire("PUT", path, {"items": []}).status_code == 400


def test_the_fake_filters_and_refuses_what_it_does_not_know(h: Harness) -> None:
    wire = Wire(h)
    wire.sync({**GOOD, "metadata": {"a": "b"}}, {"type": "phone", "value": PHONE})
    narrowed = {"filter": {"metadataFilters": [{"key": "a", "value": "b"}]}, "includeTotalCount": True}
    said = wire("POST", "/contact-methods/list", narrowed).json()
    assert [row["value"] for row in said["data"]] == [EMAIL]
    assert said["pagination"] == {"hasMore": False, "nextCursor": None, "totalCount": 1}
    wrong: tuple[Any, ...] = ({"limit": 201}, {"filter": {"colour": "red"}}, [])
    for body in wrong:
        assert wire("POST", "/contact-methods/list", body).status_code == 400


@pytest.mark.parametrize(
    "body", [{"type": "dog", "name": "A"}, {"type": "trust"}, {"type": "trust", "name": "A", "metadata": []}]
)
def test_the_fake_refuses_half_a_client(h: Harness, body: Any) -> None:
    assert Wire(h)("POST", "/clients", body).status_code == 400


def test_the_fake_shows_a_client_in_plain_terms(h: Harness) -> None:
    client = h.fake.add_client(name="Ana")
    push(h, {"client_id": client, "email": EMAIL})
    method = {"type": "email", "value": EMAIL, "label": None, "primary": True}
    shown = {"id": client, "name": "Ana", "external id": None, "contact methods": [method]}
    assert h.fake.person(EMAIL) == h.fake.person(client) == shown
    assert h.fake.person("nobody") == {}
