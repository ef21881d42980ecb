"""Webhooks: what came in, what it says, what the rules make of it, and what was delivered because of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from flask import Blueprint, Response, redirect, request
from flask.typing import ResponseReturnValue

from bridge.config import Config, SourceConnection
from bridge.expressions import Expression
from bridge.model import Change, Contact, Event, InboundRequest, Mode, Outcome, RecordKey, Value
from bridge.pipeline import consenting
from bridge.pipeline.processing import parse
from bridge.rules import Empty, FieldRule, Route
from bridge.store.looking import Role
from bridge.store.protocol import Filter, Inbound
from bridge.web import trial
from bridge.web.pages import filters, wire
from bridge.web.pages.access import actor, needs
from bridge.web.pages.audit import place_of, rows_of
from bridge.web.pages.filters import Address
from bridge.web.pages.person import name_of
from bridge.web.pages.site import HEADERS, Site, say
from bridge.web.pages.words import contact_url, mark
from bridge.web.problem import HttpProblem
from bridge.web.queries import GREATEST_ID, InboundQuery, read_form
from bridge.web.trial import FieldOutcome, RouteOutcome

LIVE = "webhooks"  # the id of the part that is loaded again while nobody reads in it
ENTRIES = 50  # of the audit log, on a webhook's page
EVENTS_SHOWN = 25
FIELDS_SHOWN = 100  # of a change
CONTACTS_TRIED = 10  # whose decisions are worked out
FIELDS_TRIED = 5_000  # of all of them
BYTES_TRIED = 256 * 1024  # of a body: it is parsed once more for each of the two ways to decide
NOT_FOUND = "There is no webhook {}. Perhaps the link is from another installation of bridge."

QUEUED = "It is processed again from its bytes. What came of it stands below in a moment."
GONE = "Its payload was pruned or erased, so it cannot be processed again. Nothing was changed."

OUTCOMES = (Outcome.ACCEPTED, Outcome.PROCESSED, Outcome.IGNORED, Outcome.UNREADABLE, Outcome.DUPLICATE)
# What is said of a webhook that came without a reason.
SENTENCES: Mapping[str, str] = {Outcome.ACCEPTED: "It is stored; the worker reads it next."}

DECISIONS: Mapping[str, str] = {
    "send": "keep the contact equal",
    "opt_out": "pass on that the person said stop",
    "remove": "remove the contact",
    "wait": "send nothing now",
}


class WebhookQuery(filters.Within, InboundQuery):
    """The list's filter; on a webhook's page, that of the list one came from."""

    view: Literal["pretty", "raw"] = "pretty"
    jump: bool = False

    def over(self, now: datetime) -> Filter:
        period = self.period(now)
        return replace(self.narrowed(), since=period.since, until=period.until)


# --- what is shown -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A field of a change, or a value that a rule reads. *known* False: the source has not mentioned it."""

    name: str
    value: Value = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class ChangeShown:
    change: Change
    href: str
    fields: Sequence[Said]
    more: int  # fields that are not shown


@dataclass(frozen=True, slots=True)
class EventShown:
    changes: Sequence[ChangeShown]
    passed_over: str  # why there are none
    unreadable: bool


@dataclass(frozen=True, slots=True)
class Made:
    """One rule at work: what it reads, and what it gives of all that is known and of the webhook alone."""

    rule: FieldRule
    notes: str  # when it writes, where that is not always
    reads: Sequence[Said]
    now: FieldOutcome
    alone: FieldOutcome | None

    @property
    def differs(self) -> bool:
        return self.alone is not None and self.alone != self.now


@dataclass(frozen=True, slots=True)
class Condition:
    """An expression of a route that decides for the whole contact."""

    name: str  # "when", "opt_out"
    text: str
    reads: Sequence[Said]


@dataclass(frozen=True, slots=True)
class Decided:
    """What a route makes of one contact."""

    target: str
    title: str
    decision: str
    reason: str
    conditions: Sequence[Condition]
    fields: Sequence[Made]


@dataclass(frozen=True, slots=True)
class ContactDecided:
    key: RecordKey
    href: str
    name: str
    routes: Sequence[Decided]


# --- how it was verified -------------------------------------------------------------------------------------

ORDINALS = ("first", "second", "third", "fourth", "fifth")


def verdict(stored: Inbound, connection: SourceConnection | None) -> str:
    """Return in one sentence why the webhook was believed."""
    if stored.method == consenting.METHOD:
        return "Told by a target's own webhook, which came to the target's secret URL."
    if connection is None:
        return f"It passed the check of the source {stored.source}, which is no longer configured."
    configured = _configured(connection)
    number = stored.secret_index + 1
    if configured == 1 and number == 1:
        return "Genuine: it passed the check with the source's secret."
    which = ORDINALS[stored.secret_index] if number <= len(ORDINALS) else f"{number}th"
    if configured and number <= configured:
        return f"Genuine: it passed the check with the {which} of {configured} secrets."
    return f"Genuine: it passed the check with the source's {which} secret of that time."


