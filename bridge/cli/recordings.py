"""Webhooks in files: ``.http`` holds a whole request as it was on the wire, any other file only a body."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from bridge.model import InboundRequest
from bridge.sources.recording import of_body, read_recording

# How the recorded request travelled; it travels anew.
_NOT_TAKEN = frozenset({"host", "content-length", "connection", "transfer-encoding", "accept-encoding"})


def read(path: Path, url: str) -> InboundRequest:
    """Return the request that the file at *path* holds, as if it came to *url*.

    Raises:
        click.ClickException: the file cannot be read.
        BadPayload: it is no recorded request.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix != ".http":
        return of_body(content, url)
    recorded = read_recording(content, "")
    query = recorded.url.partition("?")[2]
    headers = {name: value for name, value in recorded.headers.items() if name not in _NOT_TAKEN}
    return replace(recorded, url=f"{url}?{query}" if query else url, headers=headers)
