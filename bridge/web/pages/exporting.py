"""The audit log as a file: what its filter finds, sent while it is read."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Literal

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from bridge.model import AuditEntry, iso
from bridge.store.looking import Role
from bridge.store.protocol import Filter, Store
from bridge.web import shapes
from bridge.web.cells import cell
from bridge.web.pages.access import actor
from bridge.web.pages.audit import DEFAULT, Narrowed, dimensions
from bridge.web.pages.filters import Address, Dimension, Period
from bridge.web.pages.site import HEADERS, Site, current_user, may
from bridge.web.problem import HttpProblem
from bridge.web.queries import Input, read_form

PAGE = 500  # entries read at once
MOST = 100_000  # entries of one file
AT_ONCE = 4  # files in one process: each holds a thread while it is sent, and pages need some, too
LONGEST_S = 20.0  # spent on one file: the server ends what takes longer than 30 s
CHUNK = 32 * 1024  # characters sent at once
BARS = 60

TYPES = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}
COLUMNS = (
    "id", "at", "kind", "outcome", "reason", "source", "source_id", "target", "inbound", "event_types",
    "attempt", "status", "error", "duration_ms", "fields",
)  # fmt: skip
DETAIL = "detail"  # what went over the wire: personal

FOR_ADMINS = "What went over the wire is personal, so only the role admin may export it. Nothing was exported."
BUSY = "Others are exporting right now. Nothing was exported; please try again in a moment."
CUT = (
    "This file ends here because it is as long as a file may be. For what is older, export again with the time "
    "before {before}."
)


class ExportForm(Input):
    """What a file is to be like."""

    csrf: str = ""
    format: Literal["csv", "ndjson"]
    detail: bool = False


# --- reading -------------------------------------------------------------------------------------------------


def entries_of(
    store: Store, narrowed: Filter, clock: Callable[[], float] = time.monotonic
) -> Iterator[AuditEntry]:
    """Yield what *narrowed* finds, newest first. If that is too much, the last entry says how to get the rest."""
    ends_at = clock() + LONGEST_S
    many = 0
    last: datetime | None = None
    cursor: str | None = None
    while True:
        page = store.audit_page(narrowed, cursor, PAGE)
        full = many >= MOST or clock() > ends_at
        for entry in page.items:
            # What happened at one moment stays together, so that the next file goes on without a gap.
            if full and last is not None and entry.at < last:
                yield _cut(last)
                return
            yield entry
            last = entry.at
            many += 1
        if (cursor := page.next) is None:
            return
        if full and page.searched_to is not None:
            yield _cut(page.searched_to + timedelta(microseconds=1))
            return


def _cut(before: datetime) -> AuditEntry:
    return AuditEntry(at=before, kind="export", outcome="cut", reason=CUT.format(before=iso(before)))


# --- writing -------------------------------------------------------------------------------------------------


def as_ndjson(entries: Iterable[AuditEntry], *, detail: bool) -> Iterator[str]:
    """Yield a line of JSON for each entry, in the shape that the API has."""
    for entry in entries:
        item = shapes.audit_item(entry)
        yield shapes.to_json(item if detail else item.model_copy(update={DETAIL: None})) + "\n"


def as_csv(entries: Iterable[AuditEntry], *, detail: bool) -> Iterator[str]:
    """Yield a line for each entry below one with the columns' names."""
    line = io.StringIO()
    writer = csv.writer(line)
    columns = (*COLUMNS, DETAIL) if detail else COLUMNS
    writer.writerow(columns)
    for entry in entries:
        yield _taken(line)
        told = shapes.audit_item(entry).model_dump()
        writer.writerow([cell(told[name]) for name in columns])
    yield _taken(line)


def _taken(line: io.StringIO) -> str:
    text = line.getvalue()
    line.seek(0)
    line.truncate()
    return text


def in_chunks(lines: Iterable[str]) -> Iterator[str]:
    """Join *lines*, for each chunk that is sent costs as much as thousands of characters."""
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


# --- pages ---------------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("exporting", __name__)
    turns = threading.BoundedSemaphore(AT_ONCE)

    @pages.get("/audit/export")
    def ask() -> ResponseReturnValue:
        query, address = _asked()
        now = site.clock()
        period = query.period(now, DEFAULT)
        return site.page(
            "audit_export.html",
            period=period,
            chosen=[one for one in dimensions(address, None) if one.chosen],
            q=query.q or "",
            total=_total(site.store, query, period, now),
            most=MOST,
            address=address,
        )

    @pages.post("/audit/export")
    def send() -> ResponseReturnValue:
        query, address = _asked()
        form = read_form(ExportForm, request.form)
        user = current_user()
        if form.detail and (user is None or not may(user, Role.ADMIN)):
            raise HttpProblem(403, FOR_ADMINS)
        if not turns.acquire(blocking=False):
            raise HttpProblem(503, BUSY, headers={"Retry-After": "10"})
        try:
            answer = exported(query, address, form)
        except BaseException:
            turns.release()
            raise
        answer.call_on_close(turns.release)
        return answer

    def exported(query: Narrowed, address: Address, form: ExportForm) -> Response:
        now = site.clock()
        period = query.period(now, DEFAULT)
        # What was looked for may be a name or an address: the log says only that something was.
        what = _in_words(dimensions(address, None), period, searched=bool(query.q))
        how = f"{form.format}, with what went over the wire" if form.detail else form.format
        said = f"{actor()} exported as {how}: {what}."
        site.store.note([AuditEntry(at=now, kind="export", outcome="exported", reason=said)])
        # Only what was there before, so that a file never holds the note of itself.
        narrowed = query.over(Period(period.since, period.until or now, period.words))
        write = as_csv if form.format == "csv" else as_ndjson
        lines = write(entries_of(site.store, narrowed), detail=form.detail)
        name = f"audit-{now.strftime('%Y%m%d-%H%M%S')}.{form.format}"
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
        return Response(in_chunks(lines), 200, headers, content_type=TYPES[form.format])

    return pages


def _asked() -> tuple[Narrowed, Address]:
    return read_form(Narrowed, request.args), Address.of("/audit", request.args)


def _total(store: Store, query: Narrowed, period: Period, now: datetime) -> str:
    """Return how many entries there are in words, "" where that is not known."""
    if period.since is None:
        return ""
    histogram = store.histogram(query.over(period), period.since, period.until or now, BARS)
    total = sum(sum(bar.counts.values()) for bar in histogram.bars)
    return f"about {total:,}" if histogram.complete else f"more than {total:,}"


def _in_words(chosen: Iterable[Dimension], period: Period, *, searched: bool) -> str:
    parts = [period.words, *(f"{one.title.lower()} {one.chosen}" for one in chosen if one.chosen)]
    return ", ".join([*parts, "and a search"] if searched else parts)
