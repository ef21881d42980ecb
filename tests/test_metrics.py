"""Metrics: scraped as Prometheus does, from a real database, and what is built on their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge import schedule
from bridge.database import Database
from bridge.errors import DeliveryFailed, Retryable
from bridge.lanes import deliver_lane
from bridge.model import (
    BACKFILL,
    RECONCILE,
    REGISTRATION,
    AuditEntry,
    CatchUp,
    Delivery,
    Exchange,
    Progress,
    Receipt,
    RecordKey,
    utc_now,
)
from bridge.store.protocol import Attempt, Health, TargetStatus, Ticket
from bridge.web.health import nothing_known
from bridge.web.metrics import StoreCollector
from tests.databases import sqlite_is_enough
from tests.following import DOCS, code, table
from tests.web_site import API_TOKEN, Site, open_site

Samples = dict[str, dict[str, float]]  # the name of a sample -> the values of its labels, joined -> its value
LABELS = ("source", "target", "state", "outcome", "error", "le")


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with open_site(tmp_path, database=database) as opened:
        yield opened


def scrape(site: Site) -> Samples:
    headers = {"Authorization": f"Bearer {API_TOKEN}"}
    answer = site.session.get(f"{site.url}/metrics", headers=headers, timeout=5)
    assert answer.status_code == 200
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            labels = " ".join(sample.labels[name] for name in LABELS if name in sample.labels)
            assert set(sample.labels) <= set(LABELS)
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def customer(n: int, **said: str) -> Mapping[str, object]:
    data = {"id": str(n), "phone": f"+1415555010{n}", "email": f"person{n}@example.com", **said}
    return {"type": "contact.updated", "data": data}


def claim(site: Site, n: int, now: datetime, target: str = "sms") -> tuple[Ticket, Delivery]:
    """Begin the push of customer *n*, as the worker does."""
    for number in range(site.config.targets[target].lanes):
        ticket = site.store.acquire(deliver_lane(target, number), "test", now)
        claimed = site.store.claim(ticket, now)
        if claimed is not None:
            assert claimed.key == RecordKey("shop", str(n))
            return ticket, claimed
    raise AssertionError(f"nothing is due at {target}")


def push(
    site: Site,
    n: int,
    *,
    ms: int,
    calls: int,
    error: DeliveryFailed | None = None,
    later: timedelta = timedelta(),
) -> None:
    """Push customer *n*, who is the only one that is due; it takes *ms* milliseconds."""
    now = utc_now() + later
    ticket, claimed = claim(site, n, now)
    held = TargetStatus("sms")

    def close(row: Delivery | None) -> Delivery:
        current = row or claimed
        if error is not None:
            return schedule.failed(current, claimed, error, held=held, now=now, draw=0.5)
        fields = claimed.desired.fields if claimed.desired else {}
        return schedule.succeeded(current, claimed, Receipt("created", f"c{n}", fields), held=held, now=now)

    call = Exchange("POST", "https://sms.example/contacts", 200, ms, "", "")
    outcome, failed = ("created", None) if error is None else (error.code, error.code)
    attempt = Attempt(now, outcome, "", ms, status=200, error=failed, exchanges=[call] * calls)
    site.store.finish(ticket, claimed, close, attempt)


def test_counters_tell_what_was_done_and_what_was_saved(site: Site) -> None:
    for name in ("Ada", "Ada L.", "Ada Lovelace"):
        assert site.send("shop", customer(1, name=name)).status_code == 200
    site.process()
    push(site, 1, ms=40, calls=3)
    site.send("shop", customer(2))
    site.process()
    push(site, 2, ms=700, calls=1, error=Retryable("Away.", code="unavailable", retry_after_s=600))
    told = scrape(site)
    assert told["bridge_attempts_total"] == {"sms created": 1, "sms unavailable": 1}
    assert told["bridge_attempt_failures_total"] == {"sms unavailable": 1}
    assert told["bridge_calls_total"] == {"sms": 4}
    assert told["bridge_changes_total"] == {"sms": 4}
    assert told["bridge_pushes_saved"] == {"sms": 2}
    assert told["bridge_deliveries"]["sms retrying"] == 1


def test_durations_are_a_histogram_in_seconds(site: Site) -> None:
    for n, ms in ((1, 40), (2, 700), (3, 120_000)):
        site.send("shop", customer(n))
        site.process()
        push(site, n, ms=ms, calls=1)
    told = scrape(site)
    buckets = told["bridge_attempt_duration_seconds_bucket"]
    assert (buckets["sms 0.05"], buckets["sms 0.5"], buckets["sms 1.0"], buckets["sms +Inf"]) == (1, 1, 2, 3)
    assert list(buckets.values()) == sorted(buckets.values())
    assert told["bridge_attempt_duration_seconds_count"] == {"sms": 3}
    assert told["bridge_attempt_duration_seconds_sum"] == {"sms": 120.74}


def test_the_lag_is_from_the_change_to_the_target_with_all_tries_between(site: Site) -> None:
    site.send("shop", customer(1))
    site.process()
    push(site, 1, ms=10, calls=1, error=Retryable("Away."))
    assert "bridge_delivery_lag_seconds_count" not in scrape(site)  # not there yet
    push(site, 1, ms=10, calls=1, later=timedelta(minutes=10))
    told = scrape(site)
    assert told["bridge_delivery_lag_seconds_count"] == {"sms": 1}
    assert 600 <= told["bridge_delivery_lag_seconds_sum"]["sms"] < 660
    buckets = told["bridge_delivery_lag_seconds_bucket"]
    assert (buckets["sms 300.0"], buckets["sms 1800.0"], buckets["sms +Inf"]) == (0, 1, 1)


@pytest.mark.parametrize("trouble", ["waits for its next try", "held", "throttled", "due"])
def test_the_backlog_ages_whatever_a_delivery_waits_for(site: Site, trouble: str) -> None:
    assert scrape(site)["bridge_backlog_age_seconds"] == {"marketing": 0, "sms": 0}
    site.send("shop", customer(1))
    site.process()
    if trouble == "waits for its next try":
        push(site, 1, ms=10, calls=1, error=Retryable("Away.", retry_after_s=600))
    elif trouble == "held":
        site.store.hold("sms", "It refuses our key.", utc_now(), utc_now())
    elif trouble == "throttled":
        site.store.set_backoff("sms", utc_now() + timedelta(hours=1))
    told = scrape(site)
    assert told["bridge_backlog_age_seconds"]["marketing"] == 0
    assert 0 < told["bridge_backlog_age_seconds"]["sms"] < 60


def test_the_quota_is_told_as_it_is_now(site: Site) -> None:
    burst = site.config.targets["sms"].burst
    told = scrape(site)
    assert told["bridge_quota_burst_calls"]["sms"] == burst
    assert told["bridge_quota_calls"]["sms"] == burst
    assert told["bridge_target_backoff_seconds"] == {"marketing": 0, "sms": 0}
    site.store.take_turn("sms", 0.001, burst, utc_now(), count=burst)
    site.store.set_backoff("sms", utc_now() + timedelta(seconds=90))
    told = scrape(site)
    assert told["bridge_quota_calls"]["sms"] < 1
    assert 60 < told["bridge_target_backoff_seconds"]["sms"] <= 90


def test_every_process_tells_the_same(site: Site, database: Database) -> None:
    site.send("shop", customer(1))
    site.process()
    push(site, 1, ms=40, calls=3)
    with closing(database.open({"sms": 2, "marketing": 2}, "web")) as other:
        bursts = {name: one.burst for name, one in site.config.targets.items()}
        found = list(StoreCollector(other, bursts, utc_now, nothing_known).collect())
    told = {sample.name: sample.value for family in found for sample in family.samples}
    here = scrape(site)
    assert set(told) == set(here)
    assert all(told[name] in here[name].values() for name in told if name.endswith("_total"))


@sqlite_is_enough
def test_a_heartbeat_of_a_wrong_clock_does_not_look_fresh(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = Health(worker_seen_at=utc_now() + timedelta(days=1))
    monkeypatch.setattr(site.store, "health", lambda now: ahead)
    assert scrape(site)["bridge_worker_seen_seconds"][""] > 80_000


def test_a_source_that_fell_silent_is_seen(site: Site) -> None:
    assert "bridge_source_silent_seconds" not in scrape(site)
    site.send("shop", customer(1))
    assert 0 <= scrape(site)["bridge_source_silent_seconds"]["shop"] < 60


# --- what is built on the names ------------------------------------------------------------------------------


@pytest.fixture
def names(site: Site) -> set[str]:
    """Return the name of every sample that there can be."""
    site.store.beat("worker", "host:1", utc_now())
    site.send("shop", customer(1))
    site.process()
    push(site, 1, ms=40, calls=1, error=Retryable("Away."))
    push(site, 1, ms=40, calls=1, later=timedelta(hours=1))
    now = utc_now()
    begun = CatchUp("shop", RECONCILE, "1", now, now, "bridge", state=Progress.DONE)
    site.store.start_catch_up(begun)
    site.store.start_catch_up(replace(begun, kind=BACKFILL))
    site.store.start_catch_up(replace(begun, kind=REGISTRATION, since=now + timedelta(days=1)))
    site.store.note([AuditEntry(now, "contact", "missed", "", source="shop", source_id="1")])
    return set(scrape(site))


def families(names: set[str]) -> set[str]:
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


@sqlite_is_enough
def test_every_metric_is_documented_and_nothing_else(names: set[str]) -> None:
    listed = [code(name).partition("{")[0] for name, _ in table(DOCS / "api.md", "metrics")]
    assert set(listed) == families(names)


@sqlite_is_enough
def test_the_board_and_the_alerts_use_metrics_that_exist(names: set[str]) -> None:
    board = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = (DOCS / "alerts.yml").read_text("utf-8")
    expressions = re.findall(r"(?m)^ +expr: (.+)$", rules)
    assert (len(panels) > 10, len(expressions)) == (True, rules.count("- alert:"))
    variables = [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]
    used = {name for text in [*asked, *expressions, *variables] for name in re.findall(r"\bbridge_\w+", text)}
    assert used <= names
    assert families(used) == families(names)  # and what is told is shown


def test_the_board_works_with_any_prometheus() -> None:
    board = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert board["templating"]["list"][0]["type"] == "datasource"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert [panel["datasource"] for panel in panels] == [chosen] * len(panels)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
