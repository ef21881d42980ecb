"""Contacts: finding one, and all that bridge knows and did about one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from flask import Blueprint, Response, redirect, request
from flask.typing import ResponseReturnValue
from pydantic import Field

from bridge.model import AuditEntry, Contact, Delivery, FieldState, RecordKey, State, iso
from bridge.store.looking import Hit, Role
from bridge.store.protocol import Filter, Page
from bridge.web.pages import comparing, effort, person
from bridge.web.pages.access import actor, needs
from bridge.web.pages.calls import Call, calls_of, why_none
from bridge.web.pages.filters import Address
from bridge.web.pages.site import Site, say
from bridge.web.pages.words import contact_url, count
from bridge.web.problem import HttpProblem
from bridge.web.queries import Input, Moment, Text, read_form, read_query

PAGE = 50  # contacts of a list
ENTRIES = 25  # of a timeline
FIELDS = 200  # shown at once of a contact, and of a target
ALL_FIELDS = 5_000  # shown of those who have very many, when all are asked for
LONGEST_VALUE = 300  # characters of a value, before it is cut
LONGEST_THERE = 100  # of one at a target, where two stand side by side
SOON = timedelta(seconds=20)  # in which what somebody asked for begins to show

MOVING = frozenset({State.PENDING, State.SENDING})
SETTLED = frozenset({State.SYNCED, State.OPTED_OUT, State.REMOVED})


# --- what is asked for ---------------------------------------------------------------------------------------


class ListQuery(Input):
    q: Text | None = None
    source: Text | None = None
    cursor: Text | None = None


class ContactQuery(Input):
    """How one contact is looked at."""

    id: Annotated[Text | None, Field(description="Its source id, where the path cannot hold it.")] = None
    target: Annotated[Text | None, Field(description="The timeline of one target.")] = None
    cursor: Text | None = None
    all: Annotated[bool, Field(description="Every field, and every value in full.")] = False
    asked: Annotated[Moment | None, Field(description="When somebody asked for another try.")] = None


class ContactRef(Input):
    source: Text
    source_id: Text

    @property
    def key(self) -> RecordKey:
        return RecordKey(self.source, self.source_id)


# --- what is shown -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """A contact in the list."""

    key: RecordKey
    name: str
    life: str
    said_at: datetime | None
    deliveries: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class KnownField:
    """A field of a contact, and where its value is from."""

    name: str
    value: str
    state: FieldState
    webhook: int | None  # the id of the webhook that brought it, as far as it can be told

    @property
    def read(self) -> bool:
        return self.state.version.event_id == person.READ


@dataclass(frozen=True, slots=True)
class AtTarget:
    """A contact at one target. *delivery* None: nothing was decided yet."""

    target: str
    title: str
    delivery: Delivery | None
    rows: Sequence[comparing.Row] = ()
    opt_out: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """An entry of the timeline, with the calls that it made."""

    entry: AuditEntry
    calls: Sequence[Call]
    no_calls: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a retry will come to at one target."""

    target: str
    title: str
    delivery: Delivery
    then: str


# --- the pages -----------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("contacts", __name__)

    @pages.get("/contacts")
    def contacts() -> ResponseReturnValue:
        query = read_form(ListQuery, request.args)
        here = Address.of("/contacts", request.args)
        hits = _hits(site, query)
        if len(hits) == 1 and query.cursor is None and "HX-Request" not in request.headers:
            return _to(hits[0])
        page = _list(site, query)
        return site.page(
            "contacts.html",
            query=query,
            hits=hits,
            contacts=[_listed(site, one) for one in page.items],
            older=here.url(cursor=page.next) if page.next else "",
            newest=here.url() if query.cursor else "",
            searched_to=page.searched_to,
            sources=sorted(site.config.sources),
            without_q=here.url(q=None),
            without_source=here.url(source=None),
        )

    @pages.get("/contacts/<source>")
    @pages.get("/contacts/<source>/<path:source_id>")
    def contact(source: str, source_id: str = "") -> ResponseReturnValue:
        query = read_form(ContactQuery, request.args)
        key = RecordKey(source, source_id or query.id or "")
        found = site.store.contacts([key]).get(key)
        if found is None:
            return _unknown(site, key)
        return _shown(site, found, query)

    @pages.get("/actions/contacts/retry")
    @needs(Role.OPERATOR)
    def ask() -> ResponseReturnValue:
        key = read_query(ContactRef, request.args).key
        known = _known(site, key)
        outlooks = _outlooks(site, site.store.deliveries_of(key))
        return site.page(
            "contact_retry.html",
            key=key,
            name=person.name_of(known),
            outlooks=outlooks,
            back=contact_url(key.source, key.source_id),
            action=_retry_url(key),
        )

    @pages.post("/actions/contacts/retry")
    @needs(Role.OPERATOR)
    def retry() -> ResponseReturnValue:
        key = read_query(ContactRef, request.args).key
        _known(site, key)
        now = site.clock()
        site.store.replay(now, actor(), keys=[key])
        site.ring()
        say(
            "Bridge decides about this contact again from what is known now, and sends what its targets do not "
            "hold yet. This page shows what comes of it."
        )
        return redirect(contact_url(key.source, key.source_id, asked=iso(now)), 303)

    return pages


