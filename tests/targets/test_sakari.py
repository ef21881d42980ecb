"""What is Sakari's alone: tokens, part-number search, PUT that replaces, and opt-outs that must survive it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.demo.fakes import sakari as fakes
from bridge.demo.fakes.base import Call
from bridge.errors import Ambiguous, DeliveryFailed, Permanent, Refused, Retryable
from bridge.model import Desired, Mode, RecordKey, Secret, Value, utc_now
from bridge.targets.base import Job
from bridge.targets.sakari import Settings
from tests.targets.harness_sakari import Harness

SWITCHES = [{}, *({name: value} for name, values in Harness.switches.items() for value in values[1:])]
MOBILE = "+525512340001"
CONTACTS = "demo-account/contacts"  # the list; "/contacts" alone would also be that of the attributes


@pytest.fixture
def h() -> Iterator[Harness]:
    with Harness() as opened:
        yield opened


@pytest.fixture(params=SWITCHES, ids=lambda switches: json.dumps(switches))
def each(request: pytest.FixtureRequest) -> Iterator[Harness]:
    with Harness(**request.param) as opened:
        yield opened


def job(fields: dict[str, Value], **how: Any) -> Job:
    desired = Desired(
        fields,
        modes=how.pop("modes", {}),
        opt_out=how.pop("opt_out", False),
        create=how.pop("create", True),
        gone=how.pop("gone", False),
    )
    return replace(Job(RecordKey("crm", "84001"), desired, None, None, utc_now()), **how)


def puts(h: Harness) -> list[Call]:
    return h.fake.made("PUT", "/contacts/")


def token_calls(h: Harness) -> int:
    return len(h.fake.made("POST", "/oauth2/token"))


def nulls(value: Any) -> Iterator[Any]:
    """Yield every null inside *value*."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from nulls(inner)
    elif value is None:
        yield value


# --- tokens ------------------------------------------------------------------------------------------------------


def test_a_token_is_used_until_a_minute_before_its_end(h: Harness) -> None:
    h.fake.token_life_s = 600
    h.target.check(h.api())
    h.fake.advance(530)
    h.target.check(h.api())
    assert token_calls(h) == 1
    h.fake.advance(15)
    h.target.check(h.api())
    assert token_calls(h) == 2
    assert not [call for call in h.fake.calls if call.headers.get("Authorization") == ""]


def test_a_token_that_says_nothing_of_its_end_lives_for_an_hour(h: Harness) -> None:
    h.fake.readable_tokens = False
    h.target.check(h.api())
    h.fake.advance(3500)
    h.target.check(h.api())
    assert token_calls(h) == 1
    h.fake.advance(45)
    h.target.check(h.api())
    assert token_calls(h) == 2


def test_a_stated_life_counts_where_the_token_cannot_be_read() -> None:
    with Harness(expires_in="present") as h:
        h.fake.readable_tokens = False
        h.fake.token_life_s = 120
        h.target.check(h.api())
        h.fake.advance(61)
        h.target.check(h.api())
        assert token_calls(h) == 2


@pytest.mark.parametrize(
    "token",
    [
        "no-jwt",
        "a.b.c",
        "a.bm90IGpzb24.c",  # no JSON
        "a.W10.c",  # a list
        "a.eyJleHAiOiAic29vbiJ9.c",  # exp is a word
        "a.eyJleHAiOiB0cnVlfQ.c",  # exp is true
        "a.eyJleHAiOiBOYU59.c",  # exp is NaN
    ],
)
def test_odd_tokens_are_used_all_the_same(h: Harness, token: str) -> None:
    h.fake.trouble(status=200, body={"access_token": token, "token_type": "Bearer"}, path="/oauth2/token")
    with pytest.raises(Refused):  # the fake has not given it out, and then gives out one that is dropped
        h.fake.trouble(status=401, path="/v1/", times=2)
        h.target.check(h.api())
    assert h.fake.made("GET")[0].headers["Authorization"] == f"Bearer {token}"
    h.target.check(h.api())


def test_a_token_that_ends_too_soon_is_used_for_one_call_each(h: Harness) -> None:
    h.fake.token_life_s = 30
    h.target.check(h.api())
    h.target.check(h.api())
    assert token_calls(h) == 2


def test_a_refused_token_is_replaced_once(h: Harness) -> None:
    h.target.check(h.api())
    h.fake.revoke_tokens()
    h.target.check(h.api())
    assert token_calls(h) == 2


def test_tokens_that_are_always_refused_hold_the_target(h: Harness) -> None:
    h.fake.trouble(status=401, path="/v1/", times=99)
    with pytest.raises(Refused) as caught:
        h.target.check(h.api())
    assert caught.value.status == 401
    assert token_calls(h) == 2
    assert len(h.fake.made("GET")) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_wrong_credentials_hold_the_target(h: Harness, status: int) -> None:
    h.fake.trouble(status=status, path="/oauth2/token")
    with pytest.raises(Refused) as caught:
        h.target.deliver(h.api(), job(h.person(1)))
    assert caught.value.status == status


@pytest.mark.parametrize("body", [{"error": "invalid_client"}, {"success": False}])
def test_credentials_refused_inside_a_success_hold_the_target(h: Harness, body: dict[str, Any]) -> None:
    h.fake.trouble(status=200, body=body, path="/oauth2/token")
    with pytest.raises(Refused):
        h.target.check(h.api())


@pytest.mark.parametrize("token", [None, "", 7, "two words", "líne"])
def test_an_answer_without_a_token_is_nonsense(h: Harness, token: object) -> None:
    h.fake.trouble(status=200, body={"access_token": token}, path="/oauth2/token")
    with pytest.raises(Retryable) as caught:
        h.target.check(h.api())
    assert caught.value.code == "nonsense"


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_trouble_with_the_token_is_waited_for(h: Harness, status: int) -> None:
    h.fake.trouble(status=status, path="/oauth2/token")
    with pytest.raises(Retryable) as caught:
        h.target.check(h.api())
    assert not isinstance(caught.value, Refused)
    h.target.check(h.api())


def at_once(*actions: Callable[[], object]) -> None:
    """Do all *actions* at the same time, each in its thread."""
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], object]) -> None:
        barrier.wait(10)
        action()

    with ThreadPoolExecutor(len(actions)) as pool:
        for done in [pool.submit(act, action) for action in actions]:
            done.result()


def check_alone(h: Harness) -> None:
    """Check with a session of its own, as each thread has."""
    api = h.fresh_api()
    try:
        h.target.check(api)
    finally:
        api.session.close()


def test_threads_share_one_token(h: Harness) -> None:
    at_once(*[lambda: check_alone(h)] * 8)
    assert token_calls(h) == 1


def test_threads_replace_a_refused_token_once(h: Harness) -> None:
    check_alone(h)
    h.fake.revoke_tokens()
    at_once(*[lambda: check_alone(h)] * 8)
    assert token_calls(h) == 2


def test_token_calls_count_against_the_quota_and_keep_no_secret(h: Harness) -> None:
    turns: list[int] = []
    api = h.api(take=lambda: turns.append(1))
    h.target.deliver(api, job(h.person(1)))
    assert len(turns) == len(h.fake.calls) == len(api.exchanges)
    kept = repr(api.exchanges)
    assert h.fake.client_secret not in kept
    assert "access_token" not in kept
    assert h.fake.made("GET")[0].headers["Authorization"].removeprefix("Bearer ") not in kept


# --- errors ------------------------------------------------------------------------------------------------------


def envelope(code: str) -> dict[str, Any]:
    return {"success": False, "error": {"code": code, "message": "Something"}}


