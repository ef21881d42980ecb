"""Clerk Chat's own traps; what every platform keeps is in ``test_contract.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import requests
from flask import Response

from bridge.demo.fakes.clerk_chat import ClerkChat as FakeClerkChat
from bridge.errors import Ambiguous, Permanent, Refused, Retryable, Superseded
from bridge.model import Desired, Mode, Receipt, RecordKey, Secret, Value, utc_now
from bridge.outbound import Api
from bridge.targets.base import Job
from bridge.targets.clerk_chat import Settings
from tests.targets.harness_clerk_chat import Harness

PHONE, EMAIL = "+525512345678", "ana.ruiz@example.com"
ANA: dict[str, Value] = {"name": "Ana Ruiz", "phone": PHONE, "email": EMAIL, "data.tier": "gold"}


@pytest.fixture
def h() -> Iterator[Harness]:
    with Harness() as harness:
        yield harness


def job(fields: Mapping[str, Value] = ANA, **how: Any) -> Job:
    wishes = {name: how.pop(name) for name in ("opt_out", "modes", "create") if name in how}
    given = {"accepted": None, "target_id": None, "now": utc_now(), **how}
    return Job(given.pop("key", RecordKey("crm", "84213")), Desired(fields=dict(fields), **wishes), **given)


def push(h: Harness, fields: Mapping[str, Value] = ANA, **how: Any) -> Receipt:
    return h.target.deliver(h.api(), job(fields, **how))


def after(receipt: Receipt, **changes: Value) -> dict[str, Any]:
    """Return the arguments of the push that follows *receipt*, with some fields changed."""
    return {"fields": {**ANA, **changes}, "accepted": receipt.accepted, "target_id": receipt.target_id}


def newer_after(h: Harness, method: str) -> Api:
    """Return an API on which newer state stops every call after the first *method*, unless it finishes that."""

    def take() -> None:
        if h.fake.made(method):
            raise Superseded

    return h.api(take=take, turn=lambda: None)


def writes(h: Harness) -> list[str]:
    return [call.method for call in h.fake.calls if call.method != "GET"]


# --- what goes over the wire ---


def test_the_key_goes_into_its_own_header(h: Harness) -> None:
    push(h)
    assert all(call.headers["Apikey"] == h.fake.key for call in h.fake.calls)
    assert not any("Authorization" in call.headers for call in h.fake.calls)


def test_a_create_names_the_record_in_the_crm_and_nothing_that_cannot_be_written(h: Harness) -> None:
    push(h)
    [create] = h.fake.made("POST")
    assert create.json == {
        "name": "Ana Ruiz",
        "phone": PHONE,
        "email": EMAIL,
        "public": False,
        "data": {"tier": "gold", "crmId": "84213", "bridge": "crm"},
    }


@pytest.mark.parametrize("public", [True, False])
def test_new_contacts_are_as_visible_as_configured_and_stay_so(public: bool) -> None:
    with Harness(settings={"public": public}) as h:
        first = push(h)
        h.fake.contacts[str(first.target_id)]["public"] = not public
        push(h, **after(first, name="Ana R."))
        assert h.stored(PHONE) == {**(h.stored(PHONE) or {}), "public": not public, "name": "Ana R."}


@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize("mode", ["partial", "replace"])
def test_every_update_carries_the_whole_contact(mode: str, accepts: bool) -> None:
    with Harness(put_mode=mode, put_accepts_phone=accepts, unknown_fields="422") as h:
        found = h.fake.add(name="Old", phone=PHONE, email=EMAIL, public=True, data={"staff": {"note": [1]}})
        assert push(h, {"name": "Ana Ruiz", "phone": PHONE}).outcome == "updated"
        [put] = h.fake.made("PUT")
        whole = {"name": "Ana Ruiz", "email": EMAIL, "public": True}
        assert put.json == {
            **whole,
            **({"phone": PHONE} if accepts else {}),
            "data": {"staff": {"note": [1]}, "crmId": "84213", "bridge": "crm"},
        }
        assert h.fake.contacts[found]["phone"] == PHONE


def test_what_is_blank_anyway_is_left_out_of_an_update(h: Harness) -> None:
    h.fake.add(phone=PHONE)
    push(h, {"phone": PHONE, "data.tier": "gold"})
    [put] = h.fake.made("PUT")
    assert put.json.keys() == {"public", "data"}


def test_an_update_is_read_before_and_after(h: Harness) -> None:
    first = push(h)
    h.fake.calls.clear()
    push(h, **after(first, name="Ana R."))
    assert [call.method for call in h.fake.calls] == ["GET", "PUT", "GET"]


def test_nothing_is_written_where_nothing_differs(h: Harness) -> None:
    first = push(h)
    h.fake.calls.clear()
    assert push(h, **after(first)).outcome == "unchanged"
    assert [call.method for call in h.fake.calls] == ["GET"]


def test_spellings_that_mean_the_same_are_no_difference(h: Harness) -> None:
    h.fake.add(
        name="Ana  Ruiz ",
        phone="+52 (55) 1234-5678",
        email="Ana.Ruiz@Example.com",
        data={"tier": "gold", "visits": "7", "crmId": "84213", "bridge": "crm"},
    )
    h.fake.trouble(status=200, body={"data": list(h.fake.contacts.values())}, method="GET")
    receipt = push(h, {**ANA, "data.visits": 7})
    assert receipt.outcome == "unchanged"
    assert receipt.accepted == {**ANA, "data.visits": 7}


# --- finding ---


def test_the_phone_finds_first_and_the_email_after(h: Harness) -> None:
    found = h.fake.add(name="Ana", phone=PHONE, email="other@example.com")
    assert push(h).target_id == found
    assert h.stored(PHONE) == {**(h.stored(PHONE) or {}), "email": EMAIL}


def test_an_email_finds_a_contact_without_a_phone(h: Harness) -> None:
    found = h.fake.add(name="Ana", email="Ana.Ruiz@example.com")
    receipt = push(h, {"email": EMAIL, "name": "Ana Ruiz"})
    assert (receipt.target_id, receipt.outcome, h.count()) == (found, "updated", 1)


def test_two_contacts_with_the_number_are_for_a_person_to_decide(h: Harness) -> None:
    h.fake.add(phone=PHONE)
    h.fake.add(phone=PHONE)
    with pytest.raises(Ambiguous, match="2 contacts"):
        push(h)
    assert writes(h) == []


def test_the_stored_id_decides_between_contacts_with_one_number(h: Harness) -> None:
    h.fake.add(phone=PHONE)
    mine = h.fake.add(phone=PHONE)
    assert push(h, target_id=mine).target_id == mine
    assert "name" in h.fake.person(PHONE)
    assert [c["name"] for c in h.fake.contacts.values()] == [None, "Ana Ruiz"]


def test_an_email_with_another_phone_is_not_taken_for_the_person(h: Harness) -> None:
    h.fake.add(phone="+525599999999", email=EMAIL)
    with pytest.raises(Ambiguous, match="two people"):
        push(h)
    assert writes(h) == []


def test_a_number_that_only_contains_ours_is_somebody_else() -> None:
    with Harness(search="contains") as h:
        h.fake.add(phone=PHONE + "9", email="x" + EMAIL)
        assert push(h).outcome == "created"
        assert h.count() == 2


def test_a_contact_needs_a_phone_or_an_email(h: Harness) -> None:
    with pytest.raises(Permanent, match="phone number or an e-mail"):
        push(h, {"name": "Ana"})
    assert h.fake.calls == []


def test_a_linked_contact_that_is_not_found_is_neither_written_nor_made_again(h: Harness) -> None:
    first = push(h)
    h.fake.contacts.clear()
    before = writes(h)
    with pytest.raises(Retryable, match="deleted or changed there") as caught:
        push(h, **after(first, name="Ana R."))
    assert caught.value.code == "missing"
    assert writes(h) == before


def test_a_linked_contact_is_found_by_what_was_last_accepted() -> None:
    with Harness(put_accepts_phone=True) as h:
        first = push(h)
        receipt = push(h, **after(first, phone="+525500000001", email="new@example.com"))
        assert (receipt.outcome, receipt.target_id, h.count()) == ("updated", first.target_id, 1)
        assert h.fake.person("+525500000001")["email"] == "new@example.com"


def test_a_contact_deleted_between_read_and_write_is_resolved_anew_once(h: Harness) -> None:
    first = push(h)
    gone = h.fake.trouble(status=404, body="", method="PUT")
    assert push(h, **after(first, name="Ana R.")).outcome == "updated"
    gone.times = 2
    with pytest.raises(Retryable, match="does not know"):
        push(h, **after(first, name="Ana Ruiz"))


def test_a_contact_shown_in_part_is_not_written(h: Harness) -> None:
    whole = dict(h.fake.contacts[h.fake.add(phone=PHONE, email=EMAIL)])
    for part in ("data", "email", "public"):
        cut = {name: value for name, value in whole.items() if name != part}
        h.fake.trouble(status=200, body={"data": [cut]}, method="GET")
        with pytest.raises(Retryable) as caught:
            push(h)
        assert caught.value.code == "nonsense"
    assert writes(h) == []


# --- a search that does not do what its assumed parameters say ---

MISNAMED = {"phone_parameter": "number", "email_parameter": "mail"}


def test_a_search_that_lists_everybody_creates_nobody() -> None:
    with Harness(settings=MISNAMED, unknown_params="ignore") as h:
        found = h.fake.add(phone=PHONE, email=EMAIL)
        assert push(h).target_id == found  # an exact match is one, however it came about
        with pytest.raises(Refused, match="phone_parameter"):
            push(h, {"phone": "+525500000001"})
        with pytest.raises(Refused, match="phone_parameter"):
            h.target.check(h.api())
        assert h.count() == 1


def test_a_search_that_finds_nothing_is_noticed_at_the_first_create_and_makes_no_second() -> None:
    with Harness(settings=MISNAMED, unknown_params="empty") as h:
        links: list[str] = []
        with pytest.raises(Refused, match="just created") as caught:
            push(h, link=links.append)
        assert (caught.value.code, caught.value.tries) == ("unsearchable", 5)
        with pytest.raises(Retryable):
            push(h, target_id=links[0])
        assert h.count() == 1


def test_a_search_that_refuses_its_parameters_creates_nobody() -> None:
    with Harness(settings=MISNAMED, unknown_params="422") as h:
        with pytest.raises(Permanent, match=r"searching by phone number.*number should not exist"):
            push(h)
        assert h.count() == 0


def test_a_wrong_base_holds_the_target(h: Harness) -> None:
    h.fake.trouble(status=404, body={"message": "Cannot GET"}, method="GET")
    with pytest.raises(Refused, match="api_base"):
        push(h)


class Blind(FakeClerkChat):
    """Lists contacts when asked for all, and finds none when asked for one."""

    def _hit(self, contact: Mapping[str, Any], name: str, value: str) -> bool:
        return False


def test_the_check_looks_for_somebody_who_is_there() -> None:
    class BlindHarness(Harness):
        fake_type = Blind

    with BlindHarness() as h:
        assert "could not be tried" in h.target.check(h.api())
        h.fake.add(email=EMAIL)
        h.fake.add(phone=PHONE)
        with pytest.raises(Refused, match="does not find a contact that is there"):
            h.target.check(h.api())


def test_the_check_says_that_the_search_works(h: Harness) -> None:
    h.fake.add(phone=PHONE)
    assert "finds contacts by phone" in h.target.check(h.api())
    assert writes(h) == []


# --- creates of unknown fate ---


def test_a_create_is_noted_before_it_is_sent_and_linked_at_once(h: Harness) -> None:
    seen: list[str] = []
    api = h.api(before_create=lambda: seen.append(f"noted after {len(writes(h))} writes"))
    h.target.deliver(api, job(link=lambda target_id: seen.append(f"linked {target_id}")))
    assert seen == ["noted after 0 writes", f"linked {next(iter(h.fake.contacts))}"]
    seen.clear()
    h.target.deliver(
        api, job({**ANA, "name": "Ana R."}, link=lambda target_id: seen.append(f"linked {target_id}"))
    )
    assert seen == [f"linked {next(iter(h.fake.contacts))}"]


def test_a_create_that_never_happened_is_repeated_only_when_settled(h: Harness) -> None:
    h.fake.trouble(how="drop", method="POST")
    with pytest.raises(Retryable) as caught:
        push(h)
    assert caught.value.maybe_done
    for _ in range(2):
        with pytest.raises(Retryable, match="searches again"):
            push(h, unsure_since=utc_now(), settled=False)
    assert h.count() == 0
    assert push(h, unsure_since=utc_now(), settled=True).outcome == "created"
    assert h.count() == 1


def test_a_create_answered_with_an_error_of_the_server_is_of_unknown_fate_too(h: Harness) -> None:
    refused: list[None] = []
    h.fake.trouble(status=502, body="<html>", method="POST")
    with pytest.raises(Retryable):
        h.target.deliver(h.api(create_refused=lambda: refused.append(None)), job())
    assert refused == []


@pytest.mark.parametrize("found_later", [True, False])
def test_a_conflict_on_create_leads_to_a_search(found_later: bool) -> None:
    with Harness(duplicate_phone="409") as h:
        there = h.fake.add(phone=PHONE, email=EMAIL)
        # Both searches miss it, as an index that is late would.
        h.fake.trouble(status=200, body={"data": []}, method="GET", times=2 if found_later else 9)
        linked: list[str] = []
        if found_later:
            receipt = push(h, link=linked.append)
            assert (receipt.outcome, receipt.target_id, linked) == ("updated", there, [there])
        else:
            with pytest.raises(Permanent, match="says that this contact exists"):
                push(h, link=linked.append)
        assert h.count() == 1


def test_a_create_that_answers_with_the_contact_that_was_there_updates_it() -> None:
    with Harness(duplicate_phone="return_existing") as h:
        there = h.fake.add(name="A. R.", phone=PHONE, data={"staff": "note"}, optOut=True)
        h.fake.trouble(status=200, body={"data": []}, method="GET", times=2)
        receipt = push(h, {**ANA, "data.vip": "no"}, modes={"data.vip": Mode.CREATE_ONLY})
        assert (receipt.outcome, receipt.target_id, receipt.opted_out) == ("updated", there, True)
        marks = {"data.crmId": "84213", "data.bridge": "crm"}
        assert h.stored(PHONE) == {**ANA, **marks, "public": False, "data.staff": "note"}


# --- phone numbers that change ---


def test_a_changed_phone_is_reported_and_everything_else_is_written(h: Harness) -> None:
    first = push(h)
    with pytest.raises(Permanent, match="update_phone") as caught:
        push(h, **after(first, phone="+525500000001", name="Ana R."))
    assert caught.value.code == "phone_changed"
    assert h.count() == 1
    assert h.fake.person(PHONE)["name"] == "Ana R."
    # Somebody changes it by hand: then all is well.
    h.fake.contacts[str(first.target_id)]["phone"] = "+525500000001"
    assert push(h, **after(first, phone="+525500000001", name="Ana R.")).outcome == "unchanged"


def test_a_number_that_another_contact_has_is_not_given_to_a_second() -> None:
    with Harness(put_accepts_phone=True) as h:
        first = push(h)
        h.fake.add(phone="+525500000001")
        before = writes(h)
        with pytest.raises(Ambiguous, match="another contact"):
            push(h, **after(first, phone="+525500000001"))
        assert writes(h) == before


def test_update_phone_on_an_account_that_passes_over_it_is_not_mistaken_for_success() -> None:
    with Harness(settings={"update_phone": True}) as h:
        first = push(h)
        with pytest.raises(Permanent, match="does not take: phone"):
            push(h, **after(first, phone="+525500000001"))


def test_update_phone_on_an_account_that_refuses_it_says_which_field_it_was() -> None:
    with Harness(settings={"update_phone": True}, unknown_fields="422") as h:
        first = push(h)
        with pytest.raises(Permanent, match=r"updating the contact.*property phone should not exist"):
            push(h, **after(first, name="Ana R."))


def test_a_phone_that_an_update_dropped_is_put_back() -> None:
    settings = {"update_phone": False}
    with Harness(settings=settings, put_mode="replace", put_accepts_phone=True) as h:
        first = push(h)
        receipt = push(h, **after(first, name="Ana R."))
        assert h.fake.person(PHONE)["name"] == "Ana R."
        assert any("set update_phone" in note for note in receipt.notes)


# --- data ---


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_a_cleared_key_is_blank_afterwards(mode: str) -> None:
    with Harness(data_mode=mode) as h:
        first = push(h)
        receipt = push(h, **after(first, **{"data.tier": None}))
        assert receipt.accepted["data.tier"] is None
        assert (h.stored(PHONE) or {}).get("data.tier", "") == ""
        assert push(h, **after(receipt, **{"data.tier": None})).outcome == "unchanged"


def test_a_key_that_somebody_adds_meanwhile_is_no_failure() -> None:
    class Busy(FakeClerkChat):
        def _update(self, contact_id: str) -> Response:
            answered = super()._update(contact_id)
            self.contacts[contact_id]["data"]["lastSeen"] = "now"
            return answered

    class BusyHarness(Harness):
        fake_type = Busy

    with BusyHarness() as h:
        first = push(h)
        assert push(h, **after(first, **{"data.tier": "platinum"})).outcome == "updated"
        assert h.fake.person(PHONE)["data.lastSeen"] == "now"


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="api_key: it is empty"):
        Settings(Secret(""))
    with pytest.raises(ValueError, match="email_parameter: it is empty"):
        Settings(Secret("key"), email_parameter=" ")


def test_a_base_field_is_never_cleared(h: Harness) -> None:
    first = push(h)
    receipt = push(h, **after(first, name=None, email=None))
    assert receipt.outcome == "unchanged"
    assert len(receipt.notes) == 2
    assert h.fake.person(PHONE)["email"] == EMAIL


@pytest.mark.parametrize(
    ("there", "fields", "kept"),
    [
        ({}, {}, {"crmId": "84213", "bridge": "crm"}),
        ({"crmId": "7", "bridge": "other"}, {}, {"crmId": "7", "bridge": "other"}),
        ({"crmId": "7"}, {}, {"crmId": "7"}),
        ({"crmId": "7", "bridge": "crm"}, {}, {"crmId": "84213", "bridge": "crm"}),
        ({"crmId": "7", "bridge": "crm"}, {"data.crmId": "X7"}, {"crmId": "X7", "bridge": "crm"}),
    ],
)
def test_the_mark_of_another_source_or_of_a_person_is_left_alone(
    h: Harness, there: dict[str, str], fields: dict[str, Value], kept: dict[str, str]
) -> None:
    found = h.fake.add(phone=PHONE, data=dict(there))
    for _ in range(2):
        receipt = push(h, {"phone": PHONE, **fields})
    assert receipt.outcome == "unchanged"
    assert h.fake.contacts[found]["data"] == kept


# --- opt-outs ---


def test_an_opt_out_is_noted_in_the_data_and_asks_for_a_person(h: Harness) -> None:
    first = push(h)
    receipt = push(h, **after(first), opt_out=True)
    assert h.fake.person(PHONE)["data.crmOptOut"] is True
    assert not receipt.opted_out
    assert any("somebody has to block" in note for note in receipt.notes)
    # Somebody did; and a later "yes" takes nothing back here.
    h.fake.block(str(first.target_id))
    assert push(h, **after(first), opt_out=True).notes == ()
    receipt = push(h, **after(first, **{"data.crmOptOut": False}))
    assert receipt.opted_out
    assert h.fake.person(PHONE)["data.crmOptOut"] is True
    assert any("never takes an opt-out back" in note for note in receipt.notes)


def test_an_opt_out_is_told_even_when_the_phone_differs(h: Harness) -> None:
    first = push(h)
    h.fake.block(str(first.target_id))
    receipt = push(h, **after(first, phone="+525500000001"))
    assert receipt.opted_out
    assert any("update_phone" in note for note in receipt.notes)


class Forgetful(FakeClerkChat):
    """An update resets the opt-out, since nobody can send it."""

    def _update(self, contact_id: str) -> Response:
        self.contacts[contact_id]["optOut"] = False
        return super()._update(contact_id)


def test_an_opt_out_that_an_update_lost_is_an_alarm() -> None:
    class ForgetfulHarness(Harness):
        fake_type = Forgetful

    with ForgetfulHarness() as h:
        first = push(h)
        h.fake.block(str(first.target_id))
        with pytest.raises(Permanent, match="Block the contact there by hand now") as caught:
            push(h, **after(first, name="Ana R."))
        assert caught.value.code == "opt_out_lost"


def test_newer_state_between_a_write_and_its_proof_hides_no_lost_opt_out() -> None:
    class ForgetfulHarness(Harness):
        fake_type = Forgetful

    with ForgetfulHarness() as h:
        first = push(h)
        h.fake.block(str(first.target_id))
        with pytest.raises(Permanent) as caught:
            h.target.deliver(newer_after(h, "PUT"), job(**after(first, name="Ana R.")))
        assert caught.value.code == "opt_out_lost"


def test_newer_state_stops_neither_the_repair_of_an_update_nor_the_proof_of_a_create() -> None:
    with Harness(settings={"update_phone": False}, put_mode="replace", put_accepts_phone=True) as h:
        first = push(h)
        h.target.deliver(newer_after(h, "PUT"), job(**after(first, name="Ana R.")))
        assert h.fake.person(PHONE)["name"] == "Ana R."
    with Harness(data_mode="merge") as h:
        first = h.target.deliver(newer_after(h, "POST"), job())
        h.target.deliver(newer_after(h, "PUT"), job(**after(first, **{"data.tier": None})))
        assert (h.stored(PHONE) or {}).get("data.tier", "") == ""


# --- updates that do not take ---


def test_an_update_that_was_answered_but_not_made_is_not_a_success(h: Harness) -> None:
    first = push(h)
    old = dict(h.fake.contacts[str(first.target_id)])
    h.fake.trouble(status=200, body={"data": old}, method="PUT")
    with pytest.raises(Permanent, match=r"does not take: name\.$"):
        push(h, **after(first, name="Ana R."))


def test_an_update_that_does_not_show_yet_is_looked_at_again(h: Harness) -> None:
    first = push(h)
    new = {**h.fake.contacts[str(first.target_id)], "name": "Ana R."}
    for body in ({"data": new}, {}):
        h.fake.trouble(status=200, body=body, method="PUT")
        with pytest.raises(Retryable, match=r"yet: name\.") as caught:
            push(h, **after(first, name="Ana R."))
        assert caught.value.code == "unverified"


def test_an_update_after_which_the_contact_cannot_be_read_is_looked_at_again(h: Harness) -> None:
    first = push(h)
    h.fake.trouble(how="drop_after", method="PUT")
    with pytest.raises(Retryable):
        push(h, **after(first, name="Ana R."))
    assert push(h, **after(first, name="Ana R.")).outcome == "unchanged"

    class Vanishing(FakeClerkChat):
        def _update(self, contact_id: str) -> Response:
            answered = super()._update(contact_id)
            self.contacts.clear()
            return answered

    class VanishingHarness(Harness):
        fake_type = Vanishing

    with VanishingHarness() as vanishing:
        receipt = push(vanishing)
        with pytest.raises(Retryable, match="does not show the contact after"):
            push(vanishing, **after(receipt, name="Ana R."))


# --- errors ---


@pytest.mark.parametrize("style", FakeClerkChat.SWITCHES["error_style"])
def test_an_error_of_any_shape_is_understood_and_repeats_no_value(style: str) -> None:
    with Harness(error_style=style) as h:
        with pytest.raises(Permanent) as caught:
            push(h, {"phone": "+12", "name": "Ana Ruiz"})
        assert caught.value.status == 422
        assert "+12" not in str(caught.value)
        assert ("Unprocessable" in str(caught.value) or "UNPROCESSABLE" in str(caught.value)) == (
            style in {"nest", "nest_list", "error_object", "code"}
        )


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_holds_the_target(h: Harness, status: int) -> None:
    h.fake.trouble(status=status, body={"message": ["Forbidden resource"]})
    with pytest.raises(Refused, match="Forbidden resource"):
        push(h)


def test_a_wrong_key_is_refused_by_the_fake() -> None:
    with Harness() as h:
        h.fake.key = "another"
        with pytest.raises(Refused, match="Invalid API key"):
            push(h)


def test_nothing_can_be_removed(h: Harness) -> None:
    with pytest.raises(Permanent, match="has to delete"):
        h.target.remove(h.api(), job())


# --- the fake is as strict as the platform may be ---


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"phone": 525512345678}, 422),
        ({"phone": "5512345678"}, 422),
        ({"email": "nobody"}, 422),
        ({"name": None}, 422),
        ({"public": "yes"}, 422),
        ({"data": []}, 422),
        ([], 422),
        ({"phone": PHONE, "externalId": "7", "optOut": True}, 201),
    ],
)
def test_the_fake_refuses_wrong_types_and_writes_nothing_unwritable(h: Harness, body: Any, status: int) -> None:
    url, headers = h.api().base_url, {"apiKey": h.fake.key}
    answer = requests.post(f"{url}/public/contacts", json=body, headers=headers, timeout=5)
    assert answer.status_code == status
    assert all(c["externalId"] is None and c["optOut"] is False for c in h.fake.contacts.values())


def test_the_fake_knows_no_reading_by_id(h: Harness) -> None:
    found = h.fake.add(phone=PHONE)
    url, headers = h.api().base_url, {"apiKey": h.fake.key}
    assert requests.get(f"{url}/public/contacts/{found}", headers=headers, timeout=5).status_code == 405


@pytest.mark.parametrize(("mode", "status", "made"), [("all", 422, 0), ("partial", 201, 1)])
def test_the_fake_takes_batches(mode: str, status: int, made: int) -> None:
    with Harness(batch_failure=mode) as h:
        url, headers = f"{h.api().base_url}/public/contacts/batch", {"apiKey": h.fake.key}
        body = {"contacts": [{"phone": PHONE}, {"phone": 5}]}
        assert requests.post(url, json=body, headers=headers, timeout=5).status_code == status
        assert h.count() == made
        assert requests.post(url, json={}, headers=headers, timeout=5).status_code == 422


def test_the_fake_shows_a_person_in_plain_terms(h: Harness) -> None:
    push(h)
    shown = h.fake.person(PHONE)
    assert (shown["name"], shown["opted out"], shown["data.tier"]) == ("Ana Ruiz", False, "gold")
    assert h.fake.person("+10000000000") == {}
