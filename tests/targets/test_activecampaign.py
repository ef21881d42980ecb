"""What is ActiveCampaign's own: its traps, its error shapes, and that no call ever loosens a subscription."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.demo.fakes.activecampaign import API_KEY, ActiveCampaign
from bridge.errors import Ambiguous, DeliveryFailed, Permanent, Refused, Retryable, Superseded
from bridge.model import Desired, Mode, Receipt, RecordKey, Secret, Value
from bridge.outbound import Api
from bridge.targets.activecampaign import TARGET, Settings
from bridge.targets.base import Job
from tests.targets.harness_activecampaign import Harness

NOW = datetime.now(UTC)
EMAIL = "ana.ruiz+crm@example.com"
KEY = RecordKey("crm", "84001")

Fields = Mapping[str, Value]


class Account(Harness):
    """The harness, with the calls that these tests make again and again."""

    def deliver(
        self,
        fields: Fields,
        after: Receipt | None = None,
        *,
        api: Api | None = None,
        now: datetime = NOW,
        modes: Mapping[str, Mode] | None = None,
        opt_out: bool = False,
        **how: Any,
    ) -> Receipt:
        desired = Desired(fields={"email": EMAIL, **fields}, modes=modes or {}, opt_out=opt_out)
        if after is not None:
            known = {"accepted": after.accepted, "target_id": after.target_id, "opted_out": after.opted_out}
            how = {**known, **how}
        job = Job(KEY, desired, **{"accepted": None, "target_id": None, "now": now, **how})
        receipt: Receipt = self.target.deliver(api or self.api(), job)
        return receipt

    def api_with(self, **how: Any) -> Api:
        return Api(TARGET.base_url(self.settings), session=self._session, **how)

    def ana(self) -> dict[str, Any]:
        return self.fake.person(EMAIL)

    def writes(self) -> list[tuple[str, str]]:
        """Return the method and path of every call so far that could change something."""
        return [(c.method, c.path.removeprefix("/api/3")) for c in self.fake.calls if c.method != "GET"]

    def forget_calls(self) -> None:
        self.fake.calls.clear()


@pytest.fixture
def ac() -> Iterator[Account]:
    with Account() as account:
        account.fake.welcome_list = ""
        yield account


@pytest.fixture
def with_switches() -> Iterator[Callable[..., Account]]:
    opened: list[Account] = []

    def open_(**switches: Any) -> Account:
        account = Account(**switches)
        opened.append(account.__enter__())
        account.fake.welcome_list = ""
        return account

    yield open_
    for account in opened:
        account.__exit__(None, None, None)


# --- settings and the key --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["https://acme.api-us1.com", "https://acme.api-us1.com/", "https://acme.api-us1.com/api/3/"]
)
def test_the_base_is_the_host_that_the_user_copied(given: str) -> None:
    assert TARGET.base_url(Settings(given, Secret("k"))) == "https://acme.api-us1.com/api/3"


@pytest.mark.parametrize(
    ("url", "key", "why"),
    [
        ("acme.api-us1.com", "k", "must be a URL"),
        ("ftp://acme.api-us1.com", "k", "must be a URL"),
        ("http://acme.api-us1.com", "k", "https://"),
        ("https://acme.api-us1.com/admin", "k", "without a path"),
        ("https://acme.api-us1.com/?x=1", "k", "without a path"),
        ("https://me@acme.api-us1.com", "k", "without a path"),
        ("https://acme.api-us1.com", " ", "api_key: it is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(url: str, key: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(url, Secret(key))


def test_the_key_is_not_printed() -> None:
    assert "s3cret" not in repr(Settings("https://acme.api-us1.com", Secret("s3cret")))


def test_check_says_whose_key_it_is_and_names_nobody(ac: Account) -> None:
    sentence = ac.target.check(ac.api())
    assert sentence == "ActiveCampaign at 127.0.0.1 accepts the key; it belongs to user 1."


@pytest.mark.parametrize(("bad_key", "tries"), [("403", 3), ("200html", 2)])
def test_a_wrong_key_is_refused_after_as_many_tries_as_prove_it(
    with_switches: Callable[..., Account], bad_key: str, tries: int
) -> None:
    ac = with_switches(bad_key=bad_key)
    ac.fake.api_key = "another"
    for call in (lambda: ac.target.check(ac.api()), lambda: ac.deliver({})):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.tries == tries
        assert API_KEY not in str(caught.value)


# --- finding, creating, linking --------------------------------------------------------------------------


def test_a_person_is_searched_for_then_created_by_the_address_alone_then_linked_then_written(ac: Account) -> None:
    writes_at_link: list[int] = []
    receipt = ac.deliver({"firstName": "Ana"}, link=lambda target_id: writes_at_link.append(len(ac.writes())))
    assert receipt.outcome == "created"
    assert ac.writes() == [("POST", "/contact/sync"), ("PUT", f"/contacts/{receipt.target_id}")]
    assert writes_at_link == [1]
    assert ac.fake.made("POST", "/contact/sync")[0].json == {"contact": {"email": EMAIL}}
    assert ac.ana()["firstName"] == "Ana"


def test_the_plus_of_an_address_survives_the_search(ac: Account) -> None:
    ac.deliver({})
    assert "email=ana.ruiz%2Bcrm%40example.com" in ac.fake.calls[0].path


def test_an_address_is_found_in_any_case(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL.upper())
    receipt = ac.deliver({})
    assert (receipt.outcome, receipt.target_id) == ("unchanged", there)
    assert ac.writes() == []


def test_two_contacts_with_the_address_are_left_alone(ac: Account) -> None:
    ac.fake.add_contact(EMAIL)
    ac.fake.add_contact(EMAIL.title())
    with pytest.raises(Ambiguous):
        ac.deliver({"firstName": "Ana"})
    with pytest.raises(Ambiguous):
        ac.target.remove(ac.api(), Job(KEY, Desired({"email": EMAIL}, gone=True), None, None, NOW))
    assert ac.writes() == []


@pytest.mark.parametrize("sync_update", ActiveCampaign.SWITCHES["sync_update"])
def test_a_contact_made_since_the_search_keeps_what_it_has(
    with_switches: Callable[..., Account], sync_update: int
) -> None:
    ac = with_switches(sync_update=sync_update)
    api = ac.api_with(before_create=lambda: ac.fake.add_contact(EMAIL, firstName="Anna", phone="+15550100"))
    modes = {"firstName": Mode.IF_BLANK, "phone": Mode.IF_BLANK}
    receipt = ac.deliver({"firstName": "Ana", "phone": "+525512345678", "lastName": "Ruiz"}, api=api, modes=modes)
    assert receipt.outcome == "updated"
    assert (ac.ana()["firstName"], ac.ana()["phone"], ac.ana()["lastName"]) == ("Anna", "+15550100", "Ruiz")
    assert receipt.accepted == {"email": EMAIL, "firstName": "Anna", "phone": "+15550100", "lastName": "Ruiz"}


@pytest.mark.parametrize("sync_update", ActiveCampaign.SWITCHES["sync_update"])
def test_a_contact_made_since_the_search_that_is_another_records_is_not_written(
    with_switches: Callable[..., Account], sync_update: int
) -> None:
    ac = with_switches(sync_update=sync_update)

    def link(target_id: str) -> None:
        raise Ambiguous("It is linked to another record.")

    api = ac.api_with(before_create=lambda: ac.fake.add_contact(EMAIL, firstName="Anna"))
    with pytest.raises(Ambiguous):
        ac.deliver({"firstName": "Ana"}, api=api, link=link)
    assert ac.ana()["firstName"] == "Anna"


def test_an_address_that_is_taken_by_nobody_one_can_see_is_for_a_person(ac: Account) -> None:
    body = {"errors": [{"title": "Email address already exists in the system", "code": "duplicate"}]}
    ac.fake.trouble(status=422, body=body, path="/contact/sync")
    with pytest.raises(Ambiguous):
        ac.deliver({})


def test_a_create_that_answers_for_somebody_else_is_nonsense(ac: Account) -> None:
    ac.fake.trouble(status=201, body={"contact": {"id": "7", "email": "x@example.com"}}, path="/contact/sync")
    with pytest.raises(Retryable) as caught:
        ac.deliver({})
    assert (caught.value.code, caught.value.maybe_done) == ("nonsense", True)


@pytest.mark.parametrize("deleted_read", ActiveCampaign.SWITCHES["deleted_read"])
def test_a_deleted_contact_is_resolved_anew_by_its_address(
    with_switches: Callable[..., Account], deleted_read: str
) -> None:
    ac = with_switches(deleted_read=deleted_read)
    first = ac.deliver({"firstName": "Ana", "phone": "+525512345678"})
    assert first.target_id
    ac.fake.delete(first.target_id)
    second = ac.deliver({"firstName": "Ana", "phone": "+525598765432"}, first)
    assert second.outcome == "created"
    assert second.target_id not in {None, first.target_id}
    assert (ac.ana()["firstName"], ac.ana()["phone"]) == ("Ana", "+525598765432")


def test_a_contact_that_is_deleted_between_reading_and_writing_is_resolved_anew(ac: Account) -> None:
    first = ac.deliver({"firstName": "Ana"})
    ac.fake.trouble(status=404, body={"message": "No Result found for Subscriber with id 1"}, method="PUT")
    second = ac.deliver({"firstName": "Anna"}, first)
    assert second.target_id == first.target_id
    assert ac.ana()["firstName"] == "Anna"


def test_a_contact_that_keeps_vanishing_is_tried_again_later(ac: Account) -> None:
    first = ac.deliver({"firstName": "Ana"})
    ac.fake.trouble(
        status=404, body={"message": "No Result found for Subscriber with id 1"}, method="PUT", times=2
    )
    with pytest.raises(Retryable) as caught:
        ac.deliver({"firstName": "Anna"}, first)
    assert caught.value.code == "stale"


def test_a_write_answered_with_a_deleted_contact_is_no_success(ac: Account) -> None:
    first = ac.deliver({"firstName": "Ana"})
    shell = {"contact": {"id": first.target_id, "email": "deleted+1@example.invalid"}}
    ac.fake.trouble(status=200, body=shell, method="PUT")
    second = ac.deliver({"firstName": "Anna"}, first)
    assert second.target_id == first.target_id
    assert ac.ana()["firstName"] == "Anna"


def test_a_contact_that_is_gone_and_has_no_known_address_needs_a_person(ac: Account) -> None:
    job = Job(KEY, Desired({"firstName": "Ana"}), accepted={}, target_id="999", now=NOW)
    with pytest.raises(Permanent) as caught:
        ac.target.deliver(ac.api(), job)
    assert caught.value.code == "no_identity"
    assert ac.writes() == []


def test_a_known_opt_out_is_not_undone_by_deleting_the_contact(ac: Account) -> None:
    first = ac.deliver({"lists.Newsletter": True})
    assert first.target_id
    ac.fake.unsubscribe(first.target_id)
    seen = ac.deliver({"lists.Newsletter": True, "firstName": "Ana"}, first)
    assert seen.opted_out
    ac.fake.delete(first.target_id)
    assert ac.deliver({"lists.Newsletter": True, "firstName": "Anna"}, seen).outcome == "absent"
    assert ac.fake.people() == []


# --- e-mail changes --------------------------------------------------------------------------------------


def test_a_new_address_goes_by_the_id_and_makes_no_second_contact(ac: Account) -> None:
    first = ac.deliver({})
    second = ac.deliver({"email": "ana@example.org"}, first)
    assert (second.outcome, second.target_id) == ("updated", first.target_id)
    assert ac.fake.person("ana@example.org")["id"] == first.target_id
    assert len(ac.fake.people()) == 1
    assert len(ac.fake.made("POST", "/contact/sync")) == 1


def test_a_new_address_that_another_contact_has_changes_neither(ac: Account) -> None:
    first = ac.deliver({"firstName": "Ana"})
    ac.fake.add_contact("ana@example.org", firstName="Another")
    with pytest.raises(Ambiguous) as caught:
        ac.deliver({"email": "ana@example.org", "firstName": "Anna"}, first)
    assert caught.value.status == 422
    assert "ana@example.org" not in str(caught.value)
    assert ac.ana()["firstName"] == "Ana"
    assert ac.fake.person("ana@example.org")["firstName"] == "Another"


def test_an_address_in_another_case_is_the_same(ac: Account) -> None:
    first = ac.deliver({})
    ac.forget_calls()
    second = ac.deliver({"email": EMAIL.upper()}, first)
    assert second.outcome == "unchanged"
    assert ac.writes() == []


def test_an_address_is_never_cleared(ac: Account) -> None:
    first = ac.deliver({})
    second = ac.deliver({"email": None}, first)
    assert ac.ana()
    assert "email" in second.notes[0]
    assert "email" not in second.accepted


# --- what costs no call, and lost answers ----------------------------------------------------------------


def test_a_state_that_was_accepted_costs_no_call(ac: Account) -> None:
    person = ac.person(1)
    first = ac.deliver(person)
    ac.forget_calls()
    second = ac.deliver(person, first)
    assert (second.outcome, second.accepted) == ("unchanged", first.accepted)
    assert ac.fake.calls == []


def test_what_is_there_already_is_read_and_not_written(ac: Account) -> None:
    person = {**ac.person(1), "email": EMAIL, "fields.LAST_ORDER": "2026-03-02T13:05:00+01:00"}
    ac.deliver(person)
    ac.forget_calls()
    again = ac.deliver({**person, "phone": "+52 (55) 1234-5601", "fields.INTERESTS": ["books", "bikes"]})
    assert again.outcome == "unchanged"
    assert ac.writes() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/contact/sync"),
        ("PUT", "/contacts/"),
        ("POST", "/contactLists"),
        ("POST", "/tags"),
        ("POST", "/contactTags"),
    ],
)
@pytest.mark.parametrize("how", ["drop", "drop_after"])
def test_a_lost_answer_is_made_up_for_by_the_next_try(ac: Account, method: str, path: str, how: str) -> None:
    ac.fake.add_list("Third")
    wanted: Fields = {**ac.person(1), "email": EMAIL, "tags": ["crm"], "lists.Newsletter": True}
    linked: list[str] = []
    ac.fake.trouble(how=how, method=method, path=path)
    with pytest.raises(Retryable) as caught:
        ac.deliver(wanted, link=linked.append)
    assert caught.value.maybe_done
    receipt = ac.deliver(wanted, target_id=linked[0] if linked else None)
    assert receipt.accepted == wanted
    assert len(ac.fake.people()) == 1
    assert (ac.ana()["tags"], ac.ana()["lists"]) == (["crm"], {"Newsletter": 1})
    assert list(ac.fake.tags.values()) == ["crm"]


def test_create_only_fields_survive_a_first_push_that_breaks_off(ac: Account) -> None:
    wanted: Fields = {"firstName": "Ana", "fields.TIER": "gold", "tags": ["crm"], "lists.Newsletter": True}
    modes = dict.fromkeys(wanted, Mode.CREATE_ONLY)
    linked: list[str] = []
    ac.fake.trouble(status=429, method="PUT")
    with pytest.raises(Retryable):
        ac.deliver(wanted, modes=modes, link=linked.append)
    receipt = ac.deliver(wanted, modes=modes, target_id=linked[0])
    assert receipt.accepted == {"email": EMAIL, **wanted}
    assert (ac.ana()["firstName"], ac.ana()["fields"]) == ("Ana", {"TIER": "gold"})
    assert (ac.ana()["tags"], ac.ana()["lists"]) == (["crm"], {"Newsletter": 1})


def test_create_only_fields_do_not_reach_a_contact_that_was_there_before(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.age(there, timedelta(days=30))
    wanted: Fields = {"firstName": "Ana", "tags": ["crm"], "lists.Newsletter": True}
    ac.deliver(wanted, modes=dict.fromkeys(wanted, Mode.CREATE_ONLY))
    assert ac.writes() == []


# --- errors ----------------------------------------------------------------------------------------------

DUPLICATE = {
    "title": "Email address already exists in the system",
    "detail": "",
    "code": "duplicate",
    "source": {"pointer": "/data/attributes/email"},
}
INVALID = {
    "title": "Contact Email Address is not valid.",
    "detail": "",
    "code": "email_invalid",
    "error": "must_be_valid_email_address",
    "source": {"pointer": "/data/attributes/email"},
}
LIMIT = {"success": 0, "message": "Rate limit exceeded.", "failureReasons": ["Up to 100 imports may be requested"]}

ERRORS: list[tuple[int, Any, type[DeliveryFailed], str, str]] = [
    (400, {}, Permanent, "invalid", "HTTP 400"),
    (400, {"success": 0, "message": "JSON payload did not pass validation"}, Permanent, "invalid", "validation"),
    (400, LIMIT, Retryable, "rate_limited", "Rate limit exceeded, Up to 100 imports may be requested"),
    (401, {"message": "Unauthorized"}, Refused, "refused", "Unauthorized"),
    (402, {"message": "Payment required"}, Refused, "refused", "Payment required"),
    (403, {"message": "Forbidden"}, Refused, "refused", "Forbidden"),
    (
        403,
        {"errors": [{"status": 403, "title": "Forbidden", "detail": "You may not view lists."}]},
        Refused,
        "refused",
        "Forbidden, You may not view lists",
    ),
    (404, {"message": "Not here"}, Permanent, "missing", "Not here"),
    (
        404,
        {"errors": [{"status": 404, "title": "Not Found", "detail": "Contact not found"}]},
        Permanent,
        "missing",
        "Not Found, Contact not found",
    ),
    (408, {}, Retryable, "unavailable", "HTTP 408"),
    (422, {"errors": [DUPLICATE]}, Permanent, "duplicate", "already exists"),
    (422, {"errors": [INVALID]}, Permanent, "invalid", "is not valid"),
    (
        422,
        {"errors": [{"status": 422, "title": "No contact", "source": {"pointer": "/data/contact"}}]},
        Permanent,
        "invalid",
        "No contact, /data/contact",
    ),
    (422, {"errors": "Bulk operation failed."}, Permanent, "invalid", "Bulk operation failed"),
    (422, {"errors": ["odd", "ones"]}, Permanent, "invalid", "odd; ones"),
    (
        422,
        {"error": "invalid_thing", "message": "The thing is off", "code": 7},
        Permanent,
        "invalid",
        "invalid_thing",
    ),
    (422, {"errors": [], "message": "Only this"}, Permanent, "invalid", "Only this"),
    (422, {"result_code": 0, "result_message": "Old words"}, Permanent, "invalid", "Old words"),
    (422, "plain words", Permanent, "invalid", "plain words"),
    (429, {}, Retryable, "rate_limited", "HTTP 429"),
    (500, {}, Retryable, "unavailable", "HTTP 500"),
    (522, "<html>Bad gateway</html>", Retryable, "unavailable", "HTTP 522"),
    (200, {"result_code": 0, "result_message": "Nothing there"}, Permanent, "invalid", "Nothing there"),
    (200, {"result_code": "0", "result_message": "Rate limit reached"}, Retryable, "rate_limited", "Rate limit"),
    (200, {"something": "else"}, Retryable, "nonsense", "makes no sense"),
    (200, {"user": []}, Retryable, "nonsense", "makes no sense"),
    (200, {"user": {"id": "x"}}, Retryable, "nonsense", "makes no sense"),
    (200, "<html>Log in</html>", Refused, "refused", "web page"),
]


@pytest.mark.parametrize(("status", "body", "kind", "code", "words"), ERRORS)
def test_every_error_shape_is_understood(
    ac: Account, status: int, body: Any, kind: type[DeliveryFailed], code: str, words: str
) -> None:
    ac.fake.trouble(status=status, body=body)
    with pytest.raises(kind) as caught:
        ac.target.check(ac.api())
    assert isinstance(caught.value, Refused) == (kind is Refused)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "headers", "wait_s"),
    [
        (429, {}, {"Retry-After": "7"}, 7),
        (429, {}, {}, 0),
        (503, {"type": "about:blank", "retryable": True, "retry_after": 60}, {}, 60),
        (503, {"retry_after": "30"}, {"Retry-After": "5"}, 30),
        (503, {"retry_after": "soon"}, {"Retry-After": "5"}, 5),
        (503, {"retry_after": 10**9}, {}, 86_400),
        (400, LIMIT, {}, 60),
        (400, LIMIT, {"Retry-After": "90"}, 90),
    ],
)
def test_what_the_platform_asks_for_is_kept_to(
    ac: Account, status: int, body: Any, headers: dict[str, str], wait_s: float
) -> None:
    ac.fake.trouble(status=status, body=body, headers=headers)
    with pytest.raises(Retryable) as caught:
        ac.target.check(ac.api())
    assert caught.value.retry_after_s == wait_s


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (402, 1), (403, 3)])
def test_a_403_alone_does_not_prove_a_bad_key(ac: Account, status: int, tries: int) -> None:
    ac.fake.trouble(status=status, body={"message": "no"})
    with pytest.raises(Refused) as caught:
        ac.target.check(ac.api())
    assert caught.value.tries == tries


def test_an_error_that_repeats_an_option_is_not_quoted(ac: Account) -> None:
    ac.fake.trouble(status=422, body={"message": "Boats is not allowed"}, method="PUT")
    with pytest.raises(Permanent) as caught:
        ac.deliver({"fields.INTERESTS": ["Bikes", "Boats"]})
    assert "Boats" not in str(caught.value)


def test_an_answer_for_another_contact_is_nonsense(ac: Account) -> None:
    first = ac.deliver({"firstName": "Ana"})
    for method in ("GET", "PUT"):
        body = {"contact": {"id": "7", "email": EMAIL}, "contactLists": [], "fieldValues": []}
        ac.fake.trouble(status=200, body=body, method=method, path="/contacts/")
        with pytest.raises(Retryable) as caught:
            ac.deliver({"firstName": "Anna"}, first)
        assert caught.value.code == "nonsense"


def test_a_contact_read_without_its_parts_is_completed(ac: Account) -> None:
    first = ac.deliver({"firstName": "Ana", "fields.TIER": "gold", "lists.Newsletter": True})
    bare = {"contact": {"id": first.target_id, "email": EMAIL, "firstName": "Ana"}}
    ac.fake.trouble(status=200, body=bare, method="GET", path=f"/contacts/{first.target_id}")
    ac.forget_calls()
    again = ac.deliver(
        {"firstName": "Ana", "fields.TIER": "gold", "lists.Newsletter": True}, target_id=first.target_id
    )
    assert again.outcome == "unchanged"
    assert ac.writes() == []


def test_the_rate_limit_of_the_account_is_reported_as_such() -> None:
    with Account() as ac:
        ac.fake.limit = 2
        with pytest.raises(Retryable) as caught:
            ac.deliver({"firstName": "Ana"})
        assert (caught.value.code, caught.value.retry_after_s) == ("rate_limited", 1)


# --- custom fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fields.NICKNAME", "fields.nickname", "fields.%NICKNAME%"])
def test_a_custom_field_goes_by_its_tag(ac: Account, name: str) -> None:
    assert ac.deliver({name: "Anita"}).accepted[name] == "Anita"
    assert ac.ana()["fields"] == {"NICKNAME": "Anita"}


def test_a_custom_field_goes_by_its_id(ac: Account) -> None:
    number = ac.fake.add_field("CITY", "City", "text")
    ac.deliver({f"fields.{number}": "Puebla"})
    assert ac.ana()["fields"] == {"CITY": "Puebla"}


def test_custom_fields_are_read_once_and_over_every_page(ac: Account) -> None:
    for place in range(120):
        ac.fake.add_field(f"EXTRA_{place}", "Extra", "text")
    first = ac.deliver({"fields.EXTRA_119": "a"})
    ac.deliver({"fields.EXTRA_119": "b"}, first)
    assert ac.ana()["fields"] == {"EXTRA_119": "b"}
    assert len(ac.fake.made("GET", "/fields?")) == 2


def test_an_unknown_custom_field_is_left_out_and_found_once_it_exists(ac: Account) -> None:
    first = ac.deliver({"firstName": "Ana", "fields.CITY": "Puebla"})
    assert first.accepted == {"email": EMAIL, "firstName": "Ana"}
    assert first.notes == (
        "fields.CITY was left out: ActiveCampaign has no such custom field; create it there or correct the rule.",
    )
    ac.fake.add_field("CITY", "City", "text")
    ac.forget_calls()
    ac.deliver({"fields.CITY": "Puebla"}, first, now=NOW + timedelta(seconds=5))
    assert ac.fake.made("GET", "/fields?") == []  # not asked for with every push
    second = ac.deliver({"fields.CITY": "Puebla"}, first, now=NOW + timedelta(minutes=1))
    assert second.accepted["fields.CITY"] == "Puebla"
    assert ac.ana()["fields"] == {"CITY": "Puebla"}


VALUES: list[tuple[str, Value, str]] = [
    ("NICKNAME", "Anita", "Anita"),
    ("NICKNAME", 7, "7"),
    ("NICKNAME", 7.0, "7"),
    ("NICKNAME", 7.25, "7.25"),
    ("NICKNAME", True, "true"),
    ("NICKNAME", ["a", "b"], "a, b"),
    ("TIER", "GOLD", "gold"),
    ("TIER", ["gold"], "gold"),
    ("LANGUAGE", "Afrikaans", "af"),
    ("LANGUAGE", " af ", "af"),
    ("INTERESTS", ["bikes", "Books", "BIKES"], "||Bikes||Books||"),
    ("INTERESTS", "Boats", "||Boats||"),
    ("RENEWAL", "2026-11-30", "2026-11-30"),
    ("RENEWAL", "2026-11-30T23:30:00Z", "2026-11-30"),
    ("LAST_ORDER", "2026-03-02T13:05:00Z", "2026-03-02T07:05:00-06:00"),
    ("SURE", True, "Yes"),
    ("SURE", False, "No"),
    ("SIZE", 42, "42"),
]


@pytest.mark.parametrize(("tag", "value", "stored"), VALUES)
def test_a_value_is_written_as_its_field_takes_it(ac: Account, tag: str, value: Value, stored: str) -> None:
    ac.fake.add_field("SURE", "Sure", "dropdown", {"Yes": "Yes", "No": "No"})
    ac.fake.add_field("SIZE", "Size", "number")  # a type that is documented nowhere is text
    receipt = ac.deliver({f"fields.{tag}": value})
    assert receipt.accepted[f"fields.{tag}"] == value
    assert ac.ana()["fields"] == {tag: stored}


@pytest.mark.parametrize("unknown_option", ActiveCampaign.SWITCHES["unknown_option"])
@pytest.mark.parametrize(
    ("tag", "value", "why"),
    [
        ("TIER", "bronze", "not one of the field's options"),
        ("TIER", ["gold", "silver"], "not one of the field's options"),
        ("INTERESTS", ["Bikes", "Trains"], "not one of the field's options"),
        ("RENEWAL", "30.11.2026", "it takes a date"),
        ("LAST_ORDER", "2026-03-02T13:05:00", "offset"),
        ("LAST_ORDER", "yesterday", "offset"),
        ("NICKNAME", {"a": "b"}, "a text or a number"),
    ],
)
def test_a_value_that_does_not_fit_is_left_out_and_the_rest_goes(
    with_switches: Callable[..., Account], unknown_option: str, tag: str, value: Value, why: str
) -> None:
    ac = with_switches(unknown_option=unknown_option)
    first = ac.deliver({f"fields.{tag}": VALID[tag]})
    before = ac.ana()["fields"]
    receipt = ac.deliver({f"fields.{tag}": value, "firstName": "Ana"}, first)
    assert ac.ana()["fields"] == before
    assert ac.ana()["firstName"] == "Ana"
    assert f"fields.{tag}" not in receipt.accepted
    assert why in receipt.notes[0]


VALID: dict[str, Value] = {
    "TIER": "gold",
    "INTERESTS": ["Boats"],
    "RENEWAL": "2026-01-01",
    "LAST_ORDER": "2026-03-02T13:05:00Z",
    "NICKNAME": "Anita",
}


def test_an_option_that_was_added_since_is_found(ac: Account) -> None:
    first = ac.deliver({"fields.TIER": "gold"})
    old = next(field for field in ac.fake.fields.values() if field.perstag == "TIER")
    ac.fake.fields[old.id] = type(old)(old.id, "TIER", "Tier", "dropdown", {**old.options, "bronze": "Bronze"})
    receipt = ac.deliver({"fields.TIER": "bronze"}, first, now=NOW + timedelta(minutes=1))
    assert receipt.notes == ()
    assert ac.ana()["fields"] == {"TIER": "bronze"}


def test_if_blank_leaves_what_is_there_and_says_what_it_is(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL, firstName="Anna")
    ac.fake.set_value(there, "TIER", "silver")
    wanted: Fields = {"firstName": "Ana", "lastName": "Ruiz", "fields.TIER": "gold", "fields.NICKNAME": "Anita"}
    modes = dict.fromkeys(wanted, Mode.IF_BLANK)
    receipt = ac.deliver(wanted, modes=modes)
    assert (ac.ana()["firstName"], ac.ana()["lastName"]) == ("Anna", "Ruiz")
    assert ac.ana()["fields"] == {"TIER": "silver", "NICKNAME": "Anita"}
    assert receipt.accepted == {
        "email": EMAIL,
        "firstName": "Anna",
        "lastName": "Ruiz",
        "fields.TIER": "silver",
        "fields.NICKNAME": "Anita",
    }
    ac.forget_calls()
    assert ac.deliver(wanted, receipt, modes=modes).outcome == "unchanged"
    assert ac.fake.calls == []


# --- clearing --------------------------------------------------------------------------------------------

FULL: Fields = {
    "phone": "+525512345678",
    "firstName": "Ana",
    "lastName": "Ruiz",
    "fields.NICKNAME": "Anita",
    "fields.TIER": "gold",
    "fields.LANGUAGE": "af",
    "fields.INTERESTS": ["Bikes", "Boats"],
    "fields.RENEWAL": "2026-11-30",
    "fields.LAST_ORDER": "2026-03-02T13:05:00Z",
}
SWITCHED = [
    pytest.param({name: value}, id=f"{name}={value}")
    for name, values in ActiveCampaign.SWITCHES.items()
    for value in values
]


@pytest.mark.parametrize("switches", SWITCHED)
@pytest.mark.parametrize("empty", [None, ""])
def test_every_field_is_cleared_the_way_that_is_sure(
    with_switches: Callable[..., Account], switches: dict[str, Any], empty: Value
) -> None:
    ac = with_switches(**switches)
    first = ac.deliver(FULL)
    cleared = dict.fromkeys(FULL, empty)
    second = ac.deliver(cleared, first)
    assert ac.ana()["fields"] == {}
    base = {name: ac.ana()[name] for name in ("phone", "firstName", "lastName")}
    if switches.get("empty_text") == "ignore":
        # There is no other way for these, so it is said.
        assert base == {name: FULL[name] for name in base}
        assert len(second.notes) == 3
        assert not set(base) & set(second.accepted)
    else:
        assert set(base.values()) == {""}
        assert second.notes == ()
        assert second.accepted == {"email": EMAIL, **cleared}


def test_clearing_what_is_blank_writes_nothing(ac: Account) -> None:
    first = ac.deliver({})
    ac.forget_calls()
    second = ac.deliver(dict.fromkeys(FULL, None), first)
    assert second.accepted == {"email": EMAIL, **dict.fromkeys(FULL, None)}
    assert ac.writes() == []


def test_if_blank_clears_nothing(ac: Account) -> None:
    first = ac.deliver(FULL)
    ac.deliver(dict.fromkeys(FULL, None), first, modes=dict.fromkeys(FULL, Mode.IF_BLANK))
    assert ac.ana()["firstName"] == "Ana"
    assert set(ac.ana()["fields"]) == {name.removeprefix("fields.") for name in FULL if name.startswith("fields.")}


def test_no_null_is_ever_sent(ac: Account) -> None:
    first = ac.deliver(FULL)
    ac.deliver(dict.fromkeys(FULL, None), first)
    bodies = [call.json["contact"] for call in ac.fake.made("PUT")]
    sent = [value for body in bodies for value in body.values()]
    assert None not in sent
    assert all(row["value"] is not None for body in bodies for row in body.get("fieldValues", []))


def test_a_value_that_somebody_else_cleared_first_is_no_error(ac: Account) -> None:
    first = ac.deliver({"fields.RENEWAL": "2026-11-30"})
    ac.fake.trouble(how="drop_after", method="DELETE")
    with pytest.raises(Retryable):
        ac.deliver({"fields.RENEWAL": None}, first)
    second = ac.deliver({"fields.RENEWAL": None}, first)
    assert second.accepted["fields.RENEWAL"] is None
    third = ac.deliver({"fields.RENEWAL": "2027-11-30"}, second)
    ac.fake.trouble(
        status=404, body={"message": "No Result found for FieldValue with id 1"}, method="DELETE", times=2
    )
    assert "kept the old value" in ac.deliver({"fields.RENEWAL": None}, third).notes[0]


# --- tags ------------------------------------------------------------------------------------------------


def test_tags_are_added_and_only_those_a_rule_once_named_are_removed(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.tag_contact(there, "met at the fair")
    first = ac.deliver({"tags": ["crm", "gold"]})
    assert ac.ana()["tags"] == ["crm", "gold", "met at the fair"]
    second = ac.deliver({"tags": ["crm", "silver"]}, first)
    assert ac.ana()["tags"] == ["crm", "met at the fair", "silver"]
    third = ac.deliver({"tags": None}, second)
    assert ac.ana()["tags"] == ["met at the fair"]
    assert third.accepted["tags"] is None


def test_a_tag_that_is_there_is_not_added_again(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.tag_contact(there, "VIP")
    receipt = ac.deliver({"tags": ["vip"]})
    assert (receipt.outcome, receipt.accepted["tags"]) == ("unchanged", ["vip"])
    assert ac.writes() == []


def test_a_tag_written_in_another_way_is_not_taken_away(ac: Account) -> None:
    first = ac.deliver({"tags": ["VIP"]})
    ac.deliver({"tags": ["vip"]}, first)
    assert ac.ana()["tags"] == ["VIP"]


def test_the_exact_tag_is_chosen_among_many_like_it(ac: Account) -> None:
    for place in range(130):
        ac.fake.add_tag(f"gold {place}")
    ac.fake.add_tag("gold")
    ac.deliver({"tags": ["gold"]})
    assert ac.ana()["tags"] == ["gold"]
    assert ac.fake.made("POST", "/tags") == []


def test_a_remembered_tag_that_was_deleted_is_made_again(ac: Account) -> None:
    first = ac.deliver({"tags": ["crm"]})
    ac.fake.tags.clear()
    ac.fake.links.clear()
    ac.deliver({"tags": ["crm", "new"]}, first)
    assert ac.ana()["tags"] == ["crm", "new"]


def test_a_tag_that_another_worker_made_first_is_used(ac: Account) -> None:
    taken = {"errors": [{"title": "The tag exists already.", "code": "duplicate"}]}
    ac.fake.trouble(status=422, body=taken, method="POST", path="/tags")
    with pytest.raises(Permanent):
        ac.deliver({"tags": ["crm"]})  # it says so, but has none
    calls = 0

    def take() -> None:
        nonlocal calls
        calls += 1
        if ac.fake.made("GET", "/tags?") and "crm" not in ac.fake.tags.values():
            ac.fake.add_tag("crm")

    ac.forget_calls()
    ac.deliver({"tags": ["crm"]}, api=ac.api_with(take=take))
    assert ac.ana()["tags"] == ["crm"]
    assert list(ac.fake.tags.values()) == ["crm"]


def test_a_tag_that_somebody_else_removed_is_no_error(ac: Account) -> None:
    first = ac.deliver({"tags": ["crm"]})
    ac.fake.trouble(status=404, body={"message": "No Result found for SubscriberTag with id 1"}, method="DELETE")
    assert ac.deliver({"tags": []}, first).accepted["tags"] == []
    ac.fake.links.clear()
    assert ac.deliver({"tags": []}, first).outcome == "unchanged"


def test_tags_that_fill_blanks_leave_a_tagged_contact_alone(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    modes = {"tags": Mode.IF_BLANK}
    ac.fake.tag_contact(there, "VIP")
    ac.deliver({"tags": ["crm"]}, modes=modes)
    assert ac.ana()["tags"] == ["VIP"]


# --- lists and opt-outs ----------------------------------------------------------------------------------


def test_a_person_who_was_never_on_a_list_is_subscribed(ac: Account) -> None:
    receipt = ac.deliver({"lists.newsletter": True, "lists.Product news": False})
    assert ac.ana()["lists"] == {"Newsletter": 1}
    assert receipt.accepted == {"email": EMAIL, "lists.newsletter": True, "lists.Product news": False}
    assert not receipt.opted_out


def test_a_list_goes_by_its_id(ac: Account) -> None:
    number = ac.fake.add_list("Third")
    ac.deliver({f"lists.{number}": True})
    assert ac.ana()["lists"] == {"Third": 1}


@pytest.mark.parametrize(
    ("status", "why"), [(0, "not confirmed"), (2, "unsubscribed from it"), (3, "bounced"), (9, "does not know")]
)
def test_nobody_is_subscribed_who_was_on_the_list_in_another_way(ac: Account, status: int, why: str) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.set_status(there, "Product news", 1)
    ac.fake.set_status(there, "Newsletter", status)
    receipt = ac.deliver({"lists.Newsletter": True})
    assert ac.ana()["lists"]["Newsletter"] == status
    assert receipt.accepted["lists.Newsletter"] is False
    assert why in receipt.notes[0]
    assert ac.writes() == []


def test_a_person_who_left_every_list_is_subscribed_to_no_other(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.set_status(there, "Newsletter", 1)
    ac.fake.unsubscribe(there)
    receipt = ac.deliver({"lists.Product news": True})
    assert ac.ana()["lists"] == {"Newsletter": 2}
    assert receipt.opted_out
    assert "every list" in receipt.notes[0]


def test_a_person_who_left_one_list_only_has_not_opted_out(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.set_status(there, "Newsletter", 2)
    ac.fake.set_status(there, "Product news", 1)
    third = ac.fake.add_list("Third")
    receipt = ac.deliver({f"lists.{third}": True})
    assert ac.ana()["lists"] == {"Newsletter": 2, "Product news": 1, "Third": 1}
    assert not receipt.opted_out


def test_a_rule_may_move_a_person_from_one_list_to_another(ac: Account) -> None:
    first = ac.deliver({"lists.Newsletter": True, "lists.Product news": False})
    second = ac.deliver({"lists.Newsletter": False, "lists.Product news": True}, first)
    assert ac.ana()["lists"] == {"Newsletter": 2, "Product news": 1}
    assert second.accepted == {"email": EMAIL, "lists.Newsletter": False, "lists.Product news": True}
    assert second.notes == ()


def test_a_person_who_leaves_while_bridge_writes_is_not_subscribed(ac: Account) -> None:
    first = ac.deliver({"lists.Newsletter": True})
    assert first.target_id

    def take() -> None:
        if ac.fake.made("PUT"):
            ac.fake.unsubscribe(str(first.target_id))

    ac.forget_calls()
    second = ac.deliver(
        {"firstName": "Ana", "lists.Newsletter": True, "lists.Product news": True},
        first,
        api=ac.api_with(take=take),
    )
    assert ac.ana()["lists"] == {"Newsletter": 2}
    assert second.opted_out


def test_two_names_of_one_list_that_disagree_mean_no(ac: Account) -> None:
    number = next(n for n, name in ac.fake.lists.items() if name == "Newsletter")
    receipt = ac.deliver({"lists.Newsletter": True, f"lists.{number}": False})
    assert ac.ana()["lists"] == {}
    assert receipt.accepted["lists.Newsletter"] is False


def test_lists_that_are_not_clear_are_left_out(ac: Account) -> None:
    ac.fake.add_list("Newsletter")
    receipt = ac.deliver({"lists.Newsletter": True, "lists.Nowhere": True, "lists.Product news": None})
    assert ac.ana()["lists"] == {}
    assert receipt.accepted == {"email": EMAIL}
    assert [note.partition(":")[2].strip() for note in receipt.notes] == [
        "several lists in ActiveCampaign have this name; use the id in the rule.",
        "ActiveCampaign has no such list; create it there or correct the rule.",
        "a list takes yes or no.",
    ]


def test_a_list_that_fills_blanks_leaves_whoever_is_there(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.set_status(there, "Newsletter", 1)
    receipt = ac.deliver({"lists.Newsletter": False}, modes={"lists.Newsletter": Mode.IF_BLANK})
    assert ac.ana()["lists"] == {"Newsletter": 1}
    assert receipt.accepted["lists.Newsletter"] is True


def test_an_opt_out_ends_every_subscription_and_lists_wait_for_no_other_field(ac: Account) -> None:
    first = ac.deliver({"lists.Newsletter": True, "lists.Product news": True})
    assert first.target_id
    ac.fake.set_status(first.target_id, "Product news", 0)
    ac.fake.trouble(status=422, body={"errors": [INVALID]}, method="PUT")
    wanted: Fields = {"lists.Newsletter": True, "lists.Product news": True, "firstName": "x"}
    with pytest.raises(Permanent):
        ac.deliver(wanted, first, opt_out=True)
    assert ac.ana()["lists"] == {"Newsletter": 2, "Product news": 2}
    second = ac.deliver(wanted, first, opt_out=True)
    assert second.opted_out
    assert second.accepted == {
        "email": EMAIL,
        "lists.Newsletter": True,
        "lists.Product news": True,
        "firstName": "x",
    }
    assert ac.deliver(wanted, second).opted_out
    assert ac.fake.loosened == []


def test_an_opt_out_subscribes_nobody(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    receipt = ac.deliver({"lists.Newsletter": True}, opt_out=True)
    assert ac.ana()["lists"] == {}
    assert receipt.opted_out
    assert receipt.accepted["lists.Newsletter"] is False
    assert any("opted out" in note for note in receipt.notes)
    assert any("on no list" in note for note in receipt.notes)
    later = ac.deliver({"lists.Newsletter": True}, receipt)
    assert (later.opted_out, later.target_id, ac.ana()["lists"]) == (True, there, {})


def test_an_opt_out_that_the_platform_does_not_show_is_not_taken_for_done(ac: Account) -> None:
    first = ac.deliver({"lists.Newsletter": True})
    done = {"contactList": {"id": "1", "contact": first.target_id, "list": "1", "status": 2}}
    ac.fake.trouble(status=200, body=done, method="POST", path="/contactLists")
    with pytest.raises(Retryable) as caught:
        ac.deliver({"lists.Newsletter": True}, first, opt_out=True)
    assert caught.value.code == "unproven"


def test_newer_state_stops_no_proof(ac: Account) -> None:
    first = ac.deliver({"lists.Newsletter": True, "fields.RENEWAL": "2026-11-30", "phone": "+525512345678"})
    ac.forget_calls()

    def take() -> None:
        if ac.writes():
            raise Superseded

    api = ac.api_with(take=take, turn=lambda: None)
    left = ac.deliver({"lists.Newsletter": False}, first, api=api)
    assert left.accepted["lists.Newsletter"] is False
    ac.forget_calls()
    cleared = ac.deliver({"fields.RENEWAL": None, "phone": None}, first, api=api)
    assert (cleared.accepted["fields.RENEWAL"], ac.ana()["phone"]) == (None, "")


def test_a_subscription_that_the_platform_does_not_show_is_not_taken_for_done(ac: Account) -> None:
    done = {"contactList": {"id": "1", "contact": "1", "list": "1", "status": 1}}
    ac.fake.trouble(status=200, body=done, method="POST", path="/contactLists")
    receipt = ac.deliver({"lists.Newsletter": True})
    assert receipt.accepted["lists.Newsletter"] is False
    assert receipt.notes


def test_another_channel_is_no_subscription_by_mail_and_is_named(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.set_status(there, "Newsletter", 1)
    ac.fake.set_status(there, "Product news", 1)
    texts = next(
        row for (_, number), row in ac.fake.memberships.items() if ac.fake.lists[number] == "Product news"
    )
    texts.channel = "sms"
    receipt = ac.deliver({}, opt_out=True)
    assert ac.ana()["lists"] == {"Newsletter": 2, "Product news": 1}
    assert receipt.opted_out
    assert any("another channel" in note for note in receipt.notes)


LISTS = ("Newsletter", "Product news")
WISHES = st.fixed_dictionaries({}, optional=dict.fromkeys(LISTS, st.sampled_from([True, True, False])))
BEFORE = st.fixed_dictionaries({name: st.sampled_from([None, 0, 1, 2, 3]) for name in LISTS})
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["push", "push anew"]), WISHES, st.sampled_from([False, False, True])),
        st.tuples(st.just("platform"), st.sampled_from(LISTS), st.integers(0, 3)),
        st.tuples(st.sampled_from(["unsubscribe", "lost answer"]), st.none(), st.none()),
    ),
    max_size=5,
)


def test_no_history_lets_a_call_loosen_a_subscription() -> None:
    with Account() as ac:
        ac.fake.welcome_list = ""
        numbers = iter(range(10_000))

        @settings(max_examples=80, deadline=None, derandomize=True, database=None)
        @given(BEFORE, STEPS, WISHES)
        def run(before: dict[str, int | None], steps: list[tuple[Any, Any, Any]], last: dict[str, bool]) -> None:
            email = f"person.{next(numbers)}@example.com"
            target_id = ac.fake.add_contact(email)
            for name, status in before.items():
                if status is not None:
                    ac.fake.set_status(target_id, name, status)
            known = Receipt("updated", target_id)
            for step, what, how in [*steps, ("push", last, False)]:
                was_out = ac.fake.opted_out(target_id)
                if step == "platform":
                    ac.fake.set_status(target_id, what, how)
                elif step == "unsubscribe":
                    ac.fake.unsubscribe(target_id)
                elif step == "lost answer":
                    ac.fake.trouble(how="drop_after", method="POST", path="/contactLists")
                else:
                    wanted = {"email": email, **{f"lists.{name}": wish for name, wish in what.items()}}
                    try:
                        known = ac.deliver(wanted, known if step == "push" else None, opt_out=how)
                    except Retryable as error:
                        assert error.maybe_done
                    else:
                        assert not how or not {0, 1} & set(ac.fake.person(email)["lists"].values())
                        assert known.opted_out or not ac.fake.opted_out(target_id)
                    assert ac.fake.opted_out(target_id) or not was_out
                assert ac.fake.loosened == []
            ac.fake.troubles.clear()

        run()


# --- removal ---------------------------------------------------------------------------------------------


def removal(target_id: str | None, email: str = "", **how: Any) -> Job:
    fields: dict[str, Value] = {"email": email} if email else {}
    return Job(KEY, Desired(fields, gone=True), None, target_id, NOW, **how)


@pytest.mark.parametrize("deleted_read", ActiveCampaign.SWITCHES["deleted_read"])
def test_a_contact_is_removed_once_and_gone_is_as_good(
    with_switches: Callable[..., Account], deleted_read: str
) -> None:
    ac = with_switches(deleted_read=deleted_read)
    first = ac.deliver({})
    assert ac.target.remove(ac.api(), removal(first.target_id)).outcome == "removed"
    assert ac.fake.people() == []
    again = ac.target.remove(ac.api(), removal(first.target_id))
    assert again.outcome == "removed"
    assert again.notes
    assert len(ac.fake.made("DELETE")) == 1


def test_a_contact_that_goes_while_it_is_removed_is_as_good_as_removed(ac: Account) -> None:
    first = ac.deliver({})
    ac.fake.trouble(status=404, body={"message": "No Result found for Subscriber with id 1"}, method="DELETE")
    assert ac.target.remove(ac.api(), removal(first.target_id)).outcome == "removed"


def test_what_a_removed_contact_held_of_an_opt_out_is_reported(ac: Account) -> None:
    first = ac.deliver({"lists.Newsletter": True})
    assert first.target_id
    ac.fake.unsubscribe(first.target_id)
    assert ac.target.remove(ac.api(), removal(first.target_id)).opted_out


def test_an_unlinked_contact_is_removed_only_if_it_is_nobody_elses(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)

    def link(target_id: str) -> None:
        raise Ambiguous("It is linked to another record.")

    with pytest.raises(Ambiguous):
        ac.target.remove(ac.api(), removal(None, EMAIL, link=link))
    assert ac.fake.made("DELETE") == []
    assert ac.target.remove(ac.api(), removal(None, EMAIL)).target_id == there
    assert ac.fake.people() == []


def test_removing_who_is_not_there_is_done_unless_a_create_is_still_open(ac: Account) -> None:
    assert ac.target.remove(ac.api(), removal(None, EMAIL)).outcome == "absent"
    assert ac.target.remove(ac.api(), removal(None)).outcome == "absent"
    with pytest.raises(Retryable) as caught:
        ac.target.remove(ac.api(), removal(None, EMAIL, unsure_since=NOW, settled=False))
    assert caught.value.code == "unsure"


# --- the stand-in itself ---------------------------------------------------------------------------------


class Wire:
    """Calls of a plain client, for what the adapter never sends."""

    def __init__(self, account: Account) -> None:
        self.api = account.api()

    def __call__(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, Any]:
        reply = self.api.call(method, path, json=body, query=query or None, headers={"Api-Token": API_KEY})
        return reply.status, reply.json()


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/contacts", {"contact": {"email": EMAIL, "firstname": "Ana"}}, "unknown_attribute"),
        ("POST", "/contacts", {"contact": {"email": EMAIL}, "extra": 1}, "unknown_attribute"),
        ("POST", "/contacts", {"contact": {"email": "nobody"}}, "email_invalid"),
        ("POST", "/contacts", {"contact": {}}, "email_invalid"),
        ("POST", "/contacts", {"contact": {"email": EMAIL, "phone": 5}}, "invalid"),
        ("POST", "/contacts", {"contact": {"email": "taken@example.com"}}, "duplicate"),
        ("POST", "/contact/sync", {"contact": {"firstName": "Ana"}}, "email_invalid"),
        ("POST", "/contact/sync", {"email": EMAIL}, None),
        ("POST", "/contact/sync", {"contact": {"email": EMAIL, "fieldValues": {}}}, "invalid"),
        (
            "POST",
            "/contactLists",
            {"contactList": {"list": "101", "contact": "101", "status": 1}},
            "related_missing",
        ),
        ("POST", "/contactTags", {"contactTag": {"contact": True, "tag": "1"}}, "invalid"),
        ("POST", "/tags", {"tag": {"tag": "", "tagType": "contact"}}, "invalid"),
    ],
)
def test_the_stand_in_refuses_what_the_platform_would(
    ac: Account, method: str, path: str, body: Any, code: str | None
) -> None:
    ac.fake.add_contact("taken@example.com")
    status, answer = Wire(ac)(method, path, body)
    assert (status, answer["errors"][0].get("code")) == (422, code)


def test_the_stand_in_shows_contacts_as_the_platform_does(ac: Account) -> None:
    wire = Wire(ac)
    status, body = wire("POST", "/contacts", {"contact": {"email": EMAIL, "phone": "+525512345678"}})
    assert status == 201
    assert "hash" not in body["contact"]  # the short form
    for place in range(25):
        ac.fake.add_contact(f"p{place}@example.com", phone=f"+1555{place:04d}")
    _, page = wire("GET", "/contacts")
    assert (len(page["contacts"]), page["meta"]["total"]) == (20, "26")
    assert len(wire("GET", "/contacts", limit=500, offset=1)[1]["contacts"]) == 25
    assert [row["email"] for row in wire("GET", "/contacts", phone="+5255")[1]["contacts"]] == [EMAIL]
    assert wire("GET", "/contacts", fone="+5255")[0] == 400
    ordered = wire("GET", "/contacts", **{"orders[id]": "desc", "id_greater": body["contact"]["id"], "limit": 1})[
        1
    ]
    assert ordered["contacts"][0]["email"] == "p24@example.com"
    _, whole = wire("GET", f"/contacts/{body['contact']['id']}")
    assert {"contact", "contactLists", "fieldValues"} <= set(whole)
    assert isinstance(whole["contact"]["id"], str)


def test_the_stand_in_limits_calls_with_the_three_headers(ac: Account) -> None:
    ac.fake.limit = 5
    api = ac.api()
    replies = [api.call("GET", "/users/me", headers={"Api-Token": API_KEY}) for _ in range(6)]
    assert [reply.status for reply in replies] == [200] * 5 + [429]
    assert replies[0].headers["ratelimit-limit"] == "5"
    assert [reply.headers["ratelimit-remaining"] for reply in replies] == ["4", "3", "2", "1", "0", "0"]
    assert replies[-1].retry_after_s == 1


def test_the_stand_in_imports_later_and_limits_imports_with_a_400(ac: Account) -> None:
    wire = Wire(ac)
    ac.fake.imports_per_minute = 2
    left = ac.fake.add_contact("left@example.com")
    ac.fake.set_status(left, "Newsletter", 2)
    number = next(n for n, name in ac.fake.lists.items() if name == "Newsletter")
    people = [
        {"email": EMAIL, "first_name": "Ana", "tags": ["crm"], "subscribe": [{"listid": number}]},
        {"email": "left@example.com", "subscribe": [{"listid": number}]},
    ]
    status, queued = wire("POST", "/import/bulk_import", {"contacts": people})
    assert (status, queued["Success"], queued["queued_contacts"]) == (200, 1, 2)
    states = [wire("GET", "/import/info", batchId=queued["batchId"])[1] for _ in range(3)]
    assert [state["status"] for state in states] == ["waiting", "waiting", "completed"]
    assert (len(states[2]["success"]), states[2]["failure"]) == (1, ["left@example.com"])
    assert (ac.ana()["firstName"], ac.ana()["tags"], ac.ana()["lists"]) == ("Ana", ["crm"], {"Newsletter": 1})
    assert ac.fake.loosened == []
    status, refused = wire("POST", "/import/bulk_import", {"contacts": [people[0], {"mail": "x"}]})
    assert (status, refused["failureReasons"][0]["contact"]) == (400, 1)
    status, refused = wire("POST", "/import/bulk_import", {"contacts": people})
    assert (status, refused["message"]) == (400, "Rate limit exceeded.")
    assert wire("GET", "/import/info")[0] == 400
    assert wire("GET", "/import/bulk_import")[1]["recentlyCompleted"] == [queued["batchId"]]


def test_the_stand_in_notices_a_call_that_loosens(ac: Account) -> None:
    there = ac.fake.add_contact(EMAIL)
    ac.fake.set_status(there, "Newsletter", 2)
    number = next(n for n, name in ac.fake.lists.items() if name == "Newsletter")
    row = {"list": number, "contact": there, "status": 1}
    status, body = Wire(ac)("POST", "/contactLists", {"contactList": row})
    assert (status, body["contactList"]["status"]) == (200, 1)
    assert [(change.old, change.new) for change in ac.fake.loosened] == [(2, 1)]
