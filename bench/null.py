"""The measure of ingest: a Flask route that does nothing, under the settings that bridge runs with."""

from __future__ import annotations

import sys

from flask import Flask, Response

from bridge import log
from bridge.web.server import THREADS, Server


def null_app() -> Flask:
    app = Flask("null", static_folder=None)

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
