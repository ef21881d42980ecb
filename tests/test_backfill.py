"""A backfill by real processes: the worker is killed on the way, and people go on working in the CRM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backfilling import open_account, run_and_kill
from tests.platforms import Platforms, serve_platforms
from tests.processes import Processes

PEOPLE, KILLS = 320, 3


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


def test_everybody_arrives_once_whenever_the_worker_is_killed(platforms: Platforms, tmp_path: Path) -> None:
    live: list[float] = []
    with open_account(platforms, tmp_path) as account:
        account.fill(PEOPLE)

        def say(processes: Processes) -> None:
            live.append(account.say_live(processes, len(live)))

        run_and_kill(account, PEOPLE, KILLS, say)
        people = [one["email"] for one in platforms.marketing.people()]
        assert len(people) == len(set(people)) == PEOPLE + KILLS
        assert account.progress().seen >= PEOPLE
        assert len(live) == KILLS
        assert b"Traceback" not in (tmp_path / "bridge.log").read_bytes()
