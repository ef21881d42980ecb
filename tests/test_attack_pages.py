"""What somebody would try who wants in, wants more than his role, or wants the pages to stop answering."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from werkzeug.security import check_password_hash

from bridge.model import utc_now
from bridge.store.looking import Role, User
from bridge.web.guard import Throttle, neighbourhood
from bridge.web.pages import access
from bridge.web.pages.access import login_path
from tests.stage import SECRET_KEY, USERS, Session, Stage

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
