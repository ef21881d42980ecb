"""The audit log: what came in, what bridge did about it and why; newest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated

from flask import Blueprint, redirect, request
from flask.typing import ResponseReturnValue
from pydantic import Field

from bridge.model import AuditEntry, RecordKey
from bridge.store.looking import Bar, Facets, Histogram, Hit
from bridge.store.protocol import Filter, Store
from bridge.web.pages import filters
from bridge.web.pages.calls import calls_of, why_none
from bridge.web.pages.filters import Address, Dimension, Period
from bridge.web.pages.person import name_of
from bridge.web.pages.site import Site
from bridge.web.pages.words import absolute, contact_url, mark, visible
from bridge.web.problem import HttpProblem
from bridge.web.queries import GREATEST_ID, AuditQuery, read_form

DEFAULT = "24h"
BARS = 60
CHART_OF_ALL = timedelta(days=90)  # how far back the chart of "all time" goes
LIVE = "entries"  # the id of the part that is loaded again while nobody reads in it
NAMES_SHOWN = 4  # of fields, in a row
LONGEST_NAME = 40  # characters of one

KINDS: Mapping[str, str] = {
    "inbound": "webhooks that led to nothing",
    "contact": "changes heard",
    "delivery": "deliveries",
    "target": "targets",
    "replay": "retries and rules",
    "access": "people signing in",
    "export": "exports",
    "sample": "samples",
}


class Narrowed(filters.Within, AuditQuery):
    """The audit log's filter in a URL. *jump*: go straight to the record whose id the text is."""

    jump: Annotated[bool, Field(description="Open the record that has exactly this id.")] = False

    def over(self, period: Period) -> Filter:
        return replace(self.narrowed(), since=period.since, until=period.until)


# --- what is shown -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """An entry in the list. *href* is where its story is told best."""

    entry: AuditEntry
    href: str
    own: str  # URL of the entry's own page
    contact: str  # URL, "" where it is about none
    name: str  # of the contact, as far as it is known
    webhook: str  # URL
    sentence: str


def rows_of(store: Store, entries: Sequence[AuditEntry], address: Address | None = None) -> list[Row]:
    """Return *entries* with the names and links that a person needs. *address*: the list that they stand in."""
    address = address or Address("/audit")
    keys = {key for one in entries if (key := _key(one))}
    known = store.contacts(keys) if keys else {}
    names = {key: name_of(contact) for key, contact in known.items()}
    return [_row(one, names, address.url(f"/audit/{one.id}")) for one in entries]


def _key(entry: AuditEntry) -> RecordKey | None:
    if entry.source is None or entry.source_id is None:
        return None
    return RecordKey(entry.source, entry.source_id)


def _row(entry: AuditEntry, names: Mapping[RecordKey, str], own: str) -> Row:
    key = _key(entry)
    contact = contact_url(key.source, key.source_id) if key else ""
    webhook = f"/webhooks/{entry.inbound_id}" if entry.inbound_id else ""
    return Row(
        entry=entry,
        href=(contact if entry.kind == "delivery" else webhook) or contact or webhook or own,
        own=own,
        contact=contact,
        name=names.get(key, "") if key else "",
        webhook=webhook,
        sentence=sentence(entry),
    )


# What an entry without a reason of its own says: with the fields it was about, and where it was about none.
SENTENCES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("contact", "changed"): ("The CRM told {fields}.", "The CRM told that something changed, but not what."),
    ("contact", "created"): ("New in the CRM, with {fields}.", "New in the CRM."),
    ("contact", "deleted"): ("Deleted in the CRM.",) * 2,
    ("contact", "merged"): ("Merged into another contact in the CRM.",) * 2,
    ("contact", "erased"): ("Erased in the CRM.",) * 2,
    ("delivery", "created"): ("Created there with {fields}.", "Created there."),
    ("delivery", "updated"): ("Wrote {fields}.", "Updated there; none of the fields was to change."),
    ("delivery", "unchanged"): ("The target holds all of it already.",) * 2,
    ("delivery", "removed"): ("Removed there.",) * 2,
    ("delivery", "absent"): ("It is not there, and the rules do not let bridge create it.",) * 2,
}


