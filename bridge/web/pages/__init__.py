"""What a person sees in a browser: pages made on the server, which can be read without JavaScript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, abort, request, send_from_directory
from flask.typing import ResponseReturnValue

from bridge.web import problem
from bridge.web.pages import (
    access,
    account,
    audit,
    contacts,
    exporting,
    failures,
    overview,
    playground,
    sources,
    targets,
    webhooks,
)
from bridge.web.pages.site import Site, set_up

# Everything that may be seen only by who is signed in. A page is a module and a line here.
PAGES: tuple[Callable[[Site], Blueprint], ...] = (
    account.blueprint,
    audit.blueprint,
    exporting.blueprint,
    contacts.blueprint,
    failures.blueprint,
    webhooks.blueprint,
    overview.blueprint,
    sources.blueprint,
    targets.blueprint,
    playground.blueprint,
)

MACHINES = ("/api/", "/hooks/", "/healthz", "/readyz", "/metrics", "/assets/")  # they read no HTML
FOREVER = "public, max-age=31536000, immutable"


def register(app: Flask, site: Site) -> None:
    """Add the pages to *app*, and have errors be pages where a person looks."""
    set_up(app, site)
    gate = access.Gate(site)
    app.register_blueprint(access.blueprint(site, gate))
    for make in PAGES:
        pages = make(site)
        pages.before_request(gate.check)
        app.register_blueprint(pages)
    app.add_url_rule("/assets/<version>/<path:name>", "asset", _asset(site))
    app.register_error_handler(Exception, lambda error: _answer_to(site, error))


def _asset(site: Site) -> Callable[..., ResponseReturnValue]:
    def asset(version: str, name: str) -> ResponseReturnValue:
        if version != site.assets_version:
            abort(404)
        sent = send_from_directory(site.assets, name)
        sent.headers["Cache-Control"] = FOREVER
        sent.headers["X-Content-Type-Options"] = "nosniff"
        return sent

    return asset


def _answer_to(site: Site, error: Exception) -> Response:
    found = problem.problem_of(error)
    if request.path.startswith(MACHINES) or not request.accept_mimetypes.accept_html:
        return found.answer()
    values: dict[str, Any] = {"title": TITLES.get(found.status, "That did not work"), "detail": found.detail}
    answer = site.page("error.html", status=found.status, faults=found.faults, **values)
    answer.headers.extend(found.headers)
    return answer


TITLES = {
    400: "That cannot be read",
    403: "Not allowed",
    404: "There is nothing here",
    410: "This link is over",
    503: "Not possible now",
}
