"""The playground: what each target would get, the same complaints as `bridge check`, and no trace of any of it."""

from __future__ import annotations

import json
import sqlite3
import time
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bridge import config as configuration
from bridge.config import read_routes
from bridge.config.writing import routes_as_toml
from bridge.errors import ConfigError
from bridge.model import Contact, RecordKey
from bridge.store.protocol import Filter
from bridge.web.pages.playground import LONGEST_PAYLOAD, LONGEST_RULES, written_rules
from bridge.web.pages.trying import tried_of
from bridge.web.trial import Trial
from tests.stage import Session, Stage
from tests.test_pages_overview import text_of
from tests.web_site import SECRETS, TOML

PAYLOAD = (
    '{"type": "changed", "timestamp": "2026-03-02T10:00:00Z", "data": {"id": "9", "name": "Ada", "tier": "1"}}'
)
RULES = """
[[routes]]
source = "shop"
target = "sms"
{route}

[routes.fields]
mobile = "phone"
firstName = "name | upper"
{fields}
"""


def rules(route: str = "", fields: str = "") -> str:
    return RULES.format(route=route, fields=fields)


def tried(session: Session, payload: str = PAYLOAD, toml: str = "", **fields: Any) -> str:
    """Return what the page says of a payload with rules."""
    answer = session.submit(
        "/playground", source="shop", webhook="", payload=payload, rules=toml or rules(), **fields
    )
    assert answer.status_code == 200, answer.text
    return text_of(answer.text).partition("What would come of it")[2]


def dump(stage: Stage) -> list[str]:
    """Return all that is in the database, but for when somebody was last seen."""
    with closing(sqlite3.connect(stage.folder / "bridge.db")) as db:
        return [line for line in db.iterdump() if not line.startswith('INSERT INTO "user"')]


def called(stage: Stage) -> list[int]:
    """Return how many calls each platform got."""
    return [len(fake.calls) for fake in stage.platforms.fakes.values()]


# --- what would come of it -----------------------------------------------------------------------------------


def test_it_begins_with_a_sample_and_the_rules_as_they_are_written(stage: Stage) -> None:
    with stage.session("viewer") as session:
        said = text_of(session.page("/playground"))
    assert "1 contact, 4 targets would be asked for something" in said
    assert "firstName Ada Lovelace name" in said


def test_a_stored_webhook_is_tried_with_its_own_source(stage: Stage) -> None:
    (newest, *_) = stage.store.inbound_page(Filter(source="shop", outcome="processed"), None, 1).items
    with stage.session("viewer") as session:
        html = session.page("/playground", webhook=newest.id)
        assert f"webhook {newest.id}" in text_of(html)
        assert json.loads(newest.body or b"")["data"]["email"] in html
        pruned = next(one for one in stage.store.inbound_page(Filter(), None, 100).items if one.body is None)
        assert "was pruned or erased" in text_of(session.page("/playground", webhook=pruned.id))
        session.page("/playground", 404, webhook=10**9)
        session.page("/playground", 404, source="nobody")
        session.page("/playground", 400, webhook="x")


def test_it_says_what_each_target_would_get_and_why_a_field_is_left_out(stage: Stage) -> None:
    with stage.session("viewer") as session:
        said = tried(session, toml=rules(fields="""email = "'no address'"\nlastName = "surname" """))
        assert "is not sent now. Waiting for mobile: the CRM has not told 'phone' yet" in said
        assert "email left out: The value is not one e-mail address." in said
        assert "lastName left out: The source has not mentioned" in said
        assert "firstName ADA It is not sent, because nothing of this contact is." in said
        more = tried(session, more='{"phone": "+14155550123"}')
        assert "would be sent, where the target does not hold it already" in more
        assert "mobile +14155550123 phone" in more
        stopped = tried(session, toml=rules("""opt_out = "tier == '1'" """), more='{"phone": "+14155550123"}')
        assert "would be told of the opt-out" in stopped


def test_what_bridge_knows_is_merged_in_only_when_asked_for(stage: Stage) -> None:
    (key,) = [one.key for one in stage.store.contact_page(Filter(q="person 1"), None, 50).items][:1]
    payload = json.dumps({"type": "changed", "data": {"id": key.source_id}})
    with stage.session("viewer") as session:
        assert "firstName left out" in tried(session, payload)
        assert "firstName PERSON" in tried(session, payload, merge="1")


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[[routes]]\nwhen = x", "rules:2: this is not TOML"),
        (rules('whn = "x"'), "rules:5: routes[1].whn: unknown key fix: did you mean 'when'?"),
        (rules(fields='email = "a | uper"'), "rules:10: routes[1].fields.email: there is no filter named 'uper'"),
        (rules().replace('"sms"', '"smms"'), "there is no target named 'smms' fix: did you mean 'sms'?"),
        (rules(fields='nick = "name"'), "Sakari has no field 'nick'"),
        ("[bridge]\n" + rules(), "rules:1: bridge: unknown key fix: there is routes"),
        ("# nothing", "There are no rules to try"),
        (rules(fields="""email = "'$SECRET_KEY'" """), "the environment variable SECRET_KEY is not set"),
    ],
)
def test_mistakes_in_rules_are_told_as_bridge_check_tells_them(stage: Stage, toml: str, told: str) -> None:
    with stage.session("viewer") as session:
        assert told in tried(session, toml=toml)


