"""The page about oneself, and who else can sign in."""

from __future__ import annotations

from flask import Blueprint
from flask.typing import ResponseReturnValue

from bridge.web.pages.site import Site


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("account", __name__)

    @pages.get("/account")
    def account() -> ResponseReturnValue:
        return site.page("account.html", users=site.store.users())

    return pages
