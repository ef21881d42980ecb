"""Lists that a CRM gives by the number of a page only, in the order of last change.

Such a list moves under whoever reads it: a record that is changed goes to its end, one that is deleted leaves a
gap, and all behind them move onto pages that were read already. So a page is looked for again by what stood on it:
nothing is passed over, and some come twice. It counts on one thing only: that records of one moment keep their
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, iso
from bridge.outbound import Reply
from bridge.signing import EPOCH
from bridge.sources.base import Listed, Read
from bridge.sources.calling import parts_of, place_of

MOST_PAGES = 1_000_000
EARLIER = timedelta(seconds=1)  # whether "since" takes in its own moment is not said everywhere


@dataclass(frozen=True, slots=True)
class Page:
    """What a call gave: records, the longest unchanged first, and how many there are in all, where it says so."""

    records: Sequence[Read]
    total: int | None = None


# Gives the page of this number, from 1; of those changed at a moment or later, where the CRM can choose them.
Fetch = Callable[[datetime | None, int], Page]


@dataclass(frozen=True, slots=True)
class Place:
    """How far one came: all that changed before *at* is read, and of those changed just then *ids*."""

    page: int = 1
    at: datetime | None = None
    ids: frozenset[str] = frozenset()
    floor: datetime | None = None  # pages are those of the records changed then or later

    @classmethod
    def of(cls, text: str) -> Place:
        said = parts_of(text)
        at, floor = (_moment(said.get(name)) for name in ("at", "floor"))
        ids = str(said.get("ids") or "")
        return cls(int(said.get("page") or 1), at, frozenset(ids.split()), floor)

    def __str__(self) -> str:
        at, floor = (None if one is None else iso(one) for one in (self.at, self.floor))
        return place_of(page=self.page, at=at, ids=" ".join(sorted(self.ids)), floor=floor)

    def unread(self, record: Read) -> bool:
        at = _at(record)
        if self.at is None or at > self.at:
            return True
        return at == self.at and record.key.source_id not in self.ids

    def is_on(self, page: Page) -> bool:
        """Say whether something that is read stands on *page*, so that nothing unread is on those before it."""
        if self.at is None:
            return True
        return any(_at(one) < self.at or one.key.source_id in self.ids for one in page.records)


def page_by_time(fetch: Fetch, after: str | None, since: datetime | None, *, chooses: bool, title: str) -> Listed:
    """Return the records behind the place *after*; at the beginning those that changed at *since* or later.

    *chooses*: the CRM can leave out what was changed before a moment. Otherwise the first page is looked for.

    Raises:
        SourceUnavailable: the CRM does not give the order that was asked for.
    """

    def ordered(floor: datetime | None, number: int) -> Page:
        page = fetch(floor - EARLIER if floor else None, number)
        times = [_at(record) for record in page.records]
        if times != sorted(times):
            raise SourceUnavailable(
                f"{title} does not give its contacts in the order of their last change, so a list could miss "
                "some. Bridge tries again later."
            )
        return page

    place = Place.of(after) if after else _beginning(ordered, since, chooses=chooses)
    number = place.page
    page = ordered(place.floor, number)
    while number > 1 and not place.is_on(page):
        number -= 1
        page = ordered(place.floor, number)
    while page.records and not any(map(place.unread, page.records)):
        number += 1
        before, page = page, ordered(place.floor, number)
        if _keys(page) == _keys(before):
            break  # behind its last page, this CRM gives that again
    unread = [record for record in page.records if place.unread(record)]
    if not unread:
        return Listed([], None, page.total)
    last = max(_at(page.records[-1]), place.at or EPOCH)
    ids = frozenset(one.key.source_id for one in page.records if _at(one) == last)
    further = replace(place, page=number, at=last, ids=ids)
    if chooses and last != place.at:
        further = replace(further, page=1, floor=last)
    return Listed(unread, str(further), page.total if place.floor is None else None)


def _beginning(fetch: Fetch, since: datetime | None, *, chooses: bool) -> Place:
    if since is None:
        return Place()
    since = since.replace(microsecond=0)  # a CRM that tells seconds leaves out the rest of them
    if chooses:
        return Place(at=since, floor=since)
    return Place(_page_of(fetch, since), at=since)


def _page_of(fetch: Fetch, since: datetime) -> int:
    """Return the last page that begins before *since*, or the first; of 1,000 in 20 calls."""

    def begins_before(page: Page) -> bool:
        return bool(page.records) and _at(page.records[0]) < since

    low, page = 1, fetch(None, 1)
    high, further = 2, fetch(None, 2)
    while begins_before(further) and high < MOST_PAGES:
        if _keys(further) == _keys(page):  # the last page, which is given for every number behind its own
            return _first(low // 2, low, partial(_is, fetch, page))
        low, page = high, further
        high *= 2
        further = fetch(None, high)
    return _first(low, high, lambda number: not begins_before(fetch(None, number))) - 1


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the first number above *low* for which something *holds*, as it does for *high* and all above."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _is(fetch: Fetch, page: Page, number: int) -> bool:
    return _keys(fetch(None, number)) == _keys(page)


def _keys(page: Page) -> list[RecordKey]:
    return [record.key for record in page.records]


def read_id(reply: Reply, word: str = "read") -> str:
    """Return the event id of what *reply* says: of two readings of one moment, the later is to win.

    A CRM that tells the second of the last change may have changed the record again within it.
    """
    try:
        told_at = parsedate_to_datetime(reply.headers.get("date", ""))
    except ValueError:
        return word
    told_at = told_at if told_at.tzinfo else told_at.replace(tzinfo=UTC)
    return f"{word}:{max(int(told_at.timestamp()), 0):011d}"


def _at(record: Read) -> datetime:
    """Return when *record* was last changed; one that does not say so stands before all others."""
    return record.version.occurred_at if record.version else EPOCH


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
