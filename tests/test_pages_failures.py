"""Failed deliveries in a browser: their causes, what a retry will take, and how it goes."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from html import unescape

import pytest

from bridge.model import State, utc_now
from bridge.store.looking import Activity, Bulk, BulkState, Role
from bridge.store.protocol import Filter, Health, TargetStatus
from bridge.web.pages import effort
from bridge.web.pages.failures import sentences
from tests.stage import AMBIGUOUS, FAILED, HOSTILE, Session, Stage, source_id, text_of

NOW = utc_now()
FAILING = (State.FAILED, State.AMBIGUOUS)


@pytest.fixture(scope="module")
def otto(stage: Stage) -> Iterator[Session]:
    with stage.session(Role.OPERATOR) as session:
        yield session


def change(stage: Stage, sql: str) -> None:
    """Make the database what it would take long to bring about."""
    with closing(sqlite3.connect(stage.folder / "bridge.db", isolation_level=None, timeout=5)) as db:
        db.execute(sql)


def failing(stage: Stage) -> set[tuple[str, str]]:
    page = stage.store.delivery_page(Filter(), None, 200)
    return {(one.target, one.key.source_id) for one in page.items if one.state in FAILING}


ALL = {("sms", source_id(FAILED)), ("marketing", source_id(HOSTILE)), ("inbox", source_id(AMBIGUOUS))}


def start(session: Session, **query: str) -> str:
    """Retry what matches; return the path of the page that the browser lands on."""
    filtered = "&".join(f"{name}={value}" for name, value in query.items())
    answer = session.submit("/failures/retry" + (f"?{filtered}" if filtered else ""))
    assert answer.status_code == 200, answer.text
    return answer.url.removeprefix(session.url)


# --- the list ------------------------------------------------------------------------------------------------


def test_failures_are_grouped_by_cause_with_a_way_out(otto: Session) -> None:
    html = otto.page("/failures")
    rows = [text_of(f"<main{row}</main>") for row in re.findall(r"<tr data-href.*?</tr>", html, re.DOTALL)]
    assert len(rows) == 3
    sms = next(row for row in rows if "Sakari" in row)
    assert "invalid HTTP 400" in sms
    assert "Sakari refused searching for the contact" in sms
    assert "Correct the value in the CRM" in sms
    inbox = next(row for row in rows if "Clerk Chat" in row)
    assert "Merge or delete one of the contacts there, then retry." in inbox
    assert f'href="/contacts/shop/{source_id(AMBIGUOUS)}"' in html
    assert "/failures/retry?target=sms&amp;state=failed&amp;error=invalid&amp;status=400" in html
    assert "Retry all 3…" in text_of(html)


def test_failures_can_be_narrowed_and_the_retry_keeps_that(otto: Session) -> None:
    html = otto.page("/failures", target="marketing", source="", error="")
    assert text_of(html).count("Retry…") == 1
    assert 'href="/failures/retry?target=marketing" data-retry' in html
    assert 'aria-label="Remove the filter target marketing"' in html
    nothing = otto.page("/failures?target=register&status=404&state=failed")
    assert "Nothing that failed matches" in nothing
    assert "That cannot be read" in otto.page("/failures?state=lost", status=400)


def test_causes_that_differ_in_words_only_are_retried_together(own_stage: Stage) -> None:
    change(
        own_stage,
        "UPDATE delivery SET state = 'failed', error = 'invalid', status = 400, reason = 'No ' || source_id || '.'"
        f" WHERE target = 'sms' AND source_id != '{source_id(FAILED)}'",
    )
    with own_stage.session(Role.VIEWER) as session:
        text = text_of(session.page("/failures", target="sms"))
    assert "11 deliveries, 1 cause" in text
    assert "8 more reasons" in text
    assert f"No {source_id(HOSTILE)}. (1)" in text
    assert "Sakari refused searching for the contact (HTTP 400)." in text
    assert "Retry…" not in text  # who may only look is not asked


def test_where_nothing_failed_the_page_says_when_something_last_went_well(own_stage: Stage) -> None:
    change(own_stage, "UPDATE delivery SET state = 'synced' WHERE state IN ('failed', 'ambiguous')")
    with own_stage.session(Role.OPERATOR) as session:
        text = text_of(session.page("/failures"))
        assert re.search(r"Nothing failed The last delivery .* went to \w+ (just now|.{3,9} ago)", text)
        assert "There is nothing to retry" in session.page("/failures/retry")
        html = session.page("/account")
        token = re.search(r'name="csrf" value="([^"]+)"', html)
        assert token
        answer = session.post(own_stage.url + "/failures/retry", data={"csrf": token[1]}, timeout=10)
    assert "Nothing was started" in answer.text
    assert list(own_stage.store.bulks(utc_now())) == []


# --- asking --------------------------------------------------------------------------------------------------


def test_a_retry_says_first_how_many_how_many_calls_and_how_long(otto: Session) -> None:
    text = text_of(otto.page("/failures/retry"))
    assert "Retry 3 deliveries?" in text
    assert re.search(r"3 deliveries , about \d+ calls , less than a second", text)
    assert re.search(r"sms Sakari 1 \d less than a second \d\.\d calls each, as in the last 7 days", text)
    assert "at most 1000 calls a second" in text
    assert "1 of them is ambiguous" in text
    one = text_of(otto.page("/failures/retry", target="sms", error="invalid"))
    assert "all failed and ambiguous deliveries to sms with the error invalid" in one
    assert "Retry 1 delivery?" in one


def test_a_paused_and_a_held_target_are_told_before_a_retry(own_stage: Stage) -> None:
    own_stage.store.pause("sms", "moving", "ada", utc_now())
    own_stage.store.hold("inbox", "Refused.", utc_now(), utc_now() + timedelta(hours=1))
    with own_stage.session(Role.OPERATOR) as session:
        text = text_of(session.page("/failures/retry"))
        assert "paused It is paused: nothing is sent until somebody resumes it. Then less than a second" in text
        assert "nothing is sent until that is mended" in text
        path = start(session, target="sms")
        own_stage.work()
        waiting = text_of(session.page(path))
    assert "1 waits until the target takes deliveries again. Paused or held now: " in waiting


def test_the_effort_is_what_attempts_took_lately_at_the_targets_own_pace(stage: Stage) -> None:
    lately = [
        Activity("delivery", "created", 10, target="sms", calls=40),
        Activity("delivery", "unchanged", 5, target="sms", calls=0),  # no call: no attempt to learn from
        Activity("announced", "changed", 99, target="sms", calls=7),
        Activity("delivery", "failed", 10, target="sms", calls=10),
    ]
    seen = Health(targets=[TargetStatus("marketing", "paused")], deliveries={("sms", "pending"): 400})
    counts = {"sms": 1200, "marketing": 3, "gone": 2}
    gone, marketing, sms = effort.effort(stage.config, counts, lately, seen)
    assert (sms.calls, sms.measured, sms.waits_for) == (3000, True, "")
    assert sms.seconds == (1200 + 400) * 2.5 / stage.config.targets["sms"].rate_per_s
    assert (marketing.calls, marketing.measured) == (6, False)
    assert "somebody resumes it" in marketing.waits_for
    assert "no longer in the configuration" in gone.waits_for
    assert gone.seconds is None
    assert effort.seconds_in_all([gone, marketing, sms]) == sms.seconds  # the others wait for a person
    assert effort.seconds_in_all([]) == 0


# --- retrying ------------------------------------------------------------------------------------------------


def test_a_retry_is_watched_to_its_end_and_says_what_came_of_it(own_stage: Stage) -> None:
    with own_stage.session(Role.OPERATOR) as session:
        path = start(session)
        assert path == "/retries/1"
        assert own_stage.rings == [None]
        running = session.page(path)
        assert 'hx-trigger="every 1s"' in running
        assert 'value="0"' in running
        assert "0 of 3 deliveries came to an end so far. 3 wait for the worker" in text_of(running)
        assert "Look again" in running  # without a script
        assert "Retry 1 is running" in text_of(session.page("/failures/retry"))
        own_stage.work()
        html = session.page(path)
        text = text_of(html)
        assert "All 3 were tried again: 1 is synced now, 1 failed again and 1 is ambiguous still." in text
        assert "hx-trigger" not in html
        assert "Cancel…" not in text
        listed = text_of(session.page("/failures"))
        assert "Retry 1" in listed[listed.index("Past retries") :]
        assert session.get(own_stage.url + path + "/cancel", timeout=5).url == own_stage.url + path
    assert failing(own_stage) == ALL - {("sms", source_id(FAILED))}
    entries = own_stage.store.audit_page(Filter(kind="replay"), None, 10).items
    assert any("otto" in entry.reason for entry in entries)


def test_one_delivery_is_retried_by_its_cause_and_no_other(own_stage: Stage) -> None:
    with own_stage.session(Role.OPERATOR) as session:
        html = session.page("/failures", target="sms")
        found = re.search(r'href="(/failures/retry\?target=sms&amp;state=[^"]+)"', html)
        assert found
        answer = session.submit(unescape(found[1]))
        own_stage.work()
        text = text_of(session.page(answer.url.removeprefix(own_stage.url)))
    assert "all failed deliveries to sms with the error invalid after HTTP 400" in text
    assert "It was tried again and is synced now." in text
    assert failing(own_stage) == ALL - {("sms", source_id(FAILED))}


def test_a_retry_can_be_called_off(own_stage: Stage) -> None:
    with own_stage.session(Role.OPERATOR) as session:
        path = start(session)
        asked = text_of(session.page(path + "/cancel"))
        assert "Of 3 deliveries, 3 were not sent yet. They stay as they were" in asked
        text = text_of(session.submit(path + "/cancel").text)
        assert "otto cancelled it. Of 3 deliveries, 2 are failed and 1 is ambiguous." in text
        assert "left as it was" in text
        again = session.submit(path + "/cancel", form_at="/account")
        assert "the retry was over already" in again.text
        own_stage.work()
    assert failing(own_stage) == ALL
    bulk = own_stage.store.bulk(1, utc_now())
    assert bulk is not None
    assert bulk.state is BulkState.CANCELLED


def bulk_of(state: BulkState, total: int, **states: int) -> Bulk:
    return Bulk(1, NOW - timedelta(minutes=1), "otto", "all", state, total, states, ended_by="ada")


@pytest.mark.parametrize(
    ("bulk", "told"),
    [
        (bulk_of(BulkState.DONE, 0), "there was nothing to do"),
        (bulk_of(BulkState.DONE, 1, synced=1), "It was tried again and is synced now."),
        (
            bulk_of(BulkState.DONE, 1204, synced=1200, opted_out=1, removed=1, waiting=2),
            "All 1,204 were tried again: 1,200 are synced now, 1 is opted out, 1 is removed and "
            "2 wait, because the rules ask for nothing now.",
        ),
        (bulk_of(BulkState.DONE, 1, failed=1), "It was tried again and failed again. It is back in the list"),
        (bulk_of(BulkState.DONE, 2, failed=2), "2 failed again. What failed again is back in the list"),
        (
            bulk_of(BulkState.RUNNING, 100, synced=50, pending=50),
            "50 of 100 deliveries came to an end so far. About 60 s",
        ),
        (
            bulk_of(BulkState.RUNNING, 3, retrying=2, synced=1),
            "2 wait for another try, because the target had trouble.",
        ),
        (
            bulk_of(BulkState.RUNNING, 90, held=1, synced=89),
            "1 waits until the target takes deliveries again. Paused or",
        ),
        (
            bulk_of(BulkState.CANCELLED, 4, synced=2, failed=1, sending=1),
            "2 are synced now, 1 is failed and 1 is on the way",
        ),
    ],
)
def test_a_retry_is_told_in_a_sentence(bulk: Bulk, told: str) -> None:
    assert told in " ".join(sentences(bulk, ["sms"], NOW))


def test_who_may_only_look_can_neither_retry_nor_cancel(own_stage: Stage) -> None:
    with own_stage.session(Role.OPERATOR) as session:
        path = start(session, target="sms")
    with own_stage.session(Role.VIEWER) as session:
        assert "data-retry" not in session.page("/failures").split("<main")[1]
        assert "Cancel…" not in session.page(path)
        for forbidden in ("/failures/retry", path + "/cancel"):
            assert "role operator" in session.page(forbidden, status=403)
            assert session.submit(forbidden, form_at="/account").status_code == 403
    bulk = own_stage.store.bulk(1, utc_now())
    assert bulk is not None
    assert bulk.state is BulkState.RUNNING


@pytest.mark.parametrize("number", ["7", str(2**70)])
def test_a_retry_that_never_was_is_told(otto: Session, number: str) -> None:
    assert f"There is no retry {number}." in otto.page(f"/retries/{number}", status=404)
