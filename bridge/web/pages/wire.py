"""A stored request as a person looks at it: its body, its headers without secrets, and how to send it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from bridge.config import SourceConnection
from bridge.errors import ConfigError
from bridge.model import InboundRequest
from bridge.sources.base import is_confidential
from bridge.store.protocol import Inbound
from bridge.web.inbound import HIDDEN as TOKEN_HIDDEN
from bridge.web.pages.words import pretty, visible

LONGEST = 60_000  # characters shown of a body
LONGEST_DUMP = 4096  # bytes shown of one that is no text
LONGEST_COMMAND = 16_000  # characters of a body inside a command
HIDDEN = "••••"
MADE_BY_SIGNING = "<made by signing>"


# --- the body ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Body:
    """A body to look at. *form* says what is shown: ``JSON``, ``form``, ``text`` or ``bytes``."""

    text: str
    form: str
    cut: bool
    size_bytes: int
    is_text: bool


def raw(body: bytes) -> Body:
    """Return *body* as it came: as text where it is UTF-8, else its bytes in hexadecimal."""
    try:
        return _body(body.decode(), "text", body)
    except UnicodeDecodeError:
        dump = "\n".join(_dumped(body, at) for at in range(0, min(len(body), LONGEST_DUMP), 16))
        return Body(dump, "bytes", len(body) > LONGEST_DUMP, len(body), is_text=False)


def readable(body: bytes, content_type: str) -> Body | None:
    """Return *body* laid out for reading, None where there is nothing to lay out."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    try:
        return _body(pretty(json.loads(text), LONGEST), "JSON", body)
    except (ValueError, RecursionError):
        pass
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        return _body(
            "\n".join(f"{name}: {value}" for name, value in parse_qsl(text, keep_blank_values=True)), "form", body
        )
    return None


def _body(text: str, form: str, body: bytes) -> Body:
    return Body(visible(text[:LONGEST]), form, len(text) > LONGEST, len(body), is_text=True)


def _dumped(body: bytes, at: int) -> str:
    part = body[at : at + 16]
    letters = "".join(chr(one) if 32 <= one < 127 else "." for one in part)
    return f"{at:06x}  {part.hex(' '):<47}  {letters}"


# --- headers and the URL -------------------------------------------------------------------------------------


def masked_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return headers by name, those that prove something or name somebody without their value."""
    return [
        (visible(name), HIDDEN if _is_secret(name) else visible(value)) for name, value in sorted(headers.items())
    ]


def masked_url(url: str) -> str:
    """Return *url* without the values of parameters that are secret."""
    parts = urlsplit(url)
    query = "&".join(_masked(one) for one in parts.query.split("&")) if parts.query else ""
    return visible(urlunsplit(parts._replace(query=query)))


def _masked(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}={HIDDEN}" if equals and _is_secret(name) else parameter


def _is_secret(name: str) -> bool:
    # Which version of a signature it is says nothing that is secret.
    name = name.lower().replace("_", "-")
    return (is_confidential(name) or name in {"key", "sig", "pwd", "pass"}) and not name.endswith("-version")


# --- a command that sends it ---------------------------------------------------------------------------------


def curl(connection: SourceConnection | None, stored: Inbound, now: datetime) -> str:
    """Return a command that sends the request again, without anything that proves it to be genuine."""
    if stored.body is None:
        return ""
    headers = {name: value for name, value in stored.headers.items() if not _is_secret(name)}
    made = _made_by_signing(connection, stored, headers, now)
    url = masked_url(stored.url).replace(f"/{TOKEN_HIDDEN}", "/<token>")
    lines = [f"curl -X {shlex.quote(stored.method)} {shlex.quote(url)}"]
    lines += [
        f"-H {shlex.quote(f'{name}: {visible(value)}')}" for name, value in headers.items() if name not in made
    ]
    lines += [f"-H {shlex.quote(f'{name}: {MADE_BY_SIGNING}')}" for name in made]
    lines.append(f"--data-binary {_data(stored)}")
    return " \\\n  ".join(lines)


def _made_by_signing(
    connection: SourceConnection | None, stored: Inbound, headers: Mapping[str, str], now: datetime
) -> list[str]:
    """Return the names of the headers that the sender makes anew for every request."""
    if connection is None or stored.body is None:
        return []
    bare = InboundRequest(stored.method, stored.url, headers, b"")
    try:
        signed = connection.source.sign(bare, now)
    except ConfigError:
        return []
    return [name for name, value in signed.headers.items() if headers.get(name) != value]


def _data(stored: Inbound) -> str:
    """Return the body for a shell. What one would not see while pasting it comes from a file."""
    try:
        text = (stored.body or b"").decode()
    except UnicodeDecodeError:
        return f"@{file_name(stored)}"
    if len(text) > LONGEST_COMMAND or visible(text) != text or text.startswith("@"):
        return f"@{file_name(stored)}"
    return shlex.quote(text)


def file_name(stored: Inbound) -> str:
    """Return what the body is called as a file."""
    try:
        json.loads(stored.body or b"")
    except (ValueError, RecursionError):
        return f"webhook-{stored.id}.body"
    return f"webhook-{stored.id}.json"
