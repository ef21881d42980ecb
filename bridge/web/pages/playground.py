"""The playground: a webhook and rules to edit beside each other, and what each target would get.

Nothing is stored and nothing is sent. Whoever may look may use it, so the expressions that come in here are
bounded more tightly than those of the configuration, and nothing of the environment can be read with them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from bridge.config import Config, Routes, SourceConnection, read_routes
from bridge.config.writing import routes_as_toml
from bridge.errors import ConfigError, Problem
from bridge.expressions import TooMuch, within
from bridge.model import InboundRequest, Value
from bridge.sources.recording import of_body
from bridge.sources.sampling import Sampling
from bridge.store.protocol import Filter, Inbound
from bridge.web import trial
from bridge.web.inbound import PREFIX
from bridge.web.pages.site import Site
from bridge.web.pages.trying import Tried, tried_of
from bridge.web.pages.words import pretty
from bridge.web.problem import HttpProblem
from bridge.web.queries import Input, RowId, Text, read_form

# What somebody may try at once. A form has a third of that more when it travels, and Flask takes 500 kB.
LONGEST_PAYLOAD = 100 * 1024  # characters
LONGEST_RULES = 32 * 1024
MOST_SIZE = 2_000_000  # characters and entries that all expressions handle together
MOST_S = 2.0
AT_ONCE = 2  # tries in one process; others wait a little, and webhooks none at all
MOST_WAITING = 4  # of them: each holds a thread, and pages need some, too
PATIENCE_S = 5.0
RECENT = 8
MOST_PROBLEMS = 30  # of the rules, on the page
BUSY = "Too many people try rules right now. Wait a moment, and try again."
WOULD_READ = (
    "Bridge would first read the rest of the contact from the CRM; give it under 'what else the CRM knows'."
)


class Wanted(Input):
    """What to begin with: a stored webhook, or a sample of a source."""

    webhook: RowId | None = None
    source: Text | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """What stands in the form."""

    source: str
    payload: str
    rules: str
    more: str = ""  # what else the CRM knows, as JSON
    merge: bool = False  # into what bridge knows
    webhook: int | None = None  # the stored webhook it began with; its headers count


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a draft. *problems* and *warnings* are of its rules; *trouble* is anything else."""

    tried: Tried | None = None
    problems: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()
    trouble: str = ""


# --- beginning -----------------------------------------------------------------------------------------------


def written_rules(config: Config, source: str) -> str:
    """Return the routes of *source* as the file has them: with the names of variables, not with their values."""
    pairs = zip(config.written, config.routes, strict=True)
    return routes_as_toml([written for written, route in pairs if route.source == source])


def _sample(site: Site, connection: SourceConnection) -> str:
    make = connection.type.sample
    reads = site.config.reads(connection.name)
    return _legible(make(Sampling(site.clock(), connection.settings, reads=reads))) if make else ""


def _legible(body: bytes) -> str:
    """Return *body* as text; JSON with an entry on each line."""
    text = body.decode("utf-8", "replace")
    try:
        laid_out = pretty(json.loads(text), LONGEST_PAYLOAD)
        return laid_out if len(laid_out) <= LONGEST_PAYLOAD else text
    except (ValueError, RecursionError):
        return text


def _began_with(site: Site, webhook: int) -> Inbound:
    stored = site.store.inbound(webhook)
    if stored is None:
        raise HttpProblem(404, f"There is no webhook {webhook}.")
    if stored.source not in site.config.sources:
        raise HttpProblem(404, f"The source of webhook {webhook} is no longer configured.")
    return stored


def _first(site: Site, wanted: Wanted) -> tuple[Draft, str]:
    """Return what the form begins with, and what is to be said about it."""
    sources = site.config.sources
    if wanted.webhook is not None:
        stored = _began_with(site, wanted.webhook)
        rules = written_rules(site.config, stored.source)
        draft = Draft(stored.source, "", rules, merge=True, webhook=stored.id)
        if stored.body is None:
            return draft, "The payload of this webhook was pruned or erased; only facts about it are left."
        if len(stored.body) > LONGEST_PAYLOAD:
            return (
                draft,
                f"The payload of this webhook is too long for the playground: {len(stored.body):,} bytes.",
            )
        return replace(draft, payload=_legible(stored.body)), ""
    name = wanted.source or next(iter(sources), "")
    if name not in sources:
        raise HttpProblem(404, "There is no source of that name in the configuration.")
    return Draft(name, _sample(site, sources[name]), written_rules(site.config, name)), ""


# --- trying --------------------------------------------------------------------------------------------------


