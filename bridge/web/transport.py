"""What tells browsers, and programs that keep it, to come by TLS only."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Flask, Response, request

A_YEAR = "max-age=31536000"  # of this host alone: what else its domain serves is not ours to say


def insist_on_tls(app: Flask, public_url: str) -> None:
    """Say so in every answer but those to senders, if *public_url* is reached by TLS at all."""
    if urlsplit(public_url).scheme != "https":
        return

    @app.after_request
    def said(answer: Response) -> Response:
        if not request.path.startswith("/hooks/"):
            answer.headers["Strict-Transport-Security"] = A_YEAR
        return answer