@pytest.mark.parametrize("status", [200, 400, 402, 403, 422, 500])
@pytest.mark.parametrize(
    "code", ["ACCT-001", "ACCT-006", "ACCT-008", "ACCT-010", "ACCT-016", "ACCT-017", "ACCT-099"]
)
def test_trouble_of_the_account_holds_the_target(h: Harness, status: int, code: str) -> None:
    h.fake.trouble(status=status, body=envelope(code), path=CONTACTS)
    with pytest.raises(Refused) as caught:
        h.target.deliver(h.api(), job(h.person(1)))
    assert code in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "CONT-001", Permanent),
        (422, "CONT-001", Permanent),
        (200, "CONT-001", Permanent),
        (400, "CONT-077", Permanent),
        (200, "CONT-077", Permanent),
        (409, "CONT-077", Ambiguous),
        (200, "INT-001", Retryable),
        (200, "nonsense", Retryable),
        (500, "CONT-001", Retryable),
        (400, "", Permanent),
        (401, "", Refused),
        (403, "", Refused),
        (404, "", Refused),
        (429, "CONT-001", Retryable),
    ],
)
def test_what_the_answer_to_a_create_means(h: Harness, status: int, code: str, kind: type[DeliveryFailed]) -> None:
    h.fake.trouble(status=status, body=envelope(code), method="POST", path=CONTACTS, times=2)
    with pytest.raises(kind) as caught:
        h.target.deliver(h.api(), job(h.person(1)))
    assert isinstance(caught.value, Refused) == (kind is Refused)
    assert isinstance(caught.value, Ambiguous) == (kind is Ambiguous)
    assert h.count() == 0


def test_a_redirect_is_not_followed(h: Harness) -> None:
    h.fake.trouble(status=302, headers={"Location": "http://127.0.0.1:1/"}, path=CONTACTS)
    with pytest.raises(Refused) as caught:
        h.target.deliver(h.api(), job(h.person(1)))
    assert caught.value.code == "redirect"


# --- finding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pagination", ["hasNext", "totalCount"])
def test_every_page_of_similar_numbers_is_read_and_only_the_exact_one_counts(pagination: str) -> None:
    with Harness(pagination=pagination) as h:
        for n in range(230):
            h.fake.add(f"{MOBILE}{n:03d}"[:16], country="MX")
        wanted = h.fake.add(MOBILE, firstName="Old")
        receipt = h.target.deliver(h.api(), job({"mobile": MOBILE, "firstName": "New"}))
        assert receipt.target_id == wanted
        assert len(h.fake.made("GET", "mobile=")) == 3


def test_nobody_is_taken_for_somebody_with_a_longer_number(each: Harness) -> None:
    other = each.fake.add(f"{MOBILE}9", firstName="Other")
    receipt = each.target.deliver(each.api(), job({"mobile": MOBILE, "firstName": "New"}))
    assert receipt.outcome == "created"
    assert receipt.target_id != other
    assert each.fake.contacts[other]["firstName"] == "Other"


def test_two_contacts_with_the_number_are_left_to_a_person(each: Harness) -> None:
    each.fake.add(MOBILE)
    each.fake.add(MOBILE)
    with pytest.raises(Ambiguous):
        each.target.deliver(each.api(), job({"mobile": MOBILE, "firstName": "New"}))
    assert not puts(each)
    assert not each.fake.made("POST", "/contacts")


@pytest.mark.parametrize("mobile_filter", ["digits", "needs_plus"])
def test_a_number_is_found_whether_the_filter_wants_the_plus_or_not(mobile_filter: str) -> None:
    with Harness(mobile_filter=mobile_filter) as h:
        wanted = h.fake.add(MOBILE)
        receipt = h.target.deliver(h.api(), job({"mobile": MOBILE, "firstName": "New"}))
        assert receipt.target_id == wanted
        assert h.fake.made("GET", "mobile=")[0].path.startswith("/v1/")
        assert "mobile=525512340001" in h.fake.made("GET", "mobile=")[0].path


def test_once_digits_were_found_the_plus_is_not_tried_any_more(h: Harness) -> None:
    h.target.deliver(h.api(), job(h.person(1)))
    assert len(h.fake.made("GET", "mobile=")) == 2
    h.target.deliver(h.api(), job(h.person(1)))
    h.target.deliver(h.api(), job(h.person(2)))
    assert len(h.fake.made("GET", "mobile=")) == 4


@pytest.mark.parametrize("number", ["+52 55 1234 0001", "(55) 1234-0001", "5512340001", "525512340001"])
def test_numbers_are_compared_however_they_are_written(h: Harness, number: str) -> None:
    wanted = h.fake.add(MOBILE)
    row = {"id": wanted, "mobile": {"country": "MX", "number": number}}
    h.fake.trouble(status=200, body={"success": True, "data": [row]}, method="GET", path=CONTACTS)
    assert h.target.deliver(h.api(), job({"mobile": MOBILE})).target_id == wanted


@pytest.mark.parametrize(
    "mobile", [None, {}, {"number": None}, {"number": "12"}, {"number": "x", "country": "MX"}]
)
def test_rows_without_a_number_are_passed_over(h: Harness, mobile: object) -> None:
    row = {"id": "c-odd", "mobile": mobile}
    h.fake.trouble(status=200, body={"success": True, "data": [row, "odd"]}, method="GET", path=CONTACTS)
    assert h.target.deliver(h.api(), job({"mobile": MOBILE})).outcome == "created"


def test_a_page_that_was_thinned_out_is_not_the_end(h: Harness) -> None:
    wanted = h.fake.add(MOBILE)
    empty = {"success": True, "pagination": {"hasNext": True}, "data": []}
    h.fake.trouble(status=200, body=empty, method="GET", path=CONTACTS)
    row = {"id": wanted, "mobile": {"country": "MX", "number": MOBILE}}
    h.fake.trouble(status=200, body={"success": True, "data": [row]}, method="GET", path=CONTACTS)
    assert h.target.deliver(h.api(), job({"mobile": MOBILE})).target_id == wanted
    assert "offset=100" in h.fake.made("GET", "mobile=")[1].path


@pytest.mark.parametrize("rows", [[{"id": "c-1"}], []])
def test_a_list_without_an_end_is_nonsense(h: Harness, rows: list[Any]) -> None:
    body = {"success": True, "pagination": {"hasNext": True}, "data": rows}
    h.fake.trouble(status=200, body=body, method="GET", path=CONTACTS, times=999)
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), job({"mobile": MOBILE}))
    assert caught.value.code == "nonsense"


def test_without_a_number_nobody_is_sought(h: Harness) -> None:
    with pytest.raises(Permanent):
        h.target.deliver(h.api(), job({"firstName": "Ana"}))
    assert not h.fake.made("GET", "/contacts")


# --- creating ----------------------------------------------------------------------------------------------------


def test_a_create_says_how_to_merge_and_opts_nobody_in(each: Harness) -> None:
    each.target.deliver(each.api(), job(each.person(1)))
    (call,) = each.fake.made("POST", "/contacts")
    assert call.path.endswith("/contacts?mergeStrategy=append")
    assert call.json["mobile"] == {"country": "MX", "number": MOBILE}
    assert call.json["lists"] == [{"id": "l-clients"}]
    assert not {"optIn", "blocked"} & set(call.json)
    assert not list(nulls(call.json))


@pytest.mark.parametrize(
    ("number", "country"),
    [("+14155550101", "US"), ("+442071838750", "GB"), ("+16135550101", "CA"), ("+15005550001", "US")],
)
def test_the_country_is_that_of_the_number(h: Harness, number: str, country: str) -> None:
    h.target.deliver(h.api(), job({"mobile": number}))
    assert h.fake.made("POST", "/contacts")[0].json["mobile"] == {"country": country, "number": number}


