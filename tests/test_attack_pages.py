"""What somebody would try who wants in, wants more than his role, or wants the pages to stop answering."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from werkzeug.security import check_password_hash

from bridge.model import AuditEntry, utc_now
from bridge.store.looking import Role, User
from bridge.store.protocol import Filter
from bridge.web.guard import Throttle, neighbourhood
from bridge.web.pages import access, exporting, playground
from bridge.web.pages.access import login_path
from bridge.web.pages.calls import SHORT, calls_of
from bridge.web.pages.words import pretty
from tests.platforms import person, signed, webhook
from tests.stage import SECRET_KEY, USERS, Session, Stage, Template, source_id

# --- getting in ----------------------------------------------------------------------------------------------


def test_a_session_of_somebody_removed_is_worth_nothing_to_a_namesake(own_stage: Stage) -> None:
    name, store = USERS[Role.OPERATOR], own_stage.store
    with own_stage.session(Role.OPERATOR) as session:
        store.remove_user(name)
        store.save_user(User(name, Role.ADMIN), utc_now())
        assert session.get(own_stage.url + "/account", timeout=5).url.startswith(own_stage.url + "/sign-in")


def test_signing_out_everywhere_voids_links_that_nobody_used_yet(own_stage: Stage) -> None:
    name, store = USERS[Role.ADMIN], own_stage.store
    path = login_path(SECRET_KEY, store, name, utc_now(), timedelta(minutes=5))
    store.end_sessions(name)
    with Session(own_stage.url) as session:
        assert session.submit(path).status_code == 410


def test_many_guesses_at_once_are_as_few_as_one_after_another(
    own_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def counted(stored: str, password: str) -> bool:
        checked.append(password)
        return check_password_hash(stored, password)

    monkeypatch.setattr(access, "check_password_hash", counted)
    with Session(own_stage.url) as session, ThreadPoolExecutor(12) as threads:
        html = session.page("/sign-in")
        csrf = html.partition('name="csrf" value="')[2].partition('"')[0]

        def guess(number: int) -> int:
            fields = {"csrf": csrf, "name": USERS[Role.ADMIN], "password": f"guess {number}"}
            return session.post(own_stage.url + "/sign-in", fields, timeout=10).status_code

        codes = sorted(threads.map(guess, range(12)))
    assert codes == [401] * 5 + [429] * 7
    assert len(checked) == 5


def test_whoever_has_a_network_has_one_address() -> None:
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1:2") != neighbourhood("2001:db8:0:1::1")
    assert neighbourhood("192.0.2.1") == "192.0.2.1"
    assert neighbourhood("::ffff:192.0.2.1") != neighbourhood("::ffff:192.0.2.2")
    assert neighbourhood("") == ""


def test_what_proved_right_does_not_count_as_a_failure() -> None:
    throttle = Throttle(lambda: 0.0, failures=1, per_failure_s=60.0)
    throttle.failed("a")
    assert throttle.closed_for_s("a")
    throttle.forgive("a")
    throttle.forgive("b")
    assert not throttle.closed_for_s("a")


# --- what outsiders send -------------------------------------------------------------------------------------

SOON_S = 2.0  # more than a page may take, as this machine is busy


def _receive(stage: Stage, body: bytes) -> int:
    """Have the shop send *body*, and return the webhook's id."""
    headers = dict(signed(stage.config, body, f"msg_{time.time()}").headers)
    answer = requests.post(stage.url + "/hooks/shop", body, headers=headers, timeout=10)
    page = stage.store.inbound_page(Filter(), None, 1)
    assert answer.status_code in {200, 400}
    return page.items[0].id


def test_half_a_pair_of_surrogates_is_shown_as_json_spells_it(own_stage: Stage) -> None:
    body = webhook("changed", person(70, name="HALF"), utc_now()).replace(b"HALF", b"\\ud800x")
    sent = _receive(own_stage, body)
    with own_stage.session() as session:
        assert "\\ud800x" in session.page(f"/webhooks/{sent}")
        assert "\\ud800x" in session.page(f"/playground?webhook={sent}")


