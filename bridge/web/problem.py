"""Errors as ``application/problem+json``: one shape for everything that goes wrong, as RFC 9457 has it.

https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from bridge import log
from bridge.errors import StoreUnavailable

RETRY_AFTER_S = 5

SAID = {
    400: "The request is not valid HTTP, or its body broke off.",
    404: "There is nothing at this address.",
    405: "This address does not take that method; the Allow header names those that it takes.",
    413: "The body is larger than this server takes.",
    415: "Send the body as it is: it must not be compressed.",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request.

    *where* names a query parameter, or a place in the body: ``deliveries.state``.
    """

    where: str
    what: str


class HttpProblem(Exception):
    """An answer that is no success. *detail* is one sentence for a person."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})

    def answer(self) -> Response:
        body: dict[str, object] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.faults:
            body["errors"] = [asdict(fault) for fault in self.faults]
        return Response(json.dumps(body), self.status, self.headers, content_type="application/problem+json")


def register(app: Flask) -> None:
    """Give every error of *app* this shape; none of them shows a traceback."""
    app.register_error_handler(Exception, answer_to)


def answer_to(error: Exception) -> Response:
    """Return what whoever asked hears of *error*."""
    return problem_of(error).answer()


def problem_of(error: Exception) -> HttpProblem:
    """Return *error* as what may be told of it; what may not is logged."""
    match error:
        case HttpProblem():
            return error
        case HTTPException():
            return _from_http(error)
        case StoreUnavailable():
            return _from_store(error)
        case _:
            return _from_bug(error)


def _from_http(error: HTTPException) -> HttpProblem:
    status = error.code or 500
    kept = {name: value for name, value in error.get_headers() if name.lower() in {"allow", "retry-after"}}
    return HttpProblem(status, SAID.get(status, error.description or "That did not work."), headers=kept)


def _from_store(error: StoreUnavailable) -> HttpProblem:
    log.event("web.store_unavailable", level="error", reason=str(error))
    detail = "The database cannot be used now. Nothing was changed; please try again in a moment."
    return HttpProblem(503, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def _from_bug(error: Exception) -> HttpProblem:
    log.bug("web.failed", error)
    return HttpProblem(500, "Bridge failed to answer this; the log says where. Nothing was changed.")
