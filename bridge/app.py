"""Composition of the web process: the file that knows every part of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from flask import Flask, Response
from flask.typing import ResponseReturnValue

from bridge.config import Config, Environment
from bridge.model import utc_now
from bridge.store.protocol import Store
from bridge.web import api, health, inbound, openapi, problem
from bridge.web.guard import Guard
from bridge.web.tokens import Tokens

HERE = b'{"name":"bridge","api":"/api/v1","description":"/api/openapi.json","health":"/readyz"}'


def create_app(
    config: Config,
    store: Store,
    environment: Environment,
    *,
    commit: inbound.Intake,
    ring: Callable[[], None] = lambda: None,
    bound_to: str = "",
    clock: Callable[[], datetime] = utc_now,
) -> Flask:
    """Return the web application.

    *commit* takes webhooks to disk; *ring* tells the worker that there is something to do; *bound_to* is the
    address that the server listens at.
    """
    app = Flask("bridge", static_folder=None, template_folder=None)
    app.url_map.merge_slashes = False  # an id may hold two slashes, and senders follow no redirects
    app.config["MAX_CONTENT_LENGTH"] = config.bridge.max_body_bytes
    problem.register(app)
    guard = Guard(environment.api_token)
    tokens = Tokens(environment.secret_key, store)
    app.register_blueprint(inbound.blueprint(config.sources, config.bridge.public_url, commit, tokens))
    app.register_blueprint(health.blueprint(store, guard, bound_to, clock))
    app.register_blueprint(api.blueprint(api.Api(config, store, ring, clock), guard))
    app.register_blueprint(openapi.blueprint(config.bridge.public_url))

    @app.get("/")
    def index() -> ResponseReturnValue:
        return Response(HERE, 200, content_type="application/json")

    return app
