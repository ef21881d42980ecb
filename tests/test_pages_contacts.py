"""Contacts in a browser: finding one, its story, what its targets hold of it, and having it tried again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from html import unescape
from typing import Any

import pytest

from bridge.lanes import process_lane
from bridge.model import (
    AuditEntry,
    Contact,
    Delivery,
    Desired,
    FieldState,
    Mode,
    RecordKey,
    State,
    Value,
    Version,
    utc_now,
)
from bridge.store.looking import Role
from bridge.store.protocol import Decision, Filter, Page
from bridge.web.pages import comparing, person
from bridge.web.pages.words import contact_url
from tests.stage import (
    AMBIGUOUS,
    DELETED,
    EDITED,
    ERASED,
    FAILED,
    HOSTILE,
    OPTED_OUT,
    PRUNED,
    RETRYING,
    SYNCED,
    WAITING,
    Session,
    Stage,
    source_id,
    text_of,
)

NOW = utc_now()


@pytest.fixture(scope="module")
def ada(stage: Stage) -> Iterator[Session]:
    with stage.session() as session:
        yield session


def key(number: int) -> RecordKey:
    return RecordKey("shop", source_id(number))


def put(stage: Stage, *contacts: Contact) -> None:
    ticket = stage.store.acquire(process_lane("shop"), "test", utc_now())
    stage.store.commit(ticket, Decision(contacts=contacts), utc_now())


def contact(source_id: str, fields: Mapping[str, Value] | None = None, **parts: Any) -> Contact:
    said = {name: FieldState(value, Version(NOW, "event-1")) for name, value in (fields or {}).items()}
    return replace(Contact(RecordKey("shop", source_id), fields=said), **parts)


# --- the list ------------------------------------------------------------------------------------------------


def test_the_list_shows_how_everybody_stands(ada: Session) -> None:
    html = ada.page("/contacts")
    rows = [text_of(f"<main{row}</main>") for row in re.findall(r"<tr data-href.*?</tr>", html, re.DOTALL)]
    assert len(rows) == 11
    failed = next(row for row in rows if source_id(FAILED) in row)
    assert "Person 6" in failed
    assert "sms failed" in failed
    assert "inbox synced" in failed
    assert "erased" in next(row for row in rows if source_id(ERASED) in row)
    assert rows.index(failed) < next(n for n, row in enumerate(rows) if source_id(PRUNED) in row)


@pytest.mark.parametrize("q", ["person 6", "person6@ex", "525512340006", "PERSON6@example.com"])
def test_a_text_finds_people_by_what_is_known_of_them(ada: Session, q: str) -> None:
    html = ada.page("/contacts", q=q, source="")
    assert re.findall(r'<tr data-href="([^"]+)"', html) == [f"/contacts/shop/{source_id(FAILED)}"]
    assert f'value="{q}"' in html


def test_a_filter_that_finds_nobody_says_so_and_can_be_taken_away(ada: Session) -> None:
    html = ada.page("/contacts", q="nobody at all", source="shop")
    assert "No contact matches" in html
    assert 'href="/contacts?source=shop"' in html
    assert 'href="/contacts?q=nobody+at+all"' in html


def test_an_exact_id_opens_its_contact_the_sources_or_a_targets(stage: Stage, ada: Session) -> None:
    target_id = next(one.target_id for one in stage.store.deliveries_of(key(SYNCED)) if one.target == "register")
    for q in (source_id(SYNCED), target_id):
        answer = ada.get(stage.url + "/contacts", params={"q": q, "source": ""}, timeout=10)
        assert answer.url == f"{stage.url}/contacts/shop/{source_id(SYNCED)}"


def test_while_somebody_types_an_exact_id_only_points_to_its_contact(stage: Stage, ada: Session) -> None:
    typing = {"HX-Request": "true"}
    html = ada.get(stage.url + "/contacts", params={"q": source_id(1)}, headers=typing, timeout=10).text
    assert f'href="/contacts/shop/{source_id(1)}"' in html
    assert "exactly this id" in html
    other = ada.page("/contacts", q=source_id(1), source="elsewhere")
    assert "exactly this id" not in other  # it is another source's


@pytest.mark.parametrize(
    "path", ["/contacts?cursor=made-up", "/contacts?sauce=shop", "/contacts/shop/84001?cursor=x"]
)
def test_a_made_up_address_is_told(ada: Session, path: str) -> None:
    assert "That cannot be read" in ada.page(path, status=400)


def test_a_long_list_goes_on_without_gaps(own_stage: Stage) -> None:
    put(own_stage, *[contact(f"many-{n}", {"name": "Same"}) for n in range(60)])
    with own_stage.session(Role.VIEWER) as session:
        seen: list[str] = []
        path = "/contacts?q=same"
        while path:
            html = session.page(path)
            seen += re.findall(r'<tr data-href="/contacts/shop/([^"]+)"', html)
            older = re.search(r'href="([^"]+)" rel="next"', html)
            path = unescape(older[1]) if older else ""
    assert sorted(seen) == sorted(f"many-{n}" for n in range(60))


def test_a_search_that_did_not_reach_the_end_says_how_far_it_came(
    own_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_to = NOW - timedelta(days=400)
    monkeypatch.setattr(own_stage.store, "contact_page", lambda *_given: Page([], "1:1", back_to))
    monkeypatch.setattr(own_stage.store, "audit_page", lambda *_given: Page([], "1:1", back_to))
    with own_stage.session(Role.VIEWER) as session:
        listed = session.page("/contacts?q=rare")
        shown = session.page(f"/contacts/shop/{source_id(SYNCED)}?target=sms")
    assert f"searched back to {back_to:%Y-%m-%d %H:%M:%S} UTC" in text_of(listed)
    assert 'href="/contacts?cursor=1%3A1&amp;q=rare" rel="next"' in listed
    assert "None among those looked at so far" in text_of(shown)


# --- one contact ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            SYNCED,
            [
                "The target holds what the CRM says.",
                "Because of webhook",
                "email same person1@example.com person1@example.com",
            ],
        ),
        (EDITED, ["Grace", '["a list", 3, ""]']),
        (WAITING, ["waiting", "none at all"]),
        (AMBIGUOUS, ["ambiguous", "2 contacts in Clerk Chat have this phone number", "missing"]),
        (OPTED_OUT, ["The CRM says that the person opted out, and the target holds it."]),
        (FAILED, ["Sakari refused", "1, the last one: invalid (HTTP 400)", "missing", "Behind since"]),
        (RETRYING, ["Bridge tries again by itself", "Next attempt", "when the target takes deliveries again"]),
        (
            ERASED,
            ["This person was erased in the CRM", "Bridge keeps no value", "deleted when the person was erased"],
        ),
        (DELETED, ["The CRM deleted this contact"]),
        (PRUNED, ["The contents of these calls were pruned"]),
    ],
)
def test_a_contact_tells_why_it_is_as_it_is(ada: Session, number: int, told: list[str]) -> None:
    text = text_of(ada.page(f"/contacts/shop/{source_id(number)}"))
    for sentence in told:
        assert sentence in text


def test_nothing_of_an_erased_person_is_shown(ada: Session) -> None:
    html = ada.page(f"/contacts/shop/{source_id(ERASED)}")
    assert f"person{ERASED}@" not in html
    assert f"Person {ERASED}" not in html
    assert "+5255" not in html
    assert "data-retry" not in html.split("<main")[1]  # nothing is left to be done


def test_attempts_show_what_was_sent_and_answered(ada: Session) -> None:
    html = ada.page(f"/contacts/shop/{source_id(FAILED)}", target="sms")
    text = text_of(html)
    assert "1 call: request and response" in text
    assert '"code": "VALIDATION"' in unescape(html)  # indented
    assert "HTTP 400" in text
    assert "inbox" not in text[text.index("Timeline") :]


@pytest.mark.parametrize("number", [EDITED, PRUNED])
def test_each_value_names_the_webhook_that_brought_it(stage: Stage, ada: Session, number: int) -> None:
    html = ada.page(f"/contacts/shop/{source_id(number)}")
    fields = html[html.index("What shop says") : html.index('id="timeline"')]
    spoke = stage.store.audit_page(Filter(source="shop", source_id=source_id(number), kind="contact"), None, 1)
    newest = spoke.items[0].inbound_id
    assert set(re.findall(r"/webhooks/(\d+)", fields)) == {str(newest)}


def test_what_was_read_from_the_crm_says_so(own_stage: Stage) -> None:
    read = Contact(RecordKey("shop", "r1"), fields={"name": FieldState("Ada", Version(NOW, person.READ))})
    put(own_stage, replace(read, read_note="The CRM is away.", read_due=NOW + timedelta(hours=5)))
    with own_stage.session(Role.VIEWER) as session:
        text = text_of(session.page("/contacts/shop/r1"))
    assert "read from the CRM" in text
    assert "Reading this contact from the CRM: The CRM is away. Next try in" in text
    assert "Nothing was decided for this target yet." in text


def test_what_is_left_of_a_source_that_is_no_more_can_be_read_and_not_tried_again(own_stage: Stage) -> None:
    put(own_stage, replace(contact("7", {"name": "Former"}), key=RecordKey("former", "7")))
    with own_stage.session(Role.OPERATOR) as session:
        html = session.page("/contacts/former/7")
        asked = session.page("/actions/contacts/retry?source=former&source_id=7", status=409)
    assert "no longer in the configuration: nothing more comes from it" in text_of(html)
    assert "No route leads from former to a target" in text_of(html)
    assert "data-retry" not in html.split("<main")[1]
    assert "nothing can be decided again" in asked


def test_merged_records_lead_to_each_other(own_stage: Stage) -> None:
    put(
        own_stage,
        contact("loser", {"name": "Old"}, merged_into="winner", merged=Version(NOW, "m")),
        contact("winner", {"name": "New"}, absorbed=("loser", "other")),
    )
    with own_stage.session(Role.VIEWER) as session:
        loser, winner = session.page("/contacts/shop/loser"), session.page("/contacts/shop/winner")
    assert 'href="/contacts/shop/winner"' in loser
    assert "that one carries on" in text_of(loser)
    assert 'href="/contacts/shop/loser"' in winner
    assert 'href="/contacts/shop/other"' in winner


@pytest.mark.parametrize(
    ("path", "told"), [("/contacts/shop/no", "exactly this id"), ("/contacts/no/7", "no source")]
)
def test_an_unknown_contact_is_a_page_that_leads_on(ada: Session, path: str, told: str) -> None:
    html = ada.page(path, status=404)
    assert told in text_of(html)
    assert f'href="/contacts?q={path.rsplit("/", 1)[1]}"' in html


def test_every_id_has_a_page(own_stage: Stage) -> None:
    odd = ["../up", "/first", "..", "a/b c?d=e#f&amp;", "ü\n2", "%2F", "<b>", "a//b"]
    put(own_stage, *[contact(one, {"name": f"Odd {one}"}) for one in odd])
    with own_stage.session(Role.OPERATOR) as session:
        listed = [unescape(href) for href in re.findall(r'<tr data-href="([^"]+)"', session.page("/contacts"))]
        for one in odd:
            html = session.page(contact_url("shop", one))
            assert f"Odd {' '.join(one.split())}" in text_of(html)
            assert contact_url("shop", one) in listed
            retry = re.search(r'href="([^"]+)" data-retry', html)
            assert retry
            assert "one contact" in session.page(unescape(retry[1]))


def test_a_hostile_contact_breaks_nothing(ada: Session) -> None:
    for path in ("/contacts", f"/contacts/shop/{source_id(HOSTILE)}"):
        html = ada.page(path)
        assert "<script>alert" not in html
        assert "<b>field</b>" not in html
        assert "&lt;script&gt;" in html


def test_a_huge_contact_is_cut_with_a_way_to_see_the_rest(own_stage: Stage) -> None:
    fields = {f"field {n:05}": "x" for n in range(2000)}
    put(own_stage, contact("huge", {"a": "long " * 20_000, **fields}))
    with own_stage.session(Role.VIEWER) as session:
        html = session.page("/contacts/shop/huge")
        assert len(html) < 300_000
        text = text_of(html)
        assert "all 100,000 characters" in text
        assert "1,801 more fields" in text
        whole = session.page("/contacts/shop/huge?all=1")
    assert "field 01999" in whole
    assert len(whole) > 500_000


def test_the_timeline_goes_on_without_gaps(own_stage: Stage) -> None:
    facts = [
        AuditEntry(
            NOW - timedelta(days=1, seconds=n), "contact", "changed", f"Fact {n}.", "shop", source_id(SYNCED)
        )
        for n in range(60)
    ]
    own_stage.store.note(facts)
    with own_stage.session(Role.VIEWER) as session:
        path, seen = f"/contacts/shop/{source_id(SYNCED)}", ""
        while path:
            html = session.page(path)
            seen += text_of(html[html.index("<main") :])
            older = re.search(r'href="([^"#]+)#timeline" rel="next"', html)
            path = unescape(older[1]) if older else ""
    assert re.findall(r"Fact (\d+)\.", seen) == [str(n) for n in range(60)]


# --- trying again --------------------------------------------------------------------------------------------


def test_who_may_only_look_cannot_have_a_contact_tried_again(own_stage: Stage) -> None:
    retry = f"/actions/contacts/retry?source=shop&source_id={source_id(FAILED)}"
    with own_stage.session(Role.VIEWER) as session:
        assert "data-retry" not in session.page(f"/contacts/shop/{source_id(FAILED)}").split("<main")[1]
        assert "role operator" in session.page(retry, status=403)
        assert session.submit(retry, form_at="/account").status_code == 403
    assert own_stage.rings == []


def test_trying_again_asks_first_and_then_sends_what_is_missing(own_stage: Stage) -> None:
    with own_stage.session(Role.OPERATOR) as session:
        html = session.page(f"/contacts/shop/{source_id(FAILED)}")
        found = re.search(r'href="([^"]+)" data-retry', html)
        assert found
        retry = unescape(found[1])
        asked = text_of(session.page(retry))
        assert "one contact , Person 6" in asked
        assert re.search(r"sms Sakari failed It is sent at once: about \d calls?\.", asked)
        assert asked.count("already holds what the rules ask for") == 3
        answer = session.submit(retry)
        assert "/contacts/shop/84006?asked=" in answer.url
        assert "decides about this contact again" in answer.text
        assert 'hx-trigger="every 2s"' in answer.text  # what comes of it shows by itself
        assert own_stage.rings == [None]
        own_stage.work()
        text = text_of(session.page(f"/contacts/shop/{source_id(FAILED)}"))
    assert "The target holds what the CRM says." in text
    assert "Asked for by otto" in text
    assert {one.state for one in own_stage.store.deliveries_of(key(FAILED))} == {State.SYNCED}


def test_a_paused_target_is_told_before_one_tries_again(own_stage: Stage) -> None:
    own_stage.store.pause("sms", "moving", "ada", utc_now())
    with own_stage.session(Role.OPERATOR) as session:
        text = text_of(session.page(f"/actions/contacts/retry?source=shop&source_id={source_id(FAILED)}"))
        assert "It is paused: nothing is sent until somebody resumes it." in text
        assert session.page("/actions/contacts/retry?source=shop&source_id=no", status=404)
        assert session.page("/actions/contacts/retry?source=shop", status=400)


# --- what is told of a delivery, and of a person --------------------------------------------------------------


def delivery(desired: Desired | None, accepted: Mapping[str, Value] | None = None, **parts: Any) -> Delivery:
    made = Delivery("sms", key(1), State.PENDING, "", NOW, desired=desired, accepted=accepted)
    return replace(made, **parts)


def marks(one: Delivery) -> dict[str, tuple[str, bool]]:
    return {row.field: (row.mark.word, row.differs) for row in comparing.compare(one)}


def test_a_difference_is_told_by_word() -> None:
    desired = Desired(
        {"same": 1, "new": "a", "other": "b", "gone": None, "once": "c", "blank": "d"},
        {"once": Mode.CREATE_ONLY, "blank": Mode.IF_BLANK},
    )
    held: dict[str, Value] = {"same": 1, "other": "x", "gone": "y", "once": "z", "blank": "d", "former": ["t"]}
    rows = comparing.compare(delivery(desired, held, left_out={"phone": "not a phone number"}))
    told = {row.field: (row.mark.word, row.differs) for row in rows}
    assert told == {
        "same": ("same", False),
        "new": ("missing", True),
        "other": ("differs", True),
        "gone": ("to clear", True),
        "once": ("left alone", False),  # it is there already, and is never written again
        "blank": ("same", False),
        "former": ("left alone", False),
        "phone": ("left out", False),
    }
    by_field = {row.field: row for row in rows}
    assert [row.differs for row in rows] == sorted((row.differs for row in rows), reverse=True)  # those first
    assert by_field["once"].notes == ("only when the contact is created",)
    assert by_field["blank"].notes == ("only where it is blank there",)
    assert by_field["phone"].notes == ("not a phone number",)
    assert by_field["former"].notes == ("the rules ask for nothing here now",)
    assert by_field["gone"].wanted == "(empty)"
    assert by_field["former"].held == '["t"]'


def test_a_contact_that_is_to_go_shows_what_goes() -> None:
    assert marks(delivery(Desired(gone=True), {"email": "a@b.c"})) == {"email": ("goes", True)}
    assert marks(delivery(None, {"email": "a@b.c"})) == {"email": ("left alone", False)}
    assert marks(delivery(None)) == {}


@pytest.mark.parametrize(
    ("desired", "held", "told"),
    [
        (Desired(opt_out=True), True, "and the target holds it"),
        (Desired(opt_out=True), False, "not known to hold it yet"),
        (Desired(), True, "Bridge never lifts it"),
        (None, False, ""),
    ],
)
def test_an_opt_out_is_told_of_both_sides(desired: Desired | None, *, held: bool, told: str) -> None:
    said = comparing.opt_out(delivery(desired, accepted_opt_out=held))
    assert told in said
    assert bool(said) == bool(told)


def test_a_doubt_is_told_while_it_lasts() -> None:
    assert comparing.doubt(delivery(Desired())) == ""
    assert "creates nothing" in comparing.doubt(delivery(Desired(), unsure_since=NOW, attempted={}))
    assert "broke off" in comparing.doubt(delivery(Desired(), attempted={"a": 1}, target_id="7"))
    assert comparing.doubt(delivery(Desired(), attempted={"a": 1}, state=State.SENDING, target_id="7")) == ""


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"firstname": "Ada", "lastname": "Lovelace", "email": "a@b.c"}, "Ada Lovelace"),
        ({"First Name": "Ada"}, "Ada"),
        ({"name": "Ada Lovelace", "last_name": "Lovelace"}, "Ada Lovelace"),
        ({"name": "", "email": [{"value": "a@b.c", "primary": True}]}, "a@b.c"),
        ({"phones": ["+4420", "+4421"]}, "+4420"),
        ({"name": 7, "email": {"odd": 1}, "phone": None}, ""),
        ({"name": "x" * 1000}, "x" * 120),
        ({}, ""),
    ],
)
def test_a_person_is_called_by_name_or_else_by_address(fields: dict[str, Value], name: str) -> None:
    assert person.name_of(contact("1", fields)) == name
