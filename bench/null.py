"""The measures of ingest, under the settings that bridge runs with.

One is a Flask route that does nothing; the other the shorter way through the server that webhooks take, which does
nothing either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from flask import Flask, Response

from bridge import log
from bridge.web.inbound import Reply
from bridge.web.server import THREADS, Server


class AtOnce:
    """A `Shortcut` that answers whatever comes to one source."""

    paths = frozenset({b"/hooks/shop"})

    def begin(
        self, target: str, headers: Mapping[str, str], body: bytes, answer: Callable[[Reply], None]
    ) -> Callable[[], None]:
        answer(Reply(b'{"status":"accepted"}'))
        return self.finish

    def finish(self) -> None:
        """There is nothing to finish."""


class NullApp(Flask):
    shortcut = AtOnce()


def null_app() -> Flask:
    app = NullApp("null", static_folder=None)

    @app.post("/hooks/<name>")
    def receive(name: str) -> Response:
        return Response(b'{"status":"accepted"}', 200, content_type="application/json")

    @app.get("/healthz")
    def alive() -> Response:
        return Response(b"{}", 200)

    return app


if __name__ == "__main__":
    log.configure("warning")
    Server(null_app, lambda: None, bind=f"127.0.0.1:{sys.argv[1]}", processes=1, threads=THREADS).run()
