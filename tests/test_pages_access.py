"""Signing in and out: who gets in, how quickly one may guess, and what a session is worth."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest
import requests

from bridge.errors import StoreUnavailable
from bridge.model import utc_now
from bridge.store.looking import Role
from bridge.store.protocol import Filter
from bridge.web.pages.access import hashed, login_path, safe_next
from tests.stage import API_TOKEN, PASSWORD, SECRET_KEY, USERS, Session, Stage

ADA = USERS[Role.ADMIN]
PAGES = ("/", "/audit", "/webhooks", "/contacts", "/failures", "/sources", "/targets", "/playground", "/account")


@pytest.fixture
def somebody(stage: Stage) -> Session:
    return Session(stage.url)


@pytest.mark.parametrize("path", PAGES)
def test_who_is_not_signed_in_is_sent_to_sign_in_and_back(stage: Stage, path: str) -> None:
    with Session(stage.url) as session:
        answer = session.get(stage.url + path + "?q=1", headers={"Accept": "text/html"}, timeout=5)
        assert answer.url.startswith(stage.url + "/sign-in?next=")
        signed = session.submit(answer.url.removeprefix(stage.url), name=ADA, password=PASSWORD)
        html = session.page("/sign-in?next=/account")
    assert signed.status_code != 401
    assert ADA in html  # already signed in: straight to the page


def test_a_password_lets_in_and_the_page_says_who_one_is(stage: Stage) -> None:
    with Session(stage.url) as session:
        answer = session.submit("/sign-in", name=ADA, password=PASSWORD, next="/account")
        assert answer.url == stage.url + "/account"
        assert f"<h1>{ADA}</h1>" in answer.text


@pytest.mark.parametrize(
    ("name", "password"),
    [(ADA, "wrong password"), ("nobody", PASSWORD), (ADA, ""), ("", ""), ("a\x00b", "x" * 5000)],
)
def test_a_wrong_name_and_a_wrong_password_look_the_same(stage: Stage, name: str, password: str) -> None:
    with Session(stage.url) as session:
        answer = session.submit("/sign-in", name=name, password=password)
        assert answer.status_code == 401
        assert "There is nobody of that name with that password." in answer.text
        assert session.get(stage.url + "/account", timeout=5).url.startswith(stage.url + "/sign-in")


def test_guessing_is_slowed_down_for_the_name_that_is_guessed(own_stage: Stage) -> None:
    with Session(own_stage.url) as session:
        codes = [session.submit("/sign-in", name=ADA, password=f"guess {n}").status_code for n in range(6)]
        assert codes == [401] * 5 + [429]
        right = session.submit("/sign-in", name=ADA, password=PASSWORD)
        assert right.status_code == 429
        assert "wait" in right.text
        # A link is no guess.
        by_link = session.submit(login_path(SECRET_KEY, own_stage.store, ADA, utc_now(), timedelta(minutes=5)))
        assert by_link.status_code == 200


def test_a_link_signs_in_once(stage: Stage) -> None:
    path = login_path(SECRET_KEY, stage.store, ADA, utc_now(), timedelta(minutes=5))
    with Session(stage.url) as first, Session(stage.url) as second:
        assert "Sign in" in first.page(path)  # to look at it uses nothing up
        assert first.submit(path).url == stage.url + "/"
        again = second.submit(path)
        assert again.status_code == 410
        assert "used already" in again.text


def test_a_link_is_over_after_its_time_and_made_up_ones_are_none(own_stage: Stage) -> None:
    old = login_path(SECRET_KEY, own_stage.store, ADA, utc_now(), timedelta(minutes=5))
    own_stage.ahead[0] = timedelta(minutes=6)
    other = login_path("another-secret-key", own_stage.store, ADA, utc_now(), timedelta(minutes=5))
    with Session(own_stage.url) as session:
        for path in (old, other, "/sign-in/link/made-up"):
            assert session.submit(path).status_code == 410


@pytest.mark.parametrize("change", ["ended", "removed", "role"])
def test_a_session_ends_at_once_when_it_should(own_stage: Stage, change: str) -> None:
    store = own_stage.store
    with own_stage.session("operator") as session, own_stage.session("operator") as other:
        name = USERS[Role.OPERATOR]
        if change == "ended":
            assert session.submit("/sign-out-everywhere", "/account").url.endswith("/sign-in")
        elif change == "removed":
            store.remove_user(name)
        else:
            known = store.user(name)
            assert known
            store.save_user(replace(known, role=Role.VIEWER), utc_now())
            assert "look at everything" in other.page("/account")
            return
        for one in (session, other):
            assert one.get(own_stage.url + "/account", timeout=5).url.startswith(own_stage.url + "/sign-in")


def test_signing_out_ends_this_session_only(own_stage: Stage) -> None:
    with own_stage.session() as session, own_stage.session() as other:
        assert session.submit("/sign-out", "/account").url.endswith("/sign-in")
        assert session.get(own_stage.url + "/account", timeout=5).url.startswith(own_stage.url + "/sign-in")
        assert ADA in other.page("/account")


@pytest.mark.parametrize("token", ["", "of another session", "é"])
def test_a_form_without_the_token_of_its_session_does_nothing(stage: Stage, token: str) -> None:
    with stage.session() as session:
        answer = session.post(
            stage.url + "/sign-out-everywhere", {"csrf": token}, headers={"Accept": "text/html"}, timeout=5
        )
        assert answer.status_code == 400
        assert "Nothing was changed" in answer.text
        assert ADA in session.page("/account")


def test_pages_forbid_foreign_and_inline_code_and_are_not_kept(stage: Stage) -> None:
    with stage.session() as session:
        answer = session.get(stage.url + "/account", timeout=5)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", answer.text)
    hosts = re.findall(r'(?:src|href|action)="(https?:)?//', answer.text)
    assert hosts == []


def test_the_session_cookie_is_kept_from_scripts_and_other_sites(stage: Stage) -> None:
    with Session(stage.url) as session:
        answer = session.get(stage.url + "/sign-in", timeout=5)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


@pytest.mark.parametrize(
    "given",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "",
        "evil",
        "/a\nb",
        "///x",
        "//[",
        "/\\[",
    ],
)
def test_nobody_is_led_away_after_signing_in(given: str) -> None:
    assert safe_next(given) == "/"


def test_errors_are_pages_for_people_and_problems_for_programs(stage: Stage) -> None:
    with stage.session() as session:
        assert "There is nothing" in session.page("/no/such/page", 404)
    answer = requests.get(stage.url + "/no/such/page", headers={"Accept": "application/json"}, timeout=5)
    assert answer.headers["Content-Type"] == "application/problem+json"
    answer = requests.get(
        stage.url + "/api/v1/none",
        headers={"Authorization": f"Bearer {API_TOKEN}", "Accept": "text/html"},
        timeout=5,
    )
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_assets_are_kept_for_ever_and_stay_in_their_folder(stage: Stage) -> None:
    with stage.session() as session:
        html = session.page("/account")
        paths = re.findall(r'(?:src|href)="(/assets/[^"]+)"', html)
        assert len(paths) >= 4
        for path in paths:
            answer = session.get(stage.url + path, timeout=5)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["Cache-Control"]
        folder = paths[0].rpartition("/")[0]
        assert session.get(f"{stage.url}{folder}/..%2fbase.html", timeout=5).status_code == 404
        assert session.get(f"{stage.url}/assets/other/bridge.css", timeout=5).status_code == 404


def test_who_signs_in_is_in_the_audit_log(own_stage: Stage) -> None:
    with own_stage.session("viewer"):
        entries = own_stage.store.audit_page(Filter(kind="access"), None, 5).items
    assert (entries[0].outcome, entries[0].reason) == ("signed_in", "vera signed in with a link.")


def test_a_password_is_neither_too_short_nor_too_long() -> None:
    assert hashed("x" * 12) != hashed("x" * 12)
    for wrong in ("x" * 11, "x" * 257):
        with pytest.raises(ValueError, match="12 to 256"):
            hashed(wrong)


def test_with_a_full_disk_one_can_still_look_and_hears_what_cannot_be_done(
    own_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreUnavailable("The disk is full.")

    with own_stage.session() as session:
        for verb in ("seen", "pause", "note"):
            monkeypatch.setattr(own_stage.store, verb, full)
        for path in PAGES:
            session.page(path)
        answer = session.submit("/targets/sms/pause", reason="moving")
        assert answer.status_code == 503
        assert "Nothing was changed" in answer.text


def test_without_a_database_every_page_says_so(own_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_stage.session() as session:

        def gone(*_: object, **__: object) -> None:
            raise StoreUnavailable("The database is gone.")

        monkeypatch.setattr(own_stage.store, "user", gone)
        for path in PAGES:
            assert "The database cannot be used now" in session.page(path, 503)
