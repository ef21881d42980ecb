"""Webhooks in files: ``.http`` holds a whole request as it was on the wire, any other file only a body."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from bridge.model import InboundRequest

FORM = "application/x-www-form-urlencoded"
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
# They say how the recorded request travelled, or proved itself at that time; both are done anew.
_NOT_TAKEN = frozenset({"host", "content-length", "connection", "transfer-encoding", "accept-encoding"})


def read(path: Path, url: str) -> InboundRequest:
    """Return the request that the file at *path* holds, as if it came to *url*.

    Raises:
        click.ClickException: the file cannot be read, or is no request.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix == ".http":
        return _whole(path, content, url)
    return of_body(content, url)


def of_body(body: bytes, url: str) -> InboundRequest:
    """Return a request that posts *body*: as JSON where it is, otherwise as a form."""
    try:
        json.loads(body)
    except ValueError:
        return InboundRequest("POST", url, {"content-type": FORM}, body)
    return InboundRequest("POST", url, {"content-type": "application/json"}, body)


def _whole(path: Path, content: bytes, url: str) -> InboundRequest:
    end = _END_OF_HEAD.search(content)
    head, body = (content[: end.start()], content[end.end() :]) if end else (content, b"")
    request_line, *lines = head.decode("latin-1").splitlines()
    words = request_line.split()
    if len(words) < 2 or not all(":" in line for line in lines):
        raise click.ClickException(
            f"{path} is no recorded request: it begins with POST and a path, then header lines, an empty line and "
            "the body."
        )
    pairs = [line.split(":", 1) for line in lines]
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    kept = {name: value for name, value in headers.items() if name not in _NOT_TAKEN}
    query = words[1].partition("?")[2]
    return InboundRequest(words[0], f"{url}?{query}" if query else url, kept, body)
