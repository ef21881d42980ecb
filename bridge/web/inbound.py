"""Receiving webhooks: verify, store, answer. The sender learns nothing and waits for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from flask import Blueprint, Response, abort, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from bridge import log, pipeline
from bridge.config import SourceConnection
from bridge.errors import BadSignature
from bridge.model import InboundRequest, Outcome, utc_now
from bridge.sources.base import Answer
from bridge.store.protocol import NewInbound, Received, Refusal
from bridge.web.problem import HttpProblem
from bridge.web.tokens import Tokens

JSON = "application/json"
# One answer for every refusal: whoever cannot sign shall not learn how close he came.
REFUSED = b'{"status":"refused"}'
HIDDEN = "…"  # stands for the token in what is stored


class Intake(Protocol):
    """Where requests go. Called by many threads at once."""

    def receive(self, inbound: NewInbound) -> Received:
        """Return when it is on disk. Raises StoreUnavailable."""
        ...

    def refuse(self, refusal: Refusal) -> None:
        """Count it when there is time, or lose it; returns at once."""
        ...


def blueprint(
    sources: Mapping[str, SourceConnection], public_url: str, intake: Intake, tokens: Tokens
) -> Blueprint:
    """Return the routes below ``/hooks``. *public_url* is what senders call; some of them sign it."""
    hooks = Blueprint("hooks", __name__, url_prefix="/hooks")

    @hooks.get("/<name>", strict_slashes=False)
    @hooks.get("/<name>/<token>", strict_slashes=False)
    def probe(name: str, token: str = "") -> ResponseReturnValue:
        """Some CRMs look whether the URL answers before they save it."""
        _connection(name)
        return Response(b"", 200)

    @hooks.post("/<name>", strict_slashes=False)
    @hooks.post("/<name>/<token>", strict_slashes=False)
    def receive(name: str, token: str = "") -> ResponseReturnValue:
        connection = _connection(name)
        received = as_received(request.environ, public_url, _body())
        if (asked := _handshake(connection, received)) is not None:
            return Response(asked.body, 200, content_type=asked.content_type)
        try:
            _check_token(connection, token)
            inbound = _read(connection, received)
        except BadSignature as error:
            intake.refuse(Refusal(name, utc_now(), str(error), len(received.body)))
            return Response(REFUSED, 401, content_type=JSON)
        if token:
            inbound = replace(inbound, url=_without_token(public_url, name))
        stored = intake.receive(inbound)
        return _answer(connection, inbound, stored)

    def _connection(name: str) -> SourceConnection:
        return sources.get(name) or abort(404)

    def _check_token(connection: SourceConnection, token: str) -> None:
        if token:
            if not tokens.good(connection.name, token):
                raise BadSignature("The token in the URL is not one of ours, or was revoked.")
        elif getattr(connection.settings, "require_token", False):
            raise BadSignature("The URL has no token, and this source has nothing else to prove itself with.")

    return hooks


def as_received(environ: Mapping[str, object], public_url: str, body: bytes) -> InboundRequest:
    """Return the request as the sender made it: what a proxy or the router did to the URL is undone.

    The host is the configured one and never that of the request, which anybody may name as he likes.
    """
    target = str(environ.get("RAW_URI") or environ.get("REQUEST_URI") or environ.get("PATH_INFO") or "/")
    if not target.startswith("/"):  # absolute form: http://host/path
        target = "/" + target.partition("://")[2].partition("/")[2]
    headers = {
        name[5:].replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = str(environ[name])
    return InboundRequest(str(environ["REQUEST_METHOD"]), public_url.rstrip("/") + target, headers, body)


def _without_token(public_url: str, name: str) -> str:
    query = request.query_string.decode("latin-1")
    return f"{public_url.rstrip('/')}/hooks/{name}/{HIDDEN}" + (f"?{query}" if query else "")


def _body() -> bytes:
    """Return the raw bytes, before anything else looks at them; 400, 413 and 415 are raised here."""
    if request.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower() not in {"", "identity"}:
        abort(415)
    try:
        body = request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception:  # each server has its own errors for broken chunks
        abort(400)
    if len(body) < (request.content_length or 0):  # it broke off, and nobody else would notice
        abort(400)
    return body


def _handshake(connection: SourceConnection, received: InboundRequest) -> Answer | None:
    if (ask := connection.type.handshake) is None:
        return None
    try:
        return ask(received)
    except Exception as error:  # whatever it is, it is no question that we know
        log.bug("inbound.handshake_failed", error, source=connection.name)
        return None


def _read(connection: SourceConnection, received: InboundRequest) -> NewInbound:
    try:
        return pipeline.receive(connection, received, utc_now())
    except BadSignature:
        raise
    except Exception as error:
        # A check that fails on garbage has proven nothing: refuse, and say so where a developer looks.
        log.bug("inbound.check_failed", error, source=connection.name)
        message = f"Bridge failed to check it ({type(error).__name__}, a bug)."
        raise BadSignature(message) from error


def _answer(connection: SourceConnection, inbound: NewInbound, stored: Received) -> Response:
    if inbound.outcome is Outcome.UNREADABLE:
        raise HttpProblem(400, f"The body is not what this source sends. It is kept as inbound {stored.id}.")
    if (wanted := connection.type.accepted) is not None:
        return Response(wanted.body, 200, content_type=wanted.content_type)
    if stored.duplicate:
        return Response(b'{"status":"duplicate"}', 200, content_type=JSON)
    log.event("inbound.accepted", level="debug", source=inbound.source, inbound=stored.id)
    return Response(b'{"status":"accepted","id":%d}' % stored.id, 200, content_type=JSON)