def _configured(connection: SourceConnection) -> int:
    settings = connection.settings
    return len(getattr(settings, "secrets", ()) or getattr(settings, "credentials", ()))


# --- what it says --------------------------------------------------------------------------------------------


def event_shown(event: Event) -> EventShown:
    changes = [
        ChangeShown(
            change,
            contact_url(change.key.source, change.key.source_id),
            [Said(name, value) for name, value in list(change.fields.items())[:FIELDS_SHOWN]],
            max(0, len(change.fields) - FIELDS_SHOWN),
        )
        for change in event.changes
    ]
    return EventShown(changes, event.ignored or event.unreadable, bool(event.unreadable))


# --- what the rules make of it -------------------------------------------------------------------------------


def decisions(
    site: Site, connection: SourceConnection, stored: Inbound, routes: Sequence[Route], now: datetime
) -> list[ContactDecided]:
    """Return what each route would decide now: of all that is known, and of the webhook alone."""
    given = InboundRequest(stored.method, stored.url, stored.headers, stored.body or b"")

    def run(*, stored_too: bool) -> trial.Trial:
        return trial.run(
            connection,
            routes,
            given,
            extra={},
            store=site.store if stored_too else None,
            now=now,
            would_read="",
            received_at=stored.received_at,
            signed_at=stored.signed_at,
        )

    present, alone = run(stored_too=True), run(stored_too=False)
    by_target = {route.target: route for route in routes}
    of_itself = {(one.key, one.target): one for one in alone.routes}
    found: list[ContactDecided] = []
    for contact in present.contacts:
        decided = [
            _decided(by_target[one.target], contact, one, of_itself.get((one.key, one.target)))
            for one in present.routes
            if one.key == contact.key
        ]
        key = contact.key
        found.append(ContactDecided(key, contact_url(key.source, key.source_id), name_of(contact), decided))
    return found


def _decided(route: Route, contact: Contact, now: RouteOutcome, alone: RouteOutcome | None) -> Decided:
    of_itself = {one.field: one for one in alone.fields} if alone else {}
    came_to = {one.field: one for one in now.fields}
    return Decided(
        target=route.target,
        title=route.type.title,
        decision=now.decision,
        reason=now.reason,
        conditions=[
            Condition(name, rule.text, _reads(rule, contact))
            for name, rule in (("when", route.when), ("opt_out", route.opt_out))
            if rule is not None
        ],
        fields=[
            Made(
                rule,
                _notes(rule),
                _reads(rule.value, contact),
                came_to[rule.target],
                of_itself.get(rule.target),
            )
            for rule in route.fields
        ],
    )


def _reads(rule: Expression, contact: Contact) -> list[Said]:
    return [
        Said(name, contact.fields[name].value) if name in contact.fields else Said(name, known=False)
        for name in sorted(rule.names)
    ]


NOTES: Mapping[Mode, str] = {
    Mode.IF_BLANK: "only where the target has none",
    Mode.CREATE_ONLY: "only when the contact is created",
}


def _notes(rule: FieldRule) -> str:
    said = [NOTES[rule.mode]] if rule.mode in NOTES else []
    if rule.empty is Empty.CLEAR:
        said.append("cleared when the source clears it")
    return "; ".join(said)