# --- the list ------------------------------------------------------------------------------------------------


def _hits(site: Site, query: ListQuery) -> Sequence[RecordKey]:
    """Return the contacts that have exactly the id that is looked for, there or in a target."""
    if query.q is None:
        return ()
    found = dict.fromkeys(hit.key for hit in site.store.lookup(query.q.strip()) if _fits(hit, query))
    return [key for key in found if key is not None]


def _fits(hit: Hit, query: ListQuery) -> bool:
    return hit.key is not None and query.source in (None, hit.key.source)


def _list(site: Site, query: ListQuery) -> Page[Contact]:
    with _own_cursor(query.cursor):
        return site.store.contact_page(Filter(source=query.source, q=query.q), query.cursor, PAGE)


def _listed(site: Site, contact: Contact) -> Listed:
    return Listed(
        contact.key,
        person.name_of(contact),
        person.life_of(contact),
        person.said_at(contact),
        site.store.deliveries_of(contact.key),  # an index look-up each, of no more than `PAGE`
    )


# --- one contact ---------------------------------------------------------------------------------------------


def _shown(site: Site, contact: Contact, query: ContactQuery) -> Response:
    key = contact.key
    deliveries = site.store.deliveries_of(key)
    steps = _steps(site, contact, query)
    fields, left = _fields(site, contact, everything=query.all)
    return site.page(
        "contact.html",
        contact=contact,
        key=key,
        name=person.name_of(contact),
        life=person.life_of(contact),
        said_at=person.said_at(contact),
        source=site.config.sources.get(key.source),
        at_targets=_at_targets(site, key, deliveries),
        fields=fields,
        fields_left=left,
        steps=[_step(contact, entry) for entry in steps.items],
        query=query,
        here=contact_url(key.source, key.source_id),
        url=lambda **more: contact_url(key.source, key.source_id, **more),
        moving=_moving(deliveries, query, site.clock()),
        live=contact_url(key.source, key.source_id, target=query.target, cursor=query.cursor, asked=_asked(query)),
        older=contact_url(key.source, key.source_id, target=query.target, cursor=steps.next) if steps.next else "",
        newest=contact_url(key.source, key.source_id, target=query.target) if query.cursor else "",
        retry=_retry_url(key) if _can_retry(site, contact, deliveries) else "",
        longest=None if query.all else LONGEST_VALUE,
        longest_there=None if query.all else LONGEST_THERE,
        most_rows=ALL_FIELDS if query.all else FIELDS,
    )


def _can_retry(site: Site, contact: Contact, deliveries: Sequence[Delivery]) -> bool:
    """Say whether trying again could come to anything."""
    unsettled = any(one.desired is not None and one.state not in SETTLED for one in deliveries)
    return contact.key.source in site.config.sources and (contact.alive or unsettled)


def _asked(query: ContactQuery) -> str:
    return iso(query.asked) if query.asked else ""


def _moving(deliveries: Sequence[Delivery], query: ContactQuery, now: datetime) -> bool:
    """Say whether the page is likely to be another one in a moment."""
    asked = query.asked is not None and timedelta() <= now - query.asked < SOON
    return asked or any(one.state in MOVING for one in deliveries)


