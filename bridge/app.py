"""Composition of the web process: the file that knows every part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from flask import Flask

from bridge.config import Config, Environment
from bridge.model import utc_now
from bridge.store.protocol import Store
from bridge.web import api, health, inbound, openapi, pages, problem
from bridge.web.guard import Guard
from bridge.web.pages.site import Site
from bridge.web.proxies import client_address
from bridge.web.tokens import Tokens
from bridge.web.transport import insist_on_tls

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class WebApp(Flask):
    """Flask, with a shorter way for what comes most."""

    shortcut: inbound.Shortcut | None = None
    trusted_proxies = 0

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer = self.shortcut(environ, start_response) if self.shortcut else None
        if answer is not None:
            return answer
        environ["REMOTE_ADDR"] = client_address(environ, self.trusted_proxies)
        return super().wsgi_app(environ, start_response)


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
    app = WebApp("bridge", static_folder=None, template_folder=None)
    app.url_map.merge_slashes = False  # an id may hold two slashes, and senders follow no redirects
    app.config["MAX_CONTENT_LENGTH"] = config.bridge.max_body_bytes
    app.trusted_proxies = config.bridge.trusted_proxies
    problem.register(app)
    insist_on_tls(app, config.bridge.public_url)
    guard = Guard(environment.api_token)
    settings = config.bridge
    receiver = inbound.Receiver(
        config.sources,
        settings.public_url,
        commit,
        Tokens(environment.secret_key, store),
        settings.max_body_bytes,
        clock,
        store,
        {name: one for name, one in config.targets.items() if one.type.feedback is not None},
    )
    app.register_blueprint(inbound.blueprint(receiver))

    def trouble() -> str:
        return health.why_unwritable(store, commit.trouble(), clock())

    # Through a proxy on this machine, everybody comes from loopback.
    metrics_bound_to = "" if config.bridge.trusted_proxies else bound_to
    bursts = {name: one.burst for name, one in config.targets.items()}
    app.register_blueprint(health.blueprint(store, guard, metrics_bound_to, clock, trouble, bursts))
    app.register_blueprint(api.blueprint(api.Api(config, store, ring, clock, trouble), guard))
    app.register_blueprint(openapi.blueprint(config.bridge.public_url))

    pages.register(app, Site(config, store, commit, ring, clock, trouble, environment.secret_key))
    app.shortcut = inbound.Shortcut(receiver)
    return app
