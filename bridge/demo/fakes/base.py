"""What every fake shares: a real HTTP server on loopback, a log of calls, and trouble on request."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask, Response, request
from werkzeug.routing import Map, Rule

from bridge.demo.fakes.server import SOCKET, serve


@dataclass(frozen=True, slots=True)
class Call:
    """A request that a fake got."""

    method: str
    path: str  # with the query
    headers: Mapping[str, str]
    json: Any  # None when there was no JSON body
    at: float  # time.monotonic()


@dataclass(slots=True)
class Trouble:
    """Something to go wrong with the next calls that match.

    *how*: ``answer`` (with *status*, *headers* and *body*, doing nothing), ``drop`` (hang up, doing nothing),
    ``drop_after`` (do it, then hang up without a word), ``slow`` (do it, and answer after *seconds*).
    """

    how: str = "answer"
    status: int = 503
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = ""  # "": any
    path: str = ""  # a part of the path; "": any
    times: int = 1
    seconds: float = 0.0

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in {"", method} and self.path in path


@cache
def _compiled(rules: tuple[tuple[str, str, tuple[str, ...]], ...]) -> Map:
    """Return the map of *rules*: each a path, an endpoint and its methods."""
    return Map([Rule(path, endpoint=endpoint, methods=methods) for path, endpoint, methods in rules])


class _App(Flask):
    """Flask that shares the map of its routes with every application of the same routes.

    Compiling it takes longer than all that a test asks of a fake. What OPTIONS would say is left out.
    """

    def __init__(self, name: str) -> None:
        self._rules: list[tuple[str, str, tuple[str, ...]]] = []
        super().__init__(name, static_folder=None)

    def add_url_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        view_func: Callable[..., Any] | None = None,
        provide_automatic_options: bool | None = None,
        **options: Any,
    ) -> None:
        endpoint = endpoint or str(getattr(view_func, "__name__", ""))
        if view_func is None or endpoint in self.view_functions:
            raise ValueError(f"The route {rule} needs a view, and a name of its own.")
        self.view_functions[endpoint] = view_func
        self._rules.append((rule, endpoint, tuple(options.get("methods", ("GET",)))))

    def compile(self) -> None:
        """Take the routes that were added as all there are."""
        self.url_map = _compiled(tuple(self._rules))


class Switches(UserDict[str, Any]):
    """A fake's switches by name. *looked_at*: those that anything has depended on so far."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.looked_at: set[str] = set()
        super().__init__(values)

    def __getitem__(self, name: str) -> Any:
        self.looked_at.add(name)
        return super().__getitem__(name)


class Fake:
    """One platform. A subclass declares *SWITCHES* (the first value is the default) and adds its routes.

    Every switch stands for something the vendor does not document, so that an adapter can be tested under each
    reading of it. State is guarded by *lock*: a request is handled under it, one after the other.
    """

    title = "a platform"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {}

    def __init__(self, **switches: Any) -> None:
        for name, value in switches.items():
            if value not in self.SWITCHES.get(name, ()):
                raise ValueError(f"{type(self).__name__} has no switch {name}={value!r}")
        self.switches = Switches({name: switches.get(name, values[0]) for name, values in self.SWITCHES.items()})
        self.lock = threading.RLock()
        self.calls: list[Call] = []
        self.troubles: list[Trouble] = []
        self.app = _App(f"bridge.demo.fakes.{type(self).__name__}")
        self.app.before_request(self._before)
        self.routes(self.app)
        self.app.compile()

    def routes(self, app: Flask) -> None:
        raise NotImplementedError("a fake adds its routes")  # pragma: no cover - every fake does

    def trouble(self, **how: Any) -> Trouble:
        """Arrange for trouble; returns it, so that its *times* can be read or set to 0."""
        trouble = Trouble(**how)
        with self.lock:
            self.troubles.append(trouble)
        return trouble

    def made(self, method: str = "", path: str = "") -> list[Call]:
        """Return the calls so far with this method and this part of the path."""
        with self.lock:
            return [c for c in self.calls if method in {"", c.method} and path in c.path]

    def _before(self) -> Response | None:
        body = request.get_data()
        try:
            parsed = json.loads(body) if body else None
        except ValueError:
            parsed = None
        path = request.full_path.rstrip("?")
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").title(): value
            for name, value in request.environ.items()
            if name.startswith("HTTP_") or name in {"CONTENT_TYPE", "CONTENT_LENGTH"}
        }
        with self.lock:
            self.calls.append(Call(request.method, path, headers, parsed, time.monotonic()))
        return None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        path = environ.get("PATH_INFO", "")
        with self.lock:
            found = next((t for t in self.troubles if t.matches(environ["REQUEST_METHOD"], path)), None)
            if found is not None:
                found.times -= 1
        if found is None:
            return self._handle(environ, start_response)
        if found.how == "answer":
            content = found.body if isinstance(found.body, str) else json.dumps(found.body)
            kind = "text/html" if isinstance(found.body, str) else "application/json"
            answer = Response(content, found.status, {"Content-Type": kind, **found.headers})
            with self.app.request_context(environ):
                self._before()
            return answer(environ, start_response)
        if found.how == "drop":
            start_response("200 OK", [])  # never sent: the line is cut below
        else:
            answer_later = self._handle(environ, start_response)
        if found.how == "slow":
            time.sleep(found.seconds)
            return answer_later
        self._hang_up(environ)
        return [b""]

    def _handle(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        with self.lock:
            return self.app(environ, start_response)

    @staticmethod
    def _hang_up(environ: WSGIEnvironment) -> None:
        connection: socket.socket = environ[SOCKET]
        connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve on 127.0.0.1 (0: on a free port) and yield the base URL, without a trailing slash."""
        with serve(self, port) as url:
            yield url


def answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer."""
    return Response(json.dumps(body), status, {"Content-Type": "application/json", **(headers or {})})