@pytest.mark.parametrize("number", ["+80012345678", "+999123456789", "12"])
def test_a_number_of_no_country_is_not_sent(h: Harness, number: str) -> None:
    with pytest.raises(Permanent):
        h.target.deliver(h.api(), job({"mobile": number}))
    assert not h.fake.made("POST", "/contacts")


def test_the_link_is_remembered_as_soon_as_the_id_is_known(each: Harness) -> None:
    seen: list[tuple[str, int]] = []
    receipt = each.target.deliver(
        each.api(), job(each.person(1), link=lambda found: seen.append((found, len(each.fake.calls))))
    )
    ((linked, calls),) = seen
    assert linked == receipt.target_id
    assert each.fake.calls[calls - 1].method == "POST"


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"id": None},
        [{"id": "c-other", "mobile": {"country": "MX", "number": "+525512349999"}}],
        {"submitted": 1, "contacts": []},
        None,
        "c-1",
    ],
)
def test_an_answer_that_does_not_show_the_contact_leads_to_a_search(h: Harness, data: object) -> None:
    h.fake.trouble(status=201, body={"success": True, "data": data}, method="POST", path=CONTACTS)
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), job(h.person(1)))
    assert caught.value.code == "unsure"
    h.fake.add(MOBILE)  # it comes to light only now
    assert h.target.deliver(h.api(), job(h.person(1), unsure_since=utc_now(), settled=False)).outcome == "updated"
    assert h.count() == 1


@pytest.mark.parametrize(
    "body",
    [
        {"success": True, "data": {"contacts": [], "errors": [{"error": {"code": "CONT-001"}}]}},
        {"success": True, "data": {"contacts": [{"id": "c-1"}], "errors": [{"code": "CONT-001"}]}},
        {"success": True, "data": [], "errors": ["bad row"]},
        {"success": True, "data": {"errors": {"row": 1}}},
        {"success": True, "data": [{"mobile": {"number": MOBILE}, "error": {"code": "CONT-001"}}]},
    ],
)
def test_an_error_inside_a_success_is_a_failure(h: Harness, body: dict[str, Any]) -> None:
    h.fake.trouble(status=201, body=body, method="POST", path=CONTACTS)
    with pytest.raises(Permanent):
        h.target.deliver(h.api(), job(h.person(1)))


def test_an_account_error_inside_a_summary_holds_the_target(h: Harness) -> None:
    body = {"success": True, "data": {"contacts": [], "errors": [{"error": {"code": "ACCT-001"}}]}}
    h.fake.trouble(status=201, body=body, method="POST", path=CONTACTS)
    with pytest.raises(Refused):
        h.target.deliver(h.api(), job(h.person(1)))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, envelope("CONT-010")),
        (200, envelope("CONT-010")),
        (201, {"success": True, "data": {"contacts": [], "errors": [{"error": {"code": "CONT-010"}}]}}),
    ],
)
def test_a_create_refused_because_of_an_opt_out_is_one(h: Harness, status: int, body: dict[str, Any]) -> None:
    h.fake.trouble(status=status, body=body, method="POST", path=CONTACTS)
    receipt = h.target.deliver(h.api(), job(h.person(1)))
    assert (receipt.outcome, receipt.opted_out) == ("absent", True)
    assert receipt.notes


@pytest.mark.parametrize("post_shape", Harness.switches["post_shape"])
def test_a_bad_number_is_permanent_in_every_shape(post_shape: str) -> None:
    with Harness(post_shape=post_shape) as h, pytest.raises(Permanent) as caught:
        h.target.deliver(h.api(), job({"mobile": "+5212"}))
    assert "CONT-001" in str(caught.value)


def test_somebody_who_was_faster_is_found_after_a_conflict(h: Harness) -> None:
    # Both ways of searching find nobody, and then somebody else makes the contact.
    h.fake.hook(
        "GET",
        CONTACTS,
        lambda: h.fake.hook("GET", CONTACTS, lambda: h.fake.add(MOBILE), after=True),
        after=True,
    )
    h.fake.trouble(status=409, body=envelope("CONT-002"), method="POST", path=CONTACTS)
    receipt = h.target.deliver(h.api(), job(h.person(1)))
    assert receipt.outcome == "updated"
    assert receipt.accepted == h.person(1)
    assert h.count() == 1


def test_a_conflict_with_nobody_to_be_found_is_left_to_a_person(h: Harness) -> None:
    h.fake.trouble(status=409, body=envelope("CONT-002"), method="POST", path=CONTACTS)
    with pytest.raises(Ambiguous):
        h.target.deliver(h.api(), job(h.person(1)))


def test_a_contact_made_in_the_meantime_is_merged_and_not_doubled(each: Harness) -> None:
    each.fake.hook(
        "POST", "/contacts", lambda: each.fake.add(MOBILE, attributes={"remark": "theirs"}, blocked="2026")
    )
    receipt = each.target.deliver(each.api(), job(each.person(1)))
    assert each.count() == 1
    assert receipt.opted_out
    assert each.fake.loosened() == []
    assert each.fake.contacts[receipt.target_id or ""]["attributes"]["remark"] == "theirs"


def test_a_created_contact_that_cannot_be_read_yet_is_taken_from_the_answer(h: Harness) -> None:
    h.fake.trouble(status=404, method="GET", path="/contacts/c-")
    receipt = h.target.deliver(h.api(), job(h.person(1)))
    assert receipt.outcome == "created"
    assert receipt.accepted == h.person(1)


@pytest.mark.parametrize("how", ["drop", "drop_after"])
def test_a_create_that_hung_up_is_settled_by_a_search(each: Harness, how: str) -> None:
    unsure: list[str] = []
    each.fake.trouble(how=how, method="POST", path=CONTACTS)
    with pytest.raises(Retryable) as caught:
        each.target.deliver(each.api(before_create=lambda: unsure.append("unsure")), job(each.person(1)))
    assert caught.value.maybe_done
    assert unsure == ["unsure"]
    again = job(each.person(1), unsure_since=utc_now(), settled=False)
    if how == "drop":
        with pytest.raises(Retryable):
            each.target.deliver(each.api(), again)
        again = replace(again, settled=True)
    assert each.target.deliver(each.api(), again).target_id
    assert each.count() == 1


def test_an_opt_out_waits_for_the_fate_of_a_create_too(h: Harness) -> None:
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), job(h.person(1), opt_out=True, unsure_since=utc_now(), settled=False))
    assert caught.value.code == "unsure"


def test_a_person_known_to_have_opted_out_is_not_made_anew(h: Harness) -> None:
    receipt = h.target.deliver(h.api(), job(h.person(1), target_id="c-gone", opted_out=True))
    assert receipt.outcome == "absent"
    assert h.count() == 0


# --- updating ----------------------------------------------------------------------------------------------------