def sentence(entry: AuditEntry) -> str:
    """Return in one line what *entry* says and why."""
    if entry.reason:
        return entry.reason
    with_fields, without = SENTENCES.get((entry.kind, entry.outcome), ("", ""))
    return with_fields.format(fields=listed(entry.fields)) if entry.fields else without


def _short(name: str) -> str:
    return visible(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…")


def listed(names: Sequence[str], most: int = NAMES_SHOWN) -> str:
    """Return names of fields in one line: email, phone and 3 more."""
    shown = [_short(name) for name in names[:most]]
    left = len(names) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left > 0 else "")


# --- the chart -----------------------------------------------------------------------------------------------

# Of a bar, from the bottom.
LAYERS: Mapping[str, str] = {
    "good": "done",
    "idle": "nothing to do",
    "busy": "on its way",
    "warn": "waiting, or to be tried again",
    "bad": "went wrong",
}
WIDTH, HEIGHT = 1000, 100


@dataclass(frozen=True, slots=True)
class Layer:
    tone: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class ChartBar:
    """A bar as `ui.chart` draws it; *since* and *until* are what dragging picks."""

    x: float
    width: float
    label: str
    href: str
    parts: Sequence[Layer]
    since: str
    until: str


@dataclass(frozen=True, slots=True)
class Chart:
    bars: Sequence[ChartBar]
    total: int
    complete: bool
    since: datetime
    until: datetime
    legend: Sequence[tuple[str, str]]  # tone and word of what is in it
    pick: str  # the URL of a picked range, with FROM and TO in it


def chart_of(histogram: Histogram, address: Address, since: datetime, until: datetime) -> Chart:
    """Return *histogram* to be drawn, with a link at each bar that narrows the list to it."""
    sums = [_by_tone(bar) for bar in histogram.bars]
    highest = max((sum(one.values()) for one in sums), default=0)
    width = WIDTH / max(1, len(sums))
    step = timedelta(seconds=histogram.step_s)
    bars = []
    for index, (bar, tones) in enumerate(zip(histogram.bars, sums, strict=True)):
        ends = {"from": exact(bar.at), "to": exact(bar.at + step)}
        bars.append(
            ChartBar(
                x=round(index * width, 2),
                width=round(max(width - 1.5, width / 2), 2),
                label=_label(bar, step),
                href=address.url("", **ends),
                parts=_layers(tones, highest),
                since=ends["from"],
                until=ends["to"],
            )
        )
    pick = address.url("", **{"from": "FROM", "to": "TO"})
    total = sum(sum(one.values()) for one in sums)
    legend = [(tone, word) for tone, word in LAYERS.items() if any(tones.get(tone) for tones in sums)]
    return Chart(bars, total, histogram.complete, since, until, legend, pick)


