"""Sources: how each CRM is told to send here, what came of it, and a sample to try it with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from flask import Blueprint, redirect
from flask.typing import ResponseReturnValue

from bridge import catch_up, log, pipeline
from bridge.config import SourceConnection
from bridge.errors import BadSignature, ConfigError
from bridge.model import BACKFILL, RECONCILE, REGISTRATION, AuditEntry, CatchUp, InboundRequest, RecordKey
from bridge.sources.recording import of_body
from bridge.sources.sampling import Sampling
from bridge.store.looking import Role
from bridge.store.protocol import Health, Received, Refusal, SourceStatus
from bridge.web import health, trial
from bridge.web.inbound import HIDDEN, PREFIX
from bridge.web.pages.access import actor, needs
from bridge.web.pages.rhythm import HOUR, LOOK_BACK, Rhythm, rhythm
from bridge.web.pages.site import Site, say
from bridge.web.pages.trying import Tried, tried_of
from bridge.web.problem import HttpProblem

REASONS_SHOWN = 10
REFUSALS_KEPT = 200  # by the store, of each source


# --- what is shown -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a step: plain, or what Markdown marks as ``em`` or ``code``."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why requests were refused, with how many of the last `REFUSALS_KEPT` and when."""

    text: str
    count: int
    newest_at: datetime
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class Item:
    """A source as the page shows it."""

    name: str
    title: str
    url: str
    needs_token: bool
    steps: Sequence[Sequence[Part]]
    manual: str
    status: SourceStatus
    rhythm: Rhythm
    reasons: Sequence[Reason]
    targets: Sequence[str]  # that its routes lead to
    reads: bool  # whole contacts are read from the CRM
    lists: bool  # so can all of them
    reconciles: bool  # what was changed is looked for from time to time
    registers: bool  # bridge can have the CRM send here
    backfill: CatchUp | None
    reconcile: CatchUp | None
    registration: CatchUp | None

    @property
    def refused_shown(self) -> int:
        return sum(one.count for one in self.reasons)


# What is code comes first: in `*` the star is one.
_MARKED = re.compile(r"`(?P<code>[^`]+)`|\*(?P<em>[^*]+)\*")


def parts_of(step: str) -> Sequence[Part]:
    """Return the Markdown of a step in pieces, so that a template can escape each."""
    parts, at = [], 0
    for match in _MARKED.finditer(step):
        mark = str(match.lastgroup)
        parts += [Part(step[at : match.start()]), Part(match[mark], mark)]
        at = match.end()
    return [part for part in (*parts, Part(step[at:])) if part.text]


def reasons_of(refusals: Iterable[Refusal]) -> Sequence[Reason]:
    """Return *refusals* by their reason, the one that was given last first."""
    grouped: dict[str, list[datetime]] = {}
    for one in refusals:
        grouped.setdefault(one.reason, []).append(one.at)
    found = [Reason(text, len(at), max(at), min(at)) for text, at in grouped.items()]
    return sorted(found, key=lambda one: one.newest_at, reverse=True)


def statuses(site: Site, seen: Health) -> Mapping[str, SourceStatus]:
    """Return the status of every configured source, also of those that were never heard."""
    known = {one.source: one for one in seen.sources}
    return {name: known.get(name, SourceStatus(name)) for name in site.config.sources}


def rhythm_of(site: Site, status: SourceStatus, now: datetime) -> Rhythm:
    """Return how a source is heard, by its hours of `LOOK_BACK`."""
    until = now.replace(minute=0, second=0, microsecond=0) + HOUR
    hours = site.store.heard(status.source, until - LOOK_BACK, until)
    return rhythm(hours, status.last_inbound_at, now)


def _item(site: Site, connection: SourceConnection, status: SourceStatus, now: datetime) -> Item:
    return Item(
        name=connection.name,
        title=connection.type.title,
        url=url_of(site, connection.name),
        needs_token=connection.needs_token,
        steps=[parts_of(step.format(name=connection.name)) for step in connection.type.steps],
        manual=connection.type.manual,
        status=status,
        rhythm=rhythm_of(site, status, now),
        reasons=reasons_of(site.store.refusals(connection.name)),
        targets=[route.target for route in site.config.routes_of(connection.name)],
        reads=connection.source.can_read(),
        lists=connection.lister() is not None,
        reconciles=connection.reconcile_s > 0,
        registers=connection.registrar() is not None,
        backfill=site.store.catch_up(connection.name, BACKFILL),
        reconcile=site.store.catch_up(connection.name, RECONCILE),
        registration=site.store.catch_up(connection.name, REGISTRATION),
    )


