"""Receiving webhooks: verify, store, answer. The sender learns nothing and waits for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from flask import Blueprint, Response, abort, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from bridge import log, pipeline
from bridge.config import SourceConnection, TargetConnection
from bridge.errors import BadPayload, BadSignature, StoreUnavailable
from bridge.model import InboundRequest, Outcome
from bridge.sources.base import Answer
from bridge.store.group_commit import Pending, Stored, Trouble
from bridge.store.protocol import NewInbound, Received, Refusal, Store
from bridge.web import problem
from bridge.web.problem import HttpProblem
from bridge.web.tokens import Tokens

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

JSON = "application/json"
PREFIX = "/hooks/"
CHUNK_BYTES = 64 * 1024  # read at a time
HIDDEN = "…"  # stands for the token in what is stored


class Intake(Protocol):
    """Where requests go. Called by many threads at once."""

    def receive(self, inbound: NewInbound) -> Received:
        """Return when it is on disk. Raises StoreUnavailable."""
        ...

    def submit(self, inbound: NewInbound, tell: Callable[[Stored], None]) -> Pending:
        """Have *tell* called, by any thread, when it is on disk or cannot be. Raises StoreUnavailable.

        It may lie there until `write` is called, or something else is received.
        """
        ...

    def write(self) -> None:
        """Have what was submitted written now; returns at once."""
        ...

    def give_up(self, pending: Pending) -> None:
        """Have it told now that it took too long, unless it was told something already."""
        ...

    def refuse(self, refusal: Refusal) -> None:
        """Count it when there is time, or lose it; returns at once."""
        ...

    def trouble(self) -> Trouble | None:
        """Return why the last request could not be stored, None when it could."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What the sender hears."""

    body: bytes
    status: str = "200 OK"
    content_type: str = JSON
    retry_after: str = ""
    more: Mapping[str, str] = field(default_factory=dict)  # headers

    @property
    def headers(self) -> list[tuple[str, str]]:
        headers = [
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            *self.more.items(),
        ]
        return [*headers, ("Retry-After", self.retry_after)] if self.retry_after else headers


# One answer for every refusal: whoever cannot sign shall not learn how close he came.
REFUSED = Reply(b'{"status":"refused"}', "401 Unauthorized")
DUPLICATE = Reply(b'{"status":"duplicate"}')


@dataclass(frozen=True, slots=True)
class Receiver:
    """Takes webhooks in, whichever way they came. *public_url* is what senders call; some of them sign it."""

    sources: Mapping[str, SourceConnection]
    public_url: str
    intake: Intake
    tokens: Tokens
    max_body_bytes: int
    clock: Callable[[], datetime]
    store: Store
    targets: Mapping[str, TargetConnection]  # those that send webhooks of their own

    def receive(
        self, connection: SourceConnection, environ: Mapping[str, object], body: bytes, token: str = ""
    ) -> Reply:
        """Verify and store one request.

        Raises:
            HttpProblem: 400, it is genuine and not what the source sends; it is stored.
            StoreUnavailable: it could not be stored.
        """
        inbound = self.read(connection, as_received(environ, self.public_url, body), token)
        if isinstance(inbound, Reply):
            return inbound
        return reply_to(connection, inbound, self.intake.receive(inbound))

    def read(self, connection: SourceConnection, received: InboundRequest, token: str = "") -> NewInbound | Reply:
        """Verify one request and return what is to be stored of it; a `Reply` when nothing is."""
        try:
            self._check_token(connection, token)
            if (asked := _handshake(connection, received)) is not None:
                return Reply(asked.body, content_type=asked.content_type, more=asked.headers)
            inbound = _read(connection, received, self.clock())
        except BadSignature as error:
            self.intake.refuse(Refusal(connection.name, self.clock(), str(error), len(received.body)))
            return REFUSED
        if token:
            inbound = replace(inbound, url=self._without_token(connection, received))
        return inbound

    def hear(self, target: TargetConnection, body: bytes, token: str) -> Reply:
        """Take in what a target's own webhook tells of consent. It has nothing but the URL's token for a proof.

        Raises:
            HttpProblem: 400, it is not what the target sends.
            StoreUnavailable: it could not be stored.
        """
        now = self.clock()
        if target.type.feedback is None or not token or not self.tokens.good(target.name, token):
            reason = "The URL has no token of ours, and this target has nothing else to prove itself with."
            self.intake.refuse(Refusal(target.name, now, reason, len(body)))
            return REFUSED
        try:
            consents = target.type.feedback(body)
        except BadPayload as error:
            raise HttpProblem(400, "The body is not what this target sends.") from error
        url = f"{self.public_url.rstrip('/')}{PREFIX}{target.name}/{HIDDEN}"
        inbounds = pipeline.consenting.take_in(target, consents, self.store, url, now) if consents else []
        for one in inbounds:
            self.intake.receive(one)
        log.event("target.told", target=target.name, count=len(inbounds))
        return Reply(json.dumps({"status": "accepted" if inbounds else "ignored"}).encode())

    def _check_token(self, connection: SourceConnection, token: str) -> None:
        if token:
            if not self.tokens.good(connection.name, token):
                raise BadSignature("The token in the URL is not one of ours, or was revoked.")
        elif connection.needs_token:
            raise BadSignature("The URL has no token, and this source has nothing else to prove itself with.")

    def _without_token(self, connection: SourceConnection, received: InboundRequest) -> str:
        _, question_mark, query = received.url.partition("?")
        return f"{self.public_url.rstrip('/')}{PREFIX}{connection.name}/{HIDDEN}{question_mark}{query}"


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