def exact(moment: datetime) -> str:
    """Return *moment* for a URL, to the microsecond where it has any."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ").replace(".000000Z", "Z")


def _by_tone(bar: Bar) -> dict[str, int]:
    tones: dict[str, int] = {}
    for outcome, many in bar.counts.items():
        tone = mark(outcome).tone
        tones[tone] = tones.get(tone, 0) + many
    return tones


def _layers(tones: Mapping[str, int], highest: int) -> list[Layer]:
    layers, top = [], float(HEIGHT)
    for tone in LAYERS:
        if many := tones.get(tone, 0):
            height = max(many / highest * HEIGHT, 1.0)  # what happened once is seen, too
            top -= height
            layers.append(Layer(tone, round(max(top, 0.0), 2), round(height, 2)))
    return layers


def _label(bar: Bar, step: timedelta) -> str:
    counted = sorted(bar.counts.items(), key=lambda one: -one[1])
    what = ", ".join(f"{many:,} {mark(outcome).word}" for outcome, many in counted if many) or "nothing"
    return f"{absolute(bar.at)} to {absolute(bar.at + step)} UTC: {what}"


# --- facets --------------------------------------------------------------------------------------------------

DIMENSIONS: Mapping[str, str] = {
    "kind": "Kind",
    "source": "Source",
    "target": "Target",
    "outcome": "Outcome",
    "error": "Error",
    "status": "Status",
    "field": "Field",
}
HIDDEN: Mapping[str, str] = {"source_id": "Contact", "inbound": "Webhook"}  # narrowed to by links, not counted
VALUES_SHOWN = 30
FIELDS_COUNTED_IN = 1000  # entries: see `Facets`


def dimensions(address: Address, facets: Facets | None) -> list[Dimension]:
    """Return each way to narrow the log; without *facets* only what it is narrowed to."""
    found = facets.values if facets else {}
    return [
        filters.dimension(
            address, name, title, found.get(name, ())[:VALUES_SHOWN], _word(name), _counted(name, facets)
        )
        for name, title in {**DIMENSIONS, **HIDDEN}.items()
        if address.query.get(name) or found.get(name)
    ]


def _word(name: str) -> filters.Word:
    if name == "outcome":
        return lambda value: mark(value).word
    if name == "kind":
        return lambda value: KINDS.get(value, value)
    return _short


def _counted(name: str, facets: Facets | None) -> str:
    """Return what to know of the counts of a dimension: that not all entries that match were counted."""
    if facets is None:
        return ""
    counted = sum(many for _, many in facets.values.get("kind", ()))  # every entry has one
    if not facets.complete:
        return f"Counted in the newest {counted:,} entries that match."
    if name == "field" and counted > FIELDS_COUNTED_IN:
        return f"Counted in the newest {FIELDS_COUNTED_IN:,} entries that match."
    return ""


def place_of(hit: Hit) -> tuple[str, str]:
    """Return where a record that has exactly the id stands, and what to call it."""
    if hit.key is not None:
        return contact_url(hit.key.source, hit.key.source_id), visible(f"contact {hit.key}")
    return f"/webhooks/{hit.inbound_id}", f"webhook {hit.inbound_id}"


# --- pages ---------------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("audit", __name__)

    @pages.get("/audit")
    def log() -> ResponseReturnValue:
        query = read_form(Narrowed, request.args)
        hits = site.store.lookup(query.q) if query.q else []
        if query.jump and len(hits) == 1:
            return redirect(place_of(hits[0])[0], 303)
        now = site.clock()
        period = query.period(now, DEFAULT)
        narrowed = query.over(period)
        address = Address.of("/audit", request.args, (*filters.NO_FILTERS, "jump"))
        with filters.known_place(query.cursor):
            page = site.store.audit_page(narrowed, query.cursor, query.limit)
        # The part that is loaded again every few seconds does not show the facets.
        facets = None if request.headers.get("HX-Target") == LIVE else site.store.facets(narrowed)
        return site.page(
            "audit.html",
            rows=rows_of(site.store, page.items, address),
            chart=_chart(site.store, narrowed, address, now),
            dimensions=dimensions(address, facets),
            times=filters.times(address, period),
            address=address,
            hits=[place_of(hit) for hit in hits],
            q=query.q or "",
            live=query.cursor is None and period.until is None,
            newest=address.url() if query.cursor else "",
            older=address.url(cursor=page.next) if page.next else "",
            searched_to=page.searched_to,
            export=address.url("/audit/export"),
        )

    @pages.get("/audit/<int:entry_id>")
    def entry(entry_id: int) -> ResponseReturnValue:
        found = site.store.audit_entry(entry_id) if entry_id <= GREATEST_ID else None
        if found is None:
            raise HttpProblem(404, f"There is no entry {entry_id} in the audit log.")
        row = rows_of(site.store, [found])[0]
        key = _key(found)
        contact = site.store.contacts([key]).get(key) if key else None
        erased = contact is not None and contact.erased is not None
        back = Address.of("/audit", request.args).url()
        return site.page(
            "audit_entry.html",
            row=row,
            back=back,
            calls=calls_of(found, None),
            no_calls=why_none(found, erased=erased),
        )

    return pages


def _chart(store: Store, narrowed: Filter, address: Address, now: datetime) -> Chart:
    until = narrowed.until or now
    since = narrowed.since or until - CHART_OF_ALL
    return chart_of(store.histogram(narrowed, since, until, BARS), address, since, until)
