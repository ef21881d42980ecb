"""The worker's housekeeping when the database cannot take it, and its patience in a burst."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.config import Config, load
from bridge.engine.embedded import EmbeddedEngine
from bridge.errors import StoreUnavailable
from bridge.model import InboundRequest, utc_now
from bridge.store.sqlite import SqliteStore
from bridge.worker import LONGEST_PAUSE_S, Worker
from tests.platforms import open_bench, person, serve_platforms, signed, webhook
from tests.web_site import SECRETS, write_config


def test_a_full_disk_is_named_and_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_config(tmp_path), SECRETS)
    now = [1000.0]
    monkeypatch.setattr("bridge.worker.time.monotonic", lambda: now[0])

    def full(role: str, owner: str, at: datetime) -> None:
        raise StoreUnavailable("The disk is full.")

    with contextlib.closing(SqliteStore(tmp_path / "bridge.db", {})) as store, capture_logs() as logged:
        store.migrate()
        monkeypatch.setattr(store, "beat", full)
        worker = Worker(config, store, EmbeddedEngine(lambda lane, error: None))

        def wait(seconds: float) -> bool:
            now[0] += seconds
            if now[0] > 1200:
                worker.stop(0)
            return False

        worker.keep_house(wait)
    failed = [one for one in logged if one["event"] == "worker.housekeeping_failed"]
    assert {one["reason"] for one in failed} == {"The disk is full."}
    pauses = [one["again_in_s"] for one in failed]
    assert pauses[:6] == [1, 2, 4, 8, 16, LONGEST_PAUSE_S]
    assert set(pauses[5:]) == {LONGEST_PAUSE_S}
    assert len(pauses) < 13


def test_more_of_a_burst_is_waited_for_and_of_little_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_platforms() as platforms:
        loaded = load(platforms.write_config(tmp_path), platforms.environ)
        with open_bench(tmp_path, loaded) as bench:
            bench.worker.gather_s = 0.3
            coming, waits = [range(20, 31), range(40, 43)], []

            def wait(seconds: float) -> bool:
                waits.append(seconds)
                bench.receive(*[_edit(loaded, number) for number in coming.pop(0)])
                return False

            monkeypatch.setattr(bench.worker._stopping, "wait", wait)
            bench.receive(*[_edit(loaded, number) for number in range(11)])
            bench.worker.run("process:shop")
            assert waits == [0.3, 0.3]
            assert bench.store.work("shop", bench.now(), 100).inbounds == []


def _edit(loaded: Config, number: int) -> InboundRequest:
    return signed(loaded, webhook("changed", person(number), utc_now()), f"msg_{number}")