def _handshake(connection: SourceConnection, received: InboundRequest) -> Answer | None:
    if (ask := connection.type.handshake) is None:
        return None
    try:
        return ask(received)
    except Exception as error:  # whatever it is, it is no question that we know
        log.bug("inbound.handshake_failed", error, source=connection.name)
        return None


def _read(connection: SourceConnection, received: InboundRequest, now: datetime) -> NewInbound:
    try:
        return pipeline.receive(connection, received, now)
    except BadSignature:
        raise
    except Exception as error:
        # A check that fails on garbage has proven nothing: refuse, and say so where a developer looks.
        log.bug("inbound.check_failed", error, source=connection.name)
        message = f"Bridge failed to check it ({type(error).__name__}, a bug)."
        raise BadSignature(message) from error


def reply_to(connection: SourceConnection, inbound: NewInbound, stored: Received) -> Reply:
    """Return what the sender hears of a request that is on disk.

    Raises:
        HttpProblem: 400, it is not what the source sends.
    """
    if inbound.outcome is Outcome.UNREADABLE:
        raise HttpProblem(400, f"The body is not what this source sends. It is kept as inbound {stored.id}.")
    if (wanted := connection.type.accepted) is not None:
        return Reply(wanted.body, content_type=wanted.content_type)
    return DUPLICATE if stored.duplicate else Reply(b'{"status":"accepted","id":%d}' % stored.id)


# --- the two ways in -------------------------------------------------------------------------------------


def blueprint(receiver: Receiver) -> Blueprint:
    """Return the routes below ``/hooks``, for requests of every kind."""
    hooks = Blueprint("hooks", __name__, url_prefix="/hooks")

    @hooks.get("/<name>", strict_slashes=False)
    @hooks.get("/<name>/<token>", strict_slashes=False)
    def probe(name: str, token: str = "") -> ResponseReturnValue:
        """Some CRMs look whether the URL answers before they save it."""
        return Response(b"", 200) if name in {*receiver.sources, *receiver.targets} else abort(404)

    @hooks.post("/<name>", strict_slashes=False)
    @hooks.post("/<name>/<token>", strict_slashes=False)
    def receive(name: str, token: str = "") -> ResponseReturnValue:
        if name not in receiver.sources and name in receiver.targets:
            reply = receiver.hear(receiver.targets[name], _body(), token)
        else:
            connection = receiver.sources.get(name) or abort(404)
            reply = receiver.receive(connection, request.environ, _body(), token)
        return Response(reply.body, reply.status, dict(reply.more), content_type=reply.content_type)

    return hooks