def _steps(site: Site, contact: Contact, query: ContactQuery) -> Page[AuditEntry]:
    key = contact.key
    narrowed = Filter(source=key.source, source_id=key.source_id, target=query.target)
    with _own_cursor(query.cursor):
        return site.store.audit_page(narrowed, query.cursor, ENTRIES)


def _step(contact: Contact, entry: AuditEntry) -> Step:
    return Step(entry, calls_of(entry), why_none(entry, erased=contact.erased is not None))


def _fields(site: Site, contact: Contact, *, everything: bool) -> tuple[Sequence[KnownField], int]:
    """Return the fields to show, by name, and how many more there are."""
    webhooks = person.origins(site.store, site.config, contact)
    names = sorted(contact.fields)
    shown = names[: ALL_FIELDS if everything else FIELDS]
    known = [
        KnownField(name, comparing.text(contact.fields[name].value), contact.fields[name], webhooks.get(name))
        for name in shown
    ]
    return known, len(names) - len(shown)


def _at_targets(site: Site, key: RecordKey, deliveries: Sequence[Delivery]) -> Sequence[AtTarget]:
    """Return the contact at each target that it was decided for, or will be."""
    by_target = {one.target: one for one in deliveries}
    routed = [route.target for route in site.config.routes_of(key.source)]
    return [
        _at_target(site, target, by_target.get(target)) for target in dict.fromkeys([*routed, *sorted(by_target)])
    ]


def _at_target(site: Site, target: str, delivery: Delivery | None) -> AtTarget:
    title = _title(site, target)
    if delivery is None:
        return AtTarget(target, title, None)
    rows = comparing.compare(delivery)
    return AtTarget(target, title, delivery, rows, comparing.opt_out(delivery), comparing.doubt(delivery))


def _title(site: Site, target: str) -> str:
    connection = site.config.targets.get(target)
    return connection.type.title if connection else "no longer configured"


def _unknown(site: Site, key: RecordKey) -> Response:
    return site.page(
        "contact_unknown.html",
        status=404,
        key=key,
        configured=key.source in site.config.sources,
        search=Address("/contacts").url(q=key.source_id),
    )


# --- trying again --------------------------------------------------------------------------------------------


def _known(site: Site, key: RecordKey) -> Contact:
    found = site.store.contacts([key]).get(key)
    if found is None:
        raise HttpProblem(404, "Bridge knows no such contact: its source has not mentioned it.")
    if key.source not in site.config.sources:
        raise HttpProblem(409, "Its source is no longer in the configuration, so nothing can be decided again.")
    return found


def _outlooks(site: Site, deliveries: Sequence[Delivery]) -> Sequence[Outlook]:
    now = site.clock()
    lately = site.store.activity(now - effort.LOOK_BACK, now)
    counts = {one.target: 1 for one in deliveries}
    efforts = effort.effort(site.config, counts, lately, site.store.health(now))
    by_target = {one.target: one for one in efforts}
    return [
        Outlook(one.target, _title(site, one.target), one, _then(one, by_target[one.target])) for one in deliveries
    ]


def _then(delivery: Delivery, taken: effort.Effort) -> str:
    """Say what deciding again will come to, unless the rules were changed meanwhile."""
    if delivery.state in SETTLED:
        return "Nothing is sent, because the target already holds what the rules ask for."
    if delivery.state is State.WAITING:
        return "The rules are applied again. It goes on waiting unless they ask for something now."
    if taken.waits_for:
        return taken.waits_for
    return f"It is sent at once: about {count(taken.calls, 'call')}."


# --- addresses -----------------------------------------------------------------------------------------------


def _retry_url(key: RecordKey) -> str:
    return Address("/actions/contacts/retry").url(source=key.source, source_id=key.source_id)


def _to(key: RecordKey) -> Response:
    return Response("", 303, {"Location": contact_url(key.source, key.source_id), "Cache-Control": "no-store"})


@contextmanager
def _own_cursor(cursor: str | None) -> Iterator[None]:
    """Tell whoever made a cursor up; the store cannot read it."""
    try:
        yield
    except (ValueError, OverflowError):
        if cursor is None:
            raise
        raise HttpProblem(400, "This is no page of the list. Go back to its beginning.") from None
