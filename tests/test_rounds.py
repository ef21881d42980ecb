"""A burst of webhooks, dealt out to rounds of a few contacts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge import config, pipeline
from bridge.database import Database
from bridge.lanes import process_lane
from bridge.model import RecordKey, utc_now
from bridge.pipeline import processing
from bridge.pipeline.processing import Round
from tests.platforms import Bench, Platforms, open_bench, person, signed, webhook

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
def bench(tmp_path: Path, database: Database) -> Iterator[Bench]:
    platforms = Platforms()
    platforms.urls = dict.fromkeys(platforms.fakes, "http://127.0.0.1:9")  # nothing is called here
    loaded = config.load(platforms.write_config(tmp_path), platforms.environ)
    with open_bench(tmp_path, loaded, database) as one:
        yield one


def receive(bench: Bench, people: int, edits: int) -> None:
    """Have everybody edited in turn, and that several times."""
    for number in range(people * edits):
        data = person(number % people, name=f"Edit {number // people}")
        body = webhook("changed", data, NOON + timedelta(seconds=number))
        bench.receive(signed(bench.config, body, f"msg_{number}"))


def rounds(bench: Bench) -> Iterator[Round]:
    connection, routes = bench.config.sources["shop"], bench.config.routes_of("shop")
    ticket = bench.store.acquire(process_lane("shop"), "test", utc_now())
    return pipeline.process(connection, routes, bench.store, ticket, None, utc_now())


def test_everything_that_was_said_of_a_contact_is_decided_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "ROUND", 2)
    receive(bench, people=3, edits=3)
    done = list(rounds(bench))
    assert [one.inbounds for one in done] == [[1, 4, 7, 2, 5, 8], [3, 6, 9]]
    assert [one.more for one in done] == [True, False]
    for number in range(3):
        key = RecordKey("shop", str(84000 + number))
        assert bench.store.contacts([key])[key].fields["name"].value == "Edit 2"
        assert {one.revision for one in bench.store.deliveries_of(key)} == {1}


def test_a_round_that_nobody_asks_for_stays_queued(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing, "ROUND", 2)
    receive(bench, people=3, edits=2)
    assert next(rounds(bench)).inbounds == [1, 4, 2, 5]
    assert [one.inbounds for one in rounds(bench)] == [[3, 6]]
    assert list(rounds(bench)) == []


def test_a_replay_waits_for_what_comes_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing, "ROUND", 1)
    receive(bench, people=1, edits=1)
    list(rounds(bench))
    bench.store.replay(utc_now(), "test", keys=[RecordKey("shop", "84000")])
    data = person(1, name="Somebody new")
    bench.receive(signed(bench.config, webhook("changed", data, NOON), "msg_new"))
    assert [one.inbounds for one in rounds(bench)] == [[2], []]