def url_of(site: Site, name: str) -> str:
    return f"{site.public_url}{PREFIX}{name}"


# --- samples -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """A made-up webhook and what would come of it. *known*: contacts that bridge knows already under its ids."""

    request: InboundRequest
    tried: Tried
    known: Sequence[RecordKey]


def sample_of(site: Site, connection: SourceConnection, now: datetime) -> Sample | None:
    """Return the sample that would be sent at *now*, None where nobody knows what the sender sends."""
    if connection.type.sample is None:
        return None
    status = statuses(site, site.store.health(now))[connection.name]
    reads = site.config.reads(connection.name)
    body = connection.type.sample(Sampling(now, connection.settings, status.account, reads))
    asked = of_body(body, url_of(site, connection.name))
    routes = site.config.routes_of(connection.name)
    found = trial.run(connection, routes, asked, extra={}, store=site.store, now=now, would_read=WOULD_READ)
    keys = [contact.key for contact in found.contacts]
    return Sample(asked, tried_of(found, routes), sorted(site.store.contacts(keys)))


WOULD_READ = "Bridge first looks the contact up in the CRM; what the CRM says of it counts."


def send(site: Site, connection: SourceConnection, sample: Sample, now: datetime) -> Received:
    """Sign *sample* as the CRM would, and take it in as any webhook is taken in.

    Raises:
        HttpProblem: what is configured can verify, but not sign, or does not verify what it signed.
    """
    try:
        signed = connection.source.sign(sample.request, now)
        inbound = pipeline.receive(connection, signed, now)
    except (ConfigError, BadSignature) as error:
        detail = error.problems[0].what if isinstance(error, ConfigError) else str(error)
        raise HttpProblem(422, f"The sample cannot be signed: {detail.rstrip('.')}. Nothing was sent.") from error
    if connection.needs_token:  # it came from here, and needs no URL that is secret
        inbound = replace(inbound, url=f"{url_of(site, connection.name)}/{HIDDEN}")
    return site.commit.receive(inbound)


# --- pages ---------------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("sources", __name__)

    @pages.get("/sources")
    def sources() -> ResponseReturnValue:
        now = site.clock()
        seen = site.store.health(now)
        known = statuses(site, seen)
        items = [_item(site, one, known[name], now) for name, one in site.config.sources.items()]
        return site.page(
            "sources.html",
            sources=items,
            worker_alive=health.worker_alive(seen, now),
            effect_words={effect.value: word for effect, word in catch_up.WORDS.items()},
            reasons_shown=REASONS_SHOWN,
            kept=REFUSALS_KEPT,
        )

    @pages.get("/sources/<name>/sample")
    @needs(Role.OPERATOR)
    def ask(name: str) -> ResponseReturnValue:
        connection = _connection(site, name)
        sample = sample_of(site, connection, site.clock())
        body = sample.request.body.decode() if sample else ""
        return site.page("source_sample.html", source=connection, sample=sample, body=body)

    @pages.post("/sources/<name>/sample")
    @needs(Role.OPERATOR)
    def send_it(name: str) -> ResponseReturnValue:
        connection, now = _connection(site, name), site.clock()
        sample = sample_of(site, connection, now)
        if sample is None:
            raise HttpProblem(422, "Nobody knows what this sender's webhooks look like, so there is no sample.")
        stored = send(site, connection, sample, now)
        reason = f"{actor()} sent a sample, signed as {connection.type.title} would."
        entry = AuditEntry(now, "sample", "requested", reason, source=name, inbound_id=stored.id)
        site.store.note([entry])
        site.ring()
        log.event("sample.sent", source=name, by=actor(), inbound=stored.id)
        say("The sample is stored. The worker takes it from here; this page shows what comes of it.")
        return redirect(f"/webhooks/{stored.id}", 303)

    return pages


def _connection(site: Site, name: str) -> SourceConnection:
    if (found := site.config.sources.get(name)) is not None:
        return found
    raise HttpProblem(404, "There is no source of that name in the configuration.")