def _draft(site: Site) -> Draft:
    """Return the form that was sent."""
    given = request.form
    name, webhook = given.get("source", ""), given.get("webhook", "")
    if name not in site.config.sources:
        raise HttpProblem(404, "There is no source of that name in the configuration.")
    return Draft(
        source=name,
        payload=given.get("payload", ""),
        rules=given.get("rules", ""),
        more=given.get("more", ""),
        merge=bool(given.get("merge")),
        webhook=int(webhook) if webhook.isascii() and webhook.isdigit() and len(webhook) < 19 else None,
    )


def try_out(site: Site, draft: Draft) -> Result:
    """Return what would come of *draft*; nothing is stored or sent."""
    if not draft.payload.strip():
        return Result(trouble="Paste a payload, or pick a stored webhook.")
    if len(draft.payload) > LONGEST_PAYLOAD or len(draft.rules) > LONGEST_RULES or len(draft.more) > LONGEST_RULES:
        return Result(
            trouble=f"This is too long for the playground: up to {LONGEST_PAYLOAD:,} characters of a payload, and "
            f"{LONGEST_RULES:,} of rules, can be tried."
        )
    try:
        with within(MOST_SIZE, MOST_S):
            return _tried(site, draft)
    except (TooMuch, RecursionError):
        return Result(
            trouble="These rules compute too much to be tried here: the playground stops after two seconds, or "
            "when the values grow too large."
        )


def _tried(site: Site, draft: Draft) -> Result:
    try:
        read = read_routes(draft.rules, site.config)
    except ConfigError as error:
        return Result(problems=error.problems)
    routes = [route for route in read.routes if route.source == draft.source]
    if foreign := _foreign(read, draft.source):
        return Result(trouble=foreign)
    try:
        extra = _more(draft.more)
    except ValueError as error:
        return Result(trouble=f"What else the CRM knows {error}.", warnings=read.warnings)
    store = site.store if draft.merge else None
    found = trial.run(
        site.config.sources[draft.source],
        routes,
        _request(site, draft),
        extra=extra,
        store=store,
        now=site.clock(),
        would_read=WOULD_READ,
    )
    return Result(tried_of(found, routes), warnings=read.warnings)


def _foreign(read: Routes, source: str) -> str:
    if not read.routes:
        return "There are no rules to try: add [[routes]]."
    if any(route.source == source for route in read.routes):
        return ""
    return f"None of these routes begins at {source}, whose webhook this is."


def _more(text: str) -> dict[str, Value]:
    """Return what else the CRM knows of each contact. Raises `ValueError` with what is wrong."""
    if not text.strip():
        return {}
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict):
        return given
    raise ValueError('is no JSON object such as {"firstname": "Ada"}')


def _request(site: Site, draft: Draft) -> InboundRequest:
    """Return the payload as a request: with the headers of the webhook it began with, else as JSON or a form."""
    body = draft.payload.encode("utf-8", "replace")
    made = of_body(body, f"{site.public_url}{PREFIX}{draft.source}")
    stored = site.store.inbound(draft.webhook) if draft.webhook else None
    if stored is None or stored.source != draft.source:
        return made
    return InboundRequest(stored.method, stored.url, stored.headers, body)


# --- pages ---------------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("playground", __name__)
    turns = threading.BoundedSemaphore(AT_ONCE)
    places = threading.BoundedSemaphore(AT_ONCE + MOST_WAITING)

    def show(draft: Draft, result: Result) -> ResponseReturnValue:
        recent = site.store.inbound_page(Filter(source=draft.source), None, RECENT).items
        return site.page(
            "playground.html",
            draft=draft,
            result=result,
            sources=list(site.config.sources),
            recent=recent,
            longest_payload=LONGEST_PAYLOAD,
            longest_rules=LONGEST_RULES,
            most_problems=MOST_PROBLEMS,
            asks_variables=_asks_variables(result.problems),
        )

    def result_of(draft: Draft) -> Result:
        if not places.acquire(blocking=False):
            return Result(trouble=BUSY)
        try:
            if not turns.acquire(timeout=PATIENCE_S):
                return Result(trouble=BUSY)
            try:
                return try_out(site, draft)
            finally:
                turns.release()
        finally:
            places.release()

    @pages.get("/playground")
    def begin() -> ResponseReturnValue:
        if not site.config.sources:
            return site.page("playground_empty.html")
        draft, said = _first(site, read_form(Wanted, request.args))
        return show(draft, Result(trouble=said) if said else result_of(draft))

    @pages.post("/playground")
    def go_on() -> ResponseReturnValue:
        """Answer with what would come of the form. It is a POST because it is long, and changes nothing."""
        draft = _draft(site)
        return show(draft, result_of(draft))

    return pages


def _asks_variables(problems: Iterable[Problem]) -> bool:
    return any(problem.what.startswith("the environment variable") for problem in problems)
