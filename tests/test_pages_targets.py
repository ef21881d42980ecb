"""Targets: their state in words, and pausing and resuming with a reason that everybody can read."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from bridge.model import State, utc_now
from bridge.store.protocol import Filter
from tests.stage import Stage
from tests.test_pages_overview import text_of, words_of


def article(html: str, name: str) -> str:
    """Return what is said of one target or source."""
    found = re.search(rf'<article id="{name}".*?(?=<article id=|</main>)', html, re.DOTALL)
    assert found
    return words_of(found[0])


def test_each_target_says_how_it_is_and_why(stage: Stage) -> None:
    with stage.session("viewer") as session:
        html = session.page("/targets")
    register = article(html, "register")
    assert "held" in register
    assert re.search(
        r"Held by bridge .*: Artu refuses our credentials .* Bridge (tries|is about to try)", register
    )
    marketing = article(html, "marketing")
    assert "1 contact is behind" in marketing
    assert re.search(r"retrying 1 failed 1 waiting \d synced \d opted out 1", marketing)
    assert re.search(r"Last error .* unavailable ActiveCampaign has trouble \(HTTP 503\)", marketing)
    assert re.search(r"Quota .*1,000 of 1,000 calls free; 1000 a second", marketing)
    assert "Pause" not in marketing, "a viewer is shown no buttons"


def test_a_held_target_says_when_its_access_is_tried_again(own_stage: Stage) -> None:
    now = utc_now()
    for probe_at, said in (
        (now + timedelta(hours=3), "tries the access again in"),
        (now, "is about to try"),
    ):
        own_stage.store.hold("register", "Artu refuses us.", now, probe_at)
        with own_stage.session("viewer") as session:
            assert f"Artu refuses us. Bridge {said}" in article(session.page("/targets"), "register")


def test_pausing_asks_with_its_scope_then_holds_and_says_who_and_why(own_stage: Stage) -> None:
    with own_stage.session("operator") as session:
        asked = text_of(session.page("/targets/marketing/pause"))
        assert "1 delivery is queued for ActiveCampaign now; it waits until somebody resumes it" in asked
        assert own_stage.store.target_status("marketing").mode == "open", "asking changes nothing"
        answer = session.submit("/targets/marketing/pause", reason="  their\n import  runs  ")
        assert "marketing is paused. 1 delivery waits" in text_of(answer.text)
        assert "Paused by otto just now: their import runs. Nothing is sent" in article(answer.text, "marketing")
        status = own_stage.store.target_status("marketing")
        assert (status.mode, status.by, status.reason) == ("paused", "otto", "their import runs")
        assert "It is paused already by otto" in text_of(session.page("/targets/marketing/pause"))
    (fact,) = own_stage.store.audit_page(Filter(kind="target", target="marketing"), None, 1).items
    assert (fact.outcome, fact.reason) == ("paused", "Paused by otto: their import runs")
    assert own_stage.rings == []


def test_resuming_says_how_much_goes_out_and_how_long_it_takes(own_stage: Stage) -> None:
    store = own_stage.store
    store.pause("marketing", "lunch", "vera", utc_now())
    with own_stage.session("operator") as session:
        asked = text_of(session.page("/targets/marketing/resume"))
        assert re.search(r"Paused by vera .*: lunch 1 delivery goes out at once, in its newest state", asked)
        assert re.search(r"about \d+ calls?.* takes about a second at 1000 a second", asked)
        answer = session.submit("/targets/marketing/resume", reason="done")
        assert "marketing is open again; 1 delivery goes out now" in text_of(answer.text)
    assert store.target_status("marketing").mode == "open"
    assert store.health(utc_now()).deliveries.get(("marketing", State.HELD), 0) == 0
    assert len(own_stage.rings) == 1, "the worker is told"
    (fact,) = store.audit_page(Filter(kind="target", target="marketing"), None, 1).items
    assert fact.reason == "Opened by otto: done; what was held is sent now."


def test_resuming_what_is_open_changes_nothing(own_stage: Stage) -> None:
    before = own_stage.store.target_status("sms")
    with own_stage.session("operator") as session:
        assert "It is open already" in text_of(session.page("/targets/sms/resume"))
        answer = session.submit("/targets/sms/resume", form_at="/targets/sms/pause")
        assert "sms was open already" in text_of(answer.text)
    assert own_stage.store.target_status("sms") == before


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_only_operators_pause_and_resume(stage: Stage, action: str) -> None:
    with stage.session("viewer") as session:
        session.page(f"/targets/sms/{action}", 403)
        answer = session.submit(f"/targets/sms/{action}", form_at="/account", reason="x")
        assert answer.status_code == 403
    assert stage.store.target_status("sms").mode == "open"


@pytest.mark.parametrize(("path", "status"), [("/targets/nobody/pause", 404), ("/targets/nobody/resume", 404)])
def test_what_is_not_configured_is_not_there(stage: Stage, path: str, status: int) -> None:
    with stage.session("operator") as session:
        session.page(path, status)
        assert session.submit(path, form_at="/account", reason="x").status_code == status


def test_a_pause_needs_a_reason_and_a_form_of_this_session(stage: Stage) -> None:
    with stage.session("operator") as session:
        assert session.submit("/targets/sms/pause", reason=" ").status_code == 400
        forged = session.post(f"{stage.url}/targets/sms/pause", data={"reason": "x"}, timeout=10)
        assert forged.status_code == 400
    assert stage.store.target_status("sms").mode == "open"


def test_without_a_worker_no_target_looks_open(own_stage: Stage) -> None:
    with own_stage.session("viewer") as session:
        own_stage.ahead[0] = timedelta(hours=2)
        html = session.page("/targets")
    assert "Stale. The worker was last seen 2 h ago" in text_of(html)
    assert "open, stale" in article(html, "sms")
