"""Lists by page numbers: whatever happens between two pages, nobody is passed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.model import RecordKey, Version
from bridge.outbound import Reply
from bridge.signing import EPOCH
from bridge.sources.base import Read
from bridge.sources.paging import Page, Place, page_by_time, read_id

START = EPOCH + timedelta(days=20_000)
MOST_CALLS = 400


@dataclass
class Crm:
    """Records by number, each with the second of its last change. Its pages have *size* records."""

    size: int
    chooses: bool
    clamps: bool
    changed: dict[int, int] = field(default_factory=dict)
    now: int = 0
    calls: int = 0

    def fetch(self, floor: datetime | None, number: int) -> Page:
        self.calls += 1
        assert self.calls <= MOST_CALLS, "the list has no end"
        assert floor is None or self.chooses
        rows = sorted((at, one) for one, at in self.changed.items() if floor is None or moment(at) >= floor)
        last = max((len(rows) + self.size - 1) // self.size, 1)
        number = min(number, last) if self.clamps else number
        return Page([read(one, at) for at, one in rows[(number - 1) * self.size : number * self.size]], len(rows))


def moment(second: int) -> datetime:
    return START + timedelta(seconds=second)


def read(one: int, at: int) -> Read:
    key = RecordKey("crm", f"{one:04d}")
    return Read(key, key, {}, Version(moment(at), "list"))


# What happens between two pages: somebody goes, or is changed, now or still in the second of the last change.
happenings = st.lists(
    st.tuples(st.sampled_from(["delete", "change", "change_at_once", "add"]), st.integers(0, 59)), max_size=6
)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    seconds=st.lists(st.integers(0, 12), max_size=60),
    size=st.integers(1, 7),
    chooses=st.booleans(),
    clamps=st.booleans(),
    since=st.none() | st.integers(0, 13),
    between=st.lists(happenings, max_size=12),
)
def test_whoever_is_there_all_along_comes_at_least_once(
    seconds: list[int],
    size: int,
    chooses: bool,
    clamps: bool,
    since: int | None,
    between: list[list[tuple[str, int]]],
) -> None:
    crm = Crm(size, chooses, clamps, dict(enumerate(seconds)), now=13)
    there = {one for one, at in crm.changed.items() if since is None or at >= since}
    seen: dict[int, set[int]] = {}
    after, begin = None, None if since is None else moment(since)
    steps = iter(between)
    while True:
        page = page_by_time(crm.fetch, after, begin, chooses=chooses, title="It")
        for record in page.records:
            assert record.version is not None
            at = int((record.version.occurred_at - START).total_seconds())
            seen.setdefault(int(record.key.source_id), set()).add(at)
        after = page.after
        if after is None:
            break
        assert str(Place.of(after)) == after
        for what, one in next(steps, []):
            crm.now += what != "change_at_once"
            if what == "add":
                crm.changed[1000 + crm.now * 100 + one] = crm.now
            elif one in crm.changed and what == "delete":
                del crm.changed[one]
            elif one in crm.changed:
                crm.changed[one] = crm.now
    assert set(seen) >= there & set(crm.changed)
    if not any(what == "change_at_once" for happened in between for what, _ in happened):
        for one in there & set(crm.changed):
            assert crm.changed[one] in seen[one], "who was changed comes again as it is now"


def test_a_list_ends_where_nothing_is_behind_the_last_page() -> None:
    for chooses in (True, False):
        crm = Crm(3, chooses, clamps=False)
        assert page_by_time(crm.fetch, None, None, chooses=chooses, title="It").after is None
        assert page_by_time(crm.fetch, None, moment(0), chooses=chooses, title="It").after is None


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Mon, 21 Sep 2026 14:13:20 GMT", "read:01790000000"),
        ("Mon, 21 Sep 2026 16:13:20 +0200", "read:01790000000"),
        ("Mon, 21 Sep 2026 14:13:20", "read:01790000000"),
        ("Thu, 01 Jan 1960 00:00:00 GMT", "read:00000000000"),
        ("soon", "read"),
        ("", "read"),
    ],
)
def test_the_later_of_two_readings_has_the_greater_id(date: str, expected: str) -> None:
    assert read_id(Reply(200, {"date": date}, b"")) == expected
    assert read_id(Reply(200, {}, b""), "list") == "list"
