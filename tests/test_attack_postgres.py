"""What somebody would try who wants one webhook, or one answer of a platform, to hold up everything else.

PostgreSQL refuses some of what SQLite takes, so both databases are tried and must say the same.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.config import Config, load
from bridge.database import Database
from bridge.model import Receipt, State, utc_now
from bridge.outbound import Api
from bridge.pipeline.delivering import LONGEST_ID
from bridge.store.protocol import Filter
from bridge.targets.base import Job
from tests.platforms import Platforms, open_bench, person, serve_platforms, signed, webhook

# What repeats itself would be compressed until an index takes it.
TOO_LONG = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=9000))


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


@pytest.fixture
def config(platforms: Platforms, tmp_path: Path) -> Config:
    platforms.forget()
    return load(platforms.write_config(tmp_path, settle_s=1), platforms.environ)


# --- answers of a platform -------------------------------------------------------------------------------


class Longwinded:
    """A platform that calls contacts by *target_id*; *links* where it says so before its first write."""

    def __init__(self, target_id: str, *, links: bool) -> None:
        self.target_id = target_id
        self.links = links

    def deliver(self, api: Api, job: Job) -> Receipt:
        if self.links:
            job.link(self.target_id)
        return Receipt("created", self.target_id, dict(job.desired.fields))

    remove = deliver

    def check(self, api: Api) -> str:
        return "It answers."


@pytest.mark.parametrize("links", [True, False])
def test_an_id_that_no_index_takes_fails_its_own_delivery_only(
    config: Config, database: Database, tmp_path: Path, links: bool
) -> None:
    longwinded = replace(config.targets["sms"], target=Longwinded(TOO_LONG, links=links))
    usual = replace(config.targets["inbox"], target=Longwinded(TOO_LONG[:LONGEST_ID], links=links))
    config = replace(config, targets={**config.targets, "sms": longwinded, "inbox": usual})
    with open_bench(tmp_path, config, database) as bench:
        bench.receive(signed(config, webhook("changed", person(1), utc_now()), "m1"))
        bench.settle()
        found = {one.target: one for one in bench.store.delivery_page(Filter(), None, 10).items}
    assert (found["sms"].state, found["sms"].error, found["sms"].target_id) == (State.FAILED, "nonsense", None)
    assert f"more than {LONGEST_ID} characters" in found["sms"].reason
    assert {one.state for name, one in found.items() if name != "sms"} == {State.SYNCED}
    assert found["inbox"].target_id == TOO_LONG[:LONGEST_ID]