@pytest.mark.parametrize(
    ("payload", "more", "told"),
    [
        ("", "", "Paste a payload"),
        ("no json", "", "It cannot be read"),
        ('{"type": "ignore", "data": {"id": "1"}}', "", "An event of it is passed over"),
        (PAYLOAD, "[1]", "What else the CRM knows is no JSON object"),
        ("x" * (LONGEST_PAYLOAD + 1), "", "too long for the playground"),
        (PAYLOAD, "[" * 20_000, "What else the CRM knows is no JSON object"),
    ],
)
def test_what_cannot_be_tried_is_said(stage: Stage, payload: str, more: str, told: str) -> None:
    with stage.session("viewer") as session:
        assert told in tried(session, payload, more=more)


def test_markup_in_values_and_rules_is_text(stage: Stage) -> None:
    payload = json.dumps(
        {"type": "changed", "data": {"id": "</textarea><b>", "phone": "+14155550123", "name": "<i>x"}}
    )
    with stage.session("viewer") as session:
        answer = session.submit(
            "/playground", source="shop", payload=payload, rules=rules(fields="""email = "'<script>'" """)
        )
    assert "<i>x" not in answer.text
    assert "<I>X" not in answer.text
    assert "</textarea><b>" not in answer.text
    assert "<script>'" not in answer.text


# --- no trace ------------------------------------------------------------------------------------------------


def test_nothing_is_stored_and_nothing_is_sent(own_stage: Stage) -> None:
    with own_stage.session("viewer") as session:
        session.page("/playground")
        before, calls = dump(own_stage), called(own_stage)
        html = session.page("/playground", webhook=1)
        assert "Playground" in html
        assert "would be sent" in tried(session, more='{"phone": "+14155550123"}', merge="1")
        assert dump(own_stage) == before
    assert called(own_stage) == calls
    assert own_stage.rings == []


def test_a_secret_of_the_environment_cannot_be_read_through_rules(tmp_path: Path) -> None:
    """Only what the routes in the file name already is known, and it is shown by its name."""
    toml = TOML.replace("""when = "tier == 'gold'" """.strip(), """when = "tier == '$TIER'" """.strip())
    path = tmp_path / "bridge.toml"
    path.write_text(toml)
    config = configuration.load(path, {**SECRETS, "TIER": "gold"})
    assert dict(config.variables) == {"TIER": "gold"}
    assert "gold" not in written_rules(config, "shop")
    assert "$TIER" in written_rules(config, "shop")
    with pytest.raises(ConfigError, match="SHOP_SECRET is not set"):
        read_routes(rules(fields="""email = "'${SHOP_SECRET}'" """), config)
    assert "SECRET" not in repr(config.variables)


def test_rules_are_written_back_as_they_are_read(stage: Stage) -> None:
    config = stage.config
    assert [one.digest for one in read_routes(written_rules(config, "shop"), config).routes] == [
        one.digest for one in config.routes_of("shop")
    ]


def test_odd_names_and_values_survive_being_written() -> None:
    route: dict[str, Any] = {
        "source": "a",
        "create": False,
        "fields": {"x": 'say "\x7f\n\t\\ é"', "a b": {"value": "1", "mode": "if_blank"}, "deep": {"er": "2"}},
    }
    (read,) = tomllib.loads(routes_as_toml([route]))["routes"]
    flat = {"x": 'say "\x7f\n\t\\ é"', "a b": {"value": "1", "mode": "if_blank"}, "deep.er": "2"}
    assert read == {**route, "fields": flat}


# --- those who mean harm -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    ["data" + "|list" * 100, "[" + ",".join(["data.split(',')"] * 120) + "]", "data" + "|trim" * 150],
    ids=["chain", "many lists", "deep"],
)
def test_no_rule_holds_the_page_up(stage: Stage, expression: str) -> None:
    payload = json.dumps({"type": "changed", "data": {"id": "1", "phone": "+14155550123", "data": "a," * 30_000}})
    fields = "\n".join(f'"attributes.a{number}" = "{expression}"' for number in range(8))
    began = time.perf_counter()
    with stage.session("viewer") as session:
        said = tried(session, payload, rules(fields=fields))
    assert time.perf_counter() - began < 8, "two seconds are allowed; the machine may be busy"
    assert "would be sent" in said or "compute too much" in said


@pytest.mark.parametrize(
    "toml",
    ["a." * (LONGEST_RULES // 2 - 10) + "a = 1", "a = " + "[" * 30_000, rules() * 150],
    ids=["deep names", "deep lists", "many routes"],
)
def test_no_text_of_rules_breaks_the_page(stage: Stage, toml: str) -> None:
    with stage.session("viewer") as session:
        assert tried(session, toml=toml[:LONGEST_RULES])


def test_of_many_contacts_some_are_shown_and_the_others_counted(stage: Stage) -> None:
    trial = Trial(contacts=[Contact(RecordKey("shop", str(number))) for number in range(30)])
    found = tried_of(trial, stage.config.routes)
    assert (found.contacts, found.more, len(found.told)) == (30, 20, 10)
