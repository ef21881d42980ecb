"""Signing in and out, and who may see what.

A session is a signed cookie with a name and that person's epoch. Whether it still holds is looked up at every
request: removing somebody, another role and "sign out everywhere" take effect at once.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache, wraps
from typing import ParamSpec
from urllib.parse import urlencode

from flask import Blueprint, Response, g, redirect, request, session
from flask.typing import ResponseReturnValue
from itsdangerous import BadData, URLSafeSerializer
from werkzeug.security import check_password_hash, generate_password_hash

from bridge.errors import StoreUnavailable
from bridge.model import AuditEntry
from bridge.store.looking import Role, User
from bridge.store.protocol import Store
from bridge.web.guard import Throttle, neighbourhood
from bridge.web.pages.site import Site, current_user, may
from bridge.web.problem import HttpProblem

SHORTEST_PASSWORD = 12  # characters
LONGEST_PASSWORD = 256
LONGEST_NAME = 100
HASHES_AT_ONCE = 2  # each takes 32 MiB and a processor

NOT_CONFIGURED = (
    "Nobody can sign in because bridge has no SECRET_KEY to sign sessions with. Set SECRET_KEY to a long random "
    "text (for example the output of: openssl rand -hex 32) and start bridge again."
)
WRONG = "There is nobody of that name with that password."
STALE_FORM = "This form is from another session. Go back, reload the page and try again. Nothing was changed."
SPENT_LINK = (
    "This link was used already, or it is too old. A link works once, for a few minutes; "
    "'bridge login-link' makes a new one."
)

P = ParamSpec("P")


@cache  # a tenth of a second, which a start can do without
def _nobody() -> str:
    """Return what is checked when there is nobody of a name, so that this takes as long as a wrong password."""
    return generate_password_hash(secrets.token_hex(16))


def hashed(password: str) -> str:
    """Return what is stored of a password (scrypt).

    Raises:
        ValueError: it is too short or too long; the message is for a person.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise ValueError(f"a password has from {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    return generate_password_hash(password)


def login_path(secret_key: str, store: Store, user: str, now: datetime, valid_for: timedelta) -> str:
    """Return the path of a page where *user* can sign in once, until *valid_for* has passed."""
    link_id = secrets.token_hex(8)
    store.add_login_link(link_id, user, now + valid_for)
    return f"/sign-in/link/{_links(secret_key).dumps(link_id)}"


def _links(secret_key: str) -> URLSafeSerializer:
    return URLSafeSerializer(secret_key, salt="bridge.login")


def needs(role: Role) -> Callable[[Callable[P, ResponseReturnValue]], Callable[P, ResponseReturnValue]]:
    """Have a view answer 403 to those who have less than *role*."""

    def wrap(view: Callable[P, ResponseReturnValue]) -> Callable[P, ResponseReturnValue]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> ResponseReturnValue:
            user = current_user()
            if user is None or not may(user, role):
                raise HttpProblem(403, f"This is for the role {role.value}, which you do not have.")
            return view(*args, **kwargs)

        return guarded

    return wrap


def actor() -> str:
    """Return the name of who is signed in, for the audit log."""
    user = current_user()
    assert user is not None, "only behind `identify`"  # noqa: S101 - a page without a guard would be our bug
    return user.name


# --- before each page ----------------------------------------------------------------------------------------


class Gate:
    """Lets a request to a page pass, or sends whoever asked to sign in."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def identify(self) -> None:
        """Find out who it is; for pages that anybody may see."""
        if not self._site.secret_key:
            raise HttpProblem(503, NOT_CONFIGURED)
        name, epoch = session.get("user"), session.get("epoch")
        user = self._site.store.user(name) if isinstance(name, str) else None
        g.user = user if user is not None and _epoch(user) == epoch else None
        if request.method not in {"GET", "HEAD", "OPTIONS"}:
            self._check_form()

    def check(self) -> Response | None:
        """Let only those pass who are signed in; for all other pages."""
        self.identify()
        user = current_user()
        if user is None:
            return self._to_sign_in()
        with suppress(StoreUnavailable):  # a full disk keeps nobody from looking
            self._site.store.seen(user.name, self._site.clock())
        return None

    def _to_sign_in(self) -> Response:
        if "HX-Request" in request.headers:  # a part of a page: have the browser load the whole one
            return Response("", 401, {"HX-Refresh": "true"})
        wanted = request.full_path.rstrip("?") if request.method == "GET" else "/"
        query = "" if wanted == "/" else "?" + urlencode({"next": wanted})
        return _see_other("/sign-in" + query)

    def _check_form(self) -> None:
        expected = session.get("csrf", "")
        given = request.headers.get("X-CSRF-Token") or request.form.get("csrf", "")
        if not expected or not hmac.compare_digest(expected.encode(), given.encode()):
            raise HttpProblem(400, STALE_FORM)


def _epoch(user: User) -> str:
    """Return what a session of *user* has to hold. Somebody who was removed and added again is somebody else."""
    return f"{user.epoch} {user.created_at}"


def _see_other(path: str) -> Response:
    return Response("", 303, {"Location": path, "Cache-Control": "no-store"})


def safe_next(given: str) -> str:
    """Return where to go after signing in: a path of ours, whatever was asked for."""
    local = given.startswith("/") and not given.startswith(("//", "/\\"))
    return given if local and given.isprintable() else "/"


# --- the pages -----------------------------------------------------------------------------------------------


def blueprint(site: Site, gate: Gate) -> Blueprint:
    pages = Blueprint("access", __name__)
    # Neither one who guesses nor many may try quickly. Behind a proxy everybody may have one address.
    by_address, by_name = Throttle(), Throttle(failures=5, per_failure_s=12.0)
    counting, hashing = threading.Lock(), threading.BoundedSemaphore(HASHES_AT_ONCE)

    @pages.before_request
    def open_door() -> None:
        gate.identify()

    def admit(address: str, name: str) -> float:
        """Return for how many seconds nobody may try; 0: this try counts as wrong until it proves right.

        Were it counted afterwards, as many as there are threads could be tried at once.
        """
        with counting:
            wait_s = max(by_address.closed_for_s(address), by_name.closed_for_s(name))
            if not wait_s:
                by_address.failed(address)
                by_name.failed(name)
        return wait_s

    def with_password(name: str, password: str) -> User | None:
        user = site.store.user(name) if name.isprintable() else None
        stored = user.password_hash if user and user.password_hash else _nobody()
        with hashing:
            right = check_password_hash(stored, password[: LONGEST_PASSWORD + 1])
        return user if right and user and user.password_hash else None

    def let_in(user: User, how: str) -> Response:
        session.clear()  # a new session has a new CSRF token
        session.permanent = True
        session["user"], session["epoch"] = user.name, _epoch(user)
        now = site.clock()
        site.store.seen(user.name, now)
        _note(site, now, "signed_in", f"{user.name} signed in with {how}.")
        return _see_other(safe_next(request.form.get("next", "/")))

    @pages.get("/sign-in")
    def ask() -> ResponseReturnValue:
        if current_user() is not None:
            return _see_other(safe_next(request.args.get("next", "/")))
        return site.page("sign_in.html", next=safe_next(request.args.get("next", "/")), name="", wrong="")

    @pages.post("/sign-in")
    def sign_in() -> ResponseReturnValue:
        # One character too many is nobody's name, and nothing long is remembered.
        name = request.form.get("name", "").strip()[: LONGEST_NAME + 1]
        address = neighbourhood(request.remote_addr or "")
        wait_s = admit(address, name)
        user = None if wait_s else with_password(name, request.form.get("password", ""))
        if user is not None:
            by_address.forgive(address)
            by_name.forgive(name)
            return let_in(user, "a password")
        said = f"Too many wrong passwords; wait {int(wait_s) + 1} seconds and try again." if wait_s else WRONG
        next_page = safe_next(request.form.get("next", "/"))
        status = 429 if wait_s else 401
        return site.page("sign_in.html", status=status, next=next_page, name=name[:100], wrong=said)

    @pages.get("/sign-in/link/<token>")
    def show_link(token: str) -> ResponseReturnValue:
        """Ask once more: programs that look at links for people must not use them up."""
        return site.page("sign_in_link.html", token=token)

    @pages.post("/sign-in/link/<token>")
    def use_link(token: str) -> ResponseReturnValue:
        try:
            link_id = str(_links(site.secret_key).loads(token))
        except BadData:
            raise HttpProblem(410, SPENT_LINK) from None
        name = site.store.use_login_link(link_id, site.clock())
        user = site.store.user(name) if name else None
        if user is None:
            raise HttpProblem(410, SPENT_LINK)
        return let_in(user, "a link")

    @pages.post("/sign-out")
    def sign_out() -> ResponseReturnValue:
        session.clear()
        return _see_other("/sign-in")

    @pages.post("/sign-out-everywhere")
    def sign_out_everywhere() -> ResponseReturnValue:
        user = current_user()
        if user is not None:
            site.store.end_sessions(user.name)
            _note(site, site.clock(), "signed_out", f"{user.name} signed out everywhere.")
        session.clear()
        return redirect("/sign-in", 303)

    return pages


def _note(site: Site, now: datetime, outcome: str, reason: str) -> None:
    site.store.note([AuditEntry(at=now, kind="access", outcome=outcome, reason=reason)])
