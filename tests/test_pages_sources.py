"""Sources: what to paste and click, why requests were refused, and a sample that goes the way of every webhook."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from bridge.model import BACKFILL, RECONCILE, CatchUp, Outcome, Progress, RecordKey, utc_now
from bridge.pipeline.processing import parse
from bridge.sources.sampling import SAMPLE_ID
from bridge.store.protocol import Filter, Refusal
from bridge.web.pages.sources import Part, parts_of, reasons_of
from tests.stage import Stage, Template
from tests.test_pages_overview import first_run, text_of
from tests.test_pages_targets import article


def test_a_source_says_what_to_paste_and_click_and_what_came_of_it(stage: Stage) -> None:
    with stage.session("viewer") as session:
        html = session.page("/sources")
    said = article(html, "shop")
    assert f"{stage.url}/hooks/shop" in said
    assert "In the sender add an endpoint with the URL that bridge url shop prints" in said
    assert "<code>bridge url shop</code>" in html
    assert re.search(r"2 requests ever, the last \d+ min ago", said)
    assert re.search(r"The request is 20 minutes old\. 1 2026-", said)
    assert "Send a sample" not in said, "a viewer is shown no buttons"


def test_a_secret_url_is_never_shown_but_the_command_that_makes_it(template: Template, tmp_path: Path) -> None:
    with first_run(template, tmp_path) as stage, stage.session("operator") as session:
        said = article(session.page("/sources"), "guarded")
    assert "run bridge url guarded where bridge runs" in said
    assert f"{stage.url}/hooks/guarded/…" in said


def test_a_source_says_how_far_it_is_with_what_was_there_before_and_what_no_webhook_told(
    template: Template, tmp_path: Path
) -> None:
    now = utc_now()
    begun = CatchUp("crm", BACKFILL, "1", now, now, "ada", seen=100, changed=30, total=400)
    effects = {"sms": {"create": 25, "opt_out": 3}}
    listed = Template(template.folder, template.platforms)
    listed.toml = f'{template.toml}\n[sources.crm]\ntype = "hubspot"\nsecrets = ["x"]\ntoken = "y"\n'
    with first_run(listed, tmp_path) as stage, stage.session("viewer") as session:
        assert "bridge backfill crm reads every contact of the CRM" in article(session.page("/sources"), "crm")
        stage.store.start_catch_up(replace(begun, state=Progress.ASKING, reason="It is much.", effects=effects))
        found = replace(begun, kind=RECONCILE, state=Progress.DONE, since=now, seen=4, missed=2)
        stage.store.start_catch_up(found)
        said = article(session.page("/sources"), "crm")
    assert "The backfill asks whether to go on. It is much." in said
    assert "bridge backfill crm --yes goes on" in said
    assert "100 of 400 contacts read, 30 of them news to bridge." in said
    assert "at sms: 25 created, 3 opted out" in said
    assert "of 4 changed contacts, 2 were told of by no webhook" in said


def test_marks_of_a_step_are_read_and_nothing_else() -> None:
    assert list(parts_of("Open *A → B*, action `*`, <b>x</b>.")) == [
        Part("Open "),
        Part("A → B", "em"),
        Part(", action "),
        Part("*", "code"),
        Part(", <b>x</b>."),
    ]


def test_reasons_are_counted_the_last_first() -> None:
    now = utc_now()
    ago = [now - timedelta(minutes=minutes) for minutes in range(4)]
    found = reasons_of(
        [Refusal("shop", ago[1], "old"), Refusal("shop", ago[3], "no"), Refusal("shop", ago[0], "no")]
    )
    assert [(one.text, one.count, one.newest_at, one.oldest_at) for one in found] == [
        ("no", 2, ago[0], ago[3]),
        ("old", 1, ago[1], ago[1]),
    ]


def test_a_sample_is_asked_for_with_what_each_target_would_get_and_changes_nothing_yet(stage: Stage) -> None:
    before = stage.store.health(utc_now()).inbound
    with stage.session("operator") as session:
        said = text_of(session.page("/sources/shop/sample"))
    assert "This is no dry run." in said
    assert "would really be written to 4 targets, marketing, sms, inbox, register." in said
    assert "mobile +14155550123 phone" in said, "field, value and rule"
    for name in stage.config.targets:
        assert f"{name} " in said
    assert stage.store.health(utc_now()).inbound == before
    assert stage.store.contacts([RecordKey("shop", SAMPLE_ID)]) == {}


def test_a_sample_is_signed_verified_stored_and_noted(own_stage: Stage) -> None:
    store = own_stage.store
    with own_stage.session("operator") as session:
        answer = session.submit("/sources/shop/sample")
        found = re.fullmatch(r"/webhooks/(\d+)", urlsplit(answer.url).path)
        assert found
        assert answer.status_code == 200
        assert "The sample is stored." in text_of(answer.text)
    stored = store.inbound(int(found[1]))
    assert stored is not None
    assert stored.outcome is Outcome.ACCEPTED
    assert stored.signed_at is not None, "the check read the signed time"
    assert SAMPLE_ID.encode() in (stored.body or b"")
    (fact,) = store.audit_page(Filter(kind="sample"), None, 5).items
    assert (fact.outcome, fact.inbound_id) == ("requested", stored.id)
    assert fact.reason == "otto sent a sample, signed as Standard Webhooks would."
    assert len(own_stage.rings) == 1, "the worker is told"


def test_only_operators_send_samples(stage: Stage) -> None:
    with stage.session("viewer") as session:
        session.page("/sources/shop/sample", 403)
        assert session.submit("/sources/shop/sample", form_at="/account").status_code == 403
    with stage.session("operator") as session:
        session.page("/sources/nobody/sample", 404)
        forged = session.post(f"{stage.url}/sources/shop/sample", timeout=10)
        assert forged.status_code == 400


def test_every_type_of_source_takes_its_sample_and_listens_to_no_made_up_account(
    template: Template, tmp_path: Path
) -> None:
    with first_run(template, tmp_path) as stage, stage.session("operator") as session:
        for name in ("hub", "pipe", "legacy", "guarded"):
            answer = session.submit(f"/sources/{name}/sample")
            assert answer.status_code == 200, name
            stored = stage.store.inbound(int(answer.url.rpartition("/")[2]))
            assert stored is not None
            assert (stored.source, stored.outcome) == (name, Outcome.ACCEPTED)
            work = stage.store.work(name, utc_now(), 10)
            changes = [
                change
                for one in work.inbounds
                for event in parse(stage.config.sources[name], one).events
                for change in event.changes
            ]
            assert changes
            assert {change.account for change in changes} == {None}, (
                "the first account heard is the one that counts"
            )
            # As one that came with a token is stored: without it.
            assert (stored.url == f"{stage.url}/hooks/guarded/…") is (name == "guarded")


def test_a_sample_that_cannot_be_signed_is_not_sent(template: Template, tmp_path: Path) -> None:
    with first_run(template, tmp_path) as stage, stage.session("operator") as session:
        answer = session.submit("/sources/public/sample")
        assert answer.status_code == 422
        assert "The sample cannot be signed" in answer.text
        assert "Nothing was sent." in answer.text
        assert stage.store.health(utc_now()).inbound == {}