# --- pages ---------------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("webhooks", __name__)

    @pages.get("/webhooks")
    def webhooks() -> ResponseReturnValue:
        query = read_form(WebhookQuery, request.args)
        hits = site.store.lookup(query.q) if query.q else []
        if query.jump and len(hits) == 1:
            return redirect(place_of(hits[0])[0], 303)
        now = site.clock()
        address = Address.of("/webhooks", request.args, (*filters.NO_FILTERS, "jump", "view"))
        refused = query.outcome is Outcome.REFUSED  # they are kept apart, without what they held
        with filters.known_place(query.cursor):
            page = site.store.inbound_page(query.over(now), None if refused else query.cursor, query.limit)
        period = query.period(now)
        return site.page(
            "webhooks.html",
            items=[] if refused else page.items,
            sentences=SENTENCES,
            dimensions=_dimensions(site.config, address),
            times=filters.times(address, period),
            address=address,
            hits=[place_of(hit) for hit in hits],
            q=query.q or "",
            live=query.cursor is None and period.until is None,
            newest=address.url() if query.cursor else "",
            older=address.url(cursor=page.next) if page.next else "",
            searched_to=page.searched_to,
            refused=refused,
        )

    @pages.get("/webhooks/<int:inbound_id>")
    def webhook(inbound_id: int) -> ResponseReturnValue:
        query = read_form(WebhookQuery, request.args)
        stored = _stored(site, inbound_id)
        now = site.clock()
        address = Address.of(f"/webhooks/{inbound_id}", request.args, (*filters.NO_FILTERS, "jump"))
        back = Address.of("/webhooks", request.args, (*filters.NO_FILTERS, "jump", "view"))
        newer, older = site.store.inbound_neighbours(query.over(now), inbound_id)
        connection = site.config.sources.get(stored.source)
        entries = site.store.audit_page(Filter(inbound_id=inbound_id), None, ENTRIES)
        return site.page(
            "webhook.html",
            stored=stored,
            connection=connection,
            verdict=verdict(stored, connection),
            consent=stored.method == consenting.METHOD,
            link=f"{site.public_url}/webhooks/{inbound_id}",
            reason=stored.reason or SENTENCES.get(stored.outcome, ""),
            newer=back.url(f"/webhooks/{newer}") if newer else "",
            older=back.url(f"/webhooks/{older}") if older else "",
            back=back.url(),
            address=address,
            rows=rows_of(site.store, entries.items),
            more_entries=entries.next is not None,
            decision_words=DECISIONS,
            never_said=trial.NEVER_SAID,
            **_read(site, connection, stored, now),
            **_as_received(connection, stored, query.view, now),
        )

    @pages.get("/webhooks/<int:inbound_id>/body")
    def body(inbound_id: int) -> ResponseReturnValue:
        stored = _stored(site, inbound_id)
        if stored.body is None:
            raise HttpProblem(404, "Its payload was pruned or erased, so there is nothing left to download.")
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{wire.file_name(stored)}"'}
        # Whatever a stranger sent is never taken for a page of ours.
        return Response(stored.body, 200, headers, content_type="application/octet-stream")

    @pages.get("/webhooks/<int:inbound_id>/replay")
    @needs(Role.OPERATOR)
    def ask(inbound_id: int) -> ResponseReturnValue:
        stored = _with_body(site, inbound_id)
        connection = site.config.sources.get(stored.source)
        events = parse(connection, stored).events if connection else ()
        people = {change.key for event in events for change in event.changes}
        routes = site.config.routes_of(stored.source)
        return site.page("webhook_replay.html", stored=stored, people=len(people), targets=len(routes))

    @pages.post("/webhooks/<int:inbound_id>/replay")
    @needs(Role.OPERATOR)
    def replay(inbound_id: int) -> ResponseReturnValue:
        _with_body(site, inbound_id)
        queued = site.store.replay_inbound(site.clock(), actor(), [inbound_id])
        site.ring()
        say(QUEUED if queued else GONE)
        return redirect(f"/webhooks/{inbound_id}", 303)

    return pages


def _stored(site: Site, inbound_id: int) -> Inbound:
    stored = site.store.inbound(inbound_id) if inbound_id <= GREATEST_ID else None
    if stored is None:
        raise HttpProblem(404, NOT_FOUND.format(inbound_id))
    return stored


def _with_body(site: Site, inbound_id: int) -> Inbound:
    stored = _stored(site, inbound_id)
    if stored.body is None:
        raise HttpProblem(409, GONE)
    return stored


def _dimensions(config: Config, address: Address) -> list[filters.Dimension]:
    return [
        filters.dimension(address, "source", "Source", [(name, None) for name in config.sources]),
        filters.dimension(
            address, "outcome", "Outcome", [(one.value, None) for one in OUTCOMES], lambda value: mark(value).word
        ),
    ]


def _read(site: Site, connection: SourceConnection | None, stored: Inbound, now: datetime) -> dict[str, Any]:
    """Return what it says and what comes of it, as the template wants them."""
    if connection is None or stored.body is None:
        return {"events": [], "more_events": 0, "problem": "", "people": 0, "decided": [], "routes": 0}
    parsed = parse(connection, stored)
    people = {change.key for event in parsed.events for change in event.changes}
    routes = site.config.routes_of(stored.source)
    told = sum(len(change.fields) for event in parsed.events for change in event.changes)
    few = 0 < len(people) <= CONTACTS_TRIED and told <= FIELDS_TRIED and len(stored.body) <= BYTES_TRIED
    few = few and stored.method != consenting.METHOD  # nothing that the source's parser reads
    return {
        "events": [event_shown(one) for one in parsed.events[:EVENTS_SHOWN]],
        "more_events": max(0, len(parsed.events) - EVENTS_SHOWN),
        "problem": parsed.problem,
        "people": len(people),
        "decided": decisions(site, connection, stored, routes, now) if few else [],
        "routes": len(routes),
    }


def _as_received(connection: SourceConnection | None, stored: Inbound, view: str, now: datetime) -> dict[str, Any]:
    """Return the request itself, as the template wants it."""
    shown: dict[str, Any] = {
        "url": wire.masked_url(stored.url),
        "headers": wire.masked_headers(stored.headers),
        "curl": wire.curl(connection, stored, now),
        "file_name": wire.file_name(stored),
        "body": None,
        "laid_out": False,
        "can_lay_out": False,
    }
    if stored.body is None:
        return shown
    readable = wire.readable(stored.body, stored.headers.get("content-type", ""))
    laid_out = readable is not None and view == "pretty"
    return {
        **shown,
        "body": readable if laid_out else wire.raw(stored.body),
        "laid_out": laid_out,
        "can_lay_out": readable is not None,
    }
