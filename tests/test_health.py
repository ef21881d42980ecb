"""Health: what is well, what is not and why, in words and in numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from bridge.database import Database
from bridge.errors import StoreUnavailable
from bridge.model import utc_now
from bridge.store.group_commit import Trouble
from bridge.store.protocol import Health, Refusal, SourceStatus, TargetStatus
from bridge.web.health import LATE_S, TROUBLE_FRESH_S, WORKER_FRESH_S, look, why_unwritable
from tests.databases import sqlite_is_enough
from tests.web_site import API_TOKEN, Site, open_site

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with open_site(tmp_path, database=database) as opened:
        yield opened


@sqlite_is_enough
def test_a_process_that_answers_is_alive(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.store, "health", _unavailable)
    answer = site.session.get(f"{site.url}/healthz", timeout=5)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_ready_once_a_worker_beats(site: Site) -> None:
    before = site.session.get(f"{site.url}/readyz", timeout=5)
    assert before.status_code == 503
    assert _failing(before.json()) == ["worker"]
    assert "bridge worker" in before.text
    site.store.beat("worker", "host:1", utc_now())
    after = site.session.get(f"{site.url}/readyz", timeout=5)
    assert (after.status_code, after.json()["status"]) == (200, "ready")


def test_a_worker_that_stopped_beating_is_missed(site: Site) -> None:
    site.store.beat("worker", "host:1", utc_now() - timedelta(seconds=WORKER_FRESH_S + 5))
    answer = site.session.get(f"{site.url}/readyz", timeout=5)
    assert answer.status_code == 503
    [worker] = [check for check in answer.json()["checks"] if check["name"] == "worker"]
    assert worker["age_s"] > WORKER_FRESH_S
    assert "nothing is sent" in worker["detail"]


@sqlite_is_enough
def test_a_database_that_does_not_answer_is_said_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.store, "health", _unavailable)
    answer = site.session.get(f"{site.url}/readyz", timeout=5)
    assert answer.status_code == 503
    assert _failing(answer.json()) == ["database"]
    families = _metrics(site)
    assert families["bridge_database_up"] == {(): 0.0}


def test_a_full_disk_is_told_as_soon_as_a_webhook_was_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.store.beat("worker", "host:1", utc_now())
    webhook = {"type": "contact.updated", "data": {"id": "7"}}
    with monkeypatch.context() as patched:
        patched.setattr(site.commit, "_receive", _full)
        with capture_logs() as logged:
            assert site.send("shop", webhook).status_code == 503
        assert [one["reason"] for one in logged] == ["The disk is full."]
        answer = site.session.get(f"{site.url}/readyz", timeout=5)
        assert (answer.status_code, _failing(answer.json())) == (503, ["database"])
        assert "The disk is full." in answer.text
        assert [one["detail"] for one in site.get("/status")["checks"] if not one["ok"]] == ["The disk is full."]
        families = _metrics(site)
        assert families["bridge_database_up"] == {(): 0.0}
        assert "bridge_worker_seen_seconds" in families  # what can be read is told
    assert site.send("shop", webhook).status_code == 200
    assert site.session.get(f"{site.url}/readyz", timeout=5).status_code == 200


def test_a_failed_write_is_tried_anew_when_no_webhook_comes_to_do_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Trouble("The disk is full.", time.monotonic() - TROUBLE_FRESH_S - 1)
    with monkeypatch.context() as patched:
        patched.setattr(site.store, "beat", _full)
        assert why_unwritable(site.store, old, NOW) == "The disk is full."
        assert why_unwritable(site.store, None, NOW) == ""
    assert why_unwritable(site.store, old, NOW) == ""


@sqlite_is_enough
@pytest.mark.parametrize(
    ("health", "failing"),
    [
        (Health(worker_seen_at=NOW), []),
        (Health(worker_seen_at=NOW, oldest_due_at=NOW - timedelta(seconds=LATE_S - 1)), []),
        (Health(worker_seen_at=NOW, oldest_due_at=NOW - timedelta(seconds=LATE_S + 1)), ["delivery"]),
        (Health(worker_seen_at=NOW, oldest_unprocessed_at=NOW - timedelta(days=1)), ["processing"]),
        (Health(worker_seen_at=NOW + timedelta(seconds=5)), []),  # another machine's clock is ahead
        (Health(worker_seen_at=NOW + timedelta(days=1)), ["worker"]),  # a clock was wrong: it tells nothing
    ],
)
def test_what_is_late_is_not_well(
    site: Site, monkeypatch: pytest.MonkeyPatch, health: Health, failing: list[str]
) -> None:
    monkeypatch.setattr(site.store, "health", lambda now: health)
    checks = look(site.store, NOW)
    assert [check.name for check in checks if not check.ok] == failing
    assert all(check.detail.endswith(".") for check in checks)


@sqlite_is_enough
def test_metrics_tell_what_the_database_holds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now = utc_now()
    health = Health(
        worker_seen_at=now - timedelta(seconds=3),
        oldest_due_at=now - timedelta(seconds=60),
        inbound={"processed": 7, "ignored": 2},
        deliveries={("sms", "synced"): 5, ("sms", "failed"): 1},
        sources=[SourceStatus("shop", refused=4, unprocessed=3)],
        targets=[TargetStatus("sms", mode="paused"), TargetStatus("marketing")],
    )
    monkeypatch.setattr(site.store, "health", lambda now: health)
    families = _metrics(site)
    assert families["bridge_inbound"] == {("ignored",): 2, ("processed",): 7}
    assert families["bridge_deliveries"] == {("sms", "failed"): 1, ("sms", "synced"): 5}
    assert families["bridge_refused"] == {("shop",): 4}
    assert families["bridge_unprocessed"] == {("shop",): 3}
    assert families["bridge_target_open"] == {("marketing",): 1, ("sms",): 0}
    assert 60 <= families["bridge_oldest_due_seconds"][()] < 70
    assert 3 <= families["bridge_worker_seen_seconds"][()] < 13


def test_metrics_of_a_real_store_count_refusals_and_name_no_person(site: Site) -> None:
    site.send("shop", {"type": "contact.updated", "data": {"id": "7", "email": "ada@example.com"}})
    site.store.refuse([Refusal("shop", utc_now(), "no signature")])
    families = _metrics(site)
    assert families["bridge_inbound"][("accepted",)] == 1
    assert families["bridge_refused"] == {("shop",): 1}
    assert "bridge_worker_seen_seconds" not in families
    assert "ada" not in _scrape(site)


@sqlite_is_enough
def test_metrics_need_the_token(site: Site) -> None:
    assert site.session.get(f"{site.url}/metrics", timeout=5).status_code == 401


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_metrics_are_open_where_only_this_machine_can_ask(tmp_path: Path, address: str) -> None:
    with open_site(tmp_path, bound_to=address) as site:
        assert site.session.get(f"{site.url}/metrics", timeout=5).status_code == 200


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7", ""])
def test_metrics_are_closed_everywhere_else(tmp_path: Path, address: str) -> None:
    with open_site(tmp_path, bound_to=address, api_token="") as site:
        assert site.session.get(f"{site.url}/metrics", timeout=5).status_code == 503


def _unavailable(now: datetime) -> Health:
    raise StoreUnavailable("The disk is gone.")


def _full(*_: object) -> NoReturn:
    raise StoreUnavailable("The disk is full.")


def _failing(body: dict[str, list[dict[str, object]]]) -> list[object]:
    return [check["name"] for check in body["checks"] if not check["ok"]]


def _scrape(site: Site) -> str:
    headers = {"Authorization": f"Bearer {API_TOKEN}"}
    answer = site.session.get(f"{site.url}/metrics", headers=headers, timeout=5)
    assert answer.status_code == 200
    return answer.text


def _metrics(site: Site) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the values of each metric by the values of its labels: of the target before that of the state."""
    return {
        family.name: {_values(one.labels): one.value for one in family.samples}
        for family in text_string_to_metric_families(_scrape(site))
    }


def _values(labels: dict[str, str]) -> tuple[str, ...]:
    return tuple(labels[name] for name in sorted(labels, reverse=True))
