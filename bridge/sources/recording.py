"""Requests from elsewhere than the wire: recordings, which hold their exact bytes, and bodies alone."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from bridge.errors import BadPayload
from bridge.model import InboundRequest

FORM = "application/x-www-form-urlencoded"


def of_body(body: bytes, url: str) -> InboundRequest:
    """Return a request that posts *body*: as JSON where it is, otherwise as a form."""
    try:
        json.loads(body)
    except ValueError:
        return InboundRequest("POST", url, {"content-type": FORM}, body)
    return InboundRequest("POST", url, {"content-type": "application/json"}, body)


def read_recording(recording: bytes, base_url: str) -> InboundRequest:
    """Return the request of a recording: request line, headers, an empty line, and the body to the last byte.

    *base_url* is where it is sent: the scheme and host that are signed.

    Raises:
        BadPayload: it is no recording; the message says what is missing.
    """
    head, body = _split(recording)
    try:
        request_line, *lines = head.decode("latin-1").splitlines()
        method, path, _ = request_line.split(" ")
    except ValueError as error:
        raise BadPayload(
            "The recording does not begin with a request line such as POST /hooks/shop HTTP/1.1."
        ) from error
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadPayload("A line of the recording's headers has no colon. An empty line ends the headers.")
        key = name.strip().lower()
        headers[key] = f"{headers[key]},{value.strip()}" if key in headers else value.strip()
    return InboundRequest(method, base_url.rstrip("/") + path, headers, body)


def write_recording(request: InboundRequest) -> bytes:
    """Return *request* as a recording."""
    url = urlsplit(request.url)
    path = f"{url.path}?{url.query}" if url.query else url.path
    lines = [f"{request.method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + request.body


def _split(recording: bytes) -> tuple[bytes, bytes]:
    """Return head and body; a file that an editor saved has plain newlines."""
    ends = [(recording.find(end), end) for end in (b"\r\n\r\n", b"\n\n") if end in recording]
    if not ends:
        raise BadPayload("The recording has no empty line between its headers and its body.")
    at, end = min(ends)
    return recording[:at], recording[at + len(end) :]
