"""What every page works with, and how a page is made: one template, handed plain values."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, g, request, session
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from bridge import __version__
from bridge.config import Config
from bridge.store.looking import Role, User
from bridge.store.protocol import Store
from bridge.web.inbound import Intake
from bridge.web.pages import words

# No inline code, nothing from elsewhere, in no frame. Styles are set by attribute nowhere.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # the marks of selects and search fields stand in the stylesheet as data
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",  # people's data: not in a shared browser's cache
}


def templates_folder() -> Path:
    """Return where the templates are: inside the installed package, or at the top of a checkout."""
    package = Path(str(resources.files("bridge")))
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


@dataclass(frozen=True)
class Site:
    """The parts of the web process that pages use."""

    config: Config
    store: Store
    commit: Intake  # takes a sample webhook to disk, as it takes any
    ring: Callable[[], None]  # tells the worker that there is something to do
    clock: Callable[[], datetime]
    trouble: Callable[[], str]  # why nothing can be written, "" when it can
    secret_key: str = field(repr=False, default="")

    @property
    def public_url(self) -> str:
        return self.config.bridge.public_url.rstrip("/")

    @property
    def https(self) -> bool:
        return urlsplit(self.public_url).scheme == "https"

    @cached_property
    def assets(self) -> Path:
        return templates_folder() / "assets"

    @cached_property
    def assets_version(self) -> str:
        """A text that is another one whenever an asset is, so that browsers may keep them for ever."""
        content = hashlib.sha256()
        for path in sorted(self.assets.iterdir()):
            content.update(path.read_bytes())
        return content.hexdigest()[:12]

    @cached_property
    def templates(self) -> Environment:
        # Not Flask's own: a page sees what it is handed, and nothing of the request or the configuration.
        made = Environment(
            loader=FileSystemLoader(templates_folder()),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        made.filters.update(words.FILTERS)
        made.globals.update(words.GLOBALS)
        made.globals["asset"] = lambda name: f"/assets/{self.assets_version}/{name}"
        made.globals["version"] = __version__
        return made

    # --- for each request ---

    def page(self, template: str, /, *, status: int = 200, **values: Any) -> Response:
        """Return the page that *template* makes of *values*.

        Every template also gets ``now``, ``user`` (None before sign-in), ``csrf``, ``path`` and ``can(role)``.
        """
        user = current_user()
        html = self.templates.get_template(template).render(
            now=self.clock(),
            user=user,
            csrf=csrf_token() if self.secret_key else "",
            path=request.path,
            can=lambda role: user is not None and may(user, Role(role)),
            said=session.pop("said", "") if self.secret_key else "",
            **values,
        )
        # What JSON can spell and UTF-8 cannot hold must not take the page with it.
        content = html.encode("utf-8", "backslashreplace")
        return Response(content, status, HEADERS, content_type="text/html; charset=utf-8")


def say(sentence: str) -> None:
    """Have the next page begin with *sentence*: what came of what somebody just did."""
    session["said"] = sentence


# --- who it is -----------------------------------------------------------------------------------------------

RANKS = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)


def current_user() -> User | None:
    """Return who is signed in, as `access.identify` found out at the beginning of the request."""
    user: User | None = g.get("user")
    return user


def may(user: User, role: Role) -> bool:
    """Say whether *user* may do what is for *role*."""
    return RANKS.index(user.role) >= RANKS.index(role)


def csrf_token() -> str:
    """Return the text that each form of this session has to send along."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(24)
    token: str = session["csrf"]
    return token


def set_up(app: Flask, site: Site) -> None:
    """Have *app* sign its session cookie as *site* wants it."""
    app.secret_key = site.secret_key or None
    app.config.update(
        # The prefix lets a browser take the cookie from this very host only.
        SESSION_COOKIE_NAME="__Host-bridge" if site.https else "bridge",
        SESSION_COOKIE_SECURE=site.https,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=7 * 24 * 3600,
        SESSION_REFRESH_EACH_REQUEST=False,
    )
