"""Field rules: what one target should hold of a contact, and the sentence where that is nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.contact import merge
from bridge.expressions import Expression
from bridge.model import Change, Contact, Desired, Kind, Mode, RecordKey, Value, Version, Want
from bridge.rules import Empty, FieldRule, OnDelete, Route, decide
from bridge.targets.base import FieldKind, Target, TargetField, TargetType

START = datetime(2026, 3, 2, 10, tzinfo=UTC)
KEY = RecordKey("crm", "1")


@dataclass(frozen=True, slots=True)
class NoSettings:
    """A target without settings."""


def no_adapter(settings: object) -> Target:
    raise AssertionError("rules make no adapters")


PLATFORM = TargetType(
    name="platform",
    title="Platform",
    settings=NoSettings,
    fields=(
        TargetField("mobile", FieldKind.PHONE),
        TargetField("email", FieldKind.EMAIL),
        TargetField("name"),
        TargetField("tags", FieldKind.NAMES),
        TargetField("attributes.*", FieldKind.ANY),
    ),
    identities=(("mobile",), ("email", "name")),
    lanes=1,
    rate_per_s=1,
    burst=1,
    make=no_adapter,
    base_url=lambda settings: "https://platform.example",
)
KINDS = {"mobile": FieldKind.PHONE, "email": FieldKind.EMAIL, "tags": FieldKind.NAMES}


def rule(target: str, text: str, *, mode: Mode = Mode.ALWAYS, empty: Empty = Empty.LEAVE) -> FieldRule:
    value = Expression.compile(text, region="US")
    return FieldRule(target, value, KINDS.get(target, FieldKind.TEXT), mode, empty)


def route(*rules: FieldRule, when: str = "", opt_out: str = "", **more: Any) -> Route:
    return Route(
        "crm",
        "sms",
        PLATFORM,
        rules or (rule("mobile", "mobilephone or phone | e164"), rule("name", "firstname")),
        when=Expression.compile(when, condition=True) if when else None,
        opt_out=Expression.compile(opt_out, condition=True) if opt_out else None,
        region="US",
        **more,
    )


def at(minutes: int) -> Version:
    return Version(START + timedelta(minutes=minutes), f"event-{minutes}")


def said(minutes: int, kind: Kind = Kind.CHANGED, key: RecordKey = KEY, /, **fields: Value) -> Change:
    return Change(key, kind, at(minutes), fields)


def contact(*changes: Change, **fields: Value) -> Contact:
    known = Contact(KEY)
    for change in (*changes, *([said(1, Kind.CHANGED, KEY, **fields)] if fields else [])):
        known = merge(replace(known, key=change.key), change)
    return known


def desired(want: Want) -> Desired:
    assert want.desired is not None, want.reason
    return want.desired


def waits(want: Want) -> str:
    assert want.desired is None
    assert want.reason.endswith(".")
    return want.reason


# --- fields ------------------------------------------------------------------------------------------------


def test_a_contact_becomes_what_the_target_should_hold() -> None:
    want = decide(route(), contact(phone="(202) 555-0123", firstname="Ada"))
    assert want == Want("sms", KEY, Desired({"mobile": "+12025550123", "name": "Ada"}))


def test_phones_and_addresses_are_normalised_whatever_the_rule_did() -> None:
    rules = [rule("mobile", "mobilephone or phone | e164"), rule("email", "email")]
    want = decide(route(*rules), contact(mobilephone="202-555-0123", email="ADA@Example.com"))
    assert desired(want).fields == {"mobile": "+12025550123", "email": "ada@example.com"}


def test_a_field_that_was_never_mentioned_is_left_alone() -> None:
    rules = [
        rule("mobile", "phone"),
        rule("name", "firstname ~ ' ' ~ lastname"),
        rule("tags", "tier | default('x')"),
    ]
    want = decide(route(*rules), contact(phone="2025550123", firstname="Ada"))
    assert desired(want).fields == {"mobile": "+12025550123"}
    assert want.dropped == {}


def test_a_constant_needs_no_field() -> None:
    want = decide(route(rule("mobile", "phone"), rule("tags", "['crm']")), contact(phone="2025550123"))
    assert desired(want).fields["tags"] == ["crm"]


@pytest.mark.parametrize("cleared", [None, "", " ", []])
def test_a_cleared_field_is_left_alone_unless_the_rule_clears(cleared: Value) -> None:
    known = contact(phone="2025550123", firstname=cleared)
    assert "name" not in desired(decide(route(), known)).fields
    clearing = route(rule("mobile", "phone"), rule("name", "firstname", empty=Empty.CLEAR))
    assert desired(decide(clearing, known)).fields["name"] is None


def test_an_empty_result_clears_only_when_all_that_it_is_made_of_is_known() -> None:
    clearing = route(rule("mobile", "phone"), rule("name", "nick or firstname", empty=Empty.CLEAR))
    assert "name" not in desired(decide(clearing, contact(phone="2025550123", nick=None))).fields
    both = contact(phone="2025550123", nick=None, firstname="")
    assert desired(decide(clearing, both)).fields["name"] is None


def test_two_cleared_names_joined_are_empty_and_not_a_blank() -> None:
    joined = route(rule("mobile", "phone"), rule("name", "firstname ~ ' ' ~ lastname"))
    known = contact(phone="2025550123", firstname=None, lastname="")
    assert "name" not in desired(decide(joined, known)).fields


def test_a_bad_value_drops_its_field_and_says_why() -> None:
    rules = [rule("mobile", "mobilephone"), rule("email", "email"), rule("name", "firstname")]
    want = decide(route(*rules), contact(mobilephone="12", email="ada@example.com", firstname="Ada"))
    assert desired(want).fields == {"email": "ada@example.com", "name": "Ada"}
    assert want.dropped == {"mobile": "The value is not a phone number that can be in use in US."}


def test_modes_travel_with_their_fields() -> None:
    rules = [
        rule("mobile", "phone"),
        rule("name", "firstname", mode=Mode.IF_BLANK),
        rule("tags", "tier", mode=Mode.CREATE_ONLY),
    ]
    want = desired(decide(route(*rules), contact(phone="2025550123", firstname="Ada")))
    assert want.modes == {"name": Mode.IF_BLANK}
    assert want.mode("mobile") is Mode.ALWAYS


def test_a_route_reads_what_any_of_its_expressions_read() -> None:
    reading = route(rule("mobile", "a or b | e164"), when="c == 'x'", opt_out="fields['d-e'] == 'y'")
    assert reading.reads == {"a", "b", "c", "d-e"}


def test_a_route_may_refuse_to_create() -> None:
    assert desired(decide(route(create=False), contact(phone="2025550123"))).create is False


def test_target_ids_of_merged_records_are_inherited() -> None:
    heir = replace(contact(phone="2025550123"), inherits=("7", "8"))
    assert decide(route(), heir).inherit_from == ("7", "8")


# --- who it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"firstname": "Ada"}, "the CRM has not told 'mobilephone' and 'phone' yet"),
        ({"phone": None, "mobilephone": ""}, "'mobilephone' and 'phone' are empty in the CRM"),
        ({"phone": "12"}, "mobile was left out (The value is not a phone number that can be in use in US)"),
    ],
)
def test_without_identity_a_contact_waits_and_says_for_what(fields: Mapping[str, Value], told: str) -> None:
    reason = waits(decide(route(), contact(said(1, Kind.CHANGED, KEY, **fields))))
    assert reason.startswith("Waiting for mobile: ")
    assert told in reason


def test_any_complete_identity_will_do() -> None:
    both = route(rule("mobile", "phone"), rule("email", "email"), rule("name", "firstname"))
    assert desired(decide(both, contact(email="a@example.com", firstname="Ada"))).fields.keys() == {
        "email",
        "name",
    }
    reason = waits(decide(both, contact(email="a@example.com")))
    assert reason.startswith("Waiting for mobile or name: ")


def test_a_cleared_identity_is_none() -> None:
    clearing = route(rule("mobile", "phone", empty=Empty.CLEAR), rule("name", "firstname"))
    assert "is empty in the CRM" in waits(decide(clearing, contact(phone=None, firstname="Ada")))


# --- when --------------------------------------------------------------------------------------------------


def test_the_condition_is_said_when_it_is_not_met() -> None:
    customers = route(when="stage in ('customer',)")
    assert decide(customers, contact(phone="2025550123", stage="customer")).desired is not None
    assert "is not met" in waits(decide(customers, contact(phone="2025550123", stage="lead")))
    assert "is not met" in waits(decide(customers, contact(phone="2025550123", stage=None)))


def test_a_condition_waits_for_what_is_not_known() -> None:
    not_blocked = route(when="stage != 'blocked'")
    reason = waits(decide(not_blocked, contact(phone="2025550123")))
    assert reason.startswith("Waiting for the CRM to tell 'stage'")
    assert decide(not_blocked, contact(phone="2025550123", stage="")).desired is not None


def test_a_condition_that_cannot_be_computed_sends_nothing() -> None:
    rich = route(when="(amount | number) > 5")
    assert "cannot be computed" in waits(decide(rich, contact(phone="2025550123", amount="a lot")))


# --- contacts that are no more -----------------------------------------------------------------------------

GONE = {
    "deleted": [said(1, phone="2025550123"), said(2, Kind.DELETED)],
    "merged": [said(1, phone="2025550123"), replace(said(2, Kind.MERGED), survivor="2")],
    "erased": [said(1, phone="2025550123"), said(2, Kind.ERASED)],
}


@pytest.mark.parametrize("how", GONE)
def test_a_route_that_removes_removes(how: str) -> None:
    want = decide(route(on_delete=OnDelete.REMOVE), contact(*GONE[how]))
    assert want.desired == Desired(gone=True)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("deleted", 'Deleted in the CRM. This route keeps contacts (on_delete = "keep"), so nothing is changed.'),
        ("merged", "Merged into contact 2 in the CRM"),
        ("erased", "a person must remove the contact there"),
    ],
)
def test_a_route_that_keeps_says_so(how: str, told: str) -> None:
    assert told in waits(decide(route(), contact(*GONE[how])))


def test_a_restored_contact_is_wanted_again() -> None:
    assert desired(decide(route(), contact(*GONE["deleted"], said(3, Kind.CREATED)))).fields["mobile"]


# --- opt-out -----------------------------------------------------------------------------------------------

TIGHTEN = Desired(opt_out=True, create=False)
STOP = {"optout": "true"}


def stopping(**more: Any) -> Route:
    return route(opt_out="optout == 'true'", **more)


def test_who_said_stop_is_opted_out_and_never_created() -> None:
    want = desired(decide(stopping(), contact(phone="2025550123", **STOP)))
    assert (want.opt_out, want.create, want.fields) == (True, False, {"mobile": "+12025550123"})


def test_clearing_an_opt_out_is_not_consent() -> None:
    known = contact(said(1, phone="2025550123", **STOP), said(2, optout=None), said(3, optout=""))
    assert desired(decide(stopping(), known)).opt_out
    assert not desired(decide(stopping(), contact(known_yes(known)))).opt_out


def known_yes(known: Contact) -> Change:
    return Change(KEY, Kind.CHANGED, at(9), {"phone": known.fields["phone"].value, "optout": "false"})


def test_an_opt_out_reaches_what_is_there_though_nothing_else_may_be_sent() -> None:
    cases = [
        decide(stopping(when="stage == 'customer'"), contact(phone="2025550123", stage="lead", **STOP)),
        decide(stopping(), contact(firstname="Ada", **STOP)),
        decide(stopping(), contact(phone="12", **STOP)),
        decide(stopping(), contact(said(1, phone="2025550123", **STOP), said(2, Kind.DELETED))),
    ]
    for want in cases:
        assert want.desired == TIGHTEN
        assert want.reason


def test_what_was_never_said_is_no_opt_out() -> None:
    for text in ("optout == 'true'", "consent != 'yes'", "not (consent == 'yes')"):
        assert not desired(decide(route(opt_out=text), contact(phone="2025550123"))).opt_out
        assert not desired(decide(route(opt_out=text), contact(phone="2025550123", consent=None))).opt_out


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("false", "true", True),
        ("true", "false", True),
        ("false", "No", False),
        ("0", False, False),
        (True, "", True),
    ],
)
def test_a_text_that_says_no_is_no_opt_out_and_hides_none(first: Value, second: Value, expected: bool) -> None:
    known = contact(phone="2025550123", optout=first, stop=second)
    assert desired(decide(route(opt_out="optout or stop"), known)).opt_out is expected


def test_an_opt_out_that_cannot_be_understood_stops_everything() -> None:
    want = decide(route(opt_out="optout | boolean"), contact(phone="2025550123", optout="perhaps"))
    assert "opt_out rule cannot be computed" in waits(want)


def other(minutes: int, source_id: str = "2", **fields: Value) -> Contact:
    return merge(None, said(minutes, Kind.CHANGED, RecordKey("crm", source_id), **fields))


def test_an_opt_out_of_a_merged_record_counts_until_a_later_yes() -> None:
    lost = other(5, **STOP)
    silent = contact(phone="2025550123")
    before = contact(said(4, phone="2025550123", optout="false"))
    after = contact(said(6, phone="2025550123", optout="false"))
    cleared = contact(said(4, phone="2025550123", optout="false"), said(7, optout=None))
    verdicts = [desired(decide(stopping(), one, [lost])).opt_out for one in (silent, before, after, cleared)]
    assert verdicts == [True, True, False, True]
    assert desired(
        decide(stopping(), contact(said(1, phone="2025550123", **STOP)), [other(9, optout="false")])
    ).opt_out


def test_merged_records_count_in_any_order() -> None:
    others = [
        other(2, "2", **STOP),
        other(8, "3", optout="false"),
        other(5, "4", **STOP),
        Contact(RecordKey("crm", "5")),
    ]
    for minutes, expected in ((1, True), (4, True), (6, False)):
        survivor = contact(said(minutes, phone="2025550123", optout="false"))
        found = {desired(decide(stopping(), survivor, order)).opt_out for order in permutations(others)}
        assert found == {expected}


# --- for any contact ---------------------------------------------------------------------------------------

NAMES = ("phone", "mobilephone", "email", "firstname", "optout", "stage", "tier")
odd: list[Any] = [
    None, "", " ", "true", "false", "perhaps", "2025550123", "12", "ada@example.com", "customer", "lead", "x;y",
    0, 1, 2.5, -(10**40), True, False, [],
    ["a", None], {}, {"a": ["b"]}, "\x00", "\ud800", "%999999999d", "{{ 1 }}",
]  # fmt: skip
plain = st.sampled_from(odd) | st.text(max_size=6)
kinds = st.sampled_from([Kind.CHANGED] * 6 + [Kind.CREATED, Kind.DELETED, Kind.ERASED])
changes = st.builds(
    lambda minutes, kind, fields: Change(KEY, kind, at(minutes), fields),
    st.integers(0, 20),
    kinds,
    st.dictionaries(st.sampled_from(NAMES), plain),
)
RULES = (
    rule("mobile", "mobilephone or phone | e164", empty=Empty.CLEAR),
    rule("email", "email", mode=Mode.IF_BLANK),
    rule("name", "firstname ~ ' ' ~ (stage | upper)", empty=Empty.CLEAR),
    rule("tags", "tier | multi"),
    rule("attributes.tier", "tier | default('none')"),
)
ROUTES = [
    route(*RULES, when=when, opt_out=opt_out, on_delete=on_delete)
    for when in ("", "stage == 'customer'", "stage != 'lead'", "(stage | number) > 1")
    for opt_out in ("", "optout == 'true'", "optout | boolean", "optout != 'false'")
    for on_delete in OnDelete
]


@given(st.sampled_from(ROUTES), st.lists(changes, max_size=4), st.lists(changes, max_size=2))
@settings(max_examples=200, deadline=None)
def test_every_decision_is_one_that_may_be_carried_out(
    chosen: Route, ours: list[Change], theirs: list[Change]
) -> None:
    known = contact(*ours)
    absorbed = [merge(None, replace(change, key=RecordKey("crm", "2"))) for change in theirs]
    want = decide(chosen, known, absorbed)
    if want.desired is None:
        assert want.reason
        return
    mentioned = {name for change in ours for name in change.fields}
    reads = {rule.target: rule.value.names for rule in chosen.fields}
    for name, value in want.desired.fields.items():
        assert reads[name] & mentioned
        assert value is not None or reads[name] <= mentioned
        assert value not in ("", [], {})
    if want.desired.fields:
        assert any(all(want.desired.fields.get(n) is not None for n in group) for group in PLATFORM.identities)


@given(st.sampled_from(ROUTES), st.lists(changes, max_size=5), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_clearing_fields_loosens_nothing(chosen: Route, ours: list[Change], minutes: int) -> None:
    before = decide(chosen, contact(*ours))
    cleared = Change(KEY, Kind.CHANGED, at(minutes), dict.fromkeys(NAMES))
    after = decide(chosen, contact(*ours, cleared))
    if before.desired is not None and before.desired.opt_out:
        assert after.desired is not None
        assert after.desired.opt_out
