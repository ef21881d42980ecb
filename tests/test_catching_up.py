"""Catching up with a CRM's list: everybody (backfill), and what no webhook told of (reconcile)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge import catch_up
from bridge.config import Config, load
from bridge.database import Database
from bridge.errors import SourceUnavailable
from bridge.lanes import slot_of
from bridge.model import BACKFILL, RECONCILE, SHARE, CatchUp, Progress, RecordKey, State, Version, utc_now
from bridge.outbound import Api
from bridge.pipeline import catching_up
from bridge.sources.base import Listed, Read
from bridge.store.protocol import Decision, Filter
from tests.platforms import Bench, Platforms, open_bench, person, serve_platforms, signed, webhook
from tests.stage import Stage
from tests.test_pages_overview import text_of

PAGE = 10


@dataclass
class List:
    """The contacts of a CRM, as its list calls give them."""

    people: dict[str, tuple[dict[str, Any], datetime]] = field(default_factory=dict)
    asked: list[tuple[str | None, datetime | None]] = field(default_factory=list)
    down: str = ""
    choke: bool = False
    trouble: dict[str, str] = field(default_factory=dict)

    def put(self, number: int, at: datetime, **fields: Any) -> None:
        said = person(number, name=f"Ana {number}", **fields)
        self.people[said["id"]] = (said, at)

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        assert {"email", "phone", "stop"} <= set(fields)
        self.asked.append((after, since))
        if self.down:
            raise SourceUnavailable(self.down)
        if self.choke:
            raise KeyError("results")
        found = sorted(
            (source_id, said, at)
            for source_id, (said, at) in self.people.items()
            if source_id > (after or "") and (since is None or at >= since)
        )
        records = [
            self.told(RecordKey("shop", source_id), said, Version(at, "list"))
            for source_id, said, at in ((one, only(said, fields), at) for one, said, at in found[:PAGE])
        ]
        more = len(found) > PAGE
        return Listed(records, records[-1].key.source_id if more else None, len(self.people))

    def told(self, key: RecordKey, said: dict[str, Any], version: Version) -> Read:
        if why := self.trouble.get(key.source_id):
            return Read(key, key, None, None, problem=why)
        return Read(key, key, said, version)


def only(said: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {name: said.get(name, "") for name in fields}


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


@pytest.fixture
def people() -> List:
    return List()


@pytest.fixture
def bench(platforms: Platforms, people: List, database: Database, tmp_path: Path) -> Iterator[Bench]:
    platforms.forget()
    loaded = load(platforms.write_config(tmp_path, settle_s=1), platforms.environ)
    with open_bench(tmp_path, with_list(loaded, people), database) as opened:
        yield opened


def with_list(config: Config, people: List) -> Config:
    shop = config.sources["shop"]
    listing = replace(
        shop.type, lister=lambda name, settings: people, read_base_url=lambda settings: "http://127.0.0.1:9"
    )
    return replace(config, sources={"shop": replace(shop, type=listing, reconcile_s=3600.0)})


def begin(bench: Bench, share: float = 1.0) -> None:
    assert bench.store.start_catch_up(catching_up.backfill("shop", "ann", share, bench.now()))


def backfill(bench: Bench) -> CatchUp:
    found = bench.store.catch_up("shop", BACKFILL)
    assert found is not None
    return found


def lane_of(source_id: str) -> int:
    return slot_of(RecordKey("shop", source_id)) % 2


def say(bench: Bench, number: int, message: str, **fields: Any) -> None:
    body = webhook("changed", person(number, **fields), bench.now())
    bench.receive(signed(bench.config, body, message))


def test_everybody_arrives_once_and_nobody_twice(bench: Bench, people: List, platforms: Platforms) -> None:
    for number in range(25):
        people.put(number, utc_now() - timedelta(days=number))
    begin(bench)
    bench.settle()
    done = backfill(bench)
    assert (done.state, done.seen, done.changed, done.total) == (Progress.DONE, 25, 25, 25)
    assert platforms.counts() == dict.fromkeys(platforms.fakes, 25)
    assert done.effects["marketing"] == {"create": 25}
    assert [after for after, _ in people.asked] == [None, "84009", "84019"]
    begin(bench)
    calls = len(platforms.marketing.calls)
    bench.settle()
    assert (backfill(bench).seen, backfill(bench).changed) == (25, 0)
    assert len(platforms.marketing.calls) == calls, "who is known and unchanged costs no call"


def test_it_goes_on_where_it_was_interrupted(bench: Bench, people: List, platforms: Platforms) -> None:
    for number in range(25):
        people.put(number, utc_now())
    begin(bench)
    people.down = "The CRM is away."
    bench.worker.run("process:shop")
    waiting = backfill(bench)
    assert (waiting.state, waiting.reason, waiting.tries) == (Progress.RUNNING, "The CRM is away.", 1)
    assert waiting.due_at is not None
    assert waiting.due_at > bench.now()
    people.down = ""
    bench.settle()
    assert backfill(bench).seen == 25
    assert platforms.counts() == dict.fromkeys(platforms.fakes, 25)


def test_what_comes_live_meanwhile_is_not_kept_waiting(bench: Bench, people: List, platforms: Platforms) -> None:
    for number in range(40):
        people.put(number, utc_now())
    begin(bench)
    bench.worker.run("process:shop")
    say(bench, 99, "msg_live", name="Live")
    bench.worker.run("process:shop")
    for lane in range(2):
        bench.worker.run(f"deliver:marketing:{lane}")
    pushed = bench.store.audit_page(Filter(target="marketing", kind="delivery"), None, 200).items
    ids = [one.source_id or "" for one in reversed(pushed) if one.attempt]
    assert next(one for one in ids if lane_of(one) == lane_of("84099")) == "84099", "what was listed waits"


def test_somebody_is_asked_before_too_many_are_changed(bench: Bench, people: List, platforms: Platforms) -> None:
    for number in range(60):
        people.put(number, utc_now())
    begin(bench, share=SHARE)
    bench.settle()
    asking = backfill(bench)
    assert asking.state is Progress.ASKING
    assert "would be changed at" in asking.reason
    assert "created: " in asking.reason
    assert asking.seen <= 20
    assert all(count <= 20 for count in platforms.counts().values())
    assert bench.store.change_catch_up(catch_up.approved(asking, bench.now()), bench.now())
    bench.settle()
    assert backfill(bench).state is Progress.DONE
    assert platforms.counts() == dict.fromkeys(platforms.fakes, 60)


def test_what_a_person_stops_stays_stopped(bench: Bench, people: List) -> None:
    for number in range(30):
        people.put(number, utc_now())
    begin(bench)
    assert bench.store.change_catch_up(catch_up.stopped(backfill(bench), "ann", bench.now()), bench.now())
    bench.settle()
    assert people.asked == []
    assert backfill(bench).reason == "Stopped by ann. What was read until then stays."


def test_an_older_list_overwrites_nothing_newer(bench: Bench, people: List, platforms: Platforms) -> None:
    people.put(1, utc_now() - timedelta(days=2), stop="no")
    say(bench, 1, "msg_1", name="Newer", stop="yes")
    bench.settle()
    begin(bench)
    bench.settle()
    known = bench.store.contacts([RecordKey("shop", "84001")])[RecordKey("shop", "84001")]
    assert known.fields["name"].value == "Newer"
    assert {one.state for one in bench.store.deliveries_of(known.key)} == {State.OPTED_OUT}


def test_who_was_erased_or_deleted_is_not_brought_back(bench: Bench, people: List, platforms: Platforms) -> None:
    people.put(1, utc_now())
    say(bench, 1, "msg_1", name="Ana")
    bench.settle()
    for kind in ("deleted", "erased"):
        body = webhook(kind, person(1), bench.now())
        bench.receive(signed(bench.config, body, f"msg_{kind}"))
    bench.settle()
    calls = len(platforms.marketing.calls)
    begin(bench)
    bench.settle()
    assert len(platforms.marketing.calls) == calls


def test_a_change_that_no_webhook_told_of_is_found_and_counted(
    bench: Bench, people: List, platforms: Platforms
) -> None:
    connection = bench.config.sources["shop"]
    catching_up.reconcile(connection, bench.store, bench.now())
    assert bench.store.due_lanes(bench.now()) == {}, "the first time only remembers when it was"
    people.put(1, bench.now() + timedelta(minutes=1))
    say(bench, 2, "msg_2", name="Ana 2")
    bench.settle()
    bench.ahead[0] += timedelta(minutes=59)
    catching_up.reconcile(connection, bench.store, bench.now())
    assert people.asked == []
    bench.ahead[0] += timedelta(minutes=2)
    people.put(3, bench.now())  # its webhook may still come
    catching_up.reconcile(connection, bench.store, bench.now())
    bench.settle()
    done = bench.store.catch_up("shop", RECONCILE)
    assert done is not None
    assert (done.state, done.seen, done.changed, done.missed) == (Progress.DONE, 2, 2, 1)
    assert [since is None for _, since in people.asked] == [False]
    [entry] = bench.store.audit_page(Filter(outcome="missed"), None, 10).items
    assert (entry.source_id, entry.reason) == ("84001", "Found by reconciling: no webhook had told of it.")
    assert platforms.counts() == dict.fromkeys(platforms.fakes, 3)


def test_who_was_announced_and_not_read_yet_is_no_loss(bench: Bench, people: List) -> None:
    shop = bench.config.sources["shop"]
    say(bench, 1, "msg_1", name="Ana 1")
    bench.settle()
    key = RecordKey("shop", "84001")
    known = bench.store.contacts([key])[key]
    lane = bench.store.acquire("process:shop", "test", bench.now())
    bench.store.commit(lane, Decision(contacts=[replace(known, thin=True)]), bench.now())
    bench.worker._tickets.clear()
    catching_up.reconcile(shop, bench.store, bench.now())
    people.put(1, bench.now() + timedelta(minutes=1), last="Ruiz")
    bench.ahead[0] += timedelta(hours=1, minutes=1)
    catching_up.reconcile(shop, bench.store, bench.now())
    bench.settle()
    done = bench.store.catch_up("shop", RECONCILE)
    assert done is not None
    assert (done.seen, done.changed, done.missed) == (1, 1, 0)


def test_what_is_older_than_the_list_and_comes_late_changes_nothing(bench: Bench, people: List) -> None:
    key, at = RecordKey("shop", "84001"), bench.now()
    people.put(1, at + timedelta(minutes=2))
    for _ in range(2):
        begin(bench)
        bench.settle()
        people.put(1, at + timedelta(minutes=4))
    bench.receive(signed(bench.config, webhook("changed", person(1, name="Late"), at + timedelta(minutes=3)), "m"))
    bench.settle()
    assert bench.store.contacts([key])[key].fields["name"].value == "Ana 1"


def test_of_whom_nothing_is_learnt_is_counted_and_told(bench: Bench, people: List) -> None:
    for number in range(3):
        people.put(number, utc_now())
    people.trouble["84001"] = "The CRM's answer does not say when the contact was last changed."
    begin(bench)
    bench.settle()
    assert (backfill(bench).seen, backfill(bench).changed, backfill(bench).unread) == (3, 2, 1)
    [entry] = bench.store.audit_page(Filter(outcome="unread"), None, 10).items
    assert (entry.source_id, entry.reason) == ("84001", people.trouble["84001"])


def test_a_list_that_bridge_chokes_on_does_not_stop_the_lane(bench: Bench, people: List) -> None:
    people.put(1, utc_now())
    people.choke = True
    begin(bench)
    bench.worker.run("process:shop")
    assert backfill(bench).reason == "Bridge failed on a page of the CRM's list (KeyError, a bug)."
    people.choke = False
    bench.settle()
    assert backfill(bench).state is Progress.DONE


def test_without_a_credential_it_waits_and_says_so(bench: Bench, people: List) -> None:
    begin(bench)
    shop = bench.config.sources["shop"]
    bare = replace(shop, type=replace(shop.type, lister=lambda name, settings: None))
    bench.worker._sources = {"process:shop": bare}
    again = bench.worker.run("process:shop")
    assert again is not None
    assert again > bench.now() + timedelta(seconds=1), "or the lane would run all the time"
    assert backfill(bench).reason.startswith("No credential is configured any more")


def test_a_place_that_the_crm_forgot_does_not_end_looking_for_changes() -> None:
    for kind, after in ((RECONCILE, None), (BACKFILL, "7")):
        progress = CatchUp("shop", kind, "1", utc_now(), utc_now(), "bridge", after="7")
        for _ in range(catch_up.TRIES):
            assert progress.after == "7"
            progress = catch_up.failed(progress, "No such place.", 0, utc_now())
        assert progress.after == after


def test_a_clock_that_was_ahead_does_not_end_looking_for_changes(bench: Bench, people: List) -> None:
    shop, now = bench.config.sources["shop"], bench.now()
    catching_up.reconcile(shop, bench.store, now + timedelta(days=400))
    catching_up.reconcile(shop, bench.store, now)
    begun = bench.store.catch_up("shop", RECONCILE)
    assert begun is not None
    assert (begun.state, begun.since) == (Progress.RUNNING, now - catch_up.OVERLAP)


def test_the_worker_reconciles_by_itself(bench: Bench) -> None:
    chores = {chore.name: chore for chore in bench.worker._chores()}
    assert not chores["reconcile"].do()
    begun = bench.store.catch_up("shop", RECONCILE)
    assert begun is not None
    assert begun.state is Progress.DONE


def test_the_pages_say_how_it_stands(own_stage: Stage, people: List, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = own_stage.store, utc_now()
    shop = own_stage.config.sources["shop"]
    listing = replace(shop.type, lister=lambda name, settings: people, read_base_url=lambda settings: "http://x")
    monkeypatch.setitem(own_stage.config.sources, "shop", replace(shop, type=listing))
    with own_stage.session("viewer") as session:
        assert "reads every contact of the CRM" in text_of(session.page("/sources"))
        begun = catching_up.backfill("shop", "ann", SHARE, now)
        store.start_catch_up(catch_up.asked(replace(begun, seen=100, total=900), "Too many.", now))
        store.start_catch_up(
            replace(begun, kind=RECONCILE, state=Progress.DONE, since=now, seen=3, missed=2, due_at=None)
        )
        told = text_of(session.page("/sources"))
    assert "asks 100 of 900 contacts read" in told
    assert "bridge backfill shop --yes" in told
    assert "of 3 changed contacts, 2 were told of by no webhook" in told