def _body() -> bytes:
    """Return the raw bytes, before anything else looks at them; 400, 413 and 415 are raised here."""
    if request.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower() not in {"", "identity"}:
        abort(415)
    try:
        # Of what announces no length, werkzeug would silently keep what fits: so one byte more is asked for.
        body = request.get_data(cache=False) if request.content_length is not None else _up_to_limit()
    except HTTPException:
        raise
    except Exception:  # each server has its own errors for broken chunks
        abort(400)
    if len(body) < (request.content_length or 0):  # it broke off, and nobody else would notice
        abort(400)
    return body


def _up_to_limit() -> bytes:
    """Return the body of a request in chunks."""
    limit = request.max_content_length
    if limit is None or not request.environ.get("wsgi.input_terminated"):
        return request.get_data(cache=False)
    content = bytearray()
    while chunk := request.environ["wsgi.input"].read(min(limit + 1 - len(content), CHUNK_BYTES)):
        content += chunk
        if len(content) > limit:
            abort(413)
    return bytes(content)


class Shortcut:
    """Receives plain webhooks before the framework looks at them: nearly all of them, in half the time.

    It needs nothing that Flask works out for every request. Whatever is not plain (no such source, a token,
    chunks, an encoding, too large) gets None and goes its usual way.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._by_path = {PREFIX + name: connection for name, connection in receiver.sources.items()}
        self.paths = frozenset(path.encode() for path in self._by_path)  # names of sources are plain ASCII

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes] | None:
        """Answer when it is stored."""
        connection = self._by_path.get(environ["PATH_INFO"])
        length = environ.get("CONTENT_LENGTH", "")
        if (
            connection is None
            or environ["REQUEST_METHOD"] != "POST"
            or not (length.isascii() and length.isdigit() and len(length) < 10)
            or int(length) > self._receiver.max_body_bytes
            or "HTTP_TRANSFER_ENCODING" in environ
            or "HTTP_CONTENT_ENCODING" in environ
        ):
            return None
        try:
            reply = self._receiver.receive(connection, environ, _exactly(environ, int(length)))
        except Exception as error:
            reply = _reply_of(error)
        start_response(reply.status, reply.headers)
        return [reply.body]

    def begin(
        self, target: str, headers: Mapping[str, str], body: bytes, answer: Callable[[Reply], None]
    ) -> Callable[[], None] | None:
        """Have *answer* called, by any thread, when a plain POST to *target* is stored; return at once.

        What is returned gives up waiting for that: *answer* is called then, unless it was called before. None: it
        is too large, or to no source.
        """
        connection = self._by_path.get(target.partition("?")[0])
        if connection is None or len(body) > self._receiver.max_body_bytes:
            return None
        intake = self._receiver.intake
        received = InboundRequest("POST", self._receiver.public_url.rstrip("/") + target, headers, body)
        try:
            inbound = self._receiver.read(connection, received)
            if isinstance(inbound, Reply):
                answer(inbound)
                return _nothing
            pending = intake.submit(inbound, lambda stored: answer(_told(connection, inbound, stored)))
        except Exception as error:
            answer(_reply_of(error))
            return _nothing
        return lambda: intake.give_up(pending)

    def finish(self) -> None:
        """Have what was begun written."""
        self._receiver.intake.write()


def _nothing() -> None:
    """Stand for giving up what was answered already."""


def _told(connection: SourceConnection, inbound: NewInbound, stored: Stored) -> Reply:
    if isinstance(stored, StoreUnavailable):
        return _reply_of(stored)
    try:
        return reply_to(connection, inbound, stored)
    except HttpProblem as error:
        return _reply_of(error)


def _reply_of(error: Exception) -> Reply:
    said = problem.answer_to(error)
    return Reply(said.get_data(), said.status, said.headers["Content-Type"], said.headers.get("Retry-After", ""))


def _exactly(environ: WSGIEnvironment, length: int) -> bytes:
    try:
        body = environ["wsgi.input"].read(length)
    except Exception as error:
        raise HttpProblem(400, problem.SAID[400]) from error
    if len(body) < length:
        raise HttpProblem(400, problem.SAID[400])
    return bytes(body)