def test_a_put_sends_the_contact_as_it_was_read_and_no_null(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    each.set_foreign(first.target_id or "")
    each.target.deliver(each.api(), job({"firstName": "New"}, target_id=first.target_id))
    (call,) = puts(each)
    assert call.json["firstName"] == "New"
    assert call.json["lastName"] == "Ruiz1"
    assert call.json["attributes"] == {"tier": "gold", "city": "Town 1", "remark": "prefers mornings"}
    assert [entry["id"] for entry in call.json["lists"]] == ["l-clients", "l-vip"]
    assert call.json["optIn"] == "2026-01-04T09:00:00Z"
    assert "blocked" not in call.json
    assert not list(nulls(call.json))
    assert not set(call.json) & {"id", "valid", "error", "created", "updated", "hubspot"}
    assert set(call.json["mobile"]) == {"country", "number"}


def test_what_was_absent_stays_absent(each: Harness) -> None:
    target_id = each.fake.add(MOBILE)
    each.target.deliver(each.api(), job({"firstName": "New"}, target_id=target_id))
    (call,) = puts(each)
    assert set(call.json) <= {"mobile", "firstName", "lists", "attributes"}
    assert call.json["lists"] == []
    assert call.json["attributes"] == {}


def test_nothing_is_written_where_nothing_differs(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    second = each.target.deliver(each.api(), job(each.person(1), target_id=first.target_id))
    assert second.outcome == "unchanged"
    assert second.accepted == each.person(1)
    assert not puts(each)


def test_a_contact_is_read_in_the_very_call_before_it_is_replaced(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    fields = {**each.changed(each.person(1)), "mobile": "+525512340077"}
    each.target.deliver(each.api(), job(fields, target_id=first.target_id, opt_out=True))
    calls = each.fake.calls
    written = [n for n, call in enumerate(calls) if call.method == "PUT"]
    assert written
    for n in written:
        assert (calls[n - 1].method, calls[n - 1].path) == ("GET", calls[n].path)
        assert (calls[n + 1].method, calls[n + 1].path) == ("GET", calls[n].path)


def test_attributes_are_written_as_texts_and_read_as_what_was_meant(h: Harness) -> None:
    h.fake.attributes += ["score", "vip", "tags", "ratio"]
    fields: dict[str, Value] = {
        "mobile": MOBILE,
        "attributes.score": 42.0,
        "attributes.vip": True,
        "attributes.tags": ["a", "b"],
        "attributes.ratio": 2.5,
    }
    receipt = h.target.deliver(h.api(), job(fields))
    person = h.fake.person(MOBILE)
    assert person is not None
    assert person["attributes"] == {"score": "42", "vip": "true", "tags": "a, b", "ratio": "2.5"}
    assert receipt.accepted == fields
    assert h.target.deliver(h.api(), job(fields)).outcome == "unchanged"


def test_a_value_of_another_type_there_is_no_difference_unless_it_is_one(h: Harness) -> None:
    target_id = h.fake.add(MOBILE, attributes={"tier": 7, "city": {"odd": "shape"}})
    assert h.target.deliver(h.api(), job({"attributes.tier": "7"}, target_id=target_id)).outcome == "unchanged"
    h.fake.edit(MOBILE, attributes={"city": {"odd": "shape"}})
    receipt = h.target.deliver(h.api(), job({"attributes.city": "X"}, target_id=target_id))
    assert (receipt.outcome, receipt.accepted) == ("updated", {"attributes.city": "X"})


@pytest.mark.parametrize("unknown_attribute", ["ignore", "400"])
def test_an_attribute_that_the_account_lacks_is_left_out_and_said(unknown_attribute: str) -> None:
    with Harness(unknown_attribute=unknown_attribute) as h:
        fields = {**h.person(1), "attributes.shoe": "43"}
        receipt = h.target.deliver(h.api(), job(fields))
        assert receipt.outcome == "created"
        assert receipt.accepted == h.person(1)
        assert "shoe" in " ".join(receipt.notes)
        h.fake.attributes.append("shoe")
        h.fake.advance(61)
        receipt = h.target.deliver(h.api(), job(fields, target_id=receipt.target_id))
        assert receipt.accepted == fields
        assert not receipt.notes


def test_the_attributes_are_asked_for_once(h: Harness) -> None:
    for n in range(3):
        h.target.deliver(h.api(), job({**h.person(n), "attributes.shoe": "43"}))
    assert len(h.fake.made("GET", "/attributes")) == 1
    h.fake.advance(901)
    h.target.deliver(h.api(), job(h.person(4)))
    assert len(h.fake.made("GET", "/attributes")) == 2


def test_without_attributes_they_are_not_asked_for(h: Harness) -> None:
    h.target.deliver(h.api(), job({"mobile": MOBILE, "attributes.tier": None}))
    assert not h.fake.made("GET", "/attributes")


def test_an_attribute_deleted_in_the_account_since_is_left_out() -> None:
    with Harness(unknown_attribute="400") as h:
        h.target.deliver(h.api(), job(h.person(1)))
        h.fake.attributes.remove("city")
        h.fake.advance(61)
        receipt = h.target.deliver(h.api(), job(h.person(2)))
        assert receipt.outcome == "created"
        assert "city" in " ".join(receipt.notes)


def test_other_refusals_do_not_ask_for_the_attributes_again_and_again(h: Harness) -> None:
    fields = {**h.person(1), "email": "none"}
    for _ in range(3):
        with pytest.raises(Permanent):
            h.target.deliver(h.api(), job(fields))
    assert len(h.fake.made("GET", "/attributes")) == 1
    h.fake.advance(61)
    with pytest.raises(Permanent):
        h.target.deliver(h.api(), job(fields))
    assert len(h.fake.made("GET", "/attributes")) == 2


def test_an_account_without_a_list_of_attributes_takes_them_as_they_come(h: Harness) -> None:
    h.fake.trouble(status=404, path="/attributes", times=9)
    assert h.target.deliver(h.api(), job(h.person(1))).accepted == h.person(1)


def test_other_trouble_with_the_attributes_stops_the_push(h: Harness) -> None:
    h.fake.trouble(status=403, path="/attributes")
    with pytest.raises(Refused):
        h.target.deliver(h.api(), job(h.person(1)))
    assert h.count() == 0


def test_what_the_platform_drops_in_silence_is_said(h: Harness) -> None:
    h.fake.trouble(status=404, path="/attributes", times=9)
    receipt = h.target.deliver(h.api(), job({"mobile": MOBILE, "attributes.shoe": "43"}))
    assert "attributes.shoe" in " ".join(receipt.notes)
    assert receipt.accepted["attributes.shoe"] is None


@pytest.mark.parametrize(
    ("put_mode", "name"),
    [
        *product(["replace"], ["firstName", "lastName", "email", "attributes.tier"]),
        *product(["partial"], ["firstName", "lastName", "attributes.tier"]),
    ],
)
def test_a_field_is_cleared_by_either_way(put_mode: str, name: str) -> None:
    with Harness(put_mode=put_mode) as h:
        first = h.target.deliver(h.api(), job(h.person(1)))
        receipt = h.target.deliver(h.api(), job({**h.person(1), name: None}, target_id=first.target_id))
        stored = h.stored(MOBILE)
        assert stored is not None
        assert not stored.get(name)
        assert receipt.accepted == {**h.person(1), name: None}
        assert not receipt.notes
        assert len(puts(h)) == (1 if put_mode == "replace" else 2)
        assert h.target.deliver(h.api(), job({name: ""}, target_id=first.target_id)).outcome == "unchanged"


def test_what_cannot_be_cleared_is_said() -> None:
    with Harness(put_mode="partial") as h:
        first = h.target.deliver(h.api(), job(h.person(1)))
        cleared: dict[str, Value] = {**h.person(1), "email": None, "firstName": "New"}
        receipt = h.target.deliver(h.api(), job(cleared, target_id=first.target_id))
        assert puts(h)[1].json["email"] == ""  # which is refused
        assert "did not clear email" in " ".join(receipt.notes)
        assert receipt.accepted == {**cleared, "email": "person1@example.com"}


def test_the_number_is_never_cleared(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    receipt = h.target.deliver(h.api(), job({"mobile": None, "firstName": "New"}, target_id=first.target_id))
    assert receipt.outcome == "updated"
    assert receipt.accepted == {"mobile": MOBILE, "firstName": "New"}
    assert receipt.notes


def test_if_blank_fills_only_what_was_read_as_blank(h: Harness) -> None:
    target_id = h.fake.add(MOBILE, firstName="Theirs", lastName="  ", attributes={"tier": ""})
    fields: dict[str, Value] = {
        "firstName": "A",
        "lastName": "B",
        "attributes.tier": "gold",
        "email": "a@example.com",
    }
    modes = dict.fromkeys(fields, Mode.IF_BLANK)
    receipt = h.target.deliver(h.api(), job(fields, modes=modes, target_id=target_id))
    assert receipt.accepted == {**fields, "firstName": "Theirs"}


# --- lists -------------------------------------------------------------------------------------------------------


def entries(h: Harness, target_id: str) -> dict[str, Any]:
    return {entry["id"]: entry for entry in h.fake.contacts[target_id]["lists"]}


def test_lists_are_joined_and_nobody_is_taken_off_one(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    target_id = first.target_id or ""
    each.set_foreign(target_id)
    before = entries(each, target_id)
    receipt = each.target.deliver(
        each.api(), job({"lists": ["l-news"]}, target_id=target_id, accepted=first.accepted)
    )
    after = entries(each, target_id)
    assert list(after) == ["l-clients", "l-vip", "l-news"]
    assert {name: after[name] for name in before} == before
    assert receipt.accepted == {"lists": ["l-news"]}
    assert "l-clients" in " ".join(receipt.notes)


@pytest.mark.parametrize("lists", [None, []])
def test_clearing_lists_changes_nothing(h: Harness, lists: Value) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    receipt = h.target.deliver(h.api(), job({"lists": lists}, target_id=first.target_id, accepted=first.accepted))
    assert receipt.outcome == "unchanged"
    assert receipt.notes


def test_a_list_that_the_person_left_is_not_joined_again(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    target_id = first.target_id or ""
    each.fake.leave(MOBILE, "l-clients")
    left = entries(each, target_id)["l-clients"]
    fields = {**each.changed(each.person(1)), "lists": ["l-clients", "l-news"]}
    receipt = each.target.deliver(each.api(), job(fields, target_id=target_id))
    assert entries(each, target_id)["l-clients"] == left
    assert receipt.accepted["lists"] == ["l-news"]
    assert "l-clients" in " ".join(receipt.notes)
    assert each.fake.loosened() == []
    assert not receipt.opted_out


def test_who_opted_out_joins_no_list(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    each.fake.stop(MOBILE)
    fields = {**each.person(1), "lists": ["l-clients", "l-news"], "firstName": "New"}
    receipt = each.target.deliver(each.api(), job(fields, target_id=first.target_id))
    assert list(entries(each, first.target_id or "")) == ["l-clients"]
    assert receipt.accepted["lists"] == ["l-clients"]
    assert receipt.accepted["firstName"] == "New"
    assert "l-news" in " ".join(receipt.notes)


# --- a new number ------------------------------------------------------------------------------------------------

NEW = "+14155550101"


def test_a_linked_contact_gets_a_new_number(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    fields = {**each.person(1), "mobile": NEW}
    receipt = each.target.deliver(each.api(), job(fields, target_id=first.target_id))
    assert (receipt.outcome, receipt.target_id, receipt.accepted) == ("updated", first.target_id, fields)
    assert each.fake.contacts[first.target_id or ""]["mobile"] == {"country": "US", "number": NEW}
    assert each.count() == 1


def test_a_number_that_somebody_has_is_left_to_a_person(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    each.fake.add(NEW, country="US")
    with pytest.raises(Ambiguous):
        each.target.deliver(each.api(), job({**each.person(1), "mobile": NEW}, target_id=first.target_id))
    assert not puts(each)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "CONT-077", Ambiguous),
        (422, "", Ambiguous),
        (409, "", Ambiguous),
        (400, "CONT-001", Permanent),
        (503, "", Retryable),
    ],
)
def test_a_refused_new_number_is_told_apart(
    h: Harness, status: int, code: str, kind: type[DeliveryFailed]
) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.trouble(status=status, body=envelope(code), method="PUT")
    with pytest.raises(kind) as caught:
        h.target.deliver(h.api(), job({**h.person(1), "mobile": NEW}, target_id=first.target_id))
    assert isinstance(caught.value, Ambiguous) == (kind is Ambiguous)


def test_a_stop_during_the_look_for_the_new_number_is_seen(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    each.fake.hook("GET", "/contacts/c-", lambda: each.fake.stop(MOBILE), after=True)
    receipt = each.target.deliver(each.api(), job({**each.person(1), "mobile": NEW}, target_id=first.target_id))
    assert receipt.opted_out
    assert each.fake.loosened() == []


def test_a_number_set_back_by_hand_meanwhile_needs_no_write(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    new = {"country": "US", "number": NEW}
    h.fake.hook("GET", "/contacts/c-", lambda: h.fake.edit(MOBILE, mobile=new), after=True)
    receipt = h.target.deliver(h.api(), job({**h.person(1), "mobile": NEW}, target_id=first.target_id))
    assert receipt.outcome == "unchanged"
    assert not puts(h)


# --- contacts that vanish ----------------------------------------------------------------------------------------


def test_an_id_that_is_gone_leads_to_the_number_once(h: Harness) -> None:
    receipt = h.target.deliver(h.api(), job(h.person(1), target_id="c-99"))
    assert receipt.outcome == "created"


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_contact_removed_in_the_middle_is_made_anew(h: Harness, method: str) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.hook(method, "/contacts/c-", h.fake.contacts.clear, after=method == "GET")
    receipt = h.target.deliver(h.api(), job(h.changed(h.person(1)), target_id=first.target_id))
    assert receipt.outcome == "created"
    assert h.count() == 1


def test_who_opted_out_is_not_made_anew_after_a_removal_in_the_middle(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.stop(MOBILE)
    h.fake.hook("PUT", "/contacts/c-", h.fake.contacts.clear)
    receipt = h.target.deliver(h.api(), job(h.changed(h.person(1)), target_id=first.target_id))
    assert (receipt.outcome, receipt.opted_out) == ("absent", True)
    assert h.count() == 0


def test_a_found_contact_removed_in_the_middle_is_tried_again(h: Harness) -> None:
    h.fake.add(MOBILE)
    h.fake.hook("GET", CONTACTS, h.fake.contacts.clear, after=True)
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), job(h.person(1)))
    assert caught.value.code == "stale"


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"id": "c-1"},
        {"id": "c-other", "mobile": {}},
        {"mobile": {}, "lists": "x"},
        {"mobile": {}, "attributes": ["x"]},
    ],
)
def test_a_contact_of_an_unknown_shape_is_not_written(h: Harness, data: object) -> None:
    target_id = h.fake.add(MOBILE, attributes={"tier": "gold"})
    h.fake.trouble(status=200, body={"success": True, "data": data}, method="GET", path="/contacts/c-")
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), job({"firstName": "New"}, target_id=target_id))
    assert caught.value.code == "nonsense"
    assert not puts(h)


# --- opt-outs ----------------------------------------------------------------------------------------------------


def test_an_opt_out_is_written_and_read_back(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    fields = each.changed(each.person(1))
    receipt = each.target.deliver(each.api(), job(fields, target_id=first.target_id, opt_out=True))
    taken = each.fake.switches["blocked_writable"] == "yes"
    assert receipt.opted_out is taken
    assert each.opted_out(first.target_id or "") is taken
    assert bool(receipt.notes) is not taken
    assert taken or "Manual action needed" in receipt.notes[0]
    assert receipt.accepted == fields
    again = each.target.deliver(each.api(), job(fields, target_id=first.target_id, opt_out=True))
    assert again.outcome == "unchanged"
    assert again.opted_out is taken


def test_an_opt_out_does_not_depend_on_other_fields(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    fields = {**each.person(1), "email": "none"}
    with pytest.raises(Permanent):
        each.target.deliver(each.api(), job(fields, target_id=first.target_id, opt_out=True))
    assert each.opted_out(first.target_id or "") is (each.fake.switches["blocked_writable"] == "yes")


def test_an_opt_out_that_is_there_is_not_written_again(each: Harness) -> None:
    target_id = each.fake.add(MOBILE, blocked="2026-01-04T09:00:00Z")
    receipt = each.target.deliver(each.api(), job({"mobile": MOBILE}, opt_out=True))
    assert (receipt.outcome, receipt.target_id, receipt.opted_out) == ("unchanged", target_id, True)
    assert not puts(each)


def test_the_error_code_alone_is_an_opt_out(h: Harness) -> None:
    target_id = h.fake.add(MOBILE)
    shown = {"id": target_id, "mobile": {"country": "MX", "number": MOBILE}, "error": {"code": "CONT-010"}}
    h.fake.trouble(status=200, body={"success": True, "data": shown}, method="GET", path="/contacts/c-")
    receipt = h.target.deliver(h.api(), job({}, target_id=target_id, opt_out=True))
    assert receipt.opted_out
    assert not puts(h)


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("opt_out", [True, False])
def test_a_write_refused_because_of_an_opt_out_is_one(h: Harness, status: int, opt_out: bool) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.trouble(status=status, body=envelope("CONT-010"), method="PUT", times=9)
    receipt = h.target.deliver(h.api(), job(h.changed(h.person(1)), target_id=first.target_id, opt_out=opt_out))
    assert receipt.opted_out
    assert receipt.accepted == h.person(1)
    assert receipt.notes


def test_trouble_while_an_opt_out_is_written_is_waited_for(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.trouble(status=409, method="PUT")
    with pytest.raises(Ambiguous):
        h.target.deliver(h.api(), job(h.person(1), target_id=first.target_id, opt_out=True))


def test_errors_and_integrations_that_a_contact_shows_are_said_once(h: Harness) -> None:
    h.fake.add(MOBILE, activecampaign={"id": 115}, hubspot={"id": None})
    h.fake.add("+525512340002", activecampaign={"id": 116})
    first = h.target.deliver(h.api(), job({"mobile": MOBILE}))
    assert "activecampaign" in " ".join(first.notes)
    assert "hubspot" not in " ".join(first.notes)
    assert not h.target.deliver(h.api(), job({"mobile": "+525512340002"})).notes


def test_an_error_that_a_contact_shows_after_a_write_is_said(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    shown = h.fake._render(h.fake.contacts[first.target_id or ""]) | {"error": {"code": "CONT-033"}}
    shown["firstName"] = "New"
    h.fake.hook(
        "PUT",
        "/contacts",
        lambda: h.fake.trouble(
            status=200, body={"success": True, "data": shown}, method="GET", path="/contacts/c-"
        ),
    )
    receipt = h.target.deliver(h.api(), job({"firstName": "New"}, target_id=first.target_id))
    assert "CONT-033" in " ".join(receipt.notes)
    assert not receipt.opted_out


# --- the alarm ---------------------------------------------------------------------------------------------------


class Careless(fakes.Sakari):
    """A platform that takes an opt-out away whatever it is sent, the first *times*."""

    times = 1

    def _put_blocked(self, contact: fakes.Record, body: fakes.Record) -> None:
        super()._put_blocked(contact, body)
        if self.times:
            self.times -= 1
            contact["blocked"] = None
            for entry in contact["lists"]:
                entry["optOut"] = None


@pytest.fixture
def careless() -> Iterator[Harness]:
    harness = Harness()
    harness.fake = Careless()
    with harness as opened:
        yield opened


@pytest.mark.parametrize(("stop", "leave"), [(True, False), (False, True), (True, True)])
def test_a_lost_opt_out_is_put_back_and_raises_an_alarm(careless: Harness, stop: bool, leave: bool) -> None:
    first = careless.target.deliver(careless.api(), job(careless.person(1)))
    target_id = first.target_id or ""
    if leave:
        careless.fake.leave(MOBILE, "l-clients")
    if stop:
        careless.fake.stop(MOBILE)
    before = careless.fake.person(MOBILE)
    with pytest.raises(Refused) as caught:
        careless.target.deliver(careless.api(), job(careless.changed(careless.person(1)), target_id=target_id))
    assert caught.value.code == "loosened"
    assert caught.value.tries == 1
    assert ("blocked" in str(caught.value)) is stop
    assert ("l-clients" in str(caught.value)) is leave
    assert "put it back" in str(caught.value)
    after = careless.fake.person(MOBILE)
    assert before is not None
    assert after is not None
    assert (after["opted_out"], after["left_lists"]) == (before["opted_out"], before["left_lists"])


@pytest.mark.parametrize("how", ["always", "refused", "silent"])
def test_a_lost_opt_out_that_cannot_be_put_back_says_so(careless: Harness, how: str) -> None:
    first = careless.target.deliver(careless.api(), job(careless.person(1)))
    careless.fake.stop(MOBILE)
    if how == "always":
        assert isinstance(careless.fake, Careless)
        careless.fake.times = 9
    else:
        troubles: dict[str, dict[str, Any]] = {"refused": {"status": 500}, "silent": {"how": "drop"}}
        careless.fake.hook("PUT", "/contacts", lambda: careless.fake.trouble(method="PUT", **troubles[how]))
    with pytest.raises(Refused) as caught:
        careless.target.deliver(careless.api(), job({"firstName": "New"}, target_id=first.target_id))
    assert caught.value.code == "loosened"
    assert "by hand" in str(caught.value)


def test_a_loss_seen_only_by_the_second_reading_raises_the_alarm(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    each.fake.stop(MOBILE)
    each.fake.hook("PUT", "/contacts", lambda: each.fake.edit(MOBILE, blocked=None), after=True)
    with pytest.raises(Refused) as caught:
        each.target.deliver(each.api(), job({"firstName": "New"}, target_id=first.target_id))
    assert caught.value.code == "loosened"
    assert each.opted_out(first.target_id or "") is (each.fake.switches["blocked_writable"] == "yes")


@pytest.mark.parametrize("how", ["drop_after", "answer"])
def test_a_write_of_unknown_fate_is_looked_at_too(careless: Harness, how: str) -> None:
    first = careless.target.deliver(careless.api(), job(careless.person(1)))
    careless.fake.stop(MOBILE)
    careless.fake.trouble(how=how, status=502, method="PUT")
    with pytest.raises(Retryable) as caught:
        careless.target.deliver(careless.api(), job({"firstName": "New"}, target_id=first.target_id))
    assert (caught.value.code == "loosened") is (how == "drop_after")
    assert careless.opted_out(first.target_id or "")


def test_a_loss_that_the_answer_shows_needs_no_reading(careless: Harness) -> None:
    first = careless.target.deliver(careless.api(), job(careless.person(1)))
    careless.fake.stop(MOBILE)
    careless.fake.hook(
        "PUT", "/contacts", lambda: careless.fake.trouble(status=503, method="GET", path="/contacts/c-", times=99)
    )
    with pytest.raises(Refused) as caught:
        careless.target.deliver(careless.api(), job({"firstName": "New"}, target_id=first.target_id))
    assert caught.value.code == "loosened"
    assert "by hand" in str(caught.value)


def test_a_write_of_unknown_fate_that_cannot_be_looked_at_is_tried_again(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.hook(
        "GET", "/contacts/c-", lambda: h.fake.trouble(how="drop", times=9, path="/contacts/c-"), after=True
    )
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), job({"firstName": "New"}, target_id=first.target_id))
    assert caught.value.code == "network"


def test_one_hiccup_does_not_leave_a_write_unproven(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.hook("PUT", "/contacts", lambda: h.fake.trouble(status=503, method="GET", path="/contacts/c-"))
    assert h.target.deliver(h.api(), job({"firstName": "New"}, target_id=first.target_id)).outcome == "updated"


def test_an_answer_without_the_contact_is_proven_by_reading(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.stop(MOBILE)
    h.fake.trouble(status=200, body={"success": True, "data": {"id": first.target_id}}, method="PUT")
    receipt = h.target.deliver(h.api(), job({"firstName": "New"}, target_id=first.target_id))
    assert receipt.opted_out
    assert "firstName" in " ".join(receipt.notes)  # nothing was written by that answer


class Newer(Exception):
    """As the worker stops a push for newer state."""


@pytest.mark.parametrize("shown", [True, False])
def test_a_write_is_proven_even_if_newer_state_is_waiting(careless: Harness, shown: bool) -> None:
    first = careless.target.deliver(careless.api(), job(careless.person(1)))
    careless.fake.stop(MOBILE)
    if not shown:  # only reading shows the loss
        assert isinstance(careless.fake, Careless)
        careless.fake.times = 0
        careless.fake.hook("PUT", "/contacts", lambda: careless.fake.edit(MOBILE, blocked=None), after=True)

    def take() -> None:
        if puts(careless):
            raise Newer

    with pytest.raises(Refused) as caught:
        api = careless.api(take=take, turn=lambda: None)
        careless.target.deliver(api, job({"firstName": "New"}, target_id=first.target_id))
    assert caught.value.code == "loosened"
    assert careless.opted_out(first.target_id or "")


# --- a STOP at any moment ----------------------------------------------------------------------------------------


def safe(switches: Mapping[str, Any]) -> bool:
    """Say whether a STOP between reading and replacing survives. Where not, no client can know of it."""
    keeping = {("put_mode", "partial"), ("missing_blocked_in_put", "keep")}
    return not keeping.isdisjoint(switches.items())


WINDOW = {("GET", True), ("PUT", False)}  # after the reading, before the replacing
MOMENTS = [("GET", False), ("GET", True), ("PUT", False), ("PUT", True)]
MOMENTS_SAFE = [
    ({"put_mode": put_mode, "missing_blocked_in_put": missing}, moment)
    for put_mode, missing, moment in product(("replace", "partial"), ("clear", "keep"), MOMENTS)
    if moment not in WINDOW or safe({"put_mode": put_mode, "missing_blocked_in_put": missing})
]


@pytest.mark.parametrize(("switches", "moment"), MOMENTS_SAFE)
@pytest.mark.parametrize("what", ["stop", "leave"])
def test_a_stop_around_a_write_survives(switches: dict[str, str], moment: tuple[str, bool], what: str) -> None:
    method, after = moment
    with Harness(**switches) as h:
        first = h.target.deliver(h.api(), job(h.person(1)))
        h.fake.hook(method, "/contacts/c-", lambda: act(h, what, MOBILE), after=after)
        receipt = h.target.deliver(h.api(), job(h.changed(h.person(1)), target_id=first.target_id))
        assert receipt.outcome == "updated"
        person = h.fake.person(MOBILE)
        assert person is not None
        assert person["opted_out"] is receipt.opted_out is (what == "stop")
        assert person["left_lists"] == (["l-clients"] if what == "leave" else [])
        assert h.fake.loosened() == []


NUMBERS = count()
WHO = ["firstName", "lastName", "email", "attributes.tier", "attributes.shoe", "lists"]
VALUES: dict[str, list[Value]] = {
    "firstName": ["Ana", "Eva", None],
    "lastName": ["Ruiz", None],
    "email": ["a@example.com", "b@example.com", "none"],
    "attributes.tier": ["gold", 7, None],
    "attributes.shoe": ["43"],
    "lists": [["l-clients"], ["l-news", "l-vip"], [], None],
}
ACTS = ["stop", "start", "leave", "edit"]
TROUBLES: list[dict[str, Any]] = [
    {"how": "drop_after", "method": "PUT"},
    {"how": "drop", "method": "PUT"},
    {"how": "drop_after", "method": "POST", "path": CONTACTS},
    {"status": 503, "method": "GET", "path": "/contacts/"},
    {"status": 500, "method": "PUT"},
    {"status": 401, "path": "/v1/"},
]
FIELDS = st.fixed_dictionaries({}, optional={name: st.sampled_from(VALUES[name]) for name in WHO})
STEPS = st.one_of(
    st.tuples(st.just("act"), st.sampled_from(ACTS)),
    st.tuples(
        st.just("push"),
        FIELDS,
        st.booleans(),
        st.one_of(st.none(), st.tuples(st.sampled_from(MOMENTS), st.sampled_from(ACTS))),
        st.one_of(st.none(), st.sampled_from(TROUBLES)),
    ),
)
SETTINGS = [
    dict(zip(("put_mode", "missing_blocked_in_put", "blocked_writable"), values, strict=True))
    for values in product(("replace", "partial"), ("clear", "keep"), ("yes", "no", "400"))
]


@pytest.fixture(params=SETTINGS, ids=lambda switches: "-".join(switches.values()))
def any_history(request: pytest.FixtureRequest) -> Iterator[Harness]:
    with Harness(**request.param) as opened:
        yield opened


def act(h: Harness, what: str, mobile: str) -> None:
    """Do something as the person, or somebody at the keyboard."""
    if h.fake.person(mobile) is None:
        return
    if what == "leave":
        h.fake.leave(mobile, "l-clients")
    elif what == "edit":
        h.fake.edit(mobile, lastName="By hand")
    else:
        getattr(h.fake, what)(mobile)


def push(h: Harness, mobile: str, step: Any, target_id: str | None) -> str | None:
    """Push once, with what happens meanwhile; return the contact's id, once it is known."""
    _, fields, opt_out, meanwhile, trouble = step
    if meanwhile is not None:
        (method, after), what = meanwhile
        if safe(h.fake.switches) or (method, after) not in WINDOW or what not in {"stop", "leave"}:
            h.fake.hook(method, "/contacts/c-", lambda: act(h, what, mobile), after=after)
    arranged = h.fake.trouble(**trouble) if trouble is not None else None
    linked = [target_id]
    try:
        receipt = h.target.deliver(
            h.api(),
            job({"mobile": mobile, **fields}, opt_out=opt_out, target_id=target_id, link=linked.append),
        )
        person = h.fake.person(mobile)
        if person is not None and person["opted_out"]:
            assert receipt.opted_out or meanwhile
        if opt_out and person is not None and h.fake.switches["blocked_writable"] == "yes":
            assert person["opted_out"] or meanwhile
    except DeliveryFailed:
        pass  # loud, and that is all that this test asks of it
    if arranged is not None:
        arranged.times = 0
    h.fake._hooks.clear()
    return linked[-1]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=1, max_size=6))
def test_no_history_loosens_anything_or_makes_a_second_contact(any_history: Harness, steps: list[Any]) -> None:
    h = any_history
    mobile = f"+5255{next(NUMBERS):08d}"
    target_id: str | None = None
    for step in steps:
        if step[0] == "act":
            act(h, step[1], mobile)
        else:
            target_id = push(h, mobile, step, target_id)
        assert h.fake.loosened() == []
        assert sum(contact["mobile"]["number"] == mobile for contact in h.fake.contacts.values()) <= 1
    assert not any(list(nulls(call.json)) for call in h.fake.calls if call.method in {"PUT", "POST"})


# --- removing, checking, settings --------------------------------------------------------------------------------


def test_removing_remembers_the_opt_out_that_goes_with_the_contact(each: Harness) -> None:
    first = each.target.deliver(each.api(), job(each.person(1)))
    each.fake.stop(MOBILE)
    receipt = each.target.remove(each.api(), job({}, target_id=first.target_id, gone=True))
    assert (receipt.outcome, receipt.opted_out) == ("removed", True)
    assert each.count() == 0


def test_removing_somebody_who_vanishes_meanwhile_is_a_success(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.hook("DELETE", "/contacts/c-", h.fake.contacts.clear)
    assert h.target.remove(h.api(), job({}, target_id=first.target_id, gone=True)).outcome == "removed"


def test_removing_somebody_not_linked_goes_by_the_number(h: Harness) -> None:
    h.fake.add(MOBILE)
    assert h.target.remove(h.api(), job({}, accepted={"mobile": MOBILE}, gone=True)).outcome == "removed"
    assert h.count() == 0
    assert h.target.remove(h.api(), job({"mobile": MOBILE}, gone=True)).outcome == "absent"
    assert h.target.remove(h.api(), job({}, gone=True)).outcome == "absent"


def test_removing_waits_for_the_fate_of_a_create(h: Harness) -> None:
    with pytest.raises(Retryable):
        h.target.remove(h.api(), job({"mobile": MOBILE}, gone=True, unsure_since=utc_now(), settled=False))


@pytest.mark.parametrize(("status", "kind"), [(500, Retryable), (403, Refused), (400, Permanent)])
def test_a_removal_that_fails_is_no_removal(h: Harness, status: int, kind: type[DeliveryFailed]) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.trouble(status=status, method="DELETE")
    with pytest.raises(kind):
        h.target.remove(h.api(), job({}, target_id=first.target_id, gone=True))
    assert h.count() == 1


def test_a_removal_answered_without_a_body_is_one(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.trouble(status=204, method="DELETE")
    assert h.target.remove(h.api(), job({}, target_id=first.target_id, gone=True)).outcome == "removed"


def test_the_check_names_the_account_and_reads_only(h: Harness) -> None:
    assert h.fake.account in h.target.check(h.api())
    assert {call.method for call in h.fake.calls if not h.reads(call)} == {"GET"}


def test_a_wrong_account_id_is_refused(h: Harness) -> None:
    wrong = replace(h.settings, account_id="no/such?account")
    target = h.type.make(wrong)
    with pytest.raises(Refused):
        target.check(h.api())
    h.fake.trouble(status=404, path="/v1/")
    with pytest.raises(Refused):
        target.check(h.api())


@pytest.mark.parametrize("name", ["account_id", "client_id", "client_secret"])
def test_empty_settings_are_refused(name: str) -> None:
    given: dict[str, Any] = {"account_id": "a", "client_id": Secret("b"), "client_secret": Secret("c")}
    given[name] = " " if name == "account_id" else Secret(" ")
    with pytest.raises(ValueError, match=name):
        Settings(**given)


@pytest.mark.parametrize("api_base", ["http://api.sakari.io", "ftp://127.0.0.1", "api.sakari.io", ""])
def test_a_base_that_is_not_encrypted_is_refused(api_base: str) -> None:
    with pytest.raises(ValueError, match="https"):
        Settings("a", Secret("b"), Secret("c"), api_base=api_base)


def test_nobody_is_removed_who_is_linked_to_another_record(h: Harness) -> None:
    h.fake.add(MOBILE)

    def link(target_id: str) -> None:
        raise Ambiguous("Another contact of the source is linked to it.")

    with pytest.raises(Ambiguous):
        h.target.remove(h.api(), job({"mobile": MOBILE}, gone=True, link=link))
    assert h.count() == 1


def test_settings_do_not_print_secrets(h: Harness) -> None:
    assert h.fake.client_secret not in repr(h.settings)


# --- the fake keeps its own promises -----------------------------------------------------------------------------


def test_the_fake_sees_a_careless_client(h: Harness) -> None:
    first = h.target.deliver(h.api(), job(h.person(1)))
    h.fake.stop(MOBILE)
    token = h.fake.made("GET")[0].headers["Authorization"]
    path = f"/v1/accounts/{h.fake.account}/contacts/{first.target_id}"
    body = {"firstName": "X", "mobile": {"country": "MX", "number": MOBILE}}
    assert h.api().call("PUT", path, json=body, headers={"Authorization": token}).ok
    assert h.fake.loosened() == [first.target_id]


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({"id": "c-1"}, ""),
        ({"mobile": {"number": MOBILE}}, ""),
        ({"mobile": {"country": "MX", "number": MOBILE, "valid": True}}, ""),
        ({"mobile": {"country": "MX", "number": MOBILE}, "lists": ["l-clients"]}, ""),
        ({"mobile": {"country": "MX", "number": MOBILE}, "lists": [{"id": "l-none"}]}, ""),
        ({"mobile": {"country": "MX", "number": MOBILE}, "attributes": {"tier": 7}}, ""),
        ({"mobile": {"country": "MX", "number": MOBILE}}, "?mergeStrategy=all"),
        ({"mobile": {"country": "MX", "number": MOBILE}}, "?strategy=append"),
        ([], ""),
    ],
)
def test_the_fake_refuses_what_the_platform_does_not_have(h: Harness, body: Any, query: str) -> None:
    h.target.check(h.api())
    token = h.fake.made("GET")[0].headers["Authorization"]
    path = f"/v1/accounts/{h.fake.account}/contacts{query}"
    assert h.api().call("POST", path, json=body, headers={"Authorization": token}).status == 400
    assert h.count() == 0


@pytest.mark.parametrize("query", ["?limit=0", "?limit=101", "?offset=-1", "?q=1"])
def test_the_fake_refuses_odd_parameters(h: Harness, query: str) -> None:
    h.target.check(h.api())
    token = h.fake.made("GET")[0].headers["Authorization"]
    path = f"/v1/accounts/{h.fake.account}/contacts{query}"
    assert h.api().call("GET", path, headers={"Authorization": token}).status == 400


@pytest.mark.parametrize(
    ("merge_default", "status", "kept"),
    [("append", 201, True), ("core", 201, True), ("remove", 201, False), ("409", 409, True)],
)
def test_the_fake_merges_as_it_is_told(merge_default: str, status: int, kept: bool) -> None:
    with Harness(merge_default=merge_default) as h:
        target_id = h.fake.add(MOBILE, attributes={"tier": "gold"})
        h.target.check(h.api())
        token = h.fake.made("GET")[0].headers["Authorization"]
        body = {"mobile": {"country": "MX", "number": MOBILE}, "attributes": {"city": "X"}}
        path = f"/v1/accounts/{h.fake.account}/contacts"
        assert h.api().call("POST", path, json=body, headers={"Authorization": token}).status == status
        attributes = h.fake.contacts[target_id]["attributes"]
        assert ("tier" in attributes) is kept
        assert ("city" in attributes) is (merge_default in {"append", "remove"})
