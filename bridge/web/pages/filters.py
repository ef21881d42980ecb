"""What a list is narrowed to: read from the URL, shown as chips, and written back into links.

The URL holds all of it, so a view can be bookmarked, sent to somebody and gone back to. A page makes an `Address`
of the request, and every link on it is that address with something changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import Field, model_validator
from werkzeug.datastructures import MultiDict

from bridge.web.pages.words import absolute
from bridge.web.problem import HttpProblem
from bridge.web.queries import Span

SPANS: Mapping[str, timedelta] = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
ALL = "all"
PRESETS: Mapping[str, str] = {
    "1h": "last hour",
    "24h": "last 24 hours",
    "7d": "last 7 days",
    "30d": "last 30 days",
    ALL: "all time",
}
NO_FILTERS = ("cursor",)  # where one is in a list; a changed filter begins at its newest page
TIME = ("within", "from", "to")

Word = Callable[[str], str]  # how a value is said


class Within(Span):
    """A span of time: a preset that moves along with the clock, or fixed ends."""

    within: Annotated[
        Literal["1h", "24h", "7d", "30d", "all"] | None, Field(description="A span that ends now.")
    ] = None

    @model_validator(mode="after")
    def _one(self) -> Within:
        if self.within and (self.since or self.until):
            raise ValueError("give either within, or from and to")
        if self.since and self.until and self.since >= self.until:
            raise ValueError("'from' must be before 'to'")
        return self

    def period(self, now: datetime, default: str = ALL) -> Period:
        """Return the span that is meant at *now*; *default* is the preset of a URL that names none."""
        if self.since or self.until:
            return Period(self.since, self.until, _said(self.since, self.until))
        preset = self.within or default
        since = now - SPANS[preset] if preset in SPANS else None
        return Period(since, None, PRESETS[preset], preset)


@dataclass(frozen=True, slots=True)
class Period:
    """A span of time, *since* included and *until* not; None: no end on that side."""

    since: datetime | None
    until: datetime | None
    words: str  # "last 24 hours"
    preset: str = ""  # "": fixed ends


def _said(since: datetime | None, until: datetime | None) -> str:
    if since and until:
        return f"{absolute(since)} to {absolute(until)} UTC"
    if since:
        return f"since {absolute(since)} UTC"
    return f"before {absolute(until)} UTC" if until else PRESETS[ALL]


# --- addresses -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """A page with its filter. *query* holds what is not empty, by the names of the URL."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: str, given: MultiDict[str, str], leave_out: Iterable[str] = NO_FILTERS) -> Address:
        """Return the address that was asked for, without its place in the list."""
        kept = {name: value for name, value in given.items() if value.strip() and name not in {*leave_out}}
        return cls(path, kept)

    def url(self, /, path: str = "", **changes: str | int | None) -> str:
        """Return the URL with *changes* (None or "": without it); the first of them stand first.

        ``within``, ``from`` and ``to`` are one choice: naming one takes the others away. *path*: another page with
        the same filter.
        """
        timed = any(name in TIME for name in changes)
        kept = {
            name: value
            for name, value in self.query.items()
            if name not in changes and not (timed and name in TIME)
        }
        said = {name: str(value) for name, value in changes.items() if value not in (None, "")}
        query = urlencode({**said, **kept})
        return (path or self.path) + (f"?{query}" if query else "")

    def fields(self, *without: str) -> list[tuple[str, str]]:
        """Return the filter as a form sends it along in hidden fields, without those that it asks for itself."""
        return [(name, value) for name, value in self.query.items() if name not in without]


# --- what a page shows of them -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """One value that a list can be narrowed to."""

    word: str
    url: str
    count: int | None = None  # None: not counted
    current: bool = False


@dataclass(frozen=True, slots=True)
class Dimension:
    """One way to narrow a list. *chosen* is the value in words, "" when there is none; *without* leads back."""

    title: str
    chosen: str
    without: str
    choices: Sequence[Choice] = ()
    note: str = ""  # what to know of the counts


def dimension(
    address: Address,
    name: str,
    title: str,
    values: Iterable[tuple[str, int | None]],
    word: Word = str,
    note: str = "",
) -> Dimension:
    """Return the parameter *name* as a `Dimension` with *values* and their counts, said with *word*."""
    chosen = address.query.get(name, "")
    choices = [
        Choice(word(value), address.url(**{name: value}), count, current=value == chosen)
        for value, count in values
        if value
    ]
    return Dimension(title, word(chosen) if chosen else "", address.url("", **{name: ""}), choices, note)


@dataclass(frozen=True, slots=True)
class Times:
    """How the time of a list is chosen: presets, and two fields."""

    words: str  # what is chosen now
    presets: Sequence[Choice]
    since: str = ""  # for <input type="datetime-local">, UTC
    until: str = ""
    without: str = ""  # to the whole time; "" when it is that


def times(address: Address, period: Period) -> Times:
    presets = [
        Choice(words, address.url(within=preset), current=preset == period.preset)
        for preset, words in PRESETS.items()
    ]
    without = "" if period.preset == ALL else address.url(within=ALL)
    return Times(period.words, presets, _local(period.since), _local(period.until), without)


def _local(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


# --- places in a list ----------------------------------------------------------------------------------------


@contextmanager
def known_place(cursor: str | None) -> Iterator[None]:
    """Tell whoever follows a link with a made-up or broken *cursor*; the store cannot read it."""
    try:
        yield
    except (ValueError, OverflowError):
        if cursor is None:
            raise
        raise HttpProblem(400, "This link leads to no place in the list. Begin at the newest entry.") from None