def test_deep_lists_and_very_many_fields_hold_up_no_page(own_stage: Stage) -> None:
    deep = webhook("changed", person(71, name="DEEP"), utc_now())
    deep = deep.replace(b'"DEEP"', b"[" * 400 + b"1," * 100_000 + b"1" + b"]" * 400)
    wide = webhook("changed", person(72, **{f"field_{n}": "x" for n in range(6_000)}), utc_now())
    nested = {f"field_{n}": {"a": [{"b": "y" * 200} for _ in range(40)]} for n in range(100)}
    many, lists = _receive(own_stage, wide), _receive(own_stage, deep)
    own_stage.work()
    large = _receive(own_stage, webhook("changed", person(73, **nested), utc_now()))
    with own_stage.session() as session:
        for path in (f"/webhooks/{lists}", f"/webhooks/{many}", f"/contacts/shop/{source_id(72)}?all=1"):
            started = time.process_time()
            html = session.page(path)
            assert time.process_time() - started < SOON_S, path
            assert len(html) < 8_000_000, path
        for sent in (many, large):
            assert "It says too much of 1 contact to work all out here." in session.page(f"/webhooks/{sent}")


def test_json_is_laid_out_no_further_than_it_is_shown() -> None:
    deep = "[" * 900 + "1," * 10_000 + "1" + "]" * 900
    exchange = {"method": "GET", "url": "/", "status": 200, "duration_ms": 1, "response_body": deep}
    (call,) = calls_of(AuditEntry(utc_now(), "delivery", "updated", detail={"exchanges": [exchange]}), None)
    assert call.answer
    assert call.answer.text == deep
    assert not call.answer.cut


def test_a_list_lays_out_the_beginning_of_a_long_answer_only() -> None:
    answer = json.dumps({"data": list(range(10_000))})
    exchange = {"method": "GET", "url": "/", "status": 200, "duration_ms": 1, "response_body": answer}
    attempt = AuditEntry(utc_now(), "delivery", "updated", detail={"exchanges": [exchange] * 10})
    started = time.process_time()
    found = [call for _ in range(25) for call in calls_of(attempt)]  # as many as a page shows
    assert time.process_time() - started < SOON_S
    assert all(call.answer and call.answer.cut and len(call.answer.text) == SHORT for call in found)


def test_json_is_laid_out_as_json_is() -> None:
    assert pretty({"a": [1, None]}, 100) == json.dumps({"a": [1, None]}, indent=2)


def test_a_number_of_thousands_of_digits_is_a_problem_in_the_rules(stage: Stage) -> None:
    with stage.session(Role.VIEWER) as session:
        answer = session.submit("/playground", source="shop", payload="{}", rules="a = " + "9" * 5000)
    assert answer.status_code == 200
    assert "1 problem in the rules" in answer.text


# --- holding it up -------------------------------------------------------------------------------------------


def test_exports_leave_threads_for_others(own_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> Iterator[AuditEntry]:
        begun.release()
        assert go_on.wait(10)
        yield AuditEntry(utc_now(), "export", "exported")

    monkeypatch.setattr(exporting, "entries_of", slow)
    with own_stage.session(Role.VIEWER) as session, ThreadPoolExecutor(exporting.AT_ONCE) as threads:

        def export() -> int:
            return session.submit("/audit/export", format="csv").status_code

        held = [threads.submit(export) for _ in range(exporting.AT_ONCE)]
        try:
            assert all(begun.acquire(timeout=10) for _ in held)
            assert export() == 503
        finally:
            go_on.set()
        assert [one.result() for one in held] == [200] * exporting.AT_ONCE
        assert export() == 200


def test_few_wait_for_a_turn_at_the_playground(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> playground.Result:
        begun.release()
        assert go_on.wait(10)
        return playground.Result(trouble="It was tried.")

    monkeypatch.setattr(playground, "MOST_WAITING", 0)
    monkeypatch.setattr(playground, "PATIENCE_S", 30.0)
    monkeypatch.setattr(playground, "try_out", slow)
    with (
        template.copy(tmp_path) as stage,
        stage.session(Role.VIEWER) as session,
        ThreadPoolExecutor(playground.AT_ONCE) as threads,
    ):
        held = [threads.submit(session.page, "/playground") for _ in range(playground.AT_ONCE)]
        try:
            assert all(begun.acquire(timeout=10) for _ in held)
            assert playground.BUSY in session.page("/playground")
        finally:
            go_on.set()
        assert all("It was tried." in one.result() for one in held)
